"""Which convolutions run in INT8, which tensors become INT8 for them, and which share a scale.

Placement follows what TensorRT fuses (its "Q/DQ layer placement" advice) and what ONNX Runtime
turns into QLinearConv: every input of an INT8 convolution is quantized, and so is its result,
behind the ReLU that both runtimes fuse into it. A pool, a concatenation or a resize to the nearest
passes INT8 through, on one scale. A bilinear resize makes new numbers and stands in float between
two scales: on codes, ONNX Runtime 1.31 would round them down, by 0.42 of a step on average.

A norm reads INT8 as well, even where nothing behind it does: ONNX Runtime runs a convolution with a
float result in float. Both inputs of a residual Add are INT8 where its result is; without the one
of the branch, ONNX Runtime would run the branch's last convolution in float.

The last convolution stays float, and so do the features that it reads: they cost next to nothing,
and every error there is an error of the count. On a trained MCNN, with those features in INT8,
counts moved by 5 %, else by 1 %. A convolution that stays float reads float: behind a
DequantizeLinear, ONNX Runtime would quantize its weights of its own accord. An activation other
than ReLU stands between two INT8 tensors: ONNX Runtime fuses no other into an INT8 convolution.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx

from crowdrt.errors import CalibrationError
from crowdrt.onnx_graph import CONVS, NORMS, name_of

MACS_OPS = (*CONVS, "Gemm", "MatMul")  # what has MACs worth a word when it stays float
PASSES = ("MaxPool", "Concat", "Resize")  # one scale before and behind: these move numbers
QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
REQUESTED = "kept float on request"


@dataclass(frozen=True)
class Plan:
    """What to quantize; names are those of the graph."""

    convs: tuple[str, ...]  # nodes that run in INT8
    left: Mapping[str, str]  # nodes with MACs that stay float -> why
    group_of: Mapping[str, str]  # INT8 tensor -> its group; a group has one scale
    watched: Mapping[str, tuple[str, ...]]  # group -> the tensors whose values decide its range


class Wiring:
    """Who makes and who reads a tensor, and which tensors are constant."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.outputs = {value.name for value in graph.output}
        self.constants = {value.name for value in graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant":
                self.constants |= set(node.output)
            for name in set(node.input):
                self.readers.setdefault(name, []).append(node)

    def leads_to(self, names: Collection[str], tensor: str) -> bool:
        """Say whether one of the named nodes reads `tensor`, with no convolution in between."""
        return any(name_of(node) in names for node in self.behind(tensor))

    def leads_to_norm(self, tensor: str) -> bool:
        """Say whether a norm reads `tensor`, with no convolution in between."""
        return any(node.op_type in NORMS for node in self.behind(tensor))

    def behind(self, tensor: str) -> Iterator[onnx.NodeProto]:
        """Yield what reads `tensor`, and so on up to the next convolution or matrix product."""
        waiting, seen = [tensor], set[str]()
        while waiting:
            for node in self.readers.get(waiting.pop(), []):
                yield node
                if node.op_type not in MACS_OPS:
                    waiting += [name for name in node.output if name not in seen]
                    seen |= set(node.output)

    def result_of(self, conv: onnx.NodeProto) -> str:
        """Return what a convolution hands on: behind its ReLU, where only that reads it."""
        output = conv.output[0]
        readers = self.readers.get(output, [])
        fused = len(readers) == 1 and readers[0].op_type == "Relu" and output not in self.outputs
        return str(readers[0].output[0] if fused else output)


def plan_int8(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> Plan:
    """Decide what becomes INT8.

    Args:
        model: a float graph.
        keep_float: names of nodes that are not to be quantized.

    Raises:
        CalibrationError: the graph is quantized already, has control flow or no convolution, or
            `keep_float` names none of its nodes.
    """
    graph = model.graph
    refuse_foreign(graph, keep_float)
    wiring = Wiring(graph)
    left = reasons_to_stay(graph, wiring, keep_float)
    convs = [n for n in graph.node if n.op_type in CONVS and name_of(n) not in left]
    if not convs:
        raise CalibrationError(
            f"the network has no convolution to quantize: {left or 'none at all'}",
            fix="name fewer nodes to keep float, or use the float network as it is",
        )
    names = {name_of(conv) for conv in convs}
    tensors = [conv.input[0] for conv in convs]
    for result in map(wiring.result_of, convs):
        if wiring.leads_to(names, result) or wiring.leads_to_norm(result):
            tensors.append(result)
    group_of, passing = share_scales(wiring, tensors)
    return Plan(
        convs=tuple(map(name_of, convs)),
        left=left,
        group_of=group_of,
        watched=watched_tensors(wiring, group_of, passing),
    )


def refuse_foreign(graph: onnx.GraphProto, keep_float: Collection[str]) -> None:
    """Refuse what cannot be quantized, or not as asked."""
    kinds = {node.op_type for node in graph.node}
    if found := sorted(k for k in kinds if k in QUANTIZED_OPS or k.startswith("QLinear")):
        raise CalibrationError(
            f"the network is quantized already: it has {', '.join(found)}",
            fix="calibrate the float network: crowdrt export NETWORK -o model.onnx",
        )
    if any(a.type in (a.GRAPH, a.GRAPHS) for node in graph.node for a in node.attribute):
        raise CalibrationError(
            "the network has control flow (If, Loop or Scan), which is not supported",
            fix="export it without: a counting network has none of these",
        )
    refuse_unknown(graph, keep_float)


def refuse_unknown(graph: onnx.GraphProto, keep_float: Collection[str]) -> None:
    """Refuse names of what does not multiply matrices, or is not there."""
    names = [name_of(node) for node in graph.node if node.op_type in MACS_OPS]
    if unknown := sorted(set(keep_float) - set(names)):
        raise CalibrationError(
            f"keep_float names {', '.join(unknown)}, no convolution of the network",
            fix=f"choose from {', '.join(names)}",
        )


def reasons_to_stay(
    graph: onnx.GraphProto, wiring: Wiring, keep_float: Collection[str]
) -> dict[str, str]:
    """Return the nodes with MACs that stay float, each with its reason."""
    floats = {v.name for v in graph.initializer if v.data_type == onnx.TensorProto.FLOAT}
    working = {name_of(node) for node in graph.node if node.op_type in MACS_OPS}
    left = {}
    for node in graph.node:
        if node.op_type not in MACS_OPS:
            continue
        if name_of(node) in keep_float:
            left[name_of(node)] = REQUESTED
        elif node.op_type in CONVS and not wiring.leads_to(working, node.output[0]):
            left[name_of(node)] = "it makes the network's answer"
        elif node.op_type not in CONVS:
            left[name_of(node)] = f"{node.op_type} is not quantized"
        elif node.input[1] not in floats:
            left[name_of(node)] = "its weights are no stored float32 numbers"
        elif node.input[0] in wiring.constants:
            left[name_of(node)] = "its input is constant"
    return left


def share_scales(wiring: Wiring, tensors: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Group the INT8 tensors by the nodes between them that pass INT8 through.

    Returns:
        INT8 tensor -> group, and the outputs of the nodes that pass INT8 through.
    """
    group_of = {name: name for name in tensors}
    passing = set()
    for node in reversed(wiring.nodes):
        read = passed_on(node)
        if not read or node.output[0] not in group_of or wiring.constants & set(read):
            continue
        passing.add(node.output[0])
        for name in read:
            old, new = group_of.get(name, name), group_of[node.output[0]]
            group_of[name] = old
            group_of = {k: new if group == old else group for k, group in group_of.items()}
    return group_of, passing


def passed_on(node: onnx.NodeProto) -> list[str]:
    """Return the inputs whose numbers a node hands on unchanged; none if it computes others."""
    if node.op_type not in PASSES:
        return []
    modes = {attribute.name: attribute.s for attribute in node.attribute}
    if node.op_type == "Resize" and modes.get("mode", b"nearest") != b"nearest":
        return []
    return list(node.input) if node.op_type == "Concat" else [node.input[0]]


def watched_tensors(
    wiring: Wiring, group_of: Mapping[str, str], passing: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Return, for each group, the tensors that something other than a passing node reads."""
    watched: dict[str, list[str]] = {group: [] for group in group_of.values()}
    for name, group in group_of.items():
        readers = wiring.readers.get(name, [])
        if not all(reader.output[0] in passing for reader in readers):
            watched[group].append(name)
    return {group: tuple(names) for group, names in watched.items()}
