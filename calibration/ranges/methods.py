"""From a histogram of |x| to the range of INT8: four ways to weigh outliers against steps.

A range T stands for the scale T / 127; what lies beyond becomes T. Zeros are exact under every
scale, so they take part in none of the weighing; only `percentile` counts them as values.
"""

from typing import assert_never

import numpy as np
import numpy.typing as npt

from crowdrt.calibration.ranges.histogram import AbsHistogram
from crowdrt.contracts import CalibrationConfig

LEVELS = 128  # of |x| in INT8: 0 to 127
STEPS = LEVELS - 1
MERGED = 2  # bins into one for entropy: 2049 to 4096 in use, where its authors take 2048
NEXT = 0.98  # from one range that the squared error is tried for to the next


def range_of(histogram: AbsHistogram, config: CalibrationConfig) -> float:
    """Return the |x| up to which INT8 is to reach; 0 where no value differed from zero."""
    if not histogram.largest:
        return 0.0
    match config.method:
        case "minmax":
            return histogram.largest
        case "percentile":
            # a map that is nearly everywhere zero has a percentile of zero, which would delete it
            return histogram.percentile(config.percentile) or histogram.largest
        case "entropy":
            return entropy_range(histogram)
        case "mse":
            return mse_range(histogram)
        case unknown:
            assert_never(unknown)


def entropy_range(histogram: AbsHistogram) -> float:
    """Return the range under which 128 levels tell most of how |x| is distributed.

    Migacz, "8-bit Inference with TensorRT", GTC 2017. For every number of bins i from 128 on, P
    is the first i bins with all that lies beyond added to the last of them; Q is the first i
    bins without it, merged into 128 levels and spread again, each level evenly over those of its
    bins that hold something in P. The i of the smallest KL(P || Q) gives the range, (i + 1/2)
    bins as on his slides, here never beyond the largest value.

    The slides leave open what becomes of zeros, of bins in the ratio of i to 128, and of Q where
    it is empty and P is not. Here exact zeros belong to neither P nor Q, bin j goes to level
    floor(128 j / i), and such an i is out of the question.
    """
    counts = histogram.counts.reshape(-1, MERGED).sum(axis=1).astype(np.float64)
    counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
    kept = np.arange(LEVELS, len(counts) + 1)
    best = int(kept[np.argmin(divergences(counts, kept))])
    return min((best + 0.5) * MERGED * histogram.width, histogram.largest)


def divergences(
    counts: npt.NDArray[np.float64], kept: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return KL(P || Q), in nats, for each number of bins that is kept.

    Q is even within a level, so a level is one term of sum P log Q, and sum P log P comes from
    running sums: a candidate costs 128 terms instead of one per bin.
    """
    num = counts.sum()
    below, filled = running(counts), running(counts > 0)
    tail = num - below[kept]
    last = counts[kept - 1]

    # level l holds bins ceil(l i / 128) to ceil((l + 1) i / 128)
    starts = -(-np.arange(LEVELS + 1) * kept[:, np.newaxis] // LEVELS)
    q = np.diff(below[starts], axis=1)
    bins = np.diff(filled[starts], axis=1)
    p = q.copy()
    p[:, -1] += tail
    bins[:, -1] += (last == 0) & (tail > 0)

    spread = np.maximum(bins * below[kept, np.newaxis], 1)
    log_q = np.log(q / spread, where=q > 0, out=np.full_like(q, -np.inf))
    p_log_q = np.multiply(p, log_q, where=p > 0, out=np.zeros_like(p)).sum(axis=1)
    p_log_p = running(times_log(counts))[kept - 1] + times_log(last + tail)
    return np.asarray((p_log_p - p_log_q) / num - np.log(num), np.float64)


def running(values: npt.NDArray[np.floating | np.bool_]) -> npt.NDArray[np.float64]:
    """Return the sums of the first 0, 1, ... values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def times_log(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return x log x, which is 0 at 0."""
    return np.asarray(values * np.log(np.where(values > 0, values, 1)), np.float64)


def mse_range(histogram: AbsHistogram) -> float:
    """Return the range whose INT8 numbers lie closest to the values, by mean squared error.

    Tried are ranges from the largest value down, each 2 % under the one before, until steps get
    as narrow as bins. Values count as spread evenly over their bin: the error is an integral over
    it, in closed form.
    """
    top = int(np.flatnonzero(histogram.counts)[-1]) + 1
    counts = histogram.counts[:top].astype(np.float64)
    edges = np.arange(top + 1, dtype=np.float64)  # in bins
    largest = histogram.largest / histogram.width
    tries = largest * NEXT ** np.arange(int(np.log(largest / STEPS) / -np.log(NEXT)) + 1)
    errors = [float(counts @ np.diff(squared_error(edges, limit))) for limit in tries]
    return float(tries[int(np.argmin(errors))]) * histogram.width


def squared_error(x: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    """Integrate, from 0 to each x, the squared error of INT8 with this range."""
    step = limit / STEPS
    inside = np.minimum(x, limit)
    nearest = np.floor(inside / step + 0.5)
    off, beyond = inside - nearest * step, x - inside
    whole = nearest * step**3 / 12  # between two INT8 numbers
    return np.asarray(whole + (off * off * off + beyond * beyond * beyond) / 3, np.float64)
