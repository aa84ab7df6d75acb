"""PyTorch -> one ONNX file that says everything about itself."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from crowdrt import __version__
from crowdrt.console import say
from crowdrt.contracts import MIN_SIDE_PX, Artifact, Feeds, GraphInfo, Size, UInt8Image
from crowdrt.errors import ExportError
from crowdrt.export.deploy import ShippedNetwork
from crowdrt.export.parity import probe_images, probe_sizes, prove_parity
from crowdrt.export.quiet import quiet
from crowdrt.export.simplify import simplify
from crowdrt.export.strip import prove_stripped
from crowdrt.int8 import TrainedInt8
from crowdrt.manifest import reusable, write_manifest, write_whole
from crowdrt.models.network import Network
from crowdrt.onnx_file import set_info
from crowdrt.onnx_graph import name_of

OPSETS = range(13, 21)  # 13 has per-channel Q/DQ; PyTorch's tracer ends at 20

FREE_AXES = {
    "image": {0: "batch", 2: "height", 3: "width"},
    "density": {0: "batch", 2: "density_height", 3: "density_width"},
}  # of any other output: the batch
EXAMPLE_SIZE = (96, 160)  # a multiple of every stride; the tracer only walks through it


def export_onnx(
    model: Network,
    info: GraphInfo,
    path: Path,
    *,
    size: Size | None,
    opset: int = 17,
    normalised_input: bool = False,
    made_from: Mapping[str, Any] | None = None,
    images: Sequence[UInt8Image] = (),
    training: Network | None = None,
) -> Artifact:
    """Write `model` as ONNX, proven against PyTorch before the file takes its name.

    Args:
        model: a deployed network.
        info: what the file is to say of itself.
        path: the ONNX file; its manifest lies beside it.
        size: fixed (height, width) for one image at a time, or None for any size and batch.
        opset: 17 is the newest that TensorRT 8.6 reads.
        normalised_input: leave normalisation to the caller, who then feeds float32.
        made_from: what decided the weights, for the manifest; None hashes the network itself.
        images: (1, C, H, W) padded photographs to prove parity on; none: made-up pictures.
        training: the network as it was trained, to prove and record what was stripped.

    Raises:
        ExportError: a size or an opset that cannot be exported, or a training-only part is left.
        ParityError: the file does not answer as PyTorch does.
    """
    info = replace(info, normalised_input=normalised_input, trained_int8=model.trained_int8)
    check_opset(opset)
    size = size or model.fixed_size
    check_network_size(model, size)
    made = {
        "weights": dict(made_from) if made_from is not None else network_hash(model),
        "info": info.as_dict(),
        "size": size,
        "opset": opset,
        "crowdrt": __version__,
        "torch": torch.__version__,
    }
    if (kept := reusable(path, made_from=made)) is not None:
        return kept
    pictures = made_up_pictures(info, size)
    proto, facts = _build(model, info, size, opset, pictures)
    say(f"{path.name}: {facts['simplification']}")
    with write_whole(path) as temporary:
        onnx.save(proto, temporary)
        facts |= _prove(model, training, temporary, images or pictures, size)
    return write_manifest(path, kind="onnx", made_from=made, facts=facts)


def _build(
    model: Network, info: GraphInfo, size: Size | None, opset: int, pictures: Sequence[UInt8Image]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the finished graph and what there is to say of how it came about."""
    shipped = ShippedNetwork(model, info.preprocessing, normalised_input=info.normalised_input)
    proto, exporter = to_onnx(shipped, size, opset)
    info = replace(info, trained_int8=by_node(proto, info.trained_int8))
    proto, note = simplify(describe(proto, info), _feeds(shipped, pictures))
    facts = {"nodes": len(proto.graph.node), "exporter": exporter, "simplification": note}
    return proto, facts


def _prove(
    model: Network,
    training: Network | None,
    path: Path,
    images: Sequence[UInt8Image],
    size: Size | None,
) -> dict[str, Any]:
    """Hold the file against PyTorch and against the training network; return what was found."""
    facts: dict[str, Any] = {"parity": prove_parity(model, path, images).to_facts()}
    if training is not None:
        stripping = prove_stripped(training, model, path, images, size=size)
        facts["stripped"] = stripping.to_facts()
        for line in stripping.lines():
            say(line)
    return facts


def check_opset(opset: int) -> None:
    """Refuse an opset before any work is done."""
    if opset not in OPSETS:
        raise ExportError(
            f"opset {opset} cannot be exported",
            fix=f"use {OPSETS[0]} to {OPSETS[-1]}; 17 suits TensorRT 8.6 to 11 and ONNX Runtime",
        )


def check_network_size(model: Network, size: Size | None) -> None:
    """Refuse a size that the network cannot be exported for; None asks for every size."""
    name = type(model).__name__
    if model.fixed_size is not None and size not in (None, model.fixed_size):
        height, width = model.fixed_size
        raise ExportError(
            f"{name} takes {height}x{width} px (height x width) and nothing else",
            fix=f"leave out --size, or use --size {height}x{width}",
        )
    if size is None and model.static_only:
        raise ExportError(
            f"{name} cannot be exported for every size: {model.static_only}",
            fix="name the size of your camera: --size 576x864",
        )
    check_export_size(size, model.preprocessing.stride)


