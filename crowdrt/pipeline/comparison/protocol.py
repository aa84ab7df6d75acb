"""What every row of a sweep shares, so that its rows differ in their method alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crowdrt.contracts import Sample
from crowdrt.data.heads.splits import known_sets, read_split
from crowdrt.errors import DataError, TrainingError, WeightsError
from crowdrt.manifest import fingerprint, sha256_file, write_json
from crowdrt.pipeline.comparison.rows import differences, read_object
from crowdrt.pipeline.locks import lock
from crowdrt.pipeline.photographs import region_of
from crowdrt.pipeline.trained import TESTS

SWEEP = "sweep.json"
IDENTITY_DIGITS = 16  # of a fingerprint, as people may have to read it


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The photographs, the steps and the teacher of a sweep; no path of a machine."""

    data: Mapping[str, str]  # published set -> fingerprint of both its splits
    steps: int | None  # None: those of each recipe
    teacher_sha256: str | None  # None: the weights that the project ships for each recipe's

    @property
    def identity(self) -> str:
        """What tells its records from those of another protocol."""
        return identity_of(asdict(self))


def identity_of(document: Mapping[str, Any]) -> str:
    """Return a short fingerprint of a JSON document."""
    return fingerprint(document)[:IDENTITY_DIGITS]


def protocol_of(data: Path, *, steps: int | None, teacher: Path | None) -> Protocol:
    """Return the protocol that a command line describes.

    Raises:
        DataError: the folder holds no published test split.
        WeightsError: there is no such teacher.
    """
    known = [each for each in known_sets(data) if each.name in TESTS]
    if not known:
        raise DataError(
            f"{data} holds no published test split, by which the rows could be compared",
            fix=f"name the folder of one: {', '.join(TESTS.values())}",
        )
    if teacher is not None and not teacher.is_file():
        raise WeightsError(
            f"there are no weights at {teacher} to teach",
            fix="train them: crowdrt train RECIPE --data DIR -o TEACHER; then "
            "--teacher TEACHER/weights.safetensors",
        )
    splits: dict[str, str] = {
        each.name: identity_of(
            {split: contents(read_split(each, split, 1)) for split in ("train", "test")}
        )
        for each in known
    }
    sha256 = sha256_file(teacher) if teacher else None
    return Protocol(data=splits, steps=steps, teacher_sha256=sha256)


def contents(samples: list[Sample]) -> list[str]:
    """Return what photographs and their annotations hold, byte by byte, shortened."""
    return [
        fingerprint(
            {
                "image": sha256_file(sample.image),
                "heads": "" if sample.heads is None else sample.heads.tobytes().hex(),
            }
            | ({} if sample.roi is None else {"region": region_of(sample)})
        )
        for sample in samples
    ]


def keep_to(protocol: Protocol, sweep: Path) -> None:
    """Make a folder the sweep of a protocol, or check that it is one already.

    Raises:
        TrainingError: it is a sweep of another protocol, or full of other things.
    """
    with lock(sweep / ".locks" / "sweep", wait=True):
        known = read_object(sweep / SWEEP)
        if not known:
            check_empty(sweep)
            write_json(sweep / SWEEP, asdict(protocol))
        elif other := list(differences(known, asdict(protocol))):
            raise TrainingError(
                f"{sweep} is a sweep of another protocol: {'; '.join(other)}",
                fix="rows are compared under one: take another folder with -o, or the same "
                "photographs, steps and teacher",
            )


def check_empty(sweep: Path) -> None:
    """Refuse a folder in which somebody else keeps something."""
    others = sorted(path.name for path in sweep.iterdir() if path.name != ".locks")
    if others:
        raise TrainingError(
            f"{sweep} is no sweep and holds other things: {', '.join(others[:3])}",
            fix="name a new folder: -o sweeps/NAME",
        )
