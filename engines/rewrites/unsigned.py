"""INT8 activations rewritten as ONNX Runtime's CPU kernels take them: unsigned.

A network's INT8 file has int8 activations with zero point 0, which is all that TensorRT accepts.
ONNX Runtime's fast path multiplies uint8 activations by int8 weights, and it drops a ReLU in
front of a QuantizeLinear only where the smallest code already means 0: with int8 it runs every
convolution that has a ReLU in float, slower than the float network. So before ONNX Runtime
optimises a graph, this pass changes the type of its activations and nothing else:

- a tensor that may be negative: code + 128, zero point 128. The same numbers, exactly.
- a tensor that is never negative: the same code, zero point 0, the same scale. The same numbers
  up to the calibrated range; beyond it codes 128 to 255 exist where int8 stays at 127. A network
  that learned with the end of its ranges must not see beyond: there codes are clipped at 127.
"""

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from crowdrt.onnx_file import stored_info
from crowdrt.onnx_graph import reads

MAKES_NON_NEGATIVE = ("Relu", "Abs")
# Never negative if none of their inputs are; of a Resize only the modes that mix within range.
KEEPS_NON_NEGATIVE = (
    *("QuantizeLinear", "DequantizeLinear", "MaxPool", "AveragePool", "Concat"),
    *("Identity", "Reshape", "Transpose", "Resize", "Cast"),
)
DATA_INPUTS = {"Concat": None}  # all of them; of every other node the first
ZERO_POINTS = {True: "crowdrt_uint8_0", False: "crowdrt_uint8_128"}
LAST_CODE = "crowdrt_uint8_127"


def unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy of `model` with uint8 activations, or None where there are none to change."""
    changing = signed_quantizers(model.graph)
    if not changing:
        return None
    unsigned = onnx.ModelProto()
    unsigned.CopyFrom(model)
    graph = unsigned.graph
    positive = never_negative(graph.node)
    codes = {name: ZERO_POINTS[name in positive] for name in changing}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in codes:
            node.input[2] = codes[node.output[0]]
        elif node.op_type == "DequantizeLinear" and node.input[0] in codes:
            node.input[2] = codes[node.input[0]]
    for name, zero in ((ZERO_POINTS[True], 0), (ZERO_POINTS[False], 128)):
        graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), name))
    for value in [value for value in graph.value_info if value.name in codes]:
        graph.value_info.remove(value)
    ask_codes_for_shapes(graph, codes)
    info = stored_info(model, source="the network")
    if info is not None and info.trained_int8 is not None:
        clip_codes(graph, {name for name in codes if name in positive})
    return unsigned


def clip_codes(graph: onnx.GraphProto, codes: Collection[str]) -> None:
    """End codes at 127 before anything reads them."""
    graph.initializer.append(numpy_helper.from_array(np.array(127, np.uint8), LAST_CODE))
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        for i, name in enumerate(node.input):
            if name in codes:
                node.input[i] = f"{name}_clipped"
        nodes.append(node)
        if node.output[0] in codes:
            name = node.output[0]
            nodes.append(helper.make_node("Clip", [name, "", LAST_CODE], [f"{name}_clipped"]))
    del graph.node[:]
    graph.node.extend(nodes)


def ask_codes_for_shapes(graph: onnx.GraphProto, codes: Collection[str]) -> None:
    """Let Shape read a tensor's codes instead of its float form, wherever there are codes.

    A convolution whose float result something else reads is not fused with the QuantizeLinear
    behind it and runs in float. In graphs for any size that something is mostly a Shape.
    """
    quantizers = {node.input[0]: node for node in reversed(graph.node) if node.output[0] in codes}
    nodes: list[onnx.NodeProto] = []
    placed: set[str] = set()  # quantizers, by what they emit
    for node in list(graph.node):
        coming = [node]
        if node.op_type == "Shape" and (quantizer := quantizers.get(node.input[0])) is not None:
            node.input[0] = quantizer.output[0]
            coming = [quantizer, node]
        nodes += [each for each in coming if each.output[0] not in placed]
        placed |= {each.output[0] for each in coming if each.output[0] in codes}
    del graph.node[:]
    graph.node.extend(nodes)


def signed_quantizers(graph: onnx.GraphProto) -> set[str]:
    """Return what the int8, zero point 0 QuantizeLinear nodes of activations emit.

    Only codes that DequantizeLinear alone reads can change their type.
    """
    stored = {value.name: value for value in graph.initializer}
    constants = set(stored)
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    zeros = {
        name
        for name, value in stored.items()
        if value.data_type == onnx.TensorProto.INT8
        and not value.dims
        and not numpy_helper.to_array(value).any()
    }
    found = {
        node.output[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear"
        and node.input[0] not in constants
        and len(node.input) == 3
        and node.input[2] in zeros
    }
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3:
            found -= reads(node)
    return found - {value.name for value in graph.output}


def never_negative(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the tensors of which no value is below 0, as far as the operators tell."""
    positive: set[str] = set()
    for node in nodes:
        data = node.input[: DATA_INPUTS.get(node.op_type, 1)]
        keeps = node.op_type in KEEPS_NON_NEGATIVE and positive.issuperset(data)
        if node.op_type == "Resize" and any(a.s == b"cubic" for a in node.attribute):
            keeps = False  # overshoots
        if keeps or node.op_type in MAKES_NON_NEGATIVE:
            positive |= set(node.output)
    return positive
