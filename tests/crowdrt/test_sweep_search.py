"""A sweep's search, and the rows that others go on with."""

import contextlib
import json
import shutil
import time
from dataclasses import replace

import pytest
import swept
from swept import FASTER, RATES, TINY
from swept import chosen as options

from crowdrt.errors import CrowdRTError, MissingDependencyError, TrainingError
from crowdrt.learning import Quantization, Transfer
from crowdrt.manifest import sha256_file
from crowdrt.pipeline.comparison import searching, sweeping
from crowdrt.pipeline.comparison.rows import differences, settings_of
from crowdrt.pipeline.comparison.sweeping import Sweep, planned, sweep_stage
from crowdrt.pipeline.locks import lock
from crowdrt.training.metrics import read_objects

LONG = replace(TINY, training=replace(TINY.training, steps=40))
GOING_ON = replace(
    TINY,
    name="going-on",
    training=replace(
        TINY.training,
        batch_norm=False,
        precision="32-true",
        quantization=Quantization(method="qat", start="tiny"),
    ),
)

TAUGHT = replace(
    TINY,
    name="taught",
    training=replace(TINY.training, transfer=Transfer(teacher="teacher", mean=True)),
)


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """What was trained, recipe and options; nothing really is."""
    return swept.pretending(monkeypatch, TINY, FASTER, GOING_ON)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return swept.part_a(tmp_path_factory.mktemp("data"))


def test_a_search_takes_what_validates_best_and_never_sees_the_test_split(
    data, tmp_path, trained, monkeypatch
):
    tested = []

    def judged(recipe, artifact, **kwargs):
        tested.append(recipe.training.learning_rate)
        return swept.judged(recipe, artifact, **kwargs)

    monkeypatch.setattr(sweeping, "record_stage", judged)
    sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES)).check()
    runs = [(each.training.learning_rate, each.training.steps) for each, _ in trained]
    assert runs == [(1e-3, 10), (3e-4, 10), (1e-4, 10), (3e-4, 40), (3e-4, 40)]
    assert {each.training.seed for each, _ in trained[:3]} == {0}
    assert tested == [3e-4, 3e-4]  # of the two seeds: what was tried has never been tested
    for record in read_objects(tmp_path / "sweep" / "records.jsonl"):
        assert record["recipe"] == "tiny"
        assert record["search"] == {
            "setting": "learning_rate",
            "values": ["1e-3", "3e-4", "1e-4"],
            "winner": "3e-4",
            "seed": 0,
            "steps": 10,
            "crops": 60,
            "seconds": 9.0,
        }
    found = json.loads((tmp_path / "sweep" / "tiny" / "search.json").read_text())
    assert [each["validation_mae"] > 100 for each in found["tried"]] == [True, False, True]


def test_a_search_is_done_once_and_used_by_who_does_not_name_it(data, tmp_path, trained):
    sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES, seeds=(0,)))
    trained.clear()
    sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES)).check()
    sweep_stage([LONG], tmp_path / "sweep", options(data, seeds=(0, 1, 2))).check()
    runs = [(each.training.learning_rate, each.training.seed) for each, _ in trained]
    assert runs == [(3e-4, 1), (3e-4, 2)]


def test_another_search_in_the_same_folder_fails_its_rows(data, tmp_path):
    sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES, seeds=(0,))).check()
    other = options(data, search="learning_rate=1e-3,2e-3", seeds=(0,))
    found = sweep_stage([LONG], tmp_path / "sweep", other)
    why = json.loads((tmp_path / "sweep" / "tiny" / "0" / "error.json").read_text())
    assert "is of another search: values" in why["problem"]
    assert found.rows[0].finished  # what was found before is still there
    assert [row.label for row in found.failed] == ["tiny seed 0"]


