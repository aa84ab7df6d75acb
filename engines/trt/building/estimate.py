"""How much device memory a build takes, told before it starts."""

import math
from dataclasses import dataclass

import onnx

from crowdrt.errors import EngineError
from crowdrt.onnx_graph import element_types, inferred_shapes, reads, stored_tensors

GIB = 2**30
OVERHEAD = GIB // 2  # CUDA's context, TensorRT's kernels and its small change
COPIES = 2  # of the weights: as parsed, and in the layout of the kernel under test


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What a build needs at its largest image, in bytes of device memory."""

    weights: int
    activations: int  # that are alive at the same time, in the types of the file
    input_output: int
    workspace: int  # the limit; kernels that need less take less
    unknown: tuple[str, ...] = ()  # tensors that are left out: no shape follows from the image's

    @property
    def total(self) -> int:
        """Everything at once."""
        fixed = COPIES * self.weights + self.input_output + OVERHEAD
        return fixed + self.activations + self.workspace


def estimate_memory(largest: onnx.ModelProto, workspace_bytes: int) -> MemoryEstimate:
    """Estimate what a build of `largest`, whose every axis is fixed, takes on the device.

    Layers are counted in the graph's order, each tensor from the node that writes it to the last
    that reads it. TensorRT fuses and reuses, so a finished plan takes less; a build measures each
    layer on memory of its own, so it cannot do with much less.
    """
    graph = largest.graph
    stored = stored_tensors(graph)
    sizes = tensor_bytes(largest)
    ends = [value.name for value in (*graph.input, *graph.output) if value.name not in stored]
    return MemoryEstimate(
        weights=sum(sizes.get(name, 0) for name in stored),
        activations=peak_bytes(graph, {n: b for n, b in sizes.items() if n not in stored}),
        input_output=sum(sizes.get(name, 0) for name in ends),
        workspace=workspace_bytes,
        unknown=tuple(
            name for node in graph.node for name in node.output if name and name not in sizes
        ),
    )


def tensor_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the size of every tensor of which the shape is known."""
    shapes, types = inferred_shapes(model), element_types(model)
    for name, stored in stored_tensors(model.graph).items():
        shapes[name] = tuple(stored.dims)
    return {
        name: math.prod(shape) * item_bytes(types[name])
        for name, shape in shapes.items()
        if types.get(name)
    }


def item_bytes(elem_type: int) -> int:
    """Return the size of one number of an ONNX type."""
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize)


def peak_bytes(graph: onnx.GraphProto, sizes: dict[str, int]) -> int:
    """Return the most that is alive at once when nodes run in the graph's order."""
    last = {name: i for i, node in enumerate(graph.node) for name in reads(node)}
    alive = {value.name for value in graph.input if value.name in sizes}
    peak = 0
    for i, node in enumerate(graph.node):
        alive |= {name for name in node.output if name in sizes}
        peak = max(peak, sum(sizes[name] for name in alive))
        alive = {name for name in alive if last.get(name, -1) > i}
    return peak


def check_memory(estimate: MemoryEstimate, free_bytes: int) -> None:
    """Refuse a build that does not fit, before it begins.

    Raises:
        EngineError: says how much is needed, for what, and how much there is.
    """
    if estimate.total <= free_bytes:
        return
    without = estimate.total - estimate.workspace
    room = free_bytes - without
    fix = f"--workspace {room // 2**20 // 2}MiB" if room > GIB // 8 else "a smaller --shape"
    raise EngineError(
        f"the build needs about {in_gib(estimate.total)} of device memory "
        f"({in_gib(estimate.activations)} for layers, {in_gib(estimate.workspace)} workspace), and "
        f"{in_gib(free_bytes)} is free",
        fix=f"see who else is on the GPU, nvidia-smi, or use {fix}",
    )


def in_gib(num_bytes: int) -> str:
    """Return bytes for people."""
    return f"{num_bytes / GIB:.2f} GiB"
