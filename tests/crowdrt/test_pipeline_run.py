"""`crowdrt run` end to end, and what a second run does again."""

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crowdrt.benchmarks.accuracy.maps import MAX_PSNR_DB
from crowdrt.benchmarks.layers.records import LayerProfile
from crowdrt.calibration.fp16.cast import CastConfig
from crowdrt.contracts import Gate, Measurement, Preprocessing, Sample
from crowdrt.data.images import read_image
from crowdrt.data.synthetic.photographs import crowd_photograph
from crowdrt.engines.machine import num_cores
from crowdrt.engines.store import KINDS
from crowdrt.errors import RecipeError
from crowdrt.manifest import sha256_file
from crowdrt.pipeline import run
from crowdrt.pipeline.networks import origin_of_recipe
from crowdrt.pipeline.photographs import evenly, photographs, proof_photographs, split
from crowdrt.pipeline.reporting import write_run_report
from crowdrt.pipeline.run import run_recipe

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

    def profile_layers(engines, image, **options):
        return [
            LayerProfile(
                name=c.name, network=c.network, width=c.width, engine=c.engine,
                engine_version=c.engine_version, precision=c.precision, size=image.shape[1:],
                num_threads=1, sha256=c.sha256, when="now", machine={}, verdict="valid",
                peaks={"cpu": "A", "bytes_per_s": 1e9, "operations_per_s": {"fp32": 1e11}},
                whole_ms=(1.0,), profiled_ms=(1.0,), layers=(),
            )
            for c, _, _ in engines
        ]  # fmt: skip

    monkeypatch.setattr("crowdrt.pipeline.run.race", race)
    monkeypatch.setattr("crowdrt.pipeline.profiling.profile_layers", profile_layers)
    monkeypatch.setattr("crowdrt.pipeline.run.NUM_OVERLAYS", 1)
    monkeypatch.setattr("crowdrt.pipeline.run.write_run_report", no_report)


def no_report(out):
    return out / "report.html"


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
    assert [stage["name"] for stage in first["stages"]] == [*STAGES, "layers", "overlays"]
    assert not any(stage["reused"] for stage in first["stages"])
    assert set(first["accuracy"]) == {"fp32", "int8"}
    assert first["accuracy"]["fp32"]["num_images"] == 2
    assert first["gates"]["int8"]["held"]
    assert first["against_fp32"]["int8"]["total"]["num_images"] == 2
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
        "layers.jsonl",
    ]
    assert sorted(path.name for path in out.glob("*.png")) == [
        *("counts.png", "latency-96x128.png", "layers-96x128.png", "roofline-96x128.png"),
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
        *("export", "calibrate", "build", "build2", "count", "count2", "race", "layers"),
    ]
    assert second["table"] == first["table"]
    assert second["accuracy"] == first["accuracy"]

    said = crowdrt(*command)
    assert said.err.count("(nothing had changed)") == 8
    assert "FP32: MAE" in said.out
    assert "INT8 gate" in said.out
    assert said.out.splitlines()[-1] == str(exported / "report.html")


@pytest.mark.parametrize("changed", ["engine", "race", "layers"])
def test_what_would_run_otherwise_today_is_timed_again(
    changed, crowdrt, tiny_recipe, photos, exported, without_race_and_report, monkeypatch
):
    command = ("run", "tiny", "--data", photos, "--out", exported, "--json")
    crowdrt(*command)
    if changed == "engine":  # ours are built otherwise than before, of the same files
        monkeypatch.setitem(KINDS, "onnxruntime", replace(KINDS["onnxruntime"], format=99))
    elif changed == "race":
        monkeypatch.setattr("crowdrt.pipeline.races.SCHEMA", 99)
    else:
        monkeypatch.setattr("crowdrt.pipeline.profiling.SCHEMA", 99)
    others = {
        "engine": set(),
        "race": {"build", "build2", "count", "count2", "layers"},
        "layers": {"build", "build2", "count", "count2", "race"},
    }
    assert set(reused(crowdrt(*command).json())) == {"export", "calibrate", *others[changed]}


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
    assert reused(finished()) == ["export", "calibrate", *builds, "race", "layers"]

    # a corrected annotation
    (photos / "crowd_0002.jpg.heads.json").write_text('{"heads": [[1, 2]]}')
    summary = finished()
    assert reused(summary) == ["export", "calibrate", *builds, "race", "layers"]
    counts = json.loads((out / "counts.fp32.json").read_text())
    assert [row["annotated"] for row in counts][-1] == 1

    # another photograph to calibrate on: another INT8 network, another engine, another race
    with Image.open(photos / "crowd_0003.jpg") as image:
        pixels = 255 - np.asarray(image)
    Image.fromarray(pixels).save(photos / "crowd_0003.jpg")
    assert reused(finished()) == ["export", "build", "count"]

    # another thread count: other figures
    threads = 1 if num_cores() > 1 else 2
    counted = ["export", "calibrate", *builds, "count", "count2"]
    assert reused(finished("--threads", threads)) == counted

    # a damaged file is made again, and from the same inputs becomes the same
    (out / "tiny.int8.onnx").write_bytes(b"damaged")
    assert "calibrate" not in reused(again := finished("--threads", threads))
    done = {"export", *builds, "count", "count2", "race", "layers"}
    assert done == set(reused(again))


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
    assert summary.verdicts == {}
    summary.check()
    assert len(summary.counts["fp32"]) == 1