def test_a_value_that_cannot_be_trained_is_kept_with_its_reason(
    data, tmp_path, trained, monkeypatch
):
    pretend = searching.train_stage

    def diverging(recipe, **kwargs):
        if recipe.training.learning_rate == 1e-3:
            raise TrainingError("the loss is not finite", fix="lower it")
        return pretend(recipe, **kwargs)

    monkeypatch.setattr(searching, "train_stage", diverging)
    sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES, seeds=(0,))).check()
    found = json.loads((tmp_path / "sweep" / "tiny" / "search.json").read_text())
    assert found["winner"] == "3e-4"
    assert found["tried"][0] == {
        "value": "1e-3",
        "problem": "the loss is not finite",
        "fix": "lower it",
    }


def test_where_no_value_can_be_trained_the_row_fails(data, tmp_path, monkeypatch):
    def diverging(recipe, **_):
        raise TrainingError("the loss is not finite", fix="lower it")

    monkeypatch.setattr(searching, "train_stage", diverging)
    found = sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES, seeds=(0,)))
    assert "no value of learning_rate could be trained" in found.failed[0].failure["problem"]
    assert not (tmp_path / "sweep" / "tiny" / "search.json").exists()


def test_a_row_goes_on_with_its_start_of_the_same_seed(data, tmp_path, trained):
    sweep_stage([GOING_ON, TINY], tmp_path / "sweep", options(data)).check()
    order = [(each.name, each.training.seed) for each, _ in trained]
    assert order == [("tiny", 0), ("tiny", 1), ("going-on", 0), ("going-on", 1)]
    starts = [given.pretrained for _, given in trained]
    weights = [tmp_path / "sweep" / "tiny" / seed / "weights.safetensors" for seed in "01"]
    assert starts == [None, None, *weights]


def test_a_row_whose_start_is_nowhere_or_failed_fails(data, tmp_path, monkeypatch):
    found = sweep_stage([GOING_ON], tmp_path / "alone", options(data, seeds=(0,)))
    assert "tiny seed 0, which is no row of this sweep" in found.failed[0].failure["problem"]

    def diverging(recipe, **_):
        raise TrainingError("the loss is not finite", fix="lower it")

    monkeypatch.setattr(sweeping, "train_stage", diverging)
    both = sweep_stage([GOING_ON, TINY], tmp_path / "both", options(data, seeds=(0,)))
    assert "which failed" in both.failed[0].failure["problem"]
    assert len(both.failed) == 2


@pytest.mark.parametrize(
    "error",
    [
        CrowdRTError("the disk is full", fix="free some"),
        MissingDependencyError("scipy is not installed", fix="install it"),
        MemoryError(),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_failure_of_a_value_ends_the_search(data, tmp_path, monkeypatch, error):
    tried = []

    def train(recipe, **_):
        tried.append(recipe.training.learning_rate)
        raise error

    monkeypatch.setattr(searching, "train_stage", train)
    with contextlib.suppress(MissingDependencyError):  # which is no failure of the row either
        found = sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES, seeds=(0,)))
        assert len(found.failed) == 1
    assert tried == [1e-3]
    assert not (tmp_path / "sweep" / "tiny" / "search.json").exists()


def test_ctrl_c_ends_a_search(data, tmp_path, monkeypatch):
    def train(recipe, **_):
        raise TrainingError("a library was loading", fix="none") from KeyboardInterrupt()

    monkeypatch.setattr(searching, "train_stage", train)
    with pytest.raises(TrainingError, match="was loading"):
        sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES, seeds=(0,)))
    assert not (tmp_path / "sweep" / "tiny" / "search.json").exists()


def test_a_misspelt_value_is_refused_before_the_first_is_trained(data, tmp_path, trained):
    wrong = options(data, search="learning_rate=1e-3,abc", seeds=(0,))
    found = sweep_stage([LONG], tmp_path / "sweep", wrong)
    assert "learning_rate=abc cannot be set" in found.failed[0].failure["problem"]
    assert trained == []


