"""Compression methods side by side: fronts worked by hand, spreads, verdicts, written forms."""

import csv
import io
import json
from dataclasses import replace

import pytest
from PIL import Image

from crowdrt.benchmarks.tables.compression import plot, render
from crowdrt.benchmarks.tables.compression.judgement import (
    difference,
    dominators,
    judge,
    neighbours,
    probability,
)
from crowdrt.benchmarks.tables.compression.printed import SKT_TABLE_5
from crowdrt.benchmarks.tables.compression.rows import (
    CompressionRow,
    ordered,
    read_compression,
    row_line,
)
from crowdrt.errors import BenchmarkError


def row(method="SKT", form="fp32", mae=(70.0, 71.0, 72.0), ms=10.0, **changes):
    base = CompressionRow(
        method=method,
        kind={"teacher": "teacher", "naive student": "none", "QAT": "quantization"}.get(
            method, "distillation"
        ),
        form=form,
        recipe=method.lower(),
        network="csrnet",
        width="1/8",
        test="ShanghaiTech part_A test",
        num_images=182,
        seeds=tuple(range(len(mae))),
        mae=mae,
        rmse=tuple(each * 1.5 for each in mae),
        steps=600,
        crops=2400,
        minutes=14.26,
        params=255_000,
        macs=3_305_546_496,
        file_bytes=1_040_000,
        size=(576, 864),
        engine="onnxruntime",
        engine_version="1.31.1",
        num_threads=2,
        median_ms=ms,
        timing="valid",
        peak_mib=120.0,
        machine="a Xeon",
    )
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 1)], [None]),
        ([(1, 2), (2, 1)], [None, None]),
        ([(1, 1), (2, 2)], [None, 0]),
        ([(1, 1), (1, 2), (2, 1)], [None, 0, 0]),  # as good in one, worse in the other
        ([(1, 1), (1, 1)], [None, None]),  # neither is better than its equal
        ([(3, 3), (2, 2), (1, 1)], [2, 2, None]),  # the best of those that dominate is named
        ([(5, 1), (4, 2), (3, 3), (4, 3), (6, 1)], [None, None, None, 2, 0]),
    ],
)
def test_the_front_by_hand(points, expected):
    assert dominators(points) == expected


def test_rows_of_the_front_and_dominated_ones_are_marked():
    fast, good, bad = (
        row("AT", mae=(80.0, 81.0), ms=5.0, width="1/16"),
        row("SKT", mae=(70.0, 71.0), ms=9.0),
        row("NST", mae=(90.0, 91.0), ms=9.0),
    )
    found = judge([fast, good, bad])
    assert [each.on_front for each in found] == [True, True, False]
    assert [each.dominated_by for each in found] == ["", "", "SKT fp32"]


def test_of_one_graph_nobody_is_faster_by_noise():
    """Each has the median of all: 10 ms, whoever came out at 9.9."""
    good, bad = row("SKT", mae=(70.0, 71.0), ms=10.1), row("AT", mae=(80.0, 81.0), ms=9.9)
    middle = row("NST", mae=(75.0, 76.0), ms=10.0)
    found = judge([good, bad, middle])
    assert [each.on_front for each in found] == [True, False, False]
    assert {each.dominated_by for each in found} == {"", "SKT fp32"}
    narrower = replace(bad, kind="pruning", recipe="skt-5-cp-cpu")  # one layer narrower than it was
    assert [each.on_front for each in judge([good, narrower])] == [True, True]


def test_a_time_that_could_not_be_taken_leaves_the_errors_in_the_ranking():
    untimed = row("AT", ms=None, timing="failed: out of memory")
    (found, _) = judge([untimed, row("SKT", mae=(60.0, 61.0))])
    assert "timing failed" in found.verdict
    assert not found.on_front
    assert len(neighbours([untimed, row("SKT")])) == 1


def test_the_budget_says_what_was_trained_before():
    after, anew = row("CP", start="csrnet-quarter"), row("SKT")
    assert "600 steps after those of csrnet-quarter, " in render.budget(after)
    assert "600 steps, " in render.budget(anew)
    naive = row("naive student", mae=(90.0, 91.0, 92.0))
    assert [each.beside_naive for each in judge([after, anew, naive])] == [
        "better than the naive student, which began anew",
        "better than the naive student",
        "",
    ]


def test_rows_of_fewer_seeds_are_named():
    rows = [row("SKT"), row("AT", mae=(70.0,)), row("teacher", mae=(60.0,)), row("CP", failure="x")]
    said = render.notes(judge(rows))
    assert "AT fp32: 1 of 3 seeds" in said
    assert not any("teacher fp32: 1" in note or "CP fp32: " in note for note in said)


