"""Casting to float16: what is cast, what the file is like, and how it is judged."""

import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_graphs import (
    INFO,
    NORMALISE,
    TEXTS,
    VGG,
    VGG_WEIGHTS,
    constants_of,
    from_text,
    network,
    picture,
    run,
)

from crowdrt.calibration.calibrate import calibrate
from crowdrt.calibration.fp16.cast import CastConfig, cast
from crowdrt.calibration.fp16.graph import prepared, to_fp16
from crowdrt.calibration.fp16.measure import float16_tensors, observe
from crowdrt.calibration.fp16.plan import (
    ANSWERS,
    BEFORE,
    BETWEEN,
    IN_INT8,
    plan_fp16,
)
from crowdrt.calibration.int8.plan import REQUESTED
from crowdrt.contracts import CalibrationConfig
from crowdrt.data.preprocess import load_feed
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.rewrites.unsigned import never_negative
from crowdrt.errors import CalibrationError, RecipeError
from crowdrt.manifest import read_manifest, sha256_file
from crowdrt.onnx_file import graph_info, set_info
from crowdrt.onnx_graph import element_types

CONFIG = CastConfig(num_images=5)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

GROUP_NORM = (
    NORMALISE
    + """
    y1 = Conv <pads = [1, 1, 1, 1]> (normal, w1, b1)
    asked = Shape (y1)
    groups = Reshape (y1, grouped)
    n1 = InstanceNormalization (groups, g1, o1)
    back = Reshape (n1, asked)
    scaled = Mul (back, s1)
    shifted = Add (scaled, h1)
    r1 = Relu (shifted)
    y2 = Conv (r1, w2, b2)
    density = Conv (y2, w3, b3)
    count = ReduceSum <keepdims = 0> (density, axes)
"""
)
GROUP_NORM_WEIGHTS = {
    "w1": (8, 3, 3, 3),
    "g1": (4,),
    "o1": (4,),
    "s1": (8, 1, 1),
    "h1": (8, 1, 1),
    "w2": (8, 8, 1, 1),
    "w3": (1, 8, 1, 1),
}
SOFT = (
    NORMALISE
    + """
    y1 = Conv <pads = [1, 1, 1, 1]> (normal, w1, b1)
    y2 = Conv <pads = [1, 1, 1, 1]> (y1, w2, b2)
    e1 = Exp (y1)
    e2 = Exp (y2)
    both = Add (e1, e2)
    share = Div (e1, both)
    seen = Mul (share, y1)
    density = Conv (seen, w3, b3)
    count = ReduceSum <keepdims = 0> (density, axes)
"""
)
SOFT_WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (1, 4, 1, 1)}
POINTWISE = (
    NORMALISE
    + """
    y1 = Conv (normal, w1, b1)
    r1 = Relu (y1)
    y2 = Conv (r1, w2, b2)
    r2 = Relu (y2)
    density = Conv (r2, w3, b3)
    count = ReduceSum <keepdims = 0> (density, axes)
"""
)
POINTWISE_WEIGHTS = {"w1": (16, 3, 1, 1), "w2": (16, 16, 1, 1), "w3": (1, 16, 1, 1)}
GRAPHS = TEXTS | {"group norm": (GROUP_NORM, GROUP_NORM_WEIGHTS), "soft": (SOFT, SOFT_WEIGHTS)}


def set_constant(model, name, change):
    """Change a stored array in place."""
    (value,) = [v for v in model.graph.initializer if v.name == name]
    array = numpy_helper.to_array(value).copy()
    value.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype), name))


def scale(model, factors):
    for name, factor in factors.items():
        set_constant(model, name, lambda array, factor=factor: array * factor)


def halved(model):
    model = prepared(model)
    return to_fp16(model, plan_fp16(model))


def node_of(model, name):
    (node,) = [node for node in model.graph.node if node.name == name]
    return node


def casts(model):
    """(from, to type) of every Cast but the network's own."""
    nodes = [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] != "image"]
    return [(n.input[0], n.attribute[0].i) for n in nodes]


