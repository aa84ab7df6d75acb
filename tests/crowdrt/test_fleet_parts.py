"""Builds for a fleet without Ray: the file, the shared store, and what is done about what fails."""

import contextlib
import hashlib
import json
import os
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from fsspec.implementations.memory import MemoryFileSystem

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from stand_in_tensorrt import installed
from typer.main import get_command

from crowdrt.cli import app
from crowdrt.engines.base import open_engine
from crowdrt.engines.signing import SIGNATURE, VERIFY_KEY
from crowdrt.engines.store import MANIFEST, TIMINGS, read_built
from crowdrt.engines.trt.building.options import PlanOptions, parse_shape
from crowdrt.errors import CrowdRTError, EngineError
from crowdrt.pipeline import asked
from crowdrt.pipeline.fleet import run, shared, yard
from crowdrt.pipeline.fleet.run import build_for_fleet
from crowdrt.pipeline.fleet.shared import place_of, publish, read_finished
from crowdrt.pipeline.fleet.summary import check_rows
from crowdrt.pipeline.fleet.targets import Fleet, Target, read_fleet
from crowdrt.pipeline.stages import default_store
from crowdrt.verbs.engines import BESIDE_FLEET

STORE = 'store = "engines"\n'
BOX = '[[target]]\nname = "box"\nresource = "BOX"\n'
GPU = '[[target]]\nname = "gpu"\nresource = "T4"\nengine = "tensorrt"\n'


class TaskError(Exception):
    """What a node raised, as Ray hands it on."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class GoneError(Exception):
    """A process or node is gone."""


class Call:
    """A call that runs when it is waited for."""

    def __init__(self, actor, name):
        self.actor, self.name, self.args = actor, name, ()

    def remote(self, *args):
        self.args = args
        return self


class Nodes:
    """Stands in for Ray: calls run here, when they are waited for."""

    exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=(TaskError, GoneError))

    def __init__(self, *resources, lose=0):
        self.there = [
            {"Alive": True, "Resources": each, "NodeManagerHostname": f"host-{place}"}
            for place, each in enumerate(resources)
        ]
        self.lose = lose  # so many builds
        self.asked, self.killed = [], 0

    def nodes(self):
        return self.there

    def put(self, thing):
        return thing

    def remote(self, **needs):
        self.asked.append(needs)

        def make(kind):
            actor = kind()
            calls = {name: Call(actor, name) for name in ("start", "identify", "build")}
            return SimpleNamespace(remote=lambda: SimpleNamespace(**calls))

        return make

    def wait(self, references, **_):
        return references[:1], references[1:]

    def get(self, call):
        if call.name == "build" and self.lose:
            self.lose -= 1
            raise GoneError
        try:
            return getattr(call.actor, call.name)(*call.args)
        except Exception as error:
            raise TaskError(error) from error

    def kill(self, _):
        self.killed += 1


def fleet_of(*targets, store="memory://"):
    return Fleet(store=store, targets=targets)


BOX_TARGET = Target(name="box", resource="BOX", num_threads=1)
GPU_TARGET = Target(
    name="gpu", resource="T4", engine="tensorrt", plan=PlanOptions(shape=parse_shape("96x128"))
)
BOX_NODE = {"CPU": 2.0, "BOX": 1.0, "memory": 1e9, "node:127.0.0.1": 1.0}
GPU_NODE = {"CPU": 2.0, "GPU": 1.0, "T4": 1.0}


@pytest.fixture
def give(tiny, monkeypatch):
    """Build the tiny network for a fleet, on nodes that are none."""

    def give(nodes, fleet, **options):
        monkeypatch.setattr(run, "connected", lambda _: contextlib.nullcontext(nodes))
        return build_for_fleet(tiny.onnx, fleet, **options)

    return give


@pytest.fixture
def bucket():
    """A place of an object store, empty."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    files = fsspec.filesystem("memory")
    if files.exists(url):
        files.rm(url, recursive=True)


