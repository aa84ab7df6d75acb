"""INT8 written into the graph: QuantizeLinear and DequantizeLinear around what runs in INT8.

Activations are int8 with one scale per tensor, weights int8 with one scale per output channel,
zero points 0, biases float. Weights keep their float values behind a Q/DQ pair of their own: the
one form that TensorRT 8.6, 10 and 11 and ONNX Runtime all fuse. TensorRT up to 8.5 is known to
refuse int8 constants ("invalid weights type of Int8", onnxruntime issue 11535), for 8.6 nobody
says otherwise, 10 and 11 take both, and ONNX Runtime folds the pair when it loads the file.
Likewise each reader of a tensor has a pair of its own, and every pair names its zero point, as
TensorRT 8 requires.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from crowdrt.calibration.int8.bias import mean_shift
from crowdrt.calibration.int8.plan import Plan
from crowdrt.engines.rewrites.normalisation import drop_unread
from crowdrt.int8 import MAX_BIAS_STEPS, MIN_SCALE, WEIGHT_MAX, WeightScales, activation_scale
from crowdrt.onnx_graph import name_of

OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}
ASK_NOTHING = ("Shape", "Size")  # of a tensor's values


def insert_qdq(
    model: onnx.ModelProto,
    plan: Plan,
    ranges: Mapping[str, float],
    *,
    weight_bits: int,
    weights: WeightScales = "channel",
    means: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> onnx.ModelProto:
    """Return a copy of the float `model` that runs in INT8 as `plan` says.

    Args:
        model: the graph for which the plan was made.
        plan: what to quantize.
        ranges: |x| up to which each group of the plan is represented; 0 where all was zero.
        weight_bits: 7 or 8.
        weights: "layer" gives all channels of a layer the largest of their scales.
        means: channel means of what the convolutions read, by which their biases make up for
            rounded weights; without, biases stay as they are.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    writer = Writer(graph)
    scales = {group: activation_scale(ranges[group]) for group in plan.watched}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if name_of(node) in plan.convs:
            scale = float(scales[plan.group_of[node.input[0]]])
            steps = weight_scales(node, writer.constants, scale, WEIGHT_MAX[weight_bits])
            if weights == "layer":
                steps = np.full_like(steps, steps.max())
            if means is not None:
                writer.correct_bias(node, steps, means[node.input[0]])
            node.input[1] = writer.pair(node.input[1], steps, axis=OUTPUT_AXIS[node.op_type])
        if node.op_type not in ASK_NOTHING and not reads_float(node, plan):
            for i, name in enumerate(node.input):
                if name in plan.group_of:
                    node.input[i] = writer.pair(name, scales[plan.group_of[name]])
        nodes += [*writer.take_nodes(), node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(writer.initializers)
    drop_unread(graph)  # biases that corrected ones replace
    return quantized


def reads_float(node: onnx.NodeProto, plan: Plan) -> bool:
    """Say whether a node that stays float must not read behind a DequantizeLinear.

    ONNX Runtime would quantize the weights of a convolution or a Gemm there of its own accord. Of
    a MatMul it does not, and a float reader would keep the convolution before it out of INT8.
    """
    return name_of(node) in plan.left and node.op_type != "MatMul"


def weight_scales(
    conv: onnx.NodeProto,
    constants: Mapping[str, npt.NDArray[np.float32]],
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


class Writer:
    """Makes Q/DQ pairs and constants with names that are free; one tensor's pairs share theirs."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {v.name: numpy_helper.to_array(v) for v in graph.initializer}
        self.initializers: list[onnx.TensorProto] = []
        self._names = {name for node in graph.node for name in [node.name, *node.output]}
        self._names |= {value.name for value in [*graph.input, *graph.initializer]}
        self._shared: dict[tuple[str, bytes], tuple[str, str]] = {}
        self._nodes: list[onnx.NodeProto] = []

    def pair(self, tensor: str, scale: npt.NDArray[np.float32], *, axis: int | None = None) -> str:
        """Add a Q/DQ pair behind `tensor` and return what it emits."""
        step, zero = self._step_and_zero(tensor, scale)
        codes, values = self._free(f"{tensor}_q"), self._free(f"{tensor}_dq")
        pair = [
            helper.make_node("QuantizeLinear", [tensor, step, zero], [codes], codes),
            helper.make_node("DequantizeLinear", [codes, step, zero], [values], values),
        ]
        if axis is not None:
            for node in pair:
                node.attribute.append(helper.make_attribute("axis", axis))
        self._nodes += pair
        return values

    def correct_bias(
        self,
        conv: onnx.NodeProto,
        steps: npt.NDArray[np.float32],
        means: npt.NDArray[np.float64],
    ) -> None:
        """Give `conv` a bias by which rounding its weights leaves its mean where it was."""
        weight = self.constants[conv.input[1]]
        axis = OUTPUT_AXIS[conv.op_type]
        step = steps.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        shift = mean_shift(conv, np.rint(weight / step) * step - weight, means)
        if len(conv.input) > 2 and conv.input[2] not in self.constants:
            return  # computed by the network, which is left alone
        bias = self.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros_like(shift)
        corrected = self._constant(f"{conv.input[1]}_bias", (bias - shift).astype(np.float32))
        del conv.input[2:]
        conv.input.append(corrected)

    def take_nodes(self) -> list[onnx.NodeProto]:
        """Return the nodes made since the last call."""
        nodes, self._nodes = self._nodes, []
        return nodes

    def _step_and_zero(self, tensor: str, scale: npt.NDArray[np.float32]) -> tuple[str, str]:
        key = (tensor, scale.tobytes())
        if key not in self._shared:
            zeros = np.zeros(scale.shape, np.int8)
            self._shared[key] = (
                self._constant(f"{tensor}_scale", scale),
                self._constant(f"{tensor}_zero", zeros),
            )
        return self._shared[key]

    def _constant(self, stem: str, array: npt.NDArray[np.float32] | npt.NDArray[np.int8]) -> str:
        name = self._free(stem)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def _free(self, stem: str) -> str:
        numbered = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1)))
        name = next(name for name in numbered if name not in self._names)
        self._names.add(name)
        return name
