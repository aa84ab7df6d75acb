"""The store that a fleet shares: engine folders, as one machine's own store has them.

An engine lies at STORE/KEY-ENGINE. Its manifest is written last and says what the other files
hash to, so one that is there and agrees with them means that the engine is whole. A store is a
folder or a URL; object stores write a file whole or not at all.
"""

import contextlib
import hashlib
import json
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from crowdrt.console import say
from crowdrt.data.images import cannot_open
from crowdrt.engines.signing import SIGNATURE, check_signature_of, signature_of
from crowdrt.engines.store import DAMAGED, KINDS, MANIFEST, folder_name, key_of
from crowdrt.engines.trt.building.build import INSPECTOR
from crowdrt.errors import CrowdRTError, EngineError
from crowdrt.lazy import require
from crowdrt.manifest import cannot_write, write_whole
from crowdrt.pipeline.asked import expanded
from crowdrt.pipeline.scale.stores import EXTRA, is_url, opening_store, read_at_most

Files = dict[str, bytes]  # of an engine's folder, by name
MAX_BYTES = 4 << 30  # of an engine's file; that of a network of this project has below 1 GB
MAX_TEXT_BYTES = 16 << 20  # of a manifest or a signature, which have some KB


class Place(Protocol):
    """Where files are kept by name."""

    def where(self, name: str) -> str:
        """Return what people call a file there."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None where there is none.

        Raises:
            CrowdRTError: it cannot be read, is no file, or too long for its name.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, in the place of the one that is there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file that is there."""
        ...


@dataclass(frozen=True)
class Folder:
    """A place on disk."""

    root: Path

    def where(self, name: str) -> str:
        """See `Place`."""
        return str(self.root / name)

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        path = self.root / name
        try:
            there = path.stat()
            if not stat.S_ISREG(there.st_mode):  # a pipe would be waited for, for ever
                raise EngineError(f"{path} is no ordinary file", fix=f"remove it: rm -r '{path}'")
            check_length(there.st_size, name, str(path))
            with path.open("rb") as file:
                return file.read(there.st_size)  # no more: files of the kernel say 0, and may block
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise cannot_open(path, error) from error

    def write(self, name: str, content: bytes) -> None:
        """See `Place`."""
        with write_whole(self.root / name) as temporary:
            temporary.write_bytes(content)

    def remove(self, name: str) -> None:
        """See `Place`."""
        try:
            (self.root / name).unlink()
        except OSError as error:
            raise cannot_write(self.root / name, error) from error


