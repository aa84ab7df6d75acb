"""What TensorRT measured of its kernels, shared by the builds of one GPU.

One file per GPU, driver and TensorRT version: a line of JSON that says so and holds the SHA-256 of
the rest, then TensorRT's bytes. Timings of another device give slower plans, or wrong ones.
"""

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crowdrt.console import say
from crowdrt.errors import EngineError
from crowdrt.manifest import fingerprint, write_whole

LOCK_S = 60.0  # merging takes well under a second


class TimingCache:
    """The timings of one machine in a folder that processes share."""

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        """Name the file.

        Args:
            folder: made where it is not there.
            machine: GPU, compute capability, driver and TensorRT version.
        """
        self.machine = dict(machine)
        self.path = folder / f"{fingerprint(self.machine)[:16]}.timings"

    def load(self) -> bytes:
        """Return TensorRT's bytes, none where there are none; a damaged file is set aside."""
        try:
            return read_timings(self.path, self.machine)
        except FileNotFoundError:
            return b""
        except (OSError, ValueError) as error:
            self.set_aside(str(error))
            return b""

    def save(self, timings: bytes) -> str:
        """Replace the file; return the SHA-256 of the timings. Call it within `locked`."""
        digest = hashlib.sha256(timings).hexdigest()
        header = json.dumps({"machine": self.machine, "sha256": digest}, sort_keys=True)
        with write_whole(self.path) as temporary:
            temporary.write_bytes(header.encode() + b"\n" + timings)
        return digest

    def set_aside(self, reason: str) -> None:
        """Move the file out of the way; builds begin without timings then."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        with contextlib.suppress(OSError):  # another process was quicker
            self.path.rename(aside)
            say(f"{self.path} is set aside as {aside.name}: {reason}; the build measures again")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from replacing the file.

        Raises:
            EngineError: another process holds it for a minute.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            wait_for(lock.fileno(), self.path)
            yield  # closing the file, or the end of the process, gives the lock back


def wait_for(handle: int, path: Path) -> None:
    """Take the lock on an open file."""
    end = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise EngineError(
                    f"{path} is locked by another process for over {LOCK_S:.0f} s",
                    fix=f"see which: fuser {path.with_suffix('.lock')}; then build again",
                ) from error
            time.sleep(0.05)


def read_timings(path: Path, machine: Mapping[str, Any]) -> bytes:
    """Return the timings in a file.

    Raises:
        ValueError: the file is damaged, or of another machine.
        OSError: it cannot be read.
    """
    header, _, timings = path.read_bytes().partition(b"\n")
    try:
        said = json.loads(header)
        there, digest = said["machine"], said["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("it is no file of timings") from error
    if hashlib.sha256(timings).hexdigest() != digest:
        raise ValueError("it was altered or cut short")
    if there != dict(machine):
        raise ValueError(f"it was measured elsewhere: {there}")
    return timings
