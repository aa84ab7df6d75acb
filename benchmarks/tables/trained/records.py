"""Training records: one line of JSON per trained and tested network, and seeds of one recipe."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from crowdrt.benchmarks.lines import parsed_lines
from crowdrt.benchmarks.tables.trained.definition import ERRORS, METRICS, SHARES
from crowdrt.errors import BenchmarkError


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """One training and one test of what came out."""

    recipe: str
    network: str
    width: str  # "1", "1/8"
    test: str  # "ShanghaiTech part_A test"
    num_images: int  # of the test
    seed: int
    steps: int
    crops: int  # seen in all
    wall_s: float
    num_threads: int
    machine: str
    weights_sha256: str
    teacher: str  # "" where there was none
    train: str  # "ShanghaiTech part_A train"; "" where the record does not say
    metrics: Mapping[str, float]  # of `METRICS`: errors in people, shares from 0 to 1


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Records of one recipe, width, test and budget that differ in their seed."""

    records: tuple[TrainingRecord, ...]  # one per seed, by seed

    @property
    def first(self) -> TrainingRecord:
        """Return a record for what all have in common."""
        return self.records[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds."""
        return tuple(record.seed for record in self.records)

    @property
    def seconds(self) -> float:
        """Return the mean wall time of a training."""
        return fmean(record.wall_s for record in self.records)

    @property
    def minutes(self) -> float:
        """Return the mean wall time of a training."""
        return self.seconds / 60

    def values(self, metric: str) -> list[float]:
        """Return a metric of every seed; none where a record lacks it."""
        found = [record.metrics.get(metric) for record in self.records]
        whole = [value for value in found if value is not None]
        return whole if len(whole) == len(found) else []

    def mean(self, metric: str) -> float | None:
        """Return the mean over the seeds, or None."""
        values = self.values(metric)
        return fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Return the sample standard deviation over the seeds; None for fewer than two."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else None


def repeated(records: Iterable[TrainingRecord]) -> list[Repeated]:
    """Gather the seeds of each recipe, largest budget first, then the newest.

    Seeds are pooled where recipe, network, width, training and test set, images, budget and
    teacher agree. Of one seed the last line counts: it has been trained again.
    """
    groups: dict[tuple[object, ...], dict[int, TrainingRecord]] = {}
    for record in records:
        groups.setdefault(same_run(record), {})[record.seed] = record
    found = [
        Repeated(records=tuple(group[seed] for seed in sorted(group))) for group in groups.values()
    ]
    found.reverse()  # sorting keeps the order of equals
    return sorted(found, key=lambda runs: -runs.first.crops)


def same_run(record: TrainingRecord) -> tuple[object, ...]:
    """Return what two records must share to be seeds of one run."""
    return (
        *(record.recipe, record.network, record.width, record.train, record.test),
        *(record.num_images, record.steps, record.crops, record.teacher),
    )


def read_training_records(path: Path) -> list[TrainingRecord]:
    """Return every record of a JSON Lines file, oldest first.

    Raises:
        BenchmarkError: the file cannot be read, or a line is no whole record.
    """
    fix = "name a file of training records, or leave --records out: crowdrt table skt-3"
    return parsed_lines(path, parse_training_record, fix=fix)


def parse_training_record(line: str, source: str) -> TrainingRecord:
    """Read one line; `source` names file and line in the error. Unknown keys are left alone."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise broken(source, f"it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise broken(source, f"it holds {type(fields).__name__}, not an object")
    try:
        return record_of(fields)
    except ValueError as error:
        raise broken(source, str(error)) from error


def record_of(fields: Mapping[str, Any]) -> TrainingRecord:
    """Return the record of one JSON object.

    Raises:
        ValueError: a key is missing or holds something else.
    """
    return TrainingRecord(
        recipe=text(fields, "recipe"),
        network=text(fields, "network"),
        width=width_of(text(fields, "width")),
        test=text(fields, "test"),
        num_images=whole(fields, "num_images", least=1),
        seed=whole(fields, "seed"),
        steps=whole(fields, "steps"),
        crops=whole(fields, "crops"),
        wall_s=number(fields, "wall_s"),
        num_threads=whole(fields, "num_threads"),
        machine=text(fields, "machine"),
        weights_sha256=text(fields, "weights_sha256"),
        teacher=text(fields, "teacher", optional=True),
        train=text(fields, "train", optional=True),
        metrics=metrics_of(fields),
    )


def metrics_of(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the errors or shares that a record holds; a null is one that was not worked out."""
    found = {name: number(fields, name) for name in METRICS if fields.get(name) is not None}
    if not found:
        raise ValueError(f"it has none of {', '.join(METRICS)}")
    for name in SHARES:
        if found.get(name, 0) > 1:
            raise ValueError(f"{name} is {found[name]:g}, where a share from 0 to 1 is meant")
    if all(name in found for name in ERRORS) and found["rmse"] < found["mae"] * (1 - 1e-6):
        raise ValueError(
            f"rmse {found['rmse']:g} is below mae {found['mae']:g}: no test set has that"
        )
    return found


def text(fields: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    """Return a field that is text; an optional one may be missing or null."""
    value = fields.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str) or not value:
        raise ValueError(missing(fields, name, "text"))
    return value


def whole(fields: Mapping[str, Any], name: str, *, least: int = 0) -> int:
    """Return a field that is a whole number."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(missing(fields, name, f"a whole number of at least {least}"))
    return value


def number(fields: Mapping[str, Any], name: str) -> float:
    """Return a field that is a finite number and not below 0."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(missing(fields, name, "a number"))
    if not math.isfinite(value) or value < 0:
        raise ValueError(missing(fields, name, "a finite number of at least 0"))
    return float(value)


def missing(fields: Mapping[str, Any], name: str, wanted: str) -> str:
    """Return what is wrong with a field."""
    found = f"is {fields[name]!r}" if name in fields else "is missing"
    return f"{name} {found}, where {wanted} is meant"


def width_of(given: str) -> str:
    """Return a width as the tables write it."""
    try:
        width = Fraction(given)
    except (ValueError, ZeroDivisionError):
        width = Fraction(0)
    if width <= 0:
        raise ValueError(f"width is {given!r}, where a share like '1/8' is meant")
    return str(width)


def broken(source: str, why: str) -> BenchmarkError:
    """Return the error for a line that is no record."""
    return BenchmarkError(
        f"{source} is no whole training record: {why}",
        fix="delete that line; a record cannot be mended, only measured again",
    )
