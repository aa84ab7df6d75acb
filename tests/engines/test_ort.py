from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crowdrt.contracts import GraphInfo, Preprocessing, TensorSpec
from crowdrt.engines import ort as ort_engine
from crowdrt.engines.base import open_engine
from crowdrt.engines.ort import EXACT_INT8, OrtEngine, full_range_int8
from crowdrt.errors import CrowdRTError, EngineError, ExportError, MissingDependencyError

INFO = GraphInfo(
    network="tiny",
    width="1",
    preprocessing=Preprocessing(channels="rgb", mean=(120.0,) * 3, std=(60.0,) * 3, stride=8),
    density_stride=8,
)


def test_specs_and_info_come_from_the_file(tiny_onnx):
    engine = open_engine(tiny_onnx)
    assert engine.inputs == (
        TensorSpec(name="image", shape=("batch", 3, "height", "width"), dtype="uint8"),
    )
    assert [(output.name, output.dtype) for output in engine.outputs] == [
        ("density", "float32"),
        ("count", "float32"),
    ]
    assert engine.info == INFO


def test_run_agrees_with_arithmetic_in_numpy(tiny_onnx, pixels):
    got = OrtEngine(tiny_onnx).run({"image": pixels})
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(tiny_onnx).graph.initializer}
    x = (pixels.astype(np.float64) - 120) / 60
    x = np.maximum(correlate(x, weights["first_w"]), 0)
    x = correlate(x, weights["second_w"])
    expected = x.reshape(1, 1, 5, 8, 8, 8).mean(axis=(3, 5))
    assert expected.std() > 0.01
    np.testing.assert_allclose(got["density"], expected, atol=1e-5)
    np.testing.assert_allclose(got["count"], expected.sum(axis=(1, 2, 3)), rtol=1e-5)


