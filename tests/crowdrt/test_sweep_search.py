"""A sweep's search, the rows that others go on with, and sweeps of several machines merged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import swept
from swept import FASTER, TINY

from crowdrt.errors import CrowdRTError, TrainingError
from crowdrt.learning import Quantization
from crowdrt.pipeline.comparison import searching, sweeping
from crowdrt.pipeline.comparison.gathering import gather, merge
from crowdrt.pipeline.comparison.rows import differences
from crowdrt.pipeline.comparison.searching import parse_search
from crowdrt.pipeline.comparison.sweeping import SweepOptions, sweep_stage
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


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """Pretend to train and to test; return what was trained: recipe and options."""
    done = []

    def train(recipe, **kwargs):
        done.append((recipe, kwargs["options"]))
        return swept.pretended(recipe, **kwargs)

    for module in (sweeping, searching):
        monkeypatch.setattr(module, "train_stage", train)
    monkeypatch.setattr(sweeping, "record_stage", swept.judged)
    monkeypatch.setattr("crowdrt.recipes.RECIPES", (TINY, FASTER, GOING_ON))
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return swept.part_a(tmp_path_factory.mktemp("data"))


def options(data, *, search=None, seeds=(0, 1)):
    chosen = None if search is None else parse_search(search, 0.25)
    return SweepOptions(data=data, seeds=seeds, search=chosen)


RATES = "learning_rate=1e-3,3e-4,1e-4"


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


@pytest.fixture
def halves(data, tmp_path):
    """Two sweeps of one protocol, as of two machines: seed 0, and seeds 0 and 1."""
    here, there = tmp_path / "here", tmp_path / "there"
    sweep_stage([TINY], here, options(data, seeds=(0,)))
    sweep_stage([TINY, FASTER], there, options(data, search=RATES, seeds=(1,)))
    return here, there


def labels(sweep):
    return [(r["recipe"], r["seed"]) for r in read_objects(sweep / "records.jsonl")]


def test_a_merge_takes_in_records_and_rows(halves, data, trained):
    here, there = halves
    assert merge(here, there) == (2, 2)
    assert labels(here) == [("faster", 1), ("tiny", 0), ("tiny", 1)]
    assert (here / "faster" / "search.json").is_file()
    assert merge(here, there) == (0, 0)
    trained.clear()
    sweep_stage([TINY, FASTER], here, options(data, seeds=(1,))).check()
    assert trained == []


def test_a_new_folder_becomes_the_sweep_that_it_takes_in(halves, tmp_path):
    _, there = halves
    assert merge(tmp_path / "new", there) == (2, 2)
    assert (tmp_path / "new" / "sweep.json").read_bytes() == (there / "sweep.json").read_bytes()


def test_records_alone_are_taken_in_without_rows(halves):
    here, there = halves
    assert merge(here, there / "records.jsonl") == (2, 0)
    assert labels(here) == [("faster", 1), ("tiny", 0), ("tiny", 1)]
    assert labels(here) == [(r["recipe"], r["seed"]) for r in gather(here)]


def test_the_same_seed_of_two_machines_is_two_records(halves, data, tmp_path, monkeypatch):
    here, _ = halves

    def other_weights(recipe, **kwargs):
        return swept.pretended(replace(recipe, name=f"{recipe.name}!"), **kwargs)

    monkeypatch.setattr(sweeping, "train_stage", other_weights)
    sweep_stage([TINY], tmp_path / "other", options(data, seeds=(0,)))
    assert merge(here, tmp_path / "other") == (1, 0)  # our row stays
    assert labels(here) == [("tiny", 0), ("tiny", 0)]


def test_a_sweep_of_another_protocol_is_not_taken_in(halves, data, tmp_path):
    here, _ = halves
    other = swept.part_a(tmp_path / "photographs", seed=5)
    sweep_stage([TINY], tmp_path / "other", options(other, seeds=(1,)))
    for strange in (tmp_path / "other", tmp_path / "other" / "records.jsonl"):
        with pytest.raises(TrainingError, match="another protocol"):
            merge(here, strange)
    assert labels(here) == [("tiny", 0)]
    assert not (here / "tiny" / "1").exists()


def test_what_is_no_sweep_is_not_taken_in(halves, tmp_path):
    here, there = halves
    (tmp_path / "photographs").mkdir()
    with pytest.raises(TrainingError, match="is no sweep: there is no"):
        merge(here, tmp_path / "photographs")
    with pytest.raises(TrainingError, match="is no sweep yet"):
        merge(tmp_path / "new", there / "records.jsonl")
    damaged = Path(shutil.copy(there / "records.jsonl", tmp_path / "damaged.jsonl"))
    damaged.write_text(damaged.read_text()[:-40])
    with pytest.raises(CrowdRTError, match="line 2"):
        merge(here, damaged)


def test_a_damaged_row_is_not_copied(halves):
    here, there = halves
    weights = there / "tiny" / "1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert merge(here, there) == (2, 1)
    assert not (here / "tiny" / "1").exists()
    assert (here / "faster" / "1" / "row.json").is_file()


def test_differences_reach_into_parts():
    before = {"transfer": {"intra": "l2", "mean": True}, "steps": 3}
    now = {"transfer": {"intra": None, "mean": True}, "steps": 3}
    assert list(differences(before, now)) == ["transfer.intra l2, now None"]
    assert list(differences(before, before)) == []
    assert list(differences({"old": 1}, {})) == ["old 1, no setting any more"]
