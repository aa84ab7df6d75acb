"""The GPU's state while it is timed, on recorded values and on a reader that plays them."""

import itertools
import time
from dataclasses import replace

import pytest

from crowdrt.benchmarks.timing.nvml import GpuSample, GpuWatch, judge_gpu, summarise

# An H200 under load and idle, as read through NVML's tools: SM 1980 and 345 MHz, memory 3201 MHz
BUSY = GpuSample(
    sm_mhz=1980, memory_mhz=3201, power_w=412.5, temperature_c=51, reasons=0x0, pids=(10, 11)
)
IDLE = replace(BUSY, sm_mhz=345, power_w=77.0, reasons=0x1, pids=())
OURS = (10, 11, 12)


def verdict(*samples):
    return judge_gpu(summarise(samples, OURS))


def test_a_steady_gpu_of_our_own_is_no_reason_to_doubt():
    assert verdict(*[BUSY] * 50) == []


def test_figures_are_least_median_and_largest():
    summary = summarise([BUSY, replace(BUSY, power_w=500.0), replace(BUSY, power_w=None)], OURS)
    assert summary["power_w"] == {"min": 412.5, "median": 456.25, "max": 500.0}
    assert summary["samples"] == 3


@pytest.mark.parametrize(
    ("bit", "name"),
    [(0x4, "software power cap"), (0x20, "software thermal"), (0x40, "hardware thermal"),
     (0x80, "hardware power brake"), (0x8, "hardware slowdown")],
)  # fmt: skip
def test_a_gpu_that_is_slowed_is_throttled(bit, name):
    slow = replace(BUSY, reasons=bit)
    (said,) = verdict(*[BUSY] * 9, slow)
    assert said.startswith(f"throttled: {name}")
    assert "10%" in said


def test_a_moment_of_it_is_not_yet():
    assert verdict(*[BUSY] * 99, replace(BUSY, reasons=0x4)) == []


def test_idle_and_fixed_application_clocks_slow_nothing():
    assert verdict(*[replace(BUSY, reasons=0x2)] * 9) == []


def test_a_clock_that_wanders_is_unstable():
    (said,) = verdict(BUSY, IDLE)
    assert said == "unstable: SM clock from 345 to 1980 MHz"


def test_another_process_on_the_gpu_is_shared():
    assert verdict(BUSY, replace(BUSY, pids=(10, 99))) == ["shared: 1 other processes on the GPU"]


def test_without_nvml_a_row_says_that_nobody_watched():
    assert summarise([], OURS) is None
    assert judge_gpu(None) == ["unwatched: NVML does not answer"]


def test_a_gpu_that_does_not_say_its_clocks_is_judged_by_the_rest():
    silent = replace(BUSY, sm_mhz=None, reasons=0x4)
    assert [said.split(":")[0] for said in verdict(silent)] == ["throttled"]


class Player:
    def __init__(self, samples):
        self._samples = itertools.cycle(samples)

    def read(self):
        return next(self._samples)


def test_a_watch_samples_while_the_block_runs_and_not_after():
    watch = GpuWatch(Player([BUSY, IDLE]), interval_s=0.001)
    with watch.during() as samples:
        time.sleep(0.05)
    seen = len(samples)
    assert seen >= 5
    assert set(samples) == {BUSY, IDLE}
    time.sleep(0.02)
    assert len(samples) == seen


def test_a_block_shorter_than_the_interval_has_one_sample():
    with GpuWatch(Player([BUSY]), interval_s=10).during() as samples:
        pass
    assert samples == [BUSY]
