"""Ctrl-C in the middle of each stage: one line, status 1, no rests; then the same succeeds."""

import functools
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from crowdrt.__main__ import main as start

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "crowdrt"]
WAIT_S = 300.0  # for a busy machine; a quiet one takes seconds

# The verb, and a function in the middle of its work, at whose n-th call Ctrl-C comes.
STAGES = {
    "synthesize": (
        "synthesize --num-images 3 --size 320x320 -o {out}/photos",
        ("crowdrt.data.synthetic.photographs.crowd_photograph", 2),
    ),
    "export": (
        "export csrnet --weights {tiny}/tiny.safetensors -o {out}/new/model.onnx",
        ("crowdrt.export.onnx_export.prove_parity", 1),
    ),
    "calibrate": (
        "calibrate {tiny}/tiny.onnx --images {tiny}/photos --num-images 2 -o {out}/new/int8.onnx",
        ("crowdrt.calibration.calibrate.feeds_of", 2),
    ),
    "write": (
        "calibrate {tiny}/tiny.onnx --images {tiny}/photos --num-images 2 -o {out}/new/int8.onnx",
        ("crowdrt.calibration.calibrate.onnx.save", 1),
    ),
    "build": (
        "build {tiny}/tiny.onnx --store {out}/store",
        ("crowdrt.engines.ort.save_optimised", 1),
    ),
    "count": (
        "count {tiny}/tiny.onnx {tiny}/photos --store {tiny}/store --overlay {out}/new",
        ("crowdrt.pipeline.counting.predict_sample", 2),
    ),
    "race": (
        "profile {tiny}/tiny.onnx --size 96x128 --seconds 0 --store {tiny}/store -o {out}/r.jsonl",
        ("crowdrt.benchmarks.timing.race.RunningContender.visit", 1),
    ),
}

FINISHED = {  # what was done when Ctrl-C came, and is not done again
    "synthesize": {"photos", "photos/crowd_0000.jpg", "photos/crowd_0000.jpg.heads.json"},
    "write": {"new", "new/tiny.calibration.json"},
}


def interrupt(monkeypatch, name, call):
    """Let SIGINT come when the function of this name is called for the n-th time."""
    owner, attribute = resolve(name)
    calls = []
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, interrupted)
    return calls


def resolve(name):
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise AssertionError(name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_stops_and_goes_on(stage, tiny, tmp_path, tree, crowdrt, quick_race, monkeypatch):
    text, (name, call) = STAGES[stage]
    command = text.format(out=tmp_path, tiny=tiny.root).split()
    with monkeypatch.context() as patch:
        calls = interrupt(patch, name, call)
        stopped(crowdrt(*command, "--json"))
        assert len(calls) == call
    kept = tree(tmp_path)
    assert set(kept) == FINISHED.get(stage, set())
    crowdrt(*command, "--json").json()
    assert tree(tmp_path).items() >= kept.items()


def stopped(answer):
    assert (answer.code, answer.out) == (1, "")
    said = [line for line in answer.err.splitlines() if line.startswith("stopped")]
    assert len(said) == 1
    assert answer.err.splitlines()[-1] == said[0]
    assert "Traceback" not in answer.err
    assert not multiprocessing.active_children()


def test_a_run_goes_on_where_it_stopped(tiny, tiny_recipe, tmp_path, crowdrt, monkeypatch):
    command = ("run", "tiny", "--data", tiny.photos, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupt(patch, "crowdrt.pipeline.run.count_precision", 2)
        stopped(crowdrt(*command))
    with monkeypatch.context() as patch:
        interrupt(patch, "crowdrt.pipeline.run.race", 1)
        again = crowdrt(*command)
    stopped(again)
    done = {line.split()[0] for line in again.err.splitlines() if "nothing had changed" in line}
    assert done == {"export", "calibrate", "build", "count"}
    assert not (tmp_path / "out" / "run.json").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_training_goes_on_where_it_stopped(tiny, tiny_recipe, tmp_path, crowdrt, monkeypatch):
    from crowdrt.training import loop

    monkeypatch.setattr(loop, "train", functools.partial(loop.train, save_every=1))
    command = ("train", "tiny", "--data", tiny.photos, "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupt(patch, "crowdrt.training.loop.Run.learn", 3)
        stopped(crowdrt(*command))
    again = crowdrt(*command)
    assert again.code == 0
    assert "resuming at step 2" in again.err
    assert not list((tmp_path / "out").glob(".*"))


SLOW_IMPORT = """
import pathlib, time
pathlib.Path("importing").touch()
time.sleep(SECONDS)
raise ImportError("what a slow disk brought at last")
"""


def importing(folder, *, seconds, **options):
    """The command in the middle of its imports: `rich`, one of them, does not arrive."""
    (folder / "rich.py").write_text(SLOW_IMPORT.replace("SECONDS", str(seconds)))
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["crowdrt"]
    module, function = script.split(":")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {module} import {function} as main; main()", "recipes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
        **options,
    )
    deadline = time.monotonic() + WAIT_S
    while not (folder / "importing").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_ctrl_c_before_the_command_line_is_there_is_quiet(tmp_path):
    process = importing(tmp_path, seconds=WAIT_S)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=WAIT_S) == ("", "")
    assert process.returncode == -signal.SIGINT  # 130 in a shell


def test_ctrl_c_that_the_caller_ignores_stays_ignored(tmp_path):
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = importing(tmp_path, seconds=1, preexec_fn=ignore)
    os.killpg(process.pid, signal.SIGINT)
    assert "a slow disk" in process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == 1


def test_the_command_line_has_ctrl_c_for_itself_again(monkeypatch):
    seen = []
    monkeypatch.setattr("crowdrt.cli.main", lambda: seen.append(signal.getsignal(signal.SIGINT)))
    start()
    assert seen == [signal.default_int_handler]


def started(*arguments, cwd):
    """A real process, the leader of its group, as a shell starts it."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
    )


def press_ctrl_c(process, running):
    """Send SIGINT to the whole group, as a terminal does, once `running()` holds."""
    deadline = time.monotonic() + WAIT_S
    while not running():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1, err
    assert out == ""
    assert err.splitlines()[-1].startswith("stopped"), err
    assert "Traceback" not in err
    assert "Error" not in err


def test_a_process_stops(tmp_path, tree):
    arguments = ("synthesize", "--num-images", 9, "--size", "320x320", "-o", "p", "--json")
    process = started(*arguments, cwd=tmp_path)
    press_ctrl_c(process, (tmp_path / "p" / "crowd_0000.jpg.heads.json").exists)
    assert not [name for name in tree(tmp_path) if ".tmp-" in name]
    made = json.loads((tmp_path / "p" / "crowd_0000.jpg.heads.json").read_text())
    assert len(made["heads"]) >= 50


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_no_process_outlives_its_race(tiny, tmp_path, tree):
    arguments = ("profile", tiny.onnx, tiny.int8, "--size", "96x128", "--seconds", 600, "-o", "r")
    process = started(*arguments, "--store", tiny.store, cwd=tmp_path)
    contenders: set[int] = set()

    def two_contenders():
        contenders.update(
            child for child in children(process.pid) if "spawn_main" in command_line(child)
        )
        return len(contenders) == 2

    press_ctrl_c(process, two_contenders)
    deadline = time.monotonic() + WAIT_S
    while any("spawn_main" in command_line(child) for child in contenders):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert tree(tmp_path) == {}


def children(pid):
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
