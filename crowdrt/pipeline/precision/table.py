"""Every precision of one network beside FP32: what it counts, what it costs, what its gate says.

INT8 with each way of finding ranges, INT8 repaired by the sensitivity search, float16, and both in
one file. Ranges come from the training photographs, errors from the whole test split.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.accuracy.comparison import Comparison
from crowdrt.benchmarks.accuracy.counts import CountRow, Prediction, accuracy
from crowdrt.benchmarks.accuracy.gates import Verdict
from crowdrt.benchmarks.timing.race import RaceConfig
from crowdrt.benchmarks.timing.verdict import has_failed
from crowdrt.calibration.fp16.cast import cast
from crowdrt.calibration.sensitivity.search import SensitivityConfig
from crowdrt.console import say
from crowdrt.contracts import (
    RANGE_METHODS,
    Artifact,
    CalibrationConfig,
    Measurement,
    Precision,
    RangeMethod,
    Sample,
    Size,
    default_gates,
)
from crowdrt.data.heads.datasets import open_samples, without_copies
from crowdrt.errors import CalibrationError, RecipeError
from crowdrt.manifest import read_manifest, sha256_file
from crowdrt.onnx_file import graph_info
from crowdrt.pipeline.measuring import engine_contender, race_photograph
from crowdrt.pipeline.precision.comparing import comparison_of
from crowdrt.pipeline.precision.forms import (
    CAST,
    Counter,
    count_precision,
    counter,
    judged,
    remembering,
)
from crowdrt.pipeline.precision.record import Methods, write_methods
from crowdrt.pipeline.precision.sensitivity import sensitivity_stage
from crowdrt.pipeline.races import race_once
from crowdrt.pipeline.reporting import read_counts
from crowdrt.pipeline.stages import calibrate_stage, engine_folder, has_trained_ranges

FP32 = "fp32"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One file made of the network, or why there is none."""

    name: str  # "int8 entropy"
    precision: Precision
    artifact: Artifact | None
    reason: str = ""  # why there is none

    @property
    def timed(self) -> bool:
        """Whether a CPU runs it as it is written: it computes float16 in FP32."""
        return self.precision in ("fp32", "int8")


@dataclass(frozen=True, kw_only=True)
class PrecisionRow:
    """One form, counted and timed."""

    form: Form
    rows: Sequence[CountRow] = ()
    verdict: Verdict | None = None  # None: FP32, or no file
    measured: Measurement | None = None
    reference_ms: float | None = None  # FP32's median in the same race

    @property
    def comparison(self) -> Comparison | None:
        """How its counts differ from FP32's."""
        return comparison_of(self.rows) if self.rows else None

    @property
    def int8_macs(self) -> float:
        """The share of the convolutions' MACs that run in INT8."""
        if self.form.artifact is None:
            return 0.0
        return float((read_manifest(self.form.artifact.path) or {}).get("facts", {})
                     .get("int8_macs") or 0.0)  # fmt: skip

    @property
    def median_ms(self) -> float | None:
        """The median latency; None where it was not timed."""
        return median_of(self.measured)

    @property
    def speedup(self) -> float | None:
        """FP32's median latency over this one's; None where it was not timed."""
        if self.median_ms is None or self.reference_ms is None:
            return None
        return self.reference_ms / self.median_ms

    def as_dict(self) -> dict[str, Any]:
        """Return the row as `--json` prints it."""
        found, errors = self.comparison, accuracy(self.rows) if self.rows else None
        return {
            "name": self.form.name,
            "precision": self.form.precision,
            "path": str(self.form.artifact.path) if self.form.artifact else None,
            "reason": self.form.reason,
            "mb": self.megabytes,
            "bytes": self.num_bytes,
            "int8_macs": self.int8_macs,
            "mae": errors.mae if errors else None,
            "rmse": errors.rmse if errors else None,
            "bias": errors.bias if errors else None,
            "moved": {b.name: b.shift for b in (*found.bins, found.total)} if found else {},
            "psnr_db": found.psnr_db.median if found and found.psnr_db else None,
            "gate": self.verdict.as_dict() if self.verdict else None,
            "p50_ms": self.median_ms,
            "speedup": self.speedup,
            "verdict": self.measured.verdict if self.measured else None,
        }

    @property
    def num_bytes(self) -> int | None:
        """The file's size."""
        return self.form.artifact.path.stat().st_size if self.form.artifact else None

    @property
    def megabytes(self) -> float | None:
        """The file's size in 10^6 bytes."""
        return None if self.num_bytes is None else self.num_bytes / 1e6


def precision_rows(
    model: Path,
    images: Path,
    test: Path,
    out: Path,
    *,
    size: Size,
    seconds: float,
    num_images: int = 32,
    store: Path | None = None,
    num_threads: int = 0,
    fresh: bool = False,
) -> list[PrecisionRow]:
    """Make every precision of a network, count the test photographs with it, and time it.

    Args:
        model: an FP32 file that crowdrt exported.
        images: photographs to take ranges from; some of them judge the sensitivity search. Those
            that lie in `test` too, byte by byte, are left out.
        test: annotated photographs.
        out: keeps every file, counts and records, and `precisions.json`, which the report of a
            run shows; a second call does only what is missing.
        size: at which latency is measured.
        seconds: measuring time; 0 leaves latency out.
        num_images: how many photographs ranges are taken from.
        store: where engines are kept.
        num_threads: 0 takes every core.
        fresh: time again.

    Raises:
        RecipeError: no FP32 file, or no photograph to take ranges from.
    """
    testing = open_samples(test)
    calibrating = without_copies(open_samples(images), testing)
    if not calibrating:
        raise RecipeError(
            f"every photograph in {images} is one of the test photographs in {test}",
            fix="name other photographs to take ranges from: --images DIR",
        )
    forms = make_forms(model, calibrating, out, num_images, num_threads)
    counted = count_forms(forms, testing, out, store, num_threads)
    timed = time_forms(forms, out, size, seconds, store, num_threads, fresh=fresh)
    base = timed.get(FP32)
    rows = [
        PrecisionRow(
            form=form,
            rows=counted.get(form.name, ()),
            verdict=verdict_of(form, counted.get(form.name, ())),
            measured=timed.get(form.name),
            reference_ms=median_of(base),
        )
        for form in forms
    ]
    methods = Methods(
        model=model.name,
        sha256=sha256_file(model),
        num_ranges=min(num_images, len(calibrating)),
        num_counted=len(testing),
    )
    write_methods(out, methods, [row.as_dict() for row in rows])
    return rows


