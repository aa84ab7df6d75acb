"""A file tells by which photographs it was made, and none of them is counted into its errors."""

from dataclasses import replace

from crowdrt.contracts import HASH_DIGITS, IMAGENET, GraphInfo
from crowdrt.manifest import read_manifest, sha256_file
from crowdrt.onnx_file import graph_info

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
