"""What Triton is to serve: ONNX files as they are, plans with what they need to run."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crowdrt.console import say
from crowdrt.contracts import GraphInfo, TensorSpec
from crowdrt.engines.ort import for_cpu, full_range_int8
from crowdrt.engines.signing import check_signature
from crowdrt.engines.store import KINDS, MANIFEST, content_sha256
from crowdrt.engines.trt.run import info_from, specs_from
from crowdrt.errors import CrowdRTError, EngineError, ExportError
from crowdrt.onnx_file import external_files, fed, graph_info, read_onnx, spec_of
from crowdrt.pipeline.serving.containers import containers_of

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".pkl", ".tar")
PLANS = (".plan", ".engine", ".trt")
BUILD_PLAN = "crowdrt build MODEL.onnx --engine tensorrt --shape 576x864"
FIRST_WITH_INT64 = 10  # earlier TensorRT gives int32 where a network says int64


@dataclass(frozen=True, kw_only=True)
class Served:
    """One network, ready to be written into a repository."""

    name: str  # of the file or of what the engine was built from, without .onnx
    backend: str  # onnxruntime, tensorrt
    content: bytes  # of model.onnx or model.plan
    inputs: tuple[TensorSpec, ...]  # as Triton sees them
    outputs: tuple[TensorSpec, ...]
    info: GraphInfo
    num_threads: int  # that an engine for a CPU was built for; 0: every core
    origin: Mapping[str, Any]  # what decided it
    facts: Mapping[str, Any]  # what whoever serves it must know
    max_batch: int | None = None  # that it takes; None: as many as fit into memory

    @property
    def file(self) -> str:
        """The name under which Triton's backend looks for it."""
        return "model.onnx" if self.backend == "onnxruntime" else "model.plan"

    @property
    def sha256(self) -> str:
        """Of the file, 64 hex digits."""
        return hashlib.sha256(self.content).hexdigest()


def read_served(path: Path, onnx: Sequence[Path]) -> Served:
    """Return what is to be served for one argument of the command line.

    Args:
        path: an ONNX file that crowdrt exported, or a folder of the engine store.
        onnx: ONNX files, or folders of them, among which that of a CPU engine is looked for.

    Raises:
        ExportError: the ONNX file cannot be used, or an engine's cannot be found.
        EngineError: the engine is damaged, not signed as $CROWDRT_VERIFY_KEY asks, or a plan
            without its manifest.
    """
    if path.is_dir():
        return from_engine(path, onnx)
    refuse_other_files(path)
    return from_onnx(path)


def refuse_other_files(path: Path) -> None:
    """Refuse what is known to be no ONNX file, with what would make one of it."""
    if path.suffix in WEIGHTS:
        raise ExportError(
            f"{path} holds PyTorch weights, and Triton is given graphs and plans",
            fix=f"export them first: crowdrt export NETWORK --weights {path} -o model.onnx",
        )
    if path.suffix in PLANS:
        beside = path.with_name(MANIFEST).is_file()
        raise EngineError(
            f"{path} is a TensorRT plan without what says its TensorRT, its GPU and its inputs",
            fix=f"give its folder: crowdrt triton {path.parent} -o repo/"
            if beside
            else f"build it with crowdrt, and give the folder that is printed: {BUILD_PLAN}",
        )


def from_onnx(path: Path, *, num_threads: int = 0) -> Served:
    """Return an ONNX file as it is; one whose weights lie beside it becomes one file.

    An INT8 file is rewritten as crowdrt's own engine rewrites it before ONNX Runtime optimises it,
    see `ort.for_cpu`: otherwise that runs convolutions in float, slower, and counts a little
    otherwise. Both forms run on every CPU.
    """
    model = read_onnx(path)
    info = graph_info(model, source=str(path))
    rewritten = for_cpu(path, model) if info.precision.startswith("int8") else path
    if isinstance(rewritten, bytes):
        say(f"{path.name}: served as crowdrt count runs it, rewritten for ONNX Runtime's kernels")
        content = rewritten
    else:
        content = model.SerializeToString() if external_files(path) else path.read_bytes()
    if full_range_int8(model):
        say(
            f"warning: {path.name} has 8-bit weights. crowdrt count keeps their sums exact on a "
            "CPU without VNNI; Triton cannot be told to: serve 7-bit weights there"
        )
    return Served(
        name=path.name.removesuffix(".onnx"),
        backend="onnxruntime",
        content=content,
        inputs=tuple(map(spec_of, fed(model))),
        outputs=tuple(map(spec_of, model.graph.output)),
        info=info,
        num_threads=num_threads,
        origin={"onnx_sha256": content_sha256(path), "source": path.name},
        facts={"rewritten_for_cpu": isinstance(rewritten, bytes)},
    )


