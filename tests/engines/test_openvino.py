import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from crowdrt.engines import ov as ov_module
from crowdrt.engines.base import open_engine
from crowdrt.engines.machine import num_cores
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.ov import OpenVinoEngine
from crowdrt.engines.store import KINDS, MANIFEST, EngineStore
from crowdrt.errors import EngineError, MissingDependencyError
from crowdrt.onnx_file import graph_info, set_info

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs crowdrt[openvino]"
)
ENGINE = KINDS["openvino"].file


@pytest.fixture
def store(tmp_path):
    return EngineStore(tmp_path / "engines")


def precisions_of(engine: OpenVinoEngine) -> dict[str, str]:
    """In what each layer that computes runs, by its type and name."""
    layers = {}
    for node in engine.compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str)
        if kind not in ("Const", "Input", "Output"):
            layers[f"{kind} {node.get_friendly_name()}"] = facts["runtimePrecision"].astype(str)
    return layers


def test_it_describes_itself_and_answers_as_onnx_runtime_does(tiny_onnx, pixels):
    engine, reference = OpenVinoEngine(tiny_onnx), OrtEngine(tiny_onnx)
    assert engine.inputs == reference.inputs
    assert engine.outputs == reference.outputs
    assert engine.info == reference.info is not None
    got, expected = engine.run({"image": pixels}), reference.run({"image": pixels})
    assert expected["density"].std() > 0.01
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5 * np.abs(array).max())


def test_returned_arrays_belong_to_the_caller(tiny_onnx, pixels):
    engine = OpenVinoEngine(tiny_onnx)
    first = engine.run({"image": pixels})["density"]
    kept = first.copy()
    engine.run({"image": 255 - pixels})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # writable


def test_any_batch_size_and_memory_layout(tiny_onnx, pixels):
    engine = OpenVinoEngine(tiny_onnx.read_bytes(), num_threads=1)
    expected = engine.run({"image": pixels})["density"]
    batch = np.concatenate([pixels, 255 - pixels, pixels])
    assert engine.run({"image": batch})["density"].shape == (3, *expected.shape[1:])
    turned = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    turned.flags.writeable = False
    np.testing.assert_array_equal(engine.run({"image": turned})["density"], expected)
    wide = engine.run({"image": np.tile(pixels, (1, 1, 1, 2))})["density"]
    np.testing.assert_allclose(wide[..., :6], expected[..., :6], atol=1e-6)


def test_a_static_network(graph_maker, pixels):
    engine = OpenVinoEngine(graph_maker((40, 64), batch=1).SerializeToString())
    assert engine.inputs[0].shape == (1, 3, 40, 64)
    assert engine.run({"image": pixels})["density"].std() > 0.01
    with pytest.raises(EngineError, match=r"\(1, 3, 32, 64\)"):
        engine.run({"image": pixels[:, :, :32]})


def test_the_network_of_another_tool(graph_maker, pixels):
    engine = OpenVinoEngine(graph_maker(info=None).SerializeToString())
    assert engine.info is None
    assert engine.run({"image": pixels[:, :, :33]})["density"].shape[2:] == (4, 8)


def test_a_failing_run_is_an_engine_error(adding, monkeypatch):
    class Failing:
        def infer(self, _feeds):
            raise RuntimeError("no memory")

    engine = OpenVinoEngine(adding)
    feeds = {"a": np.ones(3, np.float32), "b": np.ones(1, np.float32)}
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_request", Failing())
        with pytest.raises(EngineError, match=r"failed on .*'b': \(1,\)\}: no memory") as caught:
            engine.run(feeds)
    assert "smaller" in caught.value.fix
    assert engine.run(feeds)["sum"][2] == 2


@pytest.mark.skipif(num_cores() < 2, reason="with one thread OpenVINO never says what cannot fit")
def test_shapes_that_do_not_fit_are_an_engine_error(adding):
    engine = OpenVinoEngine(adding)
    assert engine.run({"a": np.ones(3, np.float32), "b": np.ones(1, np.float32)})["sum"][2] == 2
    with pytest.raises(EngineError, match=r"failed on \{'a': \(3,\), 'b': \(4,\)\}"):
        engine.run({"a": np.ones(3, np.float32), "b": np.ones(4, np.float32)})
    assert engine.run({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})["sum"][1] == 2


