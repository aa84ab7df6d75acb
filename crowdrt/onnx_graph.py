"""ONNX graphs read as data: what an output needs, what is stored, and what the layers cost."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from crowdrt.contracts import Size

CONVS = ("Conv", "ConvTranspose")
NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization")
# operator -> which of its inputs hold what was learned; of a batch norm not the statistics
LEARNED: Mapping[str, tuple[int, ...]] = dict.fromkeys((*CONVS, "Gemm", *NORMS), (1, 2)) | {
    "MatMul": (0, 1),
    "PRelu": (1,),
}
PASSES_ON = ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
FIRST_FREE_AXIS = 2  # of (N, C, H, W)


@dataclass(frozen=True)
class GraphSize:
    """How large a graph is."""

    nodes: int
    params: int
    macs: int | None  # None where a shape cannot be inferred

    def change(self, after: "GraphSize", size: Size) -> str:
        """Say how large the graph was and has become; MACs are those at (height, width)."""
        text = (
            f"{self.nodes} -> {after.nodes} nodes, {self.params:,} -> {after.params:,} parameters"
        )
        if self.macs is None or after.macs is None:
            return text
        was, now = (f"{macs / 1e9:.2f}" for macs in (self.macs, after.macs))
        return f"{text}, {was} -> {now} G MACs at {size[0]}x{size[1]}"


def name_of(node: onnx.NodeProto) -> str:
    """Return a node's name; one without is called by its first output."""
    return str(node.name or next(filter(None, node.output), node.op_type))


