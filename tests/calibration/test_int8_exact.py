"""What the CPU engine computes in INT8 is integer arithmetic, and no CPU can saturate on it."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_graphs import UINT8, constants_of, network, picture, with_outputs
from test_qdq import int8_of, weight_codes

from crowdrt.calibration.int8.qdq import WEIGHT_MAX
from crowdrt.engines.ort import OrtEngine, save_optimised
from crowdrt.engines.rewrites.unsigned import unsigned_activations


def unfold(codes: np.ndarray, conv: onnx.NodeProto, kernel: tuple[int, int], pad: int):
    """(N, C, H, W) integers -> (N, C * kh * kw, H', W'), with `pad` outside the image."""
    attributes = {a.name: a.ints for a in conv.attribute}
    pads = attributes.get("pads", [0, 0, 0, 0])
    step = attributes.get("dilations", [1, 1])
    assert attributes.get("strides", [1, 1]) == [1, 1]
    padded = np.pad(
        codes, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])], constant_values=pad
    )
    height = padded.shape[2] - step[0] * (kernel[0] - 1)
    width = padded.shape[3] - step[1] * (kernel[1] - 1)
    windows = [
        padded[:, :, i * step[0] : i * step[0] + height, j * step[1] : j * step[1] + width]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return np.stack(windows, axis=2).reshape(len(codes), -1, height, width)


class Layer:
    """One INT8 convolution of a network in the CPU engine's form: names, codes and steps."""

    def __init__(self, model: onnx.ModelProto, conv: onnx.NodeProto) -> None:
        constants = constants_of(model)
        makers = {name: node for node in model.graph.node for name in node.output}
        readers = {name: node for node in model.graph.node for name in node.input}
        data, weight = makers[conv.input[0]], makers[conv.input[1]]
        last = readers[conv.output[0]]
        if last.op_type == "Relu":
            last = readers[last.output[0]]
        assert last.op_type == "QuantizeLinear"
        self.conv, self.source, self.result = conv, data.input[0], last.output[0]
        self.input_step, self.input_zero = (constants[n] for n in data.input[1:])
        self.output_step, self.output_zero = (constants[n] for n in last.input[1:])
        self.steps = constants[weight.input[1]]
        stored = constants[makers[weight.input[0]].input[0]]
        self.codes = np.rint(stored / self.steps[:, None, None, None]).astype(np.int64)
        self.bias = constants[conv.input[2]]

    def answer(self, codes: np.ndarray) -> np.ndarray:
        """The output codes by exact integer arithmetic, rounded half to even at the end."""
        zero = int(self.input_zero)
        columns = unfold(codes.astype(np.int64), self.conv, self.codes.shape[2:], zero) - zero
        sums = np.einsum("nkhw,ok->nohw", columns, self.codes.reshape(len(self.codes), -1))
        unit = self.input_step.astype(np.float64) * self.steps
        sums += np.rint(self.bias / unit).astype(np.int64)[:, None, None]
        assert np.abs(sums).max() < 2**31
        scaled = sums * (unit / self.output_step)[:, None, None]
        return np.clip(np.rint(scaled) + int(self.output_zero), 0, 255).astype(np.uint8)


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    constants = constants_of(model)
    convs = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] not in constants]
    return [Layer(model, conv) for conv in convs[:-1]]  # the last one's result is float


@pytest.mark.parametrize("kind", ["vgg", "columns"])
@pytest.mark.parametrize("weight_bits", [7, 8])
def test_every_convolution_equals_integer_arithmetic(kind, weight_bits, tmp_path):
    quantized, plan, _ = int8_of(network(kind), picture(), weight_bits=weight_bits)
    unsigned = unsigned_activations(quantized)
    layers = layers_of(unsigned)
    assert len(layers) == len(plan.convs) - 1 >= 2
    codes = {name: UINT8 for layer in layers for name in (layer.source, layer.result)}
    open_codes = with_outputs(unsigned, codes)

    # this is the fused kernel, and not a simulation in float
    path, optimised = tmp_path / "codes.onnx", tmp_path / "optimised.onnx"
    onnx.save(open_codes, path)
    save_optimised(path, optimised, config={})
    ops = [node.op_type for node in onnx.load(optimised).graph.node]
    assert ops.count("QLinearConv") == len(layers)

    emitted = OrtEngine(open_codes.SerializeToString()).run({"image": picture(96, 128, seed=5)})
    for layer in layers:
        expected, got = layer.answer(emitted[layer.source]), emitted[layer.result]
        assert expected.std() > 3
        apart = np.abs(expected.astype(int) - got)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-4  # ties, which float32 rounds either way


def pair_sums(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """vpmaddubsw: u8 x s8 products, neighbours added in 16 bits that saturate."""
    products = activations.astype(np.int64) * weights.astype(np.int64)
    pairs = products.reshape(*products.shape[:-1], -1, 2).sum(axis=-1)
    return np.clip(pairs, -(2**15), 2**15 - 1)


def dot_without_vnni(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What a CPU without VNNI sums up for each pair of rows."""
    if activations.shape[-1] % 2:
        activations, weights = (
            np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 1)]) for a in (activations, weights)
        )
    return pair_sums(activations, weights).sum(axis=-1)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.uint8, 32),
    hnp.arrays(np.int8, 32, elements=st.integers(-WEIGHT_MAX[7], WEIGHT_MAX[7])),
)
def test_seven_bit_weights_never_saturate(activations, weights):
    exact = (activations.astype(int) * weights).sum()
    assert dot_without_vnni(activations, weights) == exact


def test_seven_bits_is_the_most_that_never_saturates():
    brightest = np.full(2, 255, np.uint8)
    for sign in (-1, 1):
        widest = np.full(2, sign * WEIGHT_MAX[7], np.int8)
        assert dot_without_vnni(brightest, widest) == sign * 2 * 255 * 64
        assert dot_without_vnni(brightest, widest + sign) != sign * 2 * 255 * 65


@pytest.mark.parametrize(("weight_bits", "saturates"), [(7, False), (8, True)])
def test_the_first_layer_of_a_network_without_vnni(weight_bits, saturates):
    """Its input is signed, so shifted by 128 to all of 0..255: the planted case for 8 bits."""
    model = network("vgg")
    for value in model.graph.initializer:
        if value.name == "w1":  # neighbouring channels of one sign, as in a brightness detector
            array = np.abs(onnx.numpy_helper.to_array(value))
            value.CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    bright = np.full((1, 3, 32, 32), 255, np.uint8)
    quantized, _, _ = int8_of(model, bright, weight_bits=weight_bits)
    (layer,) = [x for x in layers_of(unsigned_activations(quantized)) if x.source == "normal_q"]
    codes = np.full((1, 3, 8, 8), 127 + 128, np.int64)  # the brightest pixel, shifted
    columns = unfold(codes, layer.conv, layer.codes.shape[2:], 128).transpose(0, 2, 3, 1)
    weights = layer.codes.reshape(len(layer.codes), -1)
    exact = columns @ weights.T
    seen = dot_without_vnni(columns[..., None, :], weights)
    assert (seen != exact).any() == saturates


@pytest.mark.parametrize("kind", ["vgg", "columns", "normed"])
def test_no_network_in_seven_bits_can_saturate_whatever_it_sees(kind):
    quantized, _, _ = int8_of(network(kind), picture(), weight_bits=7)
    for codes, _ in weight_codes(quantized):
        largest_two = np.sort(np.abs(codes).ravel())[-2:]
        assert 255 * largest_two.sum() <= 2**15 - 1