def check_export_size(size: Size | None, stride: int) -> None:
    """Refuse a fixed size that no padded image can have."""
    if size is None:
        return
    height, width = size
    if min(size) < MIN_SIDE_PX:
        raise ExportError(
            f"size {height}x{width} px (height x width) is too small to hold a crowd",
            fix=f"use at least {MIN_SIDE_PX} px on each side, for example --size 576x864",
        )
    if height % stride or width % stride:
        down = "x".join(str(side // stride * stride) for side in size)
        up = "x".join(str(-(-side // stride) * stride) for side in size)
        raise ExportError(
            f"size {height}x{width} px (height x width) is no multiple of {stride}, "
            "to which images are padded",
            fix=f"use --size {up} (images are padded to it), --size {down}, or --size dynamic",
        )


def network_hash(model: nn.Module) -> str:
    """Return what tells two networks apart: their structure and every weight."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def to_onnx(shipped: ShippedNetwork, size: Size | None, opset: int) -> tuple[onnx.ModelProto, str]:
    """Return the graph and the name of the exporter that made it.

    The tracer goes first: its files are plain and keep to the opset asked for. The newer
    exporter takes over where tracing fails.
    """
    failures = []
    for name, export in (("trace", _trace), ("dynamo", _dynamo)):
        try:
            # with gradients on, tracing keeps every activation until it ends
            with quiet(), torch.no_grad():
                proto = export(shipped, _example(shipped, size), size is None, opset)
            _check_opset_of(proto, opset)
            return proto, name
        except Exception as error:  # noqa: BLE001 - the exporters raise anything
            failures.append(f"{name}: {(str(error).strip() or repr(error)).splitlines()[0]}")
    raise ExportError(
        f"{type(shipped.network).__name__} cannot be exported at opset {opset}: "
        + "; ".join(failures),
        fix="try a newer --opset (18 to 20), or a fixed --size",
    )


def _example(shipped: ShippedNetwork, size: Size | None) -> torch.Tensor:
    # A batch of two: with one image, tracing could take a free batch for the constant 1.
    height, width = size or EXAMPLE_SIZE
    shape = (1 if size else 2, shipped.normalise.mean.shape[1], height, width)
    if shipped.normalised_input:
        return torch.randn(shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def free_axes(shipped: ShippedNetwork) -> dict[str, dict[int, str]]:
    """Return which axes of the input and of every output are free in a graph for any size."""
    names = ("image", *shipped.output_names)
    return {name: FREE_AXES.get(name, {0: "batch"}) for name in names}


def _trace(
    shipped: ShippedNetwork, image: torch.Tensor, dynamic: bool, opset: int
) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            shipped,
            (image,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["image"],
            output_names=list(shipped.output_names),
            dynamic_axes=free_axes(shipped) if dynamic else None,
        )
        return _with_known_lengths(onnx.load(path))


def _with_known_lengths(proto: onnx.ModelProto) -> onnx.ModelProto:
    # the tracer invents a name for an axis whose length ONNX's own inference finds
    found = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.output
    for value, inferred in zip(proto.graph.output, found, strict=True):
        value.type.CopyFrom(inferred.type)
    return proto


def _dynamo(
    shipped: ShippedNetwork, image: torch.Tensor, dynamic: bool, opset: int
) -> onnx.ModelProto:
    free = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        shipped,
        (image,),
        dynamo=True,
        opset_version=opset,
        input_names=["image"],
        output_names=list(shipped.output_names),
        dynamic_shapes={"image": dict.fromkeys((0, 2, 3), free)} if dynamic else None,
        verbose=False,
    )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    if dynamic:
        _name_axes(proto, free_axes(shipped))
    return proto


def _name_axes(proto: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    # the exporter invents names such as s26, or 8*height8, for the free axes
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in axes[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    del proto.graph.value_info[:]


def _check_opset_of(proto: onnx.ModelProto, opset: int) -> None:
    # the newer exporter works at 18 and only warns when it cannot convert down
    found = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if found != opset:
        raise ValueError(f"the exporter wrote opset {found}")


def by_node(proto: onnx.ModelProto, trained: TrainedInt8 | None) -> TrainedInt8 | None:
    """Return how a network learned to be quantized, its layers named as in the graph.

    Raises:
        ExportError: a layer's weights did not keep their name.
    """
    if trained is None:
        return None
    nodes = {node.input[1]: name_of(node) for node in proto.graph.node if len(node.input) > 1}
    weights = {layer: f"network.{layer}.weight" for layer in trained.ranges}
    if lost := [layer for layer, weight in weights.items() if weight not in nodes]:
        raise ExportError(
            f"{lost[0]} learned to be quantized, and the exporter lost it",
            fix="try another --opset, or export it as float: train a recipe without quantization",
        )
    return trained.renamed({layer: nodes[weight] for layer, weight in weights.items()})


def describe(proto: onnx.ModelProto, info: GraphInfo) -> onnx.ModelProto:
    """Write into the graph who made it and what it is."""
    # the oldest file format that holds this opset, so that older runtimes read it too
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, True)
    proto.producer_name, proto.producer_version = "crowdrt", __version__
    proto.graph.name = info.network
    _forget_origin(proto)
    set_info(proto, info)
    return proto


def _forget_origin(proto: onnx.ModelProto) -> None:
    # the newer exporter notes source lines, with this machine's paths, at every node and value
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for each in (proto, graph, *graph.node, *graph.initializer, *values):
        each.ClearField("doc_string")
        each.ClearField("metadata_props")


def made_up_pictures(info: GraphInfo, size: Size | None) -> list[UInt8Image]:
    """Return pictures that fit the graph; a free batch is shown two at once."""
    if size is not None:
        return probe_images(info.preprocessing, [size])
    sizes = probe_sizes(info.preprocessing.stride)
    first, *others = probe_images(info.preprocessing, sizes)
    return [np.concatenate([first, first[..., ::-1]]), *others]


def _feeds(shipped: ShippedNetwork, pictures: Sequence[UInt8Image]) -> list[Feeds]:
    if not shipped.normalised_input:
        return [{"image": picture} for picture in pictures]
    return [{"image": shipped.normalise(torch.from_numpy(p)).numpy()} for p in pictures]
