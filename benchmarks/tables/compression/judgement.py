"""What follows from the rows: who is beaten in both respects, and which differences are real."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, pstdev

from crowdrt.benchmarks.tables.compression.printed import TEACHER
from crowdrt.benchmarks.tables.compression.rows import CompressionRow
from crowdrt.lazy import require

LEVEL = 0.05  # of the two-sided test


def dominators(points: Sequence[tuple[float, float]]) -> list[int | None]:
    """Return, for each (error, latency), which other point is no worse in either and better in one.

    None for the points of the Pareto front. Of several, the one of the least error is named.
    """
    found: list[int | None] = []
    for point in points:
        better = [
            k
            for k, other in enumerate(points)
            if other != point and all(o <= p for o, p in zip(other, point, strict=True))
        ]
        found.append(min(better, key=lambda k: points[k], default=None))
    return found


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two rows' mean errors over seeds, and whether chance alone could make the difference."""

    better: CompressionRow
    worse: CompressionRow
    people: float  # by which the mean MAE differs
    test: str  # "Welch's t", "paired t", or "" where there are too few seeds
    p: float | None  # two-sided
    apart: bool  # every seed of the better one is better than every seed of the other

    @property
    def exceeds(self) -> bool:
        """Whether it is larger than what other seeds would change."""
        return self.p is not None and self.p < LEVEL

    @property
    def unknown(self) -> str:
        """Why there is no p."""
        few = min(len(self.better.mae), len(self.worse.mae)) < 2
        return "too few seeds" if few else "no spread over seeds"

    @property
    def said(self) -> str:
        """Return a sentence."""
        names = f"{self.better.label} before {self.worse.label}: {self.people:.2f} people"
        if self.p is None:
            return f"{names}; {self.unknown} to tell it from chance"
        how = "exceeds the spread" if self.exceeds else "within the spread"
        seeds = "every seed agrees" if self.apart else "the seeds overlap"
        counts = f"n = {len(self.better.mae)} and {len(self.worse.mae)}"
        return f"{names}, {how} ({self.test}, p = {self.p:.2g}, {counts}; {seeds})"


def difference(one: CompressionRow, other: CompressionRow) -> Difference:
    """Compare two rows that have errors.

    Two forms of the same weights are paired by the seeds that both have; others are told apart by
    Welch's t test.
    """
    assert one.mae
    assert other.mae
    better, worse = sorted((one, other), key=lambda row: fmean(row.mae))
    paired = one.recipe == other.recipe
    errors = common(better, worse) if paired else (better.mae, worse.mae)
    return Difference(
        better=better,
        worse=worse,
        people=fmean(worse.mae) - fmean(better.mae),
        test="paired t" if paired else "Welch's t",
        p=probability(*errors, paired=paired),
        apart=max(better.mae) < min(worse.mae),
    )


def common(one: CompressionRow, other: CompressionRow) -> tuple[list[float], list[float]]:
    """Return the errors of two rows in the seeds that both have, in the same order."""
    errors = dict(zip(other.seeds, other.mae, strict=True))
    pairs = [
        (mae, errors[seed]) for seed, mae in zip(one.seeds, one.mae, strict=True) if seed in errors
    ]
    return [mae for mae, _ in pairs], [mae for _, mae in pairs]


def probability(one: Sequence[float], other: Sequence[float], *, paired: bool) -> float | None:
    """Return the two-sided p of the mean difference.

    None where one has fewer than two seeds, or where no seed changes anything, so that there is no
    spread to judge by.
    """
    if min(len(one), len(other)) < 2:
        return None
    if paired:
        constant = pstdev([a - b for a, b in zip(one, other, strict=True)]) == 0
    else:
        constant = pstdev(one) == pstdev(other) == 0
    if constant:  # t is a division by zero
        return None
    stats = require("scipy.stats", extra="cpu")
    found = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    return float(found.pvalue)


def neighbours(rows: Sequence[CompressionRow]) -> list[Difference]:
    """Return what each row of the ranking has over the next one, the best first."""
    ranking = sorted(comparable(rows), key=lambda row: fmean(row.mae))
    return [difference(*pair) for pair in pairwise(ranking)]


def comparable(rows: Sequence[CompressionRow]) -> list[CompressionRow]:
    """Return the rows that have errors and may be used, one per network and precision."""
    return [row for row in rows if row.mae and not row.failure and row.form != "fp32 eager"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A row with what follows from the others."""

    row: CompressionRow
    on_front: bool = False
    dominated_by: str = ""  # a label
    beside_naive: str = ""

    @property
    def verdict(self) -> str:
        """Return what a reader has to know of the row; reasons of length stand in the notes."""
        row = self.row
        if not row.recipe:
            return "not run"
        if row.failure:
            return f"failed: {row.failure}"
        parts = []
        parts += ["Pareto front"] if self.on_front else []
        parts += [f"dominated by {self.dominated_by}"] if self.dominated_by else []
        parts += [self.beside_naive] if self.beside_naive else []
        parts += [f"seeds lost: {', '.join(row.lost_seeds)}"] if row.lost_seeds else []
        doubtful = row.timing not in ("", "valid")
        parts += [f"timing {row.timing.partition(':')[0]}"] if doubtful else []
        return "; ".join(parts) or row.timing


def judge(rows: Sequence[CompressionRow]) -> list[Judged]:
    """Return every row with its place: on the front, dominated, and beside the naive student."""
    racing = [row for row in comparable(rows) if row.median_ms is not None]
    points = list(zip(map(fmean, (row.mae for row in racing)), latencies(racing), strict=True))
    by = dict(zip(map(id, racing), dominators(points), strict=True))
    students = [row for row in comparable(rows) if row.is_naive]
    naive = min(students, key=lambda row: fmean(row.mae), default=None)
    found = []
    for row in rows:
        beaten = by.get(id(row))
        found.append(
            Judged(
                row=row,
                on_front=id(row) in by and beaten is None,
                dominated_by="" if beaten is None else racing[beaten].label,
                beside_naive=beside_naive(row, naive),
            )
        )
    return found


def latencies(racing: Sequence[CompressionRow]) -> list[float]:
    """Return what each row is taken to need, in milliseconds.

    Networks of the same layers are one graph with other weights. What their times differ by is
    noise, so all have the median of their medians.
    """
    alike: dict[tuple[object, ...], list[float]] = {}
    for row in racing:
        alike.setdefault(graph_of(row), []).append(row.median_ms or 0.0)
    return [median(alike[graph_of(row)]) for row in racing]


def graph_of(row: CompressionRow) -> tuple[object, ...]:
    """Return what tells a row's graph from others."""
    pruned = row.recipe if "pruning" in row.kind.split(" + ") else ""
    return (row.form, row.engine, row.network, row.width, row.params, row.macs, pruned)


def beside_naive(row: CompressionRow, naive: CompressionRow | None) -> str:
    """Say whether a method was worth it: its errors beside those of the student without one."""
    if naive is None or row.is_naive or row.method == TEACHER or not row.mae or row.failure:
        return ""
    found = difference(row, naive)
    if found.better is not row or found.people == 0:
        return "no better than the naive student"
    if found.p is None:
        return f"better than the naive student, with {found.unknown} to tell it from chance"
    if not found.exceeds:
        return "no better than the naive student beyond the spread"
    return "better than the naive student" + ", which began anew" * bool(row.start)
