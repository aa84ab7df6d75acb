"""Measurements as JSON Lines: one row per line, appended and never rewritten."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.lines import append_lines, check_schema, parsed_lines
from crowdrt.contracts import Measurement
from crowdrt.errors import BenchmarkError

SCHEMA = 1  # raise it when a field changes its meaning or goes

GPU_SERIES = ("compute_ms", "to_device_ms", "to_host_ms")


def append_records(path: Path, rows: Sequence[Measurement]) -> None:
    """Add the rows at the end of `path`, all of them or none."""
    append_lines(path, map(record_line, rows))


def read_records(path: Path) -> list[Measurement]:
    """Return every row of `path`, oldest first."""
    fix = "write records with crowdrt profile ENGINE --size HxW, or name another file"
    return parsed_lines(path, parse_record, fix=fix)


def record_line(row: Measurement) -> str:
    """Return the row as one line of JSON."""
    return json.dumps({"schema": SCHEMA, **asdict(row)}, sort_keys=True)


def parse_record(line: str, source: str) -> Measurement:
    """Read what `record_line` wrote; `source` names the file and line in the error."""
    try:
        fields: dict[str, Any] = json.loads(line)
        schema = fields.pop("schema")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise _broken(source, error) from error
    check_schema(schema, SCHEMA, source=source, again="measure again into another file")
    try:
        height, width = fields.pop("size")
        fields["samples_ms"] = tuple(float(sample) for sample in fields["samples_ms"])
        for name in GPU_SERIES:  # records from before there were GPUs have none
            fields[name] = tuple(float(sample) for sample in fields.get(name, ()))
        fields["budget_s"] = float(fields.get("budget_s", 0.0))
        return Measurement(size=(int(height), int(width)), **fields)
    except (ValueError, TypeError, KeyError) as error:
        raise _broken(source, error) from error


def _broken(source: str, error: Exception) -> BenchmarkError:
    return BenchmarkError(
        f"{source}: not a whole record ({type(error).__name__}: {error})",
        fix="delete that line; a record cannot be mended, only measured again",
    )