def test_a_failed_row_is_kept_and_dominates_nobody():
    failed = row("AT", mae=(1.0, 2.0), ms=1.0, failure="it diverged")
    untimed = row("NST", ms=None)
    good = row("SKT", ms=9.0)
    found = judge([failed, untimed, good])
    assert [each.on_front for each in found] == [False, False, True]
    assert found[0].verdict == "failed: it diverged"
    assert len(neighbours([failed, untimed, good])) == 1


def test_a_difference_is_held_against_the_spread_of_the_seeds():
    near = difference(row("SKT", mae=(70.0, 75.0, 72.0)), row("AT", mae=(71.0, 74.0, 73.0)))
    assert not near.exceeds
    assert "within the spread (Welch's t, p = 0.8" in near.said
    assert "the seeds overlap" in near.said
    far = difference(row("AT", mae=(90.0, 91.0, 92.0)), row("SKT", mae=(70.0, 71.0, 72.0)))
    assert (far.better.method, far.people, far.exceeds) == ("SKT", 20.0, True)
    assert "n = 3 and 3; every seed agrees" in far.said


def test_three_seeds_that_all_agree_may_still_be_chance():
    found = difference(row("SKT", mae=(70.0, 79.0, 74.0)), row("AT", mae=(80.0, 95.0, 84.0)))
    assert found.apart
    assert not found.exceeds


def test_one_seed_says_nothing():
    found = difference(row("SKT", mae=(70.0,)), row("AT", mae=(90.0, 91.0)))
    assert (found.p, found.exceeds) == (None, False)
    assert "too few seeds" in found.said


def test_two_forms_of_the_same_weights_are_paired():
    """Seeds differ by far more than INT8 changes each of them, always by the same."""
    mae = (70.0, 80.0, 90.0)
    int8 = row("SKT", "int8 PTQ", mae=(71.0, 81.1, 90.9))
    assert difference(row("SKT", mae=mae), int8).exceeds
    assert not difference(row("SKT", mae=mae), replace(int8, recipe="another")).exceeds


def test_forms_are_paired_by_the_seeds_that_both_have():
    float_row = row("SKT", mae=(70.0, 80.0, 90.0))
    int8 = row("SKT", "int8 PTQ", mae=(90.9, 71.0), seeds=(2, 0))
    found = difference(float_row, int8)
    assert found.test == "paired t"
    assert found.p == pytest.approx(probability((70.0, 90.0), (71.0, 90.9), paired=True))


def test_where_no_seed_changes_anything_there_is_no_spread_to_judge_by():
    assert probability((1.0, 1.0), (1.0, 1.0), paired=True) is None
    assert probability((1.0, 1.0), (2.0, 2.0), paired=False) is None
    assert probability((1.0, 2.0), (2.0, 3.0), paired=True) is None
    same = difference(row("SKT", mae=(0.0, 0.0)), row("AT", mae=(5.0, 5.0)))
    assert not same.exceeds
    assert "no spread over seeds to tell it from chance" in same.said


def test_a_row_no_better_than_the_naive_student_says_so():
    rows = [
        row("naive student", mae=(100.0, 101.0, 102.0)),
        row("AT", mae=(101.0, 102.0, 103.0)),
        row("NST", mae=(95.0, 105.0, 99.0)),
        row("SKT", mae=(70.0, 71.0, 72.0)),
        row("AB", mae=(70.0,)),
        row("teacher", mae=(60.0,)),
    ]
    assert [each.beside_naive for each in judge(rows)] == [
        "",
        "no better than the naive student",
        "no better than the naive student beyond the spread",
        "better than the naive student",
        "better than the naive student, with too few seeds to tell it from chance",
        "",
    ]


def test_of_several_naive_students_the_best_one_is_the_measure():
    rows = [
        row("naive student (slow)", mae=(100.0, 101.0), kind="none"),
        row("naive student (fast)", mae=(60.0, 61.0), kind="none"),
        row("SKT", mae=(70.0, 71.0)),
    ]
    assert judge(rows)[2].beside_naive == "no better than the naive student"


def test_the_ranking_names_every_neighbouring_pair():
    rows = [row("AT", mae=(80.0, 81.0)), row("SKT", mae=(70.0, 71.0)), row("AB", mae=(75.0, 76.0))]
    pairs = [(each.better.method, each.worse.method) for each in neighbours(rows)]
    assert pairs == [("SKT", "AB"), ("AB", "AT")]


def test_printed_figures_stand_beside_the_form_that_the_paper_means():
    assert row("SKT").printed == SKT_TABLE_5["SKT"]
    assert row("SKT", "int8 PTQ").printed is None
    assert row("QAT", "int8 trained").printed.mae == "75.50"
    assert row("L1Filter + SKT").printed is None


def test_rows_come_in_the_papers_order_combinations_last():
    rows = [row("L1Filter + SKT"), row("SKT"), row("QAT"), row("naive student"), row("teacher")]
    methods = [each.method for each in ordered(rows)]
    assert methods == ["teacher", "naive student", "QAT", "SKT", "L1Filter + SKT"]


