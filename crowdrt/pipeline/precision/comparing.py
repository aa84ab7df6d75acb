"""An engine held against a reference, photograph by photograph, and shown to people."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.accuracy.comparison import (
    ComparedRow,
    Comparison,
    CrowdBin,
    Spread,
    compared,
    comparison,
)
from crowdrt.benchmarks.accuracy.counts import CountRow, Prediction
from crowdrt.benchmarks.accuracy.gates import Verdict
from crowdrt.benchmarks.accuracy.maps import map_quality
from crowdrt.console import show_table, tell, track
from crowdrt.contracts import Sample

COLUMNS = ("", "photographs", "people", "MAE", "reference", "RMSE", "reference", "bias", "moved by")


def compare(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    reference: Callable[[Sample], Prediction],
) -> list[ComparedRow]:
    """Return what an engine counted beside what the reference counts, and how alike maps are."""
    rows, references, maps = [], [], []
    pairs = zip(samples, predictions, strict=True)
    for sample, found in track(pairs, "the reference", total=len(samples)):
        expected = reference(sample)
        rows.append(count_row(sample, found))
        references.append(count_row(sample, expected))
        maps.append(map_quality(found.density, expected.density))
    return compared(rows, references, maps)


def comparison_of(rows: Sequence[CountRow]) -> Comparison | None:
    """Return how counts differ from a reference's; None where there is none."""
    pairs = [row for row in rows if isinstance(row, ComparedRow)]
    return comparison(pairs) if pairs else None


def count_row(sample: Sample, found: Prediction) -> CountRow:
    """Return one photograph as it is counted, beside its annotation."""
    return CountRow(image=str(sample.image), count=found.count, annotated=sample.annotated)


def show_comparison(found: Comparison, verdict: Verdict | None) -> None:
    """Print errors per bin, how far counts moved, how alike maps are, and what a gate says."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in COLUMNS:
        table.add_column(title, justify="right" if title else "left")
    for each in (*found.bins, found.total):
        table.add_row(each.name, *map(Text, bin_cells(each)))
    show_table(table)
    if not found.annotated:
        tell("bins: of the reference's counts, since no photograph is annotated")
    tell(describe_sums(found))
    for name, values, unit in (("PSNR", found.psnr_db, " dB"), ("SSIM", found.ssim, "")):
        if values is not None:
            tell(describe_spread(name, values, unit))
    if verdict is not None:
        tell(describe_verdict("the default gate of this precision", verdict))


def bin_cells(found: CrowdBin) -> list[str]:
    """Return one line of the table, without its name; empty where nothing is annotated."""
    errors = [""] * 5
    if found.engine is not None and found.reference is not None:
        after, before = found.engine, found.reference
        errors = [f"{value:.2f}" for value in (after.mae, before.mae, after.rmse, before.rmse)]
        errors.append(f"{after.bias:+.2f}")
    people = f"{found.fewest:.0f} to {found.most:.0f}"
    return [str(found.num_images), people, *errors, f"{found.shift:+.2f}"]


def describe_sums(found: Comparison) -> str:
    """Return in one line how far single counts moved."""
    sums = found.sums
    return (
        f"sum of density: differs by {sums.mean:.2f} people per photograph, by {sums.largest:+.2f} "
        f"at most ({Path(sums.where).name}: {sums.count:.2f} instead of {sums.reference:.2f})"
    )


def describe_spread(name: str, values: Spread, unit: str) -> str:
    """Return in one line how alike density maps are."""
    digits = 1 if unit else 3
    return (
        f"density maps: {name} {values.median:.{digits}f}{unit} in the median, "
        f"{values.lowest:.{digits}f}{unit} at least ({Path(values.where).name})"
    )


def describe_verdict(whose: str, verdict: Verdict) -> str:
    """Return in one line what a gate says."""
    said = "held" if verdict.held else f"FAILED: {verdict.reason}"
    unjudged = f" (not judged: {'; '.join(verdict.unjudged)})" if verdict.unjudged else ""
    return f"{whose}: {said}{unjudged}"
