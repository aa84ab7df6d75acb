"""curves.png: a run's losses and validation errors so far, drawn anew at every validation."""

from pathlib import Path
from statistics import median
from typing import Any

from crowdrt.errors import MissingDependencyError
from crowdrt.lazy import require
from crowdrt.manifest import write_whole
from crowdrt.training.metrics import read_lines

NO_TERMS = ("step", "loss", "rate", "time")
INCHES = (9, 4)
WINDOW = 9  # lines of the log whose median is drawn


def draw_curves(out: Path, *, score: str) -> None:
    """Draw what `out` holds of a run so far; nothing where matplotlib is not installed.

    Args:
        out: the folder of the run.
        score: which validation error chooses the best network.
    """
    try:
        figures = require("matplotlib.figure", extra="report")
    except MissingDependencyError:
        return
    figure = figures.Figure(figsize=INCHES, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_losses(left, read_lines(out / "losses.jsonl"))
    draw_errors(right, read_lines(out / "metrics.jsonl"), score)
    with write_whole(out / "curves.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def draw_losses(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Draw the medians of every term by its name, and their plain sum behind them."""
    steps = [line["step"] for line in lines]
    if lines:
        axes.plot(steps, [line["loss"] for line in lines], color="0.8", linewidth=0.8)
    names = [name for name in (lines[0] if lines else {}) if name not in NO_TERMS]
    for name in ["loss", *(names if len(names) > 1 else [])]:
        axes.plot(steps, smoothed([line.get(name, float("nan")) for line in lines]), label=name)
    axes.set(title="training loss", xlabel="step", yscale="log" if lines else "linear")
    if len(names) > 1:
        axes.legend(frameon=False, fontsize="small")


def draw_errors(axes: Any, lines: list[dict[str, Any]], name: str) -> None:
    """Draw a validation error, and mark the best."""
    lines = [line for line in lines if name in line]
    if lines:
        steps, values = [line["step"] for line in lines], [line[name] for line in lines]
        axes.plot(steps, values, marker="o", markersize=3)
        best = min(range(len(values)), key=values.__getitem__)
        axes.plot(steps[best], values[best], marker="o", color="tab:red")
        axes.annotate(
            f"{values[best]:.4g}", (steps[best], values[best]), (4, 6), textcoords="offset points"
        )
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
    axes.set(title="validation, best in red", xlabel="step")


def smoothed(values: list[float]) -> list[float]:
    """Return the median of the values around each.

    A loss falls by orders of magnitude: a mean would stay above all of its values for long.
    """
    half = WINDOW // 2
    return [median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