@pytest.fixture
def judged():
    return judge(
        [
            row("naive student", mae=(100.0, 101.0, 102.0), ms=9.0),
            row("SKT", ms=9.5, search="learning_rate"),
            row("SKT", "int8 PTQ", mae=(72.0, 73.0, 74.0), ms=5.0, timing="shared: by others"),
            row("AT", mae=(), ms=None, seeds=(), rmse=(), failure="a | in its reason"),
        ]
    )


def test_csv_holds_what_is_known_as_numbers(judged):
    written = list(csv.DictReader(io.StringIO(render.as_csv(judged), newline="")))
    naive, skt, ptq, failed = written
    assert [float(naive[name]) for name in ("mean_mae", "std_mae", "median_ms")] == [101, 1, 9]
    assert (naive["printed_mae"], skt["printed_mae"], ptq["printed_mae"]) == ("89.65", "71.55", "")
    assert int(skt["params"]) == judged[1].row.params
    assert float(skt["train_s"]) == pytest.approx(60 * judged[1].row.minutes)
    assert (skt["seeds"], skt["on_front"], naive["on_front"]) == ("0 1 2", "true", "false")
    assert (skt["height_px"], skt["width_px"]) == ("576", "864")
    assert (failed["mean_mae"], failed["failure"]) == ("", "a | in its reason")


def test_every_form_holds_the_same_cells(judged):
    sheet = render.sheet(judged, "compared")
    assert [column.heading for column in sheet.columns] == [*render.HEADINGS]
    assert sheet.lines == [render.texts(each) for each in judged]
    assert sheet.notes == render.notes(judged)
    text = render.markdown(judged)
    assert (
        "| **SKT** | **fp32** | 1/8-CSRNet | 71.55 | 71.00 ± 1.00 | 114.40 | 106.50 ± 1.50 |"
        in text
    )
    assert "600 steps, 2,400 crops, 14.3 min, 3 seeds; searched learning_rate" in text
    assert "failed: a \\| in its reason" in text
    assert "- SKT int8 PTQ: timing shared: by others" in text
    assert render.terminal_table(judged).row_count == 4
    document = json.loads(json.dumps(render.as_document(judged)))
    assert [each["on_front"] for each in document["rows"]] == [False, True, True, False]
    assert [each["worse"] for each in document["ranking"]] == ["SKT int8 PTQ", "naive student fp32"]


def test_pruned_networks_are_named_by_what_they_were():
    pruned = row("L1Filter + SKT", kind="pruning + distillation", width="1/4")
    assert render.network_of(pruned) == "1/4-CSRNet, pruned"
    assert render.network_of(row("SKT")) == "1/8-CSRNet"


def test_records_are_read_as_they_were_written(judged, tmp_path):
    path = tmp_path / "compression.jsonl"
    path.write_text("".join(row_line(each.row) + "\n" for each in judged))
    assert read_compression(path) == [each.row for each in judged]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1"),
        ("[]", "line 1"),
        ('{"schema": 9}', "schema 9 is not 1"),
        (row_line(row()).replace('"rmse": [105.0, ', '"rmse": ['), "one MAE and one RMSE per seed"),
        (row_line(row()).replace('"method"', '"methods"'), "methods"),
    ],
)
def test_damaged_records_are_refused(line, said, tmp_path):
    path = tmp_path / "compression.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(BenchmarkError, match=said):
        read_compression(path)


def test_labels_of_the_plot_cover_neither_each_other_nor_the_points():
    """Twelve methods whose points lie as close together as those of one network do."""
    names = [name for name in SKT_TABLE_5 if name != "teacher"]
    rows = [
        row(name, form, mae=(70.0 + k, 71.0 + k, 72.0 + k), ms=ms + k / 9)
        for k, name in enumerate(names)
        for form, ms in (("fp32", 10.0), ("int8 PTQ", 6.0))
    ]
    judged = judge([*rows, row("teacher", mae=(60.0,), ms=90.0)])
    figure, axes = plot.drawn(judged)
    renderer = figure.canvas.get_renderer()
    boxes = [plot.text_box(text, renderer) for text in axes.texts]
    points = [plot.point_box(axes, each) for each in judged]
    assert len(boxes) == 25
    for k, box in enumerate(boxes):
        assert all(plot.overlap(box, other) == 0 for other in boxes[k + 1 :])
        assert all(plot.overlap(box, point) == 0 for point in points)


def test_the_plot_is_a_picture_or_nothing(judged):
    picture = Image.open(io.BytesIO(plot.compression_plot(judged)))
    assert min(picture.size) > 800
    assert plot.compression_plot(judge([row(ms=None)])) is None
