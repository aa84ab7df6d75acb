"""What TensorRT is asked for, in which order, on each route; the graph that it parses."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from stand_in_tensorrt import installed

from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.trt.building.build import INSPECTOR, write_plan
from crowdrt.engines.trt.building.estimate import MemoryEstimate, check_memory, estimate_memory
from crowdrt.engines.trt.building.options import PlanOptions, parse_shape
from crowdrt.engines.trt.building.routes import route_of
from crowdrt.engines.trt.graphs.graph import asked_precisions, float_pixels, named, plan_graph
from crowdrt.errors import EngineError, RecipeError

STATIC = PlanOptions(shape=parse_shape("40x64"))
RANGE = PlanOptions(shape=parse_shape("32x32:40x64:64x96"))
GENERATIONS = ("8.6", "10.16", "11.4")


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the first convolution of the small crowd network compute in float16, as `cast` would."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for stored in half.graph.initializer:
        if stored.name == "first_w":
            array = onnx.numpy_helper.to_array(stored).astype(np.float16)
            stored.CopyFrom(onnx.numpy_helper.from_array(array, "first_w"))
    conv = next(node for node in half.graph.node if node.name == "first")
    place = list(half.graph.node).index(conv)
    conv.input[0], conv.output[0] = "normal16", "a16"
    to = helper.make_node("Cast", ["normal"], ["normal16"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["a16"], ["a"], to=TensorProto.FLOAT)
    nodes = list(half.graph.node)
    nodes[place : place + 1] = [to, conv, back]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    onnx.checker.check_model(half, full_check=True)
    return half


def in_int8(from_text) -> onnx.ModelProto:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1,3,16,16] image) => (float[1,4,16,16] out) {
      q = QuantizeLinear(image, scale, zero)
      x = DequantizeLinear(q, scale, zero)
      w = DequantizeLinear(codes, scale, zero)
      y = Conv<pads = [1,1,1,1]>(x, w)
      out = Relu(y)
    }"""
    codes = np.random.default_rng(0).integers(-9, 9, (4, 3, 3, 3)).astype(np.int8)
    return from_text(
        text, {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8), "codes": codes}
    )


@pytest.mark.parametrize(
    ("version", "name"),
    [("8.6.1", "8.6"), ("10.0.1", "10"), ("10.16.1.11", "10"), ("11.4.0.106", "11")],
)
def test_the_version_chooses_the_route(version, name):
    trt = type("trt", (), {"__version__": version})
    assert route_of(trt).name.partition(":")[0] == name


@pytest.mark.parametrize("version", ["8.5.3", "9.3.0", "12.0.0"])
def test_a_version_without_a_route_is_refused(version):
    with pytest.raises(EngineError, match=version) as caught:
        route_of(type("trt", (), {"__version__": version}))
    assert "pip install" in caught.value.fix


@pytest.mark.parametrize("generation", GENERATIONS)
def test_fp32_is_asked_alike_on_every_route(monkeypatch, tmp_path, tiny_onnx, generation):
    trt, device = installed(monkeypatch, generation)
    with device.current():
        pass
    facts = write_plan(tiny_onnx, tmp_path / "a.plan", STATIC)
    network, config = trt.my_log[0]
    assert config.my_flags == set()  # TF32 is off
    assert config.my_limits == {"WORKSPACE": 4 << 30}
    assert config.my_sources == {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}
    assert config.builder_optimization_level == 3
    assert config.profiling_verbosity is trt.ProfilingVerbosity.DETAILED
    flags = {"8.6": "EXPLICIT_BATCH", "10.16": "STRONGLY_TYPED"}
    named_flag = flags.get(generation)
    expected = 1 << int(trt.NetworkDefinitionCreationFlag[named_flag]) if named_flag else 0
    assert network.my_flags == expected
    assert facts["build"]["route"].startswith(generation.partition(".")[0])
    assert facts["build"]["layers_held"] == 0
    assert json.loads((tmp_path / INSPECTOR).read_text())["Layers"]


def test_tf32_and_the_rest_are_as_asked(monkeypatch, tmp_path, tiny_onnx):
    trt, _ = installed(monkeypatch, "10.16")
    options = replace(STATIC, tf32=True, level=5, workspace_bytes=1 << 30)
    write_plan(tiny_onnx, tmp_path / "a.plan", options)
    _, config = trt.my_log[0]
    assert config.my_flags == {"TF32"}
    assert config.builder_optimization_level == 5
    assert config.my_limits == {"WORKSPACE": 1 << 30}


