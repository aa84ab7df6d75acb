"""An INT8 network computed with exact integers: what any CPU without saturation has to answer."""

import numpy as np
import onnx
from small_graphs import constants_of

from crowdrt.engines.rewrites.unsigned import unsigned_activations


class ExactNetwork:
    """An INT8 file in the CPU engine's form; `run` keeps every tensor.

    Convolutions of codes are integer sums, which float64 holds exactly: they stay below 2**53.
    Behind them come what QLinearConv does too: bias rounded to int32, one product in float32 from
    sums to steps of the result. With `saturating`, they are the sums of a CPU without VNNI:
    neighbouring channels added in 16 bits that stop at their ends.
    """

    def __init__(self, quantized: onnx.ModelProto, *, saturating: bool = False) -> None:
        self.saturating = saturating
        self.model = unsigned_activations(quantized)
        self.constants = constants_of(self.model)
        self.makers = {name: node for node in self.model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Every tensor by name for one picture (1, C, H, W)."""
        tensors = self.constants | {"image": image}
        for node in self.model.graph.node:
            tensors[node.output[0]] = self.answer(node, tensors)
        return tensors

    def reads_codes(self, node: onnx.NodeProto) -> bool:
        makers = [self.makers.get(name) for name in node.input[:2]]
        return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)

    def answer(self, node: onnx.NodeProto, tensors: dict[str, np.ndarray]) -> np.ndarray:
        if node.op_type == "Conv" and self.reads_codes(node):
            return self.integer_conv(node, tensors)
        given = [tensors.get(name) for name in node.input]
        if node.op_type == "QuantizeLinear" and self.fused_conv(node.input[0]):
            given[1] = np.float32(1)  # the result is in steps already
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return OPERATORS[node.op_type](*given, **attributes)

    def integer_conv(self, conv: onnx.NodeProto, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """The result in float; in steps of its QuantizeLinear, where that is fused."""
        data, weight = (self.makers[name] for name in conv.input[:2])
        step, zero = tensors[data.input[1]], int(tensors[data.input[2]])
        codes = tensors[data.input[0]].astype(np.float64)
        weights = tensors[weight.input[0]].astype(np.float64)
        unit = (tensors[weight.input[1]] * step)[:, None, None]
        bias = tensors[conv.input[2]][:, None, None]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in conv.attribute}
        quantizer = self.quantizer_of(conv)
        if quantizer is None:
            return correlate(codes - zero, weights, **attributes) * unit.astype(np.float64) + bias
        if self.saturating:
            sums = correlate(codes, weights, outside=zero, dot=saturating_dot, **attributes)
            sums -= zero * weights.sum(axis=(1, 2, 3))[:, None, None]
        else:
            sums = correlate(codes - zero, weights, **attributes)
        sums += np.rint(bias / unit)
        assert np.abs(sums).max() < 2**31
        return sums.astype(np.float32) * (unit / tensors[quantizer.input[1]])

    def quantizer_of(self, conv: onnx.NodeProto) -> onnx.NodeProto | None:
        """The QuantizeLinear that is fused into a convolution, with the ReLU between them."""
        readers = self.readers[conv.output[0]]
        if len(readers) == 1 and readers[0].op_type == "Relu":
            readers = self.readers[readers[0].output[0]]
        fused = all(reader.op_type == "QuantizeLinear" for reader in readers)
        return readers[0] if fused else None

    def fused_conv(self, tensor: str) -> bool:
        """Whether `tensor` is the result of a convolution into which its quantizer is fused."""
        maker = self.makers.get(tensor)
        if maker is not None and maker.op_type == "Relu":
            maker = self.makers.get(maker.input[0])
        if maker is None or maker.op_type != "Conv" or not self.reads_codes(maker):
            return False
        return self.quantizer_of(maker) is not None


def plain_dot(weights, window):
    """(O, C) with (C, H, W) -> (O, H, W)."""
    return np.tensordot(weights, window, 1)


def saturating_dot(weights, window):
    """The same in pairs of channels, as vpmaddubsw adds them."""
    odd = len(window) % 2
    weights, window = (
        np.pad(weights, [(0, 0), (0, odd)]),
        np.pad(window, [(0, odd), (0, 0), (0, 0)]),
    )
    sums = np.zeros((len(weights), *window.shape[1:]))
    for c in range(0, len(window), 2):
        pair = np.tensordot(weights[:, c : c + 2], window[c : c + 2], 1)
        sums += np.clip(pair, -(2**15), 2**15 - 1)
    return sums


def correlate(
    data,
    weights,
    *,
    pads=(0, 0, 0, 0),
    dilations=(1, 1),
    strides=(1, 1),
    outside=0,
    dot=plain_dot,
    **_,
):
    """(1, C, H, W) with (O, C, kh, kw) -> (1, O, H', W'), tap by tap."""
    assert list(strides) == [1, 1]
    border = [(0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
    padded = np.pad(data[0], border, constant_values=outside)
    height = padded.shape[1] - dilations[0] * (weights.shape[2] - 1)
    width = padded.shape[2] - dilations[1] * (weights.shape[3] - 1)
    sums = np.zeros((len(weights), height, width))
    for i in range(weights.shape[2]):
        for j in range(weights.shape[3]):
            top, left = i * dilations[0], j * dilations[1]
            window = padded[:, top : top + height, left : left + width]
            sums += dot(weights[:, :, i, j], window)
    return sums[np.newaxis]


def quantize(data, step, zero, *, axis=None):
    if axis is not None:
        step, zero = (
            np.expand_dims(each, tuple(i for i in range(data.ndim) if i != axis))
            for each in (step, zero)
        )
    limits = np.iinfo(zero.dtype)
    return np.clip(np.rint(data / step) + zero, limits.min, limits.max).astype(zero.dtype)


def dequantize(codes, step, zero, *, axis=None):
    if axis is not None:  # weights, of which only the codes are asked
        return None
    return (codes.astype(np.float32) - np.float32(zero)) * step


def max_pool(data, *, kernel_shape, strides, **_):
    assert list(kernel_shape) == list(strides) == [2, 2]
    channels, height, width = data.shape[1:]
    even = data[:, :, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(1, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))


OPERATORS = {
    "Cast": lambda data, **_: data.astype(np.float32),
    "Sub": lambda a, b: a - b,
    "Div": lambda a, b: a / b,
    "Mul": lambda a, b: a * b,
    "Flatten": lambda data, **_: data.reshape(len(data), -1),
    "Relu": lambda data: np.maximum(data, 0),
    "MaxPool": max_pool,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "Conv": lambda data, weights, bias, **how: (
        correlate(data, weights, **how) + bias[:, None, None]
    ),
    "ReduceSum": lambda data, axes, keepdims=1, **_: data.sum(
        axis=tuple(axes), keepdims=bool(keepdims)
    ),
    "Constant": lambda *, value: onnx.numpy_helper.to_array(value),
}