def test_a_race_in_which_one_broke_down_is_reused_and_that_is_said(
    tiny_recipe, tmp_path, without_race_and_report, monkeypatch, capsys
):
    race, raced = run.race, []

    def breaking(*given):
        raced.append(1)
        first, *others = race(*given)
        return [replace(first, verdict="failed: out of memory"), *others]

    monkeypatch.setattr(run, "race", breaking)
    student = origin_of_recipe(tiny_recipe)
    for _ in range(2):
        summary = run.RunSummary(recipe=tiny_recipe, folder=tmp_path)
        run.race_stage(tiny_recipe, student, {}, tmp_path, summary, None, 1)
    assert len(raced) == len(tiny_recipe.sizes) == 1
    said = capsys.readouterr().err
    assert said.count("failed: out of memory") == 1
    assert f"to repeat it: rm {tmp_path / 'records.jsonl'}" in said


def test_a_precision_that_loses_too_much_is_stopped_and_the_others_go_on(
    crowdrt, tiny_recipe, photos, exported, without_race_and_report, monkeypatch
):
    strict = replace(tiny_recipe, gates={"int8": Gate(psnr_db=MAX_PSNR_DB)})
    monkeypatch.setattr("crowdrt.recipes.RECIPES", (strict,))
    monkeypatch.setattr("crowdrt.pipeline.run.write_run_report", write_run_report)
    command = ("run", "tiny", "--data", photos, "--out", exported)
    answer = crowdrt(*command, "--json")
    assert answer.code == 1
    assert "1 of 2 precisions lost more than recipe 'tiny' tolerates. INT8: " in answer.err
    assert "dB PSNR in the median, at least 150.0 is tolerated" in answer.err

    found = json.loads(answer.out)
    verdict = found["gates"]["int8"]
    assert verdict["held"] is False
    assert {breach["limit"] for breach in verdict["breaches"]} >= {"psnr_db"}
    rows = {(row["engine"], row["precision"]): row for row in found["table"]}
    assert len(found["table"]) == len(CONTENDERS)
    stopped, other = rows["onnxruntime", "int8"], rows["onnxruntime", "fp32"]
    assert stopped["cpu_s"] is stopped["cpu_ratio"] is None
    assert stopped["verdict"] == f"failed: gate: {verdict['reason']}"
    assert (other["cpu_s"], other["verdict"]) == (0.001, "valid")
    assert found["accuracy"]["int8"]["num_images"] == 2

    table = (exported / "table.md").read_text()
    assert f"ONNX Runtime INT8: failed: gate: {verdict['reason']}" in table
    page = (exported / "report.html").read_text()
    assert page.count('<span class="chip failed">failed</span>') == 2  # the table, the accuracy
    assert html.escape(verdict["reason"]) in page
    run = json.loads((exported / "run.json").read_text())
    assert run["gates"]["int8"]["reason"] == verdict["reason"]
    assert len(run["overlays"]) == 1

    monkeypatch.setattr("crowdrt.pipeline.run.write_run_report", no_report)  # it has been read
    again = crowdrt(*command)
    assert again.code == 1
    assert f"INT8 gate: FAILED: {verdict['reason']}" in again.out
    assert again.out.splitlines()[-1] == str(exported / "report.html")
    assert "race         3 contenders (nothing had changed)" in again.err

    monkeypatch.setattr("crowdrt.recipes.RECIPES", (tiny_recipe,))
    assert "race" not in reused(crowdrt(*command, "--json").json())


def test_float16_is_counted_and_not_timed(
    crowdrt, tiny_recipe, photos, exported, without_race_and_report, monkeypatch
):
    recipe = replace(tiny_recipe, precisions=("fp32", "fp16", "int8"))
    monkeypatch.setattr("crowdrt.recipes.RECIPES", (recipe,))
    monkeypatch.setattr(
        "crowdrt.pipeline.precision.forms.CAST", CastConfig(num_images=2, tolerance=1)
    )
    command = ("run", "tiny", "--data", photos, "--out", exported)
    first = crowdrt(*command, "--json").json()
    assert list(first["accuracy"]) == ["fp32", "fp16", "int8"]
    assert [row["precision"] for row in first["table"]] == ["fp32", "fp32", "fp32", "int8"]
    moved = {p: first["against_fp32"][p]["sums"]["mean"] for p in ("fp16", "int8")}
    assert 0 < moved["fp16"] < moved["int8"]
    psnr = {p: first["against_fp32"][p]["psnr_db"]["median"] for p in ("fp16", "int8")}
    assert psnr["int8"] + 10 < psnr["fp16"] < 120
    assert (exported / "tiny.fp16.onnx").is_file()
    second = crowdrt(*command, "--json").json()
    names = ("export", "calibrate", "cast", "build", "build2", "count", "count2", "race", "layers")
    assert set(reused(second)) == set(names)


def test_a_cast_that_is_refused_stops_its_row_alone(
    crowdrt, tiny_recipe, photos, exported, without_race_and_report, monkeypatch
):
    recipe = replace(tiny_recipe, precisions=("fp32", "int8", "int8+fp16"))
    monkeypatch.setattr("crowdrt.recipes.RECIPES", (recipe,))
    monkeypatch.setattr("crowdrt.pipeline.run.write_run_report", write_run_report)
    answer = crowdrt("run", "tiny", "--data", photos, "--out", exported, "--json")
    assert answer.code == 1  # all of a CSRNet is in INT8: nothing is left to cast
    found = json.loads(answer.out)
    assert found["gates"]["int8"]["held"]
    refused = found["gates"]["int8+fp16"]
    assert not refused["held"]
    assert refused["reason"] == refused["refused"]
    assert list(found["accuracy"]) == ["fp32", "int8"]
    assert html.escape(refused["reason"]) in (exported / "report.html").read_text()
    assert refused["reason"] in answer.err


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
