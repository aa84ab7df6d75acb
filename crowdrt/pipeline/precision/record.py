"""What `crowdrt precisions` keeps of its table, and what the report of a run shows of it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.report.sections import MethodLine, MethodsTable
from crowdrt.console import say
from crowdrt.errors import BenchmarkError
from crowdrt.manifest import read_json, write_json

RECORD = "precisions.json"
SCHEMA = 1  # raise it when a field changes its meaning or goes


@dataclass(frozen=True, kw_only=True)
class Methods:
    """What was compared: a network's file, and the photographs."""

    model: str  # name of the file
    sha256: str  # of the file
    num_ranges: int  # photographs that ranges were taken from
    num_counted: int


def write_methods(out: Path, methods: Methods, rows: Sequence[dict[str, Any]]) -> None:
    """Keep the rows of `--json` in `out`, beside the files that they are of, without folders."""
    kept = [row | {"path": Path(row["path"]).name if row["path"] else None} for row in rows]
    write_json(out / RECORD, {"schema": SCHEMA, **vars(methods), "rows": kept})


def methods_of(folder: Path, sha256: str) -> MethodsTable | None:
    """Return the newest record in a run's folder, or in a folder inside it, of its FP32 file.

    One of another network is left out, and so is a damaged one, or another version's; each is said.

    Args:
        folder: of the run.
        sha256: of the FP32 file that the run exported.
    """
    paths = [*folder.glob(RECORD), *folder.glob(f"*/{RECORD}")]
    paths.sort(key=lambda path: (path.stat().st_mtime, path))
    own = []
    for path in paths:
        of = (read_json(path) or {}).get("sha256")
        if isinstance(of, str) and of != sha256:
            say(f"{path} is of another network than this run's, and is not shown")
            continue
        try:
            own.append(read_methods(path))
        except BenchmarkError as error:
            say(f"{error.problem}; it is left out. To have it, {error.fix}")
    return own[-1] if own else None


def read_methods(path: Path) -> MethodsTable:
    """Return the table of a record.

    Raises:
        BenchmarkError: it is damaged, names no file, or is another version's.
    """
    document = read_json(path) or {}
    try:
        if (schema := document.get("schema")) != SCHEMA:
            raise ValueError(f"schema {schema!r} is not {SCHEMA}")
        if not isinstance(document["sha256"], str):
            raise TypeError("sha256 is no text")
        return table_of(document)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BenchmarkError(
            f"{path} is no whole record of precisions: {type(error).__name__}: {error}",
            fix="make it again: crowdrt precisions MODEL --images DIR --test DIR -o "
            f"{shlex.quote(str(path.parent))}",
        ) from error


def table_of(document: Mapping[str, Any]) -> MethodsTable:
    """Return FP32 and the forms in INT8; float16 has no ranges, and stands elsewhere."""
    shown = [row for row in document["rows"] if row["precision"] in ("fp32", "int8")]
    return MethodsTable(
        source=f"{document['num_counted']} photographs counted, ranges from "
        f"{document['num_ranges']} others.",
        lines=[line_of(row) for row in shown],
    )


def line_of(row: Mapping[str, Any]) -> MethodLine:
    """Return one form as the page shows it."""
    gate = row["gate"]
    name = "FP32, for comparison" if row["name"] == "fp32" else row["name"].removeprefix("int8 ")
    share = row["int8_macs"]
    return MethodLine(
        name=name,
        mae=number(row["mae"]),
        bias=number(row["bias"]),
        moved=number(row["moved"].get("all")),
        psnr_db=number(row["psnr_db"]),
        megabytes=None if row["bytes"] is None else row["bytes"] / 1e6,
        int8_macs=share * 100 if share else None,
        chip="" if gate is None else "held" if gate["held"] else "failed",
        reason=str(row["reason"] or (gate["reason"] if gate else "")),
    )


def number(found: Any) -> float | None:
    """Return what the page shows with digits; None of what was not worked out."""
    return None if found is None else float(found)
