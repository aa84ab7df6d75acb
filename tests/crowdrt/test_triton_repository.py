"""`crowdrt triton`: what is written, what is kept, and what is refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from stand_in_tensorrt import installed

from crowdrt.engines.store import EngineStore
from crowdrt.errors import CrowdRTError
from crowdrt.pipeline.serving import repository
from crowdrt.pipeline.serving.config import ServingOptions, read_config
from crowdrt.pipeline.serving.containers import containers_of

TYPE = schema.DataType


@pytest.fixture
def triton(crowdrt, tmp_path):
    """Call `crowdrt triton ARGS -o repo`; its answer."""
    return lambda *args: crowdrt("triton", *args, "-o", tmp_path / "repo", "--json")


@pytest.fixture
def repo(tmp_path):
    return tmp_path / "repo"


@pytest.fixture
def other(tiny, tmp_path):
    """The tiny network with other weights."""
    model = onnx.load(tiny.onnx)
    weights = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weights.raw_data = bytes(len(weights.raw_data))
    (tmp_path / "other").mkdir()
    onnx.save(model, tmp_path / "other" / "tiny.onnx")
    return tmp_path / "other" / "tiny.onnx"


def shapes(tensors):
    return {t.name: (TYPE.Name(t.data_type), list(t.dims)) for t in tensors}


def test_a_network_becomes_two_models(triton, tiny, repo):
    models = triton(tiny.onnx, "--instances", 2, "--threads", 3).json()["models"]
    assert [(m["name"], m["outputs"], m["state"]) for m in models] == [
        ("tiny", ["count"], "new"),
        ("tiny-density", ["density", "count"], "new"),
    ]
    for name in ("tiny", "tiny-density"):
        file = repo / name / "1" / "model.onnx"
        assert file.read_bytes() == tiny.onnx.read_bytes()
        assert json.loads(Path(f"{file}.json").read_text())["made_from"]["source"] == "tiny.onnx"
    config = read_config(repo / "tiny-density" / "config.pbtxt")
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert shapes(config.input) == {"image": ("TYPE_UINT8", [3, -1, -1])}
    assert shapes(config.output) == {
        "density": ("TYPE_FP32", [1, -1, -1]),
        "count": ("TYPE_FP32", [1]),
    }
    density, count = config.output
    assert count.HasField("reshape")  # (N,) has no axis beside the batch
    assert not density.HasField("reshape")
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, group.KIND_CPU)
    assert config.parameters["intra_op_thread_count"].string_value == "3"


def test_what_is_written_is_read_by_tritons_schema(triton, tiny, repo):
    triton(tiny.onnx, "--only", "count").json()
    assert sorted(each.name for each in repo.iterdir()) == ["client.py", "tiny"]
    path = repo / "tiny" / "config.pbtxt"
    config = read_config(path)
    again = text_format.Parse(text_format.MessageToString(config), schema.ModelConfig())
    assert again == config
    path.write_text(path.read_text().replace("dims: 3", "dims: 3 axes: 4"))
    with pytest.raises(CrowdRTError, match='no field named "axes"'):
        read_config(path)
    assert 'no field named "axes"' in triton(tiny.onnx).err


def test_one_image_at_a_time_is_no_batch(triton, tiny, repo, tmp_path):
    model = onnx.load(tiny.onnx)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "one.onnx")
    triton(tmp_path / "one.onnx").json()
    config = read_config(repo / "one-density" / "config.pbtxt")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert shapes(config.input) == {"image": ("TYPE_UINT8", [1, 3, -1, -1])}
    assert shapes(config.output)["count"] == ("TYPE_FP32", [1])
    assert not any(output.HasField("reshape") for output in config.output)


def zero_points(model):
    """The types into which a graph quantizes."""
    stored = {each.name: each.data_type for each in model.graph.initializer}
    return {stored[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}


def test_int8_is_served_as_onnx_runtime_is_fast_at_it(triton, tiny, repo):
    answer = triton(tiny.int8, "--only", "count")
    assert "served as crowdrt count runs it, rewritten for ONNX Runtime's kernels" in answer.err
    (facts,) = [each["facts"] for each in json.loads(answer.out)["models"]]
    assert facts["rewritten_for_cpu"]
    served = onnx.load(repo / "tiny.int8" / "1" / "model.onnx")
    assert onnx.TensorProto.UINT8 not in zero_points(onnx.load(tiny.int8))
    assert onnx.TensorProto.UINT8 in zero_points(served)
    before = onnx.load(tiny.int8).metadata_props
    assert [p.value for p in served.metadata_props] == [p.value for p in before]
    assert "warning" not in answer.err  # 7-bit weights saturate nowhere


def test_weights_beside_a_file_travel_in_it(triton, tiny, repo, tmp_path):
    onnx.save(
        onnx.load(tiny.onnx), tmp_path / "apart.onnx", save_as_external_data=True,
        location="apart.data", size_threshold=0,
    )  # fmt: skip
    triton(tmp_path / "apart.onnx", "--only", "count").json()
    model = onnx.load(repo / "apart" / "1" / "model.onnx", load_external_data=False)
    assert all(len(t.raw_data) for t in model.graph.initializer)
    assert sorted(p.name for p in (repo / "apart" / "1").iterdir()) == [
        "model.onnx",
        "model.onnx.json",
    ]


def test_an_engine_for_a_cpu_is_served_as_its_portable_file(triton, tiny, repo, tmp_path):
    engine = EngineStore(tmp_path / "store").build(tiny.onnx, num_threads=2).path
    refused = triton(engine)
    assert refused.code == 1
    assert "holds a graph that was optimised for this machine; tiny.onnx" in refused.err
    assert f"crowdrt triton {engine} --onnx FOLDER -o repo/" in refused.err
    assert not repo.exists()
    answer = triton(engine, "--onnx", tiny.root)
    assert "is bound to this machine: Triton is given" in answer.err
    answer.json()
    assert (repo / "tiny" / "1" / "model.onnx").read_bytes() == tiny.onnx.read_bytes()
    config = read_config(repo / "tiny" / "config.pbtxt")
    assert config.parameters["intra_op_thread_count"].string_value == "2"  # as it was built


def test_the_working_folder_is_searched(triton, tiny, tmp_path, monkeypatch):
    engine = EngineStore(tmp_path / "store").build(tiny.onnx).path
    monkeypatch.chdir(tiny.root)
    assert [m["source"] for m in triton(engine).json()["models"]] == ["tiny.onnx"] * 2


@pytest.fixture
def plan(crowdrt, tiny, monkeypatch):
    """Build the tiny network's plan with the stand-in for TensorRT; its folder."""
    installed(monkeypatch, "10.16")

    def build(*options):
        return Path(
            crowdrt("build", tiny.onnx, "--engine", "tensorrt", *options, "--json").json()["path"]
        )

    return build


