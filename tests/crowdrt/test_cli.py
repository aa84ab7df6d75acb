"""Every verb with good input: what it prints, what it writes, and what it does not do again."""

import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from crowdrt.benchmarks.tables.printed import printed_cost
from crowdrt.benchmarks.timing.race import Contender
from crowdrt.engines.machine import num_cores
from crowdrt.onnx_file import graph_info


def test_doctor_says_what_is_there(crowdrt):
    findings = crowdrt("doctor", "--json").json()
    assert set(findings) == {"machine", "threads", "int8", "capabilities", "gpu"}
    needed = [entry for entry in findings["capabilities"] if entry["extra"] != "openvino"]
    assert all(entry["ready"] for entry in needed)
    shown = crowdrt("doctor")
    assert shown.code == 0
    assert "count and build on the CPU" in shown.out
    assert findings["gpu"]["reason"] in shown.out


def test_doctor_says_what_is_missing(crowdrt, monkeypatch):
    monkeypatch.setattr(
        "crowdrt.pipeline.doctor.CAPABILITIES", (("draw", "report", ("json", "no_such_library")),)
    )
    (entry,) = crowdrt("doctor", "--json").json()["capabilities"]
    assert entry["missing"] == ["no_such_library"]
    assert "pip install 'crowdrt[report]'" in crowdrt("doctor").out


def test_recipes(crowdrt):
    rows = crowdrt("recipes", "--json").json()
    assert {"name": "csrnet-quarter", "network": "csrnet", "width": "1/4"}.items() <= rows[
        0
    ].items()
    assert "csrnet-quarter  csrnet at width 1/4" in crowdrt("recipes").out


def test_recipes_are_found_by_words(crowdrt):
    rows = crowdrt("recipes", "Table 6", "BL", "cpu", "--json").json()
    assert [row["name"] for row in rows] == [
        *("skt-6-bl-cpu", "skt-6-bl-none-cpu", "skt-6-bl-transfer-cpu"),
    ]
    refused = crowdrt("recipes", "skt", "nonsense")
    assert refused.code == 1
    assert "no recipe has skt and nonsense" in refused.err


def test_synthesize(crowdrt, tmp_path, tree):
    command = ("synthesize", "-o", tmp_path / "p", "--num-images", 2, "--size", "320x352")
    rows = crowdrt(*command, "--json").json()
    assert [Path(row["image"]).name for row in rows] == ["crowd_0000.jpg", "crowd_0001.jpg"]
    for row in rows:
        heads = json.loads(Path(row["image"] + ".heads.json").read_text())["heads"]
        assert row["annotated"] == len(heads) >= 50
        with Image.open(row["image"]) as image:
            assert image.size == (352, 320)
    before = tree(tmp_path)
    total = sum(row["annotated"] for row in rows)
    assert crowdrt(*command).out == f"2 photographs with {total} people in {tmp_path / 'p'}\n"
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("people", "fewest", "most"), [("3-9", 3, 9), ("20", 20, 20)])
def test_synthesize_as_many_people_as_asked_for(crowdrt, tmp_path, people, fewest, most):
    command = ("synthesize", "-o", tmp_path, "--num-images", 2, "--size", "128x160")
    rows = crowdrt(*command, "--people", people, "--json").json()
    assert all(fewest <= row["annotated"] <= most for row in rows)


def test_too_many_people_for_the_size_come_with_a_command_that_works(crowdrt, tmp_path):
    command = ("synthesize", "-o", tmp_path, "--num-images", 1, "--size", "128x160")
    refused = crowdrt(*command)
    assert refused.code == 1
    people = re.search(r"--people (\S+),", refused.err)
    assert people is not None
    assert crowdrt(*command, "--people", people[1]).code == 0


def test_import_of_arrays_and_checkpoints(crowdrt, tmp_path, tiny):
    import torch

    from crowdrt.models import build_model
    from crowdrt.models.weights_info import describe_weights

    torch.save(build_model("csrnet", Fraction(1, 16)).state_dict(), tmp_path / "old.pth")
    out = tmp_path / "new.safetensors"
    answer = crowdrt(
        "import", tmp_path / "old.pth", "--network", "csrnet", "--width", "1/16", "-o", out,
        "--json",
    )  # fmt: skip
    assert answer.json()["path"] == str(out)
    assert str(describe_weights(out)) == "csrnet at width 1/16"
    assert str(tmp_path) not in Path(f"{out}.json").read_text()  # manifests are published


