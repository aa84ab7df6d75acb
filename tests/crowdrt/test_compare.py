"""crowdrt compare: a sweep of tiny networks, from their weights to the table and the plot."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import swept
from swept import TINY, UNTAUGHT

from crowdrt.benchmarks.accuracy.counts import accuracy, count_samples
from crowdrt.benchmarks.tables.compression.rows import read_compression
from crowdrt.contracts import Measurement
from crowdrt.data.heads.shanghaitech import read_split
from crowdrt.engines.base import open_engine
from crowdrt.errors import BenchmarkError, CrowdRTError, RecipeError
from crowdrt.learning import Distillation, Pruning, Quantization, Transfer
from crowdrt.manifest import sha256_file
from crowdrt.models import build_model
from crowdrt.models.weights import save_weights
from crowdrt.pipeline import races
from crowdrt.pipeline.comparison import comparing, entrants, forms
from crowdrt.pipeline.comparison.comparing import CompareOptions, compare_stage
from crowdrt.pipeline.comparison.entrants import entrants_of
from crowdrt.pipeline.comparison.methods import method_of
from crowdrt.pipeline.comparison.rows import settings_of
from crowdrt.pipeline.comparison.sweeping import SweepOptions, sweep_stage
from crowdrt.pipeline.networks import shipped_weights
from crowdrt.recipes import recipe_named

SIZE = (96, 128)


def fake_race(contenders, image, config):
    """Open every engine and let it count once; the k-th takes k + 1 milliseconds."""
    for each in contenders:
        engine = each.open()
        engine.run({engine.inputs[0].name: image[None]})
    return [
        Measurement(
            name=each.name,
            network=each.network,
            width=each.width,
            engine=each.engine,
            engine_version=each.engine_version,
            precision=each.precision,
            size=image.shape[1:],
            num_threads=config.num_threads,
            samples_ms=(k + 1.0, k + 1.0),
            peak_mib=50.0 + k,
            machine={"cpu": "none"},
            verdict="valid",
            run_id="20260101T000000Z",
            sha256=each.sha256,
        )
        for k, each in enumerate(contenders)
    ]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("crowdrt.training.loop.draw_curves", lambda *_, **__: None)
    monkeypatch.setattr(races, "race", fake_race)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return swept.part_a(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path, width = tmp_path_factory.mktemp("teacher") / "teacher.safetensors", Fraction(1, 8)
    save_weights(build_model("csrnet", width), path, network="csrnet", width=width)
    return path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, data):
    """A student without a method, of two seeds, and a recipe that failed."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crowdrt.training.loop.draw_curves", lambda *_, **__: None)
        sweep_stage([TINY], folder, SweepOptions(data=data, seeds=(0, 1)))
        sweep_stage([UNTAUGHT], folder, SweepOptions(data=data, seeds=(0,)))
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory, sweep, data, teacher):
    """The sweep, compared once; returns the judged rows and the folder."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(races, "race", fake_race)
        patch.setattr("crowdrt.pipeline.photographs.PROOF_SIZES", ((112, 128), (136, 113)))
        judged = compare_stage(sweep, out, options(data, out, teacher=teacher))
    return judged, out


def options(data, out, **changes):
    return CompareOptions(data=data, size=SIZE, num_threads=1, store=out / "store", **changes)


def test_every_row_of_the_sweep_is_there_in_each_of_its_forms(compared, sweep):
    judged, out = compared
    labels = [each.row.label for each in judged]
    assert labels == [
        *("teacher fp32", "teacher int8 PTQ", "teacher fp32 eager"),
        *("naive student fp32", "naive student int8 PTQ"),
        *("SKT fp32", "SKT int8 PTQ"),
    ]
    assert read_compression(out / "compression.jsonl") == [each.row for each in judged]
    assert all((out / f"compare.{kind}").is_file() for kind in ("md", "csv", "json", "png"))


def by_label(judged, label):
    return next(each.row for each in judged if each.row.label == label)


def test_fp32_has_the_recorded_errors_and_int8_those_of_its_engine(compared, sweep, data):
    judged, out = compared
    records = [json.loads(line) for line in (sweep / "records.jsonl").read_text().splitlines()]
    expected = {r["seed"]: r["mae"] for r in records if r["recipe"] == "tiny"}
    row = by_label(judged, "naive student fp32")
    assert dict(zip(row.seeds, row.mae, strict=True)) == expected
    int8 = by_label(judged, "naive student int8 PTQ")
    samples = read_split(data / "test_data")
    for seed, mae in zip(int8.seeds, int8.mae, strict=True):
        path = out / "networks" / f"tiny-{seed}.int8.onnx"
        found = accuracy(count_samples(engine_of(path, out), samples))
        assert mae == pytest.approx(found.mae)


def engine_of(path, out):
    from crowdrt.pipeline.stages import engine_folder

    return open_engine(engine_folder(path, out / "store"), num_threads=1)


def test_the_seed_that_is_the_median_by_validation_is_timed(compared, sweep):
    judged, out = compared
    records = [json.loads(line) for line in (sweep / "records.jsonl").read_text().splitlines()]
    tiny = [record for record in records if record["recipe"] == "tiny"]
    best = min(tiny, key=lambda record: record["validation_mae"])  # of two, the better one
    row = by_label(judged, "naive student fp32")
    assert row.sha256 == sha256_file(out / "networks" / f"tiny-{best['seed']}.onnx")
    assert row.file_bytes == (out / "networks" / f"tiny-{best['seed']}.onnx").stat().st_size


def test_a_row_that_could_not_be_trained_is_kept_with_its_reason(compared):
    row = by_label(compared[0], "SKT fp32")
    assert "skt-3-none" in row.failure
    assert (row.mae, row.median_ms) == ((), None)


def test_the_eager_teacher_is_timed_beside_its_engines(compared):
    row = by_label(compared[0], "teacher fp32 eager")
    assert row.engine == "pytorch"
    assert row.mae == by_label(compared[0], "teacher fp32").mae
    assert row.median_ms is not None


def test_nothing_is_done_twice(compared, sweep, data, teacher, monkeypatch):
    judged, out = compared
    monkeypatch.setattr(races, "race", None)
    monkeypatch.setattr("crowdrt.export.onnx_export.export_onnx", None)
    monkeypatch.setattr("crowdrt.benchmarks.accuracy.counts.predict_whole", None)
    again = compare_stage(sweep, out, options(data, out, teacher=teacher))
    assert [each.row for each in again] == [each.row for each in judged]


def test_a_gpus_record_of_the_same_file_fills_its_column(compared, sweep, data, teacher, tmp_path):
    judged, out = compared
    ours = by_label(judged, "teacher fp32")
    race = [json.loads(line) for line in (out / "race.jsonl").read_text().splitlines()]
    found = next(each for each in race if each["sha256"] == ours.sha256)
    found |= {"compute_ms": [2.0, 3.0, 4.0], "machine": {"gpu": "a GPU"}, "engine": "tensorrt"}
    path = tmp_path / "gpu.jsonl"
    path.write_text(json.dumps(found) + "\n")
    again = compare_stage(sweep, out, options(data, out, teacher=teacher, gpu_records=[path]))
    assert by_label(again, "teacher fp32").gpu_ms == 3.0
    assert [each.row.label for each in again if each.row.gpu] == ["teacher fp32"]


def test_the_verb_shows_the_table(compared, sweep, data, teacher, crowdrt):
    _, out = compared
    call = ["compare", sweep, "--data", data, "-o", out, "--size", "96x128", "--threads", "1"]
    call += ["--teacher", teacher, "--store", out / "store"]
    answer = crowdrt(*call)
    assert answer.code == 0, answer.err
    assert "naive student" in answer.out
    assert "ranking by mean MAE" in answer.out
    assert {row["form"] for row in crowdrt(*call, "--json").json()["rows"]} == {
        *("fp32", "int8 PTQ", "fp32 eager")
    }


def test_an_export_without_parity_fails_its_seed_and_no_other(
    compared, sweep, data, tmp_path, monkeypatch
):
    """The seed that was timed loses its file: the other one is timed instead."""
    shutil.copytree(compared[1], tmp_path / "out")
    export = forms.export_stage

    def export_stage(origin, out):
        if out.stem == "tiny-0":
            raise BenchmarkError("the two differ", fix="none")
        return export(origin, out)

    monkeypatch.setattr(forms, "export_stage", export_stage)
    given = options(data, compared[1])  # whose store has the engines
    judged = compare_stage(sweep, tmp_path / "out", given)
    row = by_label(judged, "naive student fp32")
    assert row.lost_seeds == {"0": "the two differ"}
    assert row.seeds == (1,)  # nothing proves what the other one counts
    assert row.sha256 == sha256_file(tmp_path / "out" / "networks" / "tiny-1.onnx")
    assert by_label(judged, "naive student int8 PTQ").seeds == (1,)


def test_an_engine_that_counts_as_was_never_simulated_fails(sweep, data, tmp_path):
    entrant = replace(entrants_of(sweep, None)[0][0], kind="quantization")
    record = {**entrant.networks[0].record, "mae": 100.0}
    entrant = replace(entrant, networks=[replace(entrant.networks[0], record=record)])
    form = forms.Form(entrant=entrant, name="int8 trained", files={0: None})
    assert comparing.failure_of(form, {0: (100.9, 0.0)}) == ""
    assert "1.1% off" in comparing.failure_of(form, {0: (98.9, 0.0)})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("naive student", "none")),
        ({"transfer": Transfer(teacher="t")}, ("SKT", "distillation")),
        ({"transfer": Transfer(teacher="t", inter=None)}, ("SKT (no inter)", "distillation")),
        ({"distillation": Distillation(method="dml")}, ("DML", "distillation")),
        (
            {"pruning": Pruning(method="l1", start="s", macs=0.5), "batch_norm": False},
            ("L1Filter", "pruning"),
        ),
        (
            {
                "pruning": Pruning(method="l1", start="s", macs=0.5),
                "transfer": Transfer(teacher="t"),
                "batch_norm": False,
            },
            ("L1Filter + SKT", "pruning + distillation"),
        ),
        (
            {
                "quantization": Quantization(method="dorefa", start="s"),
                "batch_norm": False,
                "precision": "32-true",
            },
            ("DoReFa", "quantization"),
        ),
    ],
)
def test_methods_are_named_by_their_settings(settings, expected):
    recipe = replace(TINY, training=replace(TINY.training, **settings))
    assert method_of(settings_of(recipe)) == expected


def test_bad_input_is_refused(sweep, data, tmp_path, teacher):
    out = tmp_path / "out"

    def said(folder=sweep, photographs=data, **changes):
        with pytest.raises(CrowdRTError) as caught:
            compare_stage(folder, out, options(photographs, tmp_path, **changes))
        return str(caught.value)

    assert "is no sweep" in said(folder=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(sweep / "sweep.json", empty)
    assert "no row of" in said(folder=empty)
    other = swept.part_a(tmp_path / "other", seed=4)
    assert "holds other photographs" in said(photographs=other)
    assert "no record of 'Mall test'" in said(test="Mall test")
    (tmp_path / "file").write_text("")
    with pytest.raises(CrowdRTError, match="could not be written"):
        compare_stage(sweep, tmp_path / "file" / "out", options(data, tmp_path))


def test_weights_that_never_taught_are_no_teacher(sweep, teacher, tmp_path):
    copied = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    path = copied / "tiny" / "0" / "row.json"
    row = json.loads(path.read_text())
    row["records"][0]["teacher_sha256"] = "0" * 64
    path.write_text(json.dumps(row))
    with pytest.raises(RecipeError, match="has not taught the rows"):
        entrants.teacher_of(copied, teacher)
    assert entrants.teacher_of(sweep, teacher).method == "teacher"
    assert entrants.teacher_of(sweep, None) is None


def test_shipped_weights_that_never_taught_are_no_teacher(sweep, tmp_path):
    """A sweep that `--teacher` taught is not shown beside the shipped network."""
    copied = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    path = copied / "tiny" / "0" / "row.json"
    row = json.loads(path.read_text())
    row["settings"]["transfer"] = {"teacher": "csrnet-quarter"}
    shipped = shipped_weights(recipe_named("csrnet-quarter"))
    found = {}
    for sha256 in ("0" * 64, sha256_file(shipped)):
        row["records"][0]["teacher_sha256"] = sha256
        path.write_text(json.dumps(row))
        found[sha256] = entrants.teacher_of(copied, None)
    assert found.pop("0" * 64) is None
    (teacher,) = found.values()
    assert teacher.declared == recipe_named("csrnet-quarter")  # and its INT8 settings


def test_a_race_in_which_one_broke_down_is_said_and_fills_no_time(
    compared, sweep, data, teacher, tmp_path, monkeypatch, capsys
):
    copied = Path(shutil.copytree(compared[1], tmp_path / "out"))
    records = copied / "race.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    lines[0] |= {"verdict": "failed: out of memory"}  # after its first visits
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(races, "race", None)
    given = options(data, compared[1], teacher=teacher, seconds=0)  # any race is as long
    row = by_label(compare_stage(sweep, copied, given), lines[0]["name"])
    assert (row.median_ms, row.p90_ms, row.timing) == (None, None, "failed: out of memory")
    said = f"in which {lines[0]['name']} failed: out of memory; --fresh repeats it"
    assert said in capsys.readouterr().err
