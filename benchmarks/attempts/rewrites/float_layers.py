"""Layers of an INT8 graph computed in float: they multiply what their codes mean."""

import onnx
from onnx import numpy_helper

from crowdrt.engines.rewrites.float_weights import constant_weights, drop_unread_nodes
from crowdrt.engines.rewrites.normalisation import drop_unread
from crowdrt.errors import EngineError
from crowdrt.onnx_graph import name_of


def with_float_layers(model: onnx.ModelProto, layers: tuple[str, ...]) -> onnx.ModelProto:
    """Return a copy in which some convolutions multiply floats: what their codes mean.

    Raises:
        EngineError: one is not there, or is no convolution of stored codes.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    makers = {name: node for node in graph.node for name in node.output}
    stored = {value.name: value for value in graph.initializer}
    convs = {name_of(node): node for node in graph.node if node.op_type == "Conv"}
    for name in layers:
        conv = convs.get(name)
        weights = None if conv is None else constant_weights(conv.input[1], makers, stored)
        if conv is None or weights is None:
            raise EngineError(
                f"{name} is no convolution of stored codes",
                fix=f"name one of {', '.join(convs)}",
            )
        conv.input[1] = f"{conv.input[1]}_float"
        graph.initializer.append(numpy_helper.from_array(weights, conv.input[1]))
    drop_unread_nodes(graph)
    drop_unread(graph)
    return changed
