"""The full-resolution layers on blocks of 2x2 pixels: space to depth, exactly.

A block of four pixels with C channels is one pixel with 4 C. A 3x3 convolution of pixels is one of
blocks, at half the resolution and with four times the channels on both sides, whose kernel holds
each weight four times and zeros elsewhere: four times the multiplications, three of four by 0, for
layers whose channels fill a matrix unit.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from crowdrt.benchmarks.attempts.rewrites.chain import (
    POINTWISE,
    attributes_of,
    chain_from,
    is_conv,
    kernel_of,
    store,
    unfit,
    wrap,
)
from crowdrt.engines.rewrites.float_weights import readers_of
from crowdrt.engines.rewrites.normalisation import drop_unread

SIDE, PIXELS = 2, 4  # of a block

Pool = Literal["apart", "max"]


def with_blocks(model: onnx.ModelProto, *, pool: Pool) -> onnx.ModelProto:
    """Return a copy whose layers in front of the first pool run on blocks of pixels.

    Args:
        model: begins with 3x3 convolutions that keep the size, then a 2x2 pool.
        pool: "apart": blocks become pixels again, which are pooled as before; "max": the pool is
            the largest of the four parts of a block's channels.

    Raises:
        EngineError: the graph does not begin so.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    first = next((node for node in graph.node if node.op_type == "Conv"), None)
    if first is None or not is_conv(first, 3, 1):
        raise unfit("its first layer is no 3x3 convolution that keeps the size")
    chain = chain_from(graph, first, lambda node: node.op_type in POINTWISE or is_conv(node, 3, 1))
    for conv in [node for node in chain if node.op_type == "Conv"]:
        widen(graph, conv)
    if pool == "max":
        drop_pool(graph, chain[-1].output[0])
    wrap(graph, chain, to_blocks, {"apart": to_pixels, "max": largest}[pool])
    drop_unread(graph)
    return changed


def widen(graph: onnx.GraphProto, conv: onnx.NodeProto) -> None:
    """Give a convolution the kernel of blocks, whose codes have the scales of the pixels'."""
    makers = {name: node for node in graph.node for name in node.output}
    weights = kernel_of(graph, conv)
    assert attributes_of(conv)["pads"] == [1] * 4, "blocks have a border of one block"
    wide = store(graph, f"{weights.name}_blocks", kernel_of_blocks(numpy_helper.to_array(weights)))
    reader, place = conv, 1
    while (maker := makers.get(reader.input[place])) is not None:
        reader, place = maker, 0
        for i in range(1, len(reader.input)):  # the zero point may be left out
            reader.input[i] = repeated(graph, reader.input[i])
    reader.input[place] = wide
    if len(conv.input) > 2:
        conv.input[2] = repeated(graph, conv.input[2])


def repeated(graph: onnx.GraphProto, name: str) -> str:
    """Store a number per channel once for each pixel of a block; return its name."""
    new = f"{name}_blocks"
    stored = {value.name: value for value in graph.initializer}
    if new not in stored:
        if name not in stored:
            raise unfit(f"{name} is computed, not stored")
        values = numpy_helper.to_array(stored[name])
        store(graph, new, np.tile(values, PIXELS) if values.ndim else values)
    return new


def kernel_of_blocks(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the (4 O, 4 C, 3, 3) kernel of blocks that does what (O, C, 3, 3) does to pixels.

    Row 2 Y + y of the image is row y of block Y. So a weight d rows away (-1, 0 or 1) reads row
    (y + d) mod 2 of the block that is floor((y + d) / 2) away; columns alike. Channel c of pixel
    (y, x) of a block is its channel (2 y + x) C + c, as SpaceToDepth orders them.
    """
    num_out, num_in = pixels.shape[:2]
    blocks = np.zeros((SIDE, SIDE, num_out, SIDE, SIDE, num_in, 3, 3), pixels.dtype)
    for y, x, row, column in np.ndindex(SIDE, SIDE, 3, 3):
        down, to_y = divmod(y + row - 1, SIDE)
        right, to_x = divmod(x + column - 1, SIDE)
        blocks[y, x, :, to_y, to_x, :, down + 1, right + 1] = pixels[:, :, row, column]
    return blocks.reshape(PIXELS * num_out, PIXELS * num_in, 3, 3)


def to_blocks(pixels: str, blocks: str) -> list[onnx.NodeProto]:
    """Return the node from (N, C, H, W) to (N, 4 C, H/2, W/2)."""
    return [helper.make_node("SpaceToDepth", [pixels], [blocks], blocksize=SIDE)]


def to_pixels(blocks: str, pixels: str) -> list[onnx.NodeProto]:
    """Return the node from (N, 4 C, H/2, W/2) to (N, C, H, W)."""
    return [helper.make_node("DepthToSpace", [blocks], [pixels], blocksize=SIDE, mode="DCR")]


def largest(blocks: str, pooled: str) -> list[onnx.NodeProto]:
    """Return the nodes from (N, 4 C, H/2, W/2) to the largest of each block, (N, C, H/2, W/2)."""
    parts = [f"{blocks}_{pixel}" for pixel in range(PIXELS)]
    split = helper.make_node("Split", [blocks], parts, axis=1)
    return [split, helper.make_node("Max", parts, [pooled])]


def drop_pool(graph: onnx.GraphProto, name: str) -> None:
    """Take out the 2x2 pool of a tensor, or of what its codes mean.

    The largest code is the code of the largest number: both orders are the same.
    """
    readers = readers_of(graph)
    reading = readers.get(name, ())
    while len(reading) == 1 and reading[0].op_type == "DequantizeLinear":
        reading = readers.get(reading[0].output[0], ())
    if len(reading) != 1 or not is_pool(reading[0]):
        raise unfit("no 2x2 pool stands behind its first layers")
    pool = reading[0]
    for node in graph.node:
        for i, read in enumerate(node.input):
            if read == pool.output[0]:
                node.input[i] = pool.input[0]
    graph.node.remove(pool)


def is_pool(node: onnx.NodeProto) -> bool:
    """Say whether a node takes the largest of blocks of 2x2 pixels."""
    told = attributes_of(node)
    blocks = told.get("kernel_shape") == told["strides"] == [SIDE, SIDE]
    return node.op_type == "MaxPool" and blocks and not any(told["pads"])
