"""The division by std at a network's entrance, moved into the weights that read its result.

Exact up to float rounding: a scale per channel commutes with a convolution, also at the border,
where the convolution pads with 0 before and after. The subtraction of the mean stays, because
folded into the bias it would pad with black instead of with the mean.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from crowdrt.onnx_graph import reads

Arrays = dict[str, onnx.TensorProto]


def without_std(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy of `model` whose first convolutions divide by std, or None if none can."""
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    stored = {value.name: value for value in graph.initializer}
    divisions = [node for node in graph.node if divides_channels(node, stored)]
    changed = [fold(graph, division, stored) for division in divisions]
    return folded if any(changed) else None


def divides_channels(node: onnx.NodeProto, stored: Arrays) -> bool:
    """Say whether a node divides each channel of an image by a stored number of its own."""
    if node.op_type != "Div" or node.input[1] not in stored:
        return False
    dims = list(stored[node.input[1]].dims)
    return len(dims) == 4 and [dims[0], *dims[2:]] == [1, 1, 1]


def fold(graph: onnx.GraphProto, division: onnx.NodeProto, stored: Arrays) -> bool:
    """Give all readers of `division` scaled weights and drop it, or change nothing: False."""
    result = division.output[0]
    readers = [node for node in graph.node if result in reads(node)]
    std = numpy_helper.to_array(stored[division.input[1]]).reshape(1, -1, 1, 1)
    leaves = any(result == output.name for output in graph.output)
    if leaves or not readers or not all(scalable(node, result, stored, std) for node in readers):
        return False
    for conv in readers:
        weights = numpy_helper.to_array(stored[conv.input[1]]) / std
        name = f"{conv.output[0]}_weights_per_std"
        graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), name))
        conv.input[0], conv.input[1] = division.input[0], name
    graph.node.remove(division)
    drop_unread(graph)
    return True


def scalable(node: onnx.NodeProto, data: str, stored: Arrays, std: np.ndarray) -> bool:
    """Say whether a node is a plain convolution of `data` by stored weights."""
    if node.op_type != "Conv" or node.input[0] != data or node.input[1] not in stored:
        return False
    return bool(stored[node.input[1]].dims[1] == std.shape[1])


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the stored arrays that no node, and no branch of one, reads any more."""
    read = {output.name for output in graph.output}.union(*map(reads, graph.node))
    for value in [value for value in graph.initializer if value.name not in read]:
        graph.initializer.remove(value)