def test_a_plan_says_which_tensorrt_it_needs(triton, plan, repo, monkeypatch):
    folder = plan("--shape", "96x128")

    def elsewhere():
        raise AssertionError("a repository is written without the GPU of the plan")

    monkeypatch.setattr("crowdrt.engines.trt.building.build.open_device", elsewhere)
    (model, _) = triton(folder).json()["models"]
    assert model["backend"] == "tensorrt"
    file = repo / "tiny" / "1" / "model.plan"
    assert file.read_bytes() == (folder / "engine.plan").read_bytes()
    facts = json.loads(file.with_name("model.plan.json").read_text())["facts"]
    assert facts["needs"]["gpu"] == "Stand-in GPU"
    assert facts["needs"]["tensorrt"].startswith("10.16")
    assert facts["containers"] == []  # nobody has published one
    assert facts["matrix"].startswith("https://docs.nvidia.com/")
    config = read_config(repo / "tiny" / "config.pbtxt")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 0)
    assert shapes(config.input) == {"image": ("TYPE_UINT8", [1, 3, 96, 128])}
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert "intra_op_thread_count" not in config.parameters


def test_a_plan_for_many_sizes_takes_one_image_at_a_time(triton, plan, repo):
    triton(plan("--shape", "32x32:96x128:512x512", "--float-input")).json()
    config = read_config(repo / "tiny-density" / "config.pbtxt")
    assert config.max_batch_size == 1  # the plan's batch axis is free, its profile is not
    assert not config.HasField("dynamic_batching")
    assert shapes(config.input) == {"image": ("TYPE_FP32", [3, -1, -1])}
    assert shapes(config.output)["density"] == ("TYPE_FP32", [1, -1, -1])


