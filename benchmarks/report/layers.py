"""The report's plots of layers: how long each takes, and where it stands below the roofline."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from crowdrt.benchmarks.labels import significant, size_label
from crowdrt.benchmarks.layers.records import LayerCost, LayerProfile, layer_costs
from crowdrt.benchmarks.report.plots import FONT_PT, Look, canvas, png
from crowdrt.engines.layers.roofline import OPERATIONS_PER_MAC
from crowdrt.lazy import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL = 0.015  # layers that take less than this of every engine's time share one row
SERIES = {"fp32": 1, "int8": 2, "fp16": 3, "bf16": 3}  # which colour; of anything else, grey
MIXED = "mixed"
DOT = 900.0  # square points of a layer that took all the time
NAMED = 1  # layer of each engine has its name below its dot: the slowest
GIGA = 1e9
MIB = 2**20

Row = Mapping[int, tuple[float, str]]  # engine's place -> milliseconds, precision


def layers_plot(profiles: Sequence[LayerProfile], look: Look) -> bytes:
    """Draw a bar per layer and engine, coloured by what it runs in; return a PNG.

    Args:
        profiles: of one network at one size; their bars stand below each other in this order.
        look: the page it is drawn for.
    """
    rows = bars(profiles)
    step = (0.2 if look.narrow else 0.13) * len(profiles) + (0.3 if look.narrow else 0.12)
    figure, axes = canvas(look, height_in=0.9 + step * len(rows))
    height = 0.8 / len(profiles) * (0.75 if look.narrow else 1.0)
    for place, row in enumerate(rows.values()):
        for which, (spent, precision) in row.items():
            offset = (which - (len(profiles) - 1) / 2) * height
            draw_bar(axes, place + offset, spent, precision, height, look)
    longest = max((spent for row in rows.values() for spent, _ in row.values()), default=1.0)
    axes.set_xlim(0, longest * (1.25 if look.narrow else 1.12))
    axes.set_ylim(len(rows) - 0.4, -0.9 if look.narrow else -0.6)
    axes.set_xlabel("ms", color=look.theme.faint)
    name_bars(axes, list(rows), look)
    add_legend(axes, {p for row in rows.values() for _, p in row.values()}, look)
    return png(figure)


def bars(profiles: Sequence[LayerProfile]) -> dict[str, Row]:
    """Return layer -> its bars, in the order in which layers run; short ones together at the end.

    What a runtime calls by one name, such as its changes of layout, is one row.
    """
    rows: dict[str, dict[int, tuple[float, str]]] = {name: {} for name in order(profiles)}
    for which, profile in enumerate(profiles):
        for layer in profile.layers:
            add(rows[layer.name], which, layer.ms, layer.precision or "?")
    totals = [profile.layers_ms or 1.0 for profile in profiles]
    small = [
        name
        for name, row in rows.items()
        if all(spent < SMALL * totals[which] for which, (spent, _) in row.items())
    ]
    if len(small) > 1:
        rest: dict[int, tuple[float, str]] = {}
        for name in small:
            for which, (spent, precision) in rows.pop(name).items():
                add(rest, which, spent, precision)
        rows[f"{len(small)} short layers"] = rest
    return dict(rows)


def add(row: dict[int, tuple[float, str]], which: int, spent: float, precision: str) -> None:
    """Add a layer to a row, which is of mixed precision once it holds two."""
    before, known = row.get(which, (0.0, precision))
    row[which] = (before + spent, precision if precision == known else MIXED)


def order(profiles: Sequence[LayerProfile]) -> list[str]:
    """Return every layer's name once; what only some engines have stands behind what it follows."""
    names: list[str] = []
    for profile in profiles:
        place = 0
        for layer in profile.layers:
            if layer.name in names:
                place = names.index(layer.name) + 1
            else:
                names.insert(place, layer.name)
                place += 1
    return names


