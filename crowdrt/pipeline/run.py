"""`crowdrt run`: every stage of a recipe, each skipped when its inputs have not changed."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.accuracy.counts import CountRow, Prediction, accuracy, predict_sample
from crowdrt.benchmarks.accuracy.gates import Verdict
from crowdrt.benchmarks.labels import size_label
from crowdrt.benchmarks.tables.table import TableRow
from crowdrt.benchmarks.timing.race import Contender, RaceConfig, race
from crowdrt.benchmarks.timing.records import read_records, record_line
from crowdrt.console import say, tell
from crowdrt.contracts import Artifact, Measurement, Precision, Recipe, Sample, Size
from crowdrt.engines.base import open_engine
from crowdrt.errors import BenchmarkError, CrowdRTError
from crowdrt.lazy import TRAIN, check_installed
from crowdrt.manifest import manifest_path, reusable, write_json, write_manifest, write_whole
from crowdrt.pipeline.counting import describe_accuracy, draw_overlays, has_map
from crowdrt.pipeline.measuring import (
    FULL,
    eager_contender,
    engine_contender,
    race_photograph,
)
from crowdrt.pipeline.networks import Origin, origin_of_recipe
from crowdrt.pipeline.photographs import Photographs, evenly, photographs
from crowdrt.pipeline.precision.comparing import comparison_of, describe_verdict
from crowdrt.pipeline.precision.forms import (
    RACED,
    Counter,
    count_precision,
    counter,
    failures,
    halved,
    judged,
    quantized,
    remembering,
    stopped_row,
)
from crowdrt.pipeline.profiling import profile_stage
from crowdrt.pipeline.races import failures_in, race_identity
from crowdrt.pipeline.reporting import LAYERS, DocumentedRun, read_counts, rows_of, write_run_report
from crowdrt.pipeline.stages import as_json, build_stage, engine_folder, export_stage
from crowdrt.pipeline.tables.raced import RaceTable

NUM_OVERLAYS = 6
RACE_S = 45.0  # per size; the teacher takes most of it


@dataclass(kw_only=True)
class RunSummary:
    """What a run made and found."""

    recipe: Recipe
    folder: Path
    stages: list[dict[str, Any]] = field(default_factory=list)
    files: list[Artifact] = field(default_factory=list)
    counts: dict[Precision, list[CountRow]] = field(default_factory=dict)
    verdicts: dict[Precision, Verdict] = field(default_factory=dict)
    rows: list[TableRow] = field(default_factory=list)
    report: Path | None = None

    def did(self, name: str, detail: str, *, since: float, reused: bool = False) -> None:
        """Note a finished stage and say so."""
        seconds = time.perf_counter() - since
        note = "nothing had changed" if reused else f"{seconds:.1f} s"
        say(f"{name:<12} {detail} ({note})")
        self.stages.append({"name": name, "detail": detail, "seconds": seconds, "reused": reused})

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as `--json` prints it."""
        errors = {precision: accuracy(rows) for precision, rows in self.counts.items()}
        losses = {precision: comparison_of(rows) for precision, rows in self.counts.items()}
        return {
            "recipe": self.recipe.name,
            "folder": str(self.folder),
            "stages": self.stages,
            "files": [as_json(artifact) for artifact in self.files],
            "accuracy": {p: asdict(e) if e else None for p, e in errors.items()},
            "against_fp32": {p: asdict(found) for p, found in losses.items() if found},
            "gates": {p: verdict.as_dict() for p, verdict in self.verdicts.items()},
            "table": [row.as_dict() for row in self.rows],
            "report": str(self.report),
        }

    def show(self) -> None:
        """Print the table, the errors and where the report is."""
        RaceTable(self.rows).show()
        for precision, rows in self.counts.items():
            if errors := accuracy(rows):
                tell(f"{precision.upper()}: {describe_accuracy(errors)}")
        for precision, verdict in self.verdicts.items():
            tell(describe_verdict(f"{precision.upper()} gate", verdict))
        tell(str(self.report))

    def judge(self, precision: Precision, verdict: Verdict) -> None:
        """Note what a gate says, and say so."""
        self.verdicts[precision] = verdict
        say(describe_verdict(f"{'gate':<12} {precision}", verdict))

    def held(self, precision: Precision) -> bool:
        """Say whether a precision may go on; FP32 has no gate."""
        return self.verdicts.get(precision, Verdict()).held

    def check(self) -> None:
        """Refuse to call a run good in which a precision was stopped.

        Raises:
            BenchmarkError: with every reason; what was made is there, and the others are finished.
        """
        if stopped := failures(self.verdicts):
            raise BenchmarkError(
                f"{len(stopped)} of {len(self.verdicts) + 1} precisions lost more than recipe "
                f"{self.recipe.name!r} tolerates. {'. '.join(stopped)}",
                fix="use the others, which are finished; or find the layers that cost it: "
                f"crowdrt sensitivity {self.folder / self.recipe.name}.onnx --images PHOTOS",
            )