def test_a_plan_of_many_sizes_and_several_images_is_refused(triton, plan, repo):
    answer = triton(plan("--shape", "32x32:96x128:512x512", "--batch", "3"))
    assert answer.code == 1
    assert "3 images at a time, neither more nor fewer" in answer.err
    assert not repo.exists()


def test_a_plan_alone_or_altered_is_refused(triton, plan, repo, tmp_path):
    folder = plan("--shape", "96x128")
    for file in (folder / "engine.plan", shutil.copy(folder / "engine.plan", tmp_path)):
        answer = triton(file)
        assert answer.code == 1
        assert "is a TensorRT plan without what says its TensorRT" in answer.err
    altered = shutil.copytree(folder, tmp_path / folder.name)
    with (altered / "engine.plan").open("ab") as file:
        file.write(b"more")
    assert "was altered or cut short" in triton(altered).err
    (altered / "engine.json").unlink()
    assert "is no engine folder" in triton(altered).err
    assert not repo.exists()


def test_an_unsigned_plan_is_refused_where_signatures_are_asked(
    triton, plan, repo, tmp_path, monkeypatch
):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = plan("--shape", "96x128")
    public = Ed25519PrivateKey.generate().public_key()
    pem, kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "pub.pem").write_bytes(public.public_bytes(pem, kind))
    monkeypatch.setenv("CROWDRT_VERIFY_KEY", str(tmp_path / "pub.pem"))
    assert "is not signed" in triton(folder).err
    assert not repo.exists()


def test_containers_are_published_ones(monkeypatch):
    (one, other) = containers_of("8.6.1.2")["containers"]
    assert one["image"].endswith(":23.04-py3")
    assert other["exact"]
    assert all(each["source"] for each in (one, other))
    (near,) = containers_of("10.14.1.48")["containers"]
    assert not near["exact"]  # its fourth number is not published
    assert [c["exact"] for c in containers_of("8.6.1")["containers"]] == [False, False]
    assert containers_of("8.6.1.6")["containers"] == []


def test_what_is_there_is_kept_or_becomes_a_new_version(triton, tiny, other, repo, tree):
    triton(tiny.onnx).json()
    before = tree(repo)
    assert {m["state"] for m in triton(tiny.onnx).json()["models"]} == {"kept"}
    refused = triton(other)
    assert refused.code == 1
    assert "serves other weights, as version 1" in refused.err
    assert "--new-version" in refused.err
    assert tree(repo) == before
    tuned = repo / "tiny" / "config.pbtxt"
    tuned.write_text(tuned.read_text().replace("count: 1", "count: 7"))  # by the operator
    models = triton(other, "--new-version").json()["models"]
    assert [(m["version"], m["state"]) for m in models] == [(2, "new version")] * 2
    assert (repo / "tiny" / "2" / "model.onnx").read_bytes() == other.read_bytes()
    assert (repo / "tiny" / "1" / "model.onnx").read_bytes() == tiny.onnx.read_bytes()
    assert read_config(tuned).instance_group[0].count == 7
    again = triton(other, "--new-version")
    assert {m["state"] for m in again.json()["models"]} == {"kept"}
    assert "is kept as it is, and differs" in again.err