def test_8_6_holds_each_layer_to_the_types_of_a_float16_file(monkeypatch, tmp_path, graph_maker):
    trt, _ = installed(monkeypatch, "8.6")
    path = tmp_path / "half.onnx"
    onnx.save(in_half(graph_maker()), path)
    facts = write_plan(path, tmp_path / "a.plan", STATIC)
    network, config = trt.my_log[0]
    assert config.my_flags == {"FP16", "PREFER_PRECISION_CONSTRAINTS"}
    told = [layer for layer in network.my_layers if layer.my_types]
    held = {layer.name: layer.precision.name for layer in told}
    assert len(told) == len(held)  # not the constants beside the convolutions
    assert held["first"] == "HALF"
    assert held["second"] == "FLOAT"
    assert held["count"] == "FLOAT"  # the sum of a crowd leaves float16's range
    assert not any("Cast" in name for name in held)
    assert facts["build"]["layers_held"] == len(held) == 7
    for layer in network.my_layers:
        assert set(layer.my_types.values()) <= {layer.__dict__.get("precision")}


@pytest.mark.parametrize("generation", ["10.16", "11.4"])
def test_a_float16_file_needs_no_flag_where_networks_are_typed(
    monkeypatch, tmp_path, graph_maker, generation
):
    trt, _ = installed(monkeypatch, generation)
    path = tmp_path / "half.onnx"
    onnx.save(in_half(graph_maker()), path)
    write_plan(path, tmp_path / "a.plan", STATIC)
    network, config = trt.my_log[0]
    assert config.my_flags == set()
    assert not any(layer.my_types for layer in network.my_layers)


def test_8_6_needs_one_flag_for_explicit_quantizers(monkeypatch, tmp_path, from_text):
    trt, _ = installed(monkeypatch, "8.6")
    path = tmp_path / "int8.onnx"
    onnx.save(in_int8(from_text), path)
    facts = write_plan(path, tmp_path / "a.plan", PlanOptions())
    network, config = trt.my_log[0]
    assert config.my_flags == {"INT8"}
    assert facts["build"]["flags"] == ["INT8"]
    assert not any(layer.my_types for layer in network.my_layers)


def test_a_plan_that_runs_in_more_digits_than_asked_is_refused(monkeypatch, tmp_path, from_text):
    trt, _ = installed(monkeypatch, "8.6")
    path, plan = tmp_path / "int8.onnx", tmp_path / "a.plan"
    onnx.save(named(in_int8(from_text)), path)
    assert write_plan(path, plan, PlanOptions())["precision"]["obeyed"] == {"int8": 1}
    plan.unlink()
    (conv,) = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    trt.my_slow = {conv}
    with pytest.raises(EngineError, match=f"Conv {conv}, asked to run in int8, runs in fp32") as no:
        write_plan(path, plan, PlanOptions())
    assert "--any-precision" in no.value.fix
    assert not plan.exists()
    facts = write_plan(path, plan, PlanOptions(any_precision=True))["precision"]
    assert (facts["obeyed"], len(facts["errors"])) == ({}, 1)
    assert plan.exists()
    assert PlanOptions(any_precision=True).identity() != PlanOptions().identity()


def test_what_a_quantizer_touches_is_left_to_tensorrt(from_text):
    model = named(in_int8(from_text))
    assert asked_precisions(model) == {"out": "fp32"}  # not the convolution, which fuses to INT8


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_range_of_sizes_becomes_a_profile(monkeypatch, tmp_path, tiny_onnx, generation):
    trt, _ = installed(monkeypatch, generation)
    write_plan(tiny_onnx, tmp_path / "a.plan", RANGE)
    _, config = trt.my_log[0]
    (profile,) = config.my_profiles
    assert profile.my_shapes == {"image": ((1, 3, 32, 32), (1, 3, 40, 64), (1, 3, 64, 96))}
    # contexts of 8.6 share a profile only when told so; later ones always may
    assert config.my_preview == ({"PROFILE_SHARING_0806"} if generation == "8.6" else set())


def test_one_size_is_written_into_the_graph(monkeypatch, tmp_path, tiny_onnx):
    trt, _ = installed(monkeypatch)
    facts = write_plan(tiny_onnx, tmp_path / "a.plan", replace(STATIC, batch=2))
    network, config = trt.my_log[0]
    assert not config.my_profiles
    axes = network.my_model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in axes] == [2, 3, 40, 64]
    assert facts["inputs"][0]["shape"] == (2, 3, 40, 64)
    assert facts["outputs"][0]["shape"] == (2, 1, 5, 8)


