"""How much memory the tensors of a graph take while it runs, estimated from the graph alone.

Counted are the tensors that are alive at the same time, in the graph's order, as ONNX Runtime's
CPU engine keeps them: per-pixel operators work in place, what stands between Q/DQ is held as
codes, float convolutions work on blocks of channels, INT8 convolutions unroll their windows
first. Weights, threads and the runtime itself come on top. `docs/tiling.md` holds the estimate
against what was measured.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import helper

from crowdrt.contracts import Size
from crowdrt.engines.tiling.locality import PER_PIXEL
from crowdrt.engines.tiling.shapes import inferred_types, skeleton

BLOCK = 16  # channels in a block, where the CPU has AVX-512; 8 or less elsewhere
IN_BLOCKS = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Add", "Sum", "Concat")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# What runs on codes where DequantizeLinear stands before it and QuantizeLinear behind.
ON_CODES = ("Conv", "MaxPool", "AveragePool", "Add", "Mul", "Concat", "LeakyRelu", "Sigmoid")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What shape inference says of a tensor."""

    shape: tuple[int, ...]
    itemsize: int  # bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.itemsize

    @property
    def in_blocks(self) -> int:
        """Bytes where the channels (axis 1) are filled up to whole blocks."""
        channels = self.shape[1]
        return self.size // channels * (-(-channels // BLOCK) * BLOCK)


def peak_bytes(model: onnx.ModelProto, sizes: Mapping[str, Size]) -> int:
    """Return the most bytes that a graph's tensors hold at once for one image, inputs included.

    Args:
        model: the graph; a tensor whose shape does not follow from it counts nothing.
        sizes: height and width of each input.
    """
    return _Memory(model, sizes).peak()


def tensors_at(model: onnx.ModelProto, sizes: Mapping[str, Size]) -> dict[str, Tensor]:
    """Return every tensor whose shape is known, for one image with inputs of these sizes."""
    sized = skeleton(model)
    for value in sized.graph.input:
        if value.name in sizes:
            axes = value.type.tensor_type.shape.dim
            axes[0].dim_value = 1
            axes[2].dim_value, axes[3].dim_value = sizes[value.name]
    return {
        name: Tensor(shape=shape, itemsize=helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)
        for name, kind in inferred_types(sized).items()
        if all(shape := tuple(axis.dim_value for axis in kind.shape.dim))
    }


class _Memory:
    """Whose memory each tensor that is made of the inputs lies in, and how long."""

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, Size]) -> None:
        graph = model.graph
        self.nodes = graph.node
        self.tensors = tensors_at(model, sizes)
        self.inputs = list(sizes)
        self.outputs = [value.name for value in graph.output]
        self.readers = {name: node.op_type for node in graph.node for name in node.input}
        self.num_reads = Counter(name for node in graph.node for name in set(node.input))
        self.num_reads.update(self.outputs)
        self.makers: dict[str, str] = {}
        self.owners = {name: name for name in sizes}
        self.codes: set[str] = set()  # DequantizeLinear's results that never exist as floats
        self.made_of_codes: set[str] = set()
        for node in graph.node:
            sources = [name for name in node.input if name in self.owners]
            if sources:
                self._place(node, sources[0])

    def _place(self, node: onnx.NodeProto, source: str) -> None:
        """Say where a node's results lie: in memory of their own, or in their source's."""
        single = self.num_reads[source] == 1
        if node.op_type == DEQUANTIZE:
            shared = self.readers.get(node.output[0]) in ON_CODES
            self.codes |= {node.output[0]} if shared else set()
        elif node.op_type == QUANTIZE:
            shared = single and self.owners[source] in self.made_of_codes
        else:
            shared = (
                single
                and node.op_type in PER_PIXEL
                and node.op_type != "Cast"
                and source not in self.codes
            )
        for name in filter(None, node.output):
            self.owners[name] = self.owners[source] if shared else name
            self.makers[name] = node.op_type
        if node.op_type in ON_CODES and source in self.codes:
            self.made_of_codes.add(node.output[0])

    def peak(self) -> int:
        """Return the most bytes that are held at once."""
        held, last_use = self._held(), self._last_uses()
        live = {name: held[name] for name in self.inputs}
        peak = sum(live.values())
        for place, node in enumerate(self.nodes):
            live |= {name: held[name] for name in node.output if self.owners.get(name) == name}
            peak = max(peak, sum(live.values()) + self._workspace(node))
            live = {name: size for name, size in live.items() if last_use[name] > place}
        return peak

    def _held(self) -> dict[str, int]:
        """Return the bytes of each owner; where some tensors are codes, codes lie there."""
        held: dict[str, int] = {}
        for name, owner in self.owners.items():
            size = self.tensors[name].size if name in self.tensors else 0
            held[owner] = min(size, held.get(owner, size))
        return held

    def _last_uses(self) -> dict[str, int]:
        """Return the place of the node that uses each owner's memory last."""
        last: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            for name in (*node.input, *node.output):
                if name in self.owners:
                    last[self.owners[name]] = place
        kept = (*self.inputs, *self.outputs)  # by the caller
        return last | {self.owners[name]: len(self.nodes) for name in kept}

    def _workspace(self, node: onnx.NodeProto) -> int:
        """Return the bytes that a convolution needs beside its input and its output."""
        names = (*node.input[:2], node.output[0])
        if node.op_type != "Conv" or any(name not in self.tensors for name in names):
            return 0
        image, weights, result = (self.tensors[name] for name in names)
        if names[0] in self.codes:
            return unrolled(weights.shape, result.shape)
        copies = 0
        if image.shape[1] > 4 and not self._in_blocks(image, self.makers.get(names[0], "")):
            copies += image.in_blocks
        if not self._in_blocks(result, self.readers.get(names[2], "")):
            copies += result.in_blocks
        return copies

    def _in_blocks(self, tensor: Tensor, neighbour: str) -> bool:
        """Say whether an operator beside a convolution passes the channels in blocks, too."""
        return tensor.shape[1] % BLOCK == 0 and neighbour in IN_BLOCKS


def unrolled(weights: Iterable[int], result: Iterable[int]) -> int:
    """Return what an INT8 convolution gathers of its input before it multiplies.

    Args:
        weights: their shape (out, in, kh, kw).
        result: (N, C, H, W).
    """
    outputs, inputs, *kernel = weights
    places = math.prod(kernel) * math.prod([*result][2:])
    if math.prod(kernel) == 1:
        return 0
    if inputs % 4 == 0 and outputs % 16 == 0:
        return 8 * places  # a pointer to each place of each window
    return inputs * places + 4 * outputs * math.prod([*result][2:])  # codes, and 32-bit sums
