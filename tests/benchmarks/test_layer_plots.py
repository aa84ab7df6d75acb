"""Bars and roofline of layers, and their place on the report's page."""

import io
from dataclasses import replace

import pytest
from PIL import Image
from profiles import PEAKS, a_layer, a_profile, two_files

from crowdrt.benchmarks.layers.records import layer_costs
from crowdrt.benchmarks.report.layers import (
    MIXED,
    bars,
    in_a_word,
    layers_caption,
    layers_plot,
    order,
    place_of,
    roofline_caption,
    roofline_plot,
)
from crowdrt.benchmarks.report.page import Report, write_report
from crowdrt.benchmarks.report.plots import DARK, LIGHT, Look

DPI = 50  # drawing takes a quarter of the time


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr("crowdrt.benchmarks.report.plots.DPI", DPI)


def test_layers_of_both_files_stand_in_one_order():
    assert order(two_files()) == [
        *("quantize", "/net/front.0/Conv", "/net/front.1/Conv", "/net/front.2/Conv"),
        *("/net/front.3/Conv", "/net/pool", "Reorder"),
    ]


def test_every_millisecond_has_a_bar():
    profiles = two_files()
    rows = bars(profiles)
    for which, profile in enumerate(profiles):
        drawn = sum(row[which][0] for row in rows.values() if which in row)
        assert drawn == pytest.approx(profile.layers_ms)
    assert rows["/net/front.0/Conv"] == {0: (9, "fp32"), 1: (3, "int8")}
    assert rows["/net/front.3/Conv"] == {0: (2, "fp32"), 1: (2, "fp32")}  # stayed float
    assert rows["quantize"] == {1: (3, "fp32")}
    assert rows["2 short layers"][1] == (pytest.approx(0.15), MIXED)
    assert list(rows)[-1] == "2 short layers"


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_pictures_are_of_their_page(theme, narrow):
    look = Look(theme=theme, narrow=narrow)
    for content in (
        layers_plot(two_files(), look),
        roofline_plot(two_files(), look),
    ):
        with Image.open(io.BytesIO(content)) as image:
            seen = image.convert("RGB")
            assert "#{:02x}{:02x}{:02x}".format(*seen.getpixel((1, 1))) == theme.page
            assert image.width == pytest.approx(DPI * look.width_in, abs=2)


def test_an_engine_without_layers_is_drawn():
    look = Look(theme=LIGHT, narrow=False)
    for draw in (layers_plot, roofline_plot):
        assert draw([a_profile("fp32", [])], look).startswith(b"\x89PNG")


def test_bars_have_the_colour_of_what_a_layer_runs_in():
    def colours(profile):
        with Image.open(io.BytesIO(layers_plot([profile], Look(theme=LIGHT, narrow=False)))) as it:
            found = it.convert("RGB").getcolors(2**20)
        return {"#{:02x}{:02x}{:02x}".format(*colour): count for count, colour in found}

    float_bars = colours(a_profile("int8", [a_layer("a", 5.0)]))
    code_bars = colours(a_profile("int8", [a_layer("a", 5.0, precision="int8")]))
    blue, orange = LIGHT.series[1], LIGHT.series[2]
    assert float_bars[blue] > 100
    assert orange not in float_bars
    assert code_bars[orange] > 100
    assert blue not in code_bars


def test_a_dot_is_where_its_layer_is():
    cost = layer_costs(a_profile("fp32", [a_layer("a", 20.0)]))[0]
    assert place_of(cost) == (pytest.approx(100), pytest.approx(5e10))
    without = layer_costs(a_profile("fp32", [a_layer("a", 20.0, macs=None)]))[0]
    assert place_of(without) is None


def test_captions_say_what_is_not_explained_and_doubted():
    shared = replace(
        two_files()[0],
        verdict="unstable: p10 to p90 spans 50 %, median known to 4 %; shared: others used 8 %",
    )
    assert in_a_word(shared.verdict) == "unstable, shared"
    caption = layers_caption([shared, two_files()[1]])
    assert (
        "FP32 file: 30.0 ms without the profiler (median of 3 runs, unstable, shared), " in caption
    )
    assert "29.2 ms in layers (medians of 3); INT8 file: 13.0 ms" in caption
    assert "higher" not in roofline_caption([shared])
    busy = replace(shared, peaks=PEAKS | {"others": 0.5})
    assert "others used 50 % of the CPU meanwhile: they may be higher" in roofline_caption([busy])


def test_the_page_shows_them(tmp_path):
    report = Report(title="x", when="now", machine={}, layers=two_files())
    page = write_report(report, tmp_path).read_text()
    assert page.count("data:image/png") == 8
    assert "Layers at 576x864" in page
    assert "roofline" in page
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        *("layers-576x864.png", "roofline-576x864.png"),
    ]


def test_captions_give_each_engines_own_runs_and_what_was_copied():
    fp32, int8 = two_files()
    caption = layers_caption([fp32, replace(int8, whole_ms=(13.0,) * 70, profiled_ms=(1.0,) * 25)])
    assert "(median of 3 runs, valid), 29.2 ms in layers (medians of 3)" in caption
    assert "(median of 70 runs, valid)" in caption
    assert "in layers (medians of 25)" in caption
    copied = {**PEAKS["how"], "copy": {"bytes": 64 * 2**20}}
    said = roofline_caption([replace(fp32, peaks=PEAKS | {"how": copied})])
    assert "and of a copy of 64.0 MiB, with" in said
    assert "larger than the caches" not in said
    assert "and of a copy, with" in roofline_caption([replace(fp32, peaks=PEAKS | {"how": {}})])


def test_a_roofline_without_a_product_is_drawn():
    bare = a_profile("fp32", [], peaks=PEAKS | {"operations_per_s": {}})
    assert roofline_plot([bare], Look(theme=LIGHT, narrow=False)).startswith(b"\x89PNG")
