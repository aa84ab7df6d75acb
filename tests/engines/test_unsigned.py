import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from crowdrt.engines.ort import OrtEngine, save_optimised
from crowdrt.engines.rewrites.unsigned import never_negative, unsigned_activations

# Two INT8 convolutions, the first with a ReLU and a pool: as calibration writes them.
GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 4, h, w] image) => (float[n, 8, i, j] density)
<float xs = {0.02}, int8 xz = {0}, float rs = {0.05}, int8 rz = {0},
 float ys = {0.2}, int8 yz = {0}>
{
    xq = QuantizeLinear (image, xs, xz)
    xd = DequantizeLinear (xq, xs, xz)
    v1 = QuantizeLinear <axis = 0> (w1, ws, wz)
    u1 = DequantizeLinear <axis = 0> (v1, ws, wz)
    c1 = Conv <pads = [1, 1, 1, 1]> (xd, u1, b1)
    r1 = Relu (c1)
    rq = QuantizeLinear (r1, rs, rz)
    rd = DequantizeLinear (rq, rs, rz)
    p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (rd)
    pq = QuantizeLinear (p1, rs, rz)
    pd = DequantizeLinear (pq, rs, rz)
    v2 = QuantizeLinear <axis = 0> (w2, ws, wz)
    u2 = DequantizeLinear <axis = 0> (v2, ws, wz)
    c2 = Conv <pads = [1, 1, 1, 1]> (pd, u2, b2)
    yq = QuantizeLinear (c2, ys, yz)
    density = DequantizeLinear (yq, ys, yz)
}
"""


@pytest.fixture
def signed(from_text) -> onnx.ModelProto:
    shapes = {"w1": (8, 4, 3, 3), "w2": (8, 8, 3, 3), "b1": (8,), "b2": (8,)}
    scales = {"ws": np.full(8, 0.02, np.float32), "wz": np.zeros(8, np.int8)}
    return from_text(GRAPH, shapes | scales)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (1, 4, 24, 32)).astype(np.float32)


def answer(model: onnx.ModelProto, image: np.ndarray, *, optimise: bool) -> np.ndarray:
    engine = OrtEngine(model.SerializeToString(), optimise=optimise)
    return engine.run({"image": image})["density"]


def test_the_same_numbers_within_the_calibrated_range(signed, image):
    unsigned = unsigned_activations(signed)
    onnx.checker.check_model(unsigned, full_check=True)
    within = image / 8  # r1 stays under 127 steps
    expected = answer(signed, within, optimise=False)
    assert expected.std() > 0.1
    np.testing.assert_array_equal(answer(unsigned, within, optimise=False), expected)
    # fused, up to ties of rounding: one step of the output
    apart = np.abs(answer(signed, within, optimise=True) - expected)
    assert apart.max() < 0.21
    assert (apart > 0.01).mean() < 0.01


def test_beyond_the_range_values_are_kept_and_not_clipped(signed, image):
    more = onnx.ModelProto()
    more.CopyFrom(signed)
    more.graph.output.append(onnx.helper.make_tensor_value_info("rd", TensorProto.FLOAT, None))
    loud = {"image": (2.5 * image).clip(-2.5, 2.5)}
    clipped, kept = (
        OrtEngine(m.SerializeToString(), optimise=False).run(loud)["rd"]
        for m in (more, unsigned_activations(more))
    )
    step, top = np.float32(0.05), np.float32(0.05) * np.float32(127)
    assert clipped.max() == top < kept.max()
    np.testing.assert_array_equal(np.minimum(kept, top), clipped)
    np.testing.assert_array_equal(np.rint(kept / step) * step, kept)


def test_onnx_runtime_fuses_every_convolution(signed, tmp_path):
    path, out = tmp_path / "signed.onnx", tmp_path / "optimised.onnx"
    onnx.save(signed, path)
    save_optimised(path, out, config={})
    ops = [node.op_type for node in onnx.load(out).graph.node]
    assert ops.count("QLinearConv") == 2
    assert not {"Conv", "FusedConv", "Relu", "QLinearLeakyRelu"} & set(ops)


def test_a_convolution_whose_shape_is_asked_for_is_fused_too(signed, image, tmp_path):
    """As in graphs for any size, where one tensor is resized to the size of another."""
    alone = onnx.ModelProto()
    alone.CopyFrom(signed)
    position = [node.output[0] for node in signed.graph.node].index("c2") + 1
    asked = onnx.helper.make_node("Shape", ["c2"], ["size"])
    signed.graph.node.insert(position, asked)
    signed.graph.output.append(onnx.helper.make_tensor_value_info("size", TensorProto.INT64, [4]))
    path, out = tmp_path / "signed.onnx", tmp_path / "optimised.onnx"
    onnx.save(signed, path)
    save_optimised(path, out, config={})

    ops = [node.op_type for node in onnx.load(out).graph.node]
    assert ops.count("QLinearConv") == 2
    onnx.checker.check_model(unsigned_activations(signed), full_check=True)
    got = OrtEngine(path).run({"image": image})
    assert got["size"].tolist() == list(got["density"].shape)
    np.testing.assert_array_equal(got["density"], answer(alone, image, optimise=True))


def test_types_follow_the_sign(signed):
    unsigned = unsigned_activations(signed)
    inferred = onnx.shape_inference.infer_shapes(unsigned, strict_mode=True).graph.value_info
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred}
    assert {kinds[name] for name in ("xq", "rq", "pq", "yq")} == {TensorProto.UINT8}
    assert kinds["v1"] == TensorProto.INT8
    stored = {v.name: numpy_helper.to_array(v) for v in unsigned.graph.initializer}
    zeros = {
        n.output[0]: int(stored[n.input[2]].max())
        for n in unsigned.graph.node
        if n.output[0] in kinds and n.op_type == "QuantizeLinear"
    }
    assert zeros == {"xq": 128, "v1": 0, "rq": 0, "pq": 0, "v2": 0, "yq": 128}


def test_the_model_itself_is_left_alone(signed):
    before = signed.SerializeToString()
    unsigned_activations(signed)
    assert signed.SerializeToString() == before


def test_what_is_unsigned_or_float_already_is_returned_as_it_is(signed):
    assert unsigned_activations(unsigned_activations(signed)) is None
    plain = '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) '
    assert unsigned_activations(parser.parse_model(plain + "{ y = Relu (x) }")) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('y = Resize <mode = "linear"> (r, , s)', True),
        ('y = Resize <mode = "cubic"> (r, , s)', False),
        ("y = Concat <axis = 0> (r, r)", True),
        ("y = Concat <axis = 0> (r, x)", False),
        ("y = Concat <axis = 0> (x, r)", False),
        ("y = Abs (x)", True),
        ("y = Neg (r)", False),
        ("y = Add (r, r)", False),  # true, but nobody asked
    ],
)
def test_which_tensors_are_never_negative(line, expected):
    graph = parser.parse_graph(
        f"g (float[4] x, float[1] s) => (float[n] y) {{ r = Relu (x) {line} }}"
    )
    assert ("y" in never_negative(graph.node)) == expected


def test_codes_that_others_read_stay_signed(signed):
    signed.graph.output.append(onnx.helper.make_tensor_value_info("rq", TensorProto.INT8, None))
    unsigned = unsigned_activations(signed)
    stays = [n for n in unsigned.graph.node if n.output[0] == "rq"]
    assert [n.input[2] for n in stays] == ["rz"]


def test_codes_that_a_branch_reads_stay_signed(signed):
    branch = """
    g () => (float[n, 8, i, j] other) {
        always = Constant <value = bool {1}> ()
        other = If (always) <
            then_branch = yes () => (float[n, 8, i, j] t) { t = DequantizeLinear (rq, rs, rz) },
            else_branch = no () => (float[n, 8, i, j] e) { e = Relu (c1) }
        >
    }"""
    signed.graph.node.extend(parser.parse_graph(branch).node)
    unsigned = unsigned_activations(signed)
    types = {n.output[0]: n.input[2] for n in unsigned.graph.node if n.op_type == "QuantizeLinear"}
    assert types["rq"] == "rz"
    assert types["pq"] != "rz"
