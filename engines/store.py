"""Built engines, kept by what they were made from and loaded only where they were built."""

import contextlib
import hashlib
import importlib.util
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.console import say
from crowdrt.engines.base import Engine, check_threads
from crowdrt.engines.machine import machine_identity
from crowdrt.engines.ort import optimised_opener, write_optimised
from crowdrt.engines.ov import compiled_opener, write_compiled
from crowdrt.engines.signing import (
    VERIFY_KEY,
    check_key,
    check_signature,
    check_signed_with,
    sign,
    sign_fix,
    verify_key,
)
from crowdrt.engines.trt.building.build import this_gpu, write_plan
from crowdrt.engines.trt.building.options import PlanOptions
from crowdrt.engines.trt.run import plan_opener
from crowdrt.errors import EngineError, MissingDependencyError
from crowdrt.lazy import require
from crowdrt.manifest import fingerprint, sha256_file, sweep, write_folder_whole, write_json
from crowdrt.onnx_file import external_files

MANIFEST = "engine.json"
# what reading a manifest meets that is none, or is nested without end
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
STALE_S = 3600.0  # a temporary folder this old belongs to a build that was killed
STALE_GPU_S = 24 * 3600.0  # the same for TensorRT, which may try kernels for hours


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """How the engines of one runtime are kept."""

    extra: str  # of crowdrt, that installs the runtime
    file: str  # beside the manifest
    format: int  # of the file and of what our own passes do to a graph; part of the key
    write: Callable[[Path, Path, Any], dict[str, Any]]  # ONNX file, engine file, threads or options
    opener: Callable[[bytes, Mapping[str, Any]], Callable[..., Engine]]  # file, manifest
    on_gpu: bool = False  # takes `PlanOptions`, and is code, so that it may have to be signed

    def machine(self) -> dict[str, object]:
        """Return what must be the same for an engine to be loaded again."""
        return this_gpu() if self.on_gpu else machine_identity()


# By the name of the runtime's package, which is that of its distribution.
KINDS = {
    "onnxruntime": EngineKind(
        extra="cpu",
        file="engine.onnx",
        format=4,
        write=write_optimised,
        opener=optimised_opener,
    ),
    "openvino": EngineKind(
        extra="openvino",
        file="engine.blob",
        format=1,
        write=write_compiled,
        opener=compiled_opener,
    ),
    "tensorrt": EngineKind(
        extra="tensorrt",
        file="engine.plan",
        format=1,
        write=write_plan,
        opener=plan_opener,
        on_gpu=True,
    ),
}
DEFAULT_ENGINE = "onnxruntime"
TIMINGS = "timings"  # a folder of the store, for TensorRT's timing caches


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

    def build(
        self,
        onnx_path: Path,
        *,
        engine: str = DEFAULT_ENGINE,
        num_threads: int = 0,
        plan: PlanOptions | None = None,
        sign_key: Path | None = None,
    ) -> BuiltEngine:
        """Return the engine of `onnx_path` for this machine, built now or before.

        Args:
            onnx_path: the network.
            engine: onnxruntime, openvino or tensorrt.
            num_threads: how many threads the engine takes by itself; 0 is every core.
            plan: how TensorRT builds; no other engine takes it.
            sign_key: an Ed25519 private key (PEM) to sign a TensorRT engine with.

        Raises:
            ExportError: the ONNX file cannot be used.
            EngineError: the engine is unknown, or refuses the network.
            MissingDependencyError: the engine is not installed.
            CrowdRTError: the store cannot be written.
        """
        start = time.perf_counter()
        check_threads(num_threads)
        check_kind(engine)
        check_options(engine, plan, sign_key)
        if KINDS[engine].on_gpu:
            plan = replace(plan or PlanOptions(), timings=self.root / TIMINGS)
        options = num_threads if plan is None else plan
        identity = engine_identity(onnx_path, engine, options)
        key = key_of(identity)
        path = self.root / folder_name(key, engine)
        if KINDS[engine].on_gpu and sign_key is None:
            check_loadable(path)
        reused = _is_sound(path, sign_key)
        if not reused:
            stale_s = STALE_GPU_S if KINDS[engine].on_gpu else STALE_S
            sweep(self.root, f".*-{engine}.tmp-*", stale_s)
            _build(path, onnx_path, identity, options, sign_key)
        seconds = time.perf_counter() - start
        return BuiltEngine(path=path, key=key, reused=reused, seconds=seconds)


