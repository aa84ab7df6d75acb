"""Types and shapes of a graph's tensors, without the time that its weights would take."""

import math

import onnx
from onnx import helper

from crowdrt.errors import EngineError


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that claims no shapes, with large arrays as inputs of the same shape.

    Shape inference copies what it is given: without the weights it takes milliseconds.
    """
    graph = model.graph
    small = [value for value in graph.initializer if math.prod(value.dims) <= SMALL]
    large = [
        helper.make_tensor_value_info(value.name, value.data_type, list(value.dims))
        for value in graph.initializer
        if math.prod(value.dims) > SMALL
    ]
    outputs = [
        helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None)
        for value in graph.output
    ]
    inputs = [*graph.input, *large]
    return helper.make_model(
        helper.make_graph(graph.node, graph.name, inputs, outputs, small),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


SMALL = 64  # numbers; scales, axes and sizes, whose values shape inference may need


def inferred_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Return the type of every tensor of which the number of axes is known.

    Raises:
        EngineError: the operators contradict each other, or are of no known version.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise EngineError(
            f"the shapes of the network's tensors cannot be told: {str(error).splitlines()[0]}",
            fix="export the network again: crowdrt export NETWORK --weights F -o model.onnx",
        ) from error
    types = {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    for stored in graph.initializer:
        value = helper.make_tensor_value_info(stored.name, stored.data_type, list(stored.dims))
        types[stored.name] = value.type.tensor_type
    return types


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of which it is known whatever the image."""
    return {
        name: shape
        for name, kind in inferred_types(skeleton(model)).items()
        if all(shape := tuple(axis.dim_value for axis in kind.shape.dim))
    }