@dataclass(frozen=True)
class Remote:
    """A place behind a URL: whatever fsspec writes to."""

    url: str

    def where(self, name: str) -> str:
        """See `Place`."""
        return f"{self.url.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        with opening_store(self.where(name)) as (store, place):
            try:
                with store.open(place, "rb") as file:
                    content = read_at_most(file, max_bytes(name) + 1)
            except FileNotFoundError:
                return None
        check_length(len(content), name, self.where(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        """See `Place`."""
        with opening_store(self.where(name), to_be="written") as (store, place):
            try:
                store.pipe_file(place, content)
            except FileNotFoundError:  # it has folders, or there is no such bucket
                if "/" not in (folder := place.rpartition("/")[0]):
                    raise  # a bucket, which may be misspelt: none is made
                store.mkdir(folder, create_parents=False)
                store.pipe_file(place, content)

    def remove(self, name: str) -> None:
        """See `Place`."""
        with opening_store(self.where(name), to_be="written") as (store, place):
            store.rm_file(place)


def max_bytes(name: str) -> int:
    """Return how long a file may be, by its place in the store."""
    return MAX_TEXT_BYTES if name.endswith((MANIFEST, SIGNATURE)) else MAX_BYTES


def check_length(num_bytes: int, name: str, where: str) -> None:
    """Refuse a file that is too long for what its name says.

    Raises:
        EngineError: it is.
    """
    if num_bytes > max_bytes(name):
        raise EngineError(
            f"{where} has more than {max_bytes(name):,} bytes, too many for what it should be",
            fix="remove it, then give the same command again",
        )


def place_of(store: str) -> Place:
    """Return the place that a folder's path or a URL names.

    Raises:
        MissingDependencyError: fsspec needs one library more for this kind of URL.
        RecipeError: the path begins with somebody's home, who has none here.
    """
    if not is_url(store):
        return Folder(expanded(store))
    local = require("fsspec.implementations.local", extra=EXTRA).LocalFileSystem
    with opening_store(store) as (there, root):
        return Folder(Path(root)) if isinstance(there, local) else Remote(store)


def check_writable(place: Place) -> None:
    """Refuse a store that takes nothing, before anything is built for it.

    Raises:
        CrowdRTError: says why.
    """
    name = f".{uuid.uuid4().hex}"
    try:
        place.write(name, b"may be removed")
    except CrowdRTError as error:
        problem = f"the store takes nothing: {error.problem}"
        raise type(error)(problem, fix=error.fix) from error
    with contextlib.suppress(CrowdRTError):  # whoever may write need not be allowed to remove
        place.remove(name)


def names_of(engine: str) -> tuple[str, ...]:
    """Return which files an engine's folder may have, in the order in which they are written."""
    return (KINDS[engine].file, INSPECTOR, SIGNATURE, MANIFEST)


def known(files: Files, engine: str) -> Files:
    """Return the files that are of an engine: a node may send any, by names such as ../x."""
    return {name: files[name] for name in names_of(engine) if name in files}


def read_finished(place: Place, key: str, engine: str, sign_key: Path | None) -> Files | None:
    """Return the files of an engine that is there; None where it is not, or not whole.

    Args:
        place: the store.
        key: of the engine's identity.
        engine: onnxruntime, openvino or tensorrt.
        sign_key: that must have signed it; None asks for no signature.
    """
    folder = folder_name(key, engine)
    if (manifest := place.read(f"{folder}/{MANIFEST}")) is None:
        return None
    others = [name for name in names_of(engine) if name != MANIFEST]
    found = {MANIFEST: manifest, **{name: place.read(f"{folder}/{name}") for name in others}}
    files = {name: content for name, content in found.items() if content}  # an empty one is none
    try:
        check_engine(files, key, engine)
        if sign_key is not None:
            check_signature_of(
                files.get(SIGNATURE, b""), files[MANIFEST], sign_key, source="the manifest"
            )
    except EngineError as error:
        say(f"{place.where(folder)}: {error.problem}; building it again")
        return None
    return files


def check_engine(files: Files, key: str, engine: str) -> None:
    """Refuse files that are not the engine that their manifest describes, all of it.

    Raises:
        EngineError: says what is wrong.
    """
    fix = "give the same command again; if it stays, look at the nodes' memory and disks"
    try:
        document = json.loads(files[MANIFEST])
        said = key_of(document["identity"])
        hashes = {KINDS[engine].file: document["sha256"]}
        if "inspector_sha256" in document:
            hashes[INSPECTOR] = document["inspector_sha256"]
    except DAMAGED as error:
        raise EngineError(f"its manifest is damaged: {error!r}", fix=fix) from error
    if said != key:
        raise EngineError(f"its manifest is that of {said}", fix=fix)
    for name, sha256 in hashes.items():
        if name not in files or hashlib.sha256(files[name]).hexdigest() != sha256:
            raise EngineError(f"{name} is missing, was altered or cut short", fix=fix)


def publish(place: Place, key: str, engine: str, files: Files) -> None:
    """Write an engine into the store, its manifest last, and read it back.

    Raises:
        CrowdRTError: it cannot be written, or is not what was written.
    """
    folder = folder_name(key, engine)
    files = known(files, engine)
    stale = [MANIFEST, *(name for name in names_of(engine) if name not in files)]
    for name in stale:  # of a damaged one, or signed with another key
        if place.read(f"{folder}/{name}"):
            place.write(f"{folder}/{name}", b"")  # whoever may write need not be allowed to remove
    for name, content in files.items():
        place.write(f"{folder}/{name}", content)
    if any(place.read(f"{folder}/{name}") != content for name, content in files.items()):
        raise EngineError(
            f"{place.where(folder)} is not what was written there: another run writes it, too",
            fix="wait for the other one, then give the same command again",
        )


def signed(files: Files, key: Path) -> Files:
    """Return the files with a signature of their manifest beside it."""
    return {**files, SIGNATURE: signature_of(files[MANIFEST], key)}