@pytest.fixture(params=["folder", "bucket", "file URL"])
def store(request, tmp_path, bucket):
    """The store in each of its forms."""
    return {
        "folder": str(tmp_path / "engines"),
        "bucket": bucket,
        "file URL": (tmp_path / "engines").as_uri(),
    }[request.param]


# the file


def read(tmp_path, text):
    (tmp_path / "fleet.toml").write_text(text)
    return read_fleet(tmp_path / "fleet.toml")


def test_a_fleet_is_read(tmp_path):
    (tmp_path / "timings").write_bytes(b"measured")
    found = read(
        tmp_path,
        f"""store = "s3://bucket/engines"
        cluster = "head:6379"
        [[target]]
        name = "box"
        resource = "BOX"
        engine = "openvino"
        threads = 2
        [[target]]
        name = "t4"
        resource = "T4"
        engine = "tensorrt"
        shape = "96x96:96x128:512x512"
        batch = 2
        workspace = "1GiB"
        level = 5
        tf32 = true
        float-input = true
        any-precision = false
        timing-cache = "{tmp_path}/timings"
        """,
    )
    assert found == Fleet(
        store="s3://bucket/engines",
        cluster="head:6379",
        targets=(
            Target(name="box", resource="BOX", engine="openvino", num_threads=2),
            Target(
                name="t4",
                resource="T4",
                engine="tensorrt",
                plan=PlanOptions(
                    shape=((96, 96), (96, 128), (512, 512)),
                    batch=2,
                    workspace_bytes=2**30,
                    level=5,
                    tf32=True,
                    float_input=True,
                    timing_cache=tmp_path / "timings",
                ),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("store", "is no TOML"),
        (BOX, "names no store"),
        ("store = ' '\n" + BOX, "names no store"),
        (STORE, "names no target"),
        (STORE + "cluster = ''\n" + BOX, "names no cluster"),
        ("store = 1\n" + BOX, "store = 1 is not text"),
        (STORE + "target = 1", "target = 1 is not a list of tables"),
        (STORE + "target = [1]", "target 1 is no table"),
        (STORE + "stores = 1\n" + BOX, "stores is unknown"),
        ('store = "s3://me:secret@bucket"\n' + BOX, r"s3://...@bucket holds a user"),
        ('store = "s3://b?X-Amz-Signature=secret"\n' + BOX, "is signed"),
        (STORE + BOX + BOX, "two targets 'box'"),
        (STORE + '[[target]]\nname = "box"', r"target 1 \(box\) has no resource"),
        (STORE + '[[target]]\nresource = "BOX"', "target 1 has no name"),
        (STORE + BOX + "threads = true", "threads = True is not a whole number"),
        (STORE + BOX + "threads = -1", r"\(box\): threads = -1"),
        (STORE + BOX + 'shape = "1x1"', r"\(box\): onnxruntime: shape is unknown"),
        (STORE + BOX + 'engine = "auto"', "engine 'auto' is unknown"),
        (STORE + BOX + "engine = []", r"engine '\[\]' is unknown"),
        (STORE + BOX.replace("BOX", "GPU"), "resource = 'GPU' is on every node"),
        (STORE + GPU + "threads = 1", "tensorrt: threads is unknown"),
        (STORE + GPU + 'shape = "1x2x3"', "is not HEIGHTxWIDTH"),
        (STORE + GPU + "shape = 96", "shape = 96 is not text"),
        (STORE + GPU + 'workspace = "lots"', "'lots' is no memory"),
        (STORE + GPU + "level = 9", "optimisation level 9 is unknown"),
        (STORE + GPU + 'timing-cache = "gone"', "timing cache gone does not exist"),
        (STORE + GPU + 'timing-cache = "~nobody-here/x"', "~nobody-here/x: nobody here has"),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused(tmp_path, text, problem):
    with pytest.raises(CrowdRTError, match=problem) as refused:
        read(tmp_path, text)
    assert refused.value.fix
    assert "secret" not in str(refused.value)


def test_unknown_keys_are_answered_with_those_that_there_are(tmp_path):
    with pytest.raises(CrowdRTError) as refused:
        read(tmp_path, STORE + BOX + "thread = 1")
    assert "name, resource, engine, threads" in refused.value.fix


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--fleet", "gone.toml"), "gone.toml cannot be read: No such file"),
        (("--fleet", "fleet.toml", "--threads", 1), "with --fleet, --threads is said in"),
        (("--fleet", "fleet.toml", "--tf32"), "with --fleet, --tf32 is said in"),
        (("--fleet", "fleet.toml", "--engine", "openvino"), "with --fleet, --engine is said in"),
        (("--fleet", "fleet.toml", "--store", "engines"), "with --fleet, --store is said in"),
        (("--fleet", "fleet.toml", "--sign-key", "k.pem"), "no target is for TensorRT"),
        (("--cluster", "auto"), "--cluster auto is for a fleet"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    crowdrt, tiny, tmp_path, monkeypatch, options, problem
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.toml").write_text(STORE + BOX)
    answer = crowdrt("build", tiny.onnx, *options)
    assert answer.code == 1
    assert problem in answer.err
    assert "fix:" in answer.err


# the store


@pytest.fixture
def engine(tiny):
    """A built engine: key and files."""
    (path, *_) = (path for path in tiny.store.iterdir() if path.name.endswith("-onnxruntime"))
    return read_built(path).key, {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_is_published_is_found(store, engine):
    key, files = engine
    place = place_of(store)
    assert read_finished(place, key, "onnxruntime", None) is None
    publish(place, key, "onnxruntime", files)
    assert read_finished(place, key, "onnxruntime", None) == files


def test_a_published_folder_is_an_engine(tmp_path, engine):
    key, files = engine
    publish(place_of(str(tmp_path / "engines")), key, "onnxruntime", files)
    assert open_engine(tmp_path / "engines" / f"{key}-onnxruntime").info is not None


def damage(place, folder, name, content):
    place.remove(f"{folder}/{name}")
    if content is not None:
        place.write(f"{folder}/{name}", content)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (MANIFEST, None, ""),
        (MANIFEST, b"{", "its manifest is damaged"),
        (MANIFEST, b"[]", "its manifest is damaged"),
        (MANIFEST, b"[" * 100_000, "its manifest is damaged"),
        (MANIFEST, b'{"identity": {}, "sha256": ""}', "its manifest is that of"),
        ("engine.onnx", None, "engine.onnx is missing"),
        ("engine.onnx", b"cut", "engine.onnx is missing, was altered or cut short"),
    ],
)
def test_what_is_damaged_is_no_engine_and_is_written_again(
    store, engine, name, content, said, capsys
):
    key, files = engine
    place, folder = place_of(store), f"{key}-onnxruntime"
    publish(place, key, "onnxruntime", files)
    damage(place, folder, name, content)
    assert read_finished(place, key, "onnxruntime", None) is None
    assert said in capsys.readouterr().err
    publish(place, key, "onnxruntime", files)
    assert read_finished(place, key, "onnxruntime", None) == files


@pytest.mark.parametrize("before", ["nothing", "damaged"])
def test_a_run_that_is_killed_between_file_and_manifest_leaves_no_engine(
    store, engine, before, monkeypatch
):
    key, files = engine
    place = place_of(store)
    if before == "damaged":
        publish(place, key, "onnxruntime", {**files, "engine.onnx": b"cut"})
    write = type(place).write

    def killed(self, name, content):
        if name.endswith(MANIFEST) and content:
            raise KeyboardInterrupt
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(type(place), "write", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(place, key, "onnxruntime", files)
    assert place.read(f"{key}-onnxruntime/engine.onnx") == files["engine.onnx"]
    assert not place.read(f"{key}-onnxruntime/{MANIFEST}")
    assert read_finished(place, key, "onnxruntime", None) is None
    publish(place, key, "onnxruntime", files)
    assert read_finished(place, key, "onnxruntime", None) == files


def test_another_run_that_writes_the_same_engine_is_noticed(store, engine, monkeypatch):
    key, files = engine
    place = place_of(store)
    write = type(place).write

    def beside(self, name, content):
        write(self, name, content)
        if name.endswith(MANIFEST) and content:
            write(self, f"{key}-onnxruntime/engine.onnx", b"of another run")

    monkeypatch.setattr(type(place), "write", beside)
    with pytest.raises(EngineError, match="another run writes it"):
        publish(place, key, "onnxruntime", files)


def leave_a_loop(path):
    path.symlink_to(path.name)


def leave_a_long_file(path):
    with path.open("wb") as file:
        file.truncate(shared.MAX_TEXT_BYTES + 1)


BLOCKED = [
    (Path.mkdir, "is no ordinary file"),
    (os.mkfifo, "is no ordinary file"),
    (leave_a_loop, "cannot be opened: Too many levels of symbolic links"),
    (leave_a_long_file, "has more than 16,777,216 bytes"),
]


@pytest.mark.parametrize(("leave", "why"), BLOCKED)
def test_a_manifest_that_cannot_be_read_does_not_end_the_others(give, tmp_path, leave, why):
    other = Target(name="other", resource="BOX", num_threads=2)
    fleet = fleet_of(BOX_TARGET, other, store=str(tmp_path / "engines"))
    there, _ = give(Nodes(BOX_NODE), fleet)
    (manifest := Path(there.where) / MANIFEST).unlink()
    leave(manifest)
    rows = give(Nodes(BOX_NODE), fleet)
    assert [row.status for row in rows] == ["failed", "found"]
    assert why in rows[0].why
    assert rows[0].fix


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "out of memory"),
        (RecursionError("too deep"), "RecursionError: too deep"),
    ],
)
def test_what_a_store_raises_does_not_end_the_others(give, bucket, monkeypatch, error, why):
    look = yard.read_finished
    raised = []

    def look_once(*args):
        if not raised:
            raised.append(error)
            raise error
        return look(*args)

    monkeypatch.setattr(yard, "read_finished", look_once)
    other = Target(name="other", resource="BOX", num_threads=2)
    nodes = Nodes(BOX_NODE)
    rows = give(nodes, fleet_of(BOX_TARGET, other, store=bucket))
    assert [row.status for row in rows] == ["failed", "built"]
    assert why in rows[0].why
    assert nodes.killed == 2


def test_a_file_in_a_bucket_that_is_too_long_is_not_read(bucket, monkeypatch):
    place = place_of(bucket)
    for name, limit in ((MANIFEST, "MAX_TEXT_BYTES"), ("engine.plan", "MAX_BYTES")):
        monkeypatch.setattr(shared, limit, 8)
        place.write(name, b"eight at")
        assert place.read(name) == b"eight at"
        place.write(name, b"nine byte")
        with pytest.raises(EngineError, match="more than 8 bytes"):
            place.read(name)


def test_a_store_in_which_nothing_may_be_removed_takes_an_engine_again(store, engine, monkeypatch):
    key, files = engine
    place = place_of(store)
    publish(place, key, "onnxruntime", {**files, "engine.onnx": b"cut"})

    def refuse(*_):
        raise EngineError("nothing may be removed", fix="ask")

    monkeypatch.setattr(type(place), "remove", refuse)
    publish(place, key, "onnxruntime", files)
    assert read_finished(place, key, "onnxruntime", None) == files


def test_a_signature_of_what_was_there_before_does_not_stay(store, engine):
    key, files = engine
    place = place_of(store)
    publish(place, key, "onnxruntime", {**files, SIGNATURE: b"of another manifest"})
    assert read_finished(place, key, "onnxruntime", None)[SIGNATURE] == b"of another manifest"
    publish(place, key, "onnxruntime", files)
    assert not place.read(f"{key}-onnxruntime/{SIGNATURE}")
    assert read_finished(place, key, "onnxruntime", None) == files


def test_a_bucket_that_is_not_there_is_not_made(monkeypatch):
    made = []

    def pipe_file(place, _):
        if not made:
            raise FileNotFoundError(place)

    def buckets(url, **_):
        there = SimpleNamespace(pipe_file=pipe_file, mkdir=lambda place, **_: made.append(place))
        return there, url.partition("://")[2]

    monkeypatch.setattr("fsspec.core.url_to_fs", buckets)
    with pytest.raises(CrowdRTError, match=r"s3://typo/\.\w+ does not exist"):
        shared.check_writable(shared.Remote("s3://typo"))
    assert not made
    shared.Remote("s3://bucket").write("key-onnxruntime/engine.onnx", b"whole")
    assert made == ["bucket/key-onnxruntime"]


# what is done with nodes


def test_engines_are_built_once(give, store, tiny):
    nodes, fleet = Nodes(BOX_NODE), fleet_of(BOX_TARGET, store=store)
    (built,) = give(nodes, fleet)
    assert (built.status, built.host is not None, built.num_bytes > 0) == ("built", True, True)
    (found,) = give(nodes, fleet)
    assert (found.status, found.key, found.where) == ("found", built.key, built.where)
    assert nodes.killed == len(nodes.asked)  # nothing keeps a node


def test_a_damaged_engine_is_built_again(give, bucket):
    fleet = fleet_of(BOX_TARGET, store=bucket)
    (built,) = give(Nodes(BOX_NODE), fleet)
    place = f"{built.where}/engine.onnx"
    whole = fsspec.filesystem("memory").cat_file(place)
    fsspec.filesystem("memory").pipe_file(place, b"cut")
    (again,) = give(Nodes(BOX_NODE), fleet)
    assert again.status == "built"
    assert again.why.endswith("had built it before")  # in its own store, which is whole
    assert fsspec.filesystem("memory").cat_file(place) == whole


def test_what_lies_beside_an_engine_on_its_node_is_not_sent(give, tmp_path, monkeypatch):
    build = yard.Builder.build
    sent = []

    def keep(self):
        built = build(self)
        sent.extend(built.files)
        return built

    monkeypatch.setattr(yard.Builder, "build", keep)
    give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, store=str(tmp_path / "one")))
    assert sorted(sent) == [MANIFEST, "engine.onnx"]
    (folder,) = default_store().glob("*-onnxruntime")
    (stray := folder / ".nfs0001").write_bytes(b"open")
    sent.clear()
    give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, store=str(tmp_path / "other")))
    assert stray.exists()
    assert sorted(sent) == [MANIFEST, "engine.onnx"]