def from_engine(folder: Path, onnx: Sequence[Path]) -> Served:
    """Return what is served for a folder of the store: a plan, or the ONNX file of a CPU engine."""
    with damaged(folder):
        manifest = (folder / MANIFEST).read_bytes()
        document = json.loads(manifest)
        identity = document["identity"]
        name = str(identity["engine"])
        on_gpu = KINDS[name].on_gpu
    if on_gpu:
        check_signature(folder, manifest)
        return from_plan(folder, document)
    with damaged(folder):
        wanted, source = str(identity["onnx_sha256"]), str(document["source"])
        num_threads = int(identity["options"]["num_threads"])
    found = portable(folder, wanted, source, onnx)
    say(f"{folder.name} is bound to this machine: Triton is given {found}, of which it was built")
    if name != "onnxruntime":
        say(f"it was built for {name}: Triton's ONNX Runtime may count otherwise, in INT8")
    return from_onnx(found, num_threads=num_threads)


@contextlib.contextmanager
def damaged(folder: Path) -> Iterator[None]:
    """Turn what a manifest lacks into an error that names the folder."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{folder} is no engine folder, or a damaged one: {error}",
            fix="give an ONNX file, or a folder that crowdrt build printed",
        ) from error


def portable(folder: Path, wanted: str, source: str, onnx: Sequence[Path]) -> Path:
    """Return the ONNX file of which an engine was built, found by its hash.

    Raises:
        ExportError: none of the files has that hash.
    """
    places = list(onnx) or [Path()]
    for place in places:
        for path in sorted(place.glob("*.onnx")) if place.is_dir() else [place]:
            with contextlib.suppress(CrowdRTError):  # it is looked through, not asked for
                if content_sha256(path) == wanted:
                    return path
    looked = ", ".join(str(place.absolute()) for place in places)
    raise ExportError(
        f"{folder} holds a graph that was optimised for this machine; {source}, of which it was "
        f"built (sha256 {wanted[:16]}), is not in {looked}",
        fix=f"say where it is: crowdrt triton {folder} --onnx FOLDER -o repo/",
    )


def from_plan(folder: Path, document: Mapping[str, Any]) -> Served:
    """Return a plan; it may have been built on another machine than this one.

    Raises:
        EngineError: it is damaged, or of a batch that Triton cannot keep to, or another tool
            exported the network.
    """
    content, info = intact_plan(folder, document)
    with damaged(folder):
        identity = document["identity"]
        version, batch = str(identity["engine_version"]), int(identity["options"]["batch"])
        older = int(version.partition(".")[0]) < FIRST_WITH_INT64
        inputs, outputs = specs_from(document["inputs"]), specs_from(document["outputs"])
        floats = document["build"]["float_pixels"]
        needs = {"tensorrt": version, **identity["machine"]}
        origin = {key: identity[key] for key in ("onnx_sha256", "options", "crowdrt")}
        source = str(document["source"])
    check_batch(folder, inputs, batch)
    pixels = {"uint8": "float32"}
    return Served(
        name=source.removesuffix(".onnx"),
        backend="tensorrt",
        content=content,
        inputs=tuple(retyped(each, pixels if each.name in floats else {}) for each in inputs),
        outputs=tuple(retyped(each, {"int64": "int32"} if older else {}) for each in outputs),
        info=info,
        num_threads=0,
        origin={**origin, "source": source},
        facts={"needs": needs, **containers_of(version)},
        max_batch=batch,
    )


def intact_plan(folder: Path, document: Mapping[str, Any]) -> tuple[bytes, GraphInfo]:
    """Return a plan, if it is what its manifest says, and what the network says of itself."""
    with damaged(folder):
        content = (folder / KINDS["tensorrt"].file).read_bytes()
        intact = document["sha256"] == hashlib.sha256(content).hexdigest()
        info = info_from(document.get("info"))
    if not intact:
        raise EngineError(f"{folder} was altered or cut short", fix=f"build it again: {BUILD_PLAN}")
    if info is None:
        raise EngineError(
            f"{folder} was built from a network of another tool: nothing says how images enter it",
            fix="export the network: crowdrt export NETWORK --weights F -o model.onnx",
        )
    return content, info


def check_batch(folder: Path, inputs: Sequence[TensorSpec], batch: int) -> None:
    """Refuse a plan whose batch axis is free while its profile allows one length alone."""
    if batch > 1 and any(isinstance(spec.shape[0], str) for spec in inputs):
        raise EngineError(
            f"{folder} takes any size, and {batch} images at a time, neither more nor fewer: "
            "Triton's batches are as large as it happens",
            fix=f"build it for one at a time: {BUILD_PLAN} --batch 1",
        )


def retyped(spec: TensorSpec, types: Mapping[str, str]) -> TensorSpec:
    """Return a tensor in the type that the plan has for it."""
    return replace(spec, dtype=types.get(spec.dtype, spec.dtype))
