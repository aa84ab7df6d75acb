import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from crowdrt.engines import ort as ort_module
from crowdrt.engines import store as store_module
from crowdrt.engines.base import open_engine
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.store import KINDS, MANIFEST, EngineStore
from crowdrt.errors import CrowdRTError, EngineError, ExportError
from crowdrt.onnx_file import graph_info, set_info

ENGINE = KINDS["onnxruntime"].file


@pytest.fixture
def engines(tmp_path):
    return EngineStore(tmp_path / "engines")


def left_behind(root: Path) -> list[str]:
    return [path.name for path in root.glob(".*")] if root.exists() else []


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def edit_manifest(folder: Path, edit) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    edit(document)
    (folder / MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize("size", [("height", "width"), (40, 64)], ids=["dynamic", "static"])
def test_a_stored_engine_answers_exactly_as_the_file(engines, tmp_path, graph_maker, pixels, size):
    path = tmp_path / "model.onnx"
    onnx.save(graph_maker(size), path)
    built = engines.build(path)
    stored, original = open_engine(built.path), open_engine(path)
    got, expected = stored.run({"image": pixels}), original.run({"image": pixels})
    assert expected["density"].std() > 0.01
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)
    assert (stored.inputs, stored.outputs, stored.info) == (
        original.inputs,
        original.outputs,
        original.info,
    )


def test_what_is_stored_is_the_optimised_graph(engines, tiny_onnx):
    built = engines.build(tiny_onnx)
    stored = onnx.load(built.path / ENGINE)
    assert json.loads((built.path / MANIFEST).read_text())["optimised"]
    assert "Relu" in operators(onnx.load(tiny_onnx))
    assert "Relu" not in operators(stored)  # fused into the convolution before it


def test_the_second_build_is_a_hit_without_onnx_runtime(engines, tiny_onnx):
    first = engines.build(tiny_onnx)
    code = (
        "import sys; from pathlib import Path; from crowdrt.engines.store import EngineStore\n"
        f"built = EngineStore(Path({str(engines.root)!r})).build(Path({str(tiny_onnx)!r}))\n"
        "print(built.path, built.reused, built.seconds < 1, 'onnxruntime' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not first.reused
    assert out.stdout.split() == [str(first.path), "True", "True", "False"]
    assert [path.name for path in engines.root.iterdir()] == [f"{first.key}-onnxruntime"]


def test_the_key_follows_everything_that_decides_the_engine(
    engines, tmp_path, tiny_onnx, graph_maker, monkeypatch
):
    other = tmp_path / "other.onnx"
    onnx.save(graph_maker((40, 64)), other)
    keys = [
        engines.build(tiny_onnx).key,
        engines.build(tiny_onnx, num_threads=1).key,
        engines.build(other).key,
    ]
    monkeypatch.setattr(store_module, "machine_identity", lambda: {"cpu": "another"})
    keys.append(engines.build(tiny_onnx).key)
    monkeypatch.setattr(store_module, "runtime_version", lambda _: "9.9")
    keys.append(engines.build(tiny_onnx).key)
    assert len(set(keys)) == 5
    renamed = tiny_onnx.rename(tmp_path / "renamed.onnx")
    assert engines.build(renamed).key == keys[-1]


def test_weights_in_another_file_are_part_of_the_key(engines, tmp_path, graph_maker):
    path = tmp_path / "split.onnx"
    onnx.save(
        graph_maker(), path, save_as_external_data=True, location="split.data", size_threshold=100
    )
    assert OrtEngine(path).inputs
    first = engines.build(path)
    assert engines.build(path).reused
    weights = bytearray((tmp_path / "split.data").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "split.data").write_bytes(weights)
    assert engines.build(path).key != first.key
    (tmp_path / "split.data").unlink()
    with pytest.raises(ExportError, match="weights in another file"):
        engines.build(path)
    assert open_engine(first.path).inputs  # the stored engine needs neither file


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / ENGINE, 500),
    "one bit": lambda folder: (folder / ENGINE).write_bytes(
        (folder / ENGINE).read_bytes()[:-1] + b"\x01"
    ),
    "no engine": lambda folder: (folder / ENGINE).unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half a manifest": lambda folder: os.truncate(folder / MANIFEST, 100),
    "an empty manifest": lambda folder: (folder / MANIFEST).write_text("[]"),
    "a manifest without end": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "another layout": lambda folder: edit_manifest(
        folder, lambda d: d["identity"].update(format=0)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_engine_is_refused_and_then_built_again(engines, tiny_onnx, damage, capsys):
    built = engines.build(tiny_onnx)
    DAMAGES[damage](built.path)
    with pytest.raises(EngineError, match=built.path.name) as caught:
        open_engine(built.path)
    assert "crowdrt build MODEL.onnx" in caught.value.fix
    again = engines.build(tiny_onnx)
    assert (again.path, again.reused) == (built.path, False)
    assert "building it again" in capsys.readouterr().err
    assert open_engine(built.path).inputs
    assert not left_behind(engines.root)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d: d["identity"]["machine"].update(cpu="Elsewhere 9000"), "cpu Elsewhere 9000"),
        (lambda d: d["identity"]["machine"].update(flags=["avx2"]), "flags avx2 there"),
        (lambda d: d["identity"].update(engine_version="1.0.0"), r"onnxruntime 1\.0\.0 there"),
    ],
)
def test_an_engine_of_another_machine_is_refused(engines, tiny_onnx, edit, problem):
    folder = engines.build(tiny_onnx).path
    edit_manifest(folder, edit)
    with pytest.raises(EngineError, match=f"built elsewhere: .*{problem}") as caught:
        open_engine(folder)
    assert "crowdrt build MODEL.onnx" in caught.value.fix


