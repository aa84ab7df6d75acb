"""Plans loaded and run: memory, streams, threads, sizes; on the stand-in for TensorRT and a GPU."""

import ctypes.util
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from stand_in_tensorrt import installed

from crowdrt.engines.cuda.device import failed
from crowdrt.engines.cuda.graphs import CudaGraph, GraphError
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.trt import session as session_module
from crowdrt.engines.trt.building.build import write_plan
from crowdrt.engines.trt.building.options import PlanOptions, parse_shape
from crowdrt.engines.trt.run import TrtEngine
from crowdrt.errors import EngineError

STATIC = PlanOptions(shape=parse_shape("40x64"))
RANGE = PlanOptions(shape=parse_shape("32x32:40x64:64x96"))


class RecordedGraph:
    """Replays what was given to the stream, as a CUDA graph does."""

    alive = 0

    def __init__(self, _stream, work):
        self.work, self.launched = work, 0
        self.shapes = dict(work.__self__._shapes)
        # what TensorRT puts off until the first run must not become part of a graph
        assert work.__self__._context.my_warm
        type(self).alive += 1

    def launch(self, stream):
        self.launched += 1
        assert self.shapes == self.work.__self__._shapes  # its kernels are those of one size
        self.work(stream)

    def close(self):
        type(self).alive -= 1


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(RecordedGraph, "alive", 0)
    monkeypatch.setattr(session_module, "CudaGraph", RecordedGraph)


@pytest.fixture
def opened(monkeypatch, tmp_path, tiny_onnx):
    """Opens a network on the stand-ins of a generation."""

    def make(generation="10.16", options=STATIC, path=tiny_onnx, **keywords):
        trt, device = installed(monkeypatch, generation)
        document = write_plan(path, tmp_path / "a.plan", options)
        return TrtEngine((tmp_path / "a.plan").read_bytes(), document, **keywords), trt, device

    return make


def agree(engine, reference, feeds):
    got, expected = engine.run(feeds), reference.run(feeds)
    assert expected["density"].std() > 0.01
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, rtol=1e-5)


@pytest.mark.parametrize("generation", ["8.6", "10.16", "11.4"])
@pytest.mark.parametrize("options", [STATIC, RANGE, replace(STATIC, float_input=True)])
def test_it_answers_as_the_file_does(opened, tiny_onnx, pixels, graphs, generation, options):
    engine, _, _ = opened(generation, options)
    reference = OrtEngine(tiny_onnx)
    assert engine.info == reference.info is not None
    assert engine.inputs[0].dtype == "uint8"
    for _ in range(3):  # the first run, the recorded one, and one of the graph
        agree(engine, reference, {"image": pixels})
    assert RecordedGraph.alive == 1


def test_sizes_may_change_and_come_again(opened, tiny_onnx, pixels, graphs):
    engine, _, _ = opened(options=RANGE)
    reference = OrtEngine(tiny_onnx)
    other = pixels[..., :32, :48]
    for image in (pixels, pixels, other, pixels, other, other, other):
        agree(engine, reference, {"image": np.ascontiguousarray(image)})
        assert RecordedGraph.alive <= 1  # one of another size is gone


def test_views_of_a_photograph_need_not_be_contiguous(opened, tiny_onnx, pixels):
    engine, _, _ = opened()
    flipped = pixels[..., ::-1]
    agree(engine, OrtEngine(tiny_onnx), {"image": flipped})


@pytest.mark.parametrize("shape", [(1, 3, 24, 64), (1, 3, 64, 104), (2, 3, 40, 64)])
def test_a_size_outside_the_range_is_refused(opened, shape):
    engine, _, _ = opened(options=RANGE)
    with pytest.raises(EngineError, match=r"the plan takes \(1, 3, 32, 32\) to") as caught:
        engine.run({"image": np.zeros(shape, np.uint8)})
    assert "--shape" in caught.value.fix
    engine.run({"image": np.zeros((1, 3, 40, 64), np.uint8)})


def test_memory_is_allocated_once(opened, pixels):
    engine, _, device = opened(options=RANGE)
    for _ in range(5):
        engine.run({"image": pixels})
        engine.run({"image": pixels[..., :32, :32]})
    assert device.calls["allocate"] == device.calls["pinned"] == 3  # image, density, count
    assert device.calls["new_stream"] == 1
    assert device.calls["new_event"] == 4


def test_answers_belong_to_the_caller(opened, pixels):
    engine, _, _ = opened()
    first = engine.run({"image": pixels})["density"]
    kept = first.copy()
    engine.run({"image": 255 - pixels})
    np.testing.assert_array_equal(first, kept)
    first[...] = 0  # writable


def test_everything_is_given_back(opened, pixels, graphs):
    engine, _, device = opened()
    for _ in range(3):
        engine.run({"image": pixels})
    assert device.memory.blocks
    engine.close()
    engine.close()
    assert not device.memory.blocks
    assert not device.streams
    assert not device.events
    assert device.pinned_alive == 0
    assert RecordedGraph.alive == 0
    assert device.depth == 0
    with pytest.raises(EngineError, match="closed"):
        engine.run({"image": pixels})