def test_an_operator_that_openvino_lacks(graph_maker):
    model = graph_maker(info=None)
    model.graph.node[4].op_type = "Relux"
    model.graph.node[4].domain = "nobody"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    with pytest.raises(EngineError, match=r"Relux") as caught:
        OpenVinoEngine(model.SerializeToString())
    assert "--engine onnxruntime" in caught.value.fix


def test_threads(tiny_onnx):
    engine = OpenVinoEngine(tiny_onnx, num_threads=1)
    assert engine.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    with pytest.raises(EngineError, match="num_threads=-1"):
        OpenVinoEngine(tiny_onnx, num_threads=-1)


def test_calls_from_several_threads_do_not_mix(tiny_onnx, pixels):
    engine = OpenVinoEngine(tiny_onnx, num_threads=1)
    large = np.tile(pixels, (1, 1, 8, 8)).astype(int)  # long enough for another thread's turn
    images = [np.clip(large + 20 * k, 0, 255).astype(np.uint8) for k in range(8)]
    expected = [engine.run({"image": image})["count"][0] for image in images]
    assert len(set(expected)) == len(images)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            got = pool.map(lambda image: engine.run({"image": image})["count"][0], images)
            assert list(got) == expected


def test_no_thread_is_busy_after_a_run(tiny_onnx):
    engine = OpenVinoEngine(tiny_onnx)
    engine.run({"image": np.zeros((4, 3, 256, 256), np.uint8)})
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


@pytest.mark.parametrize("saved", [False, True])
def test_a_float_network_runs_in_float32(tiny_onnx, saved):
    engine = OpenVinoEngine(tiny_onnx)
    if saved:  # OpenVINO forgets what it was told to do, and would take bfloat16 where there is one
        engine = OpenVinoEngine(engine.saved(), saved=True)
    precisions = precisions_of(engine)
    convolutions = {p for name, p in precisions.items() if name.startswith("Convolution")}
    assert convolutions == {"f32"}
    assert set(precisions.values()) <= {"f32", "u8"}  # u8: what reads the pixels
    assert engine.compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


OPEN = """
import sys
from pathlib import Path
import numpy as np
from crowdrt.engines.base import open_engine
from crowdrt.engines.machine import num_cores
engine = open_engine(Path(sys.argv[1]))
engine.run({"image": np.zeros((1, 3, 40, 64), np.uint8)})
print("openvino" in sys.modules, [m for m in sys.modules if m.startswith("openvino_telemetry.")])
"""


def test_it_reports_to_nobody(store, tiny_onnx, tmp_path):
    folder = store.build(tiny_onnx, engine="openvino").path
    home = tmp_path / "home"
    home.mkdir()
    out = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder)],
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == ["True", "[]"]
    assert not list(home.iterdir())


def test_a_stored_engine_answers_exactly_as_the_file(store, tiny_onnx, pixels):
    built = store.build(tiny_onnx, engine="openvino")
    assert built.path.name == f"{built.key}-openvino"
    stored, original = open_engine(built.path), OpenVinoEngine(tiny_onnx)
    assert isinstance(stored, OpenVinoEngine)
    got, expected = stored.run({"image": pixels}), original.run({"image": pixels})
    assert expected["density"].std() > 0.01
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)
    described = (stored.inputs, stored.outputs, stored.info)
    assert described == (original.inputs, original.outputs, original.info)


def test_both_engines_of_a_file_lie_side_by_side(store, tiny_onnx):
    first = store.build(tiny_onnx, engine="openvino", num_threads=1)
    other = store.build(tiny_onnx)
    assert (first.reused, other.reused) == (False, False)
    assert {path.name for path in store.root.iterdir()} == {first.path.name, other.path.name}
    assert store.build(tiny_onnx, engine="openvino", num_threads=1).reused
    assert isinstance(open_engine(other.path), OrtEngine)
    engine = open_engine(first.path)
    assert engine.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    more = open_engine(first.path, num_threads=2)
    assert more.compiled.get_property("INFERENCE_NUM_THREADS") == min(2, num_cores())


def edit_manifest(folder: Path, edit) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    edit(document)
    (folder / MANIFEST).write_text(json.dumps(document))