def test_a_model_that_clients_would_find_changed_is_refused(triton, tiny, repo, tree):
    triton(tiny.onnx, "--only", "count").json()
    config = repo / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "image"', 'name: "picture"'))
    before = tree(repo)
    answer = triton(tiny.onnx, "--new-version")
    assert answer.code == 1
    assert "serves another network: its inputs" in answer.err
    assert tree(repo) == before


def changed_facts(path, change):
    config = read_config(path)
    facts = json.loads(config.parameters["crowdrt"].string_value)
    change(facts)
    config.parameters["crowdrt"].string_value = json.dumps(facts)
    path.write_text(text_format.MessageToString(config))


def test_a_configuration_that_says_less_or_more_is_kept(triton, tiny, repo):
    triton(tiny.onnx, "--only", "count").json()
    config = repo / "tiny" / "config.pbtxt"
    changed_facts(config, lambda facts: facts.pop("fixed_size"))
    changed_facts(config, lambda facts: facts.update(new=1))
    assert triton(tiny.onnx, "--only", "count").json()["models"][0]["state"] == "kept"
    changed_facts(config, lambda facts: facts.update(stride=facts["stride"] * 2))
    assert "serves another network" in triton(tiny.onnx, "--only", "count").err


@pytest.mark.parametrize("said", [None, "no JSON", "[]"])
def test_a_configuration_of_somebody_else_is_no_version_of_ours(triton, tiny, repo, said):
    triton(tiny.onnx, "--only", "count").json()
    path = repo / "tiny" / "config.pbtxt"
    config = read_config(path)
    del config.parameters["crowdrt"]
    if said is not None:
        config.parameters["crowdrt"].string_value = said
    path.write_text(text_format.MessageToString(config))
    assert "serves another network" in triton(tiny.onnx, "--only", "count").err


def test_a_link_to_another_disk_is_written_there(triton, tiny, repo, tmp_path, monkeypatch):
    (tmp_path / "disk" / "repo").mkdir(parents=True)
    repo.symlink_to(tmp_path / "disk" / "repo")
    rename = Path.rename

    def within_a_disk(self, target):
        if self.parent.resolve().is_relative_to(tmp_path / "disk") != (
            target.parent.resolve().is_relative_to(tmp_path / "disk")
        ):
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", within_a_disk)
    triton(tiny.onnx, "--only", "count").json()
    assert repo.is_symlink()
    assert sorted(p.name for p in (tmp_path / "disk" / "repo").iterdir()) == ["client.py", "tiny"]


def test_a_repository_that_is_a_mount_point_is_refused_with_a_way_out(
    triton, tiny, repo, tmp_path, tree, monkeypatch
):
    repo.mkdir()

    def across(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", across)
    answer = triton(tiny.onnx)
    assert answer.code == 1
    assert f"fix: name a folder in it: -o '{repo}/repo'" in answer.err
    assert [p.name for p in tmp_path.rglob("*")] == ["repo"]


@pytest.mark.parametrize("new", [True, False])
def test_what_a_killed_call_left_is_removed(triton, tiny, repo, tmp_path, new):
    if not new:
        triton(tiny.onnx, "--only", "count").json()
    names = (".repo.tmp-1", ".repo-2.tmp-1", ".repo.tmp-2")
    for name in names:
        (tmp_path / name / "tiny").mkdir(parents=True)
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / names[-1])  # of a call that is at work
    triton(tiny.onnx, "--only", "count").json()
    assert sorted(p.name for p in tmp_path.iterdir()) == [names[1], names[2], "repo"]


def test_others_in_the_repository_are_left_alone(triton, tiny, repo):
    (repo / "theirs").mkdir(parents=True)
    (repo / "client.py").write_text("# mine\n")
    answer = triton(tiny.onnx)
    answer.json()
    assert sorted(p.name for p in repo.iterdir()) == ["client.py", "theirs", "tiny", "tiny-density"]
    assert (repo / "client.py").read_text() == "# mine\n"
    assert "is kept as it is, and is not the client of this crowdrt" in answer.err


