"""Training records: read with distrust, seeds pooled, and each put where it belongs."""

import json
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from crowdrt.benchmarks.tables.trained.lines import as_cells, left_out, lines_of
from crowdrt.benchmarks.tables.trained.records import (
    parse_training_record,
    read_training_records,
    repeated,
)
from crowdrt.benchmarks.tables.trained.render import accuracy_markdown
from crowdrt.benchmarks.tables.trained.tables import ACCURACY_TABLES
from crowdrt.errors import BenchmarkError

A, B = "ShanghaiTech part_A", "ShanghaiTech part_B"
FIELDS = {
    "recipe": "skt-3-none", "network": "csrnet", "width": "1/4", "test": f"{A} test",
    "train": f"{A} train", "mae": 100.0, "rmse": 150.0, "bias": -3.0, "num_images": 182, "seed": 0,
    "steps": 1500, "crops": 12000, "wall_s": 630, "num_threads": 2, "machine": "Xeon",
    "weights_sha256": "ab", "teacher": None,
}  # fmt: skip
ON_B = {"test": f"{B} test", "train": f"{B} train", "num_images": 316}


def record(**changes):
    return parse_training_record(json.dumps(FIELDS | changes), source="here")


def shown(name, *records):
    return lines_of(ACCURACY_TABLES[name], repeated(records))


def of(lines, label):
    [line] = [line for line in lines if line.label == label]
    return line


def ours(line):
    return [figure.ours for figure in line.figures]


@pytest.mark.parametrize("name", ACCURACY_TABLES)
def test_without_records_nothing_is_filled_in(name):
    lines = shown(name)
    assert [line.label for line in lines] == [row.label for row in ACCURACY_TABLES[name].rows]
    for line in lines:
        assert line.in_paper
        assert set(ours(line)) == {""}
        assert line.budget == ""
    for cell in as_cells(lines):
        assert cell["printed"]
        assert cell["ours"] is cell["mean"] is cell["spread"] is cell["runs"] is None


def test_a_record_stands_beside_its_row_alone():
    lines = shown("skt-3", record())
    assert len(lines) == 7
    for line in lines:
        assert ours(line) == (
            ["100.00", "150.00"] if line.label == "without transfer" else ["", ""]
        )
    assert of(lines, "without transfer").budget == "1,500 steps, 12,000 crops, 10 min"


def test_seeds_become_mean_and_sample_deviation():
    maes = [100.0, 104.5, 97.0]
    runs = [record(seed=k, mae=mae, wall_s=60 * (k + 1)) for k, mae in enumerate(maes)]
    line = of(shown("skt-3", *runs), "without transfer")
    mae = line.figures[0]
    assert (mae.mean, mae.spread) == (fmean(maes), stdev(maes))
    assert mae.ours == f"{fmean(maes):.2f} ± {stdev(maes):.2f}"
    assert line.figures[1].spread == 0
    assert line.budget == "1,500 steps, 12,000 crops, 2.0 min, 3 seeds"
    assert as_cells([line])[0]["runs"]["seeds"] == [0, 1, 2]


def test_a_seed_that_was_trained_again_counts_once_and_as_last():
    [runs] = repeated([record(mae=90.0), record(seed=1), record(mae=110.0)])
    assert runs.seeds == (0, 1)
    assert runs.values("mae") == [110.0, 100.0]


