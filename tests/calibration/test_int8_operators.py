"""INT8 around operators that are no convolutions, and weights that several convolutions share."""

import numpy as np
import onnx
import pytest
from small_graphs import NORMALISE, TEXTS, constants_of, drawn, from_text, network, picture, run
from test_qdq import int8_of, ranges_on

from crowdrt.calibration.cost import conv_macs
from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.calibration.int8.qdq import insert_qdq
from crowdrt.engines.ort import save_optimised
from crowdrt.onnx_graph import int8_convs

# what runs in ONNX Runtime on codes, and what between them in float
RESIZE = 'r1 = Relu (y1) x9 = Resize <mode = "{mode}"> (r1, , twice)'
TAIL = " y9 = Conv (x9, w9, b9) r9 = Relu (y9) density = Conv (r9, w10, b10)"
TAIL += " count = ReduceSum <keepdims = 0> (density, axes)"
SHAPES = {"w1": (8, 3, 3, 3), "w9": (8, 8, 3, 3), "w10": (1, 8, 1, 1)}
HEAD = NORMALISE + "y1 = Conv <pads = [1, 1, 1, 1]> (normal, w1, b1)"

BETWEEN = {
    "LeakyRelu": "x9 = LeakyRelu <alpha = 0.25> (y1)",
    "PRelu": "x9 = PRelu (y1, slope)",
    "Resize": 'r1 = Relu (y1) x9 = Resize <mode = "linear"> (r1, , twice)',
    "AveragePool": """
        r1 = Relu (y1)
        x9 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
    """,
    "MatMul": """
        r1 = Relu (y1)
        averaged = MatMul (r1, matrix)
        wide = MatMul (averaged, back)
        x9 = Sub (r1, wide)
    """,
}
EXTRA = {
    "slope": np.full((1, 1, 1), 0.25, np.float32),
    "matrix": np.kron(np.eye(4), np.full((16, 1), 1 / 16)).astype(np.float32),
    "back": np.kron(np.eye(4), np.ones((1, 16))).astype(np.float32),
}


def graph_with(between: str, size: tuple[int | str, int | str] = ("H", "W")) -> onnx.ModelProto:
    return from_text(HEAD + between + TAIL, SHAPES, arrays=EXTRA, size=size)


@pytest.mark.parametrize("kind", BETWEEN)
def test_int8_counts_with_it_in_between(kind, tmp_path):
    model, image = graph_with(BETWEEN[kind]), picture()
    quantized, plan, _ = int8_of(model, image)
    assert plan.convs == ("Conv_y1", "Conv_y9")
    expected, got = (run(m, {"image": image})["density"] for m in (model, quantized))
    noise = ((expected - got) ** 2).mean()
    assert 0 < noise < 0.01 * expected.var()

    path = tmp_path / "int8.onnx"
    onnx.save(quantized, path)
    save_optimised(path, tmp_path / "cpu.onnx", config={})
    kinds = [node.op_type for node in onnx.load(tmp_path / "cpu.onnx").graph.node]
    # what is behind the last one stays float
    assert kinds.count("QLinearConv") == 1, kinds


def test_a_matrix_product_reads_the_codes_that_convolutions_read():
    """Beside a float reader of its result, no convolution would answer in INT8."""
    quantized, plan, _ = int8_of(graph_with(BETWEEN["MatMul"]), picture())
    makers = {name: node for node in quantized.graph.node for name in node.output}
    first, second = (n for n in quantized.graph.node if n.op_type == "MatMul")
    assert makers[first.input[0]].op_type == "DequantizeLinear"
    assert [first.input[1], second.input[1]] == ["matrix", "back"]  # the matrices stay float
    assert set(plan.left) == {"MatMul_averaged", "MatMul_wide", "Conv_density"}
    readers = [n.op_type for n in quantized.graph.node if "r1" in n.input]
    assert set(readers) == {"QuantizeLinear"}


@pytest.mark.parametrize(("mode", "on_codes"), [("nearest", True), ("linear", False)])
def test_only_a_resize_to_the_nearest_runs_on_codes(mode, on_codes, tmp_path):
    """ONNX Runtime's bilinear resize of codes rounds down, which a count would sum up."""
    quantized, _, _ = int8_of(graph_with(RESIZE.format(mode=mode)), picture())
    path, saved = tmp_path / "int8.onnx", tmp_path / "cpu.onnx"
    onnx.save(quantized, path)
    save_optimised(path, saved, config={})
    graph = onnx.load(saved).graph
    makers = {name: node for node in graph.node for name in node.output}
    (resize,) = [node for node in graph.node if node.op_type == "Resize"]
    maker = makers[resize.input[0]]
    while maker.op_type == "Transpose":
        maker = makers[maker.input[0]]
    assert maker.op_type == ("QLinearConv" if on_codes else "DequantizeLinear")


