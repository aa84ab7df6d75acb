import numpy as np
import onnx
import pytest
from small_graphs import NORMALISE, from_text, network

from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.errors import CalibrationError

TAIL = " count = ReduceSum <keepdims = 0> (density, axes)"


def parsed(text: str, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    return from_text(NORMALISE + text + TAIL, shapes)


def groups(plan) -> set[frozenset[str]]:
    """The INT8 tensors, those of one scale together."""
    found: dict[str, set[str]] = {}
    for name, group in plan.group_of.items():
        found.setdefault(group, set()).add(name)
    return {frozenset(names) for names in found.values()}


def watched(plan) -> set[frozenset[str]]:
    return {frozenset(names) for names in plan.watched.values()}


def test_a_chain_quantizes_behind_relu_and_across_pools():
    plan = plan_int8(network("vgg"))
    assert plan.convs == ("Conv_y1", "Conv_y2", "Conv_y3", "Conv_y4")
    assert plan.left == {"Conv_density": "it makes the network's answer"}
    pairs = [{"r1", "p1"}, {"r2", "p2"}]
    assert groups(plan) == {*map(frozenset, pairs), frozenset({"normal"}), frozenset({"r3"})}
    # what the next convolution reads decides a range, not what the pool drops
    assert watched(plan) == {frozenset({n}) for n in ("normal", "p1", "p2", "r3")}


def test_a_concatenation_has_one_scale_and_the_answer_stays_float():
    plan = plan_int8(network("columns"))
    assert frozenset({"ra", "pa", "rb", "pb", "both"}) in groups(plan)
    assert frozenset({"both"}) in watched(plan)
    # nor are the features quantized from which the answer is made
    assert not {"y", "fused", "last", "density", "count"} & set(plan.group_of)


def test_instance_norm_stays_float_between_int8_tensors():
    plan = plan_int8(network("normed"))
    assert groups(plan) == {frozenset({n}) for n in ("normal", "y1", "r1")}
    assert plan.convs == ("Conv_y1", "ConvTranspose_y2")


def test_a_tensor_that_pool_and_conv_read_counts_twice():
    text = """
        y1 = Conv (normal, w1)
        pooled = MaxPool <kernel_shape = [1, 1]> (y1)
        y2 = Conv (pooled, w2)
        y3 = Conv (y1, w3)
        summed = Sum (y2, y3)
        density = Conv (summed, w4)
    """
    weights = {"w1": (4, 3, 1, 1), "w2": (1, 4, 1, 1), "w3": (1, 4, 1, 1), "w4": (1, 1, 1, 1)}
    plan = plan_int8(parsed(text, weights))
    assert frozenset({"y1", "pooled"}) in groups(plan) & watched(plan)


def test_a_concatenation_that_only_floats_read_stays_float():
    text = """
        ya = Conv (normal, wa)
        yb = Conv (normal, wb)
        both = Concat <axis = 1> (ya, yb)
        soft = Sigmoid (both)
        y = Conv (soft, wc)
        density = Conv (y, wd)
    """
    shapes = {"wa": (4, 3, 1, 1), "wb": (4, 3, 1, 1), "wc": (4, 8, 1, 1), "wd": (1, 4, 1, 1)}
    plan = plan_int8(parsed(text, shapes))
    assert groups(plan) == {frozenset({n}) for n in ("normal", "ya", "yb", "soft")}


def test_a_relu_shared_with_others_is_not_fused():
    text = """
        y1 = Conv (normal, w1)
        r1 = Relu (y1)
        s1 = Sigmoid (y1)
        both = Concat <axis = 1> (r1, s1)
        y2 = Conv (both, w2)
        density = Conv (y2, w3)
    """
    shapes = {"w1": (4, 3, 1, 1), "w2": (4, 8, 1, 1), "w3": (1, 4, 1, 1)}
    plan = plan_int8(parsed(text, shapes))
    assert "y1" in plan.group_of
    assert frozenset({"r1", "s1", "both"}) in groups(plan)


def test_keep_float_leaves_a_node_and_says_so():
    plan = plan_int8(network("vgg"), ["Conv_y3", "Conv_y1"])
    assert plan.convs == ("Conv_y2", "Conv_y4")
    assert plan.left["Conv_y1"] == plan.left["Conv_y3"] == "kept float on request"
    assert "normal" not in plan.group_of
    # r2 is read by y3 alone, so float
    assert groups(plan) == {frozenset({"r1", "p1"}), frozenset({"r3"})}


def test_other_reasons_to_stay_float_are_named():
    text = """
        made = Relu (w9)
        y1 = Conv (normal, made)
        y2 = Conv (y1, w2)
        y3 = Conv (w3, w4)
        y4 = MatMul (y2, w5)
        summed = Add (y4, y3)
        density = Conv (summed, w6)
    """
    shapes = {"w9": (4, 3, 1, 1), "w2": (1, 4, 1, 1), "w3": (1, 3, 1, 1), "w4": (1, 3, 1, 1)}
    model = parsed(text, shapes | {"w5": (1, 1, 1, 1), "w6": (1, 1, 1, 1)})
    plan = plan_int8(model)
    assert plan.convs == ("Conv_y2",)
    assert {name: reason.split()[-1] for name, reason in plan.left.items()} == {
        "Conv_y1": "numbers",
        "Conv_y3": "constant",
        "MatMul_y4": "quantized",
        "Conv_density": "answer",
    }


def test_nodes_without_a_name_go_by_their_output():
    model = network("vgg")
    for node in model.graph.node:
        node.name = ""
    assert plan_int8(model, ["y1"]).convs == ("y2", "y3", "y4")


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(CalibrationError, match=r"Conv_y9(?s:.)*choose from Conv_y1, Conv_y2"):
        plan_int8(network("vgg"), ["Conv_y9"])


def test_a_network_with_nothing_left_is_refused():
    convs = plan_int8(network("vgg")).convs
    with pytest.raises(CalibrationError, match="no convolution to quantize"):
        plan_int8(network("vgg"), convs)


@pytest.mark.parametrize("kind", ["QuantizeLinear", "DequantizeLinear", "QLinearConv"])
def test_a_quantized_network_is_refused(kind):
    model = network("vgg")
    model.graph.node.add(op_type=kind)
    with pytest.raises(CalibrationError, match=f"quantized already: it has {kind}"):
        plan_int8(model)


def test_control_flow_is_refused():
    model = network("vgg")
    branch = onnx.helper.make_graph([], "b", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["d"], then_branch=branch))
    with pytest.raises(CalibrationError, match="control flow"):
        plan_int8(model)


