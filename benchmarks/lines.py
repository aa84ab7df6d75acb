"""Files of JSON Lines: one record per line, read whole or refused with the line's number."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from crowdrt.errors import BenchmarkError
from crowdrt.manifest import cannot_write

R = TypeVar("R")


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines at the end of `path`, all of them or none.

    They go out in one write to a file opened for appending, so that two processes that end together
    cannot mix their lines. A disk that fills up in the middle leaves the file as it was.
    """
    text = "".join(f"{line}\n" for line in lines).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(text) != len(text):
                    raise OSError(None, "the disk took only a part")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def check_appendable(path: Path, read: Callable[[Path], object]) -> None:
    """Refuse a file to which other records would be added than it holds, before they are made.

    Args:
        path: may not be there yet.
        read: reads all records of the kind that is to be added.

    Raises:
        BenchmarkError: `path` holds others, is damaged, or cannot be read.
    """
    if not path.exists():
        return
    try:
        read(path)
    except BenchmarkError as error:
        raise BenchmarkError(
            f"nothing is added to a file that holds something else: {error.problem}",
            fix="name another file: -o OTHER.jsonl",
        ) from error


def check_schema(found: object, known: int, *, source: str, again: str) -> None:
    """Refuse a line that another version of crowdrt wrote.

    Args:
        found: what the line says.
        known: the schema that this version writes.
        source: the line's file and number.
        again: what to do where no update helps, as in "measure again into another file".

    Raises:
        BenchmarkError: they are not the same.
    """
    if found != known:
        raise BenchmarkError(
            f"{source}: schema {found!r} is not {known}, the one this version writes",
            fix=f"update crowdrt: pip install -U crowdrt; or {again}",
        )


def parsed_lines(path: Path, parse: Callable[[str, str], R], *, fix: str) -> list[R]:
    """Return every record of a file, oldest first.

    Args:
        path: the file.
        parse: makes a record of a line; its second argument names file and line, for its errors.
        fix: what to do where the file cannot be read.

    Raises:
        BenchmarkError: the file cannot be read; whatever `parse` raises.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}", fix=fix) from error
    return [
        parse(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
