"""A run that was killed anywhere ends with the very bytes of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killed_runs.py")


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    return subprocess.run(
        [sys.executable, PROGRAM, tmp_path_factory.mktemp("runs")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def report(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_nothing_but_the_result_is_on_stdout(process, report):
    assert len(process.stdout.splitlines()) == 1
    assert "step 6: validation MAE" in process.stderr
    assert "Mixed Precision" not in process.stderr


def test_a_run_leaves_its_weights_and_its_metrics(report):
    assert report["whole"]["files"] == [
        "losses.jsonl",
        "metrics.jsonl",
        "weights.safetensors",
        "weights.safetensors.json",
    ]
    assert [line["step"] for line in report["whole"]["metrics"]] == [3, 6]
    assert [line["step"] for line in report["whole"]["losses"]] == [1, 2, 3, 4, 5, 6]
    assert len({line["loss"] for line in report["whole"]["losses"]}) == 6


def test_the_states_are_all_that_a_kill_can_leave(report):
    states = report["states"]
    assert {state["step"] for state in states} == {None, 2, 4, 6}
    assert any(".tmp-" in name for state in states for name in state["files"])
    assert any(state["logged"] == [3] and state["step"] == 2 for state in states)
    assert any("best.safetensors" in state["files"] and state["step"] == 2 for state in states)
    assert any(
        {"best.safetensors", "weights.safetensors"} < set(state["files"]) for state in states
    )
    assert len(states) > 10


def test_every_state_resumes_to_the_same_bytes(report):
    for state, resumed in zip(report["states"], report["resumed"], strict=True):
        assert resumed["weights"] == report["whole"]["weights"], state
        assert resumed["metrics"] == report["whole"]["metrics"], state
        assert resumed["losses"] == report["whole"]["losses"], state
        assert not [name for name in resumed["files"] if ".tmp-" in name], state


def test_a_run_killed_at_a_random_moment_ends_with_the_same_bytes(report):
    killed = report["killed"]
    assert killed["exit"] == -9
    assert killed["left"]["step"] in (2, 4, 6)
    assert killed["weights"] == report["whole"]["weights"]
    assert killed["metrics"] == report["whole"]["metrics"]
    assert killed["losses"] == report["whole"]["losses"]


def test_a_run_killed_twenty_times_ends_with_the_same_bytes(report):
    often = report["killed often"]
    assert often["ends"].count(-9) == 20
    for what in ("weights", "metrics", "losses", "files"):
        assert often[what] == report["whole"][what]


def test_ctrl_c_leaves_a_whole_checkpoint_and_nothing_half_written(report):
    interrupted = report["interrupted"]
    assert interrupted["exit"] == 130
    assert interrupted["left"]["step"] in (2, 4, 6)
    assert not [name for name in interrupted["left"]["files"] if ".tmp-" in name]
    assert interrupted["weights"] == report["whole"]["weights"]
    assert interrupted["metrics"] == report["whole"]["metrics"]
