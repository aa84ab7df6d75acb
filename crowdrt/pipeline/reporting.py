"""A run's files become report.html, now or at any later time."""

import json
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.accuracy.comparison import ComparedRow
from crowdrt.benchmarks.accuracy.counts import CountRow, accuracy
from crowdrt.benchmarks.labels import network_label
from crowdrt.benchmarks.layers.records import LayerProfile, read_profiles
from crowdrt.benchmarks.report.page import (
    AccuracyLine,
    OverlayFigure,
    Report,
    StageLine,
    write_report,
)
from crowdrt.benchmarks.tables.render import markdown_table
from crowdrt.benchmarks.tables.table import TableRow, newest, table_rows
from crowdrt.benchmarks.timing.records import read_records
from crowdrt.console import say
from crowdrt.contracts import Artifact, Measurement
from crowdrt.errors import BenchmarkError
from crowdrt.manifest import write_whole
from crowdrt.pipeline.measuring import operations_of
from crowdrt.pipeline.precision.comparing import comparison_of
from crowdrt.pipeline.precision.record import methods_of
from crowdrt.pipeline.stripped import stripping_section
from crowdrt.pipeline.tables.compression import comparison_in

LAYERS = "layers.jsonl"  # older runs have none


@dataclass(frozen=True, kw_only=True)
class DocumentedRun:
    """What `run.json` holds: everything on the page that no other file of the run says."""

    recipe: dict[str, Any]
    source: str  # of the photographs
    stages: list[dict[str, Any]]
    files: list[dict[str, Any]]
    overlays: list[dict[str, Any]]
    gates: dict[str, dict[str, Any]]  # by precision: what its gate said
    precisions: list[str]  # that were counted


def rows_of(measurements: list[Measurement]) -> list[TableRow]:
    """Return the table's rows with what each network costs."""
    return table_rows(newest(measurements), operations_of(measurements))


def read_run(folder: Path) -> DocumentedRun:
    """Read `run.json`.

    Raises:
        BenchmarkError: the folder is not a finished run's.
    """
    try:
        return DocumentedRun(**json.loads((folder / "run.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise unfinished(folder, error) from error


def unfinished(folder: Path, error: Exception) -> BenchmarkError:
    """Return the error for a folder in which a run's files are missing or damaged."""
    return BenchmarkError(
        f"{folder} holds no finished run: {type(error).__name__}: {error}",
        fix=f"finish one there: crowdrt run csrnet-quarter --out {shlex.quote(str(folder))}",
    )


def read_counts(path: Path) -> list[CountRow]:
    """Read the counts that a run left at `path`."""
    try:
        rows = json.loads(path.read_text())
        return [ComparedRow(**row) if "reference" in row else CountRow(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise BenchmarkError(
            f"{path} cannot be read: {error}", fix=f"delete it and run again: rm {path}"
        ) from error


def write_run_report(folder: Path) -> Path:
    """Write table.md, the plots and report.html from what the run left in `folder`."""
    run = read_run(folder)
    try:
        report = report_of(run, folder)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise unfinished(folder, error) from error
    with write_whole(folder / "table.md") as temporary:
        temporary.write_text(markdown_table(report.rows))
    return write_report(report, folder)


def report_of(run: DocumentedRun, folder: Path) -> Report:
    """Return what the page shows of a run."""
    measurements = read_records(folder / "records.jsonl")
    exported, digest = exported_by(run, folder)
    finished = datetime.fromtimestamp((folder / "run.json").stat().st_mtime, UTC)
    return Report(
        title=str(run.recipe["name"]),
        when=f"{finished:%Y-%m-%d %H:%M} UTC",
        machine=measurements[0].machine,
        rows=rows_of(measurements),
        measurements=measurements,
        layers=layers_in(folder),
        accuracies=accuracy_lines(run, folder),
        overlays=[
            OverlayFigure(**figure | {"path": folder / figure["path"]}) for figure in run.overlays
        ],
        stripped=stripping_section(exported, digest),
        methods=methods_of(folder, digest),
        comparison=comparison_in(folder),
        stages=[StageLine(**stage) for stage in run.stages],
        files=[Artifact(**entry | {"path": Path(entry["path"])}) for entry in run.files],
        recipe=run.recipe,
    )


def layers_in(folder: Path) -> list[LayerProfile]:
    """Return the layers that a run profiled; of a damaged file none, which is said."""
    if not (folder / LAYERS).is_file():
        return []
    try:
        return read_profiles(folder / LAYERS)
    except BenchmarkError as error:
        say(f"{error.problem}; layers are left out. To have them, {error.fix}")
        return []


def exported_by(run: DocumentedRun, folder: Path) -> tuple[Path, str]:
    """Return the FP32 file of a run, and the hash that it had then."""
    path = folder / f"{run.recipe['name']}.onnx"
    digests = [entry["sha256"] for entry in run.files if Path(entry["path"]).name == path.name]
    return path, digests[0] if digests else ""


def accuracy_lines(run: DocumentedRun, folder: Path) -> list[AccuracyLine]:
    """Return the errors of each precision, and what its gate said, a refused one's too."""
    network = network_label(run.recipe["network"], run.recipe["width"])
    lines = []
    for precision in dict.fromkeys([*run.precisions, *run.gates]):
        path = folder / f"counts.{precision}.json"
        rows = read_counts(path) if precision in run.precisions else []
        errors = accuracy(rows)
        if errors is None and precision not in run.gates:
            continue
        line = AccuracyLine(
            label=f"{network} {precision.upper()}",
            images=run.source,
            accuracy=errors,
            rows=rows if errors else (),
            losses=comparison_of(rows),
            gate=run.gates.get(precision),
        )
        lines.append(line)
    return lines
