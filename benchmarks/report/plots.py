"""The report's plots, each for a light and a dark page, for a desk and for a phone."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from crowdrt.benchmarks.accuracy.counts import CountRow
from crowdrt.benchmarks.labels import engine_label, network_label, significant
from crowdrt.contracts import Measurement
from crowdrt.lazy import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SECONDS_FROM_MS = 10_000.0  # median from which the whole plot is in seconds
LOG_FROM = 6.0  # ratio of the slowest to the fastest from which the axis is logarithmic
DPI = 200
FONT_PT = 8.5


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one page background."""

    text: str
    faint: str
    grid: str
    page: str
    series: tuple[str, ...]


LIGHT = Theme(
    text="#1c2330",
    faint="#667085",
    grid="#e4e7ec",
    page="#ffffff",
    series=("#8a94a6", "#2f6fed", "#e0672d", "#7a4fd0"),
)
DARK = Theme(
    text="#e8ebf1",
    faint="#98a2b3",
    grid="#2b3342",
    page="#161b25",
    series=("#8a94a6", "#6ea0ff", "#ff9460", "#b794ff"),
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """For which page a plot is drawn."""

    theme: Theme
    narrow: bool  # a phone held upright

    @property
    def width_in(self) -> float:
        """Inches; text keeps one size, so a phone gets a plot of its own."""
        return 3.9 if self.narrow else 7.8


def latency_plot(rows: Sequence[Measurement], look: Look) -> bytes:
    """Draw every sample of each row, its p10 to p90 and its median; return a PNG.

    Args:
        rows: of one size, from top to bottom; rows without samples are left out.
        look: the page it is drawn for.
    """
    timed = [row for row in rows if row.samples_ms]
    step = 0.62 if look.narrow else 0.46
    figure, axes = canvas(look, height_in=0.75 + step * max(1, len(timed)))
    medians = [row.median_ms for row in timed] or [1.0]
    in_seconds = max(medians) >= SECONDS_FROM_MS
    per_unit, unit = (1000.0, "s") if in_seconds else (1.0, "ms")
    if max(medians) / min(medians) > LOG_FROM:
        axes.set_xscale("log")
    for place, row in enumerate(timed):
        _draw_row(axes, np.array(row.samples_ms) / per_unit, unit, row, -place, look)
    _set_limits(axes, [ms / per_unit for row in timed for ms in row.samples_ms] or [1.0], look)
    axes.set_ylim(-len(timed) + 0.4, 0.75 if look.narrow else 0.6)
    axes.set_xlabel(f"{unit} per photograph", color=look.theme.faint)
    _name_rows(axes, timed, look)
    return png(figure)


def counts_plot(series: Sequence[tuple[str, Sequence[CountRow]]], look: Look) -> bytes:
    """Draw counted against annotated people, one dot per photograph; return a PNG.

    Args:
        series: label and rows of each engine; rows without annotation are left out.
        look: the page it is drawn for.
    """
    figure, axes = canvas(look, height_in=look.width_in * (0.95 if look.narrow else 0.55))
    top = right = 1.0
    for index, (label, rows) in enumerate(series, start=1):
        known = [(row.annotated, row.count) for row in rows if row.annotated is not None]
        annotated, counted = np.array(known, float).reshape(-1, 2).T
        top, right = max([top, *annotated, *counted]), max([right, *annotated])
        colour = look.theme.series[index % len(look.theme.series)]
        axes.scatter(annotated, counted, s=16, color=colour, alpha=0.65, linewidth=0, label=label)
    axes.set_ylim(0, top * 1.05)
    axes.set_xlim(0, right * 1.05)
    axes.plot([0, top], [0, top], color=look.theme.faint, linewidth=0.8, dashes=(4, 3), zorder=0)
    axes.set_xlabel("annotated people", color=look.theme.faint)
    axes.set_ylabel("counted", color=look.theme.faint)
    axes.grid(axis="y", color=look.theme.grid, linewidth=0.8)
    axes.legend(
        frameon=False,
        labelcolor=look.theme.text,
        handletextpad=0.2,
        loc="upper left",
        fontsize=FONT_PT,
    )
    return png(figure)


def canvas(look: Look, *, height_in: float) -> tuple["Figure", "Axes"]:
    """Return an empty figure in the page's colours; no global state of matplotlib is used."""
    figure = require("matplotlib.figure", extra="report").Figure(
        figsize=(look.width_in, height_in), dpi=DPI, layout="constrained"
    )
    figure.set_facecolor(look.theme.page)
    axes: Axes = figure.subplots()
    axes.set_facecolor(look.theme.page)
    axes.grid(axis="x", color=look.theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=FONT_PT, colors=look.theme.faint)
    axes.tick_params(axis="y", colors=look.theme.text)
    axes.xaxis.label.set_fontsize(FONT_PT)
    axes.yaxis.label.set_fontsize(FONT_PT)
    return figure, axes


def _draw_row(
    axes: "Axes",
    samples: npt.NDArray[np.float64],
    unit: str,
    row: Measurement,
    place: float,
    look: Look,
) -> None:
    colour = look.theme.series[_series(row)]
    p10, p50, p90 = np.percentile(samples, [10, 50, 90])
    axes.plot([p10, p90], [place] * 2, color=colour, linewidth=9, alpha=0.3, solid_capstyle="butt")
    axes.plot(samples, np.full(len(samples), place), ".", color=colour, alpha=0.4, markersize=3)
    axes.plot([p50], [place], "|", color=colour, markersize=13, markeredgewidth=2.2)
    axes.annotate(
        f"{significant(p50)} {unit}",
        (float(samples.max()), place),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=FONT_PT,
        color=look.theme.text,
    )


def _set_limits(axes: "Axes", samples: Sequence[float], look: Look) -> None:
    """Leave room for the figures at the right end of every row."""
    low, high = min(samples), max(samples)
    if axes.get_xscale() == "log":
        ticker = require("matplotlib.ticker", extra="report")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlim(low / 1.3, high * (high / low) ** (0.34 if look.narrow else 0.16))
    else:
        axes.set_xlim(0, high * (1.4 if look.narrow else 1.15))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _name_rows(axes: "Axes", rows: Sequence[Measurement], look: Look) -> None:
    """Name each row at its left, or above it where there is no room."""
    labels = [f"{_network(row)}  {_engine(row)}" for row in rows]
    places = [-place for place in range(len(rows))]
    if not look.narrow:
        axes.set_yticks(places, labels)
        return
    axes.set_yticks([])
    across = axes.get_yaxis_transform()
    for place, label in zip(places, labels, strict=True):
        axes.text(0, place + 0.3, label, transform=across, fontsize=FONT_PT, color=look.theme.text)


def _series(row: Measurement) -> int:
    if row.engine.startswith("pytorch"):
        return 0
    return 2 if row.precision.startswith("int8") else 1


def _network(row: Measurement) -> str:
    return network_label(row.network, row.width)


def _engine(row: Measurement) -> str:
    return f"{engine_label(row.engine)} {row.precision.upper()}"


def png(figure: "Figure") -> bytes:
    """Return the figure with 256 colours: a third of the bytes, and no visible difference."""
    full, reduced = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", facecolor=figure.get_facecolor())
    Image.open(full).convert("RGB").quantize(256).save(reduced, "PNG", optimize=True)
    return reduced.getvalue()
