"""`crowdrt build --engine auto`: the fastest runtime that counts rightly, chosen once."""

import json
from dataclasses import replace

import pytest

from crowdrt.benchmarks.accuracy.gates import Verdict
from crowdrt.contracts import Measurement
from crowdrt.engines.store import KINDS
from crowdrt.pipeline import choosing

pytest.importorskip("openvino")
TIMES = {"onnxruntime": 3.0, "openvino": 2.0}


@pytest.fixture
def races(monkeypatch):
    """Races that only pretend; returns the sizes that were raced at."""
    done = []

    def race(contenders, image, config):
        done.append(image.shape[1:])
        return [measurement(each.name, (TIMES[each.name],) * 3) for each in contenders]

    monkeypatch.setattr(choosing, "race", race)
    return done


def measurement(engine, samples):
    return Measurement(
        name=engine,
        network="csrnet",
        width="1/16",
        engine=engine,
        engine_version="1",
        precision="fp32",
        size=(96, 128),
        num_threads=1,
        samples_ms=samples,
        peak_mib=50.0,
        machine={},
        verdict="valid" if samples else "failed: it died",
        run_id="1",
    )


@pytest.fixture
def command(tiny, tmp_path):
    return (
        *("build", tiny.onnx, "--engine", "auto", "--images", tiny.photos, "--size", "96x128"),
        *("--threads", 1, "--store", tmp_path / "store"),
    )


def test_the_fastest_is_taken_once(crowdrt, command, races, monkeypatch):
    said = crowdrt(*command, "--json").json()
    assert (said["engine"], said["chosen_before"]) == ("openvino", False)
    assert said["path"].endswith("-openvino")
    assert [each["engine"] for each in said["candidates"]] == ["openvino", "onnxruntime"]
    assert races == [(96, 128)]
    again = crowdrt(*command, "--json").json()
    assert again["path"] == said["path"]
    assert (again["chosen_before"], again["reused"], races) == (True, True, [(96, 128)])
    monkeypatch.setitem(TIMES, "onnxruntime", 1.0)
    answer = crowdrt(*command, "--fresh")
    folder, _, first, _ = answer.out.splitlines()
    assert folder.endswith("-onnxruntime (onnxruntime)")
    assert first.split()[:2] == ["onnxruntime", "1.0"]
    assert "chosen before" in crowdrt(*command).out


def test_other_photographs_and_sizes_are_other_choices(crowdrt, command, races, tiny):
    crowdrt(*command)
    assert crowdrt(*command, "--size", "128x96", "--json").json()["chosen_before"] is False
    without = [each for each in command if each not in ("--images", tiny.photos)]
    assert crowdrt(*without, "--json").json()["chosen_before"] is False
    assert len(races) == 3


def test_what_counts_wrongly_is_out_however_fast(crowdrt, command, races, monkeypatch):
    judged = choosing.judged

    def wrong(*given):
        return judged(*given) | {"openvino": Verdict(refused="counts move by 9 people")}

    monkeypatch.setattr(choosing, "judged", wrong)
    said = crowdrt(*command, "--json").json()
    assert said["engine"] == "onnxruntime"
    out = said["candidates"][-1]
    assert (out["engine"], out["median_ms"]) == ("openvino", None)
    assert out["reason"] == "gate: counts move by 9 people"


def test_what_cannot_be_built_or_dies_in_the_race_is_out(crowdrt, command, races, monkeypatch):
    monkeypatch.setitem(KINDS, "openvino", replace(KINDS["openvino"], write=refuse))
    found = crowdrt(*command, "--json").json()
    assert (found["engine"], found["candidates"][-1]["reason"]) == ("onnxruntime", "no such CPU")
    monkeypatch.setattr(
        choosing,
        "race",
        lambda contenders, *_: [
            replace(measurement(c.name, (1.0,)), verdict="failed: it died") for c in contenders
        ],
    )
    refused = crowdrt(*command, "--fresh")
    assert (refused.code, refused.out) == (1, "")
    assert "onnxruntime: failed: it died; openvino: no such CPU" in refused.err


def refuse(*_):
    from crowdrt.errors import EngineError

    raise EngineError("no such CPU", fix="buy one")


def test_counts_are_held_against_the_file_that_is_named(crowdrt, command, races, tiny, tmp_path):
    """Another network counts other people: nothing holds the gate, and nothing is kept."""
    other = tmp_path / "other.onnx"
    assert crowdrt("export", "csrnet", "--width", "1/8", "--random", "-o", other).code == 0
    refused = crowdrt(*command, "--against", other)
    assert refused.code == 1
    assert "onnxruntime: gate: " in refused.err
    assert races == []
    assert not (tmp_path / "store" / choosing.CHOICES).exists()


def test_a_damaged_choice_is_made_again(crowdrt, command, races, tmp_path):
    crowdrt(*command)
    (kept,) = (tmp_path / "store" / choosing.CHOICES).iterdir()
    for damage in ("{", json.dumps({"candidates": [{"speed": 1}]}), "[]"):
        kept.write_text(damage)
        assert crowdrt(*command, "--json").json()["chosen_before"] is False
    assert len(races) == 4


def test_what_is_refused(crowdrt, command, tiny, tmp_path, races):
    plain = ("build", tiny.onnx, "--store", tmp_path / "store")
    for arguments, problem, fix in (
        ((*plain, "--images", tiny.photos), "chooses nothing", "--engine auto"),
        ((*plain, "--fresh"), "takes no --fresh", "--engine auto"),
        ((*command, "--shape", "96x128"), "no TensorRT options", "--engine tensorrt"),
        ((*command, "--size", "100x128"), "no multiple of", "--size"),
        ((*command, "--against", tmp_path / "none.onnx"), "none.onnx", ""),
        ((*command[:1], tmp_path / "none.onnx", *command[2:]), "none.onnx", ""),
    ):
        answer = crowdrt(*arguments)
        assert (answer.code, answer.out) == (1, ""), arguments
        assert problem in answer.err
        assert fix in answer.err
    assert races == []