def test_why_a_bilinear_resize_of_codes_is_avoided():
    text = (
        NORMALISE + ' codes = Cast <to = 2> (image) up = Resize <mode = "linear"> (codes, , twice)'
    )
    text += " wide = Cast <to = 1> (up) density = ReduceSum <keepdims = 1> (wide, channels)"
    text += " count = ReduceSum <keepdims = 0> (density, axes)"
    arrays = {"channels": np.array([1])}
    rounded = from_text(text, {}, arrays=arrays)
    exact = from_text(
        text.replace("codes = Cast <to = 2>", "codes = Cast <to = 1>"), {}, arrays=arrays
    )
    image = {"image": picture()}
    lost = (run(exact, image)["density"] - run(rounded, image)["density"]) / 3
    assert 0.3 < lost.mean() < 0.5  # of a code, at every pixel; see int8/plan.py


SHARED = """
    small = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (normal)
    large = Mul (normal, ten)
    ya = Conv <pads = [1, 1, 1, 1]> (normal, wa, ba)
    ra = Relu (ya)
    yb = Conv <pads = [1, 1, 1, 1]> (small, {b}, b{b})
    rb = Relu (yb)
    ub = Resize <mode = "linear"> (rb, , twice)
    yc = Conv <pads = [1, 1, 1, 1]> (large, {c}, b{c})
    rc = Relu (yc)
    sum1 = Add (ra, ub)
    x9 = Add (sum1, rc)
"""


def shared_weights(b: str, c: str) -> onnx.ModelProto:
    """Three convolutions on inputs of different scales; the weights of two go by other names."""
    arrays = drawn({"wa": (8, 3, 3, 3)}, seed=0)
    arrays |= dict.fromkeys((b, c), arrays["wa"])
    arrays |= {name.replace("w", "b"): arrays["ba"] for name in (b, c)}
    text = SHARED.format(b=b, c=c).replace("bw", "b")
    return from_text(NORMALISE + text + TAIL, SHAPES, arrays={**arrays, "ten": np.float32(10)})


def test_convolutions_that_share_weights_are_quantized_as_if_they_did_not():
    image = picture()
    shared, apart = shared_weights("wa", "wa"), shared_weights("wb", "wc")
    answers = []
    for model in (shared, apart):
        quantized, plan, _ = int8_of(model, image)
        assert plan.convs == ("Conv_ya", "Conv_yb", "Conv_yc", "Conv_y9")
        answers.append(run(quantized, {"image": image})["density"])
    np.testing.assert_array_equal(*answers)
    expected = run(shared, {"image": image})["density"]
    assert 0 < ((expected - answers[0]) ** 2).mean() < 0.01 * expected.var()


def test_shared_weights_are_stored_once_and_have_a_pair_for_each_reader():
    means = {name: np.full(3, level) for name, level in (("normal", 1), ("small", 2), ("large", 9))}
    model = shared_weights("wa", "wa")
    plan = plan_int8(model)
    ranges = ranges_on(model, plan, picture())
    means |= {"x9": np.zeros(8)}
    quantized = insert_qdq(model, plan, ranges, weight_bits=7, means=means)
    constants = constants_of(quantized)
    assert sum(array.shape == (8, 3, 3, 3) for array in constants.values()) == 1
    makers = {name: node for node in quantized.graph.node for name in node.output}
    convs = [n for n in quantized.graph.node if n.name in ("Conv_ya", "Conv_yb", "Conv_yc")]
    ends = [makers[conv.input[1]] for conv in convs]
    assert [makers[end.input[0]].input[0] for end in ends] == ["wa"] * 3
    assert len({end.output[0] for end in ends}) == 3
    assert len({end.input[1] for end in ends}) == 1  # one step: it depends on the weights alone
    # each reads another tensor, whose mean its bias makes up for
    biases = [constants[conv.input[2]] for conv in convs]
    one, two, nine = (bias - constants_of(model)["ba"] for bias in biases)
    assert np.abs(one).min() > 0
    np.testing.assert_allclose(two, 2 * one, atol=1e-6)
    np.testing.assert_allclose(nine, 9 * one, atol=1e-6)


def test_costs_of_a_graph_with_a_size_inside_are_those_at_its_size():
    macs = {"Conv_y1": 8 * 27 * 48 * 64, "Conv_y9": 8 * 72 * 46 * 62, "Conv_density": 8 * 46 * 62}
    model = graph_with(BETWEEN["MatMul"], size=(48, 64))
    for asked in ((48, 64), (576, 864)):
        assert conv_macs(model, asked) == macs


@pytest.mark.parametrize("kind", TEXTS)
def test_onnx_runtime_runs_those_convolutions_in_int8_of_which_the_file_says_so(kind, tmp_path):
    quantized, plan, _ = int8_of(network(kind), picture())
    onnx.save(quantized, tmp_path / "int8.onnx")
    save_optimised(tmp_path / "int8.onnx", tmp_path / "cpu.onnx", config={})
    kinds = [node.op_type for node in onnx.load(tmp_path / "cpu.onnx").graph.node]
    found = int8_convs(quantized.graph)
    assert (*found,) == plan.convs
    assert kinds.count("QLinearConv") == sum(found.values()) > 0
    assert int8_convs(network(kind).graph) == {}
