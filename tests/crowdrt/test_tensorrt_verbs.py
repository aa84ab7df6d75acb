"""The verbs on TensorRT engines, with the stand-ins of tests/engines for TensorRT and a GPU."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from stand_in_tensorrt import installed

from crowdrt.pipeline import doctor

BUILD = ("--engine", "tensorrt", "--shape", "32x32:96x128:512x512", "--json")


@pytest.fixture
def built(crowdrt, tiny, monkeypatch):
    """The folder of the tiny network's plan."""
    installed(monkeypatch, "10.16")
    return Path(crowdrt("build", tiny.onnx, *BUILD).json()["path"])


def test_build_and_count(crowdrt, tiny, built):
    assert built.name.endswith("-tensorrt")
    assert crowdrt("build", tiny.onnx, *BUILD).json()["reused"]
    ours, reference = (
        [row["count"] for row in crowdrt("count", each, tiny.photos, "--json").json()]
        for each in (built, tiny.onnx)
    )
    assert max(reference) - min(reference) > 0.01
    assert ours == pytest.approx(reference, abs=0.02)


def test_inspect_says_how_it_was_built(crowdrt, built):
    (found,) = crowdrt("inspect", built, "--json").json()
    assert found["runs_here"]
    assert found["identity"]["machine"]["gpu"] == "Stand-in GPU"
    assert found["build"]["build"]["route"] == "10: strongly typed"
    shown = crowdrt("inspect", built).out
    assert "gpu Stand-in GPU, compute_capability 9.0" in shown
    assert "10: strongly typed" in shown


def test_inspect_says_why_it_does_not_run_without_a_gpu(crowdrt, built, monkeypatch):
    from crowdrt.engines.cuda.device import no_device
    from crowdrt.engines.trt.building import build

    def none():
        raise no_device("no driver")

    monkeypatch.setattr(build, "open_device", none)
    (found,) = crowdrt("inspect", built, "--json").json()
    assert not found["runs_here"]
    assert "no CUDA device answers" in found["why_not"]


def test_doctor_names_the_gpu_and_the_route(crowdrt, monkeypatch):
    _, device = installed(monkeypatch, "11.4")
    monkeypatch.setattr(doctor, "open_device", lambda: device)
    found = crowdrt("doctor", "--json").json()["gpu"]
    assert found["ready"]
    assert found["route"] == "11: strongly typed, the only mode"
    assert "Stand-in GPU" in crowdrt("doctor").out


def test_doctor_says_what_is_missing_beside_a_gpu(crowdrt, monkeypatch):
    _, device = installed(monkeypatch)
    monkeypatch.setattr(doctor, "open_device", lambda: device)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = crowdrt("doctor", "--json").json()["gpu"]
    assert not found["ready"]
    assert found["reason"].startswith(
        "Stand-in GPU, compute capability 9.0 for TensorRT 8.6, 10, 11, but tensorrt could not be"
    )
    assert "crowdrt[tensorrt]" in found["fix"]
    assert "crowdrt[tensorrt]" in crowdrt("doctor").out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--shape", "96x128"), "onnxruntime takes no options"),
        (("--sign-key", "key.pem"), "onnxruntime takes no options"),
        (("--engine", "tensorrt", "--shape", "1x2x3"), "is not HEIGHTxWIDTH"),
        (("--engine", "tensorrt", "--shape", "96x128:32x32:64x64"), "does not grow"),
        (("--engine", "tensorrt", "--workspace", "lots"), "--workspace 'lots' is no memory"),
        (("--engine", "tensorrt", "--level", 9), "optimisation level 9 is unknown"),
        (("--engine", "tensorrt", "--batch", 0), "batch=0 holds no image"),
    ],
)
def test_wrong_options_are_refused(crowdrt, tiny, options, problem):
    answer = crowdrt("build", tiny.onnx, *options)
    assert answer.code == 1
    assert problem in answer.err
    assert "fix:" in answer.err
