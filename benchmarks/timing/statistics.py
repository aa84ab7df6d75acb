"""What raw samples say of a median, and how surely."""

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
CONFIDENCE = 0.95
TAILS = (90, 95, 99)
FEW_BEYOND = 10  # samples beyond a percentile, below which it is an estimate


def median_interval(
    samples: Sequence[float], block: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % interval of the median, in the samples' unit; of none, (0, inf).

    Args:
        samples: in the order in which they were taken.
        block: how many neighbours one disturbance hits: the runs of a visit; 0: not known.
        resamples: of the bootstrap.
    """
    if not samples:
        return 0.0, inf
    medians = resampled_medians(samples, np.random.default_rng(0), block, resamples)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)


def uncertainty(samples: Sequence[float], block: int = 0, resamples: int = RESAMPLES) -> float:
    """Return half the interval of the median over the median: 0.02 reads +-2 %."""
    low, high = median_interval(samples, block, resamples)
    return (high - low) / 2 / float(np.median(samples)) if samples else inf


def resampled_medians(
    samples: Sequence[float],
    rng: np.random.Generator,
    block: int = 0,
    resamples: int = RESAMPLES,
) -> npt.NDArray[np.float64]:
    """Return the medians of (resamples,) series put together from blocks of neighbours.

    Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of
    Statistics 1989; blocks of a visit's runs, or else of the root of the number of samples, around
    the end where they reach beyond it. Whole visits are drawn as they were.
    """
    values = np.asarray(samples, np.float64)
    length = block or max(1, round(sqrt(len(values))))
    shape = (resamples, -(-len(values) // length))
    starts = (
        length * rng.integers(shape[1], size=shape)
        if block
        else rng.integers(len(values), size=shape)
    )
    places = (starts[:, :, None] + np.arange(length)) % len(values)
    series = values[places.reshape(resamples, -1)[:, : len(values)]]
    medians: npt.NDArray[np.float64] = np.median(series, axis=1)
    return medians


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
