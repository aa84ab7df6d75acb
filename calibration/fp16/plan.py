"""Which nodes of a graph work in float16, and which stay FP32 and why.

The work between the first convolution and the last becomes float16. What prepares the image and
what follows the last convolution stay FP32, that convolution included: it costs next to nothing,
and its rounding would be an error of the count. So do norms, exponentials, quotients and large
sums, whose results leave float16's range or lose digits on their way, whatever the photographs
showed not to fit (`unfit`), and what the caller names (`keep_float`).

In an INT8 file, what runs in INT8 stays as it is: scales are FP32 at every opset, because
QuantizeLinear takes float16 from opset 19 on only, which TensorRT 8.6 does not read, and because
ONNX Runtime's CPU kernels fuse FP32 scales alone.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from crowdrt.calibration.int8.plan import MACS_OPS, QUANTIZED_OPS, REQUESTED, refuse_unknown
from crowdrt.errors import CalibrationError
from crowdrt.onnx_graph import NORMS, element_types, name_of, subgraphs

SUMS = (
    *("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd"),
    *("ReduceLogSum", "ReduceLogSumExp", "GlobalAveragePool", "CumSum"),
)
STEEP = (
    *("Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Div", "Sigmoid", "Tanh", "Erf"),
    *("Softmax", "LogSoftmax", "Softplus", "LpNormalization", "MeanVarianceNormalization"),
)
# Of boxes and places; coordinates of large photographs have more digits than float16.
PLACES = ("TopK", "NonMaxSuppression", "RoiAlign", "GridSample", "Range", "Upsample")
WHY = (
    dict.fromkeys(NORMS, "a norm squares and sums what it reads")
    | dict.fromkeys(SUMS, "a large sum")
    | dict.fromkeys(STEEP, "its result can leave float16's range or lose its digits")
    | dict.fromkeys(PLACES, "it works on places or ranks")
)
MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Expand")
ARITHMETIC = ("Add", "Sub", "Mul", "Neg", "Abs", "Max", "Min", "Clip", "Sum", "Where")
ASKS_SHAPE = ("Shape", "Size")
FLOAT_PLACES = {"Resize": (2,)}  # inputs that are FP32 whatever the node works in

IN_INT8 = "it runs in INT8"
BEFORE = "it prepares the image"
ANSWERS = "it makes the network's answer"
BETWEEN = "it stands between nodes that stay FP32"


@dataclass(frozen=True)
class Fp16Plan:
    """What becomes float16; names are those of the graph, in its order."""

    cast: tuple[str, ...]  # nodes that work in float16
    kept: Mapping[str, str]  # nodes that stay FP32 -> why
    tensors: tuple[str, ...]  # computed tensors that become float16
    weights: tuple[str, ...]  # stored ones


class Floats:
    """The FP32 tensors of a graph: which are stored, who makes them and who reads them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.types = element_types(model)
        self.stored = {value.name for value in graph.initializer}
        self.nodes = [node for node in graph.node if any(map(self.is_float, named(node)))]
        self.outputs = {value.name for value in graph.output}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in self.read_by(node):
                self.readers.setdefault(name, []).append(node)

    def is_float(self, name: str) -> bool:
        """Say whether a tensor is float32."""
        return self.types.get(name) == onnx.TensorProto.FLOAT

    def read_by(self, node: onnx.NodeProto) -> list[str]:
        """Return the float32 tensors that a node reads, each once."""
        return [name for name in dict.fromkeys(node.input) if self.is_float(name)]

    def halved_by(self, node: onnx.NodeProto) -> list[str]:
        """Return the tensors that become float16 when a node does."""
        fixed = {node.input[i] for i in FLOAT_PLACES.get(node.op_type, ()) if i < len(node.input)}
        names = [name for name in self.read_by(node) if name not in fixed]
        return names + [name for name in node.output if self.is_float(name)]


def plan_fp16(
    model: onnx.ModelProto,
    unfit: Mapping[str, str] | None = None,
    *,
    keep_float: Collection[str] = (),
    source: str = "the network",
) -> Fp16Plan:
    """Decide what becomes float16.

    Args:
        model: an FP32 or INT8 graph whose nodes all have names.
        unfit: tensors that float16 cannot hold -> why; the nodes around them stay FP32.
        keep_float: names of convolutions that stay FP32.
        source: names the network in errors.

    Raises:
        CalibrationError: the graph holds float16 already, has control flow, or has nothing that
            could work in float16; or `keep_float` names none of its convolutions.
    """
    refuse(model, source)
    refuse_unknown(model.graph, keep_float)
    floats = Floats(model)
    kept = reasons(floats, unfit or {}, keep_float)
    keep_between(floats, kept)
    cast = [node for node in floats.nodes if name_of(node) not in kept]
    cast = [node for node in cast if floats.halved_by(node)]
    if not cast:
        raise CalibrationError(
            f"nothing in {source} can work in float16: what is not INT8 has to stay FP32",
            fix="use the file as it is",
        )
    halved = dict.fromkeys(name for node in cast for name in floats.halved_by(node))
    return Fp16Plan(
        cast=tuple(map(name_of, cast)),
        kept={name_of(node): kept[name_of(node)] for node in floats.nodes if name_of(node) in kept},
        tensors=tuple(name for name in halved if name not in floats.stored),
        weights=tuple(name for name in halved if name in floats.stored),
    )


