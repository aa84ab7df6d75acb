import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.rewrites.channels import with_fourth_channel

# Two convolutions share a three-channel image, as in a network of several columns.
GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 3, h, w] image) => (float[n, 4, h, w] density)
<float xs = {0.02}, uint8 xz = {128}, float rs = {0.05}, uint8 rz = {0}>
{
    xq = QuantizeLinear (image, xs, xz)
    xd = DequantizeLinear (xq, xs, xz)
    v1 = QuantizeLinear <axis = 0> (w1, ws, wz)
    u1 = DequantizeLinear <axis = 0> (v1, ws, wz)
    v2 = QuantizeLinear <axis = 0> (w2, ws, wz)
    u2 = DequantizeLinear <axis = 0> (v2, ws, wz)
    v3 = QuantizeLinear <axis = 0> (w3, ws, wz)
    u3 = DequantizeLinear <axis = 0> (v3, ws, wz)
    c1 = Conv <pads = [1, 1, 1, 1]> (xd, u1, b1)
    c2 = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (xd, u2)
    both = Add (c1, c2)
    r = Relu (both)
    rq = QuantizeLinear (r, rs, rz)
    rd = DequantizeLinear (rq, rs, rz)
    density = Conv <pads = [1, 1, 1, 1]> (rd, u3)
}
"""


@pytest.fixture
def graph(from_text) -> onnx.ModelProto:
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 3, 3, 3), "w3": (4, 4, 3, 3), "b1": (4,)}
    scales = {"ws": np.full(4, 0.02, np.float32), "wz": np.zeros(4, np.int8)}
    return from_text(GRAPH, shapes | scales)


def read_shapes(model: onnx.ModelProto) -> list[int]:
    """How many channels each convolution reads."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info
    }
    return [shapes[node.input[0]][1] for node in model.graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize("optimise", [True, False])
def test_the_answer_is_the_same_to_the_bit(graph, optimise):
    image = np.random.default_rng(1).normal(0, 1, (2, 3, 20, 28)).astype(np.float32)
    padded = with_fourth_channel(graph)
    onnx.checker.check_model(padded, full_check=True)
    assert read_shapes(graph) == [3, 3, 4]
    assert read_shapes(padded) == [4, 4, 4]
    expected, got = (
        OrtEngine(m.SerializeToString(), optimise=optimise).run({"image": image})["density"]
        for m in (graph, padded)
    )
    assert expected.std() > 0.1
    np.testing.assert_array_equal(got, expected)


def test_the_model_itself_is_left_alone(graph):
    before = graph.SerializeToString()
    with_fourth_channel(graph)
    assert graph.SerializeToString() == before


def test_other_convolutions_stay_as_they_are(graph):
    for node in graph.graph.node:
        if node.op_type == "Conv" and node.output[0] in ("c1", "c2"):
            node.attribute.append(onnx.helper.make_attribute("group", 3))
    again = with_fourth_channel(graph)
    assert again == graph

    plain = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) '
    )
    floats = parser.parse_model(plain + "{ y = Conv (x, w) }")
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
    floats.graph.initializer.append(weight)
    assert weight.data_type == TensorProto.FLOAT
    assert with_fourth_channel(floats) == floats
