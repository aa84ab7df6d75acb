"""crowdrt sweep: rows trained once, kept, shared between processes, resumed, and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import swept
from swept import FASTER, TINY, UNTAUGHT

from crowdrt.data.heads.splits import known_sets, read_split
from crowdrt.errors import CrowdRTError, RecipeError, TrainingError
from crowdrt.manifest import fingerprint, sha256_file
from crowdrt.pipeline.comparison import sweeping
from crowdrt.pipeline.comparison.protocol import contents
from crowdrt.pipeline.comparison.rows import Row, differences, settings_of
from crowdrt.pipeline.comparison.sweeping import (
    SweepOptions,
    duration,
    planned,
    sweep_stage,
)
from crowdrt.pipeline.learning import train_stage
from crowdrt.pipeline.locks import lock
from crowdrt.training.metrics import read_objects


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("crowdrt.training.loop.draw_curves", lambda *_, **__: None)
    monkeypatch.setattr(sweeping, "POLL_S", 0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return swept.part_a(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A sweep of two recipes and one seed; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crowdrt.training.loop.draw_curves", lambda *_, **__: None)
        sweep_stage([TINY, FASTER], folder, SweepOptions(data=data, seeds=(0,)))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "sweep"))


@pytest.fixture
def known(monkeypatch):
    """The tiny recipes, known to the command line."""
    monkeypatch.setattr("crowdrt.recipes.RECIPES", tuple(swept.RECIPES.values()))


@pytest.fixture
def untrained(monkeypatch):
    """Fail whatever would train."""

    def train(recipe, **_):
        raise AssertionError(f"{recipe.name} is trained")

    monkeypatch.setattr(sweeping, "train_stage", train)


def refused(*recipes, folder, **options):
    with pytest.raises(CrowdRTError) as caught:
        sweep_stage(recipes or [TINY], folder, SweepOptions(**options))
    return str(caught.value)


def test_a_row_is_what_crowdrt_train_makes(finished, data, tmp_path):
    artifact = train_stage(replace(TINY), data=data, out=tmp_path / "alone")
    assert artifact.sha256 == sha256_file(finished / "tiny" / "0" / "weights.safetensors")
    other = sha256_file(finished / "faster" / "0" / "weights.safetensors")
    assert artifact.sha256 != other


def test_records_say_what_was_trained_under_which_protocol(finished):
    records = read_objects(finished / "records.jsonl")
    assert [(each["recipe"], each["seed"]) for each in records] == [("faster", 0), ("tiny", 0)]
    assert len({each["protocol"] for each in records}) == 1
    for record in records:
        assert record["test"] == "ShanghaiTech part_A test"
        row = json.loads((finished / record["recipe"] / "0" / "row.json").read_text())
        assert row["records"] == [record]
        assert record["validation_mae"] > 0
        assert record["search"] is None
    assert str(finished) not in (finished / "records.jsonl").read_text()


def test_finished_rows_are_kept(copy, data, untrained):
    before = (copy / "records.jsonl").read_bytes()
    found = sweep_stage([TINY, FASTER], copy, SweepOptions(data=data, seeds=(0,)))
    found.check()
    assert (copy / "records.jsonl").read_bytes() == before


def test_damaged_weights_are_no_finished_row(copy, data, capsys):
    path = copy / "tiny" / "0" / "weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    sweep_stage([TINY], copy, SweepOptions(data=data, seeds=(0,))).check()
    assert path.read_bytes() == whole


def test_the_verb_sweeps_and_names_what_failed(copy, data, known, crowdrt):
    call = ["sweep", "untaught", "tiny", "--data", data, "-o", copy, "--seeds", "0"]
    answer = crowdrt(*call)
    assert answer.code == 1
    assert "1 of 2 rows failed: untaught seed 0: recipe 'skt-3-none' is unknown" in answer.err
    assert "untaught/0/error.json" in answer.err
    assert "row 1 of 2: untaught seed 0" in answer.err
    assert [line.split()[0] for line in answer.out.splitlines()] == ["recipe", "faster", "tiny"]
    why = json.loads((copy / "untaught" / "0" / "error.json").read_text())
    assert "crowdrt recipes" in why["fix"]


def test_a_failed_row_is_tried_again(copy, data, monkeypatch):
    options = SweepOptions(data=data, seeds=(0,))
    first = sweep_stage([UNTAUGHT], copy, options)
    with pytest.raises(TrainingError, match="untaught seed 0"):
        first.check()
    mended = replace(UNTAUGHT, training=TINY.training)
    sweep_stage([mended], copy, options).check()
    assert not (copy / "untaught" / "0" / "error.json").exists()


def test_what_another_process_failed_at_is_not_tried_again(copy, data, monkeypatch):
    tried = []

    def train(recipe, **_):
        tried.append(recipe.training.seed)
        other = copy / "tiny" / "6" / "error.json"  # as another process leaves it meanwhile
        other.parent.mkdir()
        other.write_text('{"problem": "elsewhere", "time": 1.0}')
        raise RecipeError("here", fix="none")

    monkeypatch.setattr(sweeping, "train_stage", train)
    found = sweep_stage([TINY], copy, SweepOptions(data=data, seeds=(5, 6)))
    assert tried == [5]
    assert [row.failure["problem"] for row in found.failed] == ["here", "elsewhere"]


def test_a_mistake_of_our_own_leaves_its_traceback_and_the_sweep_goes_on(copy, data, monkeypatch):
    def train(recipe, **kwargs):
        if recipe.training.seed == 1:
            raise ZeroDivisionError("by zero")
        return train_stage(recipe, **kwargs)

    monkeypatch.setattr(sweeping, "train_stage", train)
    found = sweep_stage([TINY], copy, SweepOptions(data=data, seeds=(1, 2)))
    assert [row.label for row in found.failed] == ["tiny seed 1"]
    assert "ZeroDivisionError: by zero" in found.failed[0].failure["problem"]
    assert "in train" in found.failed[0].failure["traceback"]


def test_what_is_not_installed_is_no_failed_row(copy, data, monkeypatch):
    def without(*_, **__):
        raise ModuleNotFoundError("No module named 'lightning'", name="lightning")

    monkeypatch.setattr(sweeping, "train_stage", without)
    untried = SweepOptions(data=data, seeds=(7,))
    with pytest.raises(ModuleNotFoundError):
        sweep_stage([TINY], copy, untried)
    assert not (copy / "tiny" / "7" / "error.json").exists()


def test_ctrl_c_is_no_failed_row(copy, data, monkeypatch):
    def train(recipe, **_):
        raise ImportError("while loading") from KeyboardInterrupt()

    monkeypatch.setattr(sweeping, "train_stage", train)
    with pytest.raises(ImportError):
        sweep_stage([TINY], copy, SweepOptions(data=data, seeds=(1,)))
    assert not (copy / "tiny" / "1").exists()


def process(data, sweep, mark, seconds, *names):
    command = [sys.executable, swept.__file__, *map(str, (data, sweep, mark, seconds)), *names]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_two_processes_share_a_sweep_and_do_no_row_twice(data, tmp_path):
    marks = [tmp_path / "first", tmp_path / "second"]
    both = [process(data, tmp_path / "sweep", mark, 0.1, "tiny", "faster") for mark in marks]
    assert [each.wait(timeout=120) for each in both] == [0, 0]
    done = [mark.read_text().split("\n") if mark.exists() else [] for mark in marks]
    rows = sorted(line for lines in done for line in lines if line)
    assert rows == ["faster 0", "faster 1", "tiny 0", "tiny 1"]
    assert len(read_objects(tmp_path / "sweep" / "records.jsonl")) == 4


def test_the_row_of_a_killed_process_is_finished_by_another(data, tmp_path, capsys):
    """One process is at its first row for minutes, waited for, and killed."""
    mark = tmp_path / "mark"
    other = process(data, tmp_path / "sweep", mark, 300, "tiny")
    while not mark.exists():
        assert other.poll() is None
        time.sleep(0.01)

    def kill_when_it_is_waited_for():
        while not (tmp_path / "sweep" / "tiny" / "1" / "row.json").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        other.kill()

    killer = threading.Thread(target=kill_when_it_is_waited_for)
    killer.start()
    found = sweep_stage([TINY], tmp_path / "sweep", SweepOptions(data=data, seeds=(0, 1)))
    killer.join()
    assert other.wait() == -signal.SIGKILL
    found.check()
    assert "waiting for other processes: tiny seed 0" in capsys.readouterr().err


def test_a_lock_is_one_processes_and_free_after_it(tmp_path):
    path = tmp_path / "folder" / "lock"
    with lock(path) as mine, lock(path) as yours:
        assert (mine, yours) == (True, False)
    with lock(path) as mine:
        assert mine


def test_a_finished_row_of_other_settings_is_neither_kept_nor_lost(copy, data, untrained):
    before = sha256_file(copy / "tiny" / "0" / "weights.safetensors")
    changed = replace(TINY, training=replace(TINY.training, learning_rate=3e-4))
    found = sweep_stage([changed], copy, SweepOptions(data=data, seeds=(0,)))
    row = Row(recipe=changed, sweep=copy)
    assert "learning_rate 0.0001, now 0.0003" in row.failure["problem"]
    assert sha256_file(copy / "tiny" / "0" / "weights.safetensors") == before
    assert [each.label for each in found.failed] == ["tiny seed 0"]
    with pytest.raises(TrainingError, match="1 of 1 rows failed"):
        found.check()


def test_changed_settings_of_the_command_line_are_rows_of_their_own(finished, data):
    options = SweepOptions(data=data, seeds=(0,), settings=("drop_at=2/3", "learning_rate=3e-4"))
    [row] = planned([TINY], finished, options)
    assert row.recipe.name == "tiny with drop_at=2/3 learning_rate=3e-4"
    assert row.folder == finished / "tiny_with_drop_at=2_3_learning_rate=3e-4" / "0"


def test_a_setting_that_came_later_is_no_difference_at_its_default():
    before, now = settings_of(TINY), settings_of(TINY)
    del before["momentum"]
    assert not list(differences(before, now))
    now["momentum"] = 0.5
    assert list(differences(before, now)) == ["momentum now 0.5"]
    taught = settings_of(UNTAUGHT)
    assert list(differences(settings_of(TINY), taught))
    del before["steps"]
    assert "steps now 2" in list(differences(before, settings_of(TINY)))


def test_every_recipe_has_its_first_seed_before_any_has_its_second(tmp_path, data):
    rows = planned([TINY, FASTER, TINY], tmp_path, SweepOptions(data=data, seeds=(0, 3)))
    assert [row.label for row in rows] == [
        "tiny seed 0",
        "faster seed 0",
        "tiny seed 3",
        "faster seed 3",
    ]


def test_the_time_left_counts_by_recipe_and_processes(copy, data, tmp_path):
    for name, seconds in (("tiny", 600), ("faster", 1200)):
        path = copy / name / "0" / "row.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    rows = planned([TINY, FASTER], copy, SweepOptions(data=data, seeds=(0, 1, 2)))
    sweep = sweeping.Sweep(rows, copy, SweepOptions(data=data), protocol=None)
    assert sweep.outlook() == "2 done, 0 failed, 0 elsewhere; about 1 h 0 min left"
    sweep.elsewhere.add(rows[2].folder)
    assert sweep.outlook() == "2 done, 0 failed, 1 elsewhere; about 30 min left"


def test_durations_are_read_by_people():
    assert [duration(s) for s in (5, 100, 7800)] == ["1 min", "2 min", "2 h 10 min"]


def test_another_protocol_is_another_sweep(copy, data, tmp_path, untrained):
    said = refused(folder=copy, data=data, steps=3)
    assert "is a sweep of another protocol: steps None, now 3" in said
    assert "-o" in said
    other = swept.part_a(tmp_path / "other", seed=7)
    assert "data.shanghaitech-a" in refused(folder=copy, data=other)
    teacher = copy / "tiny" / "0" / "weights.safetensors"
    assert "teacher_sha256 None, now" in refused(folder=copy, data=data, teacher=teacher)


def test_a_region_of_interest_is_part_of_the_photographs(data):
    [sample, *_] = samples = read_split(known_sets(data)[0], "test", 1)
    heads = sample.heads.tobytes().hex()
    whole = [fingerprint({"image": sha256_file(sample.image), "heads": heads})]
    assert contents(samples)[:1] == whole  # sweeps that are under way stay what they are
    everywhere, half = np.ones((96, 96), bool), np.tri(96, dtype=bool)
    seen = [contents([replace(sample, roi=roi)]) for roi in (everywhere, half)]
    assert seen[0] != seen[1] != whole != seen[0]


def test_a_damaged_file_is_no_row_that_has_been_done(copy, data):
    path = copy / "tiny" / "0" / "row.json"
    path.write_text(json.dumps({"recipe": "tiny", "weights_sha256": "0"}))
    rows = planned([TINY, FASTER], copy, SweepOptions(data=data, seeds=(0,)))
    assert [bool(row.finished) for row in rows] == [False, True]
    sweep = sweeping.Sweep(rows, copy, SweepOptions(data=data), protocol=None)
    assert sweep.outlook().startswith("1 done")


def test_bad_input_is_refused_before_anything_is_trained(data, tmp_path, untrained):
    new = tmp_path / "new"
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    assert "no published test split" in refused(folder=new, data=photographs)
    assert "is no folder" in refused(folder=new, data=tmp_path / "nowhere")
    assert "there are no weights" in refused(folder=new, data=data, teacher=tmp_path / "none")
    assert not new.exists()
    assert "holds other things: ShanghaiTech" in refused(folder=full(tmp_path), data=data)
    (tmp_path / "file").write_text("")
    assert "could not be written" in refused(folder=tmp_path / "file" / "sweep", data=data)


def full(tmp_path):
    folder = tmp_path / "full"
    (folder / "ShanghaiTech").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tinny", "--data", "DATA"], "tiny"),
        (["--data", "DATA"], "nothing to sweep over"),
        (["tiny"], "there is no --data"),
        (["tiny", "--data", "DATA", "--seeds", "0,-1"], "is no list of seeds"),
        (["tiny", "--data", "DATA", "--seeds", ""], "is no list of seeds"),
        (["tiny", "--data", "DATA", "--set", "rate=1"], "no setting 'rate'"),
        (["tiny", "--data", "DATA", "--search", "learning_rate=1e-4"], "nothing to choose"),
        (["tiny", "--data", "DATA", "--search", "steps=1,2"], "the protocol itself"),
        (["--merge", "nowhere"], "cannot be read"),
    ],
)
def test_the_command_line_refuses(arguments, said, data, tmp_path, known, crowdrt, untrained):
    given = [data if each == "DATA" else each for each in arguments]
    answer = crowdrt("sweep", *given, "-o", tmp_path / "sweep")
    assert answer.code == 1
    assert said in answer.err
    assert "fix" in answer.err
    assert not (tmp_path / "sweep" / "tiny").exists()
