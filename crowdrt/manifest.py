"""Files written whole or not at all, each with a sidecar that says what made it."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import platform
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.contracts import Artifact
from crowdrt.errors import CrowdRTError

TOOLS = ("numpy", "onnx", "onnxruntime", "onnxsim", "torch")


def sha256_file(path: Path) -> str:
    """Return the file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON document, whatever the order of its keys."""
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name only when the block succeeds.

    A crash, an error or Ctrl-C leaves `path` as it was and no temporary file behind.
    """
    temporary = None
    with _folder_of(path):
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
            temporary = Path(name)
            os.close(handle)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the name when the block succeeds.

    When another process was first, its folder stays and ours is dropped: both succeed.
    """
    with folder_beside(path) as temporary:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():  # else somebody else built the same thing
                raise


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, on its disk; what is left in it goes afterwards.

    Raises:
        CrowdRTError: it, or what the block wanted, cannot be written.
    """
    temporary = None
    with _folder_of(path):
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
            yield temporary
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)


def sweep(parent: Path, pattern: str, stale_s: float) -> None:
    """Remove temporary folders that processes left which were killed.

    Args:
        parent: where they lie.
        pattern: of their names.
        stale_s: for how long nothing was made in one that nobody fills any more.
    """
    for folder in parent.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > stale_s:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """Make the folder of `path`; what was made for it goes again when the block fails."""
    made: list[Path] = []
    try:
        for folder in itertools.takewhile(lambda folder: not folder.is_dir(), path.parents):
            if folder.exists() and not folder.is_dir():  # another process may make it meanwhile
                raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder")
            made.append(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.rmdir()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: Path, error: OSError) -> CrowdRTError:
    """Return the one error for a full disk, a read-only folder and their like."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fix = "free some space, then give the same command again; see what is free: df -h"
    else:
        folder = shlex.quote(str(_existing(path)))
        fix = f"choose a folder that you may write to; see what is in the way: ls -la {folder}"
    return CrowdRTError(f"{path} could not be written: {error.strerror or error}", fix=fix)


def _existing(path: Path) -> Path:
    """Return the nearest folder of `path` that is there, to look into."""
    with contextlib.suppress(OSError):  # one that may not be entered
        return next(folder for folder in path.parents if folder.exists())
    return path.parent


def manifest_path(path: Path) -> Path:
    """Return where the manifest of `path` lies."""
    return path.with_name(path.name + ".json")


def write_manifest(
    path: Path,
    *,
    kind: str,
    made_from: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write the sidecar of `path`.

    Args:
        path: the file, already written.
        kind: weights, onnx, engine, records or report.
        made_from: everything that decided the file's content; its fingerprint is the key by
            which a later run knows that nothing needs to be done.
        facts: what the stage found out: parity, ranges, what stayed float and why.
    """
    digest = sha256_file(path)
    document = {
        "kind": kind,
        "sha256": digest,
        "key": fingerprint(made_from),
        "made_from": dict(made_from),
        "facts": dict(facts or {}),
        "crowdrt": __version__,
        "versions": versions(),
    }
    write_json(manifest_path(path), document)
    return Artifact(path=path, kind=kind, sha256=digest)


def write_json(path: Path, document: object) -> None:
    """Write a JSON document whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, default=str) + "\n")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of `path`, or None when there is none that can be read."""
    return read_json(manifest_path(path))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None where there is none that can be read."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def reusable(path: Path, *, made_from: Mapping[str, Any]) -> Artifact | None:
    """Return the artifact at `path` if it was made from exactly this and is undamaged."""
    document = read_manifest(path)
    if document is None or not path.is_file() or document.get("key") != fingerprint(made_from):
        return None
    digest = sha256_file(path)
    if digest != document.get("sha256"):
        return None
    return Artifact(path=path, kind=str(document.get("kind")), sha256=digest, reused=True)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that shape the files."""
    found = {"python": platform.python_version()}
    for tool in TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[tool] = metadata.version(tool)
    return found
