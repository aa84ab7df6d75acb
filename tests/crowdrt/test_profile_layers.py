"""`crowdrt profile ENGINE --layers`, and the layers of a run."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from crowdrt.benchmarks.layers.records import (
    LayerProfile,
    layer_costs,
    profile_line,
    read_profiles,
)
from crowdrt.benchmarks.timing.records import record_line
from crowdrt.contracts import Measurement
from crowdrt.engines.layers.layer import EngineLayer
from crowdrt.errors import BenchmarkError, CrowdRTError
from crowdrt.manifest import manifest_path, sha256_file
from crowdrt.onnx_file import graph_info, set_info
from crowdrt.onnx_graph import int8_convs, layer_macs
from crowdrt.pipeline.profiling import cells, totals
from crowdrt.pipeline.run import RunSummary, layers_stage

SIZE = (96, 128)
ASKED = ("--layers", "--size", "96x128", "--threads", "1")
RUNTIMES = ["onnxruntime"] + ["openvino"] * (importlib.util.find_spec("openvino") is not None)


KNOWN = {
    "name": "a", "network": "csrnet", "width": "1", "engine": "onnxruntime", "engine_version": "1",
    "precision": "fp32", "size": SIZE, "num_threads": 1, "machine": {}, "verdict": "valid",
}  # fmt: skip
A_ROW = Measurement(samples_ms=(1.0,), peak_mib=1.0, **KNOWN)
A_PROFILE = LayerProfile(
    sha256="ab", when="now", whole_ms=(1.0,), profiled_ms=(1.0,), layers=(),
    peaks={"cpu": "A", "bytes_per_s": 1e9, "operations_per_s": {"fp32": 1e11}}, **KNOWN,
)  # fmt: skip


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


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_of_a_built_engine_by_its_onnx_file(runtime, crowdrt, profiled, tiny):
    folder = crowdrt("build", tiny.onnx, "--engine", runtime, "--json").json()["path"]
    found = profiled(folder, "--onnx", tiny.onnx)
    layers = {layer["name"]: layer["macs"] for layer in found["layers"] if layer["macs"]}
    assert layers == layer_macs(onnx.load(tiny.onnx), SIZE)
    err = refused(crowdrt, folder, "--onnx", tiny.int8)
    assert f"built from an ONNX file of sha256 {sha256_file(tiny.onnx)[:16]}" in err
    assert sha256_file(tiny.int8)[:16] in err
    assert "told by itself" in refused(crowdrt, tiny.onnx, "--onnx", tiny.int8)
    said = crowdrt("profile", folder, "--onnx", tiny.onnx)
    assert said.code == 1
    assert f"crowdrt profile {folder} --layers --onnx {tiny.onnx}" in " ".join(said.err.split())


def test_a_built_engine_of_one_size_is_profiled_at_that(crowdrt, quick_race, tiny, tmp_path):
    model, path = onnx.load(tiny.onnx), tmp_path / "fixed.onnx"
    set_info(model, replace(graph_info(tiny.onnx), fixed_size=SIZE))
    onnx.save(model, path)
    folder = crowdrt("build", path, "--json").json()["path"]
    found = crowdrt("profile", folder, "--layers", "--threads", "1", "--json").json()
    assert tuple(found["size"]) == SIZE


@pytest.mark.parametrize("option", [(), ("--layers",)], ids=["races", "layers"])
def test_records_of_another_kind_are_not_added_to(option, crowdrt, tiny, tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    path.write_text((record_line(A_ROW) if option else profile_line(A_PROFILE)) + "\n")
    before = path.read_bytes()
    for name in ("measuring.race", "profiling.profile_layers"):
        monkeypatch.setattr(f"crowdrt.pipeline.{name}", None)  # nothing is measured for nothing
    said = crowdrt("profile", tiny.onnx, "--size", "96x128", *option, "-o", path)
    assert (said.code, path.read_bytes()) == (1, before)
    assert "nothing is added to a file that holds something else" in said.err
    assert "-o OTHER.jsonl" in said.err


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


def test_a_layer_in_a_precision_without_a_peak_is_shown_as_unknown():
    known = {
        "name": "a", "kind": "Conv", "kernel": None, "nodes": (), "input_shape": None,
        "output_shape": None, "macs": 5 * 10**8, "num_bytes": 10**6, "samples_ms": (20.0,),
    }  # fmt: skip
    fp32, odd = EngineLayer(precision="fp32", **known), EngineLayer(precision="fp16", **known)
    costs = layer_costs(replace(A_PROFILE, layers=(fp32, odd)))
    assert [cells(cost)[-3:] for cost in costs] == [("10.000", "operations", "50%"), ("", "?", "")]
    assert totals(costs)[-3:] == ("?", "", "?")
    assert totals(costs[:1])[-3:] == ("10.000", "", "50%")


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

    path = tmp_path / "layers.jsonl"
    for earlier in (path, manifest_path(path)):
        earlier.write_text("of an earlier run")
    monkeypatch.setattr(f"crowdrt.pipeline.profiling.{where}", broken)
    summary = RunSummary(recipe=tiny_recipe, folder=tmp_path)
    layers_stage([tiny.onnx], SIZE, tmp_path, summary, Path(tiny.store), 1)
    (stage,) = summary.stages
    assert stage["detail"] == "none: the layers could not be timed"
    assert summary.files == []
    assert not path.exists()
    assert not manifest_path(path).exists()
