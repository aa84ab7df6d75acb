"""Finished trials, a line each, so that a search that was stopped goes on where it stood."""

import contextlib
import json
import os
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from crowdrt.calibration.sensitivity.judge import Verdict
from crowdrt.errors import CalibrationError
from crowdrt.manifest import cannot_write, fingerprint


class Journal:
    """A JSONL file of trials; those of another network, photographs or settings are left alone.

    A line that was cut short, as a killed process leaves it, counts for nothing.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Read what there is.

        Args:
            path: the file, which need not exist.
            key: fingerprint of everything that decides a trial but its layers.
        """
        self.path, self.key = path, key
        self._found: dict[str, Verdict] = {}
        try:
            lines = path.read_bytes().splitlines() if path.exists() else []
        except OSError as error:
            raise CalibrationError(
                f"{path} cannot be read: {error.strerror}",
                fix=f"move it away, or check its permissions: ls -l {path}",
            ) from error
        for line in lines:
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
                row = json.loads(line)
                self._found[row["trial"]] = Verdict(
                    tuple(map(float, row["counts"])), float(row["signal"]), float(row["noise"])
                )

    def find(self, int8: Collection[str]) -> Verdict | None:
        """Return what came of these layers in INT8, if it was tried before."""
        return self._found.get(self.identity(int8))

    def add(self, int8: Collection[str], verdict: Verdict, seconds: float) -> None:
        """Write one finished trial to the disk."""
        trial = self.identity(int8)
        row = {"trial": trial, "key": self.key, "int8": sorted(int8), "seconds": round(seconds, 3)}
        line = json.dumps(row | asdict(verdict)).encode() + b"\n"
        try:
            with self.path.open("ab+") as file:
                if file.tell() and not ends_line(self.path):
                    line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._found[trial] = verdict

    def identity(self, int8: Collection[str]) -> str:
        """Return the fingerprint of one trial."""
        return fingerprint({"key": self.key, "int8": sorted(int8)})


def ends_line(path: Path) -> bool:
    """Say whether the last byte of a file ends a line."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