def draw_bar(
    axes: "Axes", place: float, spent: float, precision: str, height: float, look: Look
) -> None:
    """Draw one bar with its figure at the end."""
    axes.barh(place, spent, height=height * 0.9, color=colour_of(precision, look))
    axes.annotate(
        significant(spent, 2),
        (spent, place),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=FONT_PT - 1.5,
        color=look.theme.faint,
    )


def name_bars(axes: "Axes", names: Sequence[str], look: Look) -> None:
    """Name each row at its left, or above it where there is no room."""
    places = range(len(names))
    if not look.narrow:
        axes.set_yticks(list(places), [brief(name) for name in names])
        return
    axes.set_yticks([])
    across = axes.get_yaxis_transform()
    for place, name in zip(places, names, strict=True):
        axes.text(
            0, place - 0.44, brief(name), transform=across, fontsize=FONT_PT - 0.5, va="center",
            color=look.theme.text,
        )  # fmt: skip


def brief(name: str) -> str:
    """Return the end of a layer's path, which tells it from its neighbours."""
    return "/".join(name.strip("/").split("/")[-2:])


def colour_of(precision: str | None, look: Look) -> str:
    """Return the colour of a precision."""
    return look.theme.series[SERIES.get(precision or "", 0)]


def add_legend(axes: "Axes", precisions: set[str], look: Look) -> None:
    """Say which colour is which precision."""
    patch = require("matplotlib.patches", extra="report").Patch
    shown = sorted(precisions, key=lambda each: (SERIES.get(each, 9), each))
    axes.legend(
        handles=[patch(color=colour_of(each, look), label=label_of(each)) for each in shown],
        frameon=False, labelcolor=look.theme.text, fontsize=FONT_PT, loc="lower right",
        handlelength=1.0,
    )  # fmt: skip


def label_of(precision: str) -> str:
    """Return how a precision is written in a legend."""
    return precision if precision == MIXED else precision.upper()


