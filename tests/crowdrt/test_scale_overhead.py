"""What a cluster costs: runs in turns, their rates and their memory."""

import os
import subprocess
import sys

import pytest
from clusters import ray_cluster

from crowdrt.errors import EngineError
from crowdrt.pipeline.scale import overhead
from crowdrt.pipeline.scale.overhead import CLUSTER, LOCAL, Run, counted, processes_below, summary

HOLDS_80_MIB = "import sys; held = b'x' * (80 << 20); print(flush=True); sys.stdin.read()"


def run(crew, per_s, mib=(10.0,) * 10):
    return Run(crew=crew, wall_s=200 / per_s, photographs_per_s=per_s, photographs=100, mib=mib)


def test_rates_are_compared_round_by_round():
    runs = [run(LOCAL, 10), run(CLUSTER, 9), run(CLUSTER, 18), run(LOCAL, 20)]
    found = summary(runs)
    assert found["ratio"] == pytest.approx(0.9)
    assert found["ratio_interval"] is None  # of two rounds
    assert found[LOCAL]["photographs_per_s"] == 15
    assert found[LOCAL]["with_start_per_s"] == 7.5
    six = [run(crew, k + (crew == LOCAL)) for k in range(1, 7) for crew in (LOCAL, CLUSTER)]
    assert summary(six)["ratio_interval"] == pytest.approx((1 / 2, 6 / 7))


def test_memory_that_grows_is_seen():
    grows = summary([run(crew, 10, mib=tuple(range(100))) for crew in (LOCAL, CLUSTER)])
    assert grows[CLUSTER]["mib_early"] == pytest.approx(29.5)
    assert grows[CLUSTER]["mib_late"] == pytest.approx(89.5)
    assert grows[CLUSTER]["mib_peak"] == 99


def test_a_run_is_its_command_and_all_below_it():
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS_80_MIB], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        child.stdout.readline()
        assert child.pid in processes_below(os.getpid())
        assert processes_below(child.pid) == [child.pid]
        assert 80 < overhead.private_mib(child.pid) < 120
        child.stdin.close()
    assert overhead.private_mib(child.pid) == 0


def test_one_run_by_processes_here(tiny):
    found = counted(LOCAL, tiny.onnx, [str(tiny.photos)], cluster="")
    assert found.photographs == 4
    assert found.photographs_per_s > found.photographs / found.wall_s > 0
    assert max(found.mib) > 20


@pytest.mark.cluster
def test_one_run_by_actors_here(tiny, monkeypatch):
    with ray_cluster(num_cpus=1) as cluster:
        found = counted(CLUSTER, tiny.onnx, [str(tiny.photos)], cluster.address)
        assert found.photographs == 4
        with_actors = max(found.mib)
        monkeypatch.setattr(overhead, "ACTOR", "ray::Others")
        with pytest.raises(EngineError, match="no Ray actor was seen"):
            counted(CLUSTER, tiny.onnx, [str(tiny.photos)], cluster.address)
    assert with_actors > 100


def test_a_run_that_fails_says_why(tiny, tmp_path):
    with pytest.raises(EngineError, match=r"(?s)by processes here failed:.*missing"):
        counted(LOCAL, tiny.onnx, [str(tmp_path / "missing")], cluster="")