def test_a_concatenation_with_a_constant_is_no_passage():
    text = """
        y1 = Conv (normal, w1)
        both = Concat <axis = 1> (y1, w9)
        y2 = Conv (both, w2)
        density = Conv (y2, w3)
    """
    shapes = {"w1": (4, 3, 1, 1), "w9": (1, 1, 8, 8), "w2": (4, 5, 1, 1), "w3": (1, 4, 1, 1)}
    plan = plan_int8(parsed(text, shapes))
    assert groups(plan) == {frozenset({n}) for n in ("normal", "y1", "both")}


RESIZED = """
    y1 = Conv (normal, w1)
    r1 = Relu (y1)
    up = Resize <mode = "{mode}"> (r1, , {twice})
    y2 = Conv (up, w2)
    density = Conv (y2, w3)
"""
RESIZED_SHAPES = {"w1": (4, 3, 1, 1), "w2": (4, 4, 1, 1), "w3": (1, 4, 1, 1)}


@pytest.mark.parametrize("twice", ["twice", ", sizes"])
def test_a_resize_to_the_nearest_passes_one_scale(twice):
    text = "sizes = Mul (shape, two) " * (twice != "twice")
    text = "shape = Shape (normal)" * (twice != "twice") + text
    text += RESIZED.format(mode="nearest", twice=twice.removeprefix(", "))
    if twice != "twice":
        text = text.replace("(r1, , sizes)", "(r1, , , sizes)")
    arrays = {"two": np.array([1, 1, 2, 2])}
    plan = plan_int8(from_text(NORMALISE + text + TAIL, RESIZED_SHAPES, arrays=arrays))
    # the sizes are no INT8 tensor
    assert groups(plan) == {frozenset({"normal"}), frozenset({"r1", "up"})}
    assert watched(plan) == {frozenset({"normal"}), frozenset({"up"})}


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_a_resize_that_mixes_pixels_stands_between_two_scales(mode):
    plan = plan_int8(parsed(RESIZED.format(mode=mode, twice="twice"), RESIZED_SHAPES))
    assert groups(plan) == {frozenset({n}) for n in ("normal", "r1", "up")}


def test_a_norm_reads_int8_even_in_front_of_the_answer():
    text = """
        y1 = Conv (normal, w1)
        y2 = Conv (y1, w2)
        n2 = InstanceNormalization (y2, g2, o2)
        r2 = Relu (n2)
        density = Conv (r2, w3)
    """
    shapes = {"w1": (4, 3, 1, 1), "w2": (4, 4, 1, 1), "g2": (4,), "o2": (4,), "w3": (1, 4, 1, 1)}
    plan = plan_int8(parsed(text, shapes))
    # what the answer is made from stays float
    assert groups(plan) == {frozenset({n}) for n in ("normal", "y1", "y2")}


def test_both_inputs_of_a_residual_add_are_int8():
    text = """
        y1 = Conv (normal, w1)
        r1 = Relu (y1)
        y2 = Conv (r1, w2)
        total = Add (y2, r1)
        r2 = Relu (total)
        y3 = Conv (r2, w2)
        density = Conv (y3, w3)
    """
    plan = plan_int8(parsed(text, RESIZED_SHAPES))
    assert groups(plan) == {frozenset({n}) for n in ("normal", "r1", "y2", "r2")}
