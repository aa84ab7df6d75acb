"""How many multiply-accumulates each convolution of a graph takes at one input size."""

import math

import onnx

from crowdrt.calibration.layerwise import free_sizes
from crowdrt.calibration.plan import CONVS, name_of


def conv_macs(model: onnx.ModelProto, size: tuple[int, int]) -> dict[str, int]:
    """Return node name -> MACs of one image of (height, width) pixels.

    A convolution whose shape cannot be inferred is left out.
    """
    sized = free_sizes(model)
    for value in sized.graph.input:
        for axis, length in zip(value.type.tensor_type.shape.dim, (1, None, *size), strict=False):
            if length is not None:
                axis.dim_value = length
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    shapes = {value.name: shape_of(value) for value in values}
    shapes |= {v.name: tuple(v.dims) for v in inferred.initializer}
    macs = {}
    for node in inferred.node:
        # a convolution multiplies once per output element, a transposed one per input element
        grid = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
        if node.op_type in CONVS and shapes.get(grid) and shapes.get(node.input[1]):
            macs[name_of(node)] = math.prod(shapes[grid]) * math.prod(shapes[node.input[1]][1:])
    return macs


def int8_share(macs: dict[str, int], int8: tuple[str, ...]) -> float | None:
    """Return the share of the convolutions' MACs that run in INT8; None where none is known."""
    total = sum(macs.values())
    return sum(macs.get(name, 0) for name in int8) / total if total else None


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return a tensor's shape, or () while an axis is not known."""
    axes = value.type.tensor_type.shape.dim
    return tuple(a.dim_value for a in axes) if all(a.dim_value > 0 for a in axes) else ()
