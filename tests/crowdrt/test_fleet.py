"""`crowdrt build --fleet` on real Ray nodes: built, found, absent, killed, removed."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from clusters import SMALL, actors, ray_cluster

from crowdrt.pipeline.fleet import yard

pytestmark = pytest.mark.cluster

PATIENCE_S = 120.0  # for a busy machine

FLEET = """
store = "{store}"
[[target]]
name = "box, one thread"
resource = "BOX"
threads = 1
[[target]]
name = "camera"
resource = "CAMERA"
threads = 2
"""
PAIR = """
store = "{store}"
[[target]]
name = "pair"
resource = "PAIR"
"""
FAILS = """
[[target]]
name = "gpu"
resource = "CAMERA"
engine = "tensorrt"
"""
ABSENT = """
[[target]]
name = "t4"
resource = "T4"
engine = "tensorrt"
shape = "96x128"
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster of two kinds of nodes, one with a GPU that is none; its head builds nothing."""
    (without := tmp_path_factory.mktemp("path") / "tensorrt.py").write_text("raise ImportError")
    with pytest.MonkeyPatch.context() as patch:
        # raylets inherit it
        patch.setenv("CROWDRT_STORE", str(tmp_path_factory.mktemp("node")))
        patch.setenv("PYTHONPATH", str(without.parent))
        with ray_cluster(num_cpus=0) as cluster:
            cluster.add_node(num_cpus=1, resources={"BOX": 1}, **SMALL)
            cluster.add_node(num_cpus=1, num_gpus=1, resources={"CAMERA": 1}, **SMALL)
            yield cluster


@pytest.fixture
def fleet(crowdrt, tiny, tmp_path, nodes):
    """Give the command for a fleet.toml."""

    def give(text, *options):
        file = tmp_path / "fleet.toml"
        file.write_text(text.format(store=tmp_path / "shared"))
        address = ("--cluster", nodes.address)
        return crowdrt("build", tiny.onnx, "--fleet", file, *address, *options)

    return give


def builders(number, without=()):
    """The processes that build, once there are so many: Ray takes a moment to end one."""
    until = time.monotonic() + PATIENCE_S
    while len(pids := set(actors("Builder")) - set(without)) != number:
        assert time.monotonic() < until, pids
        time.sleep(0.1)
    return pids


def counts(crowdrt, engine, photos):
    return [row["count"] for row in crowdrt("count", engine, photos, "--json").json()]


def test_each_kind_of_node_builds_once_and_what_no_node_has_is_said(crowdrt, tiny, fleet, tmp_path):
    first = fleet(FLEET + FAILS + ABSENT, "--json")
    assert first.code == 1
    box, camera, gpu, t4 = json.loads(first.out)["engines"]
    statuses = [row["status"] for row in (box, camera, gpu, t4)]
    assert statuses == ["built", "built", "failed", "failed"]
    assert "tensorrt could not be imported" in gpu["why"]
    assert "no node has T4: nodes have BOX, CAMERA, CPU, GPU" in t4["why"]
    assert "2 of 4 engines were not built" in first.err
    assert """ray start --address HOST:PORT --resources '{"T4": 1}'""" in first.err
    assert box["key"] != camera["key"]

    again = fleet(FLEET)
    assert again.code == 0
    assert again.out.count("found") == 2
    for row in (box, camera):
        assert Path(row["where"]).parent == tmp_path / "shared"
        assert row["where"] in again.out

    command = ("build", tiny.onnx, "--threads", 1, "--store", tmp_path / "shared", "--json")
    there = crowdrt(*command).json()
    assert (there["path"], there["reused"]) == (box["where"], True)  # it is a store like any other

    ours = counts(crowdrt, box["where"], tiny.photos)
    local = Path(crowdrt("build", tiny.onnx, "--threads", 1, "--json").json()["path"])
    assert local.name == Path(box["where"]).name
    assert ours == counts(crowdrt, local, tiny.photos)
    assert max(ours) - min(ours) > 0.01


def test_a_build_that_loses_its_process_and_then_its_node_is_built_on_another(
    crowdrt, tiny, fleet, nodes, monkeypatch
):
    pair = {"num_cpus": 1, "resources": {"PAIR": 1}, **SMALL}
    one = nodes.add_node(**pair)
    look, lost = yard.read_finished, []

    def lose(pid):
        time.sleep(1)  # until the build has been given to the process, which stands still
        if len(lost) == 2:
            nodes.remove_node(one, allow_graceful=False)
        os.kill(pid, signal.SIGKILL)

    def look_and_lose(*args):
        """Stop the process that gets the build next, and have it lost with that in hand."""
        if len(lost) < 2:
            (pid,) = builders(1, without=lost)
            os.kill(pid, signal.SIGSTOP)
            lost.append(pid)
            if len(lost) == 2:
                nodes.add_node(**pair)
            threading.Thread(target=lose, args=(pid,)).start()
        return look(*args)

    monkeypatch.setattr(yard, "read_finished", look_and_lose)
    answer = fleet(PAIR, "--json")
    assert len(set(lost)) == 2
    (row,) = answer.json()["engines"]
    assert row["status"] == "built"
    assert answer.err.count("it is tried again") == 2
    assert counts(crowdrt, row["where"], tiny.photos) == counts(crowdrt, tiny.onnx, tiny.photos)
    assert not builders(0)