@pytest.fixture
def float_onnx(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(network(), path)
    return path


def counts_of(path, photographs):
    model = onnx.load(path)
    feeds = [{"image": load_feed(photo, INFO.preprocessing)} for photo in photographs]
    return np.array([float(run(model, each)["count"][0]) for each in feeds])


# What is cast


def test_what_lies_between_the_first_and_the_last_convolution_is_cast():
    plan = plan_fp16(network())
    assert plan.kept == {
        **dict.fromkeys(["Cast_pixels", "Sub_centred", "Div_normal"], BEFORE),
        **dict.fromkeys(["Conv_density", "ReduceSum_count"], ANSWERS),
    }
    assert len(plan.cast) == 4 + 4 + 2
    assert plan.tensors[0] == "normal"
    assert set(plan.tensors) == {"normal", "p1", "p2"} | {
        f"{k}{i}" for k in "yr" for i in (1, 2, 3, 4)
    }
    assert set(plan.weights) == {f"{kind}{i}" for kind in "wb" for i in (1, 2, 3, 4)}


def test_a_convolution_that_is_named_stays_with_its_relu():
    plan = plan_fp16(network(), keep_float=["Conv_y4"])
    assert (plan.kept["Conv_y4"], plan.kept["Relu_r4"]) == (REQUESTED, BETWEEN)
    half = to_fp16(prepared(network()), plan)
    types = element_types(half)
    assert [types[name] for name in node_of(half, "Conv_y4").input[1:]] == [FLOAT, FLOAT]
    assert types["r4"] == FLOAT
    assert types["y2"] == HALF
    with pytest.raises(CalibrationError, match="keep_float names Relu_r4, no convolution"):
        plan_fp16(network(), keep_float=["Relu_r4"])


def test_a_norm_stays_and_its_neighbours_are_cast():
    half = halved(network("normed"))
    types = element_types(half)
    norm = node_of(half, "InstanceNormalization_n1")
    assert [types[name] for name in (*norm.input, *norm.output)] == [FLOAT] * 4
    for name in ("Conv_y1", "Relu_r1", "ConvTranspose_y2"):
        node = node_of(half, name)
        assert {types[each] for each in (*node.input, *node.output)} == {HALF}
    assert "twice" not in plan_fp16(network("normed")).weights
    resize = node_of(half, "Resize_up")
    assert [types[resize.input[0]], types[resize.input[2]]] == [HALF, FLOAT]


def test_the_scale_and_shift_of_a_group_norm_stay_with_it():
    plan = plan_fp16(from_text(GROUP_NORM, GROUP_NORM_WEIGHTS))
    assert {"Reshape_back", "Mul_scaled", "Add_shifted"} == {
        name for name, why in plan.kept.items() if why == BETWEEN
    }
    assert "norm" in plan.kept["InstanceNormalization_n1"]
    assert {"Conv_y1", "Reshape_groups", "Relu_r1"} <= set(plan.cast)


def test_between_exponentials_nothing_is_cast():
    half = halved(from_text(SOFT, SOFT_WEIGHTS))
    types = element_types(half)
    assert [types[name] for name in ("e1", "e2", "both", "share")] == [FLOAT] * 4
    assert types["seen"] == HALF
    assert Counter(casts(half)) == Counter(
        [("normal", HALF), ("y1", FLOAT), ("y2", FLOAT), ("share", HALF), ("seen", FLOAT)]
    )


def test_the_maker_of_an_output_stays_even_where_work_follows():
    text = VGG.replace("density = Conv (r4", "density = Relu (r4)\n last = Conv (density")
    model = from_text(
        text.replace("ReduceSum <keepdims = 0> (density", "ReduceSum <keepdims = 0> (last"),
        VGG_WEIGHTS | {"w4": (1, 16, 3, 3), "w5": (1, 1, 1, 1)},
    )
    assert plan_fp16(model).kept["Relu_density"] == ANSWERS


# What the file is like


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("kind", GRAPHS)
def test_the_graph_is_valid_and_runs(kind, opset):
    model = from_text(*GRAPHS[kind], opset=opset)
    half = halved(model)
    onnx.checker.check_model(half, full_check=True)
    onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True, data_prop=True)
    assert half.opset_import == model.opset_import
    assert half.ir_version == model.ir_version
    assert list(half.graph.input) == list(model.graph.input)
    assert list(half.graph.output) == list(model.graph.output)
    feeds = {"image": picture()}
    before, after = run(model, feeds), run(half, feeds)
    assert before["density"].std() > 1e-3
    assert after["density"].dtype == after["count"].dtype == np.float32
    assert not np.array_equal(before["density"], after["density"])
    np.testing.assert_allclose(
        after["density"], before["density"], atol=5e-3 * np.abs(before["density"]).max()
    )