def roofline_plot(profiles: Sequence[LayerProfile], look: Look) -> bytes:
    """Draw every layer that multiplies by its operations per byte and per second; return a PNG.

    Roofs are what this machine was measured to do. A layer above its roof stays where it is.

    Args:
        profiles: with peaks of one machine.
        look: the page it is drawn for.
    """
    figure, axes = canvas(look, height_in=look.width_in * (1.05 if look.narrow else 0.58))
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = [cost for profile in profiles for cost in draw_dots(axes, profile, look)]
    places = [place for cost in shown if (place := place_of(cost)) is not None]
    draw_roofs(axes, profiles[0], [intensity for intensity, _ in places], look)
    axes.set_xlabel("operations per byte", color=look.theme.faint)
    axes.set_ylabel("GOP/s", color=look.theme.faint)
    axes.grid(axis="y", color=look.theme.grid, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    add_legend(axes, {cost.layer.precision or "?" for cost in shown}, look)
    return png(figure)


def draw_dots(axes: "Axes", profile: LayerProfile, look: Look) -> list[LayerCost]:
    """Draw one engine's layers, the slowest with its name; return those that have a place."""
    costs = [cost for cost in layer_costs(profile) if place_of(cost) is not None]
    costs.sort(key=lambda cost: -cost.ms)
    for rank, cost in enumerate(costs):
        intensity, rate = place_of(cost) or (1.0, 1.0)
        size = max(6.0, DOT * cost.share * (0.5 if look.narrow else 1.0))
        colour = colour_of(cost.layer.precision, look)
        axes.scatter(intensity, rate / GIGA, s=size, color=colour, alpha=0.55, linewidth=0)
        if rank < NAMED:
            axes.annotate(
                brief(cost.layer.name), (intensity, rate / GIGA), xytext=(0, -11),
                textcoords="offset points", ha="center", va="center", color=look.theme.faint,
                fontsize=FONT_PT - 2,
            )  # fmt: skip
    return costs


def place_of(cost: LayerCost) -> tuple[float, float] | None:
    """Return a layer's operations per byte and per second; None of one that multiplies nothing."""
    if not (cost.layer.macs and cost.layer.num_bytes and cost.macs_per_s):
        return None
    operations = OPERATIONS_PER_MAC * cost.layer.macs
    return operations / cost.layer.num_bytes, OPERATIONS_PER_MAC * cost.macs_per_s


def draw_roofs(
    axes: "Axes", profile: LayerProfile, intensities: Sequence[float], look: Look
) -> None:
    """Draw the memory's slope up to the peak of each precision, and that peak."""
    peaks = profile.limits
    ridges = [rate / peaks.bytes_per_s for rate in peaks.operations_per_s.values()]
    left, right = min([1.0, *intensities]) / 2, max([1.0, *ridges, *intensities]) * 4
    axes.set_xlim(left, right)
    top = max(peaks.operations_per_s.values(), default=peaks.bytes_per_s)
    slope = [left, top / peaks.bytes_per_s]
    line: dict[str, Any] = {"linewidth": 1.2, "zorder": 0}
    axes.plot(slope, [peaks.bytes_per_s * x / GIGA for x in slope], color=look.theme.faint, **line)
    for precision, rate in peaks.operations_per_s.items():
        ridge = rate / peaks.bytes_per_s
        axes.plot([ridge, right], [rate / GIGA] * 2, color=colour_of(precision, look), **line)
        axes.annotate(
            f"{precision.upper()} {significant(rate / GIGA)} GOP/s", (ridge, rate / GIGA),
            xytext=(12, 4), textcoords="offset points", color=look.theme.text,
            fontsize=FONT_PT - 0.5,
        )  # fmt: skip
    middle = (left * slope[1]) ** 0.5
    axes.annotate(
        f"copy {significant(peaks.bytes_per_s / GIGA)} GB/s",
        (middle, peaks.bytes_per_s * middle / GIGA), xytext=(-8, 3), textcoords="offset points",
        ha="right", color=look.theme.text, fontsize=FONT_PT - 0.5,
    )  # fmt: skip


def layers_caption(profiles: Sequence[LayerProfile]) -> str:
    """Return which bar is which engine, and what its layers do not explain."""
    said = [
        f"{profile.precision.upper()} file: {significant(median(profile.whole_ms))} ms without the "
        f"profiler (median of {len(profile.whole_ms)} runs, {in_a_word(profile.verdict)}), "
        f"{significant(profile.layers_ms)} ms in layers (medians of {len(profile.profiled_ms)})"
        for profile in profiles
    ]
    places = "From top to bottom of a row: " if len(profiles) > 1 else ""
    return f"{places}{'; '.join(said)}. Colour: what a layer runs in."


def in_a_word(verdict: str) -> str:
    """Return a verdict without its reasons: valid, unstable, shared."""
    return ", ".join(part.partition(":")[0] for part in verdict.split("; "))


def roofline_caption(profiles: Sequence[LayerProfile]) -> str:
    """Return what the roofs are and what is not shown."""
    runtimes = profiles[0].peaks_by
    by = ", ".join(f"{precision.upper()} by {name}" for precision, name in runtimes.items())
    copied = profiles[0].copied_bytes
    of = "" if copied is None else f" of {significant(copied / MIB)} MiB"
    doubt = f" ({profiles[0].doubt}: they may be higher)" if profiles[0].doubt else ""
    return (
        "A dot per layer that multiplies, its area the share of the time. Roofs: the best of "
        f"repeated dense products ({by}) and of a copy{of}, with as many threads{doubt}. A dot "
        "above its roof had its data in a cache, or multiplies less than its definition says."
    )


def pictures(
    profiles: Sequence[LayerProfile],
) -> list[tuple[str, str, str, Callable[[Look], bytes]]]:
    """Return name, title, caption and drawing of both plots of engines at one size."""
    size = size_label(profiles[0].size)
    return [
        (
            "layers",
            f"Layers at {size}",
            layers_caption(profiles),
            lambda look: layers_plot(profiles, look),
        ),
        (
            "roofline",
            f"Layers below the roofline, at {size}",
            roofline_caption(profiles),
            lambda look: roofline_plot(profiles, look),
        ),
    ]
