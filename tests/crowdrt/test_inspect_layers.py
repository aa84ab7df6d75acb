"""`crowdrt inspect` of an engine that TensorRT built: its layers, their times and the roofline."""

import json
import shutil
from pathlib import Path

import pytest

from crowdrt.errors import EngineError
from crowdrt.pipeline.layers import layers_of, show_layers

SAMPLES = Path(__file__).parents[1] / "engines" / "inspector_samples"
PEAKS = {"gpu": "A", "bytes_per_s": 1e12, "operations_per_s": {"fp16": 2e14}}


@pytest.fixture
def folder(tmp_path):
    shutil.copy(SAMPLES / "fp16.json", tmp_path / "inspector.json")
    return tmp_path


def shown(folder, capsys):
    capsys.readouterr()
    show_layers(layers_of(folder))
    return capsys.readouterr().out


def test_precisions_alone(folder, capsys):
    found = layers_of(folder)
    assert found["layer_precisions"] == {"fp16": 3}
    assert (found["layers_ms"], found["least_ms"]) == (None, None)
    heads, *lines = shown(folder, capsys).splitlines()
    assert heads.split() == ["layer", "runs", "in", "reads", "writes", "G", "MACs"]
    assert len(lines) == 5
    assert "least" not in heads


def test_with_times_and_peaks(folder, capsys):
    shutil.copy(SAMPLES / "fp16.profile.json", folder / "profile.json")
    (folder / "peaks.json").write_text(json.dumps(PEAKS))
    found = layers_of(folder)
    assert found["layers_ms"] == pytest.approx(0.308224)
    assert 0 < found["least_ms"] < found["layers_ms"]
    text = shown(folder, capsys)
    assert "roofline" in text
    assert "operations" in text
    row = next(line for line in text.splitlines() if line.startswith("Conv_3 + Relu_4"))
    assert row.split()[3:] == [
        "fp16", "fp16", "fp16", "0.0532", "17.3%", "3.699", "0.0370", "operations", "69%",
    ]  # fmt: skip


def test_an_engine_without_a_record_has_no_layers(tmp_path):
    assert layers_of(tmp_path) == {}


@pytest.mark.parametrize("name", ["inspector.json", "profile.json", "peaks.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_damaged_record_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(EngineError, match=r"inspector|profile|peaks"):
        layers_of(folder)


def test_the_command_shows_them(crowdrt, folder):
    identity = {"engine": "tensorrt", "engine_version": "8.6.1", "onnx_sha256": "0" * 64}
    (folder / "engine.json").write_text(json.dumps({"identity": identity, "sha256": "1" * 64}))
    (folder / "engine.plan").write_bytes(b"a plan")
    (found,) = crowdrt("inspect", folder, "--json").json()
    assert found["runs_here"] is False
    assert [row["precision"] for row in found["layers"]] == ["fp32", "fp16", "fp16", "fp16", "fp16"]
    assert "Conv_3 + Relu_4" in crowdrt("inspect", folder).out
