import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from crowdrt.engines.ort import OrtEngine, for_cpu, save_optimised
from crowdrt.engines.rewrites.float_weights import with_float_weights

# The first convolution is quantized behind its ReLU; the second is not, as in front of a layer
# that was kept in float; the third's weights are stored as codes; nobody reads the last line.
GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 16, h, w] image) => (float[n, 16, h, w] density)
<float xs = {0.02}, int8 xz = {0}, float rs = {0.05}, int8 rz = {0}>
{
    xq = QuantizeLinear (image, xs, xz)
    xd = DequantizeLinear (xq, xs, xz)
    v1 = QuantizeLinear <axis = 0> (w1, ws, wz)
    u1 = DequantizeLinear <axis = 0> (v1, ws, wz)
    v2 = QuantizeLinear <axis = 0> (w2, ws, wz)
    u2 = DequantizeLinear <axis = 0> (v2, ws, wz)
    u3 = DequantizeLinear <axis = 0> (c3, ws, wz)
    a = Conv <pads = [1, 1, 1, 1]> (xd, u1, b1)
    ar = Relu (a)
    aq = QuantizeLinear (ar, rs, rz)
    ad = DequantizeLinear (aq, rs, rz)
    b = Conv <pads = [1, 1, 1, 1]> (ad, u2)
    br = Relu (b)
    density = Conv <pads = [1, 1, 1, 1]> (br, u3)
    unread = DequantizeLinear (aq, rs, rz)
}
"""

BRANCHING = """
g (float[n, 16, h, w] image) => (float[n, 16, h, w] chosen)
{
    outer = Relu (image)
    total = ReduceSum <keepdims = 0> (image)
    nought = Sub (total, total)
    bright = Greater (total, nought)
    chosen = If (bright) <
        then_branch = there () => (float[n, 16, h, w] t) { t = Mul (outer, gain) },
        else_branch = here () => (float[n, 16, h, w] e) { e = Relu (br) }
    >
}
"""
PER_BLOCK = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 16, h, w] image) => (float[n, 16, h, w] density)
{
    w = DequantizeLinear <axis = 1, block_size = 4> (c, s, z)
    density = Conv <pads = [1, 1, 1, 1]> (image, w)
}
"""


@pytest.fixture
def graph(from_text) -> onnx.ModelProto:
    shapes = {"w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "b1": (16,)}
    rng = np.random.default_rng(0)
    codes = {"c3": rng.integers(-64, 64, (16, 16, 3, 3)).astype(np.int8)}
    scales = {"ws": rng.uniform(0.01, 0.03, 16).astype(np.float32), "wz": np.zeros(16, np.int8)}
    return from_text(GRAPH, shapes | codes | scales)


def convolutions(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {n.output[0]: n for n in model.graph.node if n.op_type == "Conv"}


def test_float_convolutions_read_constants_and_integer_ones_codes(graph):
    changed = with_float_weights(graph)
    onnx.checker.check_model(changed, full_check=True)
    stored = {value.name for value in changed.graph.initializer}
    read = {name: conv.input[1] in stored for name, conv in convolutions(changed).items()}
    assert read == {"a": False, "b": True, "density": True}
    assert "unread" not in {name for node in changed.graph.node for name in node.output}


def test_what_only_a_branch_reads_is_kept(graph):
    """The If alone reads `outer` and `gain`."""
    branches = onnx.parser.parse_graph(BRANCHING)
    (last,) = [node for node in graph.graph.node if node.output[0] == "density"]
    last.input[0] = "chosen"
    place = list(graph.graph.node).index(last)
    for node in reversed(branches.node):
        graph.graph.node.insert(place, node)
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "gain"))
    changed = with_float_weights(graph)
    onnx.checker.check_model(changed, full_check=True)
    OrtEngine(graph.SerializeToString())  # by way of every pass
    assert "unread" not in {name for node in changed.graph.node for name in node.output}
    image = np.random.default_rng(1).normal(0, 1, (1, 16, 8, 8)).astype(np.float32)
    for sign in (1, -1):
        feeds = {"image": np.abs(image) * np.float32(sign)}
        expected, got = (
            OrtEngine(m.SerializeToString(), optimise=False).run(feeds)["density"]
            for m in (graph, changed)
        )
        assert expected.std() > 1
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_steps_per_block_are_left_alone(from_text):
    rng = np.random.default_rng(0)
    arrays = {
        "c": rng.integers(-64, 64, (16, 16, 3, 3)).astype(np.int8),
        "s": rng.uniform(0.01, 0.03, (16, 4, 3, 3)).astype(np.float32),  # of 4 of 16 channels
        "z": np.zeros((16, 4, 3, 3), np.int8),
    }
    model = from_text(PER_BLOCK, arrays)
    assert [node.op_type for node in with_float_weights(model).graph.node] == [
        "DequantizeLinear",
        "Conv",
    ]


