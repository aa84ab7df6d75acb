"""Is a measured row to be believed? Said beside the number, instead of cleaning the samples."""

import os
from collections.abc import Sequence

import numpy as np

from crowdrt.benchmarks.timing.statistics import uncertainty
from crowdrt.benchmarks.timing.worker import Visit

VALID = "valid"
MAX_SPREAD = 0.25  # (p90 - p10) / median
MAX_UNCERTAINTY = 0.025  # of the median: two races' ratios of such rows differ by up to 5 %
MAX_DRIFT = 0.10  # between the medians of the first and the second half of the visits
MAX_OTHERS = 0.05  # of the machine's cores, used by others while this row was timed
MAX_EXTRA_CORES = 0.25  # busy cores beyond the threads that were allowed, relative


def has_failed(verdict: str) -> bool:
    """Say whether a contender broke, or its gate stopped it; it may have samples until then."""
    return verdict.startswith("failed")


def judge(visits: Sequence[Visit], *, num_threads: int) -> str:
    """Return `valid`, or `unstable: ...` / `shared: ...` with every reason found."""
    unstable = [
        *_spread(visits),
        *_drift(visits),
        *_uncertainty(visits),
        *_threads(visits, num_threads),
    ]
    shared = _others(visits)
    parts = [f"unstable: {', '.join(unstable)}"] if unstable else []
    parts += [f"shared: {shared}"] if shared else []
    return "; ".join(parts) or VALID


def _spread(visits: Sequence[Visit]) -> list[str]:
    p10, p50, p90 = np.percentile(_samples(visits), [10, 50, 90])
    spread = (p90 - p10) / p50
    return [f"p10 to p90 spans {spread * 100:.0f} % of the median"] if spread > MAX_SPREAD else []


def _uncertainty(visits: Sequence[Visit]) -> list[str]:
    about = uncertainty(_samples(visits), len(visits[0].samples_ms))
    if about is None:
        return [f"median of too few visits, {len(visits)}"]
    return [f"median known to {about * 100:.1f} %"] if about > MAX_UNCERTAINTY else []


def _drift(visits: Sequence[Visit]) -> list[str]:
    if len(visits) < 2:
        return []  # it tells nothing else either
    half = len(visits) // 2
    first, second = (float(np.median(_samples(part))) for part in (visits[:half], visits[half:]))
    if abs(second / first - 1) <= MAX_DRIFT:
        return []
    return [f"median went from {first:.4g} to {second:.4g} ms"]


def _threads(visits: Sequence[Visit], num_threads: int) -> list[str]:
    wall_s = sum(visit.wall_s for visit in visits)
    cores = sum(visit.cpu_s for visit in visits) / wall_s
    if cores <= num_threads * (1 + MAX_EXTRA_CORES):
        return []
    return [f"kept {cores:.1f} cores busy, {num_threads} allowed"]


def _others(visits: Sequence[Visit]) -> str:
    """Compare what the machine did with what the contender did, in the same seconds."""
    seen = [(visit, visit.busy_s) for visit in visits if visit.busy_s is not None]
    if not seen:
        return ""
    share = share_of_others(
        sum(busy_s for _, busy_s in seen),
        sum(visit.cpu_s for visit, _ in seen),
        sum(visit.wall_s for visit, _ in seen),
    )
    return said_of_others(share)


def share_of_others(busy_s: float, cpu_s: float, wall_s: float) -> float:
    """Return the share of the machine's cores that others used.

    Args:
        busy_s: CPU seconds of all processes.
        cpu_s: our own part of them.
        wall_s: the seconds in which they were used.
    """
    return (busy_s - cpu_s) / (wall_s * (os.cpu_count() or 1))


def said_of_others(share: float) -> str:
    """Return what is to be said of a share that is too large; "" of others."""
    return f"others used {share * 100:.0f} % of the CPU meanwhile" if share > MAX_OTHERS else ""


def _samples(visits: Sequence[Visit]) -> list[float]:
    return [sample for visit in visits for sample in visit.samples_ms]
