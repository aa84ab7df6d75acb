"""The precisions of a run: the file of each, how it is counted, and what its gate says.

A precision whose gate fails stops there. It is not timed, its reason stands in the table and in the
report, and the other ones go on. float16 is counted with every tensor rounded, and not timed
either: an x86 CPU computes it in FP32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from crowdrt.benchmarks.accuracy.counts import CountRow, Prediction, predict_sample
from crowdrt.benchmarks.accuracy.gates import Verdict, judge
from crowdrt.benchmarks.timing.race import Contender
from crowdrt.calibration.fp16.cast import CastConfig, cast
from crowdrt.calibration.fp16.rounded import RoundedEngine
from crowdrt.console import track
from crowdrt.contracts import Artifact, Gate, Measurement, Precision, Recipe, Sample
from crowdrt.engines.base import Engine, open_engine
from crowdrt.errors import CalibrationError
from crowdrt.manifest import reusable, sha256_file, versions, write_json, write_manifest
from crowdrt.pipeline.photographs import Photographs, region_of
from crowdrt.pipeline.precision.comparing import compare, comparison_of, count_row
from crowdrt.pipeline.stages import calibrate_stage

RACED: tuple[Precision, ...] = ("fp32", "int8")  # with an engine of their own on a CPU
CAST = CastConfig(num_images=6)  # three passes over each, tensor by tensor


@dataclass(frozen=True, kw_only=True)
class Counter:
    """How one precision is counted."""

    network: Artifact
    engine: str  # what runs it, as its counts remember it
    open: Callable[[], Engine]


def quantized(recipe: Recipe, exported: Path, photos: Photographs) -> Artifact:
    """Return the INT8 file beside the exported one."""
    path = exported.with_name(f"{recipe.name}.int8.onnx")
    return calibrate_stage(
        exported, photos.calibration, path, recipe.calibration, recipe.keep_float
    )


def halved(
    recipe: Recipe, source: Path, photos: Photographs, out: Path, num_threads: int
) -> Artifact | Verdict:
    """Return the float16 file of an FP32 or INT8 one, or why there is none."""
    images = [sample.image for sample in photos.calibration]
    try:
        return cast(source, images, out, CAST, recipe.keep_float, num_threads=num_threads)
    except CalibrationError as error:
        return Verdict(refused=error.problem)


def counter(network: Artifact, engine: Path | None, num_threads: int) -> Counter:
    """Return how a file is counted: by its engine, or, without one, tensor by tensor."""
    if engine is not None:
        return Counter(
            network=network,
            engine=engine.name,
            open=lambda: open_engine(engine, num_threads=num_threads),
        )
    return Counter(
        network=network,
        engine=f"rounded, onnxruntime {versions().get('onnxruntime')}",
        open=lambda: RoundedEngine(network.path, num_threads=num_threads),
    )


def remembering(opened: Callable[[], Engine]) -> Callable[[Sample], Prediction]:
    """Return a function that counts every photograph once, opening the engine when it must."""
    engine = cache(opened)
    return cache(lambda sample: predict_sample(engine(), sample))


def count_precision(
    how: Counter,
    samples: Sequence[Sample],
    path: Path,
    *,
    fp32: Counter,
    reference: Callable[[Sample], Prediction],
) -> Artifact:
    """Write the counts of the photographs, unless exactly these were counted before.

    Args:
        how: the precision.
        samples: the photographs.
        path: the counts; those of any but FP32 with FP32's beside them.
        fp32: what the others are held against.
        reference: FP32's answers.
    """
    images = [f"{s.image}:{sha256_file(s.image)}:{s.annotated}{region_of(s)}" for s in samples]
    made_from = {"network": how.network.sha256, "engine": how.engine, "images": images}
    if how is not fp32:
        made_from["against"] = [fp32.network.sha256, fp32.engine]
    done = reusable(path, made_from=made_from)
    if done is None:
        write_json(path, [asdict(row) for row in counted(how, samples, fp32, reference)])
        done = write_manifest(path, kind="counts", made_from=made_from)
    return done


def counted(
    how: Counter,
    samples: Sequence[Sample],
    fp32: Counter,
    reference: Callable[[Sample], Prediction],
) -> Sequence[CountRow]:
    """Count the photographs; anything but FP32 is compared with it."""
    bar = track(samples, "counting", total=len(samples))
    if how is fp32:
        return [count_row(sample, reference(sample)) for sample in bar]
    engine = how.open()
    return compare(samples, [predict_sample(engine, sample) for sample in bar], reference)


def judged(gate: Gate | None, rows: Sequence[CountRow]) -> Verdict | None:
    """Return what a gate says of counts; None for FP32's own."""
    found = comparison_of(rows)
    if found is None:
        return None
    if gate is None:
        return Verdict(unjudged=("the recipe declares no gate for this precision",))
    return judge(gate, found)


def stopped_row(contender: Contender, verdict: Verdict, beside: Measurement) -> Measurement:
    """Return the table's row of a precision that its gate stopped: no time, but the reason."""
    return Measurement(
        **contender.about(),
        size=beside.size,
        num_threads=beside.num_threads,
        samples_ms=(),
        peak_mib=0.0,
        machine=beside.machine,
        verdict=f"failed: gate: {verdict.reason}",
        run_id=beside.run_id,
    )


def failures(verdicts: Mapping[Precision, Verdict]) -> list[str]:
    """Return the precisions that were stopped, each with its reason."""
    return [f"{p.upper()}: {v.reason}" for p, v in verdicts.items() if not v.held]