@pytest.mark.parametrize("kind", ["vgg", "columns", "normed"])
def test_no_value_is_cast_twice_or_there_and_back(kind):
    half = halved(network(kind))
    found = casts(half)
    assert len(found) == len(set(found))
    made_by = {node.output[0]: node for node in half.graph.node}
    for name, _ in found:
        assert made_by[name].op_type != "Cast"
    types = element_types(half)
    assert types["normal"] == types["centred"] == FLOAT  # the pixels keep every digit
    assert types["normal_fp16"] == HALF


def test_only_what_crosses_is_cast():
    assert Counter(casts(halved(network()))) == Counter([("normal", HALF), ("r4", FLOAT)])
    assert Counter(casts(halved(network("columns")))) == Counter(
        [("normal", HALF), ("fused", FLOAT)]
    )


def test_a_stored_array_that_both_kinds_read_keeps_its_digits_where_it_is_float():
    model = network("columns")
    assert constants_of(model)["ba"].shape == constants_of(model)["bb"].shape
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 / 3], np.float32), "third"))
    node_of(model, "Conv_last").input[2] = "third"
    text_node = onnx.helper.make_node("Mul", ["pa", "third"], ["scaled"], "Mul_scaled")
    index = [n.name for n in model.graph.node].index("Concat_both")
    model.graph.node.insert(index, text_node)
    node_of(model, "Concat_both").input[0] = "scaled"
    stored = constants_of(halved(model))
    assert stored["third"] == np.float32(1 / 3)
    assert stored["third_fp16"] == np.float16(1 / 3)


def test_stored_numbers_too_small_for_float16_become_zero():
    model = network()
    set_constant(model, "w2", lambda w: np.where(np.arange(w.size).reshape(w.shape) % 2, 1e-9, w))
    weights = constants_of(halved(model))["w2_fp16"].ravel()
    assert weights.dtype == np.float16
    assert not weights[1::2].any()
    assert weights[::2].any()


def test_float_constants_inside_the_graph_are_cast_as_stored_ones_are():
    model = network()
    (value,) = [v for v in model.graph.initializer if v.name == "w2"]
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w2"], value=value))
    model.graph.initializer.remove(value)
    half = halved(model)
    assert constants_of(half)["w2_fp16"].dtype == np.float16
    assert len(casts(half)) == 2


def test_a_network_that_is_fed_normalised_pixels_takes_float32(photographs, tmp_path):
    model = network()
    del model.graph.node[:3]
    node_of(model, "Conv_y1").input[0] = "image"
    model.graph.input[0].type.tensor_type.elem_type = FLOAT
    set_info(model, replace(INFO, normalised_input=True))
    path, out = tmp_path / "n.onnx", tmp_path / "n.fp16.onnx"
    onnx.save(model, path)
    cast(path, photographs, out, CONFIG)
    half = onnx.load(out)
    assert list(half.graph.input) == list(model.graph.input)
    assert casts(half)[-1] == ("r4", FLOAT)
    assert read_manifest(out)["facts"]["counts"]["largest"] < 0.01


def test_the_import_path_stays_as_it_is(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("onnxruntime.transformers")]:
        monkeypatch.delitem(sys.modules, name)
    before = list(sys.path)
    halved(network())
    assert sys.path == before


# How it is judged