def test_a_node_cannot_name_what_is_written(give, tmp_path, monkeypatch):
    build = yard.Builder.build

    def add(self):
        built = build(self)
        return replace(built, files={**built.files, "../../outside": b"!", ".nfs0001": b"!"})

    monkeypatch.setattr(yard.Builder, "build", add)
    (row,) = give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, store=str(tmp_path / "engines")))
    written = sorted(str(path.relative_to(row.where)) for path in Path(row.where).iterdir())
    assert written == [MANIFEST, "engine.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]
    assert row.num_bytes == sum(path.stat().st_size for path in Path(row.where).iterdir())


def test_two_targets_of_one_engine_share_it(give, bucket):
    other = Target(name="other", resource="BOX", num_threads=1)
    rows = give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, other, store=bucket))
    assert [row.status for row in rows] == ["built", "found"]
    assert rows[0].where == rows[1].where


def test_what_takes_a_gpu_takes_all_of_it(give, bucket):
    nodes = Nodes(GPU_NODE, BOX_NODE)
    give(nodes, fleet_of(GPU_TARGET, BOX_TARGET, store=bucket))
    common = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
    assert nodes.asked == [
        {"num_gpus": 1, "resources": {"T4": 1}, **common},
        {"num_gpus": 0, "resources": {"BOX": 1}, **common},
    ]


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        ([], "no node has T4: nodes have nothing"),
        ([BOX_NODE], "no node has T4: nodes have BOX, CPU"),
        ([{**GPU_NODE, "T4": 0.5}], "no node has T4: nodes have CPU, GPU, T4"),
        ([BOX_NODE, {"CPU": 1.0, "T4": 1.0}], "host-1 has T4, but not 1 GPU"),
        ([{"T4": 1.0}], "host-0 has T4, but not 1 CPU and 1 GPU"),
    ],
)
def test_nodes_that_can_never_build_are_not_waited_for(give, bucket, resources, problem):
    nodes = Nodes(*resources)
    (row,) = give(nodes, fleet_of(GPU_TARGET, store=bucket))
    assert (row.status, row.why) == ("failed", problem)
    assert "ray start --address HOST:PORT" in row.fix
    assert not nodes.asked