def test_export_answers_once_and_reuses(crowdrt, tmp_path, tiny, monkeypatch):
    out = tmp_path / "new" / "tiny.onnx"
    command = ("export", "csrnet", "--weights", tiny.weights, "-o", out)
    made = crowdrt(*command, "--json")
    assert made.json()["reused"] is False
    assert "simplif" in made.err  # what people should know goes to stderr
    assert graph_info(out).width == "1/16"
    monkeypatch.setattr("crowdrt.pipeline.networks.Origin.build", None)  # needs PyTorch, and time
    assert crowdrt(*command, "--json").json() == made.json() | {"reused": True}
    assert crowdrt(*command).out == f"{out} (nothing had changed)\n"


@pytest.mark.parametrize("damage", ["{}", '{"made_from": []}', '{"made_from": {"weights": "x"}}'])
def test_an_export_whose_manifest_is_damaged_is_made_again(damage, tmp_path, tiny):
    from crowdrt.pipeline.stages import exported_before

    shutil.copy(tiny.onnx, tmp_path / "tiny.onnx")
    (tmp_path / "tiny.onnx.json").write_text(damage)
    assert exported_before(tmp_path / "tiny.onnx", {}) is None


def test_export_for_one_size_and_by_recipe(crowdrt, tmp_path, tiny_recipe):
    out = tmp_path / "fixed.onnx"
    crowdrt("export", "tiny", "--size", "96x128", "--input", "float32", "-o", out, "--json").json()
    (image,) = onnx.load(out).graph.input
    assert [axis.dim_value for axis in image.type.tensor_type.shape.dim] == [1, 3, 96, 128]
    assert graph_info(out).normalised_input


def test_a_recipe_takes_other_weights_of_its_width(tiny_recipe, tiny):
    from crowdrt.pipeline.networks import Origin, origin_named

    width = tiny_recipe.width
    own = Origin(network="csrnet", width=width, weights=tiny.weights)
    random = Origin(network="csrnet", width=width, weights=None)
    assert origin_named("tiny", width=None, path=None, random=False) == own
    assert origin_named("tiny", width=width, path=None, random=False) == own
    assert origin_named("tiny", width=None, path=tiny.weights, random=False) == own
    assert origin_named("tiny", width=None, path=None, random=True) == random
    assert origin_named("csrnet", width=None, path=tiny.weights, random=False) == own


def test_complexity_prints_what_the_paper_prints(crowdrt):
    command = ("complexity", "csrnet", "--width", "1/4", "--size", "576x864", "--size", "2032x2912")
    rows = crowdrt(*command, "--json").json()
    keys = ["network", "width", "size", "params", "macs", "paper_flops"]
    assert [list(row) for row in rows] == [keys, keys]
    assert [(r["network"], r["width"], r["size"]) for r in rows] == [
        ("csrnet", "1/4", [576, 864]),
        ("csrnet", "1/4", [2032, 2912]),
    ]
    assert all(isinstance(row[key], int) for row in rows for key in keys[3:])
    for row in rows:
        printed = printed_cost("csrnet", "1/4", tuple(row["size"]))
        assert f"{row['paper_flops'] / 1e9:.2f}" == f"{printed.flops_g:.2f}"
    text = crowdrt(*command)
    assert text.code == 0
    assert "csrnet 1/4 at 2032x2912" in text.out.splitlines()[1]


def test_complexity_has_a_default_size(crowdrt):
    (row,) = crowdrt("complexity", "mcnn", "--json").json()
    assert (row["width"], row["size"]) == ("1", [576, 864])


def test_calibrate(crowdrt, tmp_path, tiny):
    out = tmp_path / "tiny.int8.onnx"
    command = ("calibrate", tiny.onnx, "--images", tiny.photos, "--num-images", 2, "-o", out)
    assert crowdrt(*command, "--json").json()["reused"] is False
    assert (graph_info(out).precision, graph_info(out).weight_bits) == ("int8", 7)
    assert crowdrt(*command, "--json").json()["reused"] is True
    assert crowdrt(*command, "--method", "minmax", "--json").json()["reused"] is False


def test_build_says_whether_it_was_built_before(crowdrt, tmp_path, tiny):
    command = ("build", tiny.onnx, "--store", tmp_path / "store")
    first, second = (crowdrt(*command, "--json").json() for _ in range(2))
    assert list(first) == ["path", "key", "reused", "seconds"]
    assert (first["reused"], second["reused"]) == (False, True)
    assert first["path"] == second["path"]
    assert crowdrt(*command).out == f"{first['path']} (was built before)\n"


