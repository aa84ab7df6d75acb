"""Residual sums of an INT8 file, in the form that TensorRT computes with the convolution before.

A file quantizes both inputs of a residual Add, or ONNX Runtime would run the branch's last
convolution in float. TensorRT adds inside a convolution's own kernel instead, where that
convolution's result reaches the Add in float and the other input is quantized: NVIDIA's advice on
Q/DQ placement says to quantize the residual input alone. So this pass takes one pair out of each
such Add. The sum is what the file says, less the rounding of one of its terms.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx

from crowdrt.onnx_graph import CONVS, name_of

Readers = Mapping[str, Sequence[onnx.NodeProto]]


def fuse_residual_sums(model: onnx.ModelProto) -> list[str]:
    """Let each residual Add read one convolution in float; return the names of those.

    Args:
        model: an INT8 graph in which each reader of a tensor has a Q/DQ pair of its own, as
            crowdrt writes it; changed in place.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in graph.output}
    fused = []
    for add in [node for node in graph.node if node.op_type == "Add"]:
        pairs = [pair_before(name, makers) for name in add.input]
        if None in pairs or not becomes_codes(add, readers):
            continue
        for i, pair in enumerate(pairs):
            if pair and pair[0].input[0] not in outputs and is_branch(pair, makers, readers):
                fused.append(name_of(makers[pair[0].input[0]]))
                add.input[i] = pair[0].input[0]
                for node in pair:
                    graph.node.remove(node)
                break
    return fused


def pair_before(
    name: str, makers: Mapping[str, onnx.NodeProto]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return the QuantizeLinear and the DequantizeLinear that make a tensor, if they do."""
    end = makers.get(name)
    if end is None or end.op_type != "DequantizeLinear":
        return None
    start = makers.get(end.input[0])
    return (start, end) if start is not None and start.op_type == "QuantizeLinear" else None


def becomes_codes(add: onnx.NodeProto, readers: Readers) -> bool:
    """Say whether a sum is quantized, at once or behind a ReLU, for all that read it."""
    behind = readers.get(add.output[0], [])
    if [node.op_type for node in behind] == ["Relu"]:
        behind = readers.get(behind[0].output[0], [])
    return {node.op_type for node in behind} - {"Shape"} == {"QuantizeLinear"}


def is_branch(
    pair: tuple[onnx.NodeProto, onnx.NodeProto],
    makers: Mapping[str, onnx.NodeProto],
    readers: Readers,
) -> bool:
    """Say whether an INT8 convolution makes what a pair quantizes, for one Add alone."""
    start, end = pair
    conv = makers.get(start.input[0])
    if conv is None or conv.op_type not in CONVS or pair_before(conv.input[0], makers) is None:
        return False
    alone = {node.op_type for node in readers[start.input[0]]} <= {"QuantizeLinear", "Shape"}
    quantizers = [node for node in readers[start.input[0]] if node.op_type == "QuantizeLinear"]
    return (
        alone
        and len(quantizers) == 1
        and len(readers[start.output[0]]) == 1 == len(readers[end.output[0]])
    )