def test_a_node_that_goes_while_others_wait_for_it_is_not_waited_for(give, bucket, monkeypatch):
    nodes = Nodes(BOX_NODE)

    def wait(references, **_):
        assert nodes.there[0]["Alive"]  # and is not waited for again
        nodes.there[0]["Alive"] = False
        return [], references

    monkeypatch.setattr(nodes, "wait", wait)
    (row,) = give(nodes, fleet_of(BOX_TARGET, store=bucket))
    assert (row.status, row.why) == ("failed", "no node has BOX: nodes have nothing")
    assert nodes.killed == 1


@pytest.mark.parametrize(("lose", "status"), [(1, "built"), (2, "built"), (3, "failed")])
def test_a_lost_build_is_tried_three_times(give, bucket, lose, status):
    nodes = Nodes(BOX_NODE, lose=lose)
    (row,) = give(nodes, fleet_of(BOX_TARGET, store=bucket))
    assert row.status == status
    assert len(nodes.asked) == nodes.killed == min(lose + 1, 3)
    if status == "failed":
        assert "lost 3 times" in row.why


def test_a_node_on_which_nothing_starts_is_not_tried_again(give, bucket, monkeypatch):
    def get(_):
        error = GoneError("in its creation task\n  ModuleNotFoundError: No module named 'crowdrt'")
        error.actor_init_failed = True
        raise error

    nodes = Nodes(BOX_NODE)
    monkeypatch.setattr(nodes, "get", get)
    (row,) = give(nodes, fleet_of(BOX_TARGET, store=bucket))
    assert (row.status, len(nodes.asked)) == ("failed", 1)
    assert row.why.endswith("ModuleNotFoundError: No module named 'crowdrt'")
    assert "pip install 'crowdrt[cluster]==" in row.fix


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (EngineError("a node cannot run", fix="mend it"), "a node cannot run"),
        (OSError(28, "No space left on device", "engine.onnx"), "No space left"),
        (MemoryError(), "out of memory"),
        (RuntimeError("some mistake"), "RuntimeError: some mistake"),
        (RuntimeError("trace:\n\n  at\n it\n"), "RuntimeError: it"),
    ],
)
def test_a_build_that_fails_does_not_hold_the_others(give, bucket, monkeypatch, error, why):
    build = yard.Builder.build

    def fail(self):
        if self._order.target.name == "bad":
            raise error
        return build(self)

    monkeypatch.setattr(yard.Builder, "build", fail)
    bad = Target(name="bad", resource="BOX", num_threads=2)
    nodes = Nodes(BOX_NODE)
    rows = give(nodes, fleet_of(bad, BOX_TARGET, store=bucket))
    assert [row.status for row in rows] == ["failed", "built"]
    assert why in rows[0].why
    assert rows[0].fix
    assert len(nodes.asked) == nodes.killed == 2  # no second try


