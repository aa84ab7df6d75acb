"""People on photographs: counted, shown, and held against the annotations."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from crowdrt.benchmarks.accuracy import Accuracy, CountRow, accuracy, predict
from crowdrt.benchmarks.overlay import draw_overlay, save_overlay
from crowdrt.console import out, track
from crowdrt.contracts import Sample
from crowdrt.data.datasets import open_samples
from crowdrt.data.images import read_image
from crowdrt.engines.base import Engine
from crowdrt.pipeline.stages import open_any


def count_photographs(
    engine_path: Path,
    images: Sequence[Path],
    *,
    overlay: Path | None,
    store: Path | None,
    num_threads: int,
) -> list[dict[str, Any]]:
    """Count every photograph named, or lying in a folder named.

    Returns:
        One mapping per photograph: image, count, annotated (None where unknown).
    """
    samples = [sample for path in images for sample in open_samples(path)]
    engine = open_any(engine_path, store, num_threads=num_threads)
    rows = []
    for sample in track(samples, "counting", total=len(samples)):
        row, picture = count_one(engine, sample, wants_picture=overlay is not None)
        rows.append(asdict(row))
        if overlay is not None:
            save_overlay(picture, overlay / f"{sample.image.stem}.overlay.jpg")
    return rows


def count_one(engine: Engine, sample: Sample, *, wants_picture: bool) -> tuple[CountRow, Any]:
    """Count one photograph; the picture is None unless it is wanted."""
    prediction = predict(engine, sample.image)
    row = CountRow(image=str(sample.image), count=prediction.count, annotated=sample.annotated)
    if not wants_picture:
        return row, None
    picture = draw_overlay(
        read_image(sample.image, "rgb"),
        prediction,
        heads=sample.heads,
        annotated=sample.annotated,
        label=engine.info.precision.upper() if engine.info else "",
    )
    return row, picture


def show_counts(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line per photograph, and the errors where annotations are known."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("photograph")
    table.add_column("people", justify="right")
    table.add_column("annotated", justify="right")
    for row in rows:
        known = "" if row["annotated"] is None else str(row["annotated"])
        table.add_row(escape(Path(row["image"]).name), f"{row['count']:.1f}", known)
    out.print(table)
    errors = accuracy([CountRow(**row) for row in rows])
    if errors is not None:
        out.print(describe_accuracy(errors))


def describe_accuracy(errors: Accuracy) -> str:
    """Return the errors in one line."""
    return (
        f"MAE {errors.mae:.2f}, RMSE {errors.rmse:.2f}, bias {errors.bias:+.2f} people "
        f"over {errors.num_images} annotated photographs"
    )
