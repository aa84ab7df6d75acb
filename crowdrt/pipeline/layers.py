"""The layers of a TensorRT engine folder: precision, time, cost and roofline, for `inspect`."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.console import show_table
from crowdrt.engines.layers.roofline import Peaks
from crowdrt.engines.trt.layers.inspector import layer_times, read_inspector
from crowdrt.engines.trt.layers.rows import layer_rows
from crowdrt.errors import EngineError

INSPECTOR, PROFILE, PEAKS = "inspector.json", "profile.json", "peaks.json"
SHORTEST = 60  # characters of a layer's name that are shown


def layers_of(folder: Path) -> dict[str, Any]:
    """Return what is known of an engine's layers; nothing of one without an inspector's record.

    Beside the plan, `profile.json` holds layers' times and `peaks.json` what the GPU can do at
    most; without one of them, the columns that need it are None.

    Raises:
        EngineError: a record is damaged.
    """
    if not (folder / INSPECTOR).is_file():
        return {}
    inspection = read_inspector(read(folder / INSPECTOR), source=str(folder / INSPECTOR))
    profile, peaks = folder / PROFILE, folder / PEAKS
    times = layer_times(read(profile), source=str(profile)) if profile.is_file() else None
    limits = peaks_in(peaks) if peaks.is_file() else None
    rows = [row.to_json() for row in layer_rows(inspection, times, limits)]
    return {
        "layers": rows,
        "layer_precisions": dict(
            Counter(
                layer.precision or "unknown" for layer in inspection.layers if not layer.moves_only
            )
        ),
        "layers_ms": None if times is None else sum(times.values()),
        "least_ms": None if limits is None else sum(row["least_ms"] or 0 for row in rows),
    }


def read(path: Path) -> str:
    """Return a record's text."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            f"{path} cannot be read: {error}",
            fix="build the engine again: crowdrt build MODEL.onnx --engine tensorrt",
        ) from error


def peaks_in(path: Path) -> Peaks:
    """Return what a GPU was measured to do."""
    try:
        document = json.loads(read(path))
    except ValueError:
        document = {}
    return Peaks.from_json(document)


def show_layers(found: Mapping[str, Any]) -> None:
    """Print a line per layer; columns of which nothing is known are left out."""
    rows: Sequence[Mapping[str, Any]] = found.get("layers", ())
    columns = {
        "layer": [short(row["name"]) for row in rows],
        "runs in": [row["precision"] or "?" for row in rows],
        "reads": [row["reads"] for row in rows],
        "writes": [row["writes"] for row in rows],
        "ms": [number(row["ms"], "{:.4f}") for row in rows],
        "share": [number(row["share"], "{:.1%}") for row in rows],
        "G MACs": [number(row["macs"], "{:.3f}", 1e9) for row in rows],
        "least ms": [number(row["least_ms"], "{:.4f}") for row in rows],
        "bound by": [row["bound_by"] or "" for row in rows],
        "roofline": [number(row["roofline"], "{:.0%}") for row in rows],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in shown:
        table.add_column(title)
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*map(Text, cells))
    show_table(table)


def number(value: float | None, form: str, unit: float = 1.0) -> str:
    """Return a figure, or nothing where there is none."""
    return "" if value is None else form.format(value / unit)


def short(name: str) -> str:
    """Return a layer's name, its middle left out where it is long."""
    half = SHORTEST // 2
    return name if len(name) <= SHORTEST else f"{name[:half]}...{name[-half:]}"