@pytest.mark.parametrize(
    "other",
    [{"recipe": "skt-2-none"}, {"width": "1/2"}, ON_B, {"train": f"{B} train"}, {"steps": 3000},
     {"crops": 24000}, {"num_images": 20}, {"teacher": "csrnet"}, {"network": "bl"}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_what_is_no_repetition_is_not_pooled(other):
    assert [len(runs.records) for runs in repeated([record(), record(seed=1, **other)])] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"width": "1/8"}, "1/8-CSRNet, skt-3-none"),
        ({"width": "1/2"}, "1/2-CSRNet, skt-3-none"),
        ({"recipe": "skt-3-none-cpu"}, "1/4-CSRNet, skt-3-none-cpu"),
        ({"num_images": 20}, "1/4-CSRNet, skt-3-none, 20 of 182 images"),
        ({"train": f"{B} train"}, f"1/4-CSRNet, skt-3-none, trained on {B} train"),
        (ON_B, f"1/4-CSRNet, skt-3-none, on {B} test (316)"),
        ({"test": "painted"}, f"1/4-CSRNet, skt-3-none, on painted (182), trained on {A} train"),
        ({"width": "1/8", "teacher": "csrnet"}, "1/8-CSRNet, skt-3-none, teacher csrnet"),
    ],
)
def test_what_the_paper_has_no_row_for_stands_below_in_its_own(changes, label):
    lines = shown("skt-3", record(**changes))
    assert [line.label for line in lines][:3] == ["without transfer", label, "Intra-PT: L2"]
    printed, own, *_ = lines
    assert ours(printed) == ["", ""]
    assert (printed.in_paper, own.in_paper) == (True, False)
    assert ours(own) == ["100.00", "150.00"]
    assert [figure.printed for figure in own.figures] == ["", ""]
    assert own.budget == "1,500 steps, 12,000 crops, 10 min"


def test_a_width_that_no_row_has_stands_below_the_nearest():
    runs = [record(width=width) for width in ("1/8", "1/3", "2/3")]
    labels = [line.label for line in shown("skt-2", *runs)]
    assert labels.index("1/8-CSRNet, skt-3-none") == labels.index("1/5-CSRNet") + 1
    assert labels.index("2/3-CSRNet, skt-3-none") == labels.index("1/2-CSRNet") + 1
    assert len(labels) == 9 + 2  # 1/3 has a row of its own in the paper
    assert ours(of(shown("skt-2", *runs), "1/3-CSRNet")) == ["150.00"]


def test_of_two_budgets_the_larger_stands_beside_the_printed_figure():
    lines = shown("skt-3", record(), record(crops=24000, steps=3000, mae=90.0), record(steps=1))
    first, second, third, *_ = lines
    assert ours(first)[0] == "90.00"
    assert first.budget.startswith("3,000 steps")
    assert (second.label, third.label) == ("1/4-CSRNet, skt-3-none",) * 2
    assert {second.budget[:7], third.budget[:7]} == {"1,500 s", "1 steps"}


def test_of_equal_budgets_the_newer_stands_beside_the_printed_figure():
    lines = shown("skt-3", record(), record(teacher="a better one", mae=90.0))
    assert [ours(line)[0] for line in lines[:2]] == ["90.00", "100.00"]


def test_each_part_of_shanghaitech_fills_its_own_cells():
    lines = shown("skt-6", record(), record(**ON_B, mae=30, rmse=45, steps=2000, crops=16000))
    line = of(lines, "1/4-CSRNet")
    assert ours(line) == ["100.00", "150.00", "30.00", "45.00"]
    assert line.budget == (
        f"{A} test: 1,500 steps, 12,000 crops, 10 min; {B} test: 2,000 steps, 16,000 crops, 10 min"
    )
    assert ours(of(lines, "1/4-CSRNet + SKT")) == [""] * 4
    own = of(shown("skt-6", record(**ON_B, width="1/8")), "1/8-CSRNet, skt-3-none")
    assert ours(own) == ["", "", "100.00", "150.00"]


def test_a_record_of_no_column_of_several_is_named_and_not_shown():
    runs = repeated([record(test="ShanghaiTech A"), record(recipe="unheard-of")])
    table = ACCURACY_TABLES["skt-6"]
    assert all(set(ours(line)) == {""} for line in lines_of(table, runs))
    [unplaced] = left_out(table, runs)
    assert unplaced.first.test == "ShanghaiTech A"
    text = accuracy_markdown(table, lines_of(table, runs), [unplaced])
    assert "not shown: skt-3-none on 'ShanghaiTech A'" in text


