"""A race of attempts as lines of JSON: this machine's peaks, baselines, attempts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.attempts.agreement import Agreement
from crowdrt.benchmarks.attempts.attempt import Prediction
from crowdrt.benchmarks.lines import check_schema, parsed_lines
from crowdrt.benchmarks.timing.records import parse_record, record_line
from crowdrt.contracts import Measurement, Size
from crowdrt.engines.layers.roofline import OPERATIONS_PER_MAC, Peaks
from crowdrt.errors import BenchmarkError, EngineError
from crowdrt.manifest import write_whole

NARROW = 0.05  # of a predicted ratio, as far as ratios of two races may differ
SCHEMA = 1  # raise it when a field changes its meaning or goes
AGAIN = "python -m crowdrt.benchmarks.attempts STUDENT.onnx STUDENT.int8.onnx -o FILE.jsonl"


@dataclass(frozen=True, kw_only=True)
class Raced:
    """A baseline: its row, and what it multiplies."""

    name: str
    form: str  # fp32, int8: of which peak it can come near
    macs: int | None  # of one image
    row: Measurement

    def share(self, peaks: Peaks) -> float | None:
        """Return its operations per second over this machine's peak; None where one is unknown."""
        peak = peaks.operations_per_s.get(self.form)
        if not (self.macs and peak and self.row.samples_ms):
            return None
        return OPERATIONS_PER_MAC * self.macs / (self.row.median_ms / 1000) / peak


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an attempt."""

    name: str
    changed: str
    about: str
    baseline: str
    prediction: Prediction | None
    exact: bool
    images_per_run: int  # of the race; `ratio` and the times of `row` are per image
    result: str  # faster, slower, within noise, too few visits; refused, failed, not raced: WHY
    ratio: float | None = None  # of its median per image over the baseline's
    low: float | None = None  # its 95 % interval, as in `crowdrt diff`
    high: float | None = None
    agreement: Agreement | None = None  # with the baseline, in the runtime
    written: Agreement | None = None  # of both graphs as they are written, where that is the proof
    found: Mapping[str, Any] | None = None  # what decided the form, measured before the race
    row: Measurement | None = None  # its times per image; None: not raced

    @property
    def held(self) -> bool | None:
        """Whether the prediction came true; None where the interval leaves that open, or is none.

        True: the interval lies in the predicted range; of a single predicted ratio: it contains it
        and is no wider than `NARROW`. False: they have nothing in common.
        """
        if self.prediction is None or self.low is None or self.high is None:
            return None
        lowest, highest = self.prediction.low, self.prediction.high
        if self.high < lowest or highest < self.low:
            return False
        if lowest == highest:
            return True if self.high - self.low <= NARROW * lowest else None
        return True if lowest <= self.low and self.high <= highest else None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One race of attempts."""

    size: Size
    num_threads: int
    when: str  # UTC
    machine: Mapping[str, Any]
    peaks: Mapping[str, Any]
    baselines: tuple[Raced, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def limits(self) -> Peaks:
        """The peaks, as the roofline takes them."""
        return Peaks.from_json(self.peaks, fix=AGAIN)


def write_trial(path: Path, trial: Trial) -> None:
    """Write a race of attempts, all of it or nothing."""
    with write_whole(path) as unfinished:
        unfinished.write_text("".join(f"{line}\n" for line in lines_of(trial)), encoding="utf-8")


def lines_of(trial: Trial) -> list[str]:
    """Return the lines of a file: one of the machine, then one per baseline and attempt."""
    head = {
        name: getattr(trial, name) for name in ("size", "num_threads", "when", "machine", "peaks")
    }
    documents = [{"kind": "machine", **head}]
    documents += [document_of("baseline", each) for each in trial.baselines]
    documents += [document_of("attempt", each) for each in trial.outcomes]
    return [json.dumps({"schema": SCHEMA, **each}, sort_keys=True) for each in documents]


def document_of(kind: str, what: Raced | Outcome) -> dict[str, Any]:
    """Return a baseline or an attempt as it is written."""
    row = None if what.row is None else json.loads(record_line(what.row))
    return {"kind": kind, **asdict(what), "row": row}


def read_trial(path: Path) -> Trial:
    """Return the race of a file.

    Raises:
        BenchmarkError: it cannot be read, or is no whole file of attempts.
    """
    lines = parsed_lines(path, parse_line, fix=f"name a file of: {AGAIN}")
    heads = [each for kind, each in lines if kind == "machine"]
    if len(heads) != 1 or lines[0][0] != "machine":
        raise BenchmarkError(
            f"{path} is no race of attempts: {len(heads)} of its {len(lines)} lines tell of the "
            "machine, instead of the first alone",
            fix=f"name a file of: {AGAIN}",
        )
    return Trial(
        **heads[0],
        baselines=tuple(each for kind, each in lines if kind == "baseline"),
        outcomes=tuple(each for kind, each in lines if kind == "attempt"),
    )


def parse_line(line: str, source: str) -> tuple[str, Any]:
    """Return what a line tells of, and that."""
    try:
        fields: dict[str, Any] = json.loads(line)
        kind, schema = fields.pop("kind"), fields.pop("schema")
        check_schema(schema, SCHEMA, source=source, again="race again into another file")
        return kind, {"machine": machine_from, "baseline": raced_from, "attempt": outcome_from}[
            kind
        ](fields, source)
    except (ValueError, TypeError, KeyError, AttributeError, EngineError) as error:
        raise BenchmarkError(
            f"{source}: no whole line of a race of attempts ({type(error).__name__}: {error})",
            fix=f"race again into another file: {AGAIN}",
        ) from error


def machine_from(fields: dict[str, Any], _: str) -> dict[str, Any]:
    """Return what the first line holds, checked as far as tables need it."""
    height, width = fields.pop("size")
    Peaks.from_json(fields["peaks"], fix=AGAIN)
    return {**fields, "size": (int(height), int(width))}


def raced_from(fields: dict[str, Any], source: str) -> Raced:
    """Return a baseline."""
    return Raced(**{**fields, "row": row_from(fields["row"], source)})


def outcome_from(fields: dict[str, Any], source: str) -> Outcome:
    """Return an attempt."""
    predicted, row = fields.pop("prediction"), fields.pop("row")
    agreed, written = fields.pop("agreement"), fields.pop("written")
    return Outcome(
        **fields,
        prediction=None if predicted is None else Prediction(**predicted),
        agreement=None if agreed is None else Agreement(**agreed),
        written=None if written is None else Agreement(**written),
        row=None if row is None else row_from(row, source),
    )


def row_from(document: Mapping[str, Any], source: str) -> Measurement:
    """Return a measured row."""
    return parse_record(json.dumps(document), source)
