"""One contender in a process of its own: it runs when told to, and is idle otherwise.

The parent (`race.py`) starts each process with the thread counts in its environment, before
anything is imported, because libraries read them once.
"""

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crowdrt.benchmarks.feeds import feeds_for
from crowdrt.benchmarks.timing.pinning import pin
from crowdrt.contracts import Feeds, UInt8Image
from crowdrt.engines.base import TimedEngine
from crowdrt.errors import BenchmarkError, CrowdRTError

if TYPE_CHECKING:
    from crowdrt.engines.base import Engine

# One image, one engine: sums may differ by the order in which threads add, and by no more.
ANSWER_RTOL, ANSWER_ATOL = 1e-4, 1e-3
LATE_S = 0.25  # after which an answer that was not waited for has come
NUM_FRESH = 3  # photographs that are shown once; of slow engines one
LONG_MS = 1000.0
CACHED = 3.0  # times as long for these
NEGATIVE = -1

Answer = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """An engine is warm after this many runs and this long, but never later than `max_s`."""

    runs: int = 5
    seconds: float = 1.0
    max_s: float = 8.0


@dataclass(frozen=True, kw_only=True)
class GpuParts:
    """Where the time of one run went on a GPU, in milliseconds by its own clock."""

    to_device_ms: float
    compute_ms: float
    to_host_ms: float


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What one visit measured."""

    samples_ms: tuple[float, ...]
    wall_s: float  # of the timed runs
    cpu_s: float  # that this process used meanwhile, over all its threads
    busy_s: float | None  # that the whole machine was busy or stolen from; None if unknown
    peak_mib: float  # of this process so far
    parts: tuple[GpuParts, ...] = ()  # of each sample, from an engine that can tell


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a contender can run no more."""

    reason: str


