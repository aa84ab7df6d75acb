"""What raw samples say of a median, and how surely.

The runs of one visit are disturbed together, so a visit is one observation: its median.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import comb, sqrt

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
CHUNK = 4_000_000  # values that a bootstrap holds at once
CONFIDENCE = 0.95
TAILS = (90, 95, 99)
FEW_BEYOND = 10  # samples beyond a percentile, below which it is an estimate
FEW_VISITS = 6  # the least number of which the whole range holds the median in 95 of 100 cases


def median_interval(samples: Sequence[float], block: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of the median, in the samples' unit; None of under six visits.

    Between two order statistics, whatever the distribution: Conover, "Practical Nonparametric
    Statistics", 3rd edition 1999, section 3.2.

    Args:
        samples: in the order in which they were taken.
        block: the runs of a visit; 0: not known, and the root of the number of samples is taken.
    """
    visits = np.sort([np.median(visit) for visit in visits_of(samples, block)])
    place = rank(len(visits))
    if place is None:
        return None
    return float(visits[place]), float(visits[-1 - place])


def rank(number: int) -> int | None:
    """Return how many observations lie beyond each end of the median's interval; None of too few.

    So many as fall on one side of the median by chance in at most 2.5 of 100 cases.
    """
    below = accumulate(comb(number, k) / 2**number for k in range(number))
    places = [k for k, chance in enumerate(below) if chance <= (1 - CONFIDENCE) / 2]
    return max(places, default=None)


def visits_of(samples: Sequence[float], block: int) -> list[Sequence[float]]:
    """Return the samples of each visit."""
    length = block or max(1, round(sqrt(len(samples))))
    return [samples[start : start + length] for start in range(0, len(samples), length)]


def uncertainty(samples: Sequence[float], block: int = 0) -> float | None:
    """Return half the interval of the median over the median: 0.02 reads +-2 %; None of too few."""
    interval = median_interval(samples, block)
    if interval is None:
        return None
    return (interval[1] - interval[0]) / 2 / float(np.median(samples))


def resampled_medians(
    samples: Sequence[float], rng: np.random.Generator, block: int = 0
) -> npt.NDArray[np.float64]:
    """Return the medians of (RESAMPLES,) series put together from blocks of neighbours.

    Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of
    Statistics 1989; blocks of a visit's runs, drawn as they were, or else of the root of the number
    of samples, around the end where they reach beyond it.
    """
    values = np.asarray(samples, np.float64)
    length = block or max(1, round(sqrt(len(values))))
    drawn = -(-len(values) // length)
    medians = []
    chunk = max(1, CHUNK // len(values))
    for first in range(0, RESAMPLES, chunk):
        shape = (min(chunk, RESAMPLES - first), drawn)
        if block:
            starts = length * rng.integers(drawn, size=shape)
        else:
            starts = rng.integers(len(values), size=shape)
        places = (starts[:, :, None] + np.arange(length)) % len(values)
        series = values[places.reshape(len(starts), -1)[:, : len(values)]]
        medians.append(np.median(series, axis=1))
    return np.concatenate(medians)


def variation(samples: Sequence[float]) -> float:
    """Return the coefficient of variation: standard deviation over mean."""
    return float(np.std(samples) / np.mean(samples))


def tail(samples: Sequence[float], q: float) -> float | None:
    """Return the q-th percentile, in the samples' unit; None where no sample can lie beyond it."""
    if len(samples) * (100 - q) < 100:
        return None
    return float(np.percentile(samples, q))


def is_estimate(num_samples: int, q: float) -> bool:
    """Say whether fewer than ten samples lie beyond the q-th percentile."""
    return num_samples * (100 - q) < 100 * FEW_BEYOND