def test_detectors_are_shown_in_per_cent():
    shares = {
        "ap50": 0.5042,
        "ap": 0.31,
        "mr2": 0.701,
        "ji": 0.4,
        "recall": 0.6,
        "mae": None,
        "rmse": None,
    }
    found = {"recipe": "dsla-4-onenet", "network": "onenet", "width": "1", "num_images": 4370}
    whole = record(**found, **shares, test="CrowdHuman val", train="CrowdHuman train")
    line = of(shown("dsla-2", whole), "OneNet (baseline)")
    assert ours(line) == ["50.4", "70.1", "40.0", "60.0"]
    cell = as_cells([line])[0]
    assert (cell["printed"], cell["ours"], cell["mean"]) == ("90.1", "50.4", pytest.approx(50.42))
    without = replace(whole, metrics={"ap50": 0.5})
    assert ours(of(shown("dsla-2", without), "OneNet (baseline)")) == ["50.0", "", "", ""]


def test_a_metric_that_one_seed_lacks_has_no_mean():
    runs = [record(), replace(record(seed=1), metrics={"mae": 90.0})]
    assert ours(of(shown("skt-3", *runs), "without transfer")) == ["95.00 ± 7.07", ""]


def test_a_bar_in_a_record_breaks_no_markdown_row():
    lines = shown("skt-3", record(recipe="skt-3-none-a|b"))
    text = accuracy_markdown(ACCURACY_TABLES["skt-3"], lines, [])
    assert "skt-3-none-a\\|b" in text
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {7}


def test_a_file_is_read_in_order_and_empty_lines_are_no_records(tmp_path):
    path = tmp_path / "training.jsonl"
    path.write_text(f"{json.dumps(FIELDS)}\n\n{json.dumps(FIELDS | {'seed': 7, 'later': 1})}\n")
    assert [each.seed for each in read_training_records(path)] == [0, 7]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"recipe": ', "it is not JSON"),
        ("[1]", "it holds list, not an object"),
        (FIELDS | {"recipe": 3}, "recipe is 3, where text is meant"),
        (FIELDS | {"test": ""}, "test is '', where text is meant"),
        (FIELDS | {"width": "wide"}, "width is 'wide', where a share like '1/8' is meant"),
        (FIELDS | {"width": "1/0"}, "width is '1/0'"),
        (FIELDS | {"num_images": 0}, "num_images is 0, where a whole number of at least 1"),
        (FIELDS | {"steps": 1.5}, "steps is 1.5, where a whole number of at least 0"),
        (FIELDS | {"seed": True}, "seed is True, where a whole number"),
        (FIELDS | {"mae": "12"}, "mae is '12', where a number is meant"),
        (FIELDS | {"mae": -1}, "mae is -1, where a finite number of at least 0"),
        (FIELDS | {"rmse": float("nan")}, "rmse is nan, where a finite number"),
        (FIELDS | {"mae": 151}, "rmse 150 is below mae 151"),
        (FIELDS | {"ap": 50.4}, "ap is 50.4, where a share from 0 to 1 is meant"),
        (FIELDS | {"mae": None, "rmse": None}, "it has none of mae, rmse, ap"),
        ({k: v for k, v in FIELDS.items() if k != "crops"}, "crops is missing"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, said):
    path = tmp_path / "training.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text(f"{json.dumps(FIELDS)}\n{text}\n")
    with pytest.raises(BenchmarkError) as caught:
        read_training_records(path)
    problem, fix = caught.value.args
    assert problem.startswith(f"{path}, line 2 is no whole training record: ")
    assert said in problem
    assert fix.startswith("delete that line")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "training.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchmarkError, match=r"training\.jsonl cannot be read"):
        read_training_records(path)
