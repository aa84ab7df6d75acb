"""A race is found again where exactly the same engines would race today."""

from pathlib import Path

import pytest

from crowdrt.benchmarks.timing.race import Contender
from crowdrt.contracts import Measurement
from crowdrt.manifest import manifest_path
from crowdrt.pipeline.races import keep_race, race_identity, recorded

FOLDERS = [Path("store/0123-onnxruntime"), Path("store/4567-onnxruntime")]


def contender(name: str, sha256: str = "ab", version: str = "1") -> Contender:
    return Contender(
        name=name, network="csrnet", width="1", engine="onnxruntime", engine_version=version,
        precision="fp32", open=list, sha256=sha256,
    )  # fmt: skip


def row(name: str, run_id: str, *samples_ms: float) -> Measurement:
    return Measurement(
        name=name, network="csrnet", width="1", engine="onnxruntime", engine_version="1",
        precision="fp32", size=(96, 128), num_threads=1, samples_ms=samples_ms, peak_mib=1.0,
        machine={}, verdict="valid", run_id=run_id,
    )  # fmt: skip


BOTH = (contender("a"), contender("b"))


def identity(contenders=BOTH, folders=FOLDERS, num_threads=1):
    return race_identity(contenders, folders, num_threads) | {"size": (96, 128)}


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "races.jsonl"
    keep_race(path, [row("a", "1", 1.0), row("b", "1", 2.0)], identity())
    keep_race(path, [row("a", "2", 3.0), row("b", "2", 4.0)], identity())
    keep_race(path, [row("a", "3", 5.0), row("b", "3")], identity())  # one broke down
    keep_race(path, [row("a", "4", 6.0)], identity([contender("a")], FOLDERS[:1]))
    return path


def test_the_newest_race_of_exactly_this_in_which_all_ran(records):
    assert [each.samples_ms for each in recorded(records, identity())] == [(3.0,), (4.0,)]


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
    assert recorded(records, other) == []


def test_races_of_which_nothing_is_known_are_run_again(records, tmp_path):
    manifest_path(records).write_text("{")
    assert recorded(records, identity()) == []
    assert recorded(tmp_path / "none.jsonl", identity()) == []


def test_every_core_is_as_many_as_there_are(records):
    cores = race_identity([], [], 0)["num_threads"]
    assert race_identity([], [], cores) == race_identity([], [], 0)