def test_count_prints_a_list(crowdrt, tiny, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("crowd_0000.jpg", "crowd_0000.jpg.heads.json", "crowd_0001.jpg"):
        shutil.copy(tiny.photos / name, photos / name)
    rows = crowdrt("count", tiny.onnx, photos, "--json").json()
    assert [list(row) for row in rows] == [["image", "count", "annotated", "calibrated_on"]] * 2
    assert [row["image"] for row in rows] == [
        str(photos / "crowd_0000.jpg"),
        str(photos / "crowd_0001.jpg"),
    ]
    assert rows[0]["annotated"] >= 5
    assert rows[1]["annotated"] is None
    assert rows[0]["count"] != rows[1]["count"]


def test_count_takes_engines_and_onnx_files_alike(crowdrt, tiny):
    engine = crowdrt("build", tiny.onnx, "--json").json()["path"]
    images = [tiny.photos / f"crowd_000{k}.jpg" for k in (1, 0)]
    by_engine = crowdrt("count", engine, *images, "--json").json()
    assert by_engine == crowdrt("count", tiny.onnx, *images, "--json").json()
    assert [row["image"] for row in by_engine] == [str(image) for image in images]


def test_count_with_weights_is_the_eager_reference(crowdrt, tiny):
    by_torch = crowdrt("count", tiny.weights, tiny.photos, "--json").json()
    by_onnx = crowdrt("count", tiny.onnx, tiny.photos, "--json").json()
    counts = [row["count"] for row in by_torch]
    assert np.std(counts) > 1
    assert counts == pytest.approx([row["count"] for row in by_onnx], abs=0.02)


def test_count_for_people(crowdrt, tiny, tmp_path):
    name = "[red]" + "long " * 30 + ":cat:.jpg"
    shutil.copy(tiny.photos / "crowd_0000.jpg", tmp_path / name)
    answer = crowdrt("count", tiny.onnx, tmp_path, tiny.photos)
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[1].startswith(name)
    assert lines[2].startswith("crowd_0000.jpg")
    assert lines[-1].startswith("MAE ")
    assert lines[-1].endswith("over 4 annotated photographs")


def test_overlays_of_equal_names_do_not_overwrite_each_other(crowdrt, tiny, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(tiny.photos / "crowd_0000.jpg", tmp_path / folder / "one.jpg")
    with Image.open(tiny.photos / "crowd_0001.jpg") as image:
        image.save(tmp_path / "a" / "one.png")
    overlays = tmp_path / "overlays"
    crowdrt(
        "count", tiny.onnx, tmp_path / "a", tmp_path / "b", "--overlay", overlays, "--json"
    ).json()
    found = {path.name: path.read_bytes() for path in overlays.iterdir()}
    assert set(found) == {"one.overlay.jpg", "one-2.overlay.jpg", "one-3.overlay.jpg"}
    assert len(set(found.values())) == 2  # of one photograph the overlays are the same


def test_profile_keeps_engines_apart(crowdrt, tiny, tmp_path, quick_race):
    shutil.copy(tiny.int8, tmp_path / "tiny.onnx")  # another network under the same name
    records = tmp_path / "records.jsonl"
    command = ("profile", tiny.onnx, tmp_path / "tiny.onnx", tiny.onnx, "--size", "96x128")
    rows = crowdrt(*command, "--seconds", 0.1, "-o", records, "--threads", 1, "--json").json()
    assert [row["precision"] for row in rows] == ["fp32", "int8"]
    assert len({row["name"] for row in rows}) == 2
    for row in rows:
        assert not row["verdict"].startswith("failed"), row["verdict"]
        assert row["p50_ms"] > 0
        assert row["p50_interval_ms"] is None  # of two visits
        assert (row["p90_ms"] is None) == (len(row["samples_ms"]) < 10)
    written = records.read_text()
    assert len(written.splitlines()) == 2
    assert str(tmp_path) not in written  # records are published


def test_tails_of_few_runs_are_marked(capsys):
    from crowdrt.contracts import Measurement
    from crowdrt.pipeline.measuring import as_row, show_measurements

    samples = tuple(100.0 + i for i in range(50))
    row = Measurement(
        name="a.onnx", network="csrnet", width="1", engine="onnxruntime", engine_version="1",
        precision="fp32", size=(96, 128), num_threads=1, samples_ms=samples, peak_mib=50.0,
        machine={}, verdict="valid", runs_per_visit=5,
    )  # fmt: skip
    document = as_row(row)
    assert document["p50_interval_ms"] == [107.0, 142.0]  # of ten visits' medians 2 and 9
    assert (document["p50_ms"], document["p90_ms"], document["p99_ms"]) == (124.5, 144.1, None)
    assert document["estimates"] == ["p90_ms", "p95_ms", "p99_ms"]
    assert document["variation"] == pytest.approx(14.43 / 124.5, rel=1e-3)
    show_measurements([row])
    shown = capsys.readouterr()
    assert shown.out.split("\n")[1].split()[2:7] == ["124.5", "14.1%", "~144.1", "~146.6", "-"]
    assert "an estimate" in shown.err
    row = replace(row, samples_ms=samples * 20)
    assert as_row(row)["estimates"] == []


def test_a_contender_that_failed_has_no_figures(capsys):
    from crowdrt.contracts import Measurement
    from crowdrt.pipeline.measuring import as_row, show_measurements

    row = Measurement(
        name="[red]a.onnx", network="csrnet", width="1", engine="onnxruntime", engine_version="1",
        precision="fp32", size=(96, 128), num_threads=1, samples_ms=(), peak_mib=0.0, machine={},
        verdict="failed: [out of memory]",
    )  # fmt: skip
    assert (as_row(row)["p50_ms"], as_row(row)["p90_ms"]) == (None, None)
    show_measurements([row])
    shown = capsys.readouterr().out
    assert "[red]a.onnx" in shown
    assert "failed: [out of memory]" in shown


def test_names_stay_apart():
    from crowdrt.pipeline.counting import distinct

    assert distinct(["a", "a-2", "a", "b", "a"]) == ["a", "a-2", "a-3", "b", "a-4"]


@pytest.mark.parametrize("options", [("--json",), ("--markdown",), ()])
def test_a_table_from_records(crowdrt, skt_records, options):
    answer = crowdrt("table", "skt-8", "--records", skt_records, *options)
    assert answer.code == 0, answer.err
    if options == ("--json",):
        rows = answer.json()
        assert [(row["width"], row["engine"]) for row in rows] == [
            ("1", "pytorch"),
            ("1/4", "onnxruntime"),
        ]
        assert rows[1]["cpu_ratio"] == pytest.approx(20)
    else:
        assert "CSRNet" in answer.out
        assert "20.0" in answer.out


def test_a_table_is_not_measured_twice(crowdrt, skt_records, tmp_path, monkeypatch):
    raced = []
    built = [Path("0123-onnxruntime")]

    def family(network, folder, store, num_threads):
        rows = examples_of(network, (576, 864), 2)
        known = ("name", "network", "width", "engine", "engine_version", "precision")
        facts = [{name: getattr(row, name) for name in known} for row in rows]
        return [Contender(**fact, open=str) for fact in facts], built

    def race(contenders, image, config):
        raced.append((contenders[0].network, image.shape[1:], config.num_threads))
        run_id = f"20250101T00000{len(raced)}Z-000000"
        rows = examples_of(contenders[0].network, image.shape[1:], config.num_threads or 2)
        return [replace(row, run_id=run_id) for row in rows]

    monkeypatch.setattr("crowdrt.pipeline.measuring.family", family)
    monkeypatch.setattr("crowdrt.pipeline.races.race", race)
    command = ("table", "skt-8", "--network", "csrnet", "-o", tmp_path, "--json")
    crowdrt(*command, "--size", "576x864", "--size", "576x864").json()
    assert raced == [("csrnet", (576, 864), 0)]
    again = crowdrt(*command)
    assert len(raced) == 1
    assert "reusing run" in again.err
    others = num_cores() + 1  # 0 stands for every core
    crowdrt(*command, "--threads", others).json()  # other figures
    crowdrt(*command, "--fresh").json()
    assert [threads for *_, threads in raced] == [0, others, 0]
    built.append(Path("4567-openvino"))  # installed meanwhile, or built otherwise
    crowdrt(*command).json()
    assert len(raced) == 4
    crowdrt(*command, "--network", "bl").json()
    assert [network for network, *_ in raced[4:]] == ["bl"]


def examples_of(network, size, num_threads):
    from crowdrt.contracts import Measurement

    def row(width, engine, ms):
        return Measurement(
            name=f"{network} {width} {engine}", network=network, width=width, engine=engine,
            engine_version="1", precision="fp32", size=size, num_threads=num_threads,
            samples_ms=(ms, ms), peak_mib=100.0, machine={"cpu": "one"}, verdict="valid",
            run_id="20250101T000000Z-000000",
        )  # fmt: skip

    return [row("1", "pytorch", 2000.0), row("1/4", "onnxruntime", 100.0)]


@pytest.fixture
def skt_records(tmp_path):
    from crowdrt.benchmarks.timing.records import append_records

    path = tmp_path / "given.jsonl"
    append_records(path, examples_of("csrnet", (576, 864), 2))
    return path


def test_train_a_little_and_count_with_it(crowdrt, tiny, tiny_recipe, tmp_path):
    out = tmp_path / "trained"
    command = ("train", "tiny", "--data", tiny.photos, "-o", out)
    artifact = crowdrt(*command, "--json").json()
    assert artifact["path"] == str(out / "weights.safetensors")
    again = crowdrt(*command)
    assert again.out == f"{out / 'weights.safetensors'} (nothing had changed)\n"
