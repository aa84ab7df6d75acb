"""What a network's file or a built engine is: read, never run, and without PyTorch."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from onnx import helper
from rich.table import Table
from rich.text import Text

from crowdrt.console import show_table
from crowdrt.contracts import Size, TensorSpec
from crowdrt.engines.store import KINDS, MANIFEST, read_built
from crowdrt.engines.trt.graphs.parser_support import tensorrt_support
from crowdrt.errors import EngineError, ExportError
from crowdrt.manifest import read_manifest, sha256_file
from crowdrt.onnx_file import external_files, read_onnx, stored_info
from crowdrt.onnx_graph import (
    count_nodes,
    every_node,
    graph_size,
    image_size,
    int8_convs,
    layer_macs,
    precision_of,
    stored_names,
    unneeded,
)
from crowdrt.pipeline.layers import layers_of, show_layers
from crowdrt.pipeline.stripped import Stripped

COST_SIZE = (576, 864)  # where MACs are counted for a graph of any size: SKT's first
HASH = re.compile("[0-9a-f]{64}")


def inspect_path(path: Path, size: Size | None = None) -> dict[str, Any]:
    """Return what there is to know of an ONNX file or a folder of the engine store.

    Args:
        path: `model.onnx`, of crowdrt or another tool, or a built engine.
        size: (height, width) in pixels at which MACs are counted, where the file leaves it free.

    Raises:
        ExportError: the file cannot be used, or takes another size only.
        EngineError: the folder holds no engine.
    """
    return inspect_engine(path) if path.is_dir() else inspect_onnx(path, size)


def inspect_onnx(path: Path, size: Size | None) -> dict[str, Any]:
    """Return what an ONNX file is, what its layers cost, and how it was made."""
    model = read_onnx(path)
    own = image_size(model.graph)
    if own is not None and size not in (None, own):
        height, width = own
        raise ExportError(
            f"{path} takes {height}x{width} px (height x width) and nothing else",
            fix=f"leave out --size, or use --size {height}x{width}",
        )
    digest = sha256_file(path)
    info = stored_info(model, source=str(path))
    files = [path, *external_files(path)]
    return {
        "path": str(path),
        "kind": "onnx",
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": digest,
        "info": None if info is None else info.as_dict(),
        **graph_facts(model),
        "precision": precision_of(model.graph) if info is None else info.precision,
        **cost(model, own or size or COST_SIZE),
        "unneeded": unneeded(model.graph),
        "tensorrt": tensorrt_support(model),
        "manifest": manifest_facts(path, digest),
    }


def graph_facts(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what a graph takes and answers, and of which nodes it is made."""
    stored = set(stored_names(model.graph))
    used = {node.domain for node in every_node(model.graph)} | {""}
    return {
        "inputs": [spec(value) for value in model.graph.input if value.name not in stored],
        "outputs": [spec(value) for value in model.graph.output],
        "opset": {
            entry.domain or "ai.onnx": entry.version
            for entry in model.opset_import
            if entry.domain in used
        },
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "operators": count_nodes(model.graph),
    }


def spec(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Return name, shape and dtype of a graph's input or output; a free axis is a str."""
    tensor = value.type.tensor_type
    shape = tuple(
        axis.dim_value or axis.dim_param or f"axis{i}" for i, axis in enumerate(tensor.shape.dim)
    )
    known = tensor.elem_type != onnx.TensorProto.UNDEFINED
    dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if known else "no tensor"
    return asdict(TensorSpec(name=value.name, shape=shape, dtype=dtype))


def cost(model: onnx.ModelProto, size: Size) -> dict[str, Any]:
    """Return nodes, parameters and MACs; MACs are None while a layer's shape is not known."""
    macs = layer_macs(model, size)
    return {
        **asdict(graph_size(model, size)),
        "macs_at": list(size),
        **int8_shares(model, macs),
        "layers_without_shape": [name for name, count in macs.items() if count is None],
    }


def int8_shares(model: onnx.ModelProto, macs: Mapping[str, int | None]) -> dict[str, float | None]:
    """Return the shares of the MACs in INT8: in the file, and of those on ONNX Runtime's CPU.

    A layer whose shape is not known is left out. None: nothing is in INT8.
    """
    convs = int8_convs(model.graph)
    known = {name: count for name, count in macs.items() if count}
    if not convs or not known:
        return {"int8_macs": None, "int8_macs_cpu": None}
    total = sum(known.values())
    return {
        "int8_macs": sum(known.get(name, 0) for name in convs) / total,
        "int8_macs_cpu": sum(known.get(name, 0) for name, fused in convs.items() if fused) / total,
    }


def manifest_facts(path: Path, digest: str) -> dict[str, Any] | None:
    """Return what the manifest beside a file says, and whether it speaks of this very file."""
    document = read_manifest(path)
    if document is None:
        return None
    kept = {key: document.get(key) for key in ("made_from", "facts", "crowdrt", "versions")}
    return {"intact": document.get("sha256") == digest, **kept}


def inspect_engine(path: Path) -> dict[str, Any]:
    """Return what a folder of the store says of itself, and whether it runs on this machine."""
    try:
        document = json.loads((path / MANIFEST).read_text())
        identity = dict(document["identity"])
        file = path / KINDS[identity["engine"]].file
        facts = graph_facts(onnx.load(file)) if file.suffix == ".onnx" else {}
        size = file.stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path} is no engine folder, or a damaged one: {error}",
            fix="give an ONNX file, or a folder that crowdrt build printed",
        ) from error
    try:
        read_built(path)
        reason = None
    except EngineError as error:
        reason = error.problem
    known = {"identity", "sha256", "source", "info"}
    return {
        "path": str(path),
        "kind": "engine",
        "bytes": size,
        "sha256": document.get("sha256"),
        "info": document.get("info"),
        **facts,
        **layers_of(path),
        "runs_here": reason is None,
        "why_not": reason,
        "source": document.get("source"),
        "identity": identity,
        "build": {key: value for key, value in document.items() if key not in known},
    }


