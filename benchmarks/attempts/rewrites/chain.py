"""A chain of layers in a graph, entered and left through nodes of another shape."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from crowdrt.engines.rewrites.float_weights import readers_of
from crowdrt.errors import EngineError
from crowdrt.onnx_graph import name_of, origin

POINTWISE = ("Relu", "QuantizeLinear", "DequantizeLinear", "Clip")


def attributes_of(node: onnx.NodeProto) -> dict[str, list[int]]:
    """Return what a convolution says of itself, with what ONNX takes where it does not."""
    told = {each.name: list(each.ints) for each in node.attribute if each.ints}
    plain = {"dilations": [1, 1], "strides": [1, 1], "pads": [0] * 4}
    return {**plain, **told, "group": [each.i for each in node.attribute if each.name == "group"]}


def is_conv(node: onnx.NodeProto, kernel: int, apart: int) -> bool:
    """Say whether a node is a convolution of this kernel and dilation that keeps the size."""
    if node.op_type != "Conv":
        return False
    told = attributes_of(node)
    border = apart * (kernel - 1) // 2
    return (
        told.get("kernel_shape") == [kernel, kernel]
        and told["dilations"] == [apart, apart]
        and told["strides"] == [1, 1]
        and told["pads"] == [border] * 4
        and told["group"] in ([], [1])
    )


def chain_from(
    graph: onnx.GraphProto, first: onnx.NodeProto, passes: Callable[[onnx.NodeProto], bool]
) -> list[onnx.NodeProto]:
    """Return the nodes from `first` on, one behind the other, as far as `passes` says.

    They begin with the codes that the first one reads, where there are codes, and end with codes.
    A tensor that more than one node reads, or that leaves the graph, ends the chain.
    """
    readers, leaving = readers_of(graph), {value.name for value in graph.output}
    makers = {name: node for node in graph.node for name in node.output}
    chain = [first]
    while chain[-1].output[0] not in leaving:
        reading = readers.get(chain[-1].output[0], ())
        if len(reading) != 1 or not passes(reading[0]):
            break
        chain.append(reading[0])
    before = makers.get(first.input[0])
    if before is not None and before.op_type == "DequantizeLinear":
        if len(readers[before.output[0]]) > 1:
            raise unfit(f"{name_of(before)} feeds more than {name_of(first)}")
        chain.insert(0, before)
    if chain[-1].op_type == "DequantizeLinear":
        chain.pop()
    return chain


def wrap(
    graph: onnx.GraphProto,
    chain: Sequence[onnx.NodeProto],
    entering: Callable[[str, str], list[onnx.NodeProto]],
    leaving: Callable[[str, str], list[onnx.NodeProto]],
) -> None:
    """Put nodes in front of a chain and behind it.

    Args:
        graph: of the chain; changed.
        chain: of `chain_from`.
        entering: makes the nodes from a tensor to one inside, by their names.
        leaving: makes the nodes from one inside to the tensor that others read.
    """
    fed, result = chain[0].input[0], chain[-1].output[0]
    before = entering(fed, f"{fed}_inside")
    after = leaving(f"{result}_inside", result)
    first, last = chain[0].output[0], result
    if len(chain) == 1:
        first = f"{result}_inside"
    chain[0].input[0], chain[-1].output[0] = f"{fed}_inside", f"{result}_inside"
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        name = node.output[0]
        nodes += [*before, node] if name == first else [node]
        nodes += after if name == f"{last}_inside" else []
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # of shapes that are no more


def kernel_of(graph: onnx.GraphProto, conv: onnx.NodeProto) -> onnx.TensorProto:
    """Return the stored weights of a convolution: floats, or codes."""
    makers: Mapping[str, onnx.NodeProto] = {n: node for node in graph.node for n in node.output}
    name = origin(conv.input[1], makers)
    found: onnx.TensorProto | None = next(
        (value for value in graph.initializer if value.name == name), None
    )
    if found is None:
        raise unfit(f"the weights of {name_of(conv)} are computed, not stored")
    return found


def store(graph: onnx.GraphProto, name: str, values: npt.NDArray[Any]) -> str:
    """Store an array; return its name."""
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def unfit(problem: str) -> EngineError:
    """Return the error for a graph that cannot be rewritten."""
    return EngineError(
        f"this network has no such form: {problem}",
        fix="leave the attempt out: --only NAME, or try a student of CSRNet",
    )
