"""Accuracy against latency in one picture that can be read without the table."""

import io
from collections.abc import Sequence
from itertools import pairwise, product
from math import cos, pi, sin
from typing import TYPE_CHECKING, Any

from crowdrt.benchmarks.labels import size_label
from crowdrt.benchmarks.tables.compression.judgement import Judged
from crowdrt.benchmarks.tables.compression.render import threads_of
from crowdrt.lazy import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "teacher": "#1c2330",
    "none": "#8a94a6",
    "quantization": "#7a4fd0",
    "pruning": "#e0672d",
    "distillation": "#2f6fed",
}
COMBINED = "#0f8a5f"
MARKERS = {"fp32": "o", "int8 PTQ": "s", "int8 trained": "D", "fp32 eager": "^"}
LOG_FROM = 6.0  # ratio of the slowest to the fastest from which the axis is logarithmic
FAINT, GRID = "#667085", "#e4e7ec"
BORDER_PX = 2.0  # around a name
PIECES = 40  # of a line between two corners of the front
SIZE_IN = (12.0, 8.0)
DPI = 150
DISTANCES_PT = (9, 17, 27, 39, 53, 69, 87, 107, 129, 153, 179)  # of a name from its point
DIRECTIONS = tuple(
    (cos(angle), sin(angle)) for angle in (pi / 12 * k for k in (1, -1, 11, -11, *range(-10, 11)))
)


def compression_plot(rows: Sequence[Judged]) -> bytes | None:
    """Draw every row that has an error and a latency; return a PNG, or None where none has."""
    shown = [each for each in rows if each.row.mae and each.row.median_ms]
    if not shown:
        return None
    figure, _ = drawn(shown)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def drawn(shown: Sequence[Judged]) -> "tuple[Figure, Axes]":
    """Return the plot, everything in its place."""
    figure, axes = canvas()
    times = [each.row.median_ms or 0.0 for each in shown]
    if max(times) / min(times) > LOG_FROM:
        axes.set_xscale("log")
        from_ticks(axes)
    axes.plot(
        *zip(*front_of(shown), strict=True), color=COMBINED, linewidth=1.2, zorder=1, label="front"
    )
    for each in shown:
        draw_point(axes, each)
    axes.margins(x=0.16, y=0.14)
    name_axes(axes, shown)
    legend(axes, shown)
    place_labels(figure, axes, shown)
    return figure, axes


def front_of(shown: Sequence[Judged]) -> list[tuple[float, float]]:
    """Return the corners of the front, from left to right."""
    front = [each.row for each in shown if each.on_front]
    return sorted((row.median_ms or 0.0, row.mean_mae or 0.0) for row in front)


def canvas() -> "tuple[Figure, Axes]":
    """Return an empty plot."""
    figure_class = require("matplotlib.figure", extra="report").Figure
    figure: Figure = figure_class(figsize=SIZE_IN, layout="constrained")
    require("matplotlib.backends.backend_agg", extra="report").FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def from_ticks(axes: "Axes") -> None:
    """Write the ticks of a logarithmic axis as plain numbers."""
    ticker = require("matplotlib.ticker", extra="report")
    axes.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def colour(kind: str) -> str:
    """Return a kind's colour; combinations of two share one."""
    return COLOURS.get(kind, COMBINED)


def draw_point(axes: "Axes", each: Judged) -> None:
    """Draw a row: its mean error with the spread over seeds; hollow where it is dominated."""
    row = each.row
    axes.errorbar(
        [row.median_ms or 0.0],
        [row.mean_mae or 0.0],
        yerr=row.spread_mae or 0.0,
        fmt=MARKERS.get(row.form, "o"),
        color=colour(row.kind),
        markerfacecolor=colour(row.kind) if each.on_front else "white",
        markersize=8,
        capsize=3,
        elinewidth=1,
        zorder=3,
    )


def name_axes(axes: "Axes", shown: Sequence[Judged]) -> None:
    """Say what the axes are, with units, and which way is better."""
    row = next((e.row for e in shown if e.row.form != "fp32 eager"), shown[0].row)
    axes.set_xlabel(
        f"median latency of one {size_label(row.size)} photograph, ms "
        f"({threads_of(row)}; left is faster)"
    )
    axes.set_ylabel(f"MAE on {row.test}, people (down is better)")
    axes.set_title(
        "Accuracy against latency. Filled: on the Pareto front; bars: ± standard deviation over "
        "seeds",
        fontsize=10,
        color=FAINT,
        loc="left",
    )