def test_the_file_counts_like_the_float_one(float_onnx, photographs, tmp_path):
    out = tmp_path / "small.fp16.onnx"
    artifact = cast(float_onnx, photographs, out, CONFIG)
    assert artifact.path == out
    assert artifact.sha256 == sha256_file(out)
    told = INFO.with_calibration(map(sha256_file, photographs))
    assert graph_info(out) == replace(told, precision="fp16")
    before, after = counts_of(float_onnx, photographs), counts_of(out, photographs)
    assert np.std(before) > 1
    assert 0 < np.abs(after - before).max() < 0.005 * np.abs(before).max()
    facts = read_manifest(out)["facts"]
    assert facts["counts"]["largest"] >= facts["counts"]["mean"] > 0
    assert facts["counts"]["largest"] < 0.01
    assert (facts["images"]["num"], facts["judged"]) == (5, 3)
    assert facts["float"]["Conv_density"] == ANSWERS
    assert facts["unfit"] == {}
    assert facts["fp16_nodes"] == 10
    assert 0.99 < facts["fp16_macs"] < 1
    json.dumps(facts)


def test_every_tensor_is_rounded_where_one_session_would_not(photographs, tmp_path):
    """Against arithmetic in NumPy: float16 tensors, FP32 sums."""
    model = from_text(POINTWISE, POINTWISE_WEIGHTS)
    half, path = halved(model), photographs[0]
    source, out = tmp_path / "pointwise.onnx", tmp_path / "pointwise.fp16.onnx"
    onnx.save(model, source)
    cast(source, [path], out, replace(CONFIG, tolerance=0.5))
    stored = constants_of(model)

    def rounded(array):
        return array.astype(np.float16).astype(np.float32)

    def conv(x, i, cut=rounded):
        weight, bias = cut(stored[f"w{i}"][:, :, 0, 0]), cut(stored[f"b{i}"])
        return np.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]

    def answer(cut):
        pixels = load_feed(path, INFO.preprocessing).astype(np.float32)
        x = cut((pixels - 120) / 60)
        for i in (1, 2):
            x = np.maximum(cut(conv(x, i, cut)), 0)
        return conv(x, 3, lambda x: x).sum(dtype=np.float64)

    watched = {name: [] for name in float16_tensors(half)}
    (apart,) = observe(half, INFO, [path], "", watched).values()
    (together,) = observe(half, INFO, [path], "", {}).values()
    expected, exact = answer(rounded), answer(lambda x: x)
    assert abs(apart - expected) < 1e-4 * abs(exact - expected)
    assert abs(together - expected) > 1e-2 * abs(exact - expected) > 1e-3
    counts = read_manifest(out)["facts"]["counts"]
    assert (counts["before"], counts["after"]) == pytest.approx((exact, apart), abs=1e-4)


def test_last_biases_make_up_for_rounded_ones(tmp_path, photographs):
    model = network()
    # the worst that float16 can do to a bias, always the same way
    set_constant(model, "b4", lambda b: np.float16(np.abs(b) + 1) + np.float32(2**-11.01))
    path, out = tmp_path / "shifted.onnx", tmp_path / "shifted.fp16.onnx"
    onnx.save(model, path)
    cast(path, photographs, out, CONFIG)
    facts = read_manifest(out)["facts"]
    assert facts["corrected"]
    assert facts["counts"]["mean"] < 0.5 * facts["uncorrected_counts"]["mean"]
    before, after = (constants_of(onnx.load(each)) for each in (path, out))
    assert "b5" not in after
    np.testing.assert_allclose(after["w5_bias"], before["b5"], atol=0.01)
    assert after["w5_bias"] != before["b5"]


def test_one_image_judges_and_corrects_nothing(float_onnx, photographs, tmp_path):
    out = tmp_path / "one.onnx"
    cast(float_onnx, photographs[:1], out, CONFIG)
    facts = read_manifest(out)["facts"]
    assert (facts["judged"], facts["corrected"]) == (1, False)
    assert constants_of(onnx.load(out))["b5"] == constants_of(onnx.load(float_onnx))["b5"]


