"""How many multiply-accumulates the convolutions of a graph take, and how many of them in INT8."""

import onnx

from crowdrt.calibration.layerwise import only_size
from crowdrt.contracts import Size
from crowdrt.onnx_graph import CONVS, free_sizes, layer_macs, name_of


def conv_macs(model: onnx.ModelProto, size: Size) -> dict[str, int]:
    """Return node name -> MACs of one image of (height, width) pixels, whatever size it is for.

    A graph that cannot take that size is costed at its own. A convolution whose shape cannot be
    inferred is left out.
    """
    size = only_size(model, size) or size
    convs = {name_of(node) for node in model.graph.node if node.op_type in CONVS}
    macs = layer_macs(free_sizes(model), size)
    return {name: count for name, count in macs.items() if name in convs and count}


def int8_share(macs: dict[str, int], int8: tuple[str, ...]) -> float | None:
    """Return the share of the convolutions' MACs that run in INT8; None where none is known."""
    total = sum(macs.values())
    return sum(macs.get(name, 0) for name in int8) / total if total else None
