"""An ONNX file made ready for TensorRT's parser: sizes, pixels, and what each node asks for."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import TensorProto

from crowdrt.contracts import GraphInfo, TensorSpec
from crowdrt.engines.trt.building.options import PlanOptions, Shape, shown
from crowdrt.engines.trt.graphs.folding import fold_shapes
from crowdrt.engines.trt.graphs.residual import fuse_residual_sums
from crowdrt.errors import EngineError
from crowdrt.onnx_file import fed, spec_of, stored_info
from crowdrt.onnx_graph import (
    PASSES_ON,
    QUANTIZERS,
    element_types,
    every_node,
    fill_free_axes,
    name_of,
    without_shapes,
)

Ranges = dict[str, tuple[tuple[int, ...], ...]]  # input -> its smallest, best, largest shape
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
PRECISIONS: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}


@dataclass(frozen=True, kw_only=True)
class PlanGraph:
    """What TensorRT parses, and what the file said before it was changed for it."""

    model: onnx.ModelProto
    ranges: Ranges  # empty where every size is fixed
    largest: onnx.ModelProto  # `model` with every axis at its largest, for estimates
    inputs: tuple[TensorSpec, ...]  # as the caller feeds them
    outputs: tuple[TensorSpec, ...]
    info: GraphInfo | None
    asked: Mapping[str, str]  # node -> fp32, fp16: what the file's types say
    halves: bool  # some tensors are float16
    quantized: bool
    float_pixels: tuple[str, ...]  # inputs that were uint8 and are float32 now

    def description(self) -> dict[str, Any]:
        """Return what an engine's manifest keeps of the file."""
        return {
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "info": None if self.info is None else asdict(self.info),
        }


def plan_graph(model: onnx.ModelProto, options: PlanOptions, *, source: str) -> PlanGraph:
    """Return `model` as TensorRT parses it for these options.

    Raises:
        EngineError: the options name no size that the network takes, or its input is used in a way
            for which TensorRT has no type.
    """
    info = stored_info(model, source=source)
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    shape = chosen_shape(graph, options, info, source)
    largest = at_largest(graph, shape, options)
    fixed = largest if shape is None or shape[0] == shape[2] else graph
    specs = [tuple(map(spec_of, fed(fixed))), tuple(map(spec_of, fixed.graph.output))]
    ready = named(fixed)
    fuse_residual_sums(ready)
    pixels = float_pixels(ready, always=options.float_input)
    asked = asked_precisions(ready)
    return PlanGraph(
        model=ready,
        ranges=ranges_of(graph, shape, options) if fixed is graph and shape else {},
        largest=largest,
        inputs=specs[0],
        outputs=specs[1],
        info=info,
        asked=asked,
        halves=TensorProto.FLOAT16 in element_types(ready).values(),
        quantized=any(node.op_type in QUANTIZERS for node in every_node(ready.graph)),
        float_pixels=pixels,
    )


