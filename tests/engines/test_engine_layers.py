"""Layers as ONNX Runtime and OpenVINO tell of them, traced back to the file."""

import importlib.util
import json
import shutil

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from crowdrt.engines.layers.layer import EngineLayer, is_product
from crowdrt.engines.layers.ort_events import (
    node_of,
    ort_layers,
    read_events,
    split_runs,
    stored_bytes,
)
from crowdrt.engines.layers.ov_counters import single_runs_ms
from crowdrt.engines.layers.profilers import open_profiler
from crowdrt.engines.layers.tracing import OnnxFile, may_be, plain_name
from crowdrt.engines.store import EngineStore, read_built
from crowdrt.errors import EngineError
from crowdrt.onnx_graph import layer_macs

SIZE = (40, 64)
RUNTIMES = ["onnxruntime"] + ["openvino"] * (importlib.util.find_spec("openvino") is not None)
FIRST, SECOND = "first", "second"  # the convolutions of the tiny network


@pytest.fixture
def profiled(tmp_path, tiny_onnx, pixels):
    """Profile the tiny network, with its file at hand or without."""

    def profile(runtime: str, *, file: bool = True, num_runs: int = 5) -> list[EngineLayer]:
        built = EngineStore(tmp_path / "store").build(tiny_onnx, engine=runtime)
        folder = tmp_path / "events"
        folder.mkdir(exist_ok=True)
        profiler = open_profiler(read_built(built.path), 1, folder)
        for _ in range(num_runs):
            profiler.run({"image": pixels})
        source = OnnxFile(onnx.load(tiny_onnx), SIZE) if file else None
        return profiler.layers(source, num_warmup=2)

    return profile


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_products_bear_the_files_names_and_multiply_what_the_file_says(
    runtime, profiled, tiny_onnx
):
    layers = profiled(runtime)
    products = {layer.name: layer for layer in layers if is_product(layer.kind)}
    macs = layer_macs(onnx.load(tiny_onnx), SIZE)
    assert {name: layer.macs for name, layer in products.items()} == macs
    assert set(macs) == {FIRST, SECOND}
    relu = onnx.load(tiny_onnx).graph.node[4]
    assert products[FIRST].nodes == (FIRST, relu.name or relu.output[0])
    assert all(layer.precision == "fp32" for layer in products.values())
    assert all(len(layer.samples_ms) == 3 for layer in layers)
    assert all(layer.ms > 0 for layer in products.values())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_shapes_and_bytes_are_those_of_the_tensors(runtime, profiled):
    layers = {layer.name: layer for layer in profiled(runtime) if is_product(layer.kind)}
    first = layers[FIRST]
    assert (first.input_shape, first.output_shape) == ((1, 3, *SIZE), (1, 16, *SIZE))
    floats = (3 + 16) * SIZE[0] * SIZE[1] + 16 * 3 * 9
    assert 0 <= first.num_bytes - 4 * floats <= 4 * 16  # ONNX Runtime may add a bias of zeros


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_computes_nothing_multiplies_nothing_and_each_layer_is_told_once(runtime, profiled):
    layers = profiled(runtime)
    assert all(layer.macs is None for layer in layers if not is_product(layer.kind))
    nodes = [node for layer in layers for node in layer.nodes]
    assert len(nodes) == len(set(nodes))
    moved = [layer for layer in layers if "Reorder" in layer.kind]
    assert all(layer.nodes == () for layer in moved)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_without_the_file_names_come_from_the_runtime(runtime, profiled):
    layers = [layer for layer in profiled(runtime, file=False) if is_product(layer.kind)]
    assert len(layers) == 2
    assert not any("_nchwc" in layer.name or layer.name.endswith("Biases") for layer in layers)
    assert layers[0].macs == 16 * 3 * 9 * SIZE[0] * SIZE[1]
    assert all(layer.nodes == () for layer in layers)