def correlate(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A 3x3 convolution with zero padding, by the definition."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sum(
        np.einsum("nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )


def test_returned_arrays_belong_to_the_caller(tiny_onnx, pixels):
    engine = OrtEngine(tiny_onnx)
    first = engine.run({"image": pixels})["density"]
    kept = first.copy()
    engine.run({"image": 255 - pixels})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # writable


def test_bytes_and_unoptimised_graphs_answer_the_same(tiny_onnx, pixels):
    expected = OrtEngine(tiny_onnx).run({"image": pixels})["density"]
    plain = OrtEngine(tiny_onnx.read_bytes(), optimise=False, num_threads=1)
    np.testing.assert_allclose(plain.run({"image": pixels})["density"], expected, atol=1e-5)


def test_any_batch_and_size_of_a_dynamic_graph(tiny_onnx):
    engine = OrtEngine(tiny_onnx)
    density = engine.run({"image": np.zeros((3, 3, 48, 8), np.uint8)})["density"]
    assert density.shape == (3, 1, 6, 1)


@pytest.mark.parametrize(
    ("feeds", "problem", "fix"),
    [
        ({"x": np.zeros((1, 3, 32, 64), np.uint8)}, "named", "image"),
        ({}, "named", "image"),
        ({"image": np.zeros((1, 3, 32, 64), np.float32)}, "float32", "uint8"),
        ({"image": [[0]]}, "list", "np.asarray"),
        ({"image": np.zeros((3, 32, 64), np.uint8)}, r"\(3, 32, 64\)", r"image\[None\]"),
        ({"image": np.zeros((1, 1, 32, 64), np.uint8)}, r"\(1, 1, 32, 64\)", "3 channels"),
        ({"image": np.zeros((1, 3, 32, 72), np.uint8)}, r"\(1, 3, 32, 64\)", "--size dynamic"),
        ({"image": np.zeros((2, 3, 32, 64), np.uint8)}, r"\(2, 3", "1 image"),
        ({"image": np.zeros((0, 3, 32, 64), np.uint8)}, r"\(0, 3", "image"),
    ],
)
def test_a_static_engine_says_what_does_not_fit(graph_maker, feeds, problem, fix):
    engine = OrtEngine(graph_maker((32, 64), batch=1).SerializeToString())
    engine.run({"image": np.zeros((1, 3, 32, 64), np.uint8)})
    with pytest.raises(EngineError, match=problem) as caught:
        engine.run(feeds)
    assert caught.match(fix)


def test_a_size_off_the_stride_is_refused(tiny_onnx):
    with pytest.raises(EngineError, match=r"577x865.*no multiple of 8") as caught:
        OrtEngine(tiny_onnx).run({"image": np.zeros((1, 3, 577, 865), np.uint8)})
    assert "pad_to_stride" in caught.value.fix


def test_the_network_of_another_tool_runs_without_info(graph_maker):
    engine = OrtEngine(graph_maker(info=None).SerializeToString())
    assert engine.info is None
    assert engine.run({"image": np.zeros((1, 3, 33, 41), np.uint8)})["density"].shape[2:] == (4, 5)


def test_a_failing_run_is_an_engine_error(adding):
    engine = OrtEngine(adding)
    assert engine.run({"a": np.ones(3, np.float32), "b": np.ones(1, np.float32)})["sum"][2] == 2
    with pytest.raises(EngineError, match=r"failed on \{'a': \(3,\), 'b': \(4,\)\}"):
        engine.run({"a": np.ones(3, np.float32), "b": np.ones(4, np.float32)})


def test_negative_threads(tiny_onnx):
    with pytest.raises(EngineError, match="num_threads=-1"):
        OrtEngine(tiny_onnx, num_threads=-1)


def test_an_operator_that_onnx_runtime_lacks(tmp_path, graph_maker):
    model = graph_maker(info=None)
    model.graph.node[4].op_type = "Relux"
    model.graph.node[4].domain = "nobody"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    with pytest.raises(CrowdRTError, match="Relux"):
        open_engine(path)


def test_no_onnx_file(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_text("not an image, and no network either")
    with pytest.raises(ExportError, match=r"photo\.jpg"):
        open_engine(path)
    with pytest.raises(ExportError, match="does not exist"):
        open_engine(tmp_path / "missing.onnx")


def test_a_missing_runtime_names_the_extra(tiny_onnx, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"crowdrt\[cpu\]"):
        OrtEngine(tiny_onnx)


def int8_conv(weight: np.ndarray, info: GraphInfo | None) -> bytes:
    """Q/DQ around one 1x1 convolution, symmetric int8 throughout; scales that keep integers."""
    arrays = {
        "sx": np.float32(1),
        "sw": np.ones(len(weight), np.float32),
        "sy": np.float32(2048),
        "zero": np.int8(0),
        "zeros": np.zeros(len(weight), np.int8),
        "w": weight,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zero"], ["qx"]),
        helper.make_node("DequantizeLinear", ["qx", "sx", "zero"], ["dx"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zeros"], ["dw"], axis=0),
        helper.make_node("Conv", ["dx", "dw"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "sy", "zero"], ["qy"]),
        helper.make_node("DequantizeLinear", ["qy", "sy", "zero"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1], 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if info is not None:
        ort_engine_info = replace(info, precision="int8")
        model.metadata_props.add(key="crowdrt", value=ort_engine_info.to_json())
    return model.SerializeToString()


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("optimise", [True, False])
def test_int8_is_exact_on_this_cpu(bits, optimise):
    # The worst case: the largest products of one sign, which overflow 16-bit sums of pairs.
    limit = 2 ** (bits - 1) - 1
    rng = np.random.default_rng(0)
    weight = rng.choice([limit, limit, -limit], (16, 32, 1, 1)).astype(np.int8)
    x = rng.choice([127, 126, -127], (1, 32, 8, 8)).astype(np.float32)
    sums = np.einsum("nchw,oc->nohw", x.astype(np.int64), weight[:, :, 0, 0].astype(np.int64))
    expected = np.clip(np.rint(sums / 2048), -128, 127) * 2048
    engine = OrtEngine(int8_conv(weight, replace(INFO, weight_bits=bits)), optimise=optimise)
    assert expected.std() > 2048
    np.testing.assert_array_equal(engine.run({"x": x})["out"], expected)


@pytest.mark.parametrize(
    ("bits", "said", "saturates", "exact"),
    [
        (8, True, True, True),
        (8, True, False, False),
        (7, True, True, False),
        (8, False, True, True),  # another tool's INT8: its weights may use the full range
    ],
)
def test_exact_products_are_asked_for_where_they_could_saturate(
    monkeypatch, bits, said, saturates, exact
):
    monkeypatch.setattr(ort_engine, "cpu_may_saturate", lambda: saturates)
    weight = np.full((16, 32, 1, 1), 63, np.int8)
    info = replace(INFO, weight_bits=bits) if said else None
    engine = OrtEngine(int8_conv(weight, info))
    assert (EXACT_INT8.items() <= engine.config.items()) == exact
    assert engine.run({"x": np.ones((1, 32, 8, 8), np.float32)})["out"].shape == (1, 16, 8, 8)


def test_float_graphs_are_not_int8(graph_maker):
    assert not full_range_int8(graph_maker())
    assert not full_range_int8(graph_maker(info=None))


def test_no_thread_spins_after_a_run(tiny_onnx, pixels):
    assert OrtEngine(tiny_onnx).config["session.force_spinning_stop"] == "1"


def test_onnx_runtime_knows_the_settings():
    # it takes unknown names in silence, so a typing error would go unnoticed
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    library = next(p for p in folder.iterdir() if "pybind11_state" in p.name).read_bytes()
    for key in (*EXACT_INT8, *ort_engine.SPINNING):
        assert key.encode() in library
