"""The engine's files: what identifies them, and how they reach nodes that share no folder."""

import hashlib
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from crowdrt import __version__
from crowdrt.engines.base import Engine
from crowdrt.engines.store import DEFAULT_ENGINE, content_sha256, read_built, runtime_version
from crowdrt.errors import EngineError
from crowdrt.lazy import require
from crowdrt.manifest import fingerprint, sha256_file, write_whole
from crowdrt.onnx_file import external_files
from crowdrt.pipeline.stages import default_store

EAGER = ".safetensors"
SENT = "sent"  # a folder of the engine store, for what came from another machine


class MismatchError(EngineError):
    """What counts here is not what the run counts with: no node may go on with it."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What made a count; counts of two identities are never in one folder."""

    sha256: str  # of the engine's file; of several, of their hashes
    engine: str  # onnxruntime, openvino, tensorrt, torch
    version: str
    precision: str

    @property
    def text(self) -> str:
        """One line of it, for the rows."""
        return f"{self.engine} {self.version} {self.precision} {self.sha256}"

    def as_dict(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


def identity_of(path: Path, engine: Engine) -> Identity:
    """Return what identifies an engine that was opened from `path`."""
    precision = engine.info.precision if engine.info else "fp32"
    if path.is_dir():
        stored = read_built(path)
        return Identity(
            sha256=stored.sha256,
            engine=stored.engine,
            version=stored.engine_version,
            precision=precision,
        )
    if path.suffix == EAGER:
        return Identity(
            sha256=sha256_file(path),
            engine="torch",
            version=str(require("torch", extra="train").__version__),
            precision=precision,
        )
    return Identity(
        sha256=content_sha256(path),
        engine=DEFAULT_ENGINE,
        version=runtime_version(DEFAULT_ENGINE),
        precision=precision,
    )


def files_of(path: Path) -> dict[str, Path]:
    """Return all files of an engine by their places beside it: weights may lie apart."""
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path.parent)): file for file in inside}
    others = external_files(path) if path.suffix != EAGER else []
    return {str(file.relative_to(path.parent)): file for file in (path, *others)}


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """An ONNX file, a weights file or an engine folder as bytes."""

    name: str  # of the file or the folder
    files: dict[str, bytes]  # by their places beside it

    @property
    def sha256(self) -> str:
        """The hash of all names and contents."""
        return fingerprint({n: hashlib.sha256(c).hexdigest() for n, c in self.files.items()})

    def unpack(self, sha256: str) -> Path:
        """Write what is missing into this node's store; returns what to open.

        Args:
            sha256: that of the parcel when it was sent.

        Raises:
            MismatchError: the parcel is not what was sent.
        """
        if self.sha256 != sha256:
            raise MismatchError(
                f"{self.name} arrived with the SHA-256 {self.sha256}, sent was {sha256}",
                fix="give the same command again; if it stays, look at the nodes' memory and disks",
            )
        folder = default_store() / SENT / sha256[:16]
        for place, content in self.files.items():
            if not _holds(folder / place, content):
                with write_whole(folder / place) as temporary:
                    temporary.write_bytes(content)
        return folder / self.name


def parcel_of(path: Path) -> Parcel:
    """Read an engine's files."""
    files = {place: file.read_bytes() for place, file in files_of(path.absolute()).items()}
    return Parcel(name=path.absolute().name, files=files)


def check_version(wanted: str) -> None:
    """Refuse a run of another crowdrt, on a node that it has reached.

    Raises:
        MismatchError: names both versions.
    """
    if wanted != __version__:
        raise MismatchError(
            f"{socket.gethostname()} has crowdrt {__version__}, the run {wanted}",
            fix=f"install the same on every node: pip install 'crowdrt[cluster]=={wanted}'",
        )


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
