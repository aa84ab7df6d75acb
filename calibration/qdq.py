"""INT8 written into the graph: QuantizeLinear and DequantizeLinear around what runs in INT8.

Activations are int8 with one scale per tensor, weights int8 with one scale per output channel,
zero points 0, bias float. Weights keep their float values behind a Q/DQ pair of their own,
because that is the one form that TensorRT 8.6, 10 and 11 and ONNX Runtime all fuse: TensorRT 8
refuses int8 constants ("invalid weights type of Int8"), later versions take both, and ONNX
Runtime folds the pair when it loads the file. Likewise each reader of a tensor has a Q/DQ pair
of its own, and every pair names its zero point, as TensorRT 8 requires.
"""

import itertools
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from crowdrt.calibration.plan import Plan, name_of

INT8_MAX = 127
# 7-bit weights reach 64: a pair of u8 x s8 products is then at most 2 * 255 * 64 = 32640, inside
# the 16-bit sums of CPUs without VNNI.
WEIGHT_MAX = {7: 64, 8: 127}
OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}
# Two scales are multiplied, and must not vanish from float32.
MIN_SCALE = 2.0**-60
# The bias becomes int32 in steps of input scale times weight scale; half of int32 is left free.
MAX_BIAS_STEPS = 2.0**30


def insert_qdq(
    model: onnx.ModelProto, plan: Plan, ranges: Mapping[str, float], *, weight_bits: int
) -> onnx.ModelProto:
    """Return a copy of the float `model` that runs in INT8 as `plan` says.

    Args:
        model: the graph for which the plan was made.
        plan: what to quantize.
        ranges: |x| up to which each group of the plan is represented; 0 where all was zero.
        weight_bits: 7 or 8.
    """
    scales = {group: activation_scale(ranges[group]) for group in plan.watched}
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weights = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    names = Names(graph)
    pairs = Pairs(names)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if name_of(node) in plan.convs:
            scale = scales[plan.group_of[node.input[0]]]
            limit = WEIGHT_MAX[weight_bits]
            steps = weight_scales(node, weights, input_scale=float(scale), limit=limit)
            axis = OUTPUT_AXIS[node.op_type]
            node.input[1] = pairs.around(node.input[1], steps, axis=axis)
        if node.op_type != "Shape":  # asks nothing of the values
            for i, name in enumerate(node.input):
                if name in plan.group_of:
                    node.input[i] = pairs.around(name, scales[plan.group_of[name]])
        nodes += [*pairs.take(), node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(pairs.initializers)
    return quantized


def activation_scale(largest: float) -> npt.NDArray[np.float32]:
    """Return the step by which int8 reaches `largest`; any will do for a tensor that is zero."""
    return np.array(max((largest or 1.0) / INT8_MAX, MIN_SCALE), np.float32)


def weight_scales(
    conv: onnx.NodeProto,
    constants: Mapping[str, npt.NDArray[np.float32]],
    *,
    input_scale: float,
    limit: int,
) -> npt.NDArray[np.float32]:
    """Return the step of each output channel's weights, none of them 0.

    A channel whose bias is huge beside its weights gets a larger step, because the bias must
    fit int32 in units of input scale times weight scale; a dead channel is the extreme case.
    """
    weight = constants[conv.input[1]]
    axis = OUTPUT_AXIS[conv.op_type]
    others = tuple(i for i in range(weight.ndim) if i != axis)
    steps = np.abs(weight).max(axis=others, initial=0).astype(np.float64) / limit
    bias = constants.get(conv.input[2]) if len(conv.input) > 2 else None
    if bias is not None:
        # of a grouped transposed convolution, one weight channel serves every group
        largest = np.abs(bias).reshape(-1, len(steps)).max(axis=0)
        steps = np.maximum(steps, largest / (input_scale * MAX_BIAS_STEPS))
    floored: npt.NDArray[np.float32] = np.maximum(steps, MIN_SCALE).astype(np.float32)
    return floored


class Names:
    """Names that are free in a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {name for node in graph.node for name in [node.name, *node.output]}
        self._taken |= {value.name for value in [*graph.input, *graph.initializer]}

    def free(self, stem: str) -> str:
        """Return `stem`, numbered where it is taken already."""
        candidates = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1)))
        name = next(name for name in candidates if name not in self._taken)
        self._taken.add(name)
        return name


class Pairs:
    """Makes Q/DQ pairs; those of one tensor share their scale and zero point."""

    def __init__(self, names: Names) -> None:
        self.initializers: list[onnx.TensorProto] = []
        self._names = names
        self._constants: dict[tuple[str, bytes], tuple[str, str]] = {}
        self._nodes: list[onnx.NodeProto] = []

    def around(
        self, tensor: str, scale: npt.NDArray[np.float32], *, axis: int | None = None
    ) -> str:
        """Add a pair behind `tensor` and return what it emits."""
        step, zero = self._scale_of(tensor, scale)
        codes = self._names.free(f"{tensor}_q")
        values = self._names.free(f"{tensor}_dq")
        pair = [
            helper.make_node("QuantizeLinear", [tensor, step, zero], [codes], codes),
            helper.make_node("DequantizeLinear", [codes, step, zero], [values], values),
        ]
        if axis is not None:
            for node in pair:
                node.attribute.append(helper.make_attribute("axis", axis))
        self._nodes += pair
        return values

    def take(self) -> Collection[onnx.NodeProto]:
        """Return the nodes made since the last call."""
        nodes, self._nodes = self._nodes, []
        return nodes

    def _scale_of(self, tensor: str, scale: npt.NDArray[np.float32]) -> tuple[str, str]:
        key = (tensor, scale.tobytes())
        if key not in self._constants:
            step, zero = self._names.free(f"{tensor}_scale"), self._names.free(f"{tensor}_zero")
            self._constants[key] = step, zero
            self.initializers += [
                numpy_helper.from_array(scale, step),
                numpy_helper.from_array(np.zeros(scale.shape, np.int8), zero),
            ]
        return self._constants[key]