def refuse(model: onnx.ModelProto, source: str) -> None:
    """Refuse what is float16 already, and graphs inside the graph."""
    stored = any(v.data_type == onnx.TensorProto.FLOAT16 for v in model.graph.initializer)
    if stored or onnx.TensorProto.FLOAT16 in element_types(model).values():
        raise CalibrationError(
            f"{source} works in float16 already",
            fix="cast the FP32 or INT8 network that it was made from",
        )
    if any(True for node in model.graph.node for _ in subgraphs(node)):
        raise CalibrationError(
            f"{source} has control flow (If, Loop or Scan), which is not supported",
            fix="export it without: a counting network has none of these",
        )


def named(node: onnx.NodeProto) -> Iterator[str]:
    """Yield every tensor that a node reads or makes."""
    yield from node.input
    yield from node.output


def reasons(
    floats: Floats, unfit: Mapping[str, str], keep_float: Collection[str]
) -> dict[str, str]:
    """Return the nodes that have to stay FP32 in themselves, each with its reason."""
    int8, after, before = runs_in_int8(floats), behind_work(floats), ahead_of_work(floats)
    kept = {}
    for node in floats.nodes:
        name, misfits = name_of(node), [t for t in floats.halved_by(node) if t in unfit]
        if name in int8:
            kept[name] = IN_INT8
        elif name not in after:
            kept[name] = BEFORE
        elif name not in before:
            kept[name] = ANSWERS
        elif name in keep_float:
            kept[name] = REQUESTED
        elif node.op_type in WHY:
            kept[name] = WHY[node.op_type]
        elif misfits:
            kept[name] = unfit[misfits[0]]
    return kept


def behind_work(floats: Floats) -> set[str]:
    """Return the nodes that multiply matrices, or whose input comes from one that does."""
    found, reached = set(), set[str]()
    for node in floats.nodes:
        if node.op_type in MACS_OPS or reached & set(node.input):
            found.add(name_of(node))
            reached |= set(node.output)
    return found


def ahead_of_work(floats: Floats) -> set[str]:
    """Return the nodes that lead to a matrix product, and make no answer themselves."""
    found, leading = set(), set[str]()
    for node in reversed(floats.nodes):
        if leading & set(node.output) and not floats.outputs & set(node.output):
            found.add(name_of(node))
        if node.op_type in MACS_OPS or leading & set(node.output):
            leading |= set(node.input)
    return found


def runs_in_int8(floats: Floats) -> set[str]:
    """Return Q and DQ, the matrix products that read INT8, and the ReLUs fused into those."""
    found = {name_of(node) for node in floats.nodes if node.op_type in QUANTIZED_OPS}
    for node in floats.nodes:
        makers = [floats.maker[name] for name in node.input[:2] if name in floats.maker]
        if node.op_type not in MACS_OPS or not any(m.op_type in QUANTIZED_OPS for m in makers):
            continue
        readers = floats.readers.get(node.output[0], [])
        fused = [reader for reader in readers if reader.op_type == "Relu" and len(readers) == 1]
        found |= set(map(name_of, [node, *fused]))
    return found


def keep_between(floats: Floats, kept: dict[str, str]) -> None:
    """Keep what float16 would cost two casts, or digits that its makers were kept for.

    That is: all that it reads comes from nodes that stay FP32, and it either only moves or adds
    such numbers (the scale and shift of a group norm), or hands them to such nodes alone. What
    QuantizeLinear reads has to come straight from its maker, else neither runtime fuses the two.
    """
    before = -1
    while len(kept) > before:
        before = len(kept)
        for node in floats.nodes:
            if name_of(node) in kept or node.op_type in MACS_OPS:
                continue
            sources = [name for name in floats.read_by(node) if name not in floats.stored]
            makers = [name_of(floats.maker[name]) for name in sources if name in floats.maker]
            in_fp32 = makers and len(makers) == len(sources) and kept.keys() >= set(makers)
            if in_fp32 and settled(node, floats, kept):
                kept[name_of(node)] = BETWEEN


def settled(node: onnx.NodeProto, floats: Floats, kept: Collection[str]) -> bool:
    """Say whether a node that reads FP32 is better left in it."""
    if node.op_type in (*MOVES, *ARITHMETIC, *ASKS_SHAPE):
        return True
    readers = [reader for name in node.output for reader in floats.readers.get(name, [])]
    if any(reader.op_type in QUANTIZED_OPS for reader in readers):
        return True
    return bool(readers) and all(name_of(reader) in kept for reader in readers)