@pytest.mark.parametrize("file", [True, False], ids=["with the file", "without"])
def test_an_engine_that_is_optimised_at_each_start_has_the_same_layers(
    file, profiled, tmp_path, monkeypatch
):
    def told() -> list[tuple[str, tuple[object, ...]]]:
        layers = profiled("onnxruntime", file=file)
        names = [each.name if file or is_product(each.kind) else "" for each in layers]
        facts = [(each.kind, each.nodes, each.macs, each.num_bytes) for each in layers]
        return list(zip(names, facts, strict=True))

    expected = told()
    monkeypatch.setattr("crowdrt.engines.ort._write", lambda *_: "it answers differently")
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tmp_path / "events")
    assert told() == expected
    (built,) = (tmp_path / "store").glob("*/engine.json")
    assert json.loads(built.read_text())["optimised"] is False


def test_a_node_is_found_by_name_where_places_are_others():
    nodes = [
        helper.make_node("Relu", ["a"], ["b"], name="first"),
        helper.make_node("Relu", ["b"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"], name="twice"),
        helper.make_node("Relu", ["e"], ["f"], name="twice"),
    ]
    graph = helper.make_graph(nodes, "g", [], [])

    def found(name: str, place: int, kind: str = "Relu") -> str | None:
        facts = {"op_name": kind, "node_index": str(place)}
        node = node_of({"name": f"{name}_kernel_time", "args": facts}, graph)
        return node and node.output[0]

    assert (found("second", 0), found("second", 70)) == ("c", "c")
    assert (found("Relu_2", 2), found("Relu_0", 0)) == ("d", None)  # nobody's; another's place
    assert (found("twice", 4), found("twice", 70)) == ("f", None)
    assert found("second", 1, "Clip") is None


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("/net/front.1/Relu_output_0_nchwc", "/net/front.1/Relu"),
        ("/net/front.12/Conv_token_23", "/net/front.12/Conv"),
        ("/net/back.0/Conv/WithoutBiases", "/net/back.0/Conv"),
        ("/net/front.0/Conv_output_0_rgb0_codes", "/net/front.0/Conv"),
        ("Conv_12", "Conv_12"),
    ],
)
def test_endings_of_runtimes_go(said, name):
    assert plain_name(said) == name


@pytest.mark.parametrize(
    ("kind", "operator", "computes"),
    [
        ("NhwcMaxPool", "MaxPool", True),
        ("Transpose", "Transpose", True),
        ("Transpose", "QuantizeLinear", False),
        ("ReorderOutput", "Relu", False),
        ("Eltwise", "Conv", False),
    ],
)
def test_what_serves_a_layer_does_not_compute_it(kind, operator, computes):
    assert may_be(kind, operator) is computes