def make_forms(
    model: Path,
    calibrating: Sequence[Sample],
    out: Path,
    num_images: int,
    num_threads: int,
) -> list[Form]:
    """Return FP32 and every other form, each made or with the reason why not."""
    if (precision := graph_info(model).precision) != "fp32":
        raise RecipeError(
            f"{model} is a network of precision {precision}",
            fix="name the FP32 file that it was made from",
        )
    photographs = [sample.image for sample in calibrating]
    whole = Artifact(path=model, kind="onnx", sha256=sha256_file(model), reused=True)
    config = CalibrationConfig(num_images=num_images)

    def path(name: str) -> Path:
        return out / f"{model.stem}.{name}.onnx"

    def quantized(method: RangeMethod) -> Artifact:
        chosen = CalibrationConfig(method=method, num_images=num_images)
        return calibrate_stage(
            *(model, calibrating, path(f"int8-{method}"), chosen), cache=out, ignore_trained=True
        )

    def learned() -> Artifact:
        return calibrate_stage(model, calibrating, path("int8-trained"), config)

    def repaired() -> Artifact:
        found = sensitivity_stage(
            model, calibrating, SensitivityConfig(calibration=config), out=path("int8-repaired"),
            records=out / f"{model.stem}.sensitivity.jsonl", num_threads=num_threads,
        )  # fmt: skip
        assert found.artifact is not None
        return found.artifact

    def halved(source: Path, name: str) -> Artifact:
        return cast(source, photographs, path(name), CAST, num_threads=num_threads)

    best = path(f"int8-{config.method}")
    trained = [form("int8 trained", "int8", learned)] if has_trained_ranges(model) else []
    return [
        Form(name=FP32, precision="fp32", artifact=whole),
        form("fp16", "fp16", lambda: halved(model, "fp16")),
        *trained,
        *(form(f"int8 {m}", "int8", partial(quantized, m)) for m in RANGE_METHODS),
        form("int8 repaired", "int8", repaired),
        form("int8+fp16", "int8+fp16", lambda: halved(best, "int8-fp16")),
    ]


def form(name: str, precision: Precision, make: Callable[[], Artifact]) -> Form:
    """Make a form; what cannot be made leaves its reason, and the others go on."""
    try:
        return Form(name=name, precision=precision, artifact=make())
    except CalibrationError as error:
        say(f"{name}: {error.problem}")
        return Form(name=name, precision=precision, artifact=None, reason=error.problem)


def count_forms(
    forms: Sequence[Form], testing: Sequence[Sample], out: Path, store: Path | None, threads: int
) -> dict[str, list[CountRow]]:
    """Return what each form counts on the test photographs; FP32 is the first."""
    how: dict[str, Counter] = {}
    for each in forms:
        if each.artifact is not None:
            folder = engine_folder(each.artifact.path, store) if each.timed else None
            how[each.name] = counter(each.artifact, folder, threads)
    fp32 = how[FP32]
    reference: Callable[[Sample], Prediction] = remembering(fp32.open)
    counted = {}
    for name, one in how.items():
        path = out / f"{fp32.network.path.stem}.counts.{name.replace(' ', '-')}.json"
        say(f"{name}: {len(testing)} photographs")
        done = count_precision(one, testing, path, fp32=fp32, reference=reference)
        counted[name] = read_counts(done.path)
    return counted


def verdict_of(form: Form, rows: Sequence[CountRow]) -> Verdict | None:
    """Return what the default gate of a precision says; None for FP32."""
    if form.precision == "fp32":
        return None
    if not rows:
        return Verdict(refused=form.reason)
    return judged(default_gates().get(form.precision), rows)


def median_of(found: Measurement | None) -> float | None:
    """Return the median latency; None of what was not timed, or broke while it was."""
    if found is None or not found.samples_ms or has_failed(found.verdict):
        return None
    return found.median_ms


def time_forms(
    forms: Sequence[Form],
    out: Path,
    size: Size,
    seconds: float,
    store: Path | None,
    num_threads: int,
    *,
    fresh: bool,
) -> Mapping[str, Measurement]:
    """Race the forms that a CPU runs as they are written, in one run, or find it recorded."""
    files = {f.name: f.artifact for f in forms if f.artifact is not None and f.timed}
    if not seconds:
        return {}
    records = out / "precisions.jsonl"
    contenders = [
        replace(engine_contender(file.path, store, num_threads, [size]), name=name)
        for name, file in files.items()
    ]
    folders = [engine_folder(file.path, store) for file in files.values()]
    config = RaceConfig(num_threads=num_threads, budget_s=seconds)
    image = race_photograph(size)
    measured = race_once(contenders, folders, image, records, config, fresh=fresh)
    return {row.name: row for row in measured}
