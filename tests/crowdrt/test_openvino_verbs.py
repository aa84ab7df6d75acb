"""The verbs on engines of OpenVINO, and its rows in a race."""

import importlib.util
from pathlib import Path

import pytest

from crowdrt.benchmarks.labels import engine_label
from crowdrt.pipeline import measuring

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs crowdrt[openvino]"
)


@pytest.fixture
def built(crowdrt, tiny):
    """The folders of the tiny network's FP32 and INT8 engines."""
    return [
        Path(crowdrt("build", path, "--engine", "openvino", "--json").json()["path"])
        for path in (tiny.onnx, tiny.int8)
    ]


def test_build_and_count(crowdrt, tiny, built):
    assert all(folder.name.endswith("-openvino") for folder in built)
    again = crowdrt("build", tiny.onnx, "--engine", "openvino")
    assert again.out == f"{built[0]} (was built before)\n"
    ours, reference = (
        [row["count"] for row in crowdrt("count", each, tiny.photos, "--json").json()]
        for each in (built[0], tiny.onnx)
    )
    assert max(reference) - min(reference) > 0.01
    assert ours == pytest.approx(reference, abs=0.02)


def test_an_unknown_engine(crowdrt, tiny):
    answer = crowdrt("build", tiny.onnx, "--engine", "tensorflow")
    assert answer.code == 1
    assert "'tensorflow' is unknown" in answer.err
    assert "use onnxruntime or openvino" in answer.err


@pytest.mark.usefixtures("quick_race")
def test_profile_races_both_engines(crowdrt, tiny, built):
    command = ("profile", tiny.onnx, *built, "--size", "96x128", "--seconds", 0)
    rows = crowdrt(*command, "--json").json()
    assert [row["engine"] for row in rows] == ["onnxruntime", "openvino", "openvino"]
    assert [row["precision"] for row in rows] == ["fp32", "fp32", "int8"]
    assert rows[1]["name"] == f"{built[0].name}: csrnet 1/16 openvino fp32"
    versions = [row["engine_version"] for row in rows]
    assert versions[1] == versions[2] != versions[0]
    assert all(row["samples_ms"] for row in rows)
    assert len({row["sha256"] for row in rows}) == 3


def test_a_table_races_what_is_installed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "student_files", lambda *_: (tiny.onnx, tiny.int8))
    monkeypatch.setattr(measuring, "can_compile", lambda: True)
    raced, folders = measuring.family("csrnet", tmp_path, tmp_path / "store", num_threads=1)
    assert [(c.engine, c.precision) for c in raced] == [
        ("pytorch", "fp32"),
        ("pytorch", "fp32"),
        ("pytorch-channels-last", "fp32"),
        ("pytorch-compiled", "fp32"),
        ("pytorch-compiled", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
    ]
    assert len({contender.name for contender in raced}) == len(raced)
    assert [folder.name.partition("-")[2] for folder in folders] == [
        "onnxruntime", "onnxruntime", "openvino", "openvino"
    ]  # fmt: skip
    assert engine_label("openvino") == "OpenVINO"
    monkeypatch.setattr(measuring, "can_compile", lambda: False)
    raced, _ = measuring.family("csrnet", tmp_path, tmp_path / "store", num_threads=1)
    assert "pytorch-compiled" not in {contender.engine for contender in raced}


def test_doctor_knows_it(crowdrt):
    entries = crowdrt("doctor", "--json").json()["capabilities"]
    (entry,) = [entry for entry in entries if entry["extra"] == "openvino"]
    assert entry["ready"]
    assert entry["versions"]["openvino"][:2] == "20"