def legend(axes: "Axes", shown: Sequence[Judged]) -> None:
    """Name colours and shapes, those that occur."""
    line = require("matplotlib.lines", extra="report").Line2D
    kinds = list(dict.fromkeys(each.row.kind for each in shown))
    forms = [form for form in MARKERS if any(each.row.form == form for each in shown)]
    handles = [
        *(line([], [], marker="o", linestyle="", color=colour(kind), label=kind) for kind in kinds),
        *(
            line([], [], marker=MARKERS[form], linestyle="", color=FAINT,
                 markerfacecolor="white", label=form)
            for form in forms
        ),
        line([], [], color=COMBINED, label="Pareto front"),
    ]  # fmt: skip
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="upper left",
                bbox_to_anchor=(1.0, 1.0))  # fmt: skip


def place_labels(figure: "Figure", axes: "Axes", shown: Sequence[Judged]) -> None:
    """Write each row's name beside its point where nothing is yet, and as near as that allows."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    taken = [*(point_box(axes, each) for each in shown), *front_boxes(axes, shown)]
    inside = axes.get_window_extent(renderer)
    for each in sorted(shown, key=lambda each: each.row.mean_mae or 0.0):
        taken.append(best_place(axes, each, taken, inside, renderer))


def point_box(axes: "Axes", each: Judged) -> Any:
    """Return the pixels that a point and its error bar take."""
    box = require("matplotlib.transforms", extra="report").Bbox
    mae, deviation = each.row.mean_mae or 0.0, each.row.spread_mae or 0.0
    ends = [(each.row.median_ms or 0.0, mae + sign * deviation) for sign in (-1, 1)]
    (x, low), (_, high) = axes.transData.transform(ends)
    half = 6.0 * DPI / 72 * (axes.figure.dpi / DPI)
    return box([[x - half, low - half], [x + half, high + half]])


def front_boxes(axes: "Axes", shown: Sequence[Judged]) -> list[Any]:
    """Return the pixels that the line of the front takes, in short pieces."""
    bbox = require("matplotlib.transforms", extra="report").Bbox
    corners = axes.transData.transform(front_of(shown)).tolist()
    pieces = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        for k in range(PIECES):
            x, y = x0 + (x1 - x0) * k / PIECES, y0 + (y1 - y0) * k / PIECES
            pieces.append(bbox([[x - 2, y - 2], [x + 2, y + 2]]))
    return pieces


def best_place(axes: "Axes", each: Judged, taken: Sequence[Any], inside: Any, renderer: Any) -> Any:
    """Write a point's name at the nearest place that covers least; return the pixels it takes."""
    measured = written(axes, each, DISTANCES_PT[0], DIRECTIONS[0])
    box = text_box(measured, renderer)
    measured.remove()
    tried = []
    for distance, direction in product(DISTANCES_PT, DIRECTIONS):
        there = moved(axes, each, box, distance, direction)
        covered = sum(overlap(there, other) for other in taken) + 4 * outside(there, inside)
        tried.append((covered, distance, direction))
        if covered == 0:
            break
    _, distance, direction = min(tried, key=lambda each: each[0])
    return text_box(written(axes, each, distance, direction), renderer)


def moved(
    axes: "Axes", each: Judged, box: Any, distance: float, direction: tuple[float, float]
) -> Any:
    """Return the pixels that a name of this size would take some way off its point."""
    x, y = axes.transData.transform((each.row.median_ms or 0.0, each.row.mean_mae or 0.0))
    per_pt = axes.figure.dpi / 72
    x, y = x + distance * direction[0] * per_pt, y + distance * direction[1] * per_pt
    left = x - BORDER_PX if direction[0] > 0 else x - box.width + BORDER_PX
    bbox = require("matplotlib.transforms", extra="report").Bbox
    return bbox.from_bounds(left, y - box.height / 2, box.width, box.height)


def written(axes: "Axes", each: Judged, distance: float, direction: tuple[float, float]) -> Any:
    """Write a point's name some way off, with a line to it."""
    x, y = direction
    row = each.row
    return axes.annotate(
        row.label,
        (row.median_ms or 0.0, row.mean_mae or 0.0),
        xytext=(distance * x, distance * y),
        textcoords="offset points",
        fontsize=8.5,
        fontweight="bold" if each.on_front else "normal",
        color=colour(row.kind),
        ha="left" if x > 0 else "right",
        va="center",
        arrowprops={"arrowstyle": "-", "color": colour(row.kind), "linewidth": 0.5, "alpha": 0.6},
    )


def text_box(text: Any, renderer: Any) -> Any:
    """Return the pixels of a name, without the line to its point."""
    text.update_positions(renderer)
    text_class = require("matplotlib.text", extra="report").Text
    return text_class.get_window_extent(text, renderer).padded(BORDER_PX)


def overlap(one: Any, other: Any) -> float:
    """Return the pixels that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0.0, width) * max(0.0, height))


def outside(box: Any, inside: Any) -> float:
    """Return the pixels of a box that lie outside another one."""
    return float(box.width * box.height - overlap(box, inside))