def serve(
    connection: Connection,
    opener: Callable[[], "Engine"],
    image: UInt8Image,
    warm_up: WarmUp,
    cores: tuple[int, ...] = (),
) -> None:
    """Open the engine, warm it up, then answer each number of runs with a `Visit`.

    It runs on `cores`, where any are named, once it is open and its threads are there. The process
    ends with its parent: a closed connection is the order to stop. Ctrl-C reaches the parent alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(sys.stderr.fileno(), 1)  # stdout belongs to the parent's result
    try:
        runner = Runner(opener(), image)
        pin(cores)
        connection.send(runner.warm_up(warm_up))
        while (num_runs := connection.recv()) is not None:
            connection.send(runner.visit(num_runs))
    except (EOFError, BrokenPipeError):
        return
    except CrowdRTError as error:
        connection.send(Failure(reason=f"{error.problem} (fix: {error.fix})"))
    except Exception as error:  # noqa: BLE001 - whatever an engine raises becomes its row's verdict
        connection.send(Failure(reason=f"{type(error).__name__}: {error}"))


class Runner:
    """An engine, its input, and the answer that every run must repeat."""

    def __init__(self, engine: "Engine", image: UInt8Image) -> None:
        self._engine = engine
        fed = feeds_for(engine, image)
        self._feeds = {name: np.require(array, requirements="W") for name, array in fed.items()}
        self._answer = checked_answer(engine, self._feeds)
        self._parts: list[GpuParts] = []

    def warm_up(self, rule: WarmUp) -> Visit:
        """Run until `rule` is content; the samples tell the parent how long a run takes."""
        samples: list[float] = []
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < rule.max_s:
            if elapsed >= rule.seconds and len(samples) >= rule.runs:
                break
            samples.append(self._timed_run())
        self._refuse_cache(max(samples))
        return Visit(
            samples_ms=tuple(samples),
            wall_s=elapsed,
            cpu_s=time.process_time(),
            busy_s=None,
            peak_mib=peak_mib(),
        )

    def _refuse_cache(self, longest_ms: float) -> None:
        """Refuse an engine that takes far longer for photographs that it has not seen.

        These are the same photograph but for the last bits of its numbers; the fastest of them
        against the slowest run on the known one.
        """
        fresh = []
        for bits in range(1, NUM_FRESH + 1):
            with flipped(self._feeds, bits):
                start = time.perf_counter_ns()
                self._engine.run(self._feeds)
                fresh.append((time.perf_counter_ns() - start) / 1e6)
            if longest_ms > LONG_MS:
                break
        if min(fresh) > CACHED * longest_ms:
            raise BenchmarkError(
                f"it takes {min(fresh):.3g} ms at least for photographs that it has not seen, and "
                f"{longest_ms:.3g} ms at most for the one that it has",
                fix="time it without its cache: a camera shows no photograph twice",
            )

    def visit(self, num_runs: int) -> Visit:
        """Time `num_runs` runs, from uint8 in host memory to the count in host memory."""
        self._parts.clear()
        visit = timed_visit(self._timed_run, num_runs)
        return replace(visit, parts=tuple(self._parts[-num_runs:]))

    def _timed_run(self) -> float:
        timed = self._engine.timed if isinstance(self._engine, TimedEngine) else None
        start = time.perf_counter_ns()
        if timed is None:
            outputs = self._engine.run(self._feeds)
        else:
            outputs, parts = timed(self._feeds)
        elapsed = time.perf_counter_ns() - start
        if timed is not None:
            self._parts.append(
                GpuParts(
                    to_device_ms=parts.to_device_ms,
                    compute_ms=parts.compute_ms,
                    to_host_ms=parts.to_host_ms,
                )
            )
        check_answer(answer_of(outputs), self._answer)
        return elapsed / 1e6


def timed_visit(run: Callable[[], float], num_runs: int) -> Visit:
    """Return what some runs took, and what else the machine did meanwhile.

    Several runs are a fast engine's burst, and a run that is not timed comes before them: the
    others have meanwhile emptied the caches. A single run is long enough not to care.

    Args:
        run: runs once and returns the milliseconds that it took.
        num_runs: how many are timed.
    """
    if num_runs > 1:
        run()
    wall, cpu, busy = time.perf_counter(), time.process_time(), machine_busy_s()
    samples = tuple(run() for _ in range(num_runs))
    wall_s, busy_after = time.perf_counter() - wall, machine_busy_s()
    return Visit(
        samples_ms=samples,
        wall_s=wall_s,
        cpu_s=time.process_time() - cpu,
        busy_s=None if busy is None or busy_after is None else busy_after - busy,
        peak_mib=peak_mib(),
    )


def checked_answer(engine: "Engine", feeds: Feeds) -> Answer:
    """Return what an engine answers, unless its times would mean nothing.

    Raises:
        BenchmarkError: it returns before its answer has come, or answers another photograph, the
            negative of this one, with the same.
    """
    outputs = engine.run(feeds)
    at_once = copied(outputs)
    time.sleep(LATE_S)
    if not same(at_once, outputs):
        raise BenchmarkError(
            "its answer changed after it had been returned, so its time ends before its work",
            fix="wait for the device in the engine's run: synchronise before the outputs are read",
        )
    with flipped(feeds, NEGATIVE):
        negative = copied(engine.run(feeds))
    if same(at_once, negative):
        raise BenchmarkError(
            "it answers a photograph and its negative with the very same numbers",
            fix="look for a cache, a pipeline that is one photograph late, or a network of zeros",
        )
    return answer_of(at_once)


@contextlib.contextmanager
def flipped(feeds: Feeds, bits: int) -> Iterator[None]:
    """Flip bits of every number of the input while the block runs, in place: a copy is memory.

    Args:
        feeds: writeable arrays.
        bits: which, as the last ones of a number; or `NEGATIVE`.
    """

    def flip() -> None:
        for array in feeds.values():
            whole = 8 * array.itemsize
            sign = 2**whole - 1 if array.dtype.kind == "u" else 2 ** (whole - 1)
            view = array.view(f"u{array.itemsize}")
            np.bitwise_xor(view, view.dtype.type(sign if bits == NEGATIVE else bits), out=view)

    flip()
    try:
        yield
    finally:
        flip()


def copied(outputs: Feeds) -> Feeds:
    """Return the outputs as they are now."""
    return {name: np.array(array) for name, array in outputs.items()}


def same(one: Feeds, other: Feeds) -> bool:
    """Say whether two answers are equal to the last bit."""
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def answer_of(outputs: Feeds) -> Answer:
    """Reduce each output to its sum; anything but finite numbers is an error."""
    answer = {name: float(np.sum(array, dtype=np.float64)) for name, array in outputs.items()}
    for name, total in answer.items():
        if not np.isfinite(total):
            raise BenchmarkError(
                f"output {name!r} holds values that are not finite",
                fix="check the engine with crowdrt count on one photograph",
            )
    return answer


def check_answer(answer: Answer, reference: Answer) -> None:
    """Refuse an engine that answers the same image differently from its first run."""
    for name, expected in reference.items():
        drift = abs(answer[name] - expected)
        if drift > ANSWER_ATOL + ANSWER_RTOL * abs(expected):
            raise BenchmarkError(
                f"output {name!r} summed to {expected:.6g} at first and to {answer[name]:.6g} later"
                " for the same image",
                fix="find the race in the engine before timing it",
            )


def machine_busy_s() -> float | None:
    """Return the CPU seconds that all processes and other virtual machines used since boot."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def peak_mib() -> float:
    """Return this process's peak resident memory in MiB.

    `VmHWM` belongs to this process alone; `ru_maxrss` can start from the parent's.
    """
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
