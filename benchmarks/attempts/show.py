"""A race of attempts as people read it: on a terminal, or as Markdown."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.attempts.attempt import Prediction
from crowdrt.benchmarks.attempts.records import NARROW, Outcome, Raced, Trial
from crowdrt.benchmarks.labels import ABSENT, significant, size_label
from crowdrt.benchmarks.tables.formats import markdown_row
from crowdrt.benchmarks.timing.statistics import uncertainty
from crowdrt.benchmarks.timing.verdict import said_of_others
from crowdrt.console import show_table, tell

BASELINES = ("baseline", "ms", "+-", "operations/s", "of the peak", "verdict")
ATTEMPTS = (
    *("attempt", "against", "predicted", "measured", "95 %", "result"),
    *("prediction", "density differs", "count differs", "verdict"),
)
PER_IMAGE = "†"
OTHER_FORMAT = "‡"
EARLIER = "*"
AS_WRITTEN = "§"


def baseline_cells(raced: Raced, trial: Trial) -> tuple[str, ...]:
    """Return the row of a baseline, a cell per heading of `BASELINES`."""
    row, share = raced.row, raced.share(trial.limits)
    if not row.samples_ms:
        return raced.name, *[ABSENT] * 4, row.verdict
    about = uncertainty(row.samples_ms, row.runs_per_visit)
    peak = trial.limits.operations_per_s.get(raced.form)
    return (
        raced.name,
        significant(row.median_ms),
        ABSENT if about is None else f"{about:.1%}",
        ABSENT if share is None or peak is None else rate(share * peak),
        ABSENT if share is None else f"{share:.0%}",
        row.verdict,
    )


def attempt_cells(outcome: Outcome) -> tuple[str, ...]:
    """Return the row of an attempt, a cell per heading of `ATTEMPTS`."""
    agreed, row = outcome.agreement, outcome.row
    marks = PER_IMAGE * (outcome.images_per_run > 1) + OTHER_FORMAT * (not outcome.exact)
    marks += AS_WRITTEN * (outcome.written is not None)
    interval = ABSENT
    if outcome.low is not None and outcome.high is not None:
        interval = f"{outcome.low:.2f} to {outcome.high:.2f}"
    return (
        f"{outcome.name}{marks}",
        outcome.baseline,
        predicted(outcome.prediction),
        ABSENT if outcome.ratio is None else f"{outcome.ratio:.2f}",
        interval,
        outcome.result,
        came_true(outcome),
        ABSENT if agreed is None else f"{agreed.difference:.1g}",
        ABSENT if agreed is None else f"{agreed.count_difference:.2g} of {agreed.count:.1f}",
        ABSENT if row is None else row.verdict,
    )


def came_true(outcome: Outcome) -> str:
    """Say whether a prediction held; absent where there was none, or nothing was measured."""
    if outcome.prediction is None or outcome.ratio is None:
        return ABSENT
    return {None: "open", True: "held", False: "missed"}[outcome.held]


def predicted(prediction: Prediction | None) -> str:
    """Return the predicted ratio, or range of it."""
    if prediction is None:
        return ABSENT
    mark = EARLIER if prediction.earlier else ""
    if prediction.low == prediction.high:
        return f"{prediction.low:.2f}{mark}"
    return f"{prediction.low:.2f} to {prediction.high:.2f}{mark}"


def rate(per_second: float) -> str:
    """Return operations per second in thousands of millions."""
    return f"{per_second / 1e9:,.0f} G"


def machine_line(trial: Trial) -> str:
    """Return what was raced where, and what this machine does at most."""
    limits = trial.limits
    rates = [f"{rate(found)} in {name}" for name, found in limits.operations_per_s.items()]
    others = trial.peaks.get("others")
    doubt = "" if others is None else said_of_others(others)
    return (
        f"{size_label(trial.size)}, {trial.num_threads} threads, {limits.device}, {trial.when}. "
        f"Peaks: {', '.join(rates)} operations/s, a copy {limits.bytes_per_s / 1e9:.1f} GB/s"
        f"{f' ({doubt})' if doubt else ''}."
    )


def notes(trial: Trial) -> list[str]:
    """Return what a reader of the tables must know."""
    said = [
        "measured: the median of a run, per image, over the baseline's of the same race; below 1 "
        "is faster",
        "result: faster or slower where the interval lies beyond 5 %, as far as ratios of two "
        "races may differ",
        "prediction: held where the interval lies in the predicted range, or, of a single ratio, "
        f"contains it and is no wider than {NARROW:.0%} of it; missed where they have nothing in "
        "common; open otherwise",
        "density differs: by this part of the baseline's largest value at most, on the race's "
        "photograph",
    ]
    marks = (
        (EARLIER, "not blind: something like it had been measured elsewhere, or by hand"),
        (PER_IMAGE, "throughput, not latency: a run counts two images; times are per image"),
        (OTHER_FORMAT, "another number format, not exact"),
        (
            AS_WRITTEN,
            "exact as the graph is written, run node by node; the runtime rounds what it computes "
            "in float otherwise, and a code that falls the other way moves all behind it",
        ),
    )
    shown = "".join(cell for each in trial.outcomes for cell in attempt_cells(each)[:3])
    return [*said, *(f"{mark} {what}" for mark, what in marks if mark in shown)]


def told(outcome: Outcome) -> str:
    """Return what an attempt changed, and why it was expected to do what."""
    prediction = outcome.prediction
    why = "no prediction was made"
    if prediction is not None:
        source = f" ({prediction.earlier})" if prediction.earlier else ""
        why = f"predicted {predicted(prediction)}: {prediction.reason}{source}"
    found = (outcome.found or {}).get("said")
    written = outcome.written
    proof = "" if written is None else f"as written it differs by {written.difference:.1g}"
    parts = [outcome.changed, why, outcome.about, f"chosen: {found}" if found else "", proof]
    return f"{outcome.name}: {'; '.join(filter(None, parts))}."


def markdown(trial: Trial) -> str:
    """Return both tables with what a reader must know."""
    baselines = [baseline_cells(each, trial) for each in trial.baselines]
    lines = [machine_line(trial), "", *markdown_table(BASELINES, baselines), ""]
    lines += [*markdown_table(ATTEMPTS, [attempt_cells(each) for each in trial.outcomes]), ""]
    lines += [*(f"- {note}" for note in notes(trial)), ""]
    lines += [f"- {told(each)}" for each in trial.outcomes]
    return "\n".join(lines)


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return [
        markdown_row(headings),
        markdown_row(["---"] * len(headings)),
        *map(markdown_row, lines),
    ]


def show(trial: Trial) -> None:
    """Print both tables for a terminal."""
    tell(machine_line(trial))
    show_lines(BASELINES, [baseline_cells(each, trial) for each in trial.baselines])
    tell("")
    show_lines(ATTEMPTS, [attempt_cells(each) for each in trial.outcomes])
    for note in notes(trial):
        tell(note)


def show_lines(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading)
    for line in lines:
        table.add_row(*map(Text, line))
    show_table(table)