def test_a_count_that_moves_too_far_is_refused(float_onnx, photographs, tmp_path):
    out = tmp_path / "small.fp16.onnx"
    with pytest.raises(
        CalibrationError, match=r"moves the count of IMG_\d.png from .* 0.00% is"
    ) as e:
        cast(float_onnx, photographs, out, replace(CONFIG, tolerance=1e-7))
    assert "--tolerance" in e.value.fix
    assert not out.exists()


def test_nothing_is_done_twice_and_every_change_is_noticed(float_onnx, photographs, tmp_path):
    out = tmp_path / "small.fp16.onnx"
    first = cast(float_onnx, photographs, out, CONFIG)
    again = cast(float_onnx, photographs, out, CONFIG)
    assert (again.reused, again.sha256) == (True, first.sha256)

    def redone(*args):
        return not cast(*args).reused

    assert redone(float_onnx, photographs[1:], out, CONFIG)
    assert redone(float_onnx, photographs, out, replace(CONFIG, tolerance=0.5))
    assert redone(float_onnx, photographs, out, CONFIG, ["Conv_y2"])
    assert redone(float_onnx, photographs, out, CONFIG, ["Conv_y3"])
    onnx.save(network(seed=3), float_onnx)
    assert redone(float_onnx, photographs, out, replace(CONFIG, tolerance=0.5))


# What float16 cannot hold


@pytest.fixture
def overflowing(tmp_path):
    """The second ReLU's values reach a hundred thousand; what follows brings them back."""
    model = network()
    scale(model, {"w2": 2e4, "w3": 5e-3, "w4": 1e-2})
    path = tmp_path / "large.onnx"
    onnx.save(model, path)
    return path


def test_a_tensor_that_overflows_is_named_and_stays_float(
    overflowing, photographs, tmp_path, capsys
):
    out = tmp_path / "large.fp16.onnx"
    cast(overflowing, photographs, out, CONFIG)
    facts = read_manifest(out)["facts"]
    assert list(facts["unfit"]) == ["y2", "r2", "p2"]
    y2, image = facts["tensors"]["y2"]["largest"], facts["unfit"]["y2"].split()[4].rstrip(";")
    assert y2 > 65504
    assert facts["unfit"]["y2"].startswith(f"y2 reaches {y2:.4g} on IMG_")
    assert f"3 of 19 tensors stay FP32; the first: y2 reaches {y2:.4g} on {image}" in (
        capsys.readouterr().err
    )
    for name in ("Conv_y2", "Relu_r2", "MaxPool_p2", "Conv_y3"):
        assert "reaches" in facts["float"][name]
    types = element_types(onnx.load(out))
    assert [types[name] for name in ("p1", "y2", "r2", "p2", "y3", "r3")] == [
        *(HALF, FLOAT, FLOAT, FLOAT, FLOAT, HALF),
    ]
    assert 0 < facts["counts"]["largest"] < 0.01
    largest = max(np.abs(value(overflowing, photo, "y2")).max() for photo in photographs)
    assert y2 == pytest.approx(largest, rel=1e-5)
    worst = [np.abs(value(overflowing, photo, "y2")).max() for photo in photographs]
    assert image == photographs[int(np.argmax(worst))].name


def value(path, photo, name):
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, FLOAT, [None] * 4))
    return run(model, {"image": load_feed(photo, INFO.preprocessing)})[name]


def test_strictly_it_is_an_error(overflowing, photographs, tmp_path):
    out = tmp_path / "large.fp16.onnx"
    with pytest.raises(CalibrationError, match=r"3 of 19 tensors; the first: y2 reaches .* on IMG"):
        cast(overflowing, photographs, out, replace(CONFIG, strict=True))
    assert not out.exists()


def test_half_of_the_range_is_left_for_other_photographs(photographs, tmp_path):
    path, out = tmp_path / "near.onnx", tmp_path / "near.fp16.onnx"
    model = network()
    onnx.save(model, path)
    largest = max(np.abs(value(path, photo, "y2")).max() for photo in photographs)
    for share, unfit in ((0.49, []), (0.51, ["y2"])):
        model = network()
        factor = share * 65504 / largest
        scale(model, {"w2": factor, "b2": factor, "w3": factor**-0.5, "w4": factor**-0.5})
        onnx.save(model, path)
        cast(path, photographs, out, CONFIG)
        assert list(read_manifest(out)["facts"]["unfit"]) == unfit


