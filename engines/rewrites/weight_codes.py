"""INT8 weights as the codes that their QuantizeLinear emits, instead of floats to be quantized.

A file keeps float weights, since no TensorRT refuses those. OpenVINO quantizes them by a formula
of its own, which takes a weight that lies on the border of two codes to the other one: in
1/4-CSRNet two weights of a million, and with them 2 output codes of 10,000 in those layers.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from crowdrt.engines.rewrites.normalisation import drop_unread

Arrays = dict[str, onnx.TensorProto]


def stored_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` in which weights are quantized already, as ONNX defines it."""
    coded = onnx.ModelProto()
    coded.CopyFrom(model)
    graph = coded.graph
    stored = {value.name: value for value in graph.initializer}
    for node in [node for node in graph.node if quantizes_weights(node, stored)]:
        graph.initializer.append(codes_of(node, stored))
        graph.node.remove(node)
    drop_unread(graph)
    return coded


def quantizes_weights(node: onnx.NodeProto, stored: Arrays) -> bool:
    """Say whether a node turns stored floats into 8-bit codes, with one step or one per channel."""
    if node.op_type != "QuantizeLinear" or len(node.input) < 3:
        return False
    if not all(name in stored for name in node.input):
        return False
    step, zero = (stored[name] for name in node.input[1:])
    eight_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return len(step.dims) <= 1 and zero.data_type in eight_bits


def codes_of(node: onnx.NodeProto, stored: Arrays) -> onnx.TensorProto:
    """Return what a QuantizeLinear of stored weights emits."""
    weights, step, zero = (numpy_helper.to_array(stored[name]) for name in node.input)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    along = [1] * weights.ndim
    if step.ndim:
        along[axis] = -1
    codes = np.rint(weights / step.reshape(along)) + zero.reshape(along)
    limits = np.iinfo(zero.dtype)
    return numpy_helper.from_array(
        codes.clip(limits.min, limits.max).astype(zero.dtype), node.output[0]
    )
