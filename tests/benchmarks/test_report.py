import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from examples import COSTS, MACHINE, a_race, measured
from PIL import Image

from crowdrt.benchmarks.accuracy.counts import CountRow, accuracy
from crowdrt.benchmarks.report.page import (
    AccuracyLine,
    OverlayFigure,
    Report,
    StageLine,
    headline,
    write_report,
)
from crowdrt.benchmarks.report.plots import DARK, LIGHT, Look, counts_plot, latency_plot
from crowdrt.benchmarks.tables.table import table_rows
from crowdrt.contracts import Artifact
from crowdrt.errors import BenchmarkError

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
COUNTS = [CountRow(image=f"{n}.jpg", count=n * 1.1, annotated=n) for n in range(10, 200, 10)]


def whole_report(folder: Path) -> Report:
    overlay = folder / "overlay.jpg"
    Image.new("RGB", (80, 60), (200, 30, 30)).save(overlay)
    race = a_race()
    return Report(
        title="csrnet-quarter & <friends>",
        when="21 November 2026, 10:15 UTC",
        machine=MACHINE,
        rows=table_rows(race, COSTS),
        measurements=race,
        accuracies=[
            AccuracyLine(
                label="1/4-CSRNet ONNX Runtime INT8",
                images="ShanghaiTech Part B test",
                accuracy=accuracy(COUNTS),
                rows=COUNTS,
            )
        ],
        overlays=[OverlayFigure(path=overlay, name=HOSTILE, count=211.4, annotated=196)],
        stages=[
            StageLine(name="export", detail="model.onnx", seconds=7.1, reused=True),
            StageLine(name="race", detail=f"{HOSTILE}", seconds=74.0, reused=False),
        ],
        files=[Artifact(path=Path("/home/someone/out/model.onnx"), kind="onnx", sha256="ab" * 32)],
        recipe={"name": "csrnet-quarter", "calibration": {"method": "percentile"}},
    )


class Page(HTMLParser):
    """What a browser would see: elements, what they load, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [v for k, v in attrs if k in ("src", "srcset", "href", "data", "poster")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_report(whole_report(folder), folder / "out")
    source = path.read_text(encoding="utf-8")
    return path, source, Page(source)


def test_the_page_loads_nothing(written):
    _, source, page = written
    assert page.loaded
    assert all(target.startswith("data:image/") for target in page.loaded)
    without_pictures = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", source)
    assert len(without_pictures) < 40_000
    assert not re.search(r"https?:|//[a-z]|url\(|@import", without_pictures)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'" in source


def test_hostile_names_stay_text(written):
    _, source, page = written
    assert page.handlers == []
    assert "<img src=x" not in source
    assert page.text.count(HOSTILE) == 2
    assert "csrnet-quarter & <friends>" in page.text


def test_the_page_holds_what_the_run_found(written):
    _, _, page = written
    for expected in (
        *("205.88", "35.0x", "25.0x", "9.0x", "66.58", "Example CPU", "avx2, fma"),
        *("its process was ended by SIGKILL", "others used 8 % of the CPU", "no CUDA device"),
        *("10.00", "+10.00", "211.4", "196", "1 of 2 stages reused", "calibration.method"),
        *("percentile", "model.onnx", "ab" * 32, "21 November 2026, 10:15 UTC"),
    ):
        if expected != "no CUDA device" or not Path("/dev/nvidia0").exists():
            assert expected in page.text, expected
    assert "/home/someone" not in page.text


def test_pictures_inside_can_be_decoded_and_plots_lie_beside(written):
    path, _, page = written
    sizes = set()
    for uri in page.loaded:
        content = base64.b64decode(uri.partition("base64,")[2], validate=True)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            sizes.add(image.size)
    assert (80, 60) in sizes
    beside = sorted(p.name for p in path.parent.iterdir())
    assert beside == ["counts.png", "latency-576x864.png", "report.html"]


def test_an_empty_report_is_a_page(tmp_path):
    path = write_report(Report(title="nothing", when="now", machine={}), tmp_path)
    page = Page(path.read_text())
    assert "nothing" in page.text
    assert "table" not in page.tags


def test_the_headline_is_the_fastest_student_of_the_first_size():
    race = [
        measured("csrnet", "1", "pytorch", 4000),
        measured("csrnet", "1/4", "onnxruntime", 160),
        measured("csrnet", "1/4", "onnxruntime", 100, precision="int8", verdict="shared: x"),
        measured("csrnet", "1", "pytorch", 90000, size=(2032, 2912)),
        measured("csrnet", "1/4", "onnxruntime", 100, size=(2032, 2912)),
    ]
    cards = headline(
        Report(title="", when="", machine={}, rows=table_rows(race), measurements=race)
    )
    assert [figure for figure, _, _ in cards] == ["40.0x", "100", "742"]
    assert "INT8 (shared: see the notes)" in cards[0][2]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_plots_are_pictures_of_their_page(theme, narrow):
    look = Look(theme=theme, narrow=narrow)
    for content in (
        latency_plot(a_race(), look),
        latency_plot([measured("csrnet", "1", "pytorch", 52_000.0)], look),
        latency_plot([], look),
        counts_plot([("FP32", COUNTS), ("INT8", COUNTS[:3])], look),
    ):
        with Image.open(io.BytesIO(content)) as image:
            corner = image.convert("RGB").getpixel((1, 1))
            assert "#{:02x}{:02x}{:02x}".format(*corner) == theme.page
            assert image.width == pytest.approx(200 * look.width_in, abs=2)
            assert len(image.convert("RGB").getcolors(2**20)) > 10


@pytest.mark.parametrize("name", ["gone.jpg", "overlay.svg"])
def test_a_picture_that_cannot_be_embedded_is_named(tmp_path, name):
    (tmp_path / "overlay.svg").write_text("<svg onload='alert(1)'/>")
    figure = OverlayFigure(path=tmp_path / name, name="x", count=1.0, annotated=None)
    report = Report(title="x", when="now", machine={}, overlays=[figure])
    with pytest.raises(BenchmarkError, match=name):
        write_report(report, tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()
