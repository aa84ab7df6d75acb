import os

import numpy as np
import pytest

from crowdrt.benchmarks.timing.verdict import judge
from crowdrt.benchmarks.timing.worker import Visit

CORES = os.cpu_count() or 1


def visits(samples_ms, *, cores_used=1.0, others=0.0) -> list[Visit]:
    """One sample per visit; `others` is the share of the machine that others used."""
    return [
        Visit(
            samples_ms=(ms,),
            wall_s=ms / 1000,
            cpu_s=cores_used * ms / 1000,
            busy_s=(cores_used + others * CORES) * ms / 1000,
            peak_mib=100.0,
        )
        for ms in samples_ms
    ]


STEADY = np.random.default_rng(0).normal(100, 2, 40)


def test_a_steady_row_is_valid():
    assert judge(visits(STEADY), num_threads=1) == "valid"


def test_a_median_that_is_hardly_known_is_unstable():
    few = [100, 104, 96, 100, 108, 92]  # p10 to p90 spans 12 % only, and the halves agree
    assert judge(visits(few), num_threads=1) == "unstable: median known to 8.0 %"
    many = np.random.default_rng(1).normal(100, 5, 120)  # as noisy
    assert judge(visits(many), num_threads=1) == "valid"


def test_runs_of_a_visit_are_one_disturbance():
    def bursts(levels):
        return [
            Visit(samples_ms=(ms,) * 20, wall_s=2, cpu_s=2, busy_s=None, peak_mib=1)
            for ms in levels
        ]

    levels = [100, 104, 96, 100, 108, 92]
    assert judge(bursts(levels), num_threads=1) == "unstable: median known to 8.0 %"
    assert judge(bursts([100, 101, 99, 100.5, 100, 99.5]), num_threads=1) == "valid"
    assert judge(bursts([100, 101, 99]), num_threads=1) == "unstable: median of too few visits, 3"


def test_a_single_outlier_does_not_condemn_a_row():
    assert judge(visits([*STEADY, 900.0]), num_threads=1) == "valid"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (visits([80, 120] * 20), "unstable: p10 to p90 spans 40 % of the median"),
        (visits([100] * 20 + [111] * 20), "unstable: median went from 100 to 111 ms"),
        (visits(STEADY, others=0.08), "shared: others used 8 % of the CPU meanwhile"),
        (visits(STEADY, cores_used=3.0), "unstable: kept 3.0 cores busy, 1 allowed"),
        (visits([100]), "unstable: median of too few visits, 1"),
    ],
)
def test_a_doubtful_row_says_why(rows, words):
    assert judge(rows, num_threads=1).startswith(words)


def test_all_reasons_are_said():
    verdict = judge(visits([100] * 20 + [150] * 20, others=0.5), num_threads=1)
    words = ("p10 to p90 spans 40 %", "median went from 100 to 150 ms", "median known to 20.0 %")
    assert verdict.split("; ")[0].removeprefix("unstable: ").split(", ") == [
        f"{words[0]} of the median",
        *words[1:],
    ]
    assert "; shared: others used 50 %" in verdict


def test_nothing_is_said_of_others_where_the_system_does_not_tell():
    rows = [Visit(samples_ms=(ms,), wall_s=1, cpu_s=1, busy_s=None, peak_mib=1) for ms in STEADY]
    assert judge(rows, num_threads=1) == "valid"