def test_a_folder_without_engine(tmp_path):
    with pytest.raises(EngineError, match="no engine folder"):
        open_engine(tmp_path)


def test_threads_of_the_build_hold_unless_others_are_asked_for(engines, tiny_onnx, monkeypatch):
    seen = []
    built = engines.build(tiny_onnx, num_threads=1)
    monkeypatch.setattr(
        ort_module, "OrtEngine", lambda *_, **kwargs: seen.append(kwargs["num_threads"])
    )
    open_engine(built.path)
    open_engine(built.path, num_threads=2)
    assert seen == [1, 2]


def altered_save(model, out, **_):
    wrong = onnx.load(model)
    wrong.graph.initializer[0].raw_data = np.full((1, 3, 1, 1), 100, np.float32).tobytes()
    onnx.save(wrong, out)


def failing_save(model, out, **_):
    raise EngineError("cannot serialise", fix="use another opset")


@pytest.mark.parametrize(
    ("save", "reason"),
    [(altered_save, "answers differently"), (failing_save, "cannot be saved")],
)
def test_an_unreliable_optimised_form_is_not_stored(
    engines, tiny_onnx, pixels, monkeypatch, capsys, save, reason
):
    monkeypatch.setattr(ort_module, "save_optimised", save)
    built = engines.build(tiny_onnx)
    said = capsys.readouterr().err
    assert reason in said
    assert "opset" not in said  # there is nothing to mend
    assert reason in json.loads((built.path / MANIFEST).read_text())["objection"]
    assert onnx.load(built.path / ENGINE) == onnx.load(tiny_onnx)
    np.testing.assert_array_equal(
        open_engine(built.path).run({"image": pixels})["density"],
        open_engine(tiny_onnx).run({"image": pixels})["density"],
    )


BUILD = """
import sys, time
from pathlib import Path
from crowdrt.engines import ort, store
root, model, go, wait = map(Path, sys.argv[1:])
save = ort._write
def slow(*args):
    answer = save(*args)
    wait.touch()
    while not go.exists():
        time.sleep(0.01)
    return answer
ort._write = slow
built = store.EngineStore(root).build(model)
print(built.path, built.reused)
"""


def start_build(engines, tiny_onnx, tmp_path, name) -> tuple[subprocess.Popen, Path]:
    """Start a build in a process that stops in the middle until `go` appears."""
    waiting = tmp_path / f"waiting-{name}"
    arguments = [engines.root, tiny_onnx, tmp_path / "go", waiting]
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    return process, waiting


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_building_the_same_key_both_succeed(engines, tiny_onnx, tmp_path):
    started = [start_build(engines, tiny_onnx, tmp_path, name) for name in "ab"]
    for _, waiting in started:
        wait_for(waiting)
    assert len(left_behind(engines.root)) == 2  # both are in the middle
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60)[0].split() for process, _ in started]
    assert [process.returncode for process, _ in started] == [0, 0]
    assert outputs[0] == outputs[1]
    assert [str(path) for path in engines.root.iterdir()] == [outputs[0][0]]
    assert open_engine(Path(outputs[0][0])).inputs


def test_a_killed_build_leaves_no_engine(engines, tiny_onnx, tmp_path):
    process, waiting = start_build(engines, tiny_onnx, tmp_path, "killed")
    wait_for(waiting)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (rest,) = engines.root.iterdir()
    assert rest.name.startswith(".")
    os.utime(rest, (0, 0))  # long ago
    built = engines.build(tiny_onnx)
    assert not built.reused
    assert not left_behind(engines.root)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_interrupted_build_leaves_nothing(engines, tiny_onnx, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(store_module, "write_json", fail)
    expected = CrowdRTError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        engines.build(tiny_onnx)
    assert not engines.root.exists()


def test_a_store_that_cannot_be_written(tmp_path, tiny_onnx, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(CrowdRTError, match="could not be written") as caught:
        EngineStore(tmp_path / "file" / "engines").build(tiny_onnx)
    assert "choose a folder that you may write to" in caught.value.fix

    def denied(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", denied)
    with pytest.raises(CrowdRTError, match="Permission denied"):
        EngineStore(tmp_path / "engines").build(tiny_onnx)


def test_bad_input_leaves_no_store(engines, tmp_path):
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(b"\x08\x08garbage")
    with pytest.raises(ExportError, match=r"corrupt\.onnx"):
        engines.build(path)
    with pytest.raises(ExportError, match="does not exist"):
        engines.build(tmp_path / "missing.onnx")
    assert not engines.root.exists()


def test_the_store_can_be_shared(engines, tiny_onnx):
    assert engines.build(tiny_onnx).path.stat().st_mode & 0o755 == 0o755


def test_a_network_of_another_tool_can_be_stored(engines, tmp_path, graph_maker, pixels):
    path = tmp_path / "foreign.onnx"
    onnx.save(graph_maker(info=None), path)
    stored = open_engine(engines.build(path).path)
    assert stored.info is None
    assert stored.run({"image": pixels})["density"].std() > 0.01


def test_int8_settings_travel_with_the_engine(engines, tmp_path, graph_maker, monkeypatch):
    model = graph_maker()
    info = replace(graph_info(model), precision="int8", weight_bits=8)
    set_info(model, info)
    path = tmp_path / "int8.onnx"
    onnx.save(model, path)
    monkeypatch.setattr("crowdrt.engines.ort.cpu_may_saturate", lambda: True)
    built = engines.build(path)
    monkeypatch.setattr("crowdrt.engines.ort.cpu_may_saturate", lambda: False)
    assert open_engine(built.path).config["session.x64quantprecision"] == "1"
