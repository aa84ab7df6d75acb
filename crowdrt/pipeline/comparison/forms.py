"""The files of each entrant: exported, proven, quantized, and counted on the test photographs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from crowdrt.benchmarks.accuracy.counts import Accuracy, accuracy
from crowdrt.benchmarks.tables.compression.printed import TEACHER
from crowdrt.console import say
from crowdrt.contracts import Artifact, Sample
from crowdrt.data.heads.datasets import without_copies
from crowdrt.data.heads.splits import known_sets, read_split
from crowdrt.entry import explained, stopped
from crowdrt.errors import BenchmarkError
from crowdrt.pipeline.comparison.entrants import Entrant, Network, origin_of
from crowdrt.pipeline.precision.forms import count_precision, counter, remembering
from crowdrt.pipeline.reporting import read_counts
from crowdrt.pipeline.stages import build_stage, calibrate_stage, export_stage, int8_settings
from crowdrt.pipeline.trained import TESTS

T = TypeVar("T")
FP32, PTQ, TRAINED, EAGER = "fp32", "int8 PTQ", "int8 trained", "fp32 eager"


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """What ranges are taken from, and what is counted."""

    calibration: Sequence[Sample]
    test: Sequence[Sample]


@dataclass(kw_only=True)
class Form:
    """An entrant in one form: a file per seed, what each counts, and what went wrong."""

    entrant: Entrant
    name: str
    files: dict[int, Artifact] = field(default_factory=dict)  # by seed
    counts: dict[int, Accuracy] = field(default_factory=dict)  # by seed, as the engine counts
    lost: dict[int, str] = field(default_factory=dict)  # why a seed has no file, or no count

    @property
    def label(self) -> str:
        """Return `SKT int8 PTQ`."""
        return f"{self.entrant.method} {self.name}"

    @property
    def timed(self) -> Network | None:
        """The network whose file stands for the form's speed, of those that have one.

        The median by its validation error; of two, the better one.
        """
        able = [each for each in self.entrant.here if each.seed in self.files]
        ranked = sorted(able, key=lambda each: each.record.get("validation_mae") or 0.0)
        return ranked[(len(ranked) - 1) // 2] if ranked else None

    @property
    def timed_file(self) -> Artifact | None:
        """That file."""
        return None if self.timed is None else self.files[self.timed.seed]


def photographs_of(data: Path, test: str) -> Photographs:
    """Return both splits of the published set that a test is of.

    Raises:
        BenchmarkError: the folder does not hold it.
    """
    known = next((k for k in known_sets(data) if f"{TESTS.get(k.name)} test" == test), None)
    if known is None:
        raise BenchmarkError(
            f"{data} does not hold {test!r}, which the sweep was tested on",
            fix="name the folder that crowdrt sweep was given: --data DIR",
        )
    testing = read_split(known, "test", 1)
    calibrating = without_copies(read_split(known, "train", 1), testing)
    return Photographs(calibration=calibrating, test=testing)


def forms_of(
    entrant: Entrant, photos: Photographs, folder: Path, *, store: Path | None, num_threads: int
) -> list[Form]:
    """Return an entrant in every form that it ships in, files and counts of all seeds.

    What cannot be made leaves its reason, and everything else goes on.

    Args:
        entrant: whose networks.
        photos: to calibrate on, and to count.
        folder: keeps the files; a second call finds them.
        store: where engines are kept.
        num_threads: 0 takes every core.
    """
    float_form = Form(entrant=entrant, name=FP32)
    int8 = Form(entrant=entrant, name=TRAINED if entrant.quantized else PTQ)
    for network in entrant.here:
        stem = folder / f"{folder_name(entrant)}-{network.seed}"
        exported = attempt(float_form, network, lambda n=network, s=stem: export(n, s))  # type: ignore[misc]
        if exported is None:
            int8.lost[network.seed] = float_form.lost[network.seed]
            continue
        float_form.files[network.seed] = exported
        made = attempt(int8, network, lambda e=exported: quantize(entrant, e, photos))  # type: ignore[misc]
        if made is not None:
            int8.files[network.seed] = made
    counted = [int8, float_form] if entrant.kind == TEACHER else [int8]
    for form in counted:
        for network in [each for each in entrant.here if each.seed in form.files]:
            file = form.files[network.seed]
            found = attempt(form, network, lambda f=file: count(f, photos, store, num_threads))  # type: ignore[misc]
            if found is not None:
                form.counts[network.seed] = found
    return [int8] if entrant.quantized else [float_form, int8]


def folder_name(entrant: Entrant) -> str:
    """Return an entrant's name for files."""
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in entrant.recipe)


def attempt(form: Form, network: Network, make: Callable[[], T]) -> T | None:
    """Do one thing; where it fails the reason stays, and None comes back."""
    try:
        return make()
    except Exception as error:
        why = explained(error)
        if stopped(error) or why is None:
            raise
        say(f"{form.label}, seed {network.seed}: {why.problem}")
        form.lost[network.seed] = why.problem
        return None


def export(network: Network, stem: Path) -> Artifact:
    """Export a network for any size; the exporter proves that the file counts as it does."""
    say(f"exporting {stem.name}")
    return export_stage(origin_of(network), stem.with_name(f"{stem.name}.onnx"))


def quantize(entrant: Entrant, exported: Artifact, photos: Photographs) -> Artifact:
    """Return the INT8 form: by the ranges that it learned with, else by photographs."""
    config, keep_float = int8_settings(entrant.declared)
    out = exported.path.with_name(f"{exported.path.stem}.int8.onnx")
    return calibrate_stage(exported.path, photos.calibration, out, config, keep_float)


def count(file: Artifact, photos: Photographs, store: Path | None, num_threads: int) -> Accuracy:
    """Return an engine's errors on the test photographs; counted once and kept beside the file."""
    say(f"counting with {file.path.name}")
    how = counter(file, build_stage(file.path, store).path, num_threads)
    path = file.path.with_name(f"{file.path.stem}.counts.json")
    counted = count_precision(how, photos.test, path, fp32=how, reference=remembering(how.open))
    found = accuracy(read_counts(counted.path))
    assert found is not None  # published test photographs are annotated
    return found


def lost_seeds(form: Form) -> Mapping[str, str]:
    """Return why seeds are missing: they were not trained, or not turned into this form."""
    return {**form.entrant.lost, **{str(seed): why for seed, why in form.lost.items()}}