ANY = ("height", "width")
WRONG_SHAPES = {
    "none for a file of any size": (ANY, None, "--shape 576x864"),
    "no multiple of the stride": (ANY, "41x64", "--shape 48x64"),
    "another than the file's": ((40, 64), "64x64", "--size dynamic"),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_a_shape_that_does_not_fit_is_refused(graph_maker, case):
    size, text, fix = WRONG_SHAPES[case]
    options = PlanOptions(shape=parse_shape(text) if text else None)
    with pytest.raises(EngineError) as caught:
        plan_graph(graph_maker(size), options, source="model.onnx")
    assert fix in caught.value.fix


def test_a_fixed_file_needs_no_shape(graph_maker):
    graph = plan_graph(graph_maker((40, 64), batch=1), PlanOptions(), source="model.onnx")
    assert graph.inputs[0].shape == (1, 3, 40, 64)
    assert not graph.ranges


@pytest.mark.parametrize(
    "text", ["", "576", "576x864:10x10", "1x1:2x2:3x3:4x4", "64x64:32x32:96x96"]
)
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(RecipeError):
        parse_shape(text)


@pytest.mark.parametrize(
    "wrong", [{"level": 6}, {"level": -1}, {"batch": 0}, {"workspace_bytes": 1000}]
)
def test_what_is_no_option_is_refused(wrong):
    with pytest.raises(EngineError):
        PlanOptions(**wrong)


def test_uint8_pixels_stay_where_a_conversion_to_float_is_all_that_reads_them(graph_maker):
    graph = plan_graph(graph_maker(), STATIC, source="model.onnx")
    assert graph.float_pixels == ()
    assert graph.model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_pixels_fed_as_float_give_the_same_answers_bit_by_bit(graph_maker, pixels):
    original = graph_maker((40, 64), batch=1)
    graph = plan_graph(original, PlanOptions(float_input=True), source="model.onnx")
    assert graph.float_pixels == ("image",)
    assert graph.inputs[0].dtype == "uint8"  # what the caller feeds
    assert [n.op_type for n in graph.model.graph.node][:2] == ["Sub", "Div"]  # the Cast is gone
    onnx.checker.check_model(graph.model, full_check=True)
    expected = OrtEngine(original.SerializeToString()).run({"image": pixels})
    changed = OrtEngine(graph.model.SerializeToString(), optimise=False)
    plain = OrtEngine(original.SerializeToString(), optimise=False).run({"image": pixels})
    got = changed.run({"image": pixels.astype(np.float32)})
    assert expected["density"].std() > 0.01
    for name in expected:
        np.testing.assert_array_equal(got[name], plain[name])


def test_pixels_that_a_shape_reads_become_float(from_text):
    model = from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (uint8[1,3,8,8] image) => (float[1,3,8,8] out, int64[4] size, int32[1,3,8,8] whole) {
          out = Cast<to = 1>(image)
          whole = Cast<to = 6>(image)
          size = Shape(image)
        }""",
        {},
    )
    changed = named(model)
    assert float_pixels(changed, always=False) == ("image",)
    onnx.checker.check_model(changed, full_check=True)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)
    got = OrtEngine(changed.SerializeToString()).run({"image": image.astype(np.float32)})
    for name, array in OrtEngine(model.SerializeToString()).run({"image": image}).items():
        np.testing.assert_array_equal(got[name], array)
    assert [node.op_type for node in changed.graph.node].count("Cast") == 2  # one is an output


def test_arithmetic_on_uint8_itself_is_refused(from_text):
    model = from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (uint8[1,3,8,8] image) => (uint8[1,3,8,8] out) { out = Max(image, image) }""",
        {},
    )
    with pytest.raises(EngineError, match="Max out computes with the uint8 pixels") as caught:
        float_pixels(named(model), always=False)
    assert "--input float32" in caught.value.fix


