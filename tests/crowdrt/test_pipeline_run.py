"""`crowdrt run` end to end, and what a second run does again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crowdrt.benchmarks.accuracy.counts import CountRow
from crowdrt.contracts import Gates, Measurement, Preprocessing, Sample
from crowdrt.data.images import read_image
from crowdrt.data.synthetic.photographs import crowd_photograph
from crowdrt.errors import RecipeError
from crowdrt.manifest import sha256_file
from crowdrt.pipeline.photographs import evenly, photographs, proof_photographs, split
from crowdrt.pipeline.run import judge_gate, run_recipe

STAGES = ["photographs", "export", "calibrate", "build", "build", "count", "count", "race"]
CONTENDERS = [
    ("1", "pytorch", "fp32"),
    ("1/16", "pytorch", "fp32"),
    ("1/16", "onnxruntime", "fp32"),
    ("1/16", "onnxruntime", "int8"),
]


@pytest.fixture
def photos(tiny, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(tiny.photos, folder)
    return folder


@pytest.fixture
def exported(tiny, tmp_path):
    """The folder of a run whose export is done."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("tiny.onnx", "tiny.onnx.json"):
        shutil.copy(tiny.root / name, out / name)
    return out


@pytest.fixture
def without_race_and_report(monkeypatch):
    """Leave out what takes nearly all the time."""

    def race(contenders, image, config):
        return [
            Measurement(
                name=c.name, network=c.network, width=c.width, engine=c.engine,
                engine_version=c.engine_version, precision=c.precision, size=image.shape[1:],
                num_threads=config.num_threads, samples_ms=(1.0,), peak_mib=1.0, machine={},
                verdict="valid", run_id="1", sha256=c.sha256,
            )
            for c in contenders
        ]  # fmt: skip

    monkeypatch.setattr("crowdrt.pipeline.run.race", race)
    monkeypatch.setattr("crowdrt.pipeline.run.NUM_OVERLAYS", 1)
    monkeypatch.setattr("crowdrt.pipeline.run.write_run_report", lambda out: out / "report.html")


def reused(summary) -> list[str]:
    """The stages that did nothing; of two stages of one name, the second has a `2`."""
    names = []
    for stage in summary["stages"]:
        name = stage["name"]
        names.append((f"{name}2" if name in [n for n, _ in names] else name, stage["reused"]))
    return [name for name, again in names if again]


def test_a_run_and_another(crowdrt, tiny_recipe, photos, tmp_path, tree, quick_race):
    out = tmp_path / "out"
    command = ("run", "tiny", "--data", photos, "--out", out)
    first = crowdrt(*command, "--json").json()
    assert [stage["name"] for stage in first["stages"]] == [*STAGES, "overlays"]
    assert not any(stage["reused"] for stage in first["stages"])
    assert set(first["accuracy"]) == {"fp32", "int8"}
    assert first["accuracy"]["fp32"]["num_images"] == 2
    assert first["gate"].startswith("INT8 gate ")
    rows = first["table"]
    assert [(row["width"], row["engine"], row["precision"]) for row in rows] == CONTENDERS
    assert all(row["cpu_s"] > 0 and row["size"] == [96, 128] for row in rows)
    assert all(row["paper_flops"] > 0 for row in rows)

    assert first["report"] == str(out / "report.html")
    page = out / "report.html"
    assert page.read_text().count("data:image/jpeg;base64,") == 2
    overlays = sorted((out / "overlays").iterdir())
    assert [path.name for path in overlays] == ["crowd_0001.jpg", "crowd_0002.jpg"]
    for path in overlays:
        with Image.open(path) as image:
            assert np.asarray(image).std() > 10
    run = json.loads((out / "run.json").read_text())
    assert run["source"] == "photos"
    assert [Path(entry["path"]).name for entry in run["files"]] == [
        *("tiny.onnx", "tiny.int8.onnx", "counts.fp32.json", "counts.int8.json", "records.jsonl"),
    ]
    assert (out / "table.md").read_text().startswith("### 96x128")

    assert {name.split("/")[0] for name in tree(tmp_path)} == {"photos", "out"}
    assert not [name for name in tree(out) if ".tmp-" in name]

    page.unlink()
    assert crowdrt("report", out, "--json").json() == {"path": str(page)}
    assert "1/16" in page.read_text()


def test_a_second_run_reuses_all_and_says_so(
    crowdrt, tiny_recipe, photos, exported, without_race_and_report
):
    command = ("run", "tiny", "--data", photos, "--out", exported)
    first = crowdrt(*command, "--json").json()
    assert reused(first) == ["export"]
    second = crowdrt(*command, "--json").json()
    assert reused(second) == [
        *("export", "calibrate", "build", "build2", "count", "count2", "race"),
    ]
    assert second["table"] == first["table"]
    assert second["accuracy"] == first["accuracy"]

    said = crowdrt(*command)
    assert said.err.count("(nothing had changed)") == 7
    assert "FP32: MAE" in said.out
    assert "INT8 gate" in said.out
    assert said.out.splitlines()[-1] == str(exported / "report.html")


