"""People on photographs: counted, shown, and held against the annotations."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.accuracy.counts import Accuracy, CountRow, Prediction, accuracy, predict
from crowdrt.benchmarks.overlays.density import draw_overlay, save_overlay
from crowdrt.console import show_table, tell, track
from crowdrt.contracts import DENSITY, Sample
from crowdrt.data.heads.datasets import open_samples
from crowdrt.data.images import read_image
from crowdrt.data.tiles import check_mode
from crowdrt.engines.base import Engine
from crowdrt.errors import BenchmarkError
from crowdrt.pipeline.tiling import NO_LIMITS, Limits, open_counting


def count_photographs(
    engine_path: Path,
    images: Sequence[Path],
    *,
    overlay: Path | None,
    store: Path | None,
    num_threads: int,
    tiles: str | None = None,
    limits: Limits = NO_LIMITS,
) -> list[dict[str, Any]]:
    """Count every photograph named, or lying in a folder named.

    Nothing is drawn before everything is counted: a photograph that cannot be read leaves no
    half of the overlays behind.

    Returns:
        One mapping per photograph: image, count, annotated (None where unknown).
    """
    samples = [sample for path in images for sample in open_samples(path)]
    mode = None if tiles is None else check_mode(tiles)
    engine = open_counting(engine_path, store, num_threads=num_threads, limits=limits)
    if overlay is not None and not has_map(engine):
        raise BenchmarkError(
            f"{engine_path} counts without a density map, so there is nothing to draw",
            fix="leave out --overlay, or export a map beside the count: "
            "crowdrt export deepcount --output density:48x64 -o model.onnx",
        )
    predictions = [
        predict(engine, sample.image, mode)
        for sample in track(samples, "counting", total=len(samples))
    ]
    if overlay is not None:
        draw_overlays(engine, samples, predictions, overlay, suffix=".overlay.jpg")
    return [
        asdict(CountRow(image=str(s.image), count=p.count, annotated=s.annotated))
        for s, p in zip(samples, predictions, strict=True)
    ]


def has_map(engine: Engine) -> bool:
    """Say whether an engine tells where people are, beside how many."""
    return any(output.name == DENSITY for output in engine.outputs)


def draw_overlays(
    engine: Engine,
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    folder: Path,
    *,
    suffix: str,
) -> list[Path]:
    """Draw what `engine` saw on each photograph; returns one path per photograph."""
    paths = [folder / f"{name}{suffix}" for name in distinct([s.image.stem for s in samples])]
    for k in track(range(len(samples)), "drawing", total=len(samples)):
        picture = draw_overlay(
            read_image(samples[k].image, "rgb"),
            predictions[k],
            heads=samples[k].heads,
            annotated=samples[k].annotated,
            label=engine.info.precision.upper() if engine.info else "",
        )
        save_overlay(picture, paths[k])
    return paths


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names, a number behind each that was there before."""
    used: dict[str, None] = {}  # in order
    for name in names:
        tries = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
        used[next(each for each in tries if each not in used)] = None
    return list(used)


def show_counts(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line per photograph, and the errors where annotations are known."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("photograph")
    table.add_column("people", justify="right")
    table.add_column("annotated", justify="right")
    for row in rows:
        known = "" if row["annotated"] is None else str(row["annotated"])
        table.add_row(Text(Path(row["image"]).name), f"{row['count']:.1f}", known)
    show_table(table)
    errors = accuracy([CountRow(**row) for row in rows])
    if errors is not None:
        tell(describe_accuracy(errors))


def describe_accuracy(errors: Accuracy) -> str:
    """Return the errors in one line."""
    return (
        f"MAE {errors.mae:.2f}, RMSE {errors.rmse:.2f}, bias {errors.bias:+.2f} people "
        f"over {errors.num_images} annotated photographs"
    )
