"""Does TensorRT's ONNX parser take a network? Answered from its documentation, without a GPU.

What is checked: operators, types, opset, and the limits that the parser's tables print beside an
operator. What is not: whether a kernel exists for a shape, and anything else that only a build
can tell.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from crowdrt.engines.trt.graphs.parser_tables import PARSERS, Parser
from crowdrt.onnx_graph import every_node, name_of, stored_tensors

MAX_TOPK = 3840
COORDINATES = (
    "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
)  # fmt: skip
INTERPOLATION = ("nearest", "linear")
ROUNDING = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
FLOATS = ("FLOAT", "FLOAT16")
WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1}  # of output channels
POOLS = ("AveragePool", "LpPool", "MaxPool")
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


@dataclass(frozen=True)
class Misfit:
    """One node, or the network, that a parser does not take."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node}: {self.reason}" if self.node else self.reason


def tensorrt_support(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Return generation -> what its parser does not take of a network, in words; empty is well."""
    graph = Graph(model)
    return {
        parser.generation: [str(misfit) for misfit in misfits(model, parser, graph)]
        for parser in PARSERS
    }


def misfits(model: onnx.ModelProto, parser: Parser, graph: "Graph | None" = None) -> list[Misfit]:
    """Return what a parser does not take of a network, in the graph's order."""
    graph = graph or Graph(model)
    found = [Misfit("", "", reason) for reason in opset_reasons(model, parser)]
    for node in every_node(model.graph):
        reasons = [*operator_reasons(node, parser, graph)]
        if not reasons:
            reasons = [*pixel_reasons(node, graph)]
            reasons += RULES.get(node.op_type, no_rule)(node, parser, graph)
        found += [Misfit(name_of(node), node.op_type, reason) for reason in reasons]
    return found


class Graph:
    """A network with what is known of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except onnx.shape_inference.InferenceError:  # types that contradict each other
            graph = model.graph
        values = [*graph.input, *graph.value_info, *graph.output]
        self.stored = stored_tensors(model.graph)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {name: stored.data_type for name, stored in self.stored.items()}
        self.ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        self.ends = {value.name for value in [*model.graph.input, *model.graph.output]}
        self.makers = {name: node for node in every_node(model.graph) for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in every_node(model.graph):
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def type_of(self, name: str) -> str | None:
        """Return ONNX's name of a tensor's type, or None where it is not known."""
        kind = self.types.get(name, TensorProto.UNDEFINED)
        return None if kind == TensorProto.UNDEFINED else TensorProto.DataType.Name(kind)

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """Return a stored tensor's values, or None of one that is computed."""
        stored = self.stored.get(name)
        return None if stored is None else numpy_helper.to_array(stored)


def opset_reasons(model: onnx.ModelProto, parser: Parser) -> Iterator[str]:
    """Say whether the parser reads the network's opset."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version not in parser.opsets:
            yield (f"opset {entry.version} is not among {parser.opsets[0]} to {parser.opsets[-1]}")


def operator_reasons(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """Say whether the parser knows the operator, in the types that it has here."""
    if node.domain not in ("", "ai.onnx"):
        yield f"is of the domain {node.domain}, and no plugins are loaded"
        return
    taken = parser.types.get(node.op_type)
    if taken is None:
        yield "is no operator that the parser lists"
        return
    for name in decisive(node):
        kind = graph.type_of(name)
        if kind is None or (kind == "UINT8" and name in graph.ends):
            continue
        if parser.read_as.get(kind, kind) not in taken:
            yield f"{name} is {kind}, it takes {', '.join(sorted(taken))}"


def decisive(node: onnx.NodeProto) -> list[str]:
    """Return the tensors whose type the parser's table limits."""
    if node.op_type == "Cast":
        return [node.input[0], node.output[0]]
    if node.op_type == "Where":
        return list(node.input)
    return [name for name in node.input[:1] if name] or list(node.output[:1])


def pixel_reasons(node: onnx.NodeProto, graph: Graph) -> Iterator[str]:
    """Say whether uint8 stands where it may: an input or output, cast from or to a float."""
    for names, others in ((node.input, node.output), (node.output, node.input)):
        for name in names:
            if graph.type_of(name) != "UINT8":
                continue
            if name not in graph.ends:
                yield f"{name} is UINT8, which only inputs and outputs of the network may be"
            elif node.op_type != "Cast" or graph.type_of(others[0]) not in (None, *FLOATS):
                yield f"{name} is UINT8 and may only be cast, to or from FLOAT or FLOAT16"


def no_rule(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """Most operators have no limits beside their types."""
    del node, parser, graph
    yield from ()


def must_be_stored(node: onnx.NodeProto, places: Mapping[int, str], graph: Graph) -> Iterator[str]:
    """Say which of a node's inputs are computed and may not be."""
    for place, name in places.items():
        if place < len(node.input) and node.input[place] and node.input[place] not in graph.stored:
            yield f"its {name} must be stored, and {node.input[place]} is computed"


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """Return a node's attributes, texts decoded."""
    values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in values.items()
    }


def fixed_axes(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """Squeeze and Unsqueeze."""
    del parser
    yield from must_be_stored(node, {1: "axes"}, graph)


def reduction(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """ReduceSum and its like."""
    if parser.fixed_reduce_axes:
        yield from must_be_stored(node, {1: "axes"}, graph)


def slicing(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """Slice: 10.3 and later take computed axes; any network can do without."""
    del parser
    yield from must_be_stored(node, {3: "axes"}, graph)


def pooling(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """Pooling over two or three axes, of values alone."""
    rank = graph.ranks.get(node.input[0])
    if rank is not None and rank not in (4, 5):
        yield f"pools over {rank - 2} axes, and may over 2 or 3"
    if len(node.output) > 1 and node.output[1]:
        yield "emits indices"
    dilations = attributes(node).get("dilations")
    if parser.plain_pool and isinstance(dilations, list) and any(step != 1 for step in dilations):
        yield f"has dilations {dilations}, and may have none"


def instance_norm(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """InstanceNormalization."""
    if parser.fixed_norms:
        yield from must_be_stored(node, {1: "scale", 2: "bias"}, graph)
        rank = graph.ranks.get(node.input[0])
        if rank is not None and not 3 <= rank <= 5:
            yield f"reads a tensor of {rank} axes, and may of 3 to 5"


def layer_norm(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """LayerNormalization emits the normalised tensor alone."""
    del parser, graph
    if any(node.output[1:]):
        yield "emits more than its first output"


def resize(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """Resize in the modes that are listed."""
    del parser, graph
    given = attributes(node)
    mode = given.get("mode", "nearest")
    listed: list[tuple[str, tuple[str, ...], str]] = [
        ("coordinate_transformation_mode", COORDINATES, "half_pixel")
    ]
    listed += [("mode", INTERPOLATION, "nearest")]
    if mode == "nearest":
        listed += [("nearest_mode", ROUNDING, "round_prefer_floor")]
    for name, taken, default in listed:
        if given.get(name, default) not in taken:
            yield f"{name} is {given[name]}, it takes {', '.join(taken)}"
    if given.get("antialias", 0):
        yield "has antialias"
    if given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        yield f"keep_aspect_ratio_policy is {given['keep_aspect_ratio_policy']}, it takes stretch"


def top_k(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """TopK of a bounded number; a computed one is known to the build alone."""
    values = graph.array(node.input[1]) if len(node.input) > 1 else None
    largest = None if values is None else int(values.max())
    if largest is not None and largest >= MAX_TOPK:
        yield f"K is {largest}, and must be under {MAX_TOPK}"
    if parser.sorted_topk and attributes(node).get("sorted", 1) != 1:
        yield "does not sort"


def scatter_nd(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """ScatterND overwrites."""
    del parser, graph
    if attributes(node).get("reduction", "none") != "none":
        yield "has a reduction"


def constant(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """Constant of numbers."""
    del parser, graph
    if wrong := {"sparse_value", "value_string", "value_strings"} & attributes(node).keys():
        yield f"is given as {', '.join(sorted(wrong))}"


def quantization(node: onnx.NodeProto, parser: Parser, graph: Graph) -> Iterator[str]:
    """QuantizeLinear and DequantizeLinear: symmetric, stored scales, channels of weights alone.

    NVIDIA's headers say of both layers: scales strictly positive, zero points 0, and of a 1D
    scale as many as the axis is long.
    """
    del parser
    yield from must_be_stored(node, {1: "scale", 2: "zero point"}, graph)
    scale = graph.array(node.input[1])
    if scale is None:
        return
    if graph.type_of(node.input[1]) != "FLOAT":
        yield f"its scale is {graph.type_of(node.input[1])}, and must be FLOAT"
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield "its scale is not positive everywhere"
    if len(node.input) < 3 or not node.input[2]:
        yield "has no zero point, by which ONNX makes it UINT8"
    elif (zero := graph.array(node.input[2])) is not None:
        if zero.dtype != np.int8:
            yield f"its zero point is {zero.dtype}, and must be int8"
        elif zero.any():
            yield f"its zero point is {zero.flat[np.flatnonzero(zero)[0]]}, and must be 0"
    yield from per_channel(node, scale.size, graph)
    if node.op_type == "QuantizeLinear":
        others = {each.op_type for each in graph.readers.get(node.output[0], ())}
        if others - {"DequantizeLinear"}:
            yield f"its codes are read by {', '.join(sorted(others - {'DequantizeLinear'}))}"


def per_channel(node: onnx.NodeProto, num_scales: int, graph: Graph) -> Iterator[str]:
    """Several scales are for weights, along the axis that the reader has its outputs on."""
    if num_scales == 1:
        return
    weight = weights_behind(node, graph)
    if weight is None:
        yield f"has {num_scales} scales for a tensor that is computed, and must have one"
        return
    axis = int(str(attributes(node).get("axis", 1))) % max(len(weight.dims), 1)
    if math.prod(weight.dims[axis : axis + 1]) != num_scales:
        yield f"has {num_scales} scales for an axis of {list(weight.dims)[axis]}"
    for reader in graph.readers.get(node.output[0], ()):
        wanted = WEIGHT_AXIS.get(reader.op_type, axis)
        if node.op_type == "DequantizeLinear" and axis != wanted:
            yield f"has its scales along axis {axis}, {reader.op_type} its outputs along {wanted}"


def weights_behind(node: onnx.NodeProto, graph: Graph) -> TensorProto | None:
    """Return the stored tensor that a Q or DQ reads, through its Q where it has one."""
    name = node.input[0]
    maker = graph.makers.get(name)
    if name not in graph.stored and maker is not None and maker.op_type == "QuantizeLinear":
        name = maker.input[0]
    return graph.stored.get(name)


RULES: Mapping[str, Callable[[onnx.NodeProto, Parser, Graph], Iterator[str]]] = {
    **dict.fromkeys(POOLS, pooling),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), fixed_axes),
    **{f"Reduce{kind}": reduction for kind in REDUCTIONS},
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantization),
    "Constant": constant,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "Resize": resize,
    "ScatterND": scatter_nd,
    "Slice": slicing,
    "TopK": top_k,
}
