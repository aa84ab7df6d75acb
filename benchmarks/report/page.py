"""One page that proves a run: the table, the plots, the pictures, and what they were made from.

`report.html` needs nothing beside it: no script, no network, pictures inside. Every plot is also
written as a PNG for papers and slides.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.benchmarks.accuracy.comparison import Comparison
from crowdrt.benchmarks.accuracy.counts import Accuracy, CountRow
from crowdrt.benchmarks.labels import ABSENT, network_label, significant, size_label
from crowdrt.benchmarks.layers.records import LayerProfile
from crowdrt.benchmarks.report import layers
from crowdrt.benchmarks.report.plots import DARK, LIGHT, Look, counts_plot, latency_plot
from crowdrt.benchmarks.report.sections import ComparedNetworks, MethodsTable, StrippedNetwork
from crowdrt.benchmarks.tables.render import PAIRS, cells, notes
from crowdrt.benchmarks.tables.table import TableRow
from crowdrt.contracts import Artifact, Measurement, Size
from crowdrt.errors import BenchmarkError
from crowdrt.lazy import require
from crowdrt.manifest import write_whole

TEMPLATE = Path(__file__).with_name("report.html")
DRAWN = re.compile(
    r"(latency|layers|roofline)-\d+x\d+\.png|(counts|pareto)\.png"
)  # by reports alone
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True, kw_only=True)
class AccuracyLine:
    """One engine on one set of photographs."""

    label: str  # network first, precision last: 1/4-CSRNet INT8
    images: str  # ShanghaiTech Part B test
    accuracy: Accuracy | None  # None: nothing is annotated, or it was not even counted
    rows: Sequence[CountRow] = ()  # for the plot
    losses: Comparison | None = None  # against FP32
    gate: Mapping[str, Any] | None = None  # held, reason, unjudged; None: there is no gate

    @property
    def chip(self) -> str:
        """What the gate says, in a word."""
        if self.gate is None:
            return ABSENT
        return "held" if self.gate["held"] else "failed"


@dataclass(frozen=True, kw_only=True)
class OverlayFigure:
    """One drawn photograph; see `overlay.py`."""

    path: Path  # PNG or JPEG
    name: str  # of the photograph
    count: float
    annotated: int | None


@dataclass(frozen=True, kw_only=True)
class StageLine:
    """One stage of the run, in order."""

    name: str
    detail: str  # what it made
    seconds: float
    reused: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page; an empty part leaves its section out."""

    title: str
    when: str  # as it should be read, with the time zone
    machine: Mapping[str, Any]
    rows: Sequence[TableRow] = ()
    measurements: Sequence[Measurement] = ()
    layers: Sequence[LayerProfile] = ()
    accuracies: Sequence[AccuracyLine] = ()
    overlays: Sequence[OverlayFigure] = ()
    stripped: StrippedNetwork | None = None
    methods: MethodsTable | None = None
    comparison: ComparedNetworks | None = None
    stages: Sequence[StageLine] = ()
    files: Sequence[Artifact] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot as the page embeds it: four pictures, of which the browser takes one."""

    name: str
    title: str
    caption: str
    wide_light: str
    wide_dark: str
    narrow_light: str
    narrow_dark: str


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html` and the plots' PNG files into `folder`.

    Returns:
        The path of `report.html`; a plot lies beside it as `NAME.png`.
    """
    plots = [
        *_latency_plots(report, folder),
        *_layer_plots(report, folder),
        *_counts_plots(report, folder),
    ]
    pareto = _pareto_uri(report.comparison, folder)
    jinja2 = require("jinja2", extra="report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE.name).render(
        report=report,
        version=__version__,
        cards=headline(report),
        tables=_tables(report.rows),
        plots=plots,
        pareto=pareto,
        overlays=[(figure, _image_uri(figure.path)) for figure in report.overlays],
        facts=flattened(report.machine),
        recipe=flattened(report.recipe),
        num_reused=sum(stage.reused for stage in report.stages),
        significant=significant,
        absent=ABSENT,
    )
    path = folder / "report.html"
    with write_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    remove_others(
        folder, [*(f"{plot.name}.png" for plot in plots), *(["pareto.png"] * bool(pareto))]
    )
    return path


def remove_others(folder: Path, names: Sequence[str]) -> None:
    """Remove what an earlier report drew, and this one did not: it is of another run's rows."""
    for path in folder.glob("*.png"):
        if DRAWN.fullmatch(path.name) and path.name not in names:
            path.unlink(missing_ok=True)


