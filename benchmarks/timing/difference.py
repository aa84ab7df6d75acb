"""What got faster or slower between two files of records, beyond noise.

Two noises are told apart. Within a run, the median of raw samples has a confidence interval, by
bootstrap over visits, or blocks of neighbouring samples: what disturbs one disturbs the next.
Between runs a machine drifts, which no number of samples shows: rows whose file, library and
threads are the same on both sides say by how much, and nothing below that is called a change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isinf, isnan, log, nan
from typing import Literal

import numpy as np

from crowdrt.benchmarks.timing.statistics import (
    CONFIDENCE,
    FEW_VISITS,
    resampled_medians,
    visits_of,
)
from crowdrt.contracts import Measurement, Size

Change = Literal["faster", "slower", "within noise", "too few visits", "unmeasured"]
Key = tuple[str, str, str, str, Size, int]

DRIFT = 0.05  # assumed where no row is the same on both sides


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row that both files have."""

    before: Measurement
    after: Measurement
    ratio: float  # of the medians, after / before: below 1 is faster; NaN where one has no sample
    low: float  # its interval, by samples alone
    high: float
    same: bool  # the same file, library and threads: it shows the machine's drift
    change: Change


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows of two files."""

    rows: tuple[Difference, ...]
    gone: tuple[Measurement, ...]  # in the first file alone
    new: tuple[Measurement, ...]  # in the second alone
    drift: float  # 0.04: ratios between 1/1.04 and 1.04 may be the machine's
    drift_known: bool  # from rows that are the same on both sides; else it is assumed


def compare(before: Sequence[Measurement], after: Sequence[Measurement]) -> Comparison:
    """Hold the newest row of every kind against the other file's.

    A kind is network, width, engine, precision, size and number of threads.
    """
    old, new = latest(before), latest(after)
    shared = [key for key in old if key in new]
    ratios = [ratio_of(old[key], new[key]) for key in shared if is_same(old[key], new[key])]
    known = [abs(log(ratio)) for ratio in ratios if not isnan(ratio)]
    drift = exp(max(known)) - 1 if known else DRIFT
    return Comparison(
        rows=tuple(difference(old[key], new[key], drift) for key in shared),
        gone=tuple(row for key, row in old.items() if key not in new),
        new=tuple(row for key, row in new.items() if key not in old),
        drift=drift,
        drift_known=bool(known),
    )


def latest(rows: Sequence[Measurement]) -> dict[Key, Measurement]:
    """Return the last row of every kind."""
    return {key_of(row): row for row in rows}


def key_of(row: Measurement) -> Key:
    """Return what a row measures, whichever file and version it ran."""
    return row.network, row.width, row.engine, row.precision, row.size, row.num_threads


def is_same(before: Measurement, after: Measurement) -> bool:
    """Say whether the same file ran in the same version of the same library."""
    known = bool(before.sha256) and before.sha256 == after.sha256
    return known and before.engine_version == after.engine_version


def ratio_of(before: Measurement, after: Measurement) -> float:
    """Return after's median over before's; NaN where one has no sample."""
    if not (before.samples_ms and after.samples_ms):
        return nan
    return after.median_ms / before.median_ms


def difference(before: Measurement, after: Measurement, drift: float) -> Difference:
    """Return how the medians of two rows differ."""
    ratio = ratio_of(before, after)
    low, high = (nan, nan) if isnan(ratio) else interval(before, after)
    return Difference(
        before=before,
        after=after,
        ratio=ratio,
        low=low,
        high=high,
        same=is_same(before, after),
        change=change_of(low, high, drift),
    )


def change_of(low: float, high: float, drift: float) -> Change:
    """Return what may be said of a ratio with this interval on a machine that drifts so much."""
    if isnan(low):
        return "unmeasured"
    if isinf(high):
        return "too few visits"
    if high < 1 / (1 + drift):
        return "faster"
    return "slower" if low > 1 + drift else "within noise"


def interval(before: Measurement, after: Measurement) -> tuple[float, float]:
    """Return the interval of after's median over before's; all of (0, inf) for few visits."""
    rows = (before, after)
    if min(len(visits_of(row.samples_ms, row.runs_per_visit)) for row in rows) < FEW_VISITS:
        return 0.0, inf
    rng = np.random.default_rng(0)
    divisor, dividend = (resampled_medians(row.samples_ms, rng, row.runs_per_visit) for row in rows)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(dividend / divisor, [tail, 100 - tail])
    return float(low), float(high)