@pytest.mark.parametrize("hangs", ["start", "identify", "build"])
def test_a_node_that_does_not_say_what_its_engine_will_be_is_given_up(
    give, bucket, monkeypatch, hangs
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(yard.time, "monotonic", lambda: clock.now)
    other = Target(name="other", resource="BOX", num_threads=2)
    nodes = Nodes(BOX_NODE)
    wait, held = nodes.wait, []

    def hang(references, **_):
        clock.now += 0.4 * yard.IDENTIFY_S
        free = [call for call in references if call.name != hangs or call.actor in held]
        if not free:  # what does not end by itself ends after a day
            clock.now += 24 * 3600
            held.extend(call.actor for call in references)
            return [], references
        return wait(free)

    monkeypatch.setattr(nodes, "wait", hang)
    rows = give(nodes, fleet_of(BOX_TARGET, other, store=bucket))
    if hangs != "identify":  # to wait for a node, or to build, may take as long as it does
        assert [row.status for row in rows] == ["built", "built"]
        return
    assert [row.status for row in rows] == ["failed", "failed"]
    assert rows[0].why == "it has not said in 600 s what its engine will be"
    assert rows[0].host in rows[0].fix
    assert nodes.killed == 2


def test_a_store_that_is_away_for_a_moment_is_written_once_more(give, bucket, monkeypatch, capsys):
    write, tried = MemoryFileSystem.pipe_file, []

    def falter(self, path, value, **options):
        tried.append(path)
        if len(tried) in (1, 3):  # the probe, and the engine
            raise ConnectionError("reset by peer")
        return write(self, path, value, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", falter)
    nodes = Nodes(BOX_NODE)
    (row,) = give(nodes, fleet_of(BOX_TARGET, store=bucket))
    assert row.status == "built"
    said = capsys.readouterr().err
    assert said.count("cannot be written: reset by peer; it is written once more") == 2
    assert len(nodes.asked) == 1


def test_a_store_below_nobodys_home_is_refused_before_a_cluster_is_sought(tiny):
    with pytest.raises(CrowdRTError, match="~nobody-here/x: nobody here has that home"):
        build_for_fleet(tiny.onnx, fleet_of(BOX_TARGET, store="~nobody-here/x"))


def test_the_last_error_names_what_was_not_built_and_says_how_it_is(give, bucket):
    rows = give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, GPU_TARGET, store=bucket))
    with pytest.raises(CrowdRTError) as told:
        check_rows(rows)
    problem = told.value.problem
    assert problem == "1 of 2 engines were not built, the others are in the store: gpu"
    assert "gpu: start one: ray start" in told.value.fix  # which no table has


