"""Shape arithmetic at one size, computed beforehand: what is left has known shapes throughout."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from crowdrt.onnx_graph import QUANTIZERS, inferred_shapes, reads, subgraphs

Array = npt.NDArray[np.generic]
LARGEST = 2**16  # numbers; a pooling window or a grid, and no weights
# A quantizer of a stored tensor says how it is to be kept; the others draw numbers.
KEPT = frozenset((*QUANTIZERS, "Constant", "RandomNormal", "RandomUniform", "Multinomial"))
# what a node may answer with where it cannot be computed here
FAILURES = (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError)


def fold_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the nodes that compute what follows from its fixed inputs' shapes.

    Each round makes more shapes known, until one finds nothing.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    while constants := computed(folded.graph, inferred_shapes(folded), opsets=folded):
        keep = [node for node in folded.graph.node if not set(node.output) <= set(constants)]
        del folded.graph.node[:]
        folded.graph.node.extend(keep)
        wanted = set().union(*map(reads, keep))
        folded.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(array), name)
            for name, array in constants.items()
            if name in wanted
        )
    return folded


def computed(
    graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], *, opsets: onnx.ModelProto
) -> dict[str, Array]:
    """Return what small nodes compute from stored numbers and from known shapes, by name."""
    known = {
        stored.name: numpy_helper.to_array(stored)
        for stored in graph.initializer
        if math.prod(stored.dims) <= LARGEST
    }
    outputs = {value.name for value in graph.output}
    found: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type == "Constant":
            known |= evaluated(node, {}, opsets) or {}
        if node.op_type in KEPT or outputs & set(node.output) or any(subgraphs(node)):
            continue
        if node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
            sides = np.array(shapes[node.input[0]], np.int64)
            result: dict[str, Array] | None = {node.output[0]: sides}
        elif all(name in known for name in node.input if name):
            result = evaluated(node, known, opsets)
        else:
            continue
        if result and all(array.size <= LARGEST for array in result.values()):
            known |= result
            found |= result
    return found


def evaluated(
    node: onnx.NodeProto, known: Mapping[str, Array], opsets: onnx.ModelProto
) -> dict[str, Array] | None:
    """Return what a node computes, None where it cannot be computed here."""
    from onnx.reference import ReferenceEvaluator

    feeds = {name: known[name] for name in node.input if name}
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    names = [name for name in node.output if name]
    answers = [onnx.ValueInfoProto(name=name) for name in names]
    graph = helper.make_graph([node], "one", values, answers)
    alone = helper.make_model(graph, opset_imports=opsets.opset_import)
    try:
        results = ReferenceEvaluator(alone).run(None, feeds)
    except FAILURES:
        return None
    return {name: np.asarray(array) for name, array in zip(names, results, strict=True)}
