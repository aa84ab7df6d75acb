"""A file tells by which photographs it was made, and none of them is counted into its errors."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from crowdrt.contracts import HASH_DIGITS, IMAGENET, GraphInfo
from crowdrt.manifest import read_manifest, sha256_file
from crowdrt.onnx_file import graph_info, set_info

INFO = GraphInfo(network="csrnet", width="1/4", preprocessing=IMAGENET, density_stride=8)


def test_a_file_says_by_which_photographs_it_was_made(tiny):
    document = read_manifest(tiny.int8)
    files = document["facts"]["images"]["files"]
    info = graph_info(tiny.int8)
    assert len(files) == len(info.calibrated_on) == 2
    assert all(info.was_calibrated_on(file["sha256"]) for file in files)
    others = {sha256_file(path) for path in tiny.photos.glob("*.jpg")}
    others -= {file["sha256"] for file in files}
    assert len(others) == 2
    assert not any(info.was_calibrated_on(each) for each in others)
    assert graph_info(tiny.onnx).calibrated_on == ()


def test_what_is_noted_is_added_to_in_any_order():
    first, second = "a" * 64, "0" * 64
    noted = INFO.with_calibration([first]).with_calibration([second, first])
    assert noted == INFO.with_calibration([second, first])
    assert noted.calibrated_on == ("0" * HASH_DIGITS, "a" * HASH_DIGITS)
    assert GraphInfo.from_json(noted.to_json(), source="a file") == noted
    assert replace(noted, calibrated_on=()) == INFO


def test_photographs_that_made_the_file_are_in_no_error(crowdrt, tiny):
    rows = crowdrt("count", tiny.int8, tiny.photos, "--json").json()
    info = graph_info(tiny.int8)
    by_hash = [info.was_calibrated_on(sha256_file(Path(row["image"]))) for row in rows]
    assert [row["calibrated_on"] for row in rows] == by_hash
    assert sum(by_hash) == 2
    errors = [row["count"] - row["annotated"] for row in rows if not row["calibrated_on"]]
    last = crowdrt("count", tiny.int8, tiny.photos).out.splitlines()[-1]
    assert last.startswith(f"MAE {np.abs(errors).mean():.2f}, ")
    assert last.endswith("over 2 annotated photographs; left out: 2 that it was calibrated on")
    whole = crowdrt("count", tiny.onnx, tiny.photos).out.splitlines()[-1]
    assert whole.endswith("over 4 annotated photographs")


def test_another_name_or_a_built_engine_does_not_hide_them(crowdrt, tiny, tmp_path):
    [made_by] = [
        path
        for path in tiny.photos.glob("crowd_0000.jpg")
        if graph_info(tiny.int8).was_calibrated_on(sha256_file(path))
    ]
    renamed = tmp_path / "renamed.jpg"
    shutil.copy(made_by, renamed)
    shutil.copy(f"{made_by}.heads.json", f"{renamed}.heads.json")
    network = tmp_path / "moved.onnx"  # its manifest stayed behind
    shutil.copy(tiny.int8, network)
    engine = crowdrt("build", network, "--json").json()["path"]
    for file in (network, engine):
        [row] = crowdrt("count", file, renamed, "--json").json()
        assert row["calibrated_on"]
        assert crowdrt("count", file, renamed).out.splitlines()[-1] == (
            "no error is stated: the network was calibrated on every annotated photograph"
        )


def test_a_cast_file_tells_by_which_photographs_its_biases_were_fitted(crowdrt, tiny, tmp_path):
    out = tmp_path / "tiny.fp16.onnx"
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in tiny.photos.glob("crowd_000[01]*"):
        shutil.copy(path, folder)
    crowdrt("cast", tiny.onnx, "--fp16", "--images", folder, "--tolerance", 1, "-o", out)
    rows = crowdrt("count", out, tiny.photos, "--json").json()
    assert [row["calibrated_on"] for row in rows] == [True, True, False, False]


def test_a_file_that_does_not_tell_is_named(crowdrt, tiny, tmp_path):
    model = onnx.load(tiny.int8)
    set_info(model, replace(graph_info(tiny.int8), calibrated_on=()))
    onnx.save(model, tmp_path / "old.onnx")
    answer = crowdrt("count", tmp_path / "old.onnx", tiny.photos, "--json")
    assert not any(row["calibrated_on"] for row in answer.json())
    assert "does not say on which photographs it was calibrated" in answer.err


def test_against_a_reference(crowdrt, tiny):
    found = crowdrt("count", tiny.int8, tiny.photos, "--against", tiny.onnx, "--json").json()
    rows = {Path(row["image"]).name: row for row in found["photographs"]}
    by_itself = crowdrt("count", tiny.onnx, tiny.photos, "--json").json()
    assert [row["reference"] for row in rows.values()] == [row["count"] for row in by_itself]
    judged = [row for row in rows.values() if not row["calibrated_on"]]
    assert len(judged) == 2
    moved = [row["count"] - row["reference"] for row in judged]
    assert any(moved)
    total = found["comparison"]["total"]
    assert total["num_images"] == 2
    assert total["shift"] == pytest.approx(np.mean(moved))
    errors = [abs(row["count"] - row["annotated"]) for row in judged]
    assert total["engine"]["mae"] == pytest.approx(np.mean(errors))
    errors = [abs(row["reference"] - row["annotated"]) for row in judged]
    assert total["reference"]["mae"] == pytest.approx(np.mean(errors))
    assert [each["name"] for each in found["comparison"]["bins"]] == ["sparse", "medium"]
    assert found["comparison"]["sums"]["mean"] == pytest.approx(np.abs(moved).mean())
    values = [row["psnr_db"] for row in judged]
    assert found["comparison"]["psnr_db"]["lowest"] == pytest.approx(min(values))
    assert 5 < min(values) < 100
    assert all(0 < row["ssim"] < 1 for row in judged)
    assert found["gate"]["held"] is (not found["gate"]["breaches"])


def test_against_itself_nothing_moves(crowdrt, tiny):
    answer = crowdrt("count", tiny.onnx, tiny.photos, "--against", tiny.weights)
    assert "differs by 0.0" in answer.out
    assert "default gate" not in answer.out  # float32 has none
    lines = [line.split() for line in answer.out.splitlines()]
    assert [line[0] for line in lines[6:10]] == ["sparse", "medium", "dense", "all"]
    assert "MAE" in answer.out.splitlines()[-1]


def test_a_comparison_for_people(crowdrt, tiny):
    answer = crowdrt("count", tiny.int8, tiny.photos, "--against", tiny.onnx)
    head = answer.out.splitlines()[0].split()
    assert head == ["photograph", "people", "reference", "annotated"]
    assert "the default gate of this precision: " in answer.out
    assert "density maps: PSNR " in answer.out
    assert "left out: 2 that" in answer.out


def test_one_memory_limit_is_not_for_two_engines(crowdrt, tiny):
    command = ("count", tiny.int8, tiny.photos, "--against", tiny.onnx)
    answer = crowdrt(*command, "--max-memory", "1GiB")
    assert answer.code == 1
    assert "--max-memory is what one engine may take" in answer.err
    strips = crowdrt(*command, "--tile-rows", 64, "--json").json()
    whole = crowdrt(*command, "--json").json()
    for one, other in zip(strips["photographs"], whole["photographs"], strict=True):
        assert one["reference"] == pytest.approx(other["reference"], abs=1e-3)
