"""A graph cut in two: what is run tile by tile, and what then sees the whole of its result."""

from collections.abc import Iterable, Sequence

import onnx
from onnx import helper

from crowdrt.engines.tiling.receptive import ReceptiveField
from crowdrt.engines.tiling.shapes import inferred_types, skeleton
from crowdrt.errors import EngineError


def body_of(model: onnx.ModelProto, field: ReceptiveField) -> onnx.ModelProto:
    """Return the part from the image to the cuts, for an image of any height and width."""
    image = next(value for value in model.graph.input if value.name == field.image)
    batch, channels = image.type.tensor_type.shape.dim[:2]
    free = helper.make_tensor_value_info(
        image.name,
        image.type.tensor_type.elem_type,
        [_axis(batch), _axis(channels), "height", "width"],
    )
    return extract(model, [free], cut_values(model, field))


def head_of(model: onnx.ModelProto, field: ReceptiveField) -> onnx.ModelProto | None:
    """Return the part from the cuts to those outputs that are no cuts, None where all are."""
    outputs = [value for value in model.graph.output if value.name not in field.cuts]
    if not outputs:
        return None
    return extract(model, cut_values(model, field), outputs)


def cut_values(model: onnx.ModelProto, field: ReceptiveField) -> list[onnx.ValueInfoProto]:
    """Return type and shape of the cuts; all axes but the channels are free.

    Raises:
        EngineError: one of them is no map (N, C, H, W), as far as its operators tell.
    """
    types = inferred_types(skeleton(model))
    values = []
    for number, name in enumerate(field.cuts):
        kind = types.get(name)
        if kind is None or len(kind.shape.dim) != 4:
            raise EngineError(
                f"the shape of {name} does not follow from the network's operators",
                fix="count without --max-memory and --tile-rows",
            )
        shape = ["batch", _axis(kind.shape.dim[1]), f"height{number}", f"width{number}"]
        values.append(helper.make_tensor_value_info(name, kind.elem_type, shape))
    return values


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def extract(
    model: onnx.ModelProto,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Return the nodes that lie between some tensors, with the arrays that they read."""
    graph = model.graph
    nodes = _between(graph.node, {v.name for v in inputs}, {v.name for v in outputs})
    read = {name for node in nodes for name in node.input}
    stored = [value for value in graph.initializer if value.name in read]
    part = helper.make_model(
        helper.make_graph(nodes, graph.name, list(inputs), list(outputs), stored),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    part.metadata_props.extend(model.metadata_props)
    return part


def _between(
    nodes: Iterable[onnx.NodeProto], inputs: set[str], outputs: set[str]
) -> list[onnx.NodeProto]:
    wanted, kept = set(outputs), []
    for node in reversed(list(nodes)):
        made = wanted & set(node.output) - inputs - {""}
        if made:
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