def test_a_tensor_of_tiny_numbers_stays_float(photographs, tmp_path):
    model = network()
    scale(model, {"w2": 1e-7, "b2": 1e-7, "w3": 3e3, "w4": 3e3})
    path, out = tmp_path / "tiny.onnx", tmp_path / "tiny.fp16.onnx"
    onnx.save(model, path)
    cast(path, photographs, out, CONFIG)
    facts = read_manifest(out)["facts"]
    assert set(facts["unfit"]) == {"y2", "r2", "p2", "w2"}  # b2 is added to y2
    assert "fewer digits" in facts["unfit"]["w2"]
    assert facts["counts"]["largest"] < 0.01


def test_numbers_just_under_the_smallest_normal_one_do_no_harm(photographs, tmp_path):
    model = network()
    scale(model, {"w2": 1e-3, "b2": 1e-3, "w3": 3e1, "w4": 3e1})
    path, out = tmp_path / "small.onnx", tmp_path / "small.fp16.onnx"
    onnx.save(model, path)
    cast(path, photographs, out, CONFIG)
    facts = read_manifest(out)["facts"]
    assert facts["tensors"]["w2"]["lost_share"] > 0
    assert "w2" not in facts["unfit"]


def test_a_broken_network_is_named_before_anything_is_cast(photographs, tmp_path):
    model = network()
    set_constant(model, "b2", lambda array: array * np.nan)
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    with pytest.raises((CalibrationError, FloatingPointError), match="NaN"):
        cast(path, photographs, tmp_path / "o.onnx", CONFIG)


# Beside INT8


@pytest.fixture(params=[17, 20])
def int8_onnx(request, tmp_path, photographs):
    """An INT8 network of which two convolutions stayed float."""
    path, out = tmp_path / "vgg.onnx", tmp_path / "vgg.int8.onnx"
    onnx.save(network(opset=request.param), path)
    config = CalibrationConfig(method="minmax", num_images=5)
    calibrate(path, photographs, out, config, keep_float=["Conv_y2", "Conv_y3"])
    return out


def test_of_an_int8_network_the_float_part_is_cast(int8_onnx, photographs, tmp_path):
    out = tmp_path / "mixed.onnx"
    cast(int8_onnx, photographs, out, CONFIG)
    before, half = onnx.load(int8_onnx), onnx.load(out)
    told = INFO.with_calibration(map(sha256_file, photographs))
    assert graph_info(out) == replace(told, precision="int8+fp16", weight_bits=7)
    types = element_types(half)
    for node in half.graph.node:
        if node.op_type == "QuantizeLinear":
            assert [types[node.input[0]], types[node.input[1]]] == [FLOAT, FLOAT]
        if node.op_type == "DequantizeLinear":
            assert [types[node.input[1]], types[node.output[0]]] == [FLOAT, FLOAT]
    for name in ("Conv_y2", "Conv_y3"):
        assert {types[each] for each in node_of(half, name).input} == {HALF}
    facts = read_manifest(out)["facts"]
    assert facts["float"]["Conv_y1"] == facts["float"]["Relu_r1"] == IN_INT8
    assert Counter(n.op_type for n in half.graph.node if n.op_type != "Cast") == Counter(
        n.op_type for n in before.graph.node if n.op_type != "Cast"
    )
    counts = [counts_of(each, photographs) for each in (int8_onnx, out)]
    assert np.std(counts[0]) > 1
    np.testing.assert_allclose(counts[1], counts[0], rtol=0.01)
    assert facts["counts"]["largest"] < 0.01


def test_what_is_fused_into_an_int8_convolution_stays_beside_it(int8_onnx):
    half = halved(onnx.load(int8_onnx))
    made_by = {name: node for node in half.graph.node for name in node.output}
    quantized = [node for node in half.graph.node if node.op_type == "QuantizeLinear"]
    for conv in [n for n in half.graph.node if n.name in ("Conv_y1", "Conv_y4")]:
        assert (
            made_by[conv.input[0]].op_type == made_by[conv.input[1]].op_type == "DequantizeLinear"
        )
    assert "Relu" not in {made_by[n.output[0]].op_type for n in quantized}
    assert casts(half)


