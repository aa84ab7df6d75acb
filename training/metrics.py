"""Lines of JSON that a run leaves, in the order of its steps: its losses and its validations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crowdrt.manifest import cannot_write, write_whole


def append_line(path: Path, metrics: Mapping[str, Any]) -> None:
    """Add one line in one write, which a kill can prevent but not cut in half."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(json.dumps(metrics).encode() + b"\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def rewind(path: Path, step: int) -> None:
    """Drop what was logged after `step`.

    A run that was killed between a validation and the next checkpoint takes those steps again,
    and would log them twice.
    """
    write_lines(path, [line for line in read_lines(path) if line["step"] <= step])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the file, oldest first; what is no line of metrics is left out."""
    return [line for line in read_objects(path) if isinstance(line.get("step"), int)]


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Return every line that is an object of JSON; what a kill or a disk damaged is left out."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # a folder that is no folder fails when it is written
        return []
    return [found for line in lines if isinstance(found := parsed(line), dict)]


def parsed(line: str) -> Any:
    """Return what a line of JSON says, or None."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the whole file."""
    with write_whole(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
