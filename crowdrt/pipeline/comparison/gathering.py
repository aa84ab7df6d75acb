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
from crowdrt.pipeline.comparison.locks import lock
from crowdrt.pipeline.comparison.protocol import SWEEP, check_empty, identity_of
from crowdrt.pipeline.comparison.rows import DONE, WEIGHTS, differences, finished_in, read_object
from crowdrt.pipeline.comparison.searching import FOUND
from crowdrt.training.metrics import read_objects

RECORDS = "records.jsonl"
IDENTITY = ("recipe", "seed", "test", "weights_sha256")
KEPT = (WEIGHTS, manifest_path(Path(WEIGHTS)).name, "metrics.jsonl", "losses.jsonl", DONE)


def identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what makes a record this one and no other."""
    return tuple(record.get(name) for name in IDENTITY)


def gather(sweep: Path, others: Iterable[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Write `records.jsonl` anew: what it held, every finished row's records, and others.

    Several processes may do it at once.

    Returns:
        every record, in the order of their identities.
    """
    with lock(sweep / ".locks" / "records", wait=True):
        found = {identity(record): record for record in [*read_objects(sweep / RECORDS), *others]}
        for path in sorted(sweep.glob(f"*/*/{DONE}")):
            found |= {identity(record): record for record in read_object(path).get("records", [])}
        ordered = [dict(found[key]) for key in sorted(found, key=str)]
        with write_whole(sweep / RECORDS) as temporary:
            temporary.write_text("".join(json.dumps(each) + "\n" for each in ordered), "utf-8")
    return ordered


def merge(sweep: Path, other: Path) -> tuple[int, int]:
    """Take in the records of another sweep of the same protocol, and its rows that are not here.

    Args:
        sweep: the folder that takes in; one that is not there yet becomes a sweep.
        other: a sweep's folder, or its `records.jsonl` alone, whose rows cannot be exported here.

    Returns:
        how many records are new here, and how many rows.

    Raises:
        TrainingError: the other one has another protocol, or is no sweep.
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
    before = {identity(record) for record in read_objects(sweep / RECORDS)}
    rows = [take_row(sweep, folder) for folder in rows_of(other)]
    after = {identity(record) for record in gather(sweep, records)}
    return len(after - before), sum(rows)


def read_merged(path: Path) -> list[dict[str, Any]]:
    """Return the records of another sweep, each of them whole."""

    def parse(line: str, source: str) -> dict[str, Any]:
        parse_training_record(line, source)
        found: dict[str, Any] = json.loads(line)
        if "protocol" not in found:
            raise broken(source, "it does not say under which protocol it was taken")
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


def rows_of(other: Path) -> list[Path]:
    """Return the folders of a sweep's finished rows."""
    return [path.parent for path in sorted(other.glob(f"*/*/{DONE}"))] if other.is_dir() else []


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