@pytest.mark.parametrize("optimise", [True, False])
def test_the_weights_are_those_that_dequantizing_gives(graph, optimise):
    for name in ("u2", "u3"):
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    image = np.random.default_rng(1).normal(0, 1, (1, 16, 8, 8)).astype(np.float32)
    run = OrtEngine(graph.SerializeToString(), optimise=optimise).run({"image": image})
    del graph.graph.output[1:]
    stored = {v.name: v for v in with_float_weights(graph).graph.initializer}
    for name in ("u2", "u3"):
        assert run[name].std() > 0.1
        np.testing.assert_array_equal(numpy_helper.to_array(stored[f"{name}_float"]), run[name])


def test_the_answer_is_the_same(graph):
    image = np.random.default_rng(1).normal(0, 1, (2, 16, 20, 28)).astype(np.float32)
    expected, got = (
        OrtEngine(m.SerializeToString(), optimise=False).run({"image": image})["density"]
        for m in (graph, with_float_weights(graph))
    )
    assert expected.std() > 1
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_onnx_runtime_dequantizes_no_weights(graph, tmp_path):
    path, out = tmp_path / "int8.onnx", tmp_path / "optimised.onnx"
    onnx.save(graph, path)
    save_optimised(path, out, num_threads=1, config={})
    nodes = onnx.load(out).graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("QLinearConv") == 1
    assert kinds.count("DequantizeLinear") == 1  # between the integer convolution and the float one
    read = {name for node in nodes for name in node.input}
    assert all(read.intersection(node.output) or "density" in node.output for node in nodes)


def test_the_model_itself_is_left_alone(graph):
    before = graph.SerializeToString()
    with_float_weights(graph)
    for_cpu(before, graph)
    assert graph.SerializeToString() == before


IN_HALVES = """
<ir_version: 10, opset_import: ["" : 19]>
g (float16[n, 16, h, w] image) => (float16[n, 16, h, w] density)
{
    w = DequantizeLinear <axis = 0> (c, s, z)
    density = Conv <pads = [1, 1, 1, 1]> (image, w)
}
"""


def in_halves(from_text, codes):
    rng = np.random.default_rng(0)
    steps = rng.uniform(0.01, 0.03, 16).astype(np.float16)
    zeros = numpy_helper.to_array(numpy_helper.from_array(np.zeros(16, codes.dtype)))
    return from_text(IN_HALVES, {"c": codes, "s": steps, "z": zeros})


def test_weights_of_a_float16_network_stay_float16(from_text):
    codes = np.random.default_rng(0).integers(-64, 64, (16, 16, 3, 3)).astype(np.int8)
    model = in_halves(from_text, codes)
    changed = with_float_weights(model)
    onnx.checker.check_model(changed, full_check=True)
    stored = {value.name: numpy_helper.to_array(value) for value in changed.graph.initializer}
    steps = next(numpy_helper.to_array(v) for v in model.graph.initializer if v.name == "s")
    expected = codes.astype(np.float16) * steps.reshape(-1, 1, 1, 1)
    assert stored["w_float"].dtype == np.float16
    np.testing.assert_array_equal(stored["w_float"], expected)


def test_codes_that_are_no_integers_are_left_alone(from_text):
    codes = np.random.default_rng(0).normal(0, 1, (16, 16, 3, 3)).astype(ml_dtypes.float8_e4m3fn)
    changed = with_float_weights(in_halves(from_text, codes))
    assert [node.op_type for node in changed.graph.node] == ["DequantizeLinear", "Conv"]