def test_a_fleet_takes_every_option_of_a_build_by_its_type():
    said = {"--engine", "--store"}  # by other keys of the file
    options = {
        option.opts[0]: option
        for option in get_command(app).commands["build"].params
        if option.name not in BESIDE_FLEET and option.opts[0] not in said
    }
    on_gpu, on_cpu = (
        {f"--{key}": kind for key, kind in taken.items()} for taken in (asked.ON_GPU, asked.ON_CPU)
    )
    for_trt = {name: option for name, option in options.items() if "TensorRT:" in str(option.help)}
    assert for_trt.keys() == on_gpu.keys()
    for name, kind in {**on_gpu, **on_cpu}.items():
        written = options.pop(name).type_descriptor.annotation
        assert kind is (str if written is Path else written), name
    assert all(option.help.startswith("auto:") for option in options.values()), options


def test_another_crowdrt_is_refused(give, bucket, monkeypatch):
    monkeypatch.setattr(yard, "__version__", "0.0.9")
    (row,) = give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, store=bucket))
    assert "the run 0.0.9" in row.why
    assert "crowdrt[cluster]==0.0.9" in row.fix


def test_a_store_that_takes_nothing_is_noticed_before_anything_is_built(
    give, bucket, monkeypatch, tmp_path
):
    there = give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, store=bucket))
    other = Target(name="other", resource="BOX", num_threads=2)
    monkeypatch.setattr(yard.Builder, "build", None)

    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", refuse)
    rows = give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, other, store=bucket))
    assert [row.status for row in rows] == ["found", "failed"]
    assert there[0].key == rows[0].key
    assert "cannot be written: Access Denied" in rows[1].why

    (tmp_path / "file").write_text("in the way")
    (row,) = give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, store=str(tmp_path / "file" / "engines")))
    assert "is a file, not a folder" in row.why


