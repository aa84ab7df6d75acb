"""Sweeps of several machines merged: rows and records once, and only what may stand together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import swept
from swept import FASTER, RATES, TINY
from swept import chosen as options

from crowdrt.errors import BenchmarkError, CrowdRTError, RecipeError, TrainingError
from crowdrt.pipeline.comparison import sweeping
from crowdrt.pipeline.comparison.gathering import gather, merge
from crowdrt.pipeline.comparison.sweeping import sweep_stage
from crowdrt.training.metrics import read_objects


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """What was trained, recipe and options; nothing really is."""
    return swept.pretending(monkeypatch, TINY, FASTER)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return swept.part_a(tmp_path_factory.mktemp("data"))


@pytest.fixture
def halves(data, tmp_path):
    """Two sweeps of one protocol, as of two machines: seed 0 of one recipe, seed 1 of two."""
    here, there = tmp_path / "here", tmp_path / "there"
    sweep_stage([TINY], here, options(data, search=RATES, seeds=(0,)))
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
    sweep_stage([TINY], tmp_path / "other", options(data, search=RATES, seeds=(0,)))
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


def held(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def files(folder):
    return [each for each in folder.rglob("*") if each.is_file() and ".locks" not in each.parts]


def changed_json(path, **changes):
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in found.items() if value != ...}))


def test_rows_of_other_settings_are_not_taken_in(data, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    sweep_stage([TINY], here, options(data, seeds=(0,)))
    sweep_stage([FASTER, TINY], there, options(data, search=RATES, seeds=(1,)))
    before = held(here)
    with pytest.raises(TrainingError, match=r"learning_rate 0\.0001, now 0\.0003") as caught:
        merge(here, there)  # faster comes first and would be fine
    assert str(here / "tiny" / "0") in str(caught.value)
    assert str(there / "tiny" / "1") in str(caught.value)
    assert held(here) == before


def test_another_winner_is_not_taken_in_beside_our_own_search(halves, data):
    here, there = halves
    shutil.rmtree(here / "tiny" / "0")  # what was searched is known, and no row is finished
    changed_json(there / "tiny" / "search.json", winner="1e-4")
    with pytest.raises(TrainingError, match="winner 3e-4, now 1e-4"):
        merge(here, there)
    assert not (here / "faster").exists()


def test_rows_of_another_teacher_are_not_taken_in(halves):
    here, there = halves
    for sweep, teacher in ((here, "a" * 64), (there, "b" * 64)):
        for path in sweep.glob("*/*/row.json"):
            records = json.loads(path.read_text())["records"]
            changed_json(path, records=[each | {"teacher_sha256": teacher} for each in records])
    with pytest.raises(TrainingError, match=r"teacher_sha256 a+, now b+"):
        merge(here, there)


def test_a_row_that_is_too_old_for_a_setting_is_taken_in(halves):
    here, there = halves
    for sweep in halves:  # as of two versions, each with a setting that the other one lacks
        path = next(sweep.glob("tiny/*/row.json"))
        settings = json.loads(path.read_text())["settings"]
        del settings["momentum" if sweep == here else "average"]
        changed_json(path, settings=settings)
    assert merge(here, there) == (2, 2)


def test_why_a_row_failed_elsewhere_is_taken_in_once_and_tried_again(halves, data, monkeypatch):
    here, there = halves
    pretend = sweeping.train_stage

    def diverging(recipe, **_):
        raise TrainingError("the loss is not finite", fix="lower it")

    monkeypatch.setattr(sweeping, "train_stage", diverging)
    sweep_stage([FASTER], there, options(data, seeds=(2, 3)))
    (here / "faster" / "3").mkdir(parents=True)
    (here / "faster" / "3" / "error.json").write_text('{"problem": "our own"}')
    (there / "faster" / "4").mkdir()
    (there / "faster" / "4" / "error.json").write_text('{"problem": "of whom?"}')
    assert merge(here, there) == (2, 2)
    why = json.loads((here / "faster" / "2" / "error.json").read_text())
    assert (why["recipe"], why["seed"], why["problem"]) == ("faster", 2, "the loss is not finite")
    assert "our own" in (here / "faster" / "3" / "error.json").read_text()
    assert not (here / "faster" / "4").exists()
    monkeypatch.setattr(sweeping, "train_stage", pretend)
    sweep_stage([FASTER], here, options(data, seeds=(2,))).check()
    assert not (here / "faster" / "2" / "error.json").exists()
    assert merge(here, there) == (0, 0)
    assert not (here / "faster" / "2" / "error.json").exists()


def test_a_row_that_is_removed_takes_its_record_with_it(halves, data, monkeypatch):
    here, there = halves
    merge(here, there)
    for row in ("tiny/0", "tiny/1"):
        shutil.rmtree(here / row)

    def diverging(recipe, **_):
        raise RecipeError("never again", fix="none")

    monkeypatch.setattr(sweeping, "train_stage", diverging)
    found = sweep_stage([TINY], here, options(data, seeds=(0,)))
    assert labels(here) == [("faster", 1)] == [(r["recipe"], r["seed"]) for r in found.records]
    assert merge(here, there) == (1, 1)  # what the other one has can be had again
    assert labels(here) == [("faster", 1), ("tiny", 1)]


def test_records_without_rows_stay_and_our_own_row_comes_last(halves, data, tmp_path, monkeypatch):
    here, _ = halves
    for name in "abcdef":  # whose order by hash would be any

        def other_weights(recipe, name=name, **kwargs):
            return swept.pretended(replace(recipe, name=f"{recipe.name}{name}"), **kwargs)

        monkeypatch.setattr(sweeping, "train_stage", other_weights)
        sweep_stage([TINY], tmp_path / name, options(data, search=RATES, seeds=(0,)))
        assert merge(here, tmp_path / name / "records.jsonl") == (1, 0)
    records = read_objects(here / "records.jsonl")
    row = json.loads((here / "tiny" / "0" / "row.json").read_text())
    assert len(records) == 7
    assert records[-1]["weights_sha256"] == row["weights_sha256"]
    assert len(read_objects(here / "merged.jsonl")) == 6
    assert gather(here) == records


def test_a_damaged_line_is_refused_before_anything_is_trained(halves, data, trained):
    here, there = halves
    (here / "records.jsonl").write_text("{}\n")  # is written anew
    merge(here, there / "records.jsonl")
    with (here / "merged.jsonl").open("a") as file:
        file.write("{}\n")
    trained.clear()
    with pytest.raises(BenchmarkError, match=r"merged\.jsonl, line 3") as caught:
        sweep_stage([TINY], here, options(data, seeds=(5,)))
    assert "delete that line" in caught.value.fix
    assert trained == []


def test_records_without_errors_in_people_are_not_taken_in(halves):
    here, there = halves
    path = there / "records.jsonl"
    record = json.loads(path.read_text().splitlines()[0])
    del record["mae"], record["rmse"]
    path.write_text(json.dumps(record | {"ap50": 0.5}) + "\n")
    with pytest.raises(BenchmarkError, match="no mae and rmse"):
        merge(here, path)


@pytest.mark.parametrize(
    "damage", [{"seconds": ...}, {"recipe": ...}, {"settings": []}, {"records": [{}]}]
)
def test_a_row_whose_file_lacks_something_is_trained_again(halves, data, trained, damage):
    here, _ = halves
    changed_json(here / "tiny" / "0" / "row.json", **damage)
    trained.clear()
    sweep_stage([TINY, FASTER], here, options(data, seeds=(0,))).check()
    assert [each.name for each, _ in trained] == ["tiny", "faster"]
    assert labels(here) == [("faster", 0), ("tiny", 0)]
