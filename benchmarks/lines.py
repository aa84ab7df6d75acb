"""Files of JSON Lines: one record per line, read whole or refused with the line's number."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from crowdrt.errors import BenchmarkError

R = TypeVar("R")


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