def installed_engines() -> list[str]:
    """Return the CPU runtimes that are installed; the default one even if it is not."""
    names = [name for name, kind in KINDS.items() if not kind.on_gpu]
    return [name for name in names if name == DEFAULT_ENGINE or importlib.util.find_spec(name)]


def check_kind(engine: str) -> None:
    """Refuse an engine that is not built here."""
    if engine not in KINDS:
        raise EngineError(f"engine {engine!r} is unknown", fix=f"use {' or '.join(KINDS)}")


def check_options(engine: str, plan: PlanOptions | None, sign_key: Path | None) -> None:
    """Refuse what only TensorRT engines take, and a key that signs nothing."""
    on_gpu = [name for name, kind in KINDS.items() if kind.on_gpu]
    if engine not in on_gpu and (plan is not None or sign_key is not None):
        what = "shapes, workspace, level and timings" if sign_key is None else "a key to sign with"
        raise EngineError(
            f"{engine} takes no options such as {what}",
            fix=f"leave them out, or use --engine {on_gpu[0]}",
        )
    if sign_key is not None:
        check_key(sign_key)


def engine_identity(onnx_path: Path, engine: str, options: int | PlanOptions) -> dict[str, Any]:
    """Return everything that decides a built engine; `key_of` it is the key."""
    return {
        "onnx_sha256": content_sha256(onnx_path),
        "engine": engine,
        "engine_version": runtime_version(engine),
        "machine": KINDS[engine].machine(),
        "options": {"num_threads": options} if isinstance(options, int) else options.identity(),
        "crowdrt": __version__,
        "format": KINDS[engine].format,
    }


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the key of an engine's identity, 16 hex digits."""
    return fingerprint(identity)[:16]


def folder_name(key: str, engine: str) -> str:
    """Return the name of an engine's folder in a store."""
    return f"{key}-{engine}"


def content_sha256(onnx_path: Path) -> str:
    """Return the SHA-256 of an ONNX file, its external data included."""
    others = external_files(onnx_path)
    digests = [sha256_file(file) for file in (onnx_path, *others)]
    return fingerprint({"files": digests}) if others else digests[0]


def runtime_version(engine: str) -> str:
    """Return the version of an installed runtime, whatever its distribution is called."""
    # asked of the package's metadata, since importing it takes longer than a hit should
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(engine)
    return str(require(engine, extra=KINDS[engine].extra).__version__)


def _build(
    path: Path,
    onnx_path: Path,
    identity: dict[str, Any],
    options: int | PlanOptions,
    sign_key: Path | None,
) -> None:
    """Write the folder of an engine, whole or not at all."""
    with write_folder_whole(path) as folder:
        folder.chmod(0o755)  # temporary folders are private, a store may be shared
        _fill(folder, onnx_path, identity, options)
        if sign_key is not None:
            sign(folder, (folder / MANIFEST).read_bytes(), sign_key)
    if sign_key is not None:  # another process may have been first, without the key
        check_signed_with(path, (path / MANIFEST).read_bytes(), sign_key)


def _fill(
    folder: Path, onnx_path: Path, identity: dict[str, Any], options: int | PlanOptions
) -> None:
    kind = KINDS[identity["engine"]]
    out = folder / kind.file
    facts = kind.write(onnx_path, out, options)
    document = {
        "identity": identity,
        "sha256": sha256_file(out),
        **facts,
        "source": onnx_path.name,
    }
    write_json(folder / MANIFEST, document)


