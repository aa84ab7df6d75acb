"""The GPU's state while it is timed: clocks, power, temperature, what slows it, who shares it.

Read through NVML (`nvidia-ml-py`), which changes nothing and costs the GPU nothing.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from crowdrt.errors import MissingDependencyError
from crowdrt.lazy import require

INTERVAL_S = 0.02
# NVML's reasons for a clock under the highest (nvml.h, nvmlClocksThrottleReason...)
REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
SLOWED = ("software power cap", "hardware slowdown", "software thermal slowdown",
          "hardware thermal slowdown", "hardware power brake")  # fmt: skip
MAX_SLOWED = 0.05  # of the samples
MAX_CLOCK_SPREAD = 0.10  # between the slowest and the fastest clock, of the fastest


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """The GPU at one moment; None where a driver does not say."""

    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    reasons: int  # bits of REASONS
    pids: tuple[int, ...]  # of the processes that compute on it


class GpuReader(Protocol):
    """What reads the GPU's state."""

    def read(self) -> GpuSample:
        """Return its state now."""
        ...


class Nvml:
    """NVML of the first GPU."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            MissingDependencyError: nvidia-ml-py is not installed, or there is no driver.
        """
        self._nvml = require("pynvml", extra="tensorrt")
        try:
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByIndex(0)
        except self._nvml.NVMLError as error:
            raise MissingDependencyError(
                f"NVML does not answer: {error}", fix="see whether the driver does: nvidia-smi"
            ) from error

    def read(self) -> GpuSample:
        """See `GpuReader.read`."""
        nvml, gpu = self._nvml, self._gpu
        power = self._asked(nvml.nvmlDeviceGetPowerUsage, gpu)
        processes = self._asked(nvml.nvmlDeviceGetComputeRunningProcesses, gpu) or ()
        return GpuSample(
            sm_mhz=self._asked(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
            memory_mhz=self._asked(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_MEM),
            power_w=None if power is None else power / 1000,
            temperature_c=self._asked(
                nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU
            ),
            reasons=self._asked(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu) or 0,
            pids=tuple(sorted(process.pid for process in processes)),
        )

    def _asked(self, question: Any, *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except self._nvml.NVMLError:  # virtual machines answer only some questions
            return None


class GpuWatch:
    """Samples the GPU in a thread of its own while a block runs."""

    def __init__(self, reader: GpuReader, *, interval_s: float = INTERVAL_S) -> None:
        self._reader, self._interval_s = reader, interval_s

    @contextlib.contextmanager
    def during(self) -> Iterator[list[GpuSample]]:
        """Yield a list that fills while the block runs; it holds one sample at least."""
        samples: list[GpuSample] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(self._interval_s):
                samples.append(self._reader.read())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            ended.set()
            thread.join()
            if not samples:
                samples.append(self._reader.read())


def open_watch() -> GpuWatch | None:
    """Return a watch of the first GPU, or None where NVML is not to be had."""
    with contextlib.suppress(MissingDependencyError):
        return GpuWatch(Nvml())
    return None


def summarise(samples: Sequence[GpuSample], ours: Collection[int]) -> dict[str, Any] | None:
    """Return what a record keeps of the samples.

    Args:
        samples: taken while a row was timed.
        ours: the processes that may be on the GPU; nobody else should.
    """
    if not samples:
        return None
    reasons = Counter(
        name for sample in samples for bit, name in REASONS.items() if sample.reasons & bit
    )
    others = {pid for sample in samples for pid in sample.pids} - set(ours)
    return {
        "samples": len(samples),
        **{
            name: spread(getattr(sample, name) for sample in samples)
            for name in ("sm_mhz", "memory_mhz", "power_w", "temperature_c")
        },
        "reasons": {name: count / len(samples) for name, count in reasons.items()},
        "other_processes": len(others),
    }


def spread(values: Iterator[float | None]) -> dict[str, float] | None:
    """Return least, median and largest of what is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "min": float(min(known)),
        "median": float(np.median(known)),
        "max": float(max(known)),
    }


def judge_gpu(summary: dict[str, Any] | None) -> list[str]:
    """Return what makes a row doubtful: `throttled: ...`, `shared: ...`, `unstable: ...`."""
    if summary is None:
        return ["unwatched: NVML does not answer"]
    found = []
    slowed = {n: share for n, share in summary["reasons"].items() if n in SLOWED}
    if worst := [f"{n} in {s:.0%} of the samples" for n, s in slowed.items() if s > MAX_SLOWED]:
        found.append(f"throttled: {', '.join(worst)}")
    clock = summary["sm_mhz"]
    if clock is not None and clock["min"] < clock["max"] * (1 - MAX_CLOCK_SPREAD):
        found.append(f"unstable: SM clock from {clock['min']:.0f} to {clock['max']:.0f} MHz")
    if summary["other_processes"]:
        found.append(f"shared: {summary['other_processes']} other processes on the GPU")
    return found
