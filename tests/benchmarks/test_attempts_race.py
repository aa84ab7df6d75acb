import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from fake_engines import FakeEngine
from small_students import write_student
from typer.testing import CliRunner

from crowdrt.benchmarks.attempts.__main__ import app, chosen, photograph
from crowdrt.benchmarks.attempts.attempt import Prediction, Setting
from crowdrt.benchmarks.attempts.listed import ATTEMPTS
from crowdrt.benchmarks.attempts.records import read_trial, write_trial
from crowdrt.benchmarks.attempts.show import attempt_cells, markdown
from crowdrt.benchmarks.attempts.trial import held_against, per_image, try_all
from crowdrt.benchmarks.labels import ABSENT
from crowdrt.benchmarks.layers.peaks import PeakConfig
from crowdrt.benchmarks.timing.race import RaceConfig
from crowdrt.benchmarks.timing.worker import WarmUp
from crowdrt.errors import BenchmarkError, ExportError

QUICK = RaceConfig(
    budget_s=0.2,
    min_rounds=6,
    max_rounds=6,
    visit_s=0.01,
    settle_s=0.0,
    timeout_s=120,
    warm_up=WarmUp(runs=2, seconds=0.0, max_s=1.0),
)
SMALL = PeakConfig(sides=(64,), seconds=0.01, copy_bytes=2**20)
NAMES = ("phases-onnxruntime-fp32", "two-in-flight-onnxruntime-int8")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    return {
        "fp32": write_student(folder / "student.onnx", int8=False),
        "int8": write_student(folder / "student.int8.onnx", int8=True),
    }


def other_network(path, *, num_threads):
    return FakeEngine()


def crashes(path, *, num_threads):
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.fixture(scope="module")
def trial(files):
    image = np.random.default_rng(1).integers(0, 256, (3, 96, 128), dtype=np.uint8)
    setting = Setting(files=files, image=image, num_threads=2)
    attempts = [each for each in ATTEMPTS if each.name in NAMES]
    broken = replace(attempts[0], name="broken", open=other_network)
    crashing = replace(attempts[0], name="crashing", open=crashes)
    return try_all(setting, [*attempts, broken, crashing], QUICK, SMALL)


def test_attempts_are_raced_with_their_baselines_and_wrong_ones_are_not(trial):
    assert [each.name for each in trial.baselines] == ["ONNX Runtime FP32", "ONNX Runtime INT8"]
    right, both, wrong, crashed = trial.outcomes
    assert {row.row.run_id for row in trial.baselines} == {right.row.run_id, both.row.run_id}
    assert right.baseline == "ONNX Runtime FP32"
    assert right.ratio == pytest.approx(right.row.median_ms / trial.baselines[0].row.median_ms)
    assert right.low <= right.ratio <= right.high
    assert right.result in ("faster", "slower", "within noise")
    assert both.images_per_run == 2
    assert both.ratio == pytest.approx(both.row.median_ms / trial.baselines[1].row.median_ms)
    assert wrong.result.startswith("refused")
    assert crashed.result == "refused: its process was ended by SIGSEGV"
    assert wrong.row is None
    assert wrong.ratio is None
    macs, share = trial.baselines[0].macs, trial.baselines[0].share(trial.limits)
    seconds = trial.baselines[0].row.median_ms / 1000
    assert share == pytest.approx(2 * macs / seconds / trial.limits.operations_per_s["fp32"])


def test_a_record_is_read_as_it_was_written_and_shown(trial, tmp_path):
    path = tmp_path / "attempts.jsonl"
    write_trial(path, trial)
    assert len(path.read_text().splitlines()) == 1 + 2 + 4
    again = read_trial(path)
    assert again.outcomes == trial.outcomes
    assert again.baselines == trial.baselines
    assert again.size == (96, 128)
    shown = markdown(again)
    assert markdown(trial) == shown
    assert "| phases-onnxruntime-fp32 | ONNX Runtime FP32 | 1.00 to 1.05* |" in shown
    assert "two-in-flight-onnxruntime-int8†" in shown
    assert "| 0.85 to 0.97 |" in shown
    assert "refused: its density differs" in shown
    result = CliRunner().invoke(app, ["--show", str(path)])
    assert result.stdout == shown + "\n"