def test_a_search_costs_the_crops_of_the_values_that_were_trained(data, tmp_path, monkeypatch):
    pretend = searching.train_stage

    def diverging(recipe, **kwargs):
        if recipe.training.batch_size == 8:
            raise TrainingError("the loss is not finite", fix="lower it")
        return pretend(recipe, **kwargs)

    monkeypatch.setattr(searching, "train_stage", diverging)
    sizes = options(data, search="batch_size=1,4,8", seeds=(0,))
    sweep_stage([LONG], tmp_path / "sweep", sizes).check()
    [record] = read_objects(tmp_path / "sweep" / "records.jsonl")
    assert record["search"]["crops"] == 10 * 1 + 10 * 4


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (RATES, "learning_rate=3e-4 validates best\n"),
        ("learning_rate=3e-4,1e-3", "learning_rate=3e-4 validates best, the smallest value tried"),
        ("learning_rate=1e-4,3e-4", "learning_rate=3e-4 validates best, the largest value tried"),
        ("initial=fan-in,fan-out", "initial=fan-in validates best\n"),
    ],
)
def test_a_winner_at_the_edge_is_said_to_be_one(data, tmp_path, capsys, search, said):
    sweep_stage([LONG], tmp_path / "sweep", options(data, search=search, seeds=(0,))).check()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", '{"setting": "learning_rate"}'])
def test_a_damaged_search_is_no_search_and_none_is_done_again_beside_it(
    data, tmp_path, trained, text
):
    path = tmp_path / "sweep" / "tiny" / "search.json"
    sweep_stage([LONG], tmp_path / "sweep", options(data, search=RATES, seeds=(0,))).check()
    path.write_text(text)
    trained.clear()
    for search in (None, RATES):
        found = sweep_stage([LONG], tmp_path / "sweep", options(data, search=search, seeds=(1,)))
        assert "search.json is damaged" in found.failed[0].failure["problem"]
    assert trained == []


def test_a_row_takes_all_seconds_of_its_training(data, tmp_path, monkeypatch):
    """Whatever part of it the last process did."""

    def judged(recipe, artifact, **_):
        time.sleep(0.3)  # the test
        return [record | {"wall_s": 500.0} for record in swept.judged(recipe, artifact)]

    monkeypatch.setattr(sweeping, "record_stage", judged)
    sweep_stage([TINY], tmp_path / "sweep", options(data, seeds=(0,))).check()
    row = json.loads((tmp_path / "sweep" / "tiny" / "0" / "row.json").read_text())
    assert 500.3 <= row["seconds"] < 520


def test_a_setting_is_not_of_the_start_which_may_not_have_it(data, tmp_path, trained):
    sweep = tmp_path / "sweep"
    sweep_stage([TINY], sweep, options(data, seeds=(0,))).check()
    changed = options(data, seeds=(0,), settings=("quantization.weight_bits=7",))
    sweep_stage([GOING_ON], sweep, changed).check()
    assert trained[-1][0].training.quantization.weight_bits == 7
    assert trained[-1][1].pretrained == sweep / "tiny" / "0" / "weights.safetensors"


def going_on(data, sweep):
    """A sweep of the one recipe alone, and its row."""
    given = options(data, seeds=(0,))
    [row] = planned([GOING_ON], sweep, given)
    return Sweep([row], sweep, given, protocol=None), row


def test_a_start_that_another_process_trains_is_waited_for(data, tmp_path):
    alone, row = going_on(data, tmp_path / "sweep")
    with lock(alone.start_of(row).lock_path):
        assert alone.starts_later(row)
    with pytest.raises(TrainingError, match="no row of this sweep") as caught:
        alone.starts_later(row)
    assert "crowdrt sweep tiny --seeds 0" in caught.value.fix


