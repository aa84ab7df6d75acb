"""A graph rewritten to work in float16 where a plan says so, by ONNX Runtime's converter.

The converter (onnxruntime.transformers.float16, after onnxconverter-common's) knows the operators.
What it leaves is not yet a network to ship, as seen with ONNX Runtime 1.31, and is mended here:

- it appends its casts to the end, where a graph has to be in order, and writes a cast once per
  reader under one name;
- every FP32 node's result becomes float16 at once, so between two FP32 nodes a value loses its
  digits on the way: pixels before they are normalised, the density map before it is summed;
- a stored array that FP32 and float16 nodes share becomes float16 for both, and stored numbers
  under 6e-8 become 6e-8, not 0.
"""

import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from crowdrt.calibration.fp16.plan import FLOAT_PLACES, Fp16Plan
from crowdrt.engines.rewrites.normalisation import drop_unread
from crowdrt.lazy import require
from crowdrt.onnx_graph import name_of

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
SUFFIX = "_fp16"

Node = onnx.NodeProto


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose nodes all have names, and whose float constants are stored arrays."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # would describe those constants, and is inferred again
    for node in list(copy.graph.node):
        value = next((each.t for each in node.attribute if each.name == "value"), None)
        if node.op_type == "Constant" and value is not None and value.data_type == FLOAT:
            stored = copy.graph.initializer.add()
            stored.CopyFrom(value)
            stored.name = node.output[0]
            copy.graph.node.remove(node)
        elif not node.name:
            node.name = name_of(node)
    return copy


def to_fp16(model: onnx.ModelProto, plan: Fp16Plan) -> onnx.ModelProto:
    """Return a copy of the prepared `model` that works in float16 as `plan` says.

    Inputs and outputs keep their names and types; a tensor that exists in both types has the
    suffix `_fp16` in float16.
    """
    split = with_own_weights(model, plan)
    half = convert(split, plan)
    nodes, casts = told_apart(half.graph.node, split)
    casts = without_round_trips(nodes, casts, taken(split.graph))
    del half.graph.node[:], half.graph.value_info[:], half.graph.output[:]
    half.graph.node.extend(in_order(nodes, casts))
    half.graph.output.extend(model.graph.output)
    return half


def with_own_weights(model: onnx.ModelProto, plan: Fp16Plan) -> onnx.ModelProto:
    """Return a copy in which no stored array has readers of both kinds.

    What float16 nodes read is rounded here: to the nearest float16, which may be 0.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names, stored = taken(copy.graph), {v.name: v for v in copy.graph.initializer}
    halves = {name: free(name + SUFFIX, names) for name in plan.weights}
    for name, half in halves.items():
        array = numpy_helper.to_array(stored[name]).astype(np.float16).astype(np.float32)
        copy.graph.initializer.append(numpy_helper.from_array(array, half))
    for node in copy.graph.node:
        if name_of(node) in plan.cast:
            fixed = FLOAT_PLACES.get(node.op_type, ())
            for i, name in enumerate(node.input):
                node.input[i] = name if i in fixed else halves.get(name, name)
    drop_unread(copy.graph)
    return copy


def convert(model: onnx.ModelProto, plan: Fp16Plan) -> onnx.ModelProto:
    """Return what ONNX Runtime's converter makes of `model`; its graph is not in order."""
    blocked = [name for name in map(name_of, model.graph.node) if name not in plan.cast]
    half: onnx.ModelProto = converter().convert_float_to_float16(
        onnx.shape_inference.infer_shapes(model),
        keep_io_types=[value.name for value in model.graph.input],
        disable_shape_infer=True,
        op_block_list=[],
        node_block_list=blocked,
    )
    return half


def converter() -> Any:
    """Return ONNX Runtime's float16 module; the folder that it adds to `sys.path` is taken out."""
    before = list(sys.path)
    try:
        return require("onnxruntime.transformers.float16", extra="cpu")
    finally:
        sys.path[:] = before


def told_apart(nodes: Iterable[Node], original: onnx.ModelProto) -> tuple[list[Node], list[Node]]:
    """Return the nodes of the network, and the casts that the converter added, each once."""
    known = set(map(name_of, original.graph.node))
    network: list[Node] = []
    casts: dict[str, Node] = {}
    for node in nodes:
        if name_of(node) in known:
            network.append(node)
        else:
            casts.setdefault(node.output[0], node)
    return network, list(casts.values())


def without_round_trips(
    nodes: Sequence[Node], casts: Sequence[Node], names: set[str]
) -> list[Node]:
    """Let FP32 nodes read what FP32 nodes made; return the casts that are still needed.

    Of a tensor X that an FP32 node makes, the converter has X_cast_to_fp16 (FP32), X (float16)
    and X_cast_to_fp32, which has lost digits: they become X, X_fp16 and X.
    """
    full = {cast.output[0]: cast.input[0] for cast in casts if target(cast) == FLOAT16}
    renamed = {}
    for half, source in full.items():
        renamed[source] = source if source in names else half
        renamed[half] = free(renamed[source] + SUFFIX, names)
    for cast in casts:
        if cast.input[0] in full:
            renamed[cast.output[0]] = renamed[full[cast.input[0]]]
    kept = [cast for cast in casts if cast.input[0] not in full]
    for node in (*nodes, *kept):
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    read = {name for node in (*nodes, *kept) for name in node.input}
    return [cast for cast in kept if cast.output[0] in read]


def in_order(nodes: Sequence[Node], casts: Sequence[Node]) -> list[Node]:
    """Put every cast right behind the node that makes what it reads."""
    made = {name for node in nodes for name in node.output}
    ordered = [cast for cast in casts if cast.input[0] not in made]
    for node in nodes:
        ordered += [node, *(cast for cast in casts if cast.input[0] in node.output)]
    return ordered


def target(cast: Node) -> int:
    """Return the ONNX type that a Cast node casts to."""
    return int(next(attribute.i for attribute in cast.attribute if attribute.name == "to"))


def taken(graph: onnx.GraphProto) -> set[str]:
    """Return the names of a graph's tensors."""
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return names | {value.name for value in (*graph.input, *graph.initializer)}


def free(stem: str, names: set[str]) -> str:
    """Return a name that is not among `names`, and add it."""
    numbered = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1)))
    name = next(name for name in numbered if name not in names)
    names.add(name)
    return name