SHARING = """
<ir_version: 8, opset_import: ["" : 17]>
g (uint8[1, 3, 16, 16] image) => (float[1, 4, 34, 34] y) {
  x = Cast <to = 1> (image)
  a = Conv <pads = [1, 1, 1, 1]> (x, w)
  b = Conv <pads = [1, 1, 1, 1]> (a, shared)
  c = Conv <pads = [1, 1, 1, 1]> (b, shared)
  d = Relu (c)
  y = ConvTranspose <strides = [2, 2]> (d, up)
}
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_product_is_told_once_where_weights_are_shared_or_names_lost(
    runtime, from_text, tmp_path
):
    shapes = {"w": (4, 3, 3, 3), "shared": (4, 4, 3, 3), "up": (4, 4, 4, 4)}
    model = from_text(SHARING, shapes)
    onnx.save(model, tmp_path / "sharing.onnx")
    built = EngineStore(tmp_path / "store").build(tmp_path / "sharing.onnx", engine=runtime)
    profiler = open_profiler(read_built(built.path), 1, tmp_path)
    profiler.run({"image": np.ones((1, 3, 16, 16), np.uint8)})
    layers = profiler.layers(OnnxFile(model, (16, 16)), 0)
    products = {layer.name: layer.macs for layer in layers if is_product(layer.kind)}
    assert products == layer_macs(model, (16, 16))
    assert len(products) == 4  # OpenVINO calls a transposed one after itself
    nodes = [node for layer in layers for node in layer.nodes]
    assert len(nodes) == len(set(nodes))


def test_weights_name_their_product_unless_it_is_one_of_several(from_text):
    model = from_text(SHARING, {"w": (4, 3, 3, 3), "shared": (4, 4, 3, 3), "up": (4, 4, 4, 4)})
    file = OnnxFile(model, (16, 16))
    names = {node.op_type: name for name, node in file.nodes.items()}
    assert file.node_called("up") == names["ConvTranspose"]
    assert file.node_called("shared") is None
    assert file.node_called("ConvolutionBackpropData_7") is None


def test_a_conversion_is_no_convolution():
    assert is_product("FusedConv")
    assert is_product("Deconvolution")
    assert not is_product("Convert")


def test_a_layer_that_loops_counts_as_often_as_it_ran():
    def event(name, us):
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {"node_index": 0}}

    run = {"cat": "Session", "name": "model_run"}
    first, runs = split_runs([event("a", 10), event("a", 20), run, event("a", 40), run])
    assert len(first) == 1
    assert [list(each.values()) for each in runs] == [[0.03], [0.04]]


def test_an_integer_convolution_runs_in_int8_and_its_conversions_do_not():
    weights = numpy_helper.from_array(np.ones((8, 4, 3, 3), np.int8), "w")
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"])
    graph = helper.make_graph([node], "g", [], [], [weights])

    def event(kind, index, reads, writes):
        shapes = {"input_type_shape": [reads], "output_type_shape": [writes]}
        facts = {"op_name": kind, "node_index": str(index), **shapes}
        sizes = {"activation_size": "100", "output_size": "50", "parameter_size": "7"}
        return {"cat": "Node", "name": f"{kind}_kernel_time", "dur": 5, "args": facts | sizes}

    u8, f32 = {"uint8": [1, 4, 6, 6]}, {"float": [1, 4, 6, 6]}
    events = [
        event("QLinearConv", 0, u8, {"uint8": [1, 8, 6, 6]}),
        event("DequantizeLinear", 1, u8, f32),
        event("QuantizeLinear", 2, f32, u8),
        event("MaxPool", 3, u8, u8),
        event("Flatten", 4, f32, f32),
        {"cat": "Session", "name": "model_run"},
    ]
    conv, *others, view = ort_layers(events, graph, None, 0)
    assert (conv.precision, conv.macs) == ("int8", 8 * 36 * 4 * 9)
    assert conv.num_bytes == 100 + 50 + 8 * 4 * 9  # the packed weights are not in parameter_size
    assert [each.precision for each in others] == ["fp32", "fp32", "int8"]
    assert others[0].num_bytes == 157
    assert view.num_bytes is None


def test_a_profile_that_cannot_be_read(tmp_path):
    (tmp_path / "events.json").write_text("[{")
    for path in (tmp_path / "events.json", tmp_path / "none.json"):
        with pytest.raises(EngineError, match="no profile that can be read"):
            read_events(path)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=30))
def test_single_runs_come_back_from_averages(times_us):
    totals = np.cumsum(times_us)
    averages = [int(total) // n for n, total in enumerate(totals, start=1)]
    for n, (found, true) in enumerate(zip(single_runs_ms(averages), times_us, strict=True), 1):
        assert abs(found * 1000 - true) <= n


def test_what_never_ran_took_no_time():
    assert single_runs_ms([0, 0, 0]) == [0.0, 0.0, 0.0]


def test_an_engine_of_another_runtime_has_no_profiler(tmp_path, tiny_onnx):
    class Foreign:
        engine = "tensorrt"

    with pytest.raises(EngineError, match="tensorrt has no profiler") as caught:
        open_profiler(Foreign(), 1, tmp_path)
    assert "onnxruntime or openvino" in caught.value.fix


def test_layers_survive_json(profiled):
    for layer in profiled("onnxruntime"):
        assert EngineLayer.from_json(json.loads(json.dumps(layer.to_json()))) == layer


def test_half_precision_weights_take_half_the_bytes():
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float16), "w")
    assert tensor.data_type == TensorProto.FLOAT16
    assert stored_bytes(tensor) == 12