def run_recipe(
    recipe: Recipe,
    *,
    data: Path | None,
    out: Path,
    num_images: int,
    store: Path | None,
    num_threads: int,
) -> RunSummary:
    """Take a recipe from its weights to the table and the report.

    Args:
        recipe: what to do.
        data: photographs to calibrate on and to count; None generates some.
        out: folder for everything that is made; a second run reuses what it finds there.
        num_images: how many photographs to count at most.
        store: where engines are kept.
        num_threads: 0 takes every core.
    """
    summary = RunSummary(recipe=recipe, folder=out)
    student = origin_of_recipe(recipe)  # before anything is made: it may be missing
    check_installed(*TRAIN, extra="train")
    check_installed("matplotlib", "jinja2", extra="report")
    start = time.perf_counter()
    photos = photographs(data, out, num_test=num_images)
    summary.did("photographs", describe(photos), since=start)
    networks = make_networks(recipe, student, photos, out, summary, num_threads)
    engines = build_engines(networks, store, summary)
    count_all(networks, engines, photos, summary, num_threads)
    contenders = {p: artifact.path for p, artifact in networks.items() if p in engines}
    measurements = race_stage(recipe, student, contenders, out, summary, store, num_threads)
    engines = {precision: path for precision, path in engines.items() if summary.held(precision)}
    held = [path for precision, path in contenders.items() if precision in engines]
    layers_stage(held, recipe.sizes[0], out, summary, store, num_threads)
    overlays = overlay_stage(engines, photos, out, summary, num_threads)
    write_json(out / "run.json", asdict(documented(summary, photos.source, overlays)))
    summary.rows = rows_of(measurements)
    summary.report = write_run_report(out)
    return summary


def documented(
    summary: RunSummary, source: str, overlays: Sequence[dict[str, Any]]
) -> DocumentedRun:
    """Return what `run.json` keeps of a run, for the report now and later."""
    return DocumentedRun(
        recipe=asdict(summary.recipe) | {"width": str(summary.recipe.width)},
        source=source,
        stages=summary.stages,
        files=[as_json(artifact) for artifact in summary.files],
        overlays=list(overlays),
        gates={precision: verdict.as_dict() for precision, verdict in summary.verdicts.items()},
        precisions=list(summary.counts),
    )


def describe(photos: Photographs) -> str:
    """Return in one line what is calibrated on and counted."""
    return f"{photos.source}: {len(photos.test)} to count, others to calibrate on"


def make_networks(
    recipe: Recipe,
    student: Origin,
    photos: Photographs,
    out: Path,
    summary: RunSummary,
    num_threads: int,
) -> dict[Precision, Artifact]:
    """Export the float network and make its other precisions, as far as the recipe asks."""
    start = time.perf_counter()
    exported = export_stage(student, out / f"{recipe.name}.onnx")
    summary.did("export", str(exported.path), since=start, reused=exported.reused)
    networks: dict[Precision, Artifact] = {"fp32": exported}
    sources: dict[Precision, Path] = {"fp16": exported.path}
    if {"int8", "int8+fp16"} & set(recipe.precisions):
        start = time.perf_counter()
        found = quantized(recipe, exported.path, photos)
        summary.did("calibrate", str(found.path), since=start, reused=found.reused)
        networks["int8"] = found
        sources["int8+fp16"] = found.path
    for precision, source in sources.items():
        if precision in recipe.precisions:
            start = time.perf_counter()
            path = out / f"{recipe.name}.{precision}.onnx"
            half = halved(recipe, source, photos, path, num_threads)
            if isinstance(half, Verdict):
                summary.judge(precision, half)
                continue
            summary.did("cast", str(half.path), since=start, reused=half.reused)
            networks[precision] = half
    summary.files += networks.values()
    return {p: networks[p] for p in ("fp32", *recipe.precisions) if p in networks}


def build_engines(
    networks: Mapping[Precision, Artifact], store: Path | None, summary: RunSummary
) -> dict[Precision, Path]:
    """Build the engines of what is timed; returns the folders in the store."""
    engines = {}
    for precision, artifact in networks.items():
        if precision not in RACED:
            continue
        start = time.perf_counter()
        built = build_stage(artifact.path, store)
        engines[precision] = built.path
        detail = f"{precision} engine {built.path.name}"
        summary.did("build", detail, since=start, reused=built.reused)
    return engines


def count_all(
    networks: Mapping[Precision, Artifact],
    engines: Mapping[Precision, Path],
    photos: Photographs,
    summary: RunSummary,
    num_threads: int,
) -> None:
    """Count the test photographs in every precision, FP32 first, and let the gates judge."""
    counters = {p: counter(a, engines.get(p), num_threads) for p, a in networks.items()}
    fp32 = counters["fp32"]
    reference = remembering(fp32.open)
    for precision, how in counters.items():
        rows = count_stage(precision, how, photos, summary, fp32=fp32, reference=reference)
        summary.counts[precision] = rows
        verdict = judged(summary.recipe.gates.get(precision), rows)
        if verdict is not None:
            summary.judge(precision, verdict)


