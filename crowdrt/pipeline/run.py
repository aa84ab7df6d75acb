"""`crowdrt run`: every stage of a recipe, each skipped when its inputs have not changed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.accuracy.counts import CountRow, accuracy, count_samples, predict
from crowdrt.benchmarks.tables.table import TableRow
from crowdrt.benchmarks.timing.race import RaceConfig, race
from crowdrt.benchmarks.timing.records import read_records, record_line
from crowdrt.console import say, tell
from crowdrt.contracts import Artifact, Measurement, Precision, Recipe, Sample
from crowdrt.engines.base import open_engine
from crowdrt.engines.machine import machine_identity
from crowdrt.lazy import TRAIN, check_installed
from crowdrt.manifest import reusable, sha256_file, write_json, write_manifest, write_whole
from crowdrt.pipeline.counting import describe_accuracy, draw_overlays, has_map
from crowdrt.pipeline.measuring import (
    FULL,
    eager_contender,
    engine_contender,
    race_photograph,
    show_paper_table,
)
from crowdrt.pipeline.networks import Origin, origin_of_recipe
from crowdrt.pipeline.photographs import Photographs, evenly, photographs
from crowdrt.pipeline.reporting import DocumentedRun, read_counts, rows_of, write_run_report
from crowdrt.pipeline.stages import as_json, build_stage, calibrate_stage, export_stage

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
    gate: str = ""
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
        return {
            "recipe": self.recipe.name,
            "folder": str(self.folder),
            "stages": self.stages,
            "files": [as_json(artifact) for artifact in self.files],
            "accuracy": {p: asdict(e) if e else None for p, e in errors.items()},
            "gate": self.gate,
            "table": [row.as_dict() for row in self.rows],
            "report": str(self.report),
        }

    def show(self) -> None:
        """Print the table, the errors and where the report is."""
        show_paper_table(self.rows, markdown=False)
        for precision, rows in self.counts.items():
            if errors := accuracy(rows):
                tell(f"{precision.upper()}: {describe_accuracy(errors)}")
        tell(f"{self.gate}\n{self.report}")


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
    networks = make_networks(recipe, student, photos, out, summary)
    engines = build_engines(networks, store, summary)
    for precision, artifact in networks.items():
        engine = engines[precision]
        counted = count_stage(precision, engine, artifact, photos, out, summary, num_threads)
        summary.counts[precision] = counted
    summary.gate = judge_gate(recipe, summary.counts)
    contenders = {p: artifact.path for p, artifact in networks.items()}
    measurements = race_stage(recipe, student, contenders, out, summary, store, num_threads)
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
        gate=summary.gate,
        precisions=list(summary.counts),
    )


def describe(photos: Photographs) -> str:
    """Return in one line what is calibrated on and counted."""
    return f"{photos.source}: {len(photos.test)} to count, others to calibrate on"


def make_networks(
    recipe: Recipe, student: Origin, photos: Photographs, out: Path, summary: RunSummary
) -> dict[Precision, Artifact]:
    """Export the float network and quantize it, as far as the recipe asks for."""
    start = time.perf_counter()
    exported = export_stage(student, out / f"{recipe.name}.onnx")
    summary.did("export", str(exported.path), since=start, reused=exported.reused)
    networks: dict[Precision, Artifact] = {"fp32": exported}
    if "int8" in recipe.precisions:
        start = time.perf_counter()
        path = out / f"{recipe.name}.int8.onnx"
        quantized = calibrate_stage(exported.path, photos.calibration, path, recipe.calibration)
        summary.did("calibrate", str(quantized.path), since=start, reused=quantized.reused)
        networks["int8"] = quantized
    summary.files += networks.values()
    return networks


def build_engines(
    networks: Mapping[Precision, Artifact], store: Path | None, summary: RunSummary
) -> dict[Precision, Path]:
    """Build each network's engine; returns the folders in the store."""
    engines = {}
    for precision, artifact in networks.items():
        start = time.perf_counter()
        built = build_stage(artifact.path, store)
        engines[precision] = built.path
        detail = f"{precision} engine {built.path.name}"
        summary.did("build", detail, since=start, reused=built.reused)
    return engines


def count_stage(
    precision: Precision,
    engine: Path,
    artifact: Artifact,
    photos: Photographs,
    out: Path,
    summary: RunSummary,
    num_threads: int,
) -> list[CountRow]:
    """Count the test photographs, unless this engine has counted exactly these before."""
    start = time.perf_counter()
    path = out / f"counts.{precision}.json"
    images = [f"{s.image}:{sha256_file(s.image)}:{s.annotated}" for s in photos.test]
    made_from = {"network": artifact.sha256, "engine": engine.name, "images": images}
    done = reusable(path, made_from=made_from)
    if done is None:
        rows = count_samples(open_engine(engine, num_threads=num_threads), photos.test)
        write_json(path, [asdict(row) for row in rows])
        done = write_manifest(path, kind="counts", made_from=made_from)
    rows = read_counts(path)
    errors = accuracy(rows)
    detail = f"{precision}: " + (
        describe_accuracy(errors) if errors else f"{len(rows)} photographs"
    )
    summary.did("count", detail, since=start, reused=done.reused)
    summary.files.append(done)
    return rows


def judge_gate(recipe: Recipe, counts: dict[Precision, list[CountRow]]) -> str:
    """Say whether INT8 counts as well as the recipe demands."""
    before, after = (accuracy(counts.get(precision, [])) for precision in ("fp32", "int8"))
    if before is None or after is None:
        return "INT8 gate: not judged, there is no annotation to compare with"
    limit = recipe.gates.int8_mae_increase
    held = after.mae <= before.mae * (1 + limit)
    increase = f"{after.mae / before.mae - 1:+.1%}, " if before.mae else ""
    return (
        f"INT8 gate {'held' if held else 'FAILED: keep the FP32 engine'}: MAE {after.mae:.2f} "
        f"against {before.mae:.2f} in FP32 ({increase}tolerated {limit:+.0%})"
    )


def race_stage(
    recipe: Recipe,
    student: Origin,
    networks: dict[Precision, Path],
    out: Path,
    summary: RunSummary,
    store: Path | None,
    num_threads: int,
) -> list[Measurement]:
    """Race the full network in PyTorch against the student's forms, at every size."""
    start = time.perf_counter()
    teacher = eager_contender(Origin(network=recipe.network, width=FULL, weights=None), num_threads)
    contenders = [teacher, eager_contender(student, num_threads)]
    contenders += [engine_contender(path, store, num_threads) for path in networks.values()]
    path = out / "records.jsonl"
    made_from = {
        "contenders": [f"{c.name} {c.engine_version} {c.sha256}" for c in contenders],
        "sizes": recipe.sizes,
        "num_threads": num_threads,
        "machine": machine_identity(),
    }
    done = reusable(path, made_from=made_from)
    if done is None:
        config = RaceConfig(num_threads=num_threads, budget_s=RACE_S)
        rows = [r for s in recipe.sizes for r in race(contenders, race_photograph(s), config)]
        with write_whole(path) as temporary:
            temporary.write_text("".join(record_line(row) + "\n" for row in rows))
        done = write_manifest(path, kind="records", made_from=made_from)
    summary.did("race", f"{len(contenders)} contenders", since=start, reused=done.reused)
    summary.files.append(done)
    return read_records(path)


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
    predictions = [predict(engine, sample.image) for sample in samples]
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
