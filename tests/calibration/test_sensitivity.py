"""A layer that INT8 harms is planted, found, kept in float, and no trial is run twice."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from small_graphs import NORMALISE, from_text, network

from crowdrt.calibration.calibrate import calibrate, collect_kept
from crowdrt.calibration.layerwise import LayerwiseGraph
from crowdrt.calibration.sensitivity.journal import Journal
from crowdrt.calibration.sensitivity.judge import CountError, Judge, Verdict, count_error
from crowdrt.calibration.sensitivity.plot import short_names, write_plot
from crowdrt.calibration.sensitivity.rank import Layer, rank
from crowdrt.calibration.sensitivity.repair import repair, write_repaired
from crowdrt.calibration.sensitivity.search import Search, SensitivityConfig, split
from crowdrt.console import open_bars
from crowdrt.contracts import CalibrationConfig, Sample
from crowdrt.errors import CalibrationError, CrowdRTError, RecipeError
from crowdrt.manifest import read_manifest

PLANTED = "Conv_y3"
CONVS = ["Conv_y1", "Conv_y2", "Conv_y3", "Conv_y4"]
MINMAX = CalibrationConfig(method="minmax", num_images=3)
CONFIG = SensitivityConfig(calibration=MINMAX, num_judged=2, tolerance=0.02, least_int8=0.1)


def planted() -> onnx.ModelProto:
    """The small VGG; one channel that `y3` reads is 500 times as large, and counts 1/500.

    Float arithmetic answers the same. In INT8 the one channel takes nearly every code.
    """
    model = network("vgg")
    for value in model.graph.initializer:
        array = numpy_helper.to_array(value).copy()
        if value.name in ("w2", "b2"):
            array[0] *= 500
        if value.name == "w3":
            array[:, 0] /= 500
        value.CopyFrom(numpy_helper.from_array(array, value.name))
    return model


@pytest.fixture
def float_onnx(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(planted(), path)
    return path


@pytest.fixture
def samples(photographs):
    return [Sample(image=path, heads=None) for path in photographs]


@pytest.fixture
def annotated(samples):
    heads = np.zeros((40, 2), np.float32)
    return [replace(each, heads=heads[: 5 + 7 * i]) for i, each in enumerate(samples)]


def counts_of(path, search):
    judge = Judge(search.model, search.info, search.judge.photographs, num_threads=1)
    return judge.verdict(onnx.load(path)).counts


def test_the_planted_layer_comes_first_by_counts_and_by_sqnr(float_onnx, samples):
    for by in ("count", "sqnr"):
        layers = rank(Search(float_onnx, samples, replace(CONFIG, by=by), num_threads=1))
        assert sorted(layer.name for layer in layers) == CONVS
        first, second = layers[:2]
        assert first.name == PLANTED
        assert first.error.change > 0.05 > 5 * second.error.change > 0
        assert first.sqnr_db < second.sqnr_db - 10
        assert sum(layer.macs_share for layer in layers) == pytest.approx(1, abs=0.01)


def test_a_layer_alone_is_what_calibrate_writes_with_the_others_kept_float(
    float_onnx, samples, tmp_path
):
    search = Search(float_onnx, samples, CONFIG, num_threads=1)
    for alone in CONVS:
        out = tmp_path / f"{alone}.onnx"
        others = [name for name in CONVS if name != alone]
        calibrate(float_onnx, search.calibrating, out, MINMAX, others, num_threads=1)
        assert search.trial([alone]).counts == counts_of(out, search)


FORKED = """
    y1 = Conv <pads = [1, 1, 1, 1]> (normal, w1, b1)
    r1 = Relu (y1)
    p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
    p2 = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r1)
    y2 = Conv (p1, w2, b2)
    y3 = Conv (p2, w3, b3)
    both = Add (y2, y3)
    density = Conv (both, w4, b4)
    count = ReduceSum <keepdims = 0> (density, axes)
