import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.rewrites.weight_codes import stored_codes


def quantized(weights, step, zero, axis=None, x_shape=(1, 3, 4, 4)) -> onnx.ModelProto:
    """Q/DQ around both inputs of a product, so that one pair quantizes what is stored."""
    arrays = {"w": weights, "sw": step, "zw": zero, "sx": np.float32(0.5), "zx": np.int8(0)}
    options = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["qx"]),
        helper.make_node("DequantizeLinear", ["qx", "sx", "zx"], ["dx"]),
        helper.make_node("QuantizeLinear", ["w", "sw", "zw"], ["qw"], **options),
        helper.make_node("DequantizeLinear", ["qw", "sw", "zw"], ["dw"], **options),
        helper.make_node("Mul", ["dx", "dw"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("step", "zero", "axis"),
    [
        (np.float32(0.01), np.int8(0), None),
        (np.float32(0.01), np.uint8(128), None),
        (np.array([0.01, 0.02, 0.04], np.float32), np.zeros(3, np.int8), 1),
        (np.array([0.01, 0.02, 0.04, 0.05], np.float32), np.zeros(4, np.int8), 3),
        (np.array([0.01, 0.02, 0.04], np.float32), np.array([3, 0, 250], np.uint8), None),
    ],
)
def test_the_codes_are_those_that_onnx_defines(step, zero, axis):
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.5, (1, 3, 4, 4)).astype(np.float32)
    weights.ravel()[:4] = 0.005, 0.015, -0.005, -0.025  # ties go to even
    model = quantized(weights, step, zero, axis)
    coded = stored_codes(model)
    onnx.checker.check_model(coded, full_check=True)
    assert [node.op_type for node in coded.graph.node].count("QuantizeLinear") == 1
    assert "w" not in [value.name for value in coded.graph.initializer]
    (codes,) = [value for value in coded.graph.initializer if value.name == "qw"]
    assert numpy_helper.to_array(codes).std() > 1
    feeds = {"x": rng.normal(0, 5, (1, 3, 4, 4)).astype(np.float32)}
    expected, got = (
        OrtEngine(each.SerializeToString(), optimise=False).run(feeds)["y"]
        for each in (model, coded)
    )
    np.testing.assert_array_equal(got, expected)


def test_what_is_not_stored_or_not_eight_bits_stays():
    weights = np.ones((1, 3, 4, 4), np.float32)
    model = quantized(weights, np.float32(0.01), np.int8(0))
    model.graph.node[2].input.pop()  # no zero point: the codes' type is said nowhere
    assert stored_codes(model) == model
