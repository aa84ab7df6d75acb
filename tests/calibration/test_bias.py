import numpy as np
import pytest
from onnx import helper, numpy_helper
from small_graphs import FLOAT, constants_of, from_text, network, picture, run, with_outputs
from test_qdq import int8_of, ranges_on

from crowdrt.calibration.int8.bias import mean_shift
from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.calibration.int8.qdq import insert_qdq


def means_of(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=(0, 2, 3), dtype=np.float64)


# name -> (operator, weights' shape, attributes), for 6 input channels
CASES = {
    "plain": ("Conv", (5, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": ("Conv", (5, 6, 3, 3), {"strides": [2, 2]}),
    "grouped": ("Conv", (4, 3, 3, 3), {"group": 2}),
    "depthwise": ("Conv", (6, 1, 3, 3), {"group": 6}),
    "transposed": ("ConvTranspose", (6, 5, 3, 3), {"strides": [2, 2]}),
    "transposed in groups": ("ConvTranspose", (6, 2, 2, 2), {"strides": [2, 2], "group": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_shift_is_what_the_error_adds_to_the_mean(case):
    kind, shape, attributes = CASES[case]
    rng = np.random.default_rng(0)
    error = rng.normal(0, 0.1, shape).astype(np.float32)
    values = rng.random((2, 6, 60, 60), np.float32) + np.arange(6, dtype=np.float32)[:, None, None]
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", FLOAT, [None] * 4)],
        [numpy_helper.from_array(error, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    added = means_of(run(model, {"x": values})["y"])
    assert added.std() > 0.1
    # up to the border, which sees fewer pixels
    np.testing.assert_allclose(
        mean_shift(node, error, means_of(values)), added, atol=0.03 * np.abs(added).max()
    )


@pytest.mark.parametrize("weight_bits", [7, 8])
def test_correction_brings_the_mean_of_every_channel_back(weight_bits):
    model, image = network("vgg"), picture(96, 128)
    plan = plan_int8(model)
    names = {"y1": FLOAT, "p1": FLOAT, "p2": FLOAT, "r3": FLOAT, "normal": FLOAT}
    exact = run(with_outputs(model, names), {"image": image})
    ranges = ranges_on(model, plan, image)
    means = {name: means_of(values) for name, values in exact.items() if name in names}
    moved = []
    for given in (None, means):
        quantized = insert_qdq(model, plan, ranges, weight_bits=weight_bits, means=given)
        got = run(with_outputs(quantized, {"y1": FLOAT}), {"image": image}, optimise=False)
        moved.append(np.abs(means_of(got["y1"]) - means_of(exact["y1"])).mean())
    plain, corrected = moved
    assert corrected < 0.2 * plain


def test_without_means_biases_stay_as_they_are():
    model = network("vgg")
    quantized, _, _ = int8_of(model, picture())
    biases = {n.name: n.input[2] for n in model.graph.node if n.op_type == "Conv"}
    assert {n.name: n.input[2] for n in quantized.graph.node if n.op_type == "Conv"} == biases
    for name in biases.values():
        np.testing.assert_array_equal(constants_of(quantized)[name], constants_of(model)[name])


def test_a_convolution_without_bias_gets_one_and_a_shared_one_is_not_changed():
    text = """
        pixels = Cast <to = 1> (image)
        y1 = Conv (pixels, w1)
        y2 = Conv (y1, w2, b2)
        y3 = Conv (y2, w2, b2)
        density = Conv (y3, w4)
        count = ReduceSum <keepdims = 0> (density, axes)
    """
    shapes = {"w1": (4, 3, 1, 1), "w2": (4, 4, 1, 1), "w4": (1, 4, 1, 1)}
    model, image = from_text(text, shapes), picture()
    plan = plan_int8(model)
    means = dict.fromkeys(("pixels", "y1", "y2"), np.ones(4))
    means["pixels"] = np.full(3, 100.0)
    quantized = insert_qdq(model, plan, ranges_on(model, plan, image), weight_bits=7, means=means)
    convs = {n.name[-2:]: n for n in quantized.graph.node if n.op_type == "Conv"}
    stored = constants_of(quantized)
    assert np.abs(stored[convs["y1"].input[2]]).max() > 0
    assert len({convs[name].input[2] for name in ("y1", "y2", "y3")} | {"b2"}) == 4
    assert "b2" not in stored  # nothing reads it any more