def test_a_file_that_is_no_network_is_refused_before_a_cluster_is_sought(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(CrowdRTError, match=r"bad\.onnx is no"):
        build_for_fleet(tmp_path / "bad.onnx", fleet_of(BOX_TARGET))


# TensorRT, by its stand-in


@pytest.fixture
def key(tmp_path):
    """A private key."""
    path = tmp_path / "key.pem"
    path.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def public_of(key):
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    path = key.with_suffix(".pub")
    path.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


def test_plans_are_signed_here_and_load_where_signatures_are_asked_for(
    give, tmp_path, key, monkeypatch, capsys
):
    installed(monkeypatch, "10.16")
    nodes, fleet = Nodes(GPU_NODE), fleet_of(GPU_TARGET, store=str(tmp_path / "engines"))
    (unsigned,) = give(nodes, fleet)
    assert unsigned.status == "built"
    assert open_engine(Path(unsigned.where)).info is not None
    assert not (Path(unsigned.where) / SIGNATURE).exists()

    monkeypatch.setenv(VERIFY_KEY, str(public_of(key)))
    with pytest.raises(EngineError, match="is not signed"):
        open_engine(Path(unsigned.where))
    capsys.readouterr()
    (signed,) = give(nodes, fleet, sign_key=key)
    assert "-tensorrt: the manifest is not signed; building it again" in capsys.readouterr().err
    assert (signed.status, signed.where) == ("built", unsigned.where)
    assert not signed.why  # what lay in the node's own store was not signed
    monkeypatch.setenv(VERIFY_KEY, str(public_of(key)))
    assert open_engine(Path(signed.where)).info is not None
    (found,) = give(nodes, fleet, sign_key=key)
    assert found.status == "found"

    (Path(signed.where) / "engine.plan").write_bytes(b"cut")
    monkeypatch.delenv(VERIFY_KEY)
    (unsigned,) = give(nodes, fleet)
    assert unsigned.status == "built"
    assert open_engine(Path(unsigned.where)).info is not None
    monkeypatch.setenv(VERIFY_KEY, str(public_of(key)))
    with pytest.raises(EngineError, match="is not signed"):  # not: altered
        open_engine(Path(unsigned.where))


def test_a_timing_cache_travels_with_the_order(give, bucket, tmp_path, monkeypatch):
    installed(monkeypatch, "10.16")
    (tmp_path / "timings").write_bytes(b"measured elsewhere")
    plan = PlanOptions(shape=parse_shape("96x128"), timing_cache=tmp_path / "timings")
    target = Target(name="gpu", resource="T4", engine="tensorrt", plan=plan)
    (row,) = give(Nodes(GPU_NODE), fleet_of(target, store=bucket))
    assert row.status == "failed"
    assert "/sent/" in row.why  # the copy in the node's store, which no GPU has measured
    assert "cannot be used" in row.why


def test_a_plan_is_built_with_the_timings_that_were_sent(give, tmp_path, monkeypatch):
    installed(monkeypatch, "10.16")
    store = str(tmp_path / "engines")
    (measured,) = give(Nodes(GPU_NODE), fleet_of(GPU_TARGET, store=store))
    (timings,) = (default_store() / TIMINGS).glob("*.timings")
    timings.rename(tmp_path / "timings")
    plan = replace(GPU_TARGET.plan, timing_cache=tmp_path / "timings")
    pinned = replace(GPU_TARGET, plan=plan)
    (row,) = give(Nodes(GPU_NODE), fleet_of(pinned, store=store))
    assert (row.status, row.why) == ("built", "")
    assert row.key != measured.key
    facts = json.loads((Path(row.where) / MANIFEST).read_text())["build"]["timings"]
    sent = (tmp_path / "timings").read_bytes().partition(b"\n")[2]
    assert facts == {"pinned": True, "before_sha256": hashlib.sha256(sent).hexdigest()}
    assert sent


def test_rows_are_json(give, bucket):
    rows = give(Nodes(BOX_NODE), fleet_of(BOX_TARGET, GPU_TARGET, store=bucket))
    built, lacking = json.loads(json.dumps([row.as_json() for row in rows]))
    assert built["name"] == "box"
    assert built["where"].startswith(bucket)
    assert lacking["why"].startswith("no node has T4")
