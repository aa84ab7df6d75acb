"""A race is found again where exactly the same engines would race today."""

from pathlib import Path

import numpy as np
import pytest

from crowdrt.benchmarks.timing.race import Contender, RaceConfig
from crowdrt.benchmarks.timing.records import append_records
from crowdrt.contracts import Measurement
from crowdrt.pipeline import races
from crowdrt.pipeline.races import keep_race, race_identity, race_once, recorded

FOLDERS = [Path("store/0123-onnxruntime"), Path("store/4567-onnxruntime")]


def contender(name: str, sha256: str = "ab", version: str = "1") -> Contender:
    return Contender(
        name=name, network="csrnet", width="1", engine="onnxruntime", engine_version=version,
        precision="fp32", open=list, sha256=sha256,
    )  # fmt: skip


def row(name: str, run_id: str, *samples_ms: float, verdict: str = "valid") -> Measurement:
    return Measurement(
        name=name, network="csrnet", width="1", engine="onnxruntime", engine_version="1",
        precision="fp32", size=(96, 128), num_threads=1, samples_ms=samples_ms, peak_mib=1.0,
        machine={}, verdict=verdict, run_id=run_id,
    )  # fmt: skip


BOTH = (contender("a"), contender("b"))
IMAGE = np.zeros((3, 96, 128), np.uint8)
BROKEN = "failed: out of memory"


def identity(contenders=BOTH, folders=FOLDERS, num_threads=1):
    return race_identity(contenders, folders, num_threads) | {"size": (96, 128)}


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "races.jsonl"
    keep_race(path, [row("a", "1", 1.0), row("b", "1", 2.0)], identity(), 60)
    keep_race(path, [row("a", "2", 3.0), row("b", "2", 4.0)], identity(), 60)
    broken = row("b", "3", 6.0, verdict=BROKEN)  # after its first visits
    keep_race(path, [row("a", "3", 5.0), broken], identity(), 60)
    keep_race(path, [row("a", "4", 6.0)], identity([contender("a")], FOLDERS[:1]), 60)
    return path


@pytest.fixture
def raced(monkeypatch):
    """Races that only pretend, and of which `b` breaks down; returns how long they were to take."""
    budgets = []

    def race(contenders, image, config):
        budgets.append(config.budget_s)
        run_id = f"new {len(budgets)}"
        return [row("a", run_id, 1.0, verdict="unstable"), row("b", run_id, 2.0, verdict=BROKEN)]

    monkeypatch.setattr(races, "race", race)
    return budgets


def once(path, seconds=60.0, *, fresh=False):
    """Return the id of the race that is found or run."""
    config = RaceConfig(num_threads=1, budget_s=seconds)
    return race_once(BOTH, FOLDERS, IMAGE, path, config, fresh=fresh)[0].run_id


def test_the_newest_race_of_exactly_this_in_which_all_ran(records):
    assert [each.samples_ms for each in recorded(records, identity(), 60)] == [(3.0,), (4.0,)]


@pytest.mark.parametrize(
    "other",
    [
        identity(folders=[FOLDERS[0], Path("store/89ab-onnxruntime")]),  # built otherwise
        identity([contender("a"), contender("b", sha256="cd")]),
        identity([contender("a"), contender("b", version="2")]),
        identity(num_threads=2),
        identity() | {"size": (64, 64)},
    ],
    ids=["engine", "file", "runtime", "threads", "size"],
)
def test_of_anything_else_there_is_none(other, records):
    assert recorded(records, other, 60) == []


def test_races_of_which_nothing_is_known_are_run_again(tmp_path):
    path = tmp_path / "none.jsonl"
    assert recorded(path, identity(), 60) == []
    append_records(path, [row("a", "1", 1.0), row("b", "1", 2.0)])  # as before rows said it
    assert recorded(path, identity(), 60) == []


def test_one_that_always_breaks_down_is_not_raced_for_ever_and_that_is_said(
    tmp_path, raced, capsys
):
    path = tmp_path / "races.jsonl"
    assert [once(path), once(path)] == ["new 1", "new 1"]
    said = capsys.readouterr().err
    assert "csrnet at 96x128: reusing run new 1, in which b failed: out of memory;" in said
    assert "--fresh repeats it" in said
    assert once(path, fresh=True) == "new 2"
    keep_race(path, [row("a", "5", 1.0), row("b", "5", 2.0)], identity(), 60)
    once(path, fresh=True)
    assert once(path) == "5"  # older, but all ran


def test_a_shorter_race_is_reused_only_where_every_median_is_known(tmp_path, raced):
    path = tmp_path / "races.jsonl"
    assert [once(path, seconds) for seconds in (60, 30, 61, 60)] == [
        "new 1",
        "new 1",
        "new 2",
        "new 2",
    ]
    keep_race(path, [row("a", "5", 1.0), row("b", "5", 2.0)], identity(), 1)  # both valid
    assert once(path, 600) == "5"
    assert raced == [60, 61]


def test_of_two_races_that_end_together_none_loses_what_it_was_of(tmp_path, monkeypatch):
    """The other one's rows come between ours and whatever else is written of them."""
    path = tmp_path / "races.jsonl"
    alone = identity([contender("a")], FOLDERS[:1])
    append = races.append_records

    def between(records, rows):
        monkeypatch.setattr(races, "append_records", append)
        keep_race(records, [row("a", "other", 1.0)], alone, 60)
        append(records, rows)

    monkeypatch.setattr(races, "append_records", between)
    keep_race(path, [row("a", "ours", 1.0), row("b", "ours", 2.0)], identity(), 60)
    assert recorded(path, alone, 60)[0].run_id == "other"
    assert recorded(path, identity(), 60)[0].run_id == "ours"


def test_every_core_is_as_many_as_there_are():
    cores = race_identity([], [], 0)["num_threads"]
    assert race_identity([], [], cores) == race_identity([], [], 0)