def test_only_what_depends_on_a_change_is_done_again(
    crowdrt, tiny_recipe, photos, exported, without_race_and_report
):
    out = exported

    def finished(*options):
        return crowdrt("run", "tiny", "--data", photos, "--out", out, *options, "--json").json()

    assert reused(finished()) == ["export"]
    builds = ("build", "build2")
    # another photograph to count, at the place of the old one
    with Image.open(photos / "crowd_0002.jpg") as image:
        pixels = np.asarray(image)[::-1]
    Image.fromarray(pixels).save(photos / "crowd_0002.jpg")
    assert reused(finished()) == ["export", "calibrate", *builds, "race"]

    # a corrected annotation
    (photos / "crowd_0002.jpg.heads.json").write_text('{"heads": [[1, 2]]}')
    summary = finished()
    assert reused(summary) == ["export", "calibrate", *builds, "race"]
    counts = json.loads((out / "counts.fp32.json").read_text())
    assert [row["annotated"] for row in counts][-1] == 1

    # another photograph to calibrate on: another INT8 network, another engine, another race
    with Image.open(photos / "crowd_0003.jpg") as image:
        pixels = 255 - np.asarray(image)
    Image.fromarray(pixels).save(photos / "crowd_0003.jpg")
    assert reused(finished()) == ["export", "build", "count"]

    # another thread count: other figures
    assert reused(finished("--threads", 1)) == ["export", "calibrate", *builds, "count", "count2"]

    # a damaged file is made again, and from the same inputs becomes the same
    (out / "tiny.int8.onnx").write_bytes(b"damaged")
    assert "calibrate" not in reused(again := finished("--threads", 1))
    assert {"export", *builds, "count", "count2", "race"} == set(reused(again))


def test_a_recipe_may_have_a_precision_in_its_name(
    tiny_recipe, photos, tmp_path, without_race_and_report
):
    recipe = replace(tiny_recipe, name="tiny.int8.b", precisions=("fp32",))
    out = tmp_path / "out"
    summary = run_recipe(recipe, data=photos, out=out, num_images=1, store=None, num_threads=0)
    assert list(summary.counts) == ["fp32"]
    assert (out / "counts.fp32.json").is_file()
    assert not (out / "counts.int8.json").exists()


def test_a_run_without_int8(tiny_recipe, photos, exported, without_race_and_report):
    recipe = replace(tiny_recipe, precisions=("fp32",))
    summary = run_recipe(recipe, data=photos, out=exported, num_images=1, store=None, num_threads=0)
    assert [row.precision for row in summary.rows] == ["fp32"] * 3
    assert summary.gate == "INT8 gate: not judged, there is no annotation to compare with"
    assert len(summary.counts["fp32"]) == 1


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ({"fp32": [10.0, 30.0], "int8": [10.1, 30.1]}, "held"),
        ({"fp32": [10.0, 30.0], "int8": [14.0, 40.0]}, "FAILED"),
        ({"fp32": [20.0, 20.0], "int8": [20.0, 20.0]}, "held"),
        ({"fp32": [20.0, 20.0], "int8": [20.0, 21.0]}, "FAILED"),
        ({"fp32": [10.0, 30.0]}, "not judged"),
    ],
)
def test_the_gate_can_fail(counts, verdict, tiny_recipe):
    rows = {
        precision: [CountRow(image="a.jpg", count=count, annotated=20) for count in numbers]
        for precision, numbers in counts.items()
    }
    recipe = replace(tiny_recipe, gates=Gates(int8_mae_increase=0.02))
    assert verdict in judge_gate(recipe, rows)


def samples(number):
    return [Sample(image=Path(f"{k}.jpg"), heads=None) for k in range(number)]


def written(folder, contents):
    """One file per text; they stand for photographs, which nobody decodes here."""
    paths = [folder / f"{k}.jpg" for k in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    return [Sample(image=path, heads=None) for path in paths]


@pytest.mark.parametrize("number", [2, 3, 4, 10, 40])
def test_no_photograph_is_both_calibrated_on_and_counted(number, tmp_path):
    photos = split("photos", written(tmp_path, [str(k) for k in range(number)]), 60)
    calibration, test = ({s.image for s in part} for part in (photos.calibration, photos.test))
    assert calibration
    assert test
    assert not calibration & test
    assert len(calibration | test) == number


def test_a_copy_of_a_counted_photograph_is_not_calibrated_on(tmp_path):
    photos = split("photos", written(tmp_path, ["a", "b", "c", "d", "a", "e"]), 60)
    assert [s.image.stem for s in photos.calibration] == ["3"]
    assert [s.image.stem for s in photos.test] == ["1", "2", "4", "5"]


def test_nothing_but_copies_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="photos holds the same pictures several times"):
        split("photos", written(tmp_path, ["a", "a"]), 60)


@pytest.mark.data
def test_no_counted_photograph_of_shanghaitech_is_calibrated_on(data_root, tmp_path):
    photos = photographs(data_root, tmp_path, num_test=10**6)
    assert len(photos.calibration) == 300 + 400 - 1  # Part A's train IMG_121 is test IMG_98
    assert len(photos.test) == 182 + 316
    calibration, test = (
        {sha256_file(s.image) for s in part} for part in (photos.calibration, photos.test)
    )
    assert not calibration & test


def test_one_photograph_is_not_enough():
    with pytest.raises(RecipeError, match="photos holds 1 photograph"):
        split("photos", samples(1), 60)


def test_a_few_of_many_are_spread_evenly():
    assert [s.image.stem for s in evenly(samples(9), 3)] == ["0", "4", "8"]
    assert len(evenly(samples(9), 9)) == len(evenly(samples(9), 20)) == 9
    assert [s.image.stem for s in evenly(samples(9), 1)] == ["0"]


def test_a_grey_network_is_proven_on_the_grey_that_it_will_see(tmp_path):
    grey = Preprocessing(channels="grey", mean=(127.5,), std=(128.0,), stride=8)
    proof = proof_photographs(grey)[0]
    pixels, _ = crowd_photograph(0, size=proof.shape[-2:], people_range=(20, 60))
    path = tmp_path / "crowd.png"
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    assert proof.std() > 10
    np.testing.assert_array_equal(proof[0], read_image(path, "grey"))


def test_the_source_of_the_current_folder_has_a_name(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.photos)
    assert photographs(Path(), tmp_path, num_test=2).source == "photos"
