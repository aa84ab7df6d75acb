"""`crowdrt count -o --cluster`: one Ray node counts as processes here do, and loses nothing."""

import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from clusters import actors, kill_actor, ray_cluster

from crowdrt.errors import EngineError, MissingDependencyError
from crowdrt.manifest import cannot_write
from crowdrt.pipeline.scale import cluster as clusters
from crowdrt.pipeline.scale import run as runs
from crowdrt.pipeline.scale import shards
from crowdrt.pipeline.scale.counting import Counter, Settings
from crowdrt.pipeline.scale.crew import Failed, Lost, Ready
from crowdrt.pipeline.scale.listing import list_photographs
from crowdrt.pipeline.scale.parcel import MismatchError, Parcel, parcel_of
from crowdrt.pipeline.scale.run import count_at_scale

pytestmark = pytest.mark.cluster


def rows_in(out):
    rows = [row for path in out.glob("counts/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len({row["image"] for row in rows}) == len(rows)
    return {row["image"]: row for row in rows}


def test_a_node_counts_what_one_process_counts_though_its_actor_is_killed(
    tiny, tmp_path, monkeypatch, capfd
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(12):
        shutil.copy(tiny.photos / f"crowd_000{k % 4}.jpg", photos / f"p{k}.jpg")
    (photos / "bad.jpg").write_bytes(b"no image")
    settings = Settings(engine=tiny.onnx, store=tiny.store)
    write, killed = runs.write_shard, []

    def write_and_kill(*args):
        write(*args)
        if not killed:
            killed.append(kill_actor(0))

    monkeypatch.setattr(runs, "write_shard", write_and_kill)
    monkeypatch.setattr(shards, "MAX_ROWS", 3)
    with ray_cluster(num_cpus=1) as cluster:
        tally = count_at_scale([str(photos)], tmp_path / "out", settings, cluster=cluster.address)
    assert killed
    assert not actors()
    assert (tally.num_counted, tally.num_errors) == (12, 1)
    wanted = Counter(settings).count(list_photographs([str(photos)]))
    rows = rows_in(tmp_path / "out")
    for row in wanted:
        found = rows[row.image]
        assert (found["count"], found["sha256"], found["error"], found["engine"]) == (
            row.count,
            row.sha256,
            row.error,
            row.engine,
        )
    assert capfd.readouterr().out == ""  # Ray's own messages are no results


def test_an_address_at_which_nobody_listens_is_refused_at_once(tiny, tmp_path, crowdrt):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ("count", tiny.onnx, tiny.photos, "-o", tmp_path / "out", "--cluster")
    answer = crowdrt(*command, address)
    assert answer.code == 1
    assert f"there is no Ray cluster at {address}" in answer.err
    assert "ray start --head" in answer.err
    assert "Invalid address" in crowdrt(*command, "nonsense").err
    assert not (tmp_path / "out" / "counts").exists()


def test_what_is_known_to_be_no_cluster_is_said_before_a_photograph_is_listed(
    tiny, tmp_path, crowdrt, monkeypatch
):
    def never(*_):
        raise AssertionError("a million names were listed first")

    monkeypatch.setattr(runs, "list_photographs", never)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for other, problem in {
        address: f"there is no Ray cluster at {address}",
        f"ray://{address}": f"ray://{address} is no address of a cluster's head",
    }.items():
        answer = crowdrt("count", tiny.onnx, "LIST", "-o", tmp_path / "out", "--cluster", other)
        assert answer.code == 1
        assert problem in answer.err
        assert "--cluster HOST:6379" in answer.err
    assert not (tmp_path / "out").exists()


def test_what_listens_and_is_no_cluster_is_given_up(monkeypatch):
    monkeypatch.setattr(clusters, "CONNECT_S", 0.5)
    monkeypatch.setattr("ray.init", lambda **_: time.sleep(30))
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(EngineError, match="no answer within 0 s") as refused,
    ):
        clusters.connect(f"127.0.0.1:{other.getsockname()[1]}")
    assert "ray start --head" in refused.value.fix


def test_an_engine_arrives_as_it_was_sent(tiny, tmp_path, own_store, monkeypatch):
    sent = parcel_of(tiny.onnx)
    place = sent.unpack(sent.sha256)
    assert place.read_bytes() == tiny.onnx.read_bytes()
    place.write_bytes(b"cut short")
    assert sent.unpack(sent.sha256).read_bytes() == tiny.onnx.read_bytes()
    other = Parcel(name=sent.name, files={sent.name: b"something else"})
    with pytest.raises(EngineError, match="arrived with the SHA-256"):
        other.unpack(sent.sha256)


def test_an_engine_folder_arrives_whole(tiny, own_store):
    (built,) = [path for path in tiny.store.iterdir() if path.is_dir()][:1]
    sent = parcel_of(built)
    place = sent.unpack(sent.sha256)
    assert place.name == built.name
    here, there = Counter(Settings(engine=built)), Counter(Settings(engine=place))
    assert here.identity == there.identity


class ActorDiedError(Exception):
    """Stands for Ray's error of an actor that is gone."""


class TaskError(ActorDiedError):
    """Stands for Ray's error of an actor that said why."""

    def __init__(self, cause):
        self.cause = cause


def settings_of(tiny):
    return Settings(engine=tiny.onnx, timeout_s=60.0)


def ray_that_answers(answers):
    def get(reference):
        if answers[reference] is not None:
            raise answers[reference]

    def remote(**_):
        actor = SimpleNamespace(
            open=SimpleNamespace(remote=lambda *_: "opening"),
            count=SimpleNamespace(remote=lambda *_: "counting"),
        )
        return lambda _: SimpleNamespace(remote=lambda: actor)

    return SimpleNamespace(
        put=lambda parcel: parcel,
        remote=remote,
        wait=lambda references, **_: (references, []),
        get=get,
        kill=lambda _: None,
        exceptions=SimpleNamespace(RayTaskError=TaskError, RayError=ActorDiedError),
    )


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (MismatchError("the run has another version", fix="install it"), Failed),
        (MissingDependencyError("no onnxruntime", fix="install it"), Failed),
        (EngineError("the engine could not be loaded: out of memory", fix="free some"), Lost),
        (cannot_write(Path("engine.onnx"), OSError(28, "No space left on device")), Lost),
        (MemoryError("no room"), Lost),
    ],
)
def test_only_what_is_the_same_everywhere_ends_the_run(tiny, error, event):
    crew = clusters.Cluster(ray_that_answers({"opening": TaskError(error)}), settings_of(tiny))
    crew.hire()
    (happened,) = crew.events(0)
    assert isinstance(happened, event)
    if event is Lost:
        assert str(error).splitlines()[0] in happened.reason


def test_an_actor_that_may_have_had_no_more_time_names_the_option(tiny, monkeypatch):
    crew = clusters.Cluster(
        ray_that_answers({"opening": None, "counting": ActorDiedError("The actor died")}),
        settings_of(tiny),
    )
    now = [100.0]
    monkeypatch.setattr(clusters, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reasons = []
    for seconds in (59.0, 60.0):
        worker = crew.hire()
        assert crew.events(0) == [Ready(worker=worker)]
        crew.give(worker, [])
        now[0] += seconds
        (lost,) = crew.events(0)
        reasons.append(lost.reason)
    said = "no photograph was done within 60 s, see --timeout"
    assert [said in reason for reason in reasons] == [False, True]


def test_a_node_with_another_crowdrt_says_so(tiny):
    parcel = parcel_of(tiny.onnx)
    with pytest.raises(EngineError, match=r"the run 0\.0\.9") as refused:
        clusters.Actor().open(Settings(engine=tiny.onnx), parcel, parcel.sha256, "0.0.9")
    assert "crowdrt[cluster]==0.0.9" in refused.value.fix