def test_a_finished_row_needs_its_start_no_more(data, tmp_path, trained):
    sweep = tmp_path / "sweep"
    sweep_stage([TINY, GOING_ON], sweep, options(data)).check()
    shutil.rmtree(sweep / "tiny")
    trained.clear()
    sweep_stage([GOING_ON], sweep, options(data)).check()
    assert trained == []


def test_a_finished_row_whose_start_was_trained_again_is_neither_kept_nor_lost(
    data, tmp_path, monkeypatch
):
    sweep = tmp_path / "sweep"
    sweep_stage([TINY, GOING_ON], sweep, options(data, seeds=(0,))).check()
    before = sha256_file(sweep / "going-on" / "0" / "weights.safetensors")
    shutil.rmtree(sweep / "tiny" / "0")

    def otherwise(recipe, **kwargs):
        return swept.pretended(replace(recipe, name="another"), **kwargs)

    monkeypatch.setattr(sweeping, "train_stage", otherwise)
    found = sweep_stage([TINY, GOING_ON], sweep, options(data, seeds=(0,)))
    [failed] = found.failed
    assert failed.label == "going-on seed 0"
    assert "finished row of other weights: start_sha256" in failed.failure["problem"]
    assert f"rm -r '{sweep / 'going-on' / '0'}'" in failed.failure["fix"]
    assert sha256_file(sweep / "going-on" / "0" / "weights.safetensors") == before


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """A recipe whose weights the project ships, and their file."""
    path = tmp_path / "shipped" / "teacher.safetensors"
    path.parent.mkdir()
    path.write_text("as it was")
    monkeypatch.setattr("crowdrt.weights.FOLDER", path.parent)
    shipping = replace(TINY, name="teacher", weights=path.name)
    monkeypatch.setattr("crowdrt.recipes.RECIPES", (shipping, TAUGHT))

    def judged(recipe, artifact, **_):
        sha256 = sha256_file(path)
        return [r | {"teacher_sha256": sha256} for r in swept.judged(recipe, artifact)]

    monkeypatch.setattr(sweeping, "record_stage", judged)
    return path


def test_a_finished_row_of_another_shipped_teacher_is_neither_kept_nor_lost(
    data, tmp_path, teacher, trained
):
    sweep = tmp_path / "sweep"
    sweep_stage([TAUGHT], sweep, options(data, seeds=(0,))).check()
    sweep_stage([TAUGHT], sweep, options(data, seeds=(0,))).check()
    teacher.write_text("as it is now")
    found = sweep_stage([TAUGHT], sweep, options(data, seeds=(0,)))
    assert "other weights: teacher_sha256" in found.failed[0].failure["problem"]
    teacher.unlink()  # what is gone is no reason
    sweep_stage([TAUGHT], sweep, options(data, seeds=(0,))).check()
    assert len(trained) == 1


def test_a_search_of_finished_rows_needs_no_start(data, tmp_path, trained):
    sweep = tmp_path / "sweep"
    both = options(data, search=RATES, seeds=(0,))
    sweep_stage([TINY, GOING_ON], sweep, both).check()
    shutil.rmtree(sweep / "tiny")
    trained.clear()
    sweep_stage([GOING_ON], sweep, both).check()
    assert trained == []


def test_differences_reach_into_parts():
    before = {"transfer": {"intra": "l2", "mean": True}, "steps": 3}
    now = {"transfer": {"intra": None, "mean": True}, "steps": 3}
    assert list(differences(before, now)) == ["transfer.intra l2, now None"]
    assert list(differences(before, before)) == []
    assert list(differences({"old": 1}, {})) == ["old 1, no setting any more"]


def test_a_setting_of_a_part_that_came_later_is_no_difference_at_its_default():
    now = settings_of(GOING_ON)
    before = settings_of(GOING_ON)
    del before["quantization"]["moving"]
    assert list(differences(before, now)) == []
    now["quantization"]["moving"] = 0.5
    assert list(differences(before, now)) == ["quantization.moving now 0.5"]