def show_findings(findings: Sequence[Mapping[str, Any]]) -> None:
    """Print the findings for people."""
    for found in findings:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in lines_of(found):
            table.add_row(Text(name), Text(value))
        show_table(table)
        if found.get("layers"):
            show_layers(found)


def lines_of(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is shown of a file or an engine: a heading and its text."""
    yield "path", found["path"]
    yield "size", f"{found['bytes']:,} bytes, sha256 {str(found['sha256'])[:16]}"
    if info := found.get("info"):
        yield "network", f"{info['network']} at width {info['width']}, {info['precision']}"
    elif "precision" in found:
        yield "network", f"of another tool ({found['producer'] or 'unnamed'}), {found['precision']}"
    for key in ("inputs", "outputs"):
        for value in found.get(key, ()):
            axes = ", ".join(map(str, value["shape"]))
            yield key[:-1], f"{value['name']}: {value['dtype']} ({axes})"
    if "opset" in found:
        yield "opset", ", ".join(f"{domain} {number}" for domain, number in found["opset"].items())
        kinds = ", ".join(f"{kind} {count}" for kind, count in found["operators"].items())
        yield "nodes", f"{sum(found['operators'].values())}: {kinds}"
    yield from (file_lines if found["kind"] == "onnx" else engine_lines)(found)


def file_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is shown of an ONNX file alone."""
    height, width = found["macs_at"]
    unknown = found["layers_without_shape"]
    macs = f"unknown: no shape of {', '.join(unknown[:3])}"
    if found["macs"] is not None:
        macs = f"{found['macs'] / 1e9:.2f} G at {height}x{width}"
        if (share := found["int8_macs"]) is not None:
            macs += f", {share:.1%} in INT8, on ONNX Runtime's CPU {found['int8_macs_cpu']:.1%}"
    yield "parameters", f"{found['params']:,}"
    yield "MACs", macs
    idle = [name for names in found["unneeded"].values() for name in names]
    every = "nothing: every node, stored tensor and input serves an output"
    yield "idle", f"no output needs {', '.join(idle)}" if idle else every
    for generation, reasons in found["tensorrt"].items():
        yield f"TensorRT {generation}", parser_says(reasons)
    manifest = found["manifest"]
    if manifest is None:
        yield "made from", "unknown: there is no manifest beside it"
        return
    if not manifest["intact"]:
        yield "made from", "unknown: the file is not the one of which its manifest speaks"
        return
    yield "made from", ", ".join(scalars(source_of(manifest["made_from"])))
    if (record := Stripped.of(manifest["facts"])) is not None:
        yield from (("stripped", line) for line in record.lines())


def parser_says(reasons: Sequence[str]) -> str:
    """Return in one line what a TensorRT parser does not take of a network."""
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return f"no: {'; '.join(reasons[:3])}{more}" if reasons else "its parser takes it"


def source_of(made_from: Any) -> Any:
    """Return what decided a file: for an export, which network with which weights."""
    weights = made_from.get("weights") if isinstance(made_from, Mapping) else None
    return weights if isinstance(weights, Mapping) else made_from


def engine_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is shown of a built engine alone."""
    identity = found["identity"]
    yield "engine", f"{identity['engine']} {identity.get('engine_version')}"
    yield "built from", f"{found['source']}, sha256 {str(identity.get('onnx_sha256'))[:16]}"
    yield "options", ", ".join(scalars(identity.get("options")))
    machine = identity.get("machine", {})
    if "gpu" in machine:
        yield "built for", ", ".join(f"{name} {value}" for name, value in machine.items())
        yield "route", str(found["build"].get("build", {}).get("route"))
    yield "runs here", "yes" if found["runs_here"] else f"no: {found['why_not']}"
    if build := ", ".join(scalars(found["build"])):
        yield "build", build


def scalars(document: Any) -> Iterator[str]:
    """Yield "name value" for the numbers and texts of a mapping, hashes shortened."""
    for name, value in document.items() if isinstance(document, Mapping) else ():
        texts = value if isinstance(value, list) else [value]
        if texts and all(isinstance(text, str | int | float) for text in texts):
            short = [text[:16] if HASH.fullmatch(str(text)) else str(text) for text in texts]
            yield f"{name} {' '.join(short)}"
