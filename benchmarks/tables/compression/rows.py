"""One network of the comparison in one form: its errors by seeds, its cost, its speed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from crowdrt.benchmarks.lines import parsed_lines
from crowdrt.benchmarks.tables.compression.printed import (
    NAIVE,
    SKT_TABLE_5,
    TEACHER,
    TEST,
    PrintedErrors,
)
from crowdrt.contracts import Size
from crowdrt.errors import BenchmarkError

SCHEMA = 1  # raise it when a field changes its meaning or goes


@dataclass(frozen=True, kw_only=True)
class CompressionRow:
    """One row; what could not be made or measured is None, and `failure` says why."""

    method: str  # "SKT", "L1Filter + SKT", "naive student", "teacher"
    kind: str  # teacher, none, quantization, pruning, distillation, or two with "+"
    form: str  # "fp32", "int8 PTQ", "int8 trained", "fp32 eager"
    recipe: str
    start: str = ""  # the recipe whose trained weights it went on with
    network: str
    width: str  # as it was begun; pruned networks are narrower
    test: str
    num_images: int
    seeds: tuple[int, ...] = ()
    mae: tuple[float, ...] = ()  # people, one per seed
    rmse: tuple[float, ...] = ()
    lost_seeds: Mapping[str, str] = field(default_factory=dict)  # seed -> why it failed
    steps: int | None = None
    crops: int | None = None
    minutes: float | None = None  # of one training, on average
    search: str = ""  # "learning_rate of 1e-4, 3e-4: 150 steps each, 12 min"
    params: int | None = None
    macs: int | None = None  # at `size`
    file_bytes: int | None = None
    size: Size
    engine: str = ""
    engine_version: str = ""
    num_threads: int | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    num_samples: int = 0
    gpu: str = ""
    gpu_ms: float | None = None
    peak_mib: float | None = None
    timing: str = ""  # the race's verdict on the row
    run_id: str = ""
    machine: str = ""
    sha256: str = ""  # of the file that was timed
    failure: str = ""  # why there is no such network, or why it is not to be used

    @property
    def label(self) -> str:
        """Return `SKT int8 PTQ`."""
        return f"{self.method} {self.form}"

    @property
    def mean_mae(self) -> float | None:
        """The mean over the seeds; None where no seed was tested."""
        return fmean(self.mae) if self.mae else None

    @property
    def mean_rmse(self) -> float | None:
        """The mean over the seeds; None where no seed was tested."""
        return fmean(self.rmse) if self.rmse else None

    @property
    def spread_mae(self) -> float | None:
        """The sample standard deviation over the seeds; None for fewer than two."""
        return stdev(self.mae) if len(self.mae) > 1 else None

    @property
    def spread_rmse(self) -> float | None:
        """The sample standard deviation over the seeds; None for fewer than two."""
        return stdev(self.rmse) if len(self.rmse) > 1 else None

    @property
    def is_naive(self) -> bool:
        """Whether it is a student that nothing was done for, as it was trained."""
        return self.kind == "none" and self.form == "fp32"

    @property
    def printed(self) -> PrintedErrors | None:
        """What the paper prints for the method, beside the one form of ours that it means."""
        quantized = self.kind == "quantization"
        means = self.form == ("int8 trained" if quantized else "fp32")
        return SKT_TABLE_5.get(self.method) if means else None


def ordered(rows: Sequence[CompressionRow]) -> list[CompressionRow]:
    """Return the rows in the paper's order of methods, combinations after them, forms together."""
    methods = list(SKT_TABLE_5)
    place = {method: number for number, method in enumerate(methods)}
    first = {TEACHER: -2, NAIVE: -1}

    def key(row: CompressionRow) -> int:
        method = row.method.partition(" (")[0]  # a variant stands beside its method
        return first.get(method, place.get(method, len(methods)))

    return sorted(rows, key=key)


def not_run(method: str) -> CompressionRow:
    """Return the empty row of a printed method that no record of ours is of."""
    quantized = method in ("DoReFa", "QAT")
    return CompressionRow(
        method=method,
        kind="quantization" if quantized else "",
        form="int8 trained" if quantized else "fp32",
        recipe="",
        network="",
        width="",
        test=TEST,
        num_images=0,
        size=(576, 864),
    )


def row_line(row: CompressionRow) -> str:
    """Return the row as one line of JSON."""
    return json.dumps({"schema": SCHEMA, **asdict(row)})


def read_compression(path: Path) -> list[CompressionRow]:
    """Return every row of a file that `crowdrt compare` wrote.

    Raises:
        BenchmarkError: the file cannot be read, or a line is no whole row.
    """
    fix = "name a compression.jsonl that crowdrt compare SWEEP -o OUT wrote"
    return parsed_lines(path, parse_row, fix=fix)


def parse_row(line: str, source: str) -> CompressionRow:
    """Read what `row_line` wrote; `source` names the file and line in the error."""
    try:
        found: dict[str, Any] = json.loads(line)
        if (schema := found.pop("schema", None)) != SCHEMA:
            raise ValueError(f"schema {schema!r} is not {SCHEMA}")
        for name in ("seeds", "mae", "rmse", "size"):
            found[name] = tuple(found[name])
        row = CompressionRow(**found)
        if len(row.seeds) != len(row.mae) or len(row.mae) != len(row.rmse):
            raise ValueError("it has not one MAE and one RMSE per seed")
        check_types(row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BenchmarkError(
            f"{source} is no whole row of a comparison: {error}",
            fix="write the file anew: crowdrt compare SWEEP --data DIR -o OUT",
        ) from error
    return row


def check_types(row: CompressionRow) -> None:
    """Refuse texts where numbers are shown and worked with, and the other way round.

    Raises:
        TypeError: a field, or one of its elements, is not what it should be.
    """
    numbers: list[object] = [*row.seeds, *row.mae, *row.rmse, *row.size]
    for each in fields(row):
        value = getattr(row, each.name)
        if each.type is str and not isinstance(value, str):
            raise TypeError(f"{each.name} is no text: {value!r}")
        if each.type in (int, int | None, float | None) and value is not None:
            numbers.append(value)
    if wrong := [each for each in numbers if not isinstance(each, int | float)]:
        raise TypeError(f"{wrong[0]!r} is no number")
    if len(row.size) != 2 or not isinstance(row.lost_seeds, Mapping):
        raise TypeError("its size is no height and width, or its lost seeds have no reasons")