def test_what_int8_and_float16_both_read_is_quantized_with_every_digit(photographs, tmp_path):
    text = VGG.replace("r4 = Relu (y4)", "y6 = Conv (p1, w6, b6)\n r6 = Relu (y6)").replace(
        "y4 = Conv <pads = [1, 1, 1, 1]> (r3", "y4 = Conv <pads = [1, 1, 1, 1]> (p1"
    )
    text = text.replace("density = Conv (r4", "r4 = Add (y4, r6)\n density = Conv (r4")
    model = from_text(text, VGG_WEIGHTS | {"w4": (8, 8, 3, 3), "w6": (8, 8, 1, 1)})
    path, out = tmp_path / "both.onnx", tmp_path / "both.int8.onnx"
    onnx.save(model, path)
    calibrate(path, photographs, out, CalibrationConfig(method="minmax"), keep_float=["Conv_y6"])
    half = halved(onnx.load(out))
    types = element_types(half)
    assert types["p1"] == FLOAT
    assert {"QuantizeLinear", "Cast"} <= {n.op_type for n in half.graph.node if "p1" in n.input}
    assert types[node_of(half, "Conv_y6").input[0]] == HALF


def test_an_int8_network_without_float_work_is_refused(tmp_path, photographs):
    path, out = tmp_path / "vgg.onnx", tmp_path / "vgg.int8.onnx"
    onnx.save(network(), path)
    calibrate(path, photographs, out, CalibrationConfig(method="minmax"))
    with pytest.raises(CalibrationError, match=r"nothing in .*vgg.int8.onnx can work in float16"):
        cast(out, photographs, tmp_path / "o.onnx", CONFIG)


def test_the_engine_sees_that_a_cast_relu_is_not_negative(int8_onnx):
    half = halved(onnx.load(int8_onnx))
    positive = never_negative(half.graph.node)
    casts_of_relus = [n for n in half.graph.node if n.op_type == "Cast" and n.input[0] == "r3"]
    assert casts_of_relus
    assert all(node.output[0] in positive for node in casts_of_relus)


# What is refused


@pytest.mark.parametrize("source", ["float", "int8"])
def test_what_is_float16_already_is_refused(source, request, float_onnx, photographs, tmp_path):
    path = request.getfixturevalue("float_onnx")
    if source == "int8":
        path = tmp_path / "small.int8.onnx"
        calibrate(float_onnx, photographs, path, CalibrationConfig(), keep_float=["Conv_y2"])
    out = tmp_path / "once.onnx"
    cast(path, photographs, out, replace(CONFIG, tolerance=0.5))
    with pytest.raises(CalibrationError, match=r"once.onnx works in float16 already"):
        cast(out, photographs, tmp_path / "twice.onnx", CONFIG)


def test_the_network_itself_is_not_overwritten(float_onnx, photographs):
    with pytest.raises(CalibrationError, match="network itself") as caught:
        cast(float_onnx, photographs, float_onnx, CONFIG)
    assert caught.value.fix.endswith(".fp16.onnx")


def test_without_images_there_is_nothing_to_look_at(float_onnx, tmp_path):
    with pytest.raises(CalibrationError, match="no images"):
        cast(float_onnx, [], tmp_path / "o.onnx", CONFIG)


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"tolerance": 0.0}, {"tolerance": np.nan}])
def test_a_request_that_makes_no_sense(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        CastConfig(**wrong)


def test_an_engine_of_the_cast_file_runs(float_onnx, photographs, tmp_path):
    out = tmp_path / "small.fp16.onnx"
    cast(float_onnx, photographs, out, CONFIG)
    engine = OrtEngine(out, num_threads=1)
    assert [spec.dtype for spec in (*engine.inputs, *engine.outputs)] == [
        *("uint8", "float32", "float32"),
    ]