@pytest.mark.parametrize("there", [True, False], ids=["in a repository", "anew"])
def test_what_fails_half_way_leaves_nothing(triton, tiny, repo, tmp_path, tree, there, monkeypatch):
    if there:
        triton(tiny.int8).json()
    before, done = tree(tmp_path), []
    rename = Path.rename

    def last_fails(self, target):
        if repo in (target, target.parent):
            done.append(target)
            if len(done) == 1 + there:
                raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", last_fails)
    answer = triton(tiny.onnx)
    assert answer.code == 1
    assert len(done) == 1 + there
    assert "No space left on device" in answer.err
    monkeypatch.undo()
    assert tree(tmp_path) == before


def test_another_process_that_is_quicker_is_not_overwritten(tiny, tmp_path, monkeypatch):
    repo = tmp_path / "repo"
    fill = repository.fill

    def meanwhile(folder, placed):
        (repo / "tiny").mkdir(parents=True, exist_ok=True)
        (repo / "tiny" / "theirs").touch()
        fill(folder, placed)

    monkeypatch.setattr(repository, "fill", meanwhile)
    with pytest.raises(CrowdRTError, match="has appeared meanwhile") as caught:
        repository.write_repository([tiny.onnx], repo, options=ServingOptions())
    assert caught.value.fix == "give the same command again"
    assert [p.name for p in tmp_path.rglob("*")] == ["repo", "tiny", "theirs"]


def test_nothing_to_serve(tmp_path):
    with pytest.raises(CrowdRTError, match="nothing to serve"):
        repository.write_repository([], tmp_path / "repo", options=ServingOptions())


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        (("ONNX", "ONNX"), "2 engines would be the model 'tiny'", "--name tiny-2"),
        (("ONNX", "INT8", "--name", "a"), "one name for 2 engines", "leave it out"),
        (("ONNX", "--name", "a b"), "'a b' cannot be a model's name", "--name student"),
        (("WEIGHTS",), "holds PyTorch weights", "crowdrt export NETWORK --weights"),
        (("ONNX", "--only", "boxes"), "--only 'boxes' is unknown", "count or density"),
        (("ONNX", "--max-batch", "0"), "--max-batch 0 serves nothing", "1 or more"),
        (("ONNX", "--instances", "-1"), "--instances -1 serves nothing", "1 or more"),
        (("nowhere.onnx",), "nowhere.onnx does not exist", "crowdrt export"),
        (("PHOTOS",), "is no engine folder", "crowdrt build"),
    ],
)
def test_what_cannot_be_served(triton, tiny, repo, arguments, problem, fix):
    files = {
        "ONNX": tiny.onnx, "INT8": tiny.int8, "WEIGHTS": tiny.weights, "PHOTOS": tiny.photos,
    }  # fmt: skip
    answer = triton(*(files.get(each, each) for each in arguments))
    assert answer.code == 1
    assert problem in answer.err
    assert fix in answer.err.partition("fix:")[2]
    assert not repo.exists()


def test_a_network_of_another_tool_is_refused(triton, tiny, repo, tmp_path):
    model = onnx.load(tiny.onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "theirs.onnx")
    assert "was not exported by crowdrt" in triton(tmp_path / "theirs.onnx").err
    assert not repo.exists()


def test_a_repository_that_cannot_be_written(crowdrt, tiny, tmp_path, tree):
    (tmp_path / "file").touch()
    for out in ("file", "file/repo"):
        before = tree(tmp_path)
        answer = crowdrt("triton", tiny.onnx, "-o", tmp_path / out)
        assert answer.code == 1
        assert "is a file, not a folder" in answer.err
        assert tree(tmp_path) == before


def test_the_missing_extra_is_named(triton, tiny, repo, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    answer = triton(tiny.onnx)
    assert answer.code == 1
    assert "pip install 'crowdrt[serve]'" in answer.err
    assert not repo.exists()


def test_models_are_shown(crowdrt, tiny, repo):
    shown = crowdrt("triton", tiny.onnx, "-o", repo)
    assert shown.code == 0
    assert "tiny-density" in shown.out
    assert "up to 4" in shown.out
