"""A lock per piece of work, which the operating system takes back from a killed process."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from crowdrt.errors import CrowdRTError
from crowdrt.manifest import cannot_write


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file while the block runs; yields whether this process holds it.

    The file stays: one that is removed while somebody holds it could be locked twice.

    Args:
        path: the lock's file, made where it is not there.
        wait: until whoever holds it has finished or died.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        except OSError as error:  # such as ENOLCK, of some network drives
            raise CrowdRTError(
                f"{path} cannot be locked: {error.strerror or error}",
                fix=f"choose a folder on a disk that has locks; see: df -T '{path.parent}'",
            ) from error
        else:
            yield True