def chosen_shape(
    model: onnx.ModelProto, options: PlanOptions, info: GraphInfo | None, source: str
) -> Shape | None:
    """Return the sizes to build for; None where the file leaves nothing free.

    Raises:
        EngineError: the file leaves its size free and none is named, or it has another size, or
            photographs never have the size that is named.
    """
    free = [value.name for value in fed(model) if not is_fixed(value)]
    shape = options.shape
    if shape is None:
        if not free:
            return None
        raise EngineError(
            f"{source} takes images of any size, and a TensorRT plan is built for some",
            fix="name the size of your camera, --shape 576x864, or a range: "
            "--shape 320x320:576x864:2032x2912",
        )
    stride = 1 if info is None else info.preprocessing.stride
    if wrong := [size for size in shape if size[0] % stride or size[1] % stride]:
        height, width = (-(-side // stride) * stride for side in wrong[0])
        raise EngineError(
            f"{wrong[0][0]}x{wrong[0][1]} px (height x width) is no multiple of {stride}, to which "
            "images are padded",
            fix=f"use --shape {height}x{width}",
        )
    for value in fed(model):
        check_axes(value, shape, options.batch, source)
    return shape


def is_fixed(value: onnx.ValueInfoProto) -> bool:
    """Say whether an input takes one shape and no other."""
    return all(axis.dim_value > 0 for axis in value.type.tensor_type.shape.dim)


def check_axes(value: onnx.ValueInfoProto, shape: Shape, batch: int, source: str) -> None:
    """Refuse a shape that an input cannot have."""
    axes = value.type.tensor_type.shape.dim
    if is_fixed(value) and len(axes) != 4:
        return
    if len(axes) != 4 or not axes[1].dim_value:
        raise EngineError(
            f"{source}: input {value.name} leaves axes free that --shape does not fill",
            fix="export it with its other axes fixed; images are (N, C, H, W)",
        )
    for size in shape:
        wanted = (batch, axes[1].dim_value, *size)
        if any(a.dim_value and a.dim_value != side for a, side in zip(axes, wanted, strict=True)):
            own = "x".join(str(axis.dim_value or "any") for axis in axes)
            raise EngineError(
                f"{source}: input {value.name} is {own} (batch, channels, height, width), not "
                f"{'x'.join(map(str, wanted))}",
                fix="leave out --shape and --batch, or export the network for any size: "
                "crowdrt export NETWORK --size dynamic -o model.onnx",
            )


def at_largest(
    model: onnx.ModelProto, shape: Shape | None, options: PlanOptions
) -> onnx.ModelProto:
    """Return a copy at the largest size, in which all that follows from it has a shape."""
    sized = without_shapes(model)
    for value in fed(sized):
        batch = value.type.tensor_type.shape.dim[0]
        if not batch.dim_value:
            batch.dim_value = options.batch
    if shape is not None:
        fill_free_axes(sized, shape[2])
    try:
        return onnx.shape_inference.infer_shapes(
            fold_shapes(sized), data_prop=True, strict_mode=True
        )
    except onnx.shape_inference.InferenceError as error:
        size = shown(shape) if shape is not None else "its size"
        raise EngineError(
            f"the network's shapes at {size} contradict each other: {error}",
            fix="try it with --engine onnxruntime, or export it again for that --size",
        ) from error


def ranges_of(model: onnx.ModelProto, shape: Shape, options: PlanOptions) -> Ranges:
    """Return the range of shapes of every input that leaves axes free."""
    ranges: Ranges = {}
    for value in fed(model):
        axes = value.type.tensor_type.shape.dim
        if not is_fixed(value):
            ranges[value.name] = tuple(
                (options.batch, int(axes[1].dim_value), *size) for size in shape
            )
    return ranges


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which every node has a name, and each its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    seen: set[str] = set()
    for node in copy.graph.node:
        base = name = name_of(node)
        for i in itertools.count(2):
            if name not in seen:
                break
            name = f"{base}_{i}"
        node.name = name
        seen.add(name)
    return copy


def float_pixels(model: onnx.ModelProto, *, always: bool) -> tuple[str, ...]:
    """Make uint8 inputs float32 where TensorRT has no use for them as they are; say which.

    TensorRT takes uint8 only where the next thing is a conversion to float32 or float16 (DataType
    in its documentation, 8.5 and later). Any other conversion gives the same numbers from the
    float32 of a pixel, which is exact.

    Args:
        model: changed in place.
        always: also where TensorRT could take them.

    Raises:
        EngineError: a node computes with the uint8 pixels themselves.
    """
    changed = []
    for value in fed(model):
        readers = [node for node in model.graph.node if value.name in node.input]
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        if not always and readers and all(cast_to(node) in FLOATS for node in readers):
            continue
        for node in readers:
            if node.op_type not in ("Cast", "Shape"):
                raise EngineError(
                    f"{node.op_type} {node.name} computes with the uint8 pixels of {value.name}, "
                    "which TensorRT cannot",
                    fix="export the network with --input float32",
                )
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        bypass_casts(model, value.name, readers)
        changed.append(value.name)
    return tuple(changed)


def cast_to(node: onnx.NodeProto) -> int | None:
    """Return the type that a Cast makes, None of another operator."""
    return next((each.i for each in node.attribute if each.name == "to"), None) \
        if node.op_type == "Cast" else None  # fmt: skip


def bypass_casts(model: onnx.ModelProto, name: str, readers: list[onnx.NodeProto]) -> None:
    """Drop the conversions of an input to the type that it has now."""
    outputs = {value.name for value in model.graph.output}
    for cast in readers:
        if cast_to(cast) != TensorProto.FLOAT or cast.output[0] in outputs:
            continue
        for node in model.graph.node:
            for i, read in enumerate(node.input):
                if read == cast.output[0]:
                    node.input[i] = name
        model.graph.node.remove(cast)


def asked_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """Return the nodes that compute in floats, and in which by the types of the file.

    Left out are those beside a quantizer, which run in INT8 if TensorRT fuses them, and those that
    only pass numbers on.
    """
    types, nodes = element_types(model), model.graph.node
    coded = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    coded |= {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    asked = {}
    for node in nodes:
        if node.op_type in (*PASSES_ON, "Constant", "Shape") or coded & {*node.input, *node.output}:
            continue
        if (precision := PRECISIONS.get(types.get(node.output[0], 0))) is not None:
            asked[node.name] = precision
    return asked
