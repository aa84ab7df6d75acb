import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from small_graphs import (
    FLOAT,
    NORMALISE,
    TEXTS,
    constants_of,
    from_text,
    network,
    picture,
    run,
    with_outputs,
    without_qdq,
)

from crowdrt.calibration.int8.plan import passed_on, plan_int8
from crowdrt.calibration.int8.qdq import OUTPUT_AXIS, WEIGHT_MAX, insert_qdq
from crowdrt.calibration.layerwise import LayerwiseGraph
from crowdrt.calibration.ranges import AbsHistogram


def ranges_on(model, plan, image) -> dict[str, float]:
    """Min-max ranges of one image."""
    names = [name for group in plan.watched.values() for name in group]
    largest = dict.fromkeys(names, 0.0)
    for name, values in LayerwiseGraph(model, names, num_threads=1).run({"image": image}):
        histogram = AbsHistogram()
        histogram.add(values)
        largest[name] = histogram.largest
    return {group: max(largest[n] for n in names) for group, names in plan.watched.items()}


def int8_of(model, image, *, weight_bits=7, keep_float=()):
    plan = plan_int8(model, keep_float)
    ranges = ranges_on(model, plan, image)
    return insert_qdq(model, plan, ranges, weight_bits=weight_bits), plan, ranges


BLOCKS = ["plain", "relu", "leaky", "pool", "split", "up", "nearest", "linear", "norm", "residual",
          "shortcut"]  # fmt: skip
GROWING = ("up", "nearest", "linear")


@st.composite
def random_networks(draw):
    """A chain of random blocks: branches that meet again, and shortcuts to any earlier tensor."""
    text, shapes, channels, tensor = NORMALISE, {}, 3, "normal"
    size, earlier = (16, 24), {}  # (channels, size) -> the tensors that have it
    for i in range(draw(st.integers(1, 5))):
        out = draw(st.sampled_from([1, 3, 4, 8]))
        kernel = draw(st.sampled_from([1, 3]))
        block = draw(st.sampled_from(BLOCKS))
        if block in GROWING and size[0] > 40:
            block = "relu"
        pads = f"pads = [{', '.join([str(kernel // 2)] * 4)}]"
        shapes[f"w{i}"] = (out, channels, kernel, kernel)
        if block == "up":
            shapes[f"w{i}"] = (channels, out, 2, 2)
            shapes[f"b{i}"] = (out,)
            text += f" x{i} = ConvTranspose <strides = [2, 2]> ({tensor}, w{i}, b{i})"
        elif block == "split":
            shapes[f"u{i}"] = (2, channels, 1, 1)
            text += f" c{i} = Conv <{pads}> ({tensor}, w{i}, b{i}) r{i} = Relu (c{i})"
            text += f" d{i} = Conv ({tensor}, u{i}) x{i} = Concat <axis = 1> (r{i}, d{i})"
            out += 2
        elif block == "residual":
            shapes[f"u{i}"] = (out, out, 1, 1)
            text += f" c{i} = Conv <{pads}> ({tensor}, w{i}, b{i}) r{i} = Relu (c{i})"
            text += f" d{i} = Conv (r{i}, u{i}) x{i} = Add (r{i}, d{i})"
        elif block == "shortcut":
            text += f" c{i} = Conv <{pads}> ({tensor}, w{i}, b{i})"
            other = draw(st.sampled_from([*earlier.get((out, size), ()), f"c{i}"]))
            text += f" s{i} = Add (c{i}, {other}) x{i} = Relu (s{i})"
        else:
            text += f" c{i} = Conv <{pads}> ({tensor}, w{i}, b{i})"
            text += {
                "plain": f" x{i} = Identity (c{i})",
                "relu": f" x{i} = Relu (c{i})",
                "leaky": f" x{i} = LeakyRelu <alpha = 0.1> (c{i})",
                "pool": f" r{i} = Relu (c{i}) x{i} = MaxPool <kernel_shape = [2, 2]> (r{i})",
                "nearest": f" r{i} = Relu (c{i}) x{i} = Resize (r{i}, , twice)",
                "linear": f' r{i} = Relu (c{i}) x{i} = Resize <mode = "linear"> (r{i}, , twice)',
                "norm": f" x{i} = InstanceNormalization (c{i}, g{i}, o{i})",
            }[block]
            shapes |= {f"g{i}": (out,), f"o{i}": (out,)}
        height, width = size
        size = (height - 1, width - 1) if block == "pool" else size
        size = (2 * height, 2 * width) if block in GROWING else size
        channels, tensor = out, f"x{i}"
        earlier.setdefault((channels, size), []).append(tensor)
    shapes["wz"] = (1, channels, 1, 1)
    text += f" density = Conv ({tensor}, wz, bz) count = ReduceSum <keepdims = 0> (density, axes)"
    return from_text(text, shapes, seed=draw(st.integers(0, 2**20)))


