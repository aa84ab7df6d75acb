"""`crowdrt profile ENGINE --layers`, and the layers of a run."""

import importlib.util
import json
from pathlib import Path

import onnx
import pytest

from crowdrt.benchmarks.layers.records import read_profiles
from crowdrt.errors import BenchmarkError, CrowdRTError
from crowdrt.onnx_graph import int8_convs, layer_macs
from crowdrt.pipeline.run import RunSummary, layers_stage

SIZE = (96, 128)
ASKED = ("--layers", "--size", "96x128", "--threads", "1")
RUNTIMES = ["onnxruntime"] + ["openvino"] * (importlib.util.find_spec("openvino") is not None)


@pytest.fixture
def profiled(crowdrt, quick_race):
    return lambda *args: crowdrt("profile", *args, *ASKED, "--json").json()


def test_layers_of_an_onnx_file(profiled, tiny, tmp_path):
    path = tmp_path / "layers.jsonl"
    found = profiled(tiny.int8, "-o", path)
    model = onnx.load(tiny.int8)
    layers = {layer["name"]: layer for layer in found["layers"] if layer["macs"]}
    assert {name: layer["macs"] for name, layer in layers.items()} == layer_macs(model, SIZE)
    fused = int8_convs(model.graph)  # True: what ONNX Runtime runs in INT8
    assert True in fused.values()
    for name, layer in layers.items():
        assert layer["precision"] == ("int8" if fused.get(name) else "fp32"), name
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    assert found["layers_p50_ms"] == pytest.approx(sum(layer["ms"] for layer in found["layers"]))
    assert found["unexplained_ms"] == pytest.approx(found["whole_p50_ms"] - found["layers_p50_ms"])
    (kept,) = read_profiles(path)
    assert (kept.size, kept.num_threads, len(kept.layers)) == (SIZE, 1, len(found["layers"]))
    assert kept.peaks["operations_per_s"].keys() == {"fp32", "int8"}
    assert str(tmp_path) not in path.read_text()  # profiles may be published


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_of_a_built_engine(runtime, crowdrt, profiled, tiny):
    folder = crowdrt("build", tiny.onnx, "--engine", runtime, "--json").json()["path"]
    found = profiled(folder)
    assert found["engine"] == runtime
    convs = [layer for layer in found["layers"] if "Conv" in layer["kind"]]
    assert len(convs) == len(layer_macs(onnx.load(tiny.onnx), SIZE))
    assert all(layer["macs"] > 0 and layer["least_ms"] > 0 for layer in convs)


def test_the_table(crowdrt, tiny, quick_race):
    said = crowdrt("profile", tiny.onnx, *ASKED)
    assert said.code == 0, said.err
    heads, *lines = said.out.splitlines()
    assert heads.split() == [
        *("layer", "runs", "in", "ms", "share", "GMAC", "GMAC/s", "least", "ms", "bound", "by"),
        "roofline",
    ]
    total = next(line for line in lines if " layers " in line and "100.0%" in line)
    assert int(total.split()[0]) == lines.index(total)
    assert "without the profiler" in said.out
    assert "peaks of this machine: FP32" in said.out
    assert "1 thread:" in said.out


def refused(crowdrt, *args):
    said = crowdrt("profile", *args, "--layers")
    assert (said.code, said.out) == (1, "")
    return said.err


def test_one_engine_at_one_size_with_a_profiler(crowdrt, tiny, tmp_path):
    assert f"crowdrt profile {tiny.onnx} --layers" in refused(crowdrt, tiny.onnx, tiny.int8)
    assert "at one size, not at 2" in refused(crowdrt, tiny.onnx, "--size=96x128", "--size=64x64")
    assert "use --size 96x128" in refused(crowdrt, tiny.onnx, "--size", "90x128")
    assert "is not HEIGHTxWIDTH" in refused(crowdrt, tiny.onnx, "--size", "large")
    err = refused(crowdrt, tiny.weights)
    assert "PyTorch" in err
    assert "crowdrt export" in err
    plan = tmp_path / "0-tensorrt"
    plan.mkdir()
    (plan / "engine.json").write_text(json.dumps({"identity": {"engine": "tensorrt"}}))
    assert f"crowdrt inspect {plan}" in refused(crowdrt, plan)
    assert "no engine folder" in refused(crowdrt, tmp_path)


@pytest.mark.parametrize("where", ["profile_layers", "engine_contender"])
@pytest.mark.parametrize("kind", [BenchmarkError, CrowdRTError])  # the latter: a full disk
def test_a_run_goes_on_without_layers(where, kind, tiny_recipe, tiny, tmp_path, monkeypatch):
    def broken(*_args, **_options):
        raise kind("the layers could not be timed", fix="none")

    (tmp_path / "layers.jsonl").write_text("of an earlier run")
    monkeypatch.setattr(f"crowdrt.pipeline.profiling.{where}", broken)
    summary = RunSummary(recipe=tiny_recipe, folder=tmp_path)
    layers_stage([tiny.onnx], SIZE, tmp_path, summary, Path(tiny.store), 1)
    (stage,) = summary.stages
    assert stage["detail"] == "none: the layers could not be timed"
    assert summary.files == []
    assert not (tmp_path / "layers.jsonl").exists()
