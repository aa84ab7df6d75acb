"""`crowdrt precisions`: every precision of one network, counted, timed and judged side by side."""

import csv
import io
import shutil

import pytest

from crowdrt.data.synthetic.photographs import generate
from crowdrt.errors import CalibrationError
from crowdrt.manifest import sha256_file
from crowdrt.pipeline.precision.record import methods_of

NAMES = [
    "fp32", "fp16", "int8 minmax", "int8 percentile", "int8 entropy", "int8 mse", "int8 repaired",
    "int8+fp16",
]  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    for name, seed, number in (("train", 31, 4), ("test", 32, 3)):
        generate(folder / name, num_images=number, seed=seed, size=(96, 128), people=(5, 20))
    return folder


@pytest.fixture
def command(tiny, photographs, quick_race):
    """One folder for all tests: what is made once is found again."""
    return ("precisions", tiny.onnx, "--images", photographs / "train",
            "--test", photographs / "test", "-o", photographs / "out", "--num-images", 2,
            "--size", "96x128", "--seconds", "0.1")  # fmt: skip


def test_every_precision_is_counted_and_judged(crowdrt, command, photographs, tree, tiny):
    rows = {row["name"]: row for row in crowdrt(*command, "--json").json()}
    assert list(rows) == NAMES
    fp32, entropy, minmax = rows["fp32"], rows["int8 entropy"], rows["int8 minmax"]
    assert (fp32["gate"], fp32["int8_macs"], fp32["speedup"]) == (None, 0, 1)
    assert fp32["mae"] > 0
    assert entropy["mae"] != minmax["mae"] != fp32["mae"]
    assert entropy["int8_macs"] == minmax["int8_macs"] > 0.5
    assert rows["fp16"]["mb"] < fp32["mb"]
    assert set(entropy["moved"]) == {"all", "sparse", "medium", "dense"}
    assert entropy["moved"]["all"] == pytest.approx(entropy["bias"] - fp32["bias"])
    assert (rows["fp16"]["speedup"], rows["fp16"]["int8_macs"]) == (None, 0)
    assert rows["fp16"]["gate"]["held"]
    before = tree(photographs / "out")
    again = {row["name"]: row for row in crowdrt(*command, "--json").json()}
    assert again == rows
    assert tree(photographs / "out") == before
    reported = methods_of(photographs, sha256_file(tiny.onnx))  # as of a run of this network
    assert [line.name for line in reported.lines] == [
        *("FP32, for comparison", "minmax", "percentile", "entropy", "mse", "repaired")
    ]
    assert [line.psnr_db for line in reported.lines][3] == entropy["psnr_db"] > 10
    assert reported.source == "3 photographs counted, ranges from 2 others."


def test_a_precision_that_cannot_be_made_says_why_and_the_others_go_on(
    crowdrt, command, monkeypatch
):
    def unrepairable(*_args, **_options):
        raise CalibrationError("the best choice has an error of 5 %", fix="tolerate more")

    monkeypatch.setattr("crowdrt.pipeline.precision.table.sensitivity_stage", unrepairable)
    untimed = (*command, "--seconds", 0)  # the race is the test above
    rows = {row["name"]: row for row in crowdrt(*untimed, "--json").json()}
    repaired = rows.pop("int8 repaired")
    assert (repaired["path"], repaired["mae"], repaired["gate"]["held"]) == (None, None, False)
    assert repaired["reason"] == repaired["gate"]["reason"] == "the best choice has an error of 5 %"
    assert rows["int8 entropy"]["mae"] > 0
    markdown = crowdrt(*untimed, "--markdown").out.splitlines()
    assert len(markdown) == 2 + len(NAMES)
    assert len({line.count("|") for line in markdown}) == 1
    assert markdown[2].startswith("| fp32 |")
    assert "no file: the best choice has an error of 5 %" in "\n".join(markdown)
    written = crowdrt(*untimed, "--format", "csv").out
    lines = {line["name"]: line for line in csv.DictReader(io.StringIO(written, newline=""))}
    for name, row in rows.items():
        assert float(lines[name]["mae"] or "nan") == pytest.approx(
            row["mae"] or float("nan"), nan_ok=True
        )
        assert lines[name]["bytes"] == ("" if row["bytes"] is None else str(row["bytes"]))
    assert float(lines["int8 mse"]["moved_dense"]) == rows["int8 mse"]["moved"]["dense"]
    assert lines["int8 repaired"]["reason"] == "the best choice has an error of 5 %"
    latex = crowdrt(*untimed, "--format", "latex").out
    assert "no file: the best choice has an error of 5 \\%" in latex
    assert latex.count(r" \\") == 1 + len(NAMES)


def test_what_is_in_both_folders_makes_no_ranges(crowdrt, command, photographs, tmp_path):
    copies = tmp_path / "copies"
    shutil.copytree(photographs / "test", copies)
    said = crowdrt(*command[:3], copies, *command[4:])
    assert said.code == 1
    assert "is one of the test photographs" in said.err


def test_an_int8_file_is_refused(crowdrt, command, tiny):
    said = crowdrt("precisions", tiny.int8, *command[2:])
    assert said.code == 1
    assert "is a network of precision int8" in said.err
    assert "fix: name the FP32 file" in said.err