def headline(report: Report) -> list[tuple[str, str, str]]:
    """Return up to four cards (figure, unit, explanation) of the fastest student.

    Only the size that was measured first is looked at: choosing among sizes would flatter.
    """
    first = report.measurements[0].size if report.measurements else None
    students = [row for row in report.rows if row.size == first and row.width != "1"]
    ranked = sorted((row.cpu_ratio, i) for i, row in enumerate(students) if row.cpu_ratio)
    if not ranked:
        return []
    best = students[ranked[-1][1]]
    text = cells(best)
    teacher = network_label(best.network, "1")
    doubt = "" if best.verdict == "valid" else f" ({text.verdict}: see the notes)"
    cards = [
        (text.speed_up.ours, "", f"the speed of {teacher} in PyTorch FP32: {best.label}{doubt}"),
        (significant((best.cpu_s or 0) * 1000), "ms", f"per {size_label(best.size)} photograph"),
        (text.peak_mib, "MiB", "peak memory of its process"),
    ]
    for line in report.accuracies:
        of_best = line.label.startswith(text.network) and line.label.endswith(text.precision)
        if of_best and line.accuracy is not None:
            what = f"mean absolute error, {line.images}"
            cards.append((significant(line.accuracy.mae), "people", what))
    return cards


def flattened(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in document.items():
        if isinstance(value, Mapping):
            pairs += flattened(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            pairs.append((f"{prefix}{name}", ", ".join(map(_plain, value)) or ABSENT))
        else:
            pairs.append((f"{prefix}{name}", _plain(value)))
    return pairs


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return ABSENT if value is None else str(value)


def _tables(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Return, for every size, what the page's table shows."""
    return [
        {
            "size": size_label(size),
            "columns": [
                (name, title, any(getattr(cells(row), name).ours != ABSENT for row in of_size))
                for name, title in PAIRS.items()
            ],
            "rows": [(row, cells(row)) for row in of_size],
            "notes": notes(of_size),
        }
        for size, of_size in _by_size(rows).items()
    ]


def _by_size(rows: Sequence[TableRow]) -> dict[Size, list[TableRow]]:
    grouped: dict[Size, list[TableRow]] = {}
    for row in rows:
        grouped.setdefault(row.size, []).append(row)
    return grouped


def _latency_plots(report: Report, folder: Path) -> list[Plot]:
    """Return one plot per size, its rows in the table's order."""
    measured = {(m.size, m.network, m.width, m.engine, m.precision): m for m in report.measurements}
    plots = []
    for size, rows in _by_size(report.rows).items():
        keys = [(size, r.network, r.width, r.engine, r.precision) for r in rows]
        shown = [measured[key] for key in keys if key in measured and measured[key].samples_ms]
        if shown:
            pictures = _pictures(lambda look, shown=shown: latency_plot(shown, look))
            title = f"Latency at {size_label(size)}"
            caption = "Tick: median. Bar: p10 to p90. Dots: every run, none left out."
            plots.append(_plot(f"latency-{size_label(size)}", title, caption, pictures, folder))
    return plots


def _layer_plots(report: Report, folder: Path) -> list[Plot]:
    """Return the bars and the roofline of the profiled engines, per size."""
    plots = []
    for size in dict.fromkeys(profile.size for profile in report.layers):
        shown = [profile for profile in report.layers if profile.size == size]
        for name, title, caption, draw in layers.pictures(shown):
            drawn = _pictures(lambda look, draw=draw: draw(look))
            plots.append(_plot(f"{name}-{size_label(size)}", title, caption, drawn, folder))
    return plots


def _counts_plots(report: Report, folder: Path) -> list[Plot]:
    series = [(line.label, line.rows) for line in report.accuracies if line.rows]
    if not series:
        return []
    caption = "One dot per photograph; on the dashed line, engine and people agree."
    pictures = _pictures(lambda look: counts_plot(series, look))
    return [_plot("counts", "Counted and annotated people", caption, pictures, folder)]


def _pictures(draw: Any) -> list[bytes]:
    return [
        draw(Look(theme=theme, narrow=narrow))
        for narrow in (False, True)
        for theme in (LIGHT, DARK)
    ]


def _plot(name: str, title: str, caption: str, pictures: list[bytes], folder: Path) -> Plot:
    """Write the picture for paper beside the report, and embed all of them."""
    with write_whole(folder / f"{name}.png") as temporary:
        temporary.write_bytes(pictures[0])
    wide_light, wide_dark, narrow_light, narrow_dark = (_data_uri(p, "image/png") for p in pictures)
    return Plot(
        name=name,
        title=title,
        caption=caption,
        wide_light=wide_light,
        wide_dark=wide_dark,
        narrow_light=narrow_light,
        narrow_dark=narrow_dark,
    )


def _pareto_uri(comparison: ComparedNetworks | None, folder: Path) -> str:
    """Write the comparison's plot beside the report, and return it for embedding."""
    if comparison is None or comparison.plot is None:
        return ""
    with write_whole(folder / "pareto.png") as temporary:
        temporary.write_bytes(comparison.plot)
    return _data_uri(comparison.plot, "image/png")


def _image_uri(path: Path) -> str:
    try:
        return _data_uri(path.read_bytes(), MIME[path.suffix.lower()])
    except (OSError, KeyError) as error:
        raise BenchmarkError(
            f"{path} cannot be put into the report: {error}",
            fix="run again, which draws the missing pictures; they are PNG or JPEG",
        ) from error


def _data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