def test_a_damaged_record_names_its_line(trial, tmp_path):
    path = tmp_path / "attempts.jsonl"
    write_trial(path, trial)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-40], *lines[2:]]))
    with pytest.raises(BenchmarkError, match="line 2: no whole line"):
        read_trial(path)
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(BenchmarkError, match="no race of attempts"):
        read_trial(path)
    path.write_text(json.dumps({**json.loads(lines[0]), "schema": 99}))
    with pytest.raises(BenchmarkError, match="schema 99"):
        read_trial(path)


@pytest.mark.parametrize(
    ("low", "high", "predicted", "word"),
    [
        (0.78, 0.82, (0.7, 0.82), "held"),
        (0.78, 0.82, (0.7, 0.8), "open"),  # a part of it lies outside
        (0.5, 1.5, (0.97, 1.03), "open"),  # a noisy interval holds nothing
        (0.78, 0.82, (0.83, 1.0), "missed"),
        (0.78, 0.82, (0.5, 0.77), "missed"),
        (0.77, 0.82, (0.8, 0.8), "open"),  # wider than 5 % of 0.8
        (0.79, 0.82, (0.8, 0.8), "held"),
        (0.79, 0.82, (0.83, 0.83), "missed"),
        (None, None, (0.7, 1.0), "open"),
    ],
)
def test_a_prediction_holds_where_the_interval_lies_in_it(low, high, predicted, word, trial):
    lowest, highest = predicted
    outcome = replace(
        trial.outcomes[0], ratio=0.8, low=low, high=high,
        prediction=Prediction(low=lowest, high=highest, reason="why"),
    )  # fmt: skip
    assert outcome.held is {"held": True, "open": None, "missed": False}[word]
    assert attempt_cells(outcome)[6] == word
    assert attempt_cells(replace(outcome, prediction=None))[6] == ABSENT
    assert attempt_cells(replace(outcome, ratio=None, low=None, high=None))[6] == ABSENT


def test_a_change_within_the_drift_of_races_is_none(trial):
    row = replace(trial.baselines[0].row, samples_ms=(10.0,) * 60, runs_per_visit=10)
    for factor, result in ((0.97, "within noise"), (0.9, "faster"), (1.1, "slower")):
        changed = replace(row, samples_ms=tuple(factor * sample for sample in row.samples_ms))
        assert held_against(row, changed)["result"] == result
    assert per_image(replace(row, samples_ms=(20.0,) * 60), 2) == row
    few = held_against(row, replace(row, samples_ms=(5.0,) * 20))
    assert (few["result"], few["low"], few["high"]) == ("too few visits", None, None)


def refusal(*arguments) -> BaseException:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 1
    return result.exception


def test_wrong_orders_are_refused_before_anything_runs(files, tmp_path):
    missing = refusal(tmp_path / "none.onnx", files["int8"])
    assert isinstance(missing, ExportError)
    assert "none.onnx does not exist" in missing.problem
    assert "two files" in refusal(files["fp32"]).problem
    swapped = refusal(files["int8"], files["fp32"])
    assert "an FP32 file and its INT8 form, not int8 and fp32" in swapped.problem
    odd = refusal(files["fp32"], files["int8"], "--size", "96x136")
    assert "multiples of 16" in odd.problem
    there = tmp_path / "there.jsonl"
    there.write_text("kept\n")
    assert "already" in refusal(files["fp32"], files["int8"], "-o", there).problem
    assert there.read_text() == "kept\n"
    with pytest.raises(BenchmarkError, match="'faster'") as error:
        chosen(["faster"])
    assert "phases-onnxruntime-fp32" in error.value.fix
    assert photograph((96, 128)).shape == (3, 96, 128)


def test_a_race_that_is_stopped_says_that_nothing_is_recorded(files, tmp_path, monkeypatch, capfd):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("crowdrt.benchmarks.attempts.__main__.try_all", stopped)
    path = tmp_path / "attempts.jsonl"
    result = CliRunner().invoke(app, [str(files["fp32"]), str(files["int8"]), "-o", str(path)])
    assert result.exit_code == 1
    assert not path.exists()
    assert "nothing was" in result.stderr + capfd.readouterr().err