def check_loadable(path: Path) -> None:
    """Refuse to build what would not load, because nobody signs it.

    Raises:
        EngineError: $CROWDRT_VERIFY_KEY asks for signed engines, and there is none at `path`.
    """
    if verify_key() is None:
        return
    try:
        read_built(path)
    except EngineError as error:
        raise EngineError(
            f"${VERIFY_KEY} asks for signed engines: {error.problem}", fix=sign_fix()
        ) from error


def _is_sound(path: Path, sign_key: Path | None) -> bool:
    """Say whether `path` holds an engine; a damaged one is moved out of the way.

    One that has to be signed is sound if that key has signed it: what lies there may be anybody's,
    so nothing is signed but what was built under the same call.
    """
    if not path.exists():
        return False
    try:
        if not path.name.startswith(read_built(path).key):
            raise EngineError(f"{path} holds another engine", fix=rebuild(path))
        if sign_key is not None:
            check_signed_with(path, (path / MANIFEST).read_bytes(), sign_key)
    except EngineError as error:
        say(f"{error.problem}; building it again")
        aside = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):  # another process was quicker
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        return False
    return True


def load_built(path: Path, *, num_threads: int = 0) -> Engine:
    """Load an engine of the store, if it was built here and nobody touched it since.

    Args:
        path: the folder.
        num_threads: 0 takes what the engine was built for.

    Raises:
        EngineError: it is damaged, no engine, or of another machine or runtime version.
    """
    stored = read_built(path)
    return stored.open(num_threads=num_threads or stored.num_threads)


@dataclass(frozen=True, kw_only=True)
class StoredEngine:
    """A folder of the store as read and checked."""

    engine: str  # onnxruntime, openvino
    engine_version: str
    key: str  # of all that decided it
    sha256: str  # of the engine file
    num_threads: int  # that it was built for; 0 is every core
    open: Callable[..., Engine]  # takes num_threads


def read_built(path: Path) -> StoredEngine:
    """Return what a folder of the store holds.

    Raises:
        EngineError: it is damaged, no engine, or of another machine or runtime version; or it is
            code, and not signed as $CROWDRT_VERIFY_KEY asks.
    """
    try:
        manifest = (path / MANIFEST).read_bytes()
        document = json.loads(manifest)
        identity = document["identity"]
        name, version = identity["engine"], identity["engine_version"]
        there = {name: version, **identity["machine"]}
        digest, layout, kind = document["sha256"], identity["format"], KINDS[name]
        content = (path / kind.file).read_bytes()
        stored = StoredEngine(
            engine=name,
            engine_version=version,
            key=key_of(identity),
            sha256=hashlib.sha256(content).hexdigest(),
            num_threads=int(identity["options"].get("num_threads", 0)),
            open=kind.opener(content, document),
        )
    except (*DAMAGED, OSError) as error:
        raise EngineError(
            f"{path} is no engine folder, or a damaged one: {error}", fix=rebuild(path)
        ) from error
    if kind.on_gpu:
        check_signature(path, manifest)
    here = _here(name, path)
    if foreign := _differences(there, here):
        raise EngineError(f"{path} was built elsewhere: {foreign}", fix=rebuild(path))
    # hashed is what was read and will be loaded, not the file a second time
    if stored.sha256 != digest or layout != kind.format:
        raise EngineError(f"{path / kind.file} was altered or cut short", fix=rebuild(path))
    return stored


def _here(engine: str, path: Path) -> dict[str, Any]:
    try:
        return {engine: runtime_version(engine), **KINDS[engine].machine()}
    except MissingDependencyError as error:
        raise EngineError(f"{path} cannot run here: {error.problem}", fix=error.fix) from error


def rebuild(path: Path) -> str:
    """Return how to build the engine of a folder anew, as far as its name tells."""
    engine = path.name.rpartition("-")[2]
    option = f" --engine {engine}" if engine in KINDS else ""
    return f"build it on this machine: crowdrt build MODEL.onnx{option}"


def _differences(built: dict[str, Any], here: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {_shown(built.get(name))} there, {_shown(value)} here"
        for name, value in here.items()
        if built.get(name) != value
    )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
