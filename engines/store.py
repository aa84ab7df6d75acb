"""Built engines, kept by what they were made from and loaded only where they were built."""

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from crowdrt import __version__
from crowdrt.console import say
from crowdrt.contracts import Feeds
from crowdrt.engines.base import check_threads
from crowdrt.engines.machine import machine_identity
from crowdrt.engines.ort import OrtEngine, save_optimised
from crowdrt.errors import EngineError
from crowdrt.lazy import require
from crowdrt.manifest import fingerprint, sha256_file, write_folder_whole, write_json
from crowdrt.onnx_file import external_files, read_onnx

ENGINE = "engine.onnx"
MANIFEST = "engine.json"
FORMAT = 3  # of the folder and of what our own passes do to a graph; part of the key
REBUILD = "build it on this machine: crowdrt build MODEL.onnx"
PROBE_PX = 64
STALE_S = 3600.0  # a temporary folder this old belongs to a build that was killed


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A folder of the store, ready for `open_engine`."""

    path: Path
    key: str  # 16 hex digits
    reused: bool  # True when it was there already, undamaged
    seconds: float  # spent by this call


class EngineStore:
    """Built engines under one root, one folder per key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def build(self, onnx_path: Path, *, num_threads: int = 0) -> BuiltEngine:
        """Return the engine of `onnx_path` for this machine, built now or before.

        Args:
            onnx_path: the network.
            num_threads: how many threads the engine takes by itself; 0 is every core.

        Raises:
            ExportError: the ONNX file cannot be used.
            EngineError: ONNX Runtime refuses it.
            CrowdRTError: the store cannot be written.
        """
        start = time.perf_counter()
        check_threads(num_threads)
        identity = engine_identity(onnx_path, num_threads)
        key = fingerprint(identity)[:16]
        path = self.root / f"{key}-onnxruntime"
        reused = _is_sound(path)
        if not reused:
            _sweep(self.root)
            with write_folder_whole(path) as folder:
                folder.chmod(0o755)  # temporary folders are private, a store may be shared
                _fill(folder, onnx_path, identity)
        seconds = time.perf_counter() - start
        return BuiltEngine(path=path, key=key, reused=reused, seconds=seconds)


def engine_identity(onnx_path: Path, num_threads: int) -> dict[str, Any]:
    """Return everything that decides a built engine; its fingerprint is the key."""
    return {
        "onnx_sha256": _content_sha256(onnx_path),
        "engine": "onnxruntime",
        "engine_version": _runtime_version(),
        "machine": machine_identity(),
        "options": {"num_threads": num_threads},
        "crowdrt": __version__,
        "format": FORMAT,
    }


def _content_sha256(onnx_path: Path) -> str:
    others = external_files(onnx_path)
    digests = [sha256_file(file) for file in (onnx_path, *others)]
    return fingerprint({"files": digests}) if others else digests[0]


def _runtime_version() -> str:
    # asked of the package's metadata, since importing it takes longer than a hit should
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("onnxruntime")
    return str(require("onnxruntime", extra="cpu").__version__)


def _fill(folder: Path, onnx_path: Path, identity: dict[str, Any]) -> None:
    out = folder / ENGINE
    num_threads = identity["options"]["num_threads"]
    engine = OrtEngine(onnx_path, num_threads=num_threads)
    objection = _save(engine, onnx_path, out, num_threads)
    if objection is not None:
        say(f"{onnx_path.name}: stored as it is, to be optimised at each start: {objection}")
        out.write_bytes(read_onnx(onnx_path).SerializeToString())
    document = {
        "identity": identity,
        "sha256": sha256_file(out),
        "optimised": objection is None,
        "objection": objection,
        "config": engine.config,
        "info": None if engine.info is None else asdict(engine.info),
        "source": onnx_path.name,
    }
    write_json(folder / MANIFEST, document)


def _save(engine: OrtEngine, onnx_path: Path, out: Path, num_threads: int) -> str | None:
    """Write the optimised graph to `out`; say what is wrong with it, if anything."""
    try:
        save_optimised(onnx_path, out, num_threads=num_threads, config=engine.config)
        saved = OrtEngine(
            out.read_bytes(), num_threads=num_threads, optimise=False, config=engine.config
        )
        feeds = _probe(engine)
        before, after = engine.run(feeds), saved.run(feeds)
    except (EngineError, OSError) as error:
        return f"its optimised form cannot be saved and loaded: {error}"
    if all(np.array_equal(before[name], after[name]) for name in before):
        return None
    return "its optimised form answers differently once saved"


def _probe(engine: OrtEngine) -> Feeds:
    """Return noise in the shapes that the engine takes; free axes become small."""
    rng = np.random.default_rng(0)
    stride = 1 if engine.info is None else engine.info.preprocessing.stride
    side = -(-PROBE_PX // stride) * stride
    feeds = {}
    for spec in engine.inputs:
        free = (1, *[side] * (len(spec.shape) - 1))
        shape = [axis if isinstance(axis, int) else free[i] for i, axis in enumerate(spec.shape)]
        feeds[spec.name] = rng.integers(0, 256, shape).astype(spec.dtype)
    return feeds


def _is_sound(path: Path) -> bool:
    """Say whether `path` holds an engine; a damaged one is moved out of the way."""
    if not path.exists():
        return False
    try:
        _read_built(path)
    except EngineError as error:
        say(f"{error.problem}; building it again")
        aside = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):  # another process was quicker
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        return False
    return True


def _sweep(root: Path) -> None:
    """Remove what builds that were killed left behind."""
    for folder in root.glob(".*-onnxruntime.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


def load_built(path: Path, *, num_threads: int = 0) -> OrtEngine:
    """Load an engine of the store, if it was built here and nobody touched it since.

    Args:
        path: the folder.
        num_threads: 0 takes what the engine was built for.

    Raises:
        EngineError: it is damaged, no engine, or of another machine or runtime version.
    """
    built = _read_built(path)
    return OrtEngine(
        built.content,
        num_threads=num_threads or built.num_threads,
        optimise=not built.optimised,
        config=built.config,
    )


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A folder of the store as read and checked."""

    content: bytes
    num_threads: int
    optimised: bool
    config: dict[str, str]


def _read_built(path: Path) -> _Built:
    try:
        document = json.loads((path / MANIFEST).read_text())
        identity = document["identity"]
        there = {"onnxruntime": identity["engine_version"], **identity["machine"]}
        digest, layout = document["sha256"], identity["format"]
        built = _Built(
            content=(path / ENGINE).read_bytes(),
            num_threads=int(identity["options"]["num_threads"]),
            optimised=bool(document["optimised"]),
            config=dict(document["config"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path} is no engine folder, or a damaged one: {error}", fix=REBUILD
        ) from error
    here = {"onnxruntime": _runtime_version(), **machine_identity()}
    if foreign := _differences(there, here):
        raise EngineError(f"{path} was built elsewhere: {foreign}", fix=REBUILD)
    # hashed is what was read and will be loaded, not the file a second time
    if hashlib.sha256(built.content).hexdigest() != digest or layout != FORMAT:
        raise EngineError(f"{path / ENGINE} was altered or cut short", fix=REBUILD)
    return built


def _differences(built: dict[str, Any], here: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {_shown(built.get(name))} there, {_shown(value)} here"
        for name, value in here.items()
        if built.get(name) != value
    )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