def count_stage(
    precision: Precision,
    how: Counter,
    photos: Photographs,
    summary: RunSummary,
    *,
    fp32: Counter,
    reference: Callable[[Sample], Prediction],
) -> list[CountRow]:
    """Count the test photographs, unless this engine has counted exactly these before."""
    start = time.perf_counter()
    path = summary.folder / f"counts.{precision}.json"
    done = count_precision(how, photos.test, path, fp32=fp32, reference=reference)
    rows = read_counts(path)
    errors = accuracy(rows)
    detail = f"{precision}: " + (
        describe_accuracy(errors) if errors else f"{len(rows)} photographs"
    )
    summary.did("count", detail, since=start, reused=done.reused)
    summary.files.append(done)
    return rows


def race_stage(
    recipe: Recipe,
    student: Origin,
    networks: dict[Precision, Path],
    out: Path,
    summary: RunSummary,
    store: Path | None,
    num_threads: int,
) -> list[Measurement]:
    """Race the full network in PyTorch against the student's forms, at every size.

    What a gate stopped is not timed; its row says why.
    """
    start = time.perf_counter()
    teacher = eager_contender(Origin(network=recipe.network, width=FULL, weights=None), num_threads)
    contenders = [teacher, eager_contender(student, num_threads)]
    ours = {p: engine_contender(path, store, num_threads) for p, path in networks.items()}
    contenders += [each for p, each in ours.items() if summary.held(p)]
    stopped = [(each, summary.verdicts[p]) for p, each in ours.items() if not summary.held(p)]
    path = out / "records.jsonl"
    folders = [engine_folder(each, store) for p, each in networks.items() if summary.held(p)]
    made_from = {
        **race_identity(contenders, folders, num_threads),
        "stopped": [f"{c.sha256} {verdict.reason}" for c, verdict in stopped],
        "sizes": recipe.sizes,
    }
    done = reusable(path, made_from=made_from)
    if done is None:
        rows = race_sizes(recipe.sizes, contenders, stopped, num_threads)
        with write_whole(path) as temporary:
            temporary.write_text("".join(record_line(row) + "\n" for row in rows))
        done = write_manifest(path, kind="records", made_from=made_from)
    summary.did("race", f"{len(contenders)} contenders", since=start, reused=done.reused)
    summary.files.append(done)
    rows = read_records(path)
    raced = {each.name for each in contenders}
    if done.reused and (broken := failures_in([row for row in rows if row.name in raced])):
        say(f"the race is an earlier run's{broken}; to repeat it: rm {shlex.quote(str(path))}")
    return rows


def race_sizes(
    sizes: Sequence[Size],
    contenders: Sequence[Contender],
    stopped: Sequence[tuple[Contender, Verdict]],
    num_threads: int,
) -> list[Measurement]:
    """Return one row per contender and size, those of the stopped ones without a time."""
    config = RaceConfig(num_threads=num_threads, budget_s=RACE_S)
    rows = []
    for size in sizes:
        raced = race(contenders, race_photograph(size), config)
        rows += raced
        rows += [stopped_row(each, verdict, raced[0]) for each, verdict in stopped]
    return rows


def layers_stage(
    networks: Sequence[Path],
    size: Size,
    out: Path,
    summary: RunSummary,
    store: Path | None,
    num_threads: int,
) -> None:
    """Profile the engines' layers; where that fails, the run has none and goes on."""
    start = time.perf_counter()
    try:
        done = profile_stage(networks, size, out / LAYERS, store, num_threads)
    except CrowdRTError as error:
        for path in (out / LAYERS, manifest_path(out / LAYERS)):
            path.unlink(missing_ok=True)  # of an earlier run, of other engines perhaps
        summary.did("layers", f"none: {error.problem}", since=start)
        return
    detail = f"{len(networks)} engines at {size_label(size)}"
    summary.did("layers", detail, since=start, reused=done.reused)
    summary.files.append(done)


def overlay_stage(
    engines: dict[Precision, Path],
    photos: Photographs,
    out: Path,
    summary: RunSummary,
    num_threads: int,
) -> list[dict[str, Any]]:
    """Draw what the last engine sees on a few photographs, from few people to many."""
    start = time.perf_counter()
    engine = open_engine(list(engines.values())[-1], num_threads=num_threads)
    if not has_map(engine):
        summary.did("overlays", "none: the network counts without a density map", since=start)
        return []
    samples = evenly(sorted(photos.test, key=people), NUM_OVERLAYS)
    predictions = [predict_sample(engine, sample) for sample in samples]
    paths = draw_overlays(engine, samples, predictions, out / "overlays", suffix=".jpg")
    summary.did("overlays", f"{len(paths)} pictures in {out / 'overlays'}", since=start)
    return [
        {
            "path": str(path.relative_to(out)),
            "name": sample.image.name,
            "count": prediction.count,
            "annotated": sample.annotated,
        }
        for path, sample, prediction in zip(paths, samples, predictions, strict=True)
    ]


def people(sample: Sample) -> int:
    """Return the annotated count, to sort by."""
    return sample.annotated or 0