def flip_last_bit(folder: Path) -> None:
    content = (folder / ENGINE).read_bytes()
    (folder / ENGINE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def change_description(folder: Path) -> None:
    content = (folder / ENGINE).read_bytes()
    assert b"120.0" in content.partition(b"\n")[0]
    (folder / ENGINE).write_bytes(content.replace(b"120.0", b"110.0", 1))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: os.truncate(folder / ENGINE, 500), "altered or cut short"),
        (flip_last_bit, "altered or cut short"),
        (change_description, "altered or cut short"),
        (lambda folder: (folder / ENGINE).unlink(), "no engine folder"),
        (lambda f: edit_manifest(f, lambda d: d["identity"].update(engine="x")), "no engine"),
        (
            lambda f: edit_manifest(f, lambda d: d["identity"].update(engine_version="2020.1")),
            r"built elsewhere: openvino 2020\.1 there",
        ),
        (
            lambda f: edit_manifest(f, lambda d: d["identity"]["machine"].update(cpu="9000")),
            "built elsewhere: cpu 9000 there",
        ),
    ],
)
def test_a_damaged_or_foreign_engine_is_refused_and_built_again(store, tiny_onnx, damage, problem):
    folder = store.build(tiny_onnx, engine="openvino").path
    damage(folder)
    with pytest.raises(EngineError, match=problem) as caught:
        open_engine(folder)
    assert "crowdrt build MODEL.onnx --engine openvino" in caught.value.fix
    assert not store.build(tiny_onnx, engine="openvino").reused
    assert open_engine(folder).inputs


def test_an_engine_that_answers_differently_once_saved_is_not_kept(store, tiny_onnx, monkeypatch):
    other = onnx.load(tiny_onnx)
    other.graph.initializer[0].raw_data = np.full((1, 3, 1, 1), 100, np.float32).tobytes()
    wrong = OpenVinoEngine(other.SerializeToString()).saved()
    monkeypatch.setattr(OpenVinoEngine, "saved", lambda _: wrong)
    with pytest.raises(EngineError, match="answers differently") as caught:
        store.build(tiny_onnx, engine="openvino")
    assert "--engine onnxruntime" in caught.value.fix
    assert not store.root.exists()


def test_an_unknown_engine(store, tiny_onnx):
    with pytest.raises(EngineError, match="'tensorflow' is unknown") as caught:
        store.build(tiny_onnx, engine="tensorflow")
    assert caught.value.fix == "use onnxruntime or openvino or tensorrt"
    assert not store.root.exists()


def test_without_openvino(store, tiny_onnx, monkeypatch):
    folder = store.build(tiny_onnx, engine="openvino").path
    monkeypatch.setitem(sys.modules, "openvino", None)
    find = importlib.metadata.version

    def version(name: str) -> str:
        if name == "openvino":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    for call in (
        lambda: store.build(tiny_onnx, engine="openvino"),
        lambda: open_engine(folder),
        lambda: OpenVinoEngine(tiny_onnx),
    ):
        with pytest.raises((MissingDependencyError, EngineError), match="openvino") as caught:
            call()
        assert caught.value.fix == "pip install 'crowdrt[openvino]'"


@pytest.mark.parametrize("said", [True, False])
def test_eight_bit_weights_are_refused_where_sums_overflow(graph_maker, monkeypatch, said):
    model = graph_maker(info=None)
    if said:
        model = graph_maker()
        set_info(model, replace(graph_info(model), precision="int8", weight_bits=8))
    else:  # another tool's INT8: its weights may use the full range
        scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
        model.graph.initializer.append(scale)
        model.graph.node.append(helper.make_node("QuantizeLinear", ["b", "scale"], ["unread"]))
    monkeypatch.setattr(ov_module, "cpu_may_saturate", lambda: False)
    assert OpenVinoEngine(model.SerializeToString()).inputs
    monkeypatch.setattr(ov_module, "cpu_may_saturate", lambda: True)
    with pytest.raises(EngineError, match="8-bit weights") as caught:
        OpenVinoEngine(model.SerializeToString())
    assert "--weight-bits 7" in caught.value.fix


DROPPED_ELSEWHERE = """
import signal, sys, threading
from pathlib import Path
from crowdrt.engines.ov import OpenVinoEngine

engines = [OpenVinoEngine(Path(sys.argv[1]))]
thread = threading.Thread(target=engines.clear)
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_after_a_thread_dropped_the_last_engine(tiny_onnx):
    command = [sys.executable, "-c", DROPPED_ELSEWHERE, str(tiny_onnx)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "stopped"), done.stderr