@settings(max_examples=40, deadline=None)
@given(random_networks(), st.sampled_from([7, 8]), st.integers(0, 3), st.data())
def test_properties_of_any_network(model, weight_bits, seed, data):
    image = picture(16, 24, seed)
    before = model.SerializeToString()
    convs = plan_int8(model).convs
    kept = data.draw(st.lists(st.sampled_from(convs), max_size=len(convs) - 1, unique=True))
    quantized, plan, _ = int8_of(model, image, weight_bits=weight_bits, keep_float=kept)
    assert model.SerializeToString() == before

    onnx.checker.check_model(quantized, full_check=True)
    onnx.shape_inference.infer_shapes(quantized, check_type=True, strict_mode=True, data_prop=True)
    assert quantized.opset_import == model.opset_import
    assert [v.name for v in quantized.graph.output] == ["density", "count"]
    assert_symmetric(quantized)
    assert_convolutions_are_int8(quantized, plan)
    assert_one_scale_where_numbers_pass(quantized)

    # Codes reach what was calibrated, and no value inside moves by more than half a step.
    pairs = list(pairs_of(quantized))
    wanted = {name: FLOAT for source, end in pairs for name in (source, end.output[0])}
    wanted |= {end.input[0]: TensorProto.INT8 for _, end in pairs}
    known = constants_of(quantized)
    emitted = run(with_outputs(quantized, wanted), {"image": image}, optimise=False)
    emitted = known | emitted
    for source, end in pairs:
        step = emitted[end.input[1]]
        if step.ndim:
            axis = next(a.i for a in end.attribute if a.name == "axis")
            step = step.reshape([-1 if i == axis else 1 for i in range(4)])
        inside = np.abs(emitted[source]) <= 127 * step
        moved = np.abs(emitted[end.output[0]] - emitted[source])
        assert inside.any()
        assert (moved[inside] <= (0.5 + 1e-4) * np.broadcast_to(step, moved.shape)[inside]).all()
        codes = emitted[end.input[0]]
        again = np.rint(emitted[end.output[0]] / step).clip(-128, 127)  # Q(DQ(Q(x)))
        np.testing.assert_array_equal(again, codes)

    bare = run(without_qdq(quantized), {"image": image}, optimise=False)
    plain = run(model, {"image": image}, optimise=False)
    np.testing.assert_array_equal(bare["density"], plain["density"])


def pairs_of(model):
    """(what enters a Q/DQ pair, the node that ends it)."""
    codes = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            yield codes[node.input[0]], node


def assert_symmetric(model):
    constants = constants_of(model)
    nodes = [n for n in model.graph.node if n.op_type.endswith("tizeLinear")]
    assert nodes
    for node in nodes:
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert np.isfinite(scale).all()
        assert zero.dtype == np.int8
        assert zero.shape == scale.shape
        assert not zero.any()


