"""How shards are dealt out: whoever is lost costs time, and one killing photograph one row."""

from pathlib import Path

import pytest

from crowdrt.errors import EngineError
from crowdrt.pipeline.scale import crew as crews
from crowdrt.pipeline.scale.cluster import Cluster
from crowdrt.pipeline.scale.crew import ALONE, WHOLE, Done, Failed, Foreman, Lost, Ready
from crowdrt.pipeline.scale.processes import Processes
from crowdrt.pipeline.scale.rows import Photo, Row
from crowdrt.pipeline.scale.shards import Shard


class StandIn:
    """Workers that count at once, and die as they are told."""

    held_up = "look for free CPUs"

    def __init__(self, *, killers=(), lose=(), stillborn=0, pending=(), refuse=None):
        self.killers, self.lose = set(killers), set(lose)
        self.stillborn, self.pending, self.refuse = stillborn, set(pending), refuse
        self.num_hired, self.given, self.happened = 0, [], []

    def hire(self):
        self.num_hired += 1
        worker = self.num_hired
        if self.refuse:
            self.happened.append(Failed(error=self.refuse))
        elif worker <= self.stillborn:
            self.happened.append(Lost(worker=worker, reason="signal 9"))
        elif worker not in self.pending:
            self.happened.append(Ready(worker=worker))
        return worker

    def give(self, worker, photos):
        names = [photo.name for photo in photos]
        self.given.append((worker, names))
        if self.killers & set(names) or len(self.given) in self.lose:
            self.happened.append(Lost(worker=worker, reason="signal 9"))
        else:
            rows = [Row(image=name, stamp=None, count=float(len(name))) for name in names]
            self.happened.append(Done(worker=worker, rows=rows))

    def events(self, _timeout_s):
        happened, self.happened = self.happened, []
        return happened


def shard(name, *images):
    photos = tuple(Photo(name=image, stamp="s") for image in images)
    return Shard(path=Path(f"{name}.parquet"), photos=photos)


SHARDS = [shard("x", "a", "bb", "ccc"), shard("y", "dddd", "e"), shard("z", "f")]


def worked_off(crew, shards=SHARDS, num_workers=2):
    foreman = Foreman(crew=crew, num_workers=num_workers, engine="e")
    done = {each.path.stem: rows for each, rows in foreman.work_off(shards)}
    for each in shards:
        names = [row.image for row in done[each.path.stem]]
        assert sorted(names) == sorted(photo.name for photo in each.photos)
    return done


def test_every_shard_comes_whole_and_no_more_are_hired_than_there_is_work():
    crew = StandIn()
    assert len(worked_off(crew, num_workers=8)) == 3
    assert crew.num_hired == 3


def test_a_lost_shard_is_counted_again_by_another():
    crew = StandIn(lose={1})
    done = worked_off(crew, num_workers=1)
    assert [row.count for row in done["x"]] == [1, 2, 3]
    assert [names for _, names in crew.given[:2]] == [["a", "bb", "ccc"]] * 2
    assert crew.given[0][0] != crew.given[1][0]


def test_a_photograph_that_kills_becomes_a_row_and_the_others_are_counted(capsys):
    crew = StandIn(killers={"bb"})
    rows = {row.image: row for row in worked_off(crew)["x"]}
    assert (rows["a"].count, rows["ccc"].count) == (1, 3)
    assert rows["bb"] == Row(
        image="bb",
        stamp="s",
        engine="e",
        error=f"the process that counted it was lost {ALONE} times: signal 9",
    )
    assert sum("bb" in names for _, names in crew.given) == WHOLE + ALONE
    assert "signal 9" in capsys.readouterr().err


def test_two_that_kill_in_one_shard_are_both_found():
    rows = {row.image: row for row in worked_off(StandIn(killers={"a", "ccc"}))["x"]}
    assert rows["bb"].count == 2
    assert rows["a"].error
    assert rows["ccc"].error


def test_who_dies_idle_is_replaced_when_there_is_work():
    crew = StandIn()
    foreman = Foreman(crew=crew, num_workers=1, engine="e")
    list(foreman.work_off(SHARDS[:1]))
    crew.happened.append(Lost(worker=1, reason="signal 9"))
    crew.give = lambda worker, photos: StandIn.give(crew, worker, photos) if worker > 1 else None
    assert [each.path.stem for each, _ in foreman.work_off(SHARDS[1:])] == ["y", "z"]
    assert crew.num_hired == 2


def test_who_gets_no_core_holds_nobody_up():
    crew = StandIn(pending={1})
    assert len(worked_off(crew)) == 3
    assert {worker for worker, _ in crew.given} == {2}


def test_some_starts_may_fail_and_too_many_end_the_run():
    assert len(worked_off(StandIn(stillborn=4))) == 3
    with pytest.raises(EngineError, match=r"5 processes in a row were lost.*signal 9") as refused:
        worked_off(StandIn(stillborn=100))
    assert "--workers 1" in refused.value.fix


def test_a_node_on_which_nothing_starts_does_not_end_the_others(capsys):
    crew = StandIn()
    foreman = Foreman(crew=crew, num_workers=2, engine="e")
    hire = crew.hire

    def hire_where_the_disk_is_full():
        worker = hire()
        if worker > 1:
            crew.happened[-1:] = [Lost(worker=worker, reason="No space left on device")]
        return worker

    crew.hire = hire_where_the_disk_is_full
    shards = [shard(str(k), str(k)) for k in range(9)]
    assert len(list(foreman.work_off(shards))) == 9
    assert "5 processes in a row could not start (No space left on device); 1 go on" in (
        capsys.readouterr().err
    )


def test_a_bad_node_may_be_tried_as_often_when_the_good_one_dies(capsys):
    crew = StandIn(lose={7})  # by when the bad node is done without
    foreman = Foreman(crew=crew, num_workers=2, engine="e")
    hire = crew.hire

    def hire_mostly_on_the_bad_node():
        worker = hire()
        if worker not in (1, 10):
            crew.happened[-1:] = [Lost(worker=worker, reason="no room")]
        return worker

    crew.hire = hire_mostly_on_the_bad_node
    shards = [shard(str(k), str(k)) for k in range(9)]
    assert len(list(foreman.work_off(shards))) == 9
    assert [worker for worker, _ in crew.given] == [1] * 7 + [10] * 3
    assert "1 go on" in capsys.readouterr().err


def test_what_no_worker_can_open_ends_the_run():
    with pytest.raises(EngineError, match="another version"):
        worked_off(StandIn(refuse=EngineError("another version", fix="install it")))


def test_a_cluster_without_a_free_core_is_said_and_given_up(monkeypatch, capsys):
    monkeypatch.setattr(crews, "GIVE_UP_S", 3 * crews.PATIENCE_S)
    with pytest.raises(EngineError, match="for 180 s no process") as refused:
        worked_off(StandIn(pending={1, 2}))
    assert refused.value.fix == StandIn.held_up
    assert capsys.readouterr().err.count("no process has opened the engine; look for free") == 2
    assert "crowdrt count ENGINE PHOTO" in Processes.held_up
    assert "ray status" in Cluster.held_up
    assert "ray" not in Processes.held_up
