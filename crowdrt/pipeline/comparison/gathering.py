"""All records of a sweep in one file, those of other machines too; none twice, none mixed up."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.lines import parsed_lines
from crowdrt.benchmarks.tables.trained.records import broken, parse_training_record
from crowdrt.errors import TrainingError
from crowdrt.manifest import manifest_path, write_folder_whole, write_json, write_whole
from crowdrt.pipeline.comparison.protocol import SWEEP, check_empty, identity_of
from crowdrt.pipeline.comparison.rows import (
    DEFAULTS,
    DONE,
    FAILED,
    WEIGHTS,
    differences,
    finished_in,
    is_counted,
    read_object,
    read_row,
)
from crowdrt.pipeline.comparison.searching import FOUND, search_in
from crowdrt.pipeline.locks import lock
from crowdrt.training.metrics import write_lines

RECORDS = "records.jsonl"
MERGED = "merged.jsonl"  # records of rows that do not lie here
IDENTITY = ("recipe", "seed", "test", "weights_sha256")
KEPT = (WEIGHTS, manifest_path(Path(WEIGHTS)).name, "metrics.jsonl", "losses.jsonl", DONE)


def identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what makes a record this one and no other."""
    return tuple(record.get(name) for name in IDENTITY)


def gather(sweep: Path, others: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Write `records.jsonl` anew: every finished row's records, and those merged without rows.

    A row that is removed takes its records with it. Several processes may gather at once.

    Args:
        sweep: its folder.
        others: records that are merged in; those whose rows do not lie here are kept.

    Returns:
        every record by recipe, seed and test; of those that agree in them, our own row's last.

    Raises:
        BenchmarkError: a record that was merged before is damaged.
    """
    with lock(sweep / ".locks" / "records", wait=True):
        own = [
            record
            for path in sorted(sweep.glob(f"*/*/{DONE}"))
            for record in read_row(path.parent).get("records", [])
        ]
        merged = sweep / MERGED
        known = {
            identity(record): dict(record)
            for record in [*(read_merged(merged) if merged.is_file() else []), *others]
        }
        for record in own:
            known.pop(identity(record), None)
        if known or merged.is_file():
            write_lines(merged, list(known.values()))
        ordered = sorted([*known.values(), *own], key=place)  # which keeps the order of equals
        write_lines(sweep / RECORDS, ordered)
    return ordered


def place(record: Mapping[str, Any]) -> tuple[str, int, str]:
    """Return by what records are sorted."""
    return record["recipe"], record["seed"], record["test"]


def merge(sweep: Path, other: Path) -> tuple[int, int]:
    """Take in the records of another sweep of the same protocol, and its rows that are not here.

    Args:
        sweep: the folder that takes in; one that is not there yet becomes a sweep.
        other: a sweep's folder, or its `records.jsonl` alone, whose rows cannot be exported here.

    Returns:
        how many records are new here, and how many rows.

    Raises:
        TrainingError: the other one has another protocol or other settings, or is no sweep.
        BenchmarkError: its records cannot be read.
    """
    path = other / RECORDS if other.is_dir() else other
    if other.is_dir() and not (other / SWEEP).is_file():
        raise TrainingError(
            f"{other} is no sweep: there is no {SWEEP}",
            fix="name the folder that crowdrt sweep wrote, or its records.jsonl",
        )
    records = read_merged(path)
    join(sweep, other, records)
    check_alike(sweep, other)
    before = {identity(record) for record in gather(sweep)}
    rows = [take_row(sweep, folder) for folder in rows_of(other)]
    for folder in rows_of(other, FAILED):
        take_failure(sweep, folder)
    after = {identity(record) for record in gather(sweep, records)}
    return len(after - before), sum(rows)


def read_merged(path: Path) -> list[dict[str, Any]]:
    """Return the records of another sweep, each of them whole."""

    def parse(line: str, source: str) -> dict[str, Any]:
        parse_training_record(line, source)
        found: dict[str, Any] = json.loads(line)
        if "protocol" not in found:
            raise broken(source, "it does not say under which protocol it was taken")
        if not is_counted(found):
            raise broken(source, "it has no mae and rmse, by which a sweep's rows are compared")
        return found

    fix = "name the folder that crowdrt sweep wrote, or its records.jsonl"
    return parsed_lines(path, parse, fix=fix)


def join(sweep: Path, other: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Check that both have one protocol; a folder that is none yet takes the other's.

    Raises:
        TrainingError: they have not.
    """
    theirs = read_object(other / SWEEP) if other.is_dir() else {}
    with lock(sweep / ".locks" / "sweep", wait=True):
        ours = read_object(sweep / SWEEP)
        if not ours:
            check_empty(sweep)
            if not theirs:
                raise TrainingError(
                    f"{sweep} is no sweep yet, and {other} does not say of which protocol it is",
                    fix=f"name the folder it was in: crowdrt sweep --merge DIR -o {sweep}",
                )
            write_json(sweep / SWEEP, theirs)
            ours = theirs
    own = identity_of(ours)
    strange = next((each for each in records if each["protocol"] != own), {})
    if strange or (theirs and theirs != ours):
        different = list(differences(ours, theirs)) if theirs else [f"{own}, {strange['protocol']}"]
        raise TrainingError(
            f"{other} is of another protocol than {sweep}: {'; '.join(different)}",
            fix="only rows of the same photographs, steps and teacher are compared: give each "
            "protocol a sweep of its own",
        )


def check_alike(sweep: Path, other: Path) -> None:
    """Check that two sweeps trained each recipe with the same settings, seeds apart.

    Raises:
        TrainingError: they have not, as where each searched and found another value.
    """
    known = {
        row["recipe"]: (folder, shared(row))
        for folder in reversed(rows_of(sweep))
        if (row := read_row(folder))
    }
    for folder in rows_of(other):
        if not (row := read_row(folder)):
            continue
        if row["recipe"] not in known:
            check_searches(sweep / folder.parent.name, folder.parent)
        ours, settings = known.setdefault(row["recipe"], (folder, shared(row)))
        if found := list(differences(settings, shared(row))):
            raise unlike(ours, folder, found)


def check_searches(ours: Path, theirs: Path) -> None:
    """Check that two searches of a recipe found the same, where both were done."""
    here, there = (
        {name: value for name, value in search_in(each).items() if name in ("setting", "winner")}
        for each in (ours, theirs)
    )
    if here and there and (other := list(differences(here, there))):
        raise unlike(ours / FOUND, theirs / FOUND, other)


def shared(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the rows of a recipe share; a setting that it is too old to know, by default."""
    settings = {**DEFAULTS, **row["settings"]}
    del settings["seed"]
    return settings | {"teacher_sha256": row["records"][0].get("teacher_sha256")}


def unlike(ours: Path, theirs: Path, found: Iterable[str]) -> TrainingError:
    """Return the error for what would stand in one table and was trained differently."""
    return TrainingError(
        f"{theirs} and {ours} are of one recipe and differ: {'; '.join(found)}",
        fix="a recipe's rows differ in their seed alone: leave them two sweeps; or drop those that "
        f"are not wanted, one after the other: rm -r '{ours}'",
    )


def rows_of(other: Path, done: str = DONE) -> list[Path]:
    """Return the folders of a sweep's finished rows, or of those that failed."""
    return [path.parent for path in sorted(other.glob(f"*/*/{done}"))] if other.is_dir() else []


def take_row(sweep: Path, theirs: Path) -> bool:
    """Copy a finished row, and what its recipe's search found, unless ours is finished too."""
    ours = sweep / theirs.parent.name / theirs.name
    with lock(sweep / ".locks" / f"{ours.parent.name}.{ours.name}") as mine:
        if not mine or finished_in(ours) or not finished_in(theirs):
            return False
        shutil.rmtree(ours, ignore_errors=True)  # one that was killed in the middle
        with write_folder_whole(ours) as folder:
            for name in filter(lambda name: (theirs / name).is_file(), KEPT):
                shutil.copyfile(theirs / name, folder / name)
    search = theirs.with_name(FOUND)
    if search.is_file() and not ours.with_name(FOUND).is_file():
        with write_whole(ours.with_name(FOUND)) as temporary:
            shutil.copyfile(search, temporary)
    return True


def take_failure(sweep: Path, theirs: Path) -> None:
    """Copy why a row failed, where ours is neither finished nor failed: it has been tried."""
    ours, why = sweep / theirs.parent.name / theirs.name, read_object(theirs / FAILED)
    if (theirs / DONE).is_file() or not why.keys() >= {"recipe", "seed", "problem"}:
        return
    with lock(sweep / ".locks" / f"{ours.parent.name}.{ours.name}") as mine:
        if mine and not any((ours / name).is_file() for name in (DONE, FAILED)):
            write_json(ours / FAILED, why)
