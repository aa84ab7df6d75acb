"""Layers drawn by what INT8 in each of them alone does to counts."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crowdrt.calibration.sensitivity.rank import Layer
from crowdrt.lazy import require
from crowdrt.manifest import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LAYERS = 40  # that are drawn: the rest harms less than any of them
DPI = 160
FONT_PT = 8.5
ROW_IN, BORDER_IN, WIDTH_IN = 0.24, 1.1, 9.0
TEXT, FAINT, GRID = "#1c2330", "#667085", "#e4e7ec"
# Okabe and Ito's blue and vermilion, which colour-blind people tell apart
INT8, KEPT = "#0072b2", "#d55e00"


def write_plot(layers: Sequence[Layer], out: Path, kept: Collection[str] = ()) -> None:
    """Draw count error, SQNR and share of the MACs of each layer into a PNG.

    Args:
        layers: the most harmful first.
        out: the PNG file to write.
        kept: layers that a repair leaves in float.
    """
    drawn = layers[:MOST_LAYERS]
    figure = require("matplotlib.figure", extra="report").Figure(
        figsize=(WIDTH_IN, BORDER_IN + ROW_IN * len(drawn)), dpi=DPI
    )
    figure.set_layout_engine("constrained", wspace=0.06)  # or the axes' last numbers touch
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 1))
    colours = [KEPT if layer.name in kept else INT8 for layer in drawn]
    draw_errors(panels[0], drawn, colours)
    draw_sqnr(panels[1], drawn, colours)
    places = range(len(drawn))
    panels[2].barh(places, [100 * layer.macs_share for layer in drawn], color=FAINT, height=0.5)
    panels[2].set_xlabel("share of the MACs, %", color=TEXT, fontsize=FONT_PT)
    panels[0].set_yticks(places, short_names([layer.name for layer in drawn]))
    panels[0].set_ylim(len(drawn) - 0.4, -0.6)  # the first on top
    for panel in panels:
        tidy(panel)
    figure.suptitle(title(layers, kept), fontsize=FONT_PT + 1, color=TEXT)
    with write_whole(out) as temporary:
        figure.savefig(temporary, format="png")


def draw_errors(axes: "Axes", layers: Sequence[Layer], colours: Sequence[str]) -> None:
    """Draw how far counts move; bars point to where they move on average."""
    places = range(len(layers))
    errors = [layer.error for layer in layers]
    bars = [100 * math.copysign(error.change, error.bias) for error in errors]
    axes.barh(places, bars, color=colours, height=0.5)
    biases = [100 * error.bias for error in errors]
    axes.scatter(biases, places, s=26, marker="D", color="white", edgecolor=TEXT, linewidth=0.9)
    axes.axvline(0, color=TEXT, linewidth=0.8)
    axes.set_xlabel(
        "count error alone in INT8, %\nbar: mean of |change|, diamond: mean change",
        color=TEXT,
        fontsize=FONT_PT,
    )


def draw_sqnr(axes: "Axes", layers: Sequence[Layer], colours: Sequence[str]) -> None:
    """Draw the SQNR of the map; a layer that changes nothing has none."""
    for place, (layer, colour) in enumerate(zip(layers, colours, strict=True)):
        if layer.sqnr_db is not None:
            axes.plot([layer.sqnr_db], [place], "o", color=colour, markersize=5.5)
    axes.set_xlabel("SQNR of the map, dB\nfurther right is better", color=TEXT, fontsize=FONT_PT)


def tidy(axes: "Axes") -> None:
    """Leave out what carries no number."""
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=FONT_PT, colors=TEXT)


def title(layers: Sequence[Layer], kept: Collection[str]) -> str:
    """Say what is drawn, what is left out, and what the second colour means."""
    parts = ["each convolution in INT8 alone, the rest in float"]
    if len(layers) > MOST_LAYERS:
        parts.append(f"the {MOST_LAYERS} most harmful of {len(layers)}")
    if kept:
        parts.append("orange: kept in float")
    return "; ".join(parts)


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without the parts, between slashes, with which all of them begin or end."""
    parts = [name.split("/") for name in names]
    start = num_shared(parts)
    end = num_shared([[*reversed(each[start:])] for each in parts])
    return ["/".join(each[start : len(each) - end]) for each in parts]


def num_shared(parts: Sequence[Sequence[str]]) -> int:
    """Return how many first parts are the same in all names; the last part is never counted."""
    most = min(map(len, parts)) - 1
    return next((i for i in range(most) if len({each[i] for each in parts}) > 1), max(0, most))