def test_nodes_without_a_name_of_their_own_get_one(graph_maker):
    model = graph_maker()
    for node in model.graph.node:
        node.name = "same"
    names = [node.name for node in named(model).graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_node_that_the_parser_refuses_is_named(monkeypatch, tmp_path, tiny_onnx, generation):
    installed(monkeypatch, generation, refuses="AveragePool")
    with pytest.raises(EngineError, match="AveragePool density: no importer") as caught:
        write_plan(tiny_onnx, tmp_path / "a.plan", STATIC)
    assert "--keep-output" in caught.value.fix
    assert not (tmp_path / "a.plan").exists()


def test_an_opset_that_the_parser_does_not_know_is_said(monkeypatch, tmp_path, graph_maker):
    installed(monkeypatch, "8.6", refuses="AveragePool")
    model = graph_maker()
    model.opset_import[0].version = 18
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(EngineError) as caught:
        write_plan(tmp_path / "new.onnx", tmp_path / "a.plan", STATIC)
    assert "opset 18" in caught.value.fix
    assert "--opset 17" in caught.value.fix


def test_a_build_that_finds_no_kernel_says_what_tensorrt_said(monkeypatch, tmp_path, tiny_onnx):
    trt, _ = installed(monkeypatch)
    trt.my_fails = True
    with pytest.raises(EngineError, match="no tactic for Conv") as caught:
        write_plan(tiny_onnx, tmp_path / "a.plan", STATIC)
    assert "--workspace" in caught.value.fix


def test_a_driver_that_does_not_suit_tensorrt_is_said(monkeypatch, tmp_path, tiny_onnx):
    trt, _ = installed(monkeypatch)

    def nothing(self, logger):
        logger.log(trt.ILogger.WARNING, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt.Builder, "__init__", nothing)
    with pytest.raises(EngineError, match=r"Builder does not start: .*error: 35") as caught:
        write_plan(tiny_onnx, tmp_path / "a.plan", STATIC)
    assert "nvidia-smi" in caught.value.fix


@pytest.mark.parametrize("generation", ["10.16", "11.4"])
def test_ctrl_c_ends_a_build_that_can_be_followed(monkeypatch, tmp_path, tiny_onnx, generation):
    from crowdrt import console

    installed(monkeypatch, generation)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(console.Bar, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_plan(tiny_onnx, tmp_path / "a.plan", STATIC)


def test_the_estimate_is_the_sum_of_what_lives_at_once(graph_maker):
    graph = plan_graph(graph_maker(), STATIC, source="model.onnx")
    estimate = estimate_memory(graph.largest, 1 << 20)
    pixels, channels = 40 * 64, 16
    # the widest moment: the first convolution's output and its ReLU
    assert estimate.activations == 2 * channels * pixels * 4
    assert estimate.weights == (16 * 3 * 9 + 16 * 9) * 4 + 2 * 3 * 4 + 3 * 8
    assert estimate.input_output == 3 * pixels + 5 * 8 * 4 + 4
    assert estimate.workspace == 1 << 20


def test_the_estimate_grows_with_the_largest_size(graph_maker):
    small = estimate_memory(plan_graph(graph_maker(), STATIC, source="m").largest, 0)
    large = estimate_memory(plan_graph(graph_maker(), RANGE, source="m").largest, 0)
    assert large.activations == small.activations * (64 * 96) // (40 * 64)


def test_a_build_that_does_not_fit_is_refused_before_it_begins(monkeypatch, tmp_path, tiny_onnx):
    trt, device = installed(monkeypatch)
    device.free = 2 << 30
    with pytest.raises(EngineError, match=r"needs about 4\.50 GiB .* 2\.00 GiB is free") as caught:
        write_plan(tiny_onnx, tmp_path / "a.plan", STATIC)
    assert not trt.my_log
    advised = int(caught.value.fix.rpartition("--workspace ")[2].removesuffix("MiB")) << 20
    write_plan(tiny_onnx, tmp_path / "a.plan", replace(STATIC, workspace_bytes=advised))


def test_what_has_no_shape_is_left_out_of_the_estimate(monkeypatch, tmp_path, from_text, capsys):
    installed(monkeypatch)
    model = from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[4] image) => (int64[1,N] out) { out = NonZero(image) }""",
        {},
    )
    onnx.save(model, tmp_path / "free.onnx")
    facts = write_plan(tmp_path / "free.onnx", tmp_path / "a.plan", PlanOptions())
    assert facts["build"]["estimate_bytes"]["unknown"] == ("out",)
    assert "leaves out 1 tensors whose shape is unknown" in capsys.readouterr().err


def test_no_workspace_is_advised_where_the_layers_alone_are_too_large():
    needs = MemoryEstimate(weights=0, activations=9 << 30, input_output=0, workspace=1 << 30)
    with pytest.raises(EngineError) as caught:
        check_memory(needs, 8 << 30)
    assert "smaller --shape" in caught.value.fix
