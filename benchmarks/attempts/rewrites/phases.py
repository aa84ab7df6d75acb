"""Dilated layers as dilation-1 layers on phase images: space to batch, exactly.

A 3x3 convolution of dilation 2 reads pixels whose rows, and whose columns, are all even or all odd.
So the four images of even and odd rows and columns never meet in it: each is convolved by itself,
with the same weights and dilation 1, four images of a batch instead of one. A border of two pixels
becomes one of one. Nothing is computed that was not before.
"""

import numpy as np
import onnx
from onnx import helper

from crowdrt.benchmarks.attempts.rewrites.chain import (
    POINTWISE,
    chain_from,
    is_conv,
    kernel_of,
    store,
    unfit,
    wrap,
)

APART, PHASES = 2, 4  # of the layers; rows and columns even or odd
TO, FROM = "attempt_phases_to", "attempt_phases_from"


def with_phases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose dilated layers run on the four phases as a batch.

    The split stands in front of the first dilated layer and the merge as late as possible: behind
    the layers of one pixel that follow. Both are between codes where there are codes. The sides of
    the first dilated layer's input have to be even.

    Raises:
        EngineError: the graph has no such layers, or they cannot be taken apart.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    first = next((node for node in graph.node if is_conv(node, 3, APART)), None)
    if first is None:
        raise unfit("no 3x3 convolution has dilation 2")
    chain = chain_from(graph, first, passes)
    convs = [node for node in chain if node.op_type == "Conv"]
    channels_in = kernel_of(graph, convs[0]).dims[1]
    channels_out = kernel_of(graph, convs[-1]).dims[0]
    for conv in convs:
        if is_conv(conv, 3, APART):
            set_ints(conv, "dilations", [1, 1])
            set_ints(conv, "pads", [1, 1, 1, 1])
    store(graph, TO, np.array([-1, channels_in, 0, 0], np.int64))
    store(graph, FROM, np.array([-1, PHASES * channels_out, 0, 0], np.int64))
    wrap(graph, chain, to_phases, from_phases)
    return changed


def passes(node: onnx.NodeProto) -> bool:
    """Say whether a node does the same to four phases as to the whole."""
    return node.op_type in POINTWISE or is_conv(node, 3, APART) or is_conv(node, 1, 1)


def to_phases(whole: str, phases: str) -> list[onnx.NodeProto]:
    """Return the nodes from (N, C, H, W) to (4 N, C, H/2, W/2)."""
    return [
        helper.make_node("SpaceToDepth", [whole], [f"{phases}_deep"], blocksize=2),
        helper.make_node("Reshape", [f"{phases}_deep", TO], [phases]),
    ]


def from_phases(phases: str, whole: str) -> list[onnx.NodeProto]:
    """Return the nodes from (4 N, C, H/2, W/2) to (N, C, H, W)."""
    return [
        helper.make_node("Reshape", [phases, FROM], [f"{phases}_deep"]),
        helper.make_node("DepthToSpace", [f"{phases}_deep"], [whole], blocksize=2, mode="DCR"),
    ]


def set_ints(node: onnx.NodeProto, name: str, values: list[int]) -> None:
    """Give a node's attribute other numbers."""
    for each in list(node.attribute):
        if each.name == name:
            node.attribute.remove(each)
    node.attribute.append(helper.make_attribute(name, values))