def test_an_engine_that_nobody_holds_gives_everything_back(opened, pixels):
    engine, _, device = opened()
    engine.run({"image": pixels})
    del engine
    gc.collect()
    assert not device.memory.blocks
    with opened()[0] as other:
        other.run({"image": pixels})


@pytest.mark.parametrize("call", ["allocate", "pinned"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_engine_that_does_not_fit_gives_back_what_it_had(opened, monkeypatch, call, count):
    engine, _, device = opened()
    engine.close()
    real, calls = getattr(device, call), []

    def short(num_bytes):
        calls.append(num_bytes)
        if len(calls) == count:
            raise failed(call, "CUDA_ERROR_OUT_OF_MEMORY")
        return real(num_bytes)

    monkeypatch.setattr(device, call, short)
    with pytest.raises(EngineError, match="OUT_OF_MEMORY") as caught:
        engine.beside()
    assert "nvidia-smi" in caught.value.fix
    assert not device.memory.blocks
    assert not device.streams
    assert not device.events
    assert device.pinned_alive == 0


def test_engines_beside_each_other_share_the_plan_alone(opened, tiny_onnx, pixels):
    engine, trt, device = opened()
    reference = OrtEngine(tiny_onnx)
    engines = [engine, *(engine.beside() for _ in range(3))]
    images = [np.roll(pixels, 5 * i, -1) for i in range(4)]
    expected = [reference.run({"image": image})["density"] for image in images]
    assert np.std([array.sum() for array in expected]) > 0
    barrier = threading.Barrier(4)

    def work(i):
        barrier.wait()
        return [engines[i].run({"image": images[i]})["density"] for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for i, answers in enumerate(pool.map(work, range(4))):
            for answer in answers:
                np.testing.assert_allclose(answer, expected[i], rtol=1e-5)
    loads = [entry for entry in trt.my_log if entry[0] == "loaded"]
    assert len(loads) == 2  # the build's own look at its layers, and one for all four
    assert len(device.streams) == 4
    engine.close()
    engines[1].run({"image": pixels})  # the plan stays for the others


def test_threads_may_share_one_engine(opened, tiny_onnx, pixels):
    engine, _, _ = opened()
    images = [np.roll(pixels, 3 * i, -1) for i in range(6)]
    reference = OrtEngine(tiny_onnx)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda image: engine.run({"image": image})["count"], images * 3))
    for answer, image in zip(answers, images * 3, strict=True):
        np.testing.assert_allclose(answer, reference.run({"image": image})["count"], rtol=1e-5)


def test_where_no_graph_can_be_made_kernels_are_launched_one_by_one(
    opened, tiny_onnx, pixels, monkeypatch, capsys
):
    def refuses(stream, work):
        raise GraphError("the driver makes no graphs")

    monkeypatch.setattr(session_module, "CudaGraph", refuses)
    engine, _, _ = opened()
    for _ in range(4):
        agree(engine, OrtEngine(tiny_onnx), {"image": pixels})
    assert capsys.readouterr().err.count("one by one") == 1


def test_without_graphs_none_is_tried(opened, pixels, graphs):
    engine, _, _ = opened(graphs=False)
    for _ in range(4):
        engine.run({"image": pixels})
    assert RecordedGraph.alive == 0


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="there is a driver")
def test_a_machine_without_a_driver_makes_no_graph():
    with pytest.raises(GraphError):
        CudaGraph(1, print)


def test_the_time_of_a_run_is_told_in_three_parts(opened, pixels):
    engine, _, _ = opened()
    answers, timing = engine.timed({"image": pixels})
    assert answers["count"].shape == (1,)
    parts = (timing.to_device_ms, timing.compute_ms, timing.to_host_ms)
    assert min(parts) >= 0
    assert timing.compute_ms > 0


def test_int64_answers_stay_int64_where_tensorrt_has_int32(opened, tmp_path):
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, 8, 8])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [1, 1, 8, 8])
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["pixels"], ["label"], axis=1),
    ]
    graph = helper.make_graph(nodes, "labels", [image], [label])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "labels.onnx"
    onnx.save(model, path)
    engine, _, _ = opened("8.6", PlanOptions(), path)
    feeds = {"image": np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)}
    answer = engine.run(feeds)["label"]
    assert answer.dtype == np.int64
    np.testing.assert_array_equal(answer, feeds["image"].argmax(1, keepdims=True))


def test_numbers_that_numpy_does_not_have_are_named(opened, monkeypatch):
    engine, trt, _ = opened()

    def none(kind):
        raise TypeError("Could not resolve TensorRT datatype")

    monkeypatch.setattr(trt, "nptype", none)
    with pytest.raises(EngineError, match="image is of the type"):
        engine.beside()


def test_a_plan_of_another_version_is_refused_by_tensorrt_too(opened, monkeypatch, tmp_path):
    _, _, _ = opened("8.6")
    document = {"inputs": [], "outputs": [], "info": None}
    installed(monkeypatch, "10.16")
    with pytest.raises(EngineError, match="version tag does not match") as caught:
        TrtEngine((tmp_path / "a.plan").read_bytes(), document)
    assert "crowdrt build" in caught.value.fix