def reads(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node reads, those of its subgraphs (If, Loop, Scan) too."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        inner = {value.name for value in graph.input}
        inner |= {stored.name for stored in graph.initializer}
        inner |= {name for each in graph.node for name in each.output}
        wanted = {value.name for value in graph.output}
        names |= wanted.union(*map(reads, graph.node)) - inner
    return names


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of all graphs inside it."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from every_node(inner)


def needed_nodes(graph: onnx.GraphProto, wanted: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes on which the wanted tensors depend, in the graph's order."""
    return [graph.node[i] for i in needed_places(graph, wanted)]


def needed_places(graph: onnx.GraphProto, wanted: Collection[str]) -> list[int]:
    """Return where in the graph the nodes stand on which the wanted tensors depend."""
    names = set(wanted)
    places = []
    for i, node in reversed(list(enumerate(graph.node))):
        if names & set(node.output):
            places.append(i)
            names |= reads(node)
    return places[::-1]


def unneeded(graph: onnx.GraphProto, wanted: Collection[str] | None = None) -> dict[str, list[str]]:
    """Return what none of the wanted outputs depends on; None wants every output.

    Returns:
        Names under "nodes", "initializers" and "inputs".
    """
    outputs = {value.name for value in graph.output} if wanted is None else set(wanted)
    places = set(needed_places(graph, outputs))
    names = outputs.union(*(reads(graph.node[i]) for i in places))
    stored = [*stored_names(graph)]
    inputs = [value.name for value in graph.input if value.name not in stored]
    return {
        "nodes": [name_of(node) for i, node in enumerate(graph.node) if i not in places],
        "initializers": [name for name in stored if name not in names],
        "inputs": [name for name in inputs if name not in names],
    }


def stored_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of a graph's initializers."""
    yield from (stored.name for stored in graph.initializer)
    yield from (stored.values.name for stored in graph.sparse_initializer)


def stored_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return what a graph and the graphs inside it store: initializers and constants, by name."""
    found = {stored.name: stored for stored in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                found[node.output[0]] = attribute.t
        for inner in subgraphs(node):
            found |= stored_tensors(inner)
    return found


def num_parameters(graph: onnx.GraphProto) -> int:
    """Return how many learned numbers the layers of a graph hold.

    Counted are weights and biases of convolutions and matrix products, scales and shifts of
    norms, slopes of PReLU, also where they reach the layer through a cast or Q/DQ. A constant
    that is multiplied outside a layer, such as the normalisation of pixels, is not.
    """
    stored = stored_tensors(graph)
    makers = {name: node for node in every_node(graph) for name in node.output}
    learned = set()
    for node in every_node(graph):
        for place in LEARNED.get(node.op_type, ()):
            if place < len(node.input):
                learned.add(origin(node.input[place], makers))
    return sum(math.prod(stored[name].dims) for name in learned if name in stored)


def origin(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Return the tensor that `name` is, before it was cast, reshaped or quantized."""
    while (node := makers.get(name)) is not None and node.op_type in PASSES_ON:
        name = node.input[0]
    return name


def count_nodes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return operator -> how many nodes, most first; an operator of another domain names it."""
    kinds = Counter(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        for node in every_node(graph)
    )
    return dict(sorted(kinds.items(), key=lambda entry: (-entry[1], entry[0])))


def precision_of(graph: onnx.GraphProto) -> str:
    """Return the numbers in which a graph works, as far as its stored weights show."""
    kinds = {node.op_type for node in every_node(graph)}
    if kinds & set(QUANTIZERS) or any(k.startswith("QLinear") or "Integer" in k for k in kinds):
        return "int8"
    sizes: Counter[int] = Counter()
    for stored in stored_tensors(graph).values():
        sizes[stored.data_type] += math.prod(stored.dims)
    names: dict[int, str] = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.BFLOAT16: "bf16",
        onnx.TensorProto.DOUBLE: "fp64",
    }
    return next((names[kind] for kind, _ in sizes.most_common() if kind in names), "fp32")


def int8_convs(graph: onnx.GraphProto) -> dict[str, bool]:
    """Return the convolutions that read codes alone, by name.

    True: the result becomes codes as well, behind a ReLU or at once, and nothing else reads it.
    ONNX Runtime runs those in INT8 and the others in float, of which it has no kernel for
    ConvTranspose; TensorRT can run all of them in INT8.
    """
    makers = {name: node.op_type for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in graph.node:
        read = {makers.get(name) for name in node.input[:2]}
        if node.op_type in CONVS and read == {"DequantizeLinear"}:
            behind = readers.get(node.output[0], [])
            if [each.op_type for each in behind] == ["Relu"]:
                behind = readers.get(behind[0].output[0], [])
            kinds = {each.op_type for each in behind} - {"Shape"}
            found[name_of(node)] = node.op_type == "Conv" and kinds == {"QuantizeLinear"}
    return found


def free_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose inputs have free spatial axes, and which claims no other shapes."""
    freed = without_shapes(model)
    for value in freed.graph.input:
        for i, axis in enumerate(value.type.tensor_type.shape.dim):
            if i >= FIRST_FREE_AXIS:
                axis.dim_param = f"{value.name}_{i}"
    return freed


def without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that claims no shape but those of its inputs."""
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    del freed.graph.value_info[:]
    for value in freed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return freed


def image_size(graph: onnx.GraphProto) -> Size | None:
    """Return the (height, width) that a graph's first image (N, C, H, W) has to have, if any."""
    stored = set(stored_names(graph))
    for value in graph.input:
        axes = value.type.tensor_type.shape.dim
        if len(axes) == 4 and value.name not in stored:
            height, width = (axis.dim_value for axis in axes[FIRST_FREE_AXIS:])
            return (height, width) if height and width else None
    return None


def fill_free_axes(model: onnx.ModelProto, size: Size) -> None:
    """Give the free axes of every input a length: one image of (height, width) pixels."""
    for value in model.graph.input:
        for axis, length in zip(value.type.tensor_type.shape.dim, (1, None, *size), strict=False):
            if axis.dim_value == 0 and length is not None:
                axis.dim_value = length


def layer_macs(model: onnx.ModelProto, size: Size) -> dict[str, int | None]:
    """Return the multiply-accumulates of every convolution and matrix product.

    Args:
        model: its fixed axes stay as they are.
        size: (height, width) in pixels, for axes that are free.

    Returns:
        Node name -> MACs of one image, or None where a shape cannot be inferred.
    """
    sized = without_shapes(model)
    fill_free_axes(sized, size)
    shapes = inferred_shapes(sized)
    return {
        name_of(node): node_macs(node, shapes)
        for node in sized.graph.node
        if node.op_type in (*CONVS, "Gemm", "MatMul")
    }


def graph_size(model: onnx.ModelProto, size: Size) -> GraphSize:
    """Return nodes, parameters and MACs; free axes get `size`, (height, width) in pixels."""
    macs = layer_macs(model, size).values()
    known = [count for count in macs if count is not None]
    return GraphSize(
        nodes=sum(count_nodes(model.graph).values()),
        params=num_parameters(model.graph),
        macs=sum(known) if len(known) == len(macs) else None,
    )


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the ONNX type of every tensor of which it is known."""
    graph = inferred_graph(model)
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {name: stored.data_type for name, stored in stored_tensors(graph).items()}


def inferred_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """Return the graph with what shape inference finds out; as it is where types contradict."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return model.graph


def inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of which it is known."""
    graph = inferred_graph(model)
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: shape for value in values if (shape := shape_of(value)) is not None}
    return shapes | {name: tuple(stored.dims) for name, stored in stored_tensors(graph).items()}


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return a tensor's shape, or None while an axis is not known."""
    tensor = value.type.tensor_type
    axes = tensor.shape.dim
    known = tensor.HasField("shape") and all(axis.dim_value > 0 for axis in axes)
    return tuple(axis.dim_value for axis in axes) if known else None


def node_macs(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return what one convolution or matrix product multiplies, or None if that is not known.

    A convolution multiplies once per output element, a transposed one per input element.
    """
    first, second, result = (shapes.get(name) for name in (*node.input[:2], node.output[0]))
    if node.op_type == "ConvTranspose":
        return None if not (first and second) else math.prod(first) * math.prod(second[1:])
    if not result:
        return None
    if node.op_type == "Conv":
        return None if not second else math.prod(result) * math.prod(second[1:])
    if not first:
        return None
    transposed = any(each.name == "transA" and each.i for each in node.attribute)
    return math.prod(result) * first[0 if transposed else -1]