def assert_convolutions_are_int8(model, plan):
    constants = constants_of(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type not in OUTPUT_AXIS:
            continue
        assert (node.name in plan.convs) == (node.name not in plan.left)
        if node.name in plan.left:
            # no pair in front of the weights, nor of the data: what is kept float reads float
            assert node.input[1] in constants
            assert makers[node.input[0]].op_type != "DequantizeLinear"
            continue
        data, weight = makers[node.input[0]], makers[node.input[1]]
        assert {data.op_type, weight.op_type} == {"DequantizeLinear"}
        assert constants[data.input[1]].ndim == 0
        axis = OUTPUT_AXIS[node.op_type]
        stored = constants[makers[weight.input[0]].input[0]]
        assert constants[weight.input[1]].shape == (stored.shape[axis],)
        assert [a.i for a in weight.attribute if a.name == "axis"] == [axis]
        if len(node.input) > 2:
            assert constants[node.input[2]].dtype == np.float32  # the bias stays float


def assert_one_scale_where_numbers_pass(model):
    """Between the Q/DQ pairs before and behind a pool, concatenation or nearest resize."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and (maker := makers.get(node.input[0])) is not None:
            before = [makers[name] for name in passed_on(maker)]
            assert {end.op_type for end in before} <= {"DequantizeLinear"}
            assert {constants_of(model)[end.input[1]].item() for end in before} <= {
                constants_of(model)[node.input[1]].item()
            }


def test_a_pass_with_two_scales_would_be_seen():
    model, image = network("columns"), picture()
    quantized, _, _ = int8_of(model, image)
    assert_one_scale_where_numbers_pass(quantized)
    (concat,) = [n for n in quantized.graph.node if n.op_type == "Concat"]
    (behind,) = [n for n in quantized.graph.node if n.input[0] == concat.output[0]]
    for value in quantized.graph.initializer:
        if value.name == behind.input[1]:
            value.CopyFrom(numpy_helper.from_array(np.float32(0.125), value.name))
    with pytest.raises(AssertionError):
        assert_one_scale_where_numbers_pass(quantized)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("weight_bits", [7, 8])
def test_int8_counts_like_float(kind, weight_bits):
    model, image = network(kind), picture()
    quantized, _, _ = int8_of(model, image, weight_bits=weight_bits)
    expected, got = run(model, {"image": image}), run(quantized, {"image": image})
    assert expected["density"].std() > 0.01
    assert np.corrcoef(expected["density"].ravel(), got["density"].ravel())[0, 1] > 0.98
    np.testing.assert_allclose(got["count"], expected["count"], rtol=0.2)


@pytest.mark.parametrize(("weight_bits", "limit"), [(7, 64), (8, 127)])
def test_weight_codes_use_their_whole_range_and_no_more(weight_bits, limit):
    assert WEIGHT_MAX[weight_bits] == limit
    for kind in TEXTS:
        quantized, plan, _ = int8_of(network(kind), picture(), weight_bits=weight_bits)
        for codes, axis in weight_codes(quantized):
            others = tuple(i for i in range(4) if i != axis)
            assert (np.abs(codes).max(axis=others) == limit).all()
        assert len(list(weight_codes(quantized))) == len(plan.convs)


def weight_codes(model):
    """The integer weights of every convolution, as QuantizeLinear makes them, and their axis."""
    constants = constants_of(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in constants:
            axis = next(a.i for a in node.attribute if a.name == "axis")
            shape = [-1 if i == axis else 1 for i in range(4)]
            scale = constants[node.input[1]].reshape(shape)
            yield np.rint(constants[node.input[0]] / scale).astype(int), axis


def test_each_reader_has_its_own_pair_and_they_share_a_scale():
    quantized, _, _ = int8_of(network("columns"), picture())
    readers = [n for n in quantized.graph.node if n.op_type == "Conv" and n.name[-2:] in "ya yb"]
    makers = {name: node for node in quantized.graph.node for name in node.output}
    ends = [makers[reader.input[0]] for reader in readers]
    assert len({end.output[0] for end in ends}) == 2
    assert len({end.input[1] for end in ends}) == 1


def replace_weights(model, name, change):
    for value in model.graph.initializer:
        if value.name == name:
            array = numpy_helper.to_array(value).copy()
            change(array)
            value.CopyFrom(numpy_helper.from_array(array, name))
            return
    raise AssertionError(name)


def test_dead_channels_and_large_biases_stay_right():
    model, image = network("vgg"), picture()

    def kill(weight):
        weight[2] = 0
        weight[3] *= 1e-30

    def raise_bias(bias):
        bias[2:4] = [5.0, -3.0]

    replace_weights(model, "w2", kill)
    replace_weights(model, "b2", raise_bias)
    quantized, _, _ = int8_of(model, image)
    wanted = {"r2": FLOAT}
    expected = run(with_outputs(model, wanted), {"image": image})["r2"]
    for optimise in (True, False):
        got = run(with_outputs(quantized, wanted), {"image": image}, optimise=optimise)["r2"]
        np.testing.assert_allclose(got[:, 2:4], expected[:, 2:4], atol=0.05)
        assert expected[:, 2].min() == expected[:, 2].max() == 5


def test_a_wholly_dead_layer_answers_its_bias():
    model, image = network("vgg"), picture()
    replace_weights(model, "w3", lambda weight: weight.fill(0))
    quantized, _, _ = int8_of(model, image)
    expected, got = (run(m, {"image": image})["density"] for m in (model, quantized))
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_a_tensor_that_is_always_zero():
    model, image = network("vgg"), picture()
    replace_weights(model, "w1", lambda weight: weight.fill(0))
    replace_weights(model, "b1", lambda bias: bias.fill(-1))
    quantized, plan, ranges = int8_of(model, image)
    assert ranges[plan.group_of["p1"]] == 0
    assert_symmetric(quantized)
    expected, got = (run(m, {"image": image})["density"] for m in (model, quantized))
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_grouped_convolutions_have_one_scale_per_weight_channel():
    text = (
        NORMALISE
        + """
        wide = Conv (normal, w1, b1)
        deep = Conv <group = 8, pads = [1, 1, 1, 1]> (wide, w2, b2)
        up = ConvTranspose <group = 2, strides = [2, 2]> (deep, w3, b3)
        density = Conv (up, w4)
        count = ReduceSum <keepdims = 0> (density, axes)
    """
    )
    shapes = {"w1": (8, 3, 1, 1), "w2": (8, 1, 3, 3), "w3": (8, 3, 2, 2), "b3": (6,)}
    model, image = from_text(text, shapes | {"w4": (1, 6, 1, 1)}), picture()
    quantized, _, _ = int8_of(model, image)
    onnx.checker.check_model(quantized, full_check=True)
    assert sorted(c.shape[a] for c, a in weight_codes(quantized)) == [3, 8, 8]
    expected, got = (run(m, {"image": image})["density"] for m in (model, quantized))
    assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.99


def test_names_that_are_taken_are_not_used_twice():
    model, image = network("vgg"), picture()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = {"p1": "r2_q", "r1": "p2_scale"}.get(name, name)
    quantized, _, _ = int8_of(model, image)
    onnx.checker.check_model(quantized, full_check=True)
    np.testing.assert_array_equal(
        run(quantized, {"image": image})["density"],
        run(int8_of(network("vgg"), image)[0], {"image": image})["density"],
    )


def test_weights_that_two_convolutions_share_get_a_pair_each():
    text = (
        NORMALISE
        + """
        y1 = Conv (normal, w1, b1)
        y2 = Conv (y1, w1, b1)
        density = Conv (y2, w2)
        count = ReduceSum <keepdims = 0> (density, axes)
    """
    )
    model, image = from_text(text, {"w1": (3, 3, 1, 1), "w2": (1, 3, 1, 1)}), picture()
    quantized, _, _ = int8_of(model, image)
    pairs = [n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and "w1" in n.input]
    assert len(pairs) == 2
    expected, got = (run(m, {"image": image})["density"] for m in (model, quantized))
    np.testing.assert_allclose(got, expected, atol=0.1 * np.abs(expected).max())


def test_int8_types_are_declared():
    quantized, _, _ = int8_of(network("vgg"), picture())
    inferred = onnx.shape_inference.infer_shapes(quantized).graph.value_info
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred}
    assert kinds["p1_q"] == TensorProto.INT8
    assert kinds["p1_dq"] == TensorProto.FLOAT


@pytest.mark.parametrize("kind", TEXTS)
def test_without_pairs_corrected_biases_are_the_one_difference(kind):
    model, image = network(kind), picture()
    plan = plan_int8(model)
    ranges = ranges_on(model, plan, image)
    before = {node.name: node for node in model.graph.node}
    channels = {n.name: constants_of(model)[n.input[1]].shape for n in before.values()
                if n.name in plan.convs}  # fmt: skip
    means = {
        before[name].input[0]: np.full(shape[OUTPUT_AXIS[before[name].op_type] == 0], 0.5)
        for name, shape in channels.items()
    }
    bare = without_qdq(insert_qdq(model, plan, ranges, weight_bits=7, means=means))
    plain = run(model, {"image": image}, optimise=False)["density"]
    corrected = run(bare, {"image": image}, optimise=False)["density"]
    assert np.abs(corrected - plain).max() > 0
    for node in bare.graph.node:
        if node.name in plan.convs:
            assert node.input[2] not in before[node.name].input
            node.input[2] = before[node.name].input[2]
    kept = {value.name for value in bare.graph.initializer}
    bare.graph.initializer.extend(v for v in model.graph.initializer if v.name not in kept)
    np.testing.assert_array_equal(run(bare, {"image": image}, optimise=False)["density"], plain)
