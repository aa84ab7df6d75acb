"""INT8 weights of convolutions that compute in float, made float once and not in every run.

A convolution whose result nobody quantizes, as in front of a layer that was kept in float, cannot
be one of integers. ONNX Runtime then dequantizes its weights in every run, and takes weights that
are no constants to a slower kernel. 1/4-CSRNet's INT8 file has one such layer. What is stored
instead are the very floats that DequantizeLinear gives; sums may be added in another order.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from crowdrt.engines.rewrites.normalisation import drop_unread
from crowdrt.engines.rewrites.weight_codes import codes_of, quantizes_weights
from crowdrt.onnx_graph import needed_nodes

Nodes = Mapping[str, onnx.NodeProto]
Arrays = dict[str, onnx.TensorProto]
Floats = npt.NDArray[np.floating[Any]]
PASSING = ("Relu", "Clip")  # ONNX Runtime fuses these into an integer convolution


def with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of an INT8 graph in which only integer convolutions read dequantized weights.

    Nodes of which nothing is read are left out; ONNX Runtime would run them.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    makers = {name: node for node in graph.node for name in node.output}
    stored = {value.name: value for value in graph.initializer}
    readers = readers_of(graph)
    floats: dict[str, Floats] = {}
    for conv in graph.node:
        if conv.op_type != "Conv" or is_integer(conv, readers):
            continue
        weights = constant_weights(conv.input[1], makers, stored)
        if weights is not None:
            conv.input[1] = f"{conv.input[1]}_float"
            floats[conv.input[1]] = weights
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in floats.items())
    drop_unread_nodes(graph)
    drop_unread(graph)
    return changed


def drop_unread_nodes(graph: onnx.GraphProto) -> None:
    """Remove the nodes of whose results nothing is read, and those that only they read."""
    kept = onnx.GraphProto()
    kept.node.extend(needed_nodes(graph, {output.name for output in graph.output}))
    del graph.node[:]
    graph.node.extend(kept.node)


def readers_of(graph: onnx.GraphProto) -> Mapping[str, Sequence[onnx.NodeProto]]:
    """Return the nodes that read each tensor."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in set(node.input):
            found[name].append(node)
    return found


def is_integer(conv: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> bool:
    """Say whether everything that reads a convolution's result quantizes it first."""
    reading = readers.get(conv.output[0], ())
    if len(reading) == 1 and reading[0].op_type in PASSING:
        reading = readers.get(reading[0].output[0], ())
    return bool(reading) and all(node.op_type == "QuantizeLinear" for node in reading)


def constant_weights(name: str, makers: Nodes, stored: Arrays) -> Floats | None:
    """Return what DequantizeLinear makes of stored weights, in its type; None of other tensors."""
    dequantize = makers.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    source, *rest = dequantize.input
    quantize = makers.get(source)
    if quantize is not None and quantizes_weights(quantize, stored):
        codes = numpy_helper.to_array(codes_of(quantize, stored))
    elif source in stored:
        codes = numpy_helper.to_array(stored[source])
    else:
        return None
    if len(rest) < 2 or not all(each in stored for each in rest):
        return None
    step, zero = (numpy_helper.to_array(stored[each]) for each in rest)
    if step.ndim > 1:  # a step per block, of opset 21
        return None
    if codes.dtype.kind not in "iu":  # floats of 8 bits and codes of 4, of opset 19 and 21
        return None
    along = [1] * codes.ndim
    if step.ndim:
        along[next((a.i for a in dequantize.attribute if a.name == "axis"), 1)] = -1
    moved = codes.astype(np.int32) - zero.astype(np.int32).reshape(along)
    floats: Floats = (moved.astype(np.float32) * step.reshape(along)).astype(step.dtype)
    return floats
