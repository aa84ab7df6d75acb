"""People on photographs: counted, shown, and held against the annotations."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.accuracy.comparison import ComparedRow, Comparison
from crowdrt.benchmarks.accuracy.counts import (
    Accuracy,
    CountRow,
    Prediction,
    accuracy,
    predict_sample,
)
from crowdrt.benchmarks.accuracy.gates import Verdict, judge
from crowdrt.benchmarks.overlays.density import draw_overlay, save_overlay
from crowdrt.console import show_table, tell, track
from crowdrt.contracts import DENSITY, Precision, Sample, default_gates
from crowdrt.data.heads.datasets import open_samples
from crowdrt.data.images import read_image
from crowdrt.data.tiles import check_mode
from crowdrt.engines.base import Engine
from crowdrt.errors import BenchmarkError, RecipeError
from crowdrt.pipeline.photographs import calibration_images
from crowdrt.pipeline.precision.comparing import compare, comparison_of, count_row, show_comparison
from crowdrt.pipeline.tiling import NO_LIMITS, Limits, open_counting


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What an engine counts, and what of it may be held against the annotations."""

    rows: Sequence[CountRow]  # `ComparedRow` beside a reference
    calibrated_on: frozenset[str] = frozenset()  # images that a file was made by: in no error
    precision: Precision = "fp32"

    @property
    def judged(self) -> list[CountRow]:
        """The rows of photographs that no file was made by."""
        return [row for row in self.rows if row.image not in self.calibrated_on]

    @property
    def comparison(self) -> Comparison | None:
        """How far the engine is from its reference, where there is one and something to judge."""
        return comparison_of(self.judged)

    @property
    def verdict(self) -> Verdict | None:
        """What the default gate of the engine's precision says; None for FP32."""
        found, gate = self.comparison, default_gates().get(self.precision)
        return None if found is None or gate is None else judge(gate, found)

    def as_json(self) -> Any:
        """Return one mapping per photograph; beside a reference, the comparison with them."""
        rows = [asdict(r) | {"calibrated_on": r.image in self.calibrated_on} for r in self.rows]
        if not any(isinstance(row, ComparedRow) for row in self.rows):
            return rows
        found, verdict = self.comparison, self.verdict
        return {
            "photographs": rows,
            "comparison": None if found is None else asdict(found),
            "gate": None if verdict is None else verdict.as_dict(),
        }


def count_photographs(
    engine_path: Path,
    images: Sequence[Path],
    *,
    overlay: Path | None,
    store: Path | None,
    num_threads: int,
    tiles: str | None = None,
    limits: Limits = NO_LIMITS,
    against: Path | None = None,
) -> Counted:
    """Count every photograph named, or lying in a folder named; `against` counts them too.

    Nothing is drawn before everything is counted: a photograph that cannot be read leaves no
    half of the overlays behind.
    """
    samples = [sample for path in images for sample in open_samples(path)]
    mode = None if tiles is None else check_mode(tiles)
    check_one_engine(limits, against)
    opened = partial(open_counting, store=store, num_threads=num_threads, limits=limits)
    engine = opened(engine_path)
    reference = None if against is None else opened(against)
    if overlay is not None:
        check_map(engine, engine_path)
    predictions = [
        predict_sample(engine, sample, mode)
        for sample in track(samples, "counting", total=len(samples))
    ]
    rows: Sequence[CountRow] = list(map(count_row, samples, predictions))
    if reference is not None:
        rows = compare(samples, predictions, partial(predict_sample, reference, tiles=mode))
    if overlay is not None:
        draw_overlays(engine, samples, predictions, overlay, suffix=".overlay.jpg")
    files = [each.info for each in (engine, reference) if each is not None]
    made_by = calibration_images([sample.image for sample in samples], files)
    return Counted(
        rows=rows,
        calibrated_on=frozenset(map(str, made_by)),
        precision=engine.info.precision if engine.info else "fp32",
    )


def check_map(engine: Engine, source: Path) -> None:
    """Refuse to draw what an engine does not tell."""
    if not has_map(engine):
        raise BenchmarkError(
            f"{source} counts without a density map, so there is nothing to draw",
            fix="leave out --overlay, or export a map beside the count: "
            "crowdrt export deepcount --output density:48x64 -o model.onnx",
        )


def check_one_engine(limits: Limits, against: Path | None) -> None:
    """Refuse a memory limit, which holds for one engine, beside a second one."""
    if against is not None and limits.max_memory is not None:
        raise RecipeError(
            f"--max-memory is what one engine may take, and --against {against} is a second one",
            fix="leave out one of them, or use --tile-rows, which holds for both",
        )


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
            heads=samples[k].counted_heads,
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


def show_counts(counted: Counted) -> None:
    """Print one line per photograph, and the errors where annotations are known."""
    pairs = any(isinstance(row, ComparedRow) for row in counted.rows)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("photograph")
    for title in ("people", *(("reference",) if pairs else ()), "annotated"):
        table.add_column(title, justify="right")
    for row in counted.rows:
        known = "" if row.annotated is None else str(row.annotated)
        other = [f"{row.reference:.1f}"] if isinstance(row, ComparedRow) else []
        table.add_row(Text(Path(row.image).name), f"{row.count:.1f}", *other, known)
    show_table(table)
    if (found := counted.comparison) is not None:
        show_comparison(found, counted.verdict)
    if said := describe_errors(counted):
        tell(said)


def describe_errors(counted: Counted) -> str:
    """Return the errors in one line, and whom they leave out; nothing where nobody annotated."""
    errors = accuracy(counted.judged)
    left_out = len(counted.rows) - len(counted.judged)
    if errors is None:
        nothing = "no error is stated: the network was calibrated on every annotated photograph"
        return nothing if left_out and accuracy(counted.rows) else ""
    others = f"; left out: {left_out} that it was calibrated on" if left_out else ""
    return describe_accuracy(errors) + others


def describe_accuracy(errors: Accuracy) -> str:
    """Return the errors in one line."""
    return (
        f"MAE {errors.mae:.2f}, RMSE {errors.rmse:.2f}, bias {errors.bias:+.2f} people "
        f"over {errors.num_images} annotated photographs"
    )