"""
FORKED_SHAPES = {"w1": (4, 3, 3, 3), "w2": (4, 4, 1, 1), "w3": (4, 4, 1, 1), "w4": (1, 4, 1, 1)}


@pytest.mark.parametrize("kind", ["columns", "forked"])
def test_any_choice_of_layers_has_statistics(kind, tmp_path, samples):
    """Of the fork, `r1` is watched only where one of its pools hands on no codes."""
    forked = from_text(NORMALISE + FORKED, FORKED_SHAPES)
    onnx.save(forked if kind == "forked" else network(kind), tmp_path / "small.onnx")
    search = Search(tmp_path / "small.onnx", samples, CONFIG, num_threads=1)
    for i in range(2 ** len(search.plan.convs)):
        chosen = [name for k, name in enumerate(search.plan.convs) if i >> k & 1]
        assert np.isfinite(search.trial(chosen).counts).all()


def test_repair_keeps_the_planted_layer_and_no_other(float_onnx, samples, tmp_path):
    search = Search(float_onnx, samples, CONFIG, num_threads=1)
    found = repair(search, rank(search))
    assert [*found.kept] == [PLANTED]
    assert found.int8 == ("Conv_y1", "Conv_y2", "Conv_y4")
    assert found.unrepaired.change > 0.05 > 0.02 >= found.error.change > 0
    assert found.int8_macs == pytest.approx(1 - found.steps[0].macs_share, abs=0.01)

    out = tmp_path / "mixed.onnx"
    artifact = write_repaired(search, found, out)
    assert not artifact.reused
    by_hand = tmp_path / "by_hand.onnx"
    calibrate(float_onnx, search.calibrating, by_hand, MINMAX, [PLANTED], num_threads=1)
    assert out.read_bytes() == by_hand.read_bytes()
    assert counts_of(out, search) == search.trial(found.int8).counts

    facts = read_manifest(out)["facts"]
    assert facts["float"]["Conv_density"] == "it makes the network's answer"
    cost = f"{found.steps[0].macs_share:.2%} of the MACs"
    assert facts["float"][PLANTED].endswith(cost)
    assert "the count error falls from" in facts["float"][PLANTED]
    assert facts["repair"]["steps"][0]["kept"] is True
    assert facts["repair"]["error"]["change"] == found.error.change
    assert write_repaired(search, found, out).reused
    with pytest.raises(CalibrationError, match="network itself"):
        write_repaired(search, found, float_onnx)
    assert "repair" in read_manifest(out)["facts"]


def test_what_helps_nothing_goes_back_to_int8(float_onnx, samples):
    search = Search(float_onnx, samples, CONFIG, num_threads=1)
    wrong_order = sorted(rank(search), key=lambda layer: layer.error.change)
    found = repair(search, wrong_order)
    tried = [step.name for step in found.steps]
    assert tried[-1] == PLANTED
    for step in found.steps:
        assert step.kept == (step.after < step.before)
    assert found.int8 == tuple(name for name in CONVS if name not in found.kept)


def test_within_tolerance_nothing_is_kept_float(float_onnx, samples):
    search = Search(float_onnx, samples, replace(CONFIG, tolerance=1.0), num_threads=1)
    found = repair(search, rank(search))
    assert (found.steps, found.kept, found.int8) == ((), {}, tuple(CONVS))


def test_a_tolerance_that_cannot_be_held_is_refused_with_the_best_there_is(float_onnx, samples):
    search = Search(float_onnx, samples, replace(CONFIG, tolerance=1e-6), num_threads=1)
    with pytest.raises(CalibrationError, match=r"count error of 0\.\d+%.*0\.00% is tolerated") as e:
        repair(search, rank(search))
    assert "--tolerance 0.0" in e.value.fix


def test_what_must_stay_in_int8_stays(float_onnx, samples, capsys):
    share = Search(float_onnx, samples, CONFIG).share([PLANTED])
    config = replace(CONFIG, least_int8=1 - share + 0.01)
    search = Search(float_onnx, samples, config, num_threads=1)
    with pytest.raises(CalibrationError, match="are to stay in INT8"):
        repair(search, rank(search))
    assert f"{PLANTED} in float ({share:.2%} of the MACs): not tried" in capsys.readouterr().err


def test_where_people_counted_the_change_of_mae_is_what_is_tolerated(float_onnx, annotated):
    search = Search(float_onnx, annotated, CONFIG, num_threads=1)
    error = search.error(CONVS)
    people = np.array(search.annotated)
    maes = [np.abs(np.array(search.trial(c).counts) - people).mean() for c in ((), CONVS)]
    assert error.mae_change == pytest.approx(maes[1] / maes[0] - 1)
    assert error.judged_by == abs(error.mae_change) != error.change


def test_people_in_a_region_are_no_measure_of_whole_maps(float_onnx, annotated):
    """The judge adds up whole maps, so that a MAE would be of two different things."""
    assert Search(float_onnx, annotated, CONFIG).annotated is not None
    watched = [replace(each, roi=np.ones((64, 64), bool)) for each in annotated]
    assert Search(float_onnx, watched, CONFIG).annotated is None


def test_a_mae_that_falls_is_no_better_than_one_that_rises():
    """Float counts too many, INT8 loses people."""
    error = count_error([110.0], [105.0], [100])
    assert error.mae_change == -0.5
    assert error.judged_by == 0.5


def test_count_error_by_hand():
    error = count_error([10.0, 0.5, 200.0], [11.0, 0.0, 190.0], [12, 0, 100])
    assert error.change == pytest.approx((0.1 + 0.5 + 0.05) / 3)
    assert error.bias == pytest.approx((0.1 - 0.5 - 0.05) / 3)
    assert error.largest == 0.5
    assert error.mae_change == pytest.approx((1 + 0 + 90) / (2 + 0.5 + 100) - 1)
    assert count_error([3.0], [3.3], None).judged_by == pytest.approx(0.1)


def test_sqnr_by_hand():
    assert Verdict((1.0,), 100.0, 1.0).sqnr_db == pytest.approx(20)
    assert Verdict((1.0,), 100.0, 0.0).sqnr_db is None


def no_more(*_):
    raise AssertionError("a trial was run again")


def test_a_second_search_runs_nothing(float_onnx, samples, monkeypatch):
    first = rank(Search(float_onnx, samples, CONFIG, num_threads=1))
    monkeypatch.setattr(Judge, "verdict", no_more)
    assert rank(Search(float_onnx, samples, CONFIG, num_threads=1)) == first


def test_another_method_takes_the_statistics_that_were_seen(float_onnx, samples, monkeypatch):
    minmax = Search(float_onnx, samples, CONFIG, num_threads=1)
    minmax.trial(CONVS)
    monkeypatch.setattr(LayerwiseGraph, "run", no_more)
    config = replace(CONFIG, calibration=replace(MINMAX, method="percentile", percentile=90.0))
    clipped = Search(float_onnx, samples, config, num_threads=1)
    assert clipped.trial(CONVS).counts != minmax.trial(CONVS).counts
    assert clipped.trial([]).counts == minmax.trial([]).counts


@pytest.mark.parametrize("change", ["network", "photograph", "config"])
def test_trials_of_something_else_are_not_taken(change, float_onnx, samples, monkeypatch):
    rank(Search(float_onnx, samples, CONFIG, num_threads=1))
    config = CONFIG
    if change == "network":
        model = onnx.load(float_onnx)
        model.doc_string = "another"
        onnx.save(model, float_onnx)
    if change == "photograph":
        Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(samples[0].image)
    if change == "config":
        config = replace(CONFIG, calibration=replace(MINMAX, weight_bits=8))
    monkeypatch.setattr(Judge, "verdict", no_more)
    with pytest.raises(AssertionError, match="run again"):
        rank(Search(float_onnx, samples, config, num_threads=1))


def test_one_bar_at_a_time(float_onnx, samples, monkeypatch):
    """rich up to 14.0 refuses a second display inside another."""
    shown = []

    def look(*given, **options):
        shown.append(list(open_bars))
        return collect_kept(*given, **options)

    monkeypatch.setattr("crowdrt.calibration.sensitivity.search.collect_kept", look)
    rank(Search(float_onnx, samples, CONFIG, num_threads=1))
    assert shown == [[]]


def test_a_stopped_search_goes_on_where_it_stood(float_onnx, samples, monkeypatch):
    whole = rank(Search(float_onnx, samples, CONFIG, records=float_onnx.with_suffix(".other")))
    plain, ran = Judge.verdict, []

    def stop_at_the_fourth(self, model):
        ran.append(model)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return plain(self, model)

    monkeypatch.setattr(Judge, "verdict", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        rank(Search(float_onnx, samples, CONFIG, num_threads=1))
    assert rank(Search(float_onnx, samples, CONFIG, num_threads=1)) == whole
    assert len(ran) == 1 + len(CONVS) + 1  # the float network, each layer, the one cut short


def test_a_line_that_was_cut_short_is_run_again_and_harms_nothing(tmp_path):
    path = tmp_path / "trials.jsonl"
    journal = Journal(path, "key")
    verdict = Verdict((1.5, 2.25), 10.0, 0.5)
    journal.add(["b", "a"], verdict, 0.1)
    journal.add(["c"], verdict, 0.1)
    path.write_bytes(path.read_bytes()[:-20])
    again = Journal(path, "key")
    assert again.find(["a", "b"]) == verdict
    assert again.find(["c"]) is None
    again.add(["c"], verdict, 0.1)
    assert Journal(path, "key").find(["c"]) == verdict
    assert Journal(path, "another").find(["c"]) is None
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [row["int8"] for row in rows] == [["a", "b"], ["c"]]


def test_a_journal_that_cannot_be_read_or_written_is_refused(tmp_path):
    with pytest.raises(CrowdRTError, match="cannot be read"):
        Journal(tmp_path, "key")
    with pytest.raises(CrowdRTError, match="could not be written"):
        Journal(tmp_path / "none" / "t.jsonl", "key").add(["a"], Verdict((1.0,), 1.0, 0.0), 0.1)


@pytest.mark.parametrize(("num", "expected"), [(1, (1, 1)), (2, (1, 1)), (5, (3, 2)), (99, (3, 2))])
def test_who_calibrates_does_not_judge(num, expected, tmp_path):
    samples = [Sample(image=tmp_path / f"{i}.png", heads=None) for i in range(num)]
    config = SensitivityConfig(calibration=replace(MINMAX, num_images=3), num_judged=2)
    calibrating, judging = split(samples, config)
    assert (len(calibrating), len(judging)) == expected
    assert num == 1 or not {s.image for s in calibrating} & {s.image for s in judging}


@pytest.mark.parametrize(
    "wrong", [{"num_judged": 0}, {"by": "mood"}, {"tolerance": 0.0}, {"least_int8": 1.1}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(RecipeError, match=str(next(iter(wrong.values())))):
        SensitivityConfig(**wrong)


def layer(i, sqnr_db=30.0):
    error = CountError(change=0.02 / (i + 1), bias=-0.01 / (i + 1), largest=0.03, mae_change=None)
    return Layer(f"/network/part/part.{i}/Conv", 0.01, error, sqnr_db)


def test_a_plot_has_a_row_for_each_layer_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("crowdrt.calibration.sensitivity.plot.MOST_LAYERS", 3)
    layers = [layer(i, None if i == 1 else 30.0) for i in range(5)]
    heights = []
    for drawn in (layers[:2], layers[:3], layers):
        write_plot(drawn, tmp_path / "plot.png", kept=[layers[0].name])
        with Image.open(tmp_path / "plot.png") as image:
            colours = {colour[:3] for _, colour in image.convert("RGB").getcolors(1 << 24)}
            heights.append(image.height)
        assert {(0, 114, 178), (213, 94, 0)} <= colours  # in INT8, kept in float
    assert heights[0] < heights[1] == heights[2]


def test_names_are_shown_without_what_all_share():
    names = ["/network/front/front.0/Conv", "/network/front/front.1/Conv", "/network/back/b/Conv"]
    assert short_names(names) == ["front/front.0", "front/front.1", "back/b"]
    assert short_names(["/network/front/Conv"]) == ["Conv"]
    assert short_names(["a", "b"]) == ["a", "b"]
    assert short_names(["x/Conv", "x/y/Conv"]) == ["Conv", "y/Conv"]
