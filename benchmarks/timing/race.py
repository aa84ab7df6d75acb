"""Latency of several engines, measured so that their ratios hold.

Each contender lives in its own process. The parent lets one run at a time, in a fresh random
order every round, so that drifting clocks and changing neighbours hit all of them alike. Every
sample is kept; a doubtful row is marked, never cleaned.
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import numpy as np

from crowdrt import console
from crowdrt.benchmarks.timing.children import end_all, how_it_ended, inherited_by_child
from crowdrt.benchmarks.timing.machine import describe_machine
from crowdrt.benchmarks.timing.nvml import GpuSample, GpuWatch, judge_gpu, open_watch, summarise
from crowdrt.benchmarks.timing.pinning import cores_for
from crowdrt.benchmarks.timing.records import GPU_SERIES
from crowdrt.benchmarks.timing.statistics import uncertainty
from crowdrt.benchmarks.timing.verdict import VALID, has_failed, judge
from crowdrt.benchmarks.timing.worker import Failure, Visit, WarmUp, serve
from crowdrt.contracts import Measurement, Precision, Size, UInt8Image
from crowdrt.engines.machine import num_cores
from crowdrt.errors import BenchmarkError

if TYPE_CHECKING:
    from crowdrt.engines.base import Engine

MAX_BURST = 50  # runs per visit
GPU_ENGINES = ("tensorrt",)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a race: what it is, and how its process opens it."""

    name: str  # unique in its race
    network: str
    width: str
    engine: str  # onnxruntime, openvino, pytorch
    engine_version: str
    precision: Precision
    open: Callable[[], "Engine"]  # picklable: functools.partial of a module's function
    sha256: str = ""  # of the file that runs

    def about(self) -> dict[str, Any]:
        """Return what every record says of it."""
        told = ("name", "network", "width", "engine", "engine_version", "precision", "sha256")
        return {name: getattr(self, name) for name in told}


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """How long and how often; the defaults fit a run of minutes."""

    num_threads: int = 0  # 0: as many as there are cores; the openers must be given the same
    seed: int = 0
    budget_s: float = 60.0  # at most, beyond `min_rounds`
    min_rounds: int = 3
    max_rounds: int = 400
    confident: float = 0.01  # no more rounds once every median is known to this part of it, ...
    confident_rounds: int = 10  # ... after this many of them
    visit_s: float = 0.5  # an engine faster than this runs several times per visit
    settle_s: float = 0.25  # the previous contender's threads spin for up to 0.2 s (OpenMP)
    timeout_s: float = 900.0  # of one opening with its warm-up, and of one visit
    warm_up: WarmUp = field(default_factory=WarmUp)


def race(
    contenders: Sequence[Contender], image: UInt8Image, config: RaceConfig | None = None
) -> list[Measurement]:
    """Measure all contenders on one photograph, interleaved.

    Args:
        contenders: each opens its engine in a process of its own.
        image: (C, H, W), a photograph or like one; its size is the size that is measured.
        config: how long and how often.

    Returns:
        One row per contender, in their order. A contender that broke has the verdict
        `failed: REASON` and the samples it had until then.

    Raises:
        BenchmarkError: the input or a contender is unusable, or every contender failed.
    """
    config = config or RaceConfig()
    _check(contenders, image)
    num_threads = config.num_threads or num_cores()
    cores = cores_for(num_threads)
    machine, run_id = {**describe_machine(), "affinity": list(cores)}, _new_run_id()
    with contextlib.ExitStack() as stack:
        # a display that redraws itself would take time from what is being measured
        bar = stack.enter_context(console.progress_bar(auto_refresh=False))
        task = bar.add_task("warming up", total=len(contenders), note="")
        runners = []
        for contender in contenders:
            bar.update(task, note=contender.name, refresh=True)
            runner = stack.enter_context(_started(contender, image, config, num_threads, cores))
            runner.watch = open_watch() if contender.engine in GPU_ENGINES else None
            runner.wait_until_warm()
            runners.append(runner)
            bar.advance(task)
        expected = num_rounds(runners, config)
        bar.reset(task, description="racing", total=expected * len(runners))
        for runner in _visits(runners, config):
            bar.update(task, note=runner.contender.name, refresh=True)
            runner.visit()
            bar.advance(task)
    height, width = image.shape[1:]
    ours = [os.getpid(), *(runner.pid for runner in runners)]
    rows = [r.measurement((height, width), num_threads, machine, run_id, ours) for r in runners]
    _refuse_if_all_failed(rows)
    return rows


def num_rounds(runners: Sequence["RunningContender"], config: RaceConfig) -> int:
    """Return how many rounds should fit the budget, within the configured bounds."""
    round_s = sum(runner.expected_visit_s for runner in runners)
    fitting = int(config.budget_s / max(round_s, 1e-3))
    return max(config.min_rounds, min(config.max_rounds, fitting))


class RunningContender:
    """The parent's view of one contender: its process, its visits, or why it failed."""

    def __init__(
        self,
        contender: Contender,
        process: BaseProcess,
        connection: Connection,
        config: RaceConfig,
    ) -> None:
        self.contender = contender
        self.expected_visit_s = 0.0
        self.watch: GpuWatch | None = None  # of the GPU that it runs on
        self._gpu: list[GpuSample] = []
        self._visits: list[Visit] = []
        self._failure = ""
        self._num_runs = 1
        self._process, self._connection, self._config = process, connection, config

    def wait_until_warm(self) -> None:
        """Wait for the engine to open; its last warm-up runs decide the runs per visit."""
        warm = self._receive()
        if warm is None:
            return
        run_s = float(np.median(warm.samples_ms[-5:])) / 1000
        self._num_runs = max(1, min(MAX_BURST, int(self._config.visit_s / run_s)))
        num_untimed = 1 if self._num_runs > 1 else 0
        self.expected_visit_s = self._config.settle_s + (self._num_runs + num_untimed) * run_s

    def visit(self) -> None:
        """Let the contender run while all others are idle."""
        if self._failure:
            return
        time.sleep(self._config.settle_s)
        with self._watched() as samples:
            with contextlib.suppress(BrokenPipeError):  # the missing reply tells of its death
                self._connection.send(self._num_runs)
            visit = self._receive()
        if visit:
            self._visits.append(visit)
            self._gpu += samples

    def _watched(self) -> contextlib.AbstractContextManager[list[GpuSample]]:
        return self.watch.during() if self.watch else contextlib.nullcontext([])

    @property
    def is_settled(self) -> bool:
        """Whether more visits would hardly move its median, or it has failed."""
        samples = [ms for visit in self._visits for ms in visit.samples_ms]
        about = uncertainty(samples, self._num_runs)
        return bool(self._failure) or (about is not None and about <= self._config.confident)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid or 0

    def measurement(
        self,
        size: Size,
        num_threads: int,
        machine: Mapping[str, Any],
        run_id: str,
        ours: Sequence[int],
    ) -> Measurement:
        """Return the row, with every sample in the order in which it was taken.

        `ours` are the processes of this race: nobody else should be on its GPU.
        """
        gpu = summarise(self._gpu, ours)
        on_gpu = self.contender.engine in GPU_ENGINES
        return Measurement(
            **self.contender.about(),
            size=size,
            num_threads=num_threads,
            samples_ms=tuple(ms for visit in self._visits for ms in visit.samples_ms),
            **parts_of(self._visits),
            peak_mib=max((visit.peak_mib for visit in self._visits), default=0.0),
            machine=machine,
            verdict=f"failed: {self._failure}"
            if self._failure
            else with_gpu(
                judge(self._visits, num_threads=num_threads), judge_gpu(gpu) if on_gpu else []
            ),
            gpu=gpu,
            run_id=run_id,
            runs_per_visit=self._num_runs,
        )

    def _receive(self) -> Visit | None:
        """Wait for the process's reply; anything but a `Visit` becomes the failure."""
        try:
            if not self._connection.poll(self._config.timeout_s):
                self._failure = f"no answer within {self._config.timeout_s:g} s"
                return None
            reply = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._failure = self._how_it_died()
            return None
        if isinstance(reply, Failure):
            self._failure = reply.reason
            return None
        assert isinstance(reply, Visit)
        return reply

    def _how_it_died(self) -> str:
        self._process.join(timeout=5)
        return f"its process {how_it_ended(self._process.exitcode)}"


def with_gpu(verdict: str, doubts: Sequence[str]) -> str:
    """Add what the GPU's state gives to doubt."""
    said = [] if verdict == VALID and doubts else [verdict]
    return "; ".join([*said, *doubts])


def parts_of(visits: Sequence[Visit]) -> dict[str, Any]:
    """Return where the time of every sample went on a GPU; nothing of a CPU engine."""
    parts = [part for visit in visits for part in visit.parts]
    return {name: tuple(getattr(part, name) for part in parts) for name in GPU_SERIES}


@contextlib.contextmanager
def _started(
    contender: Contender,
    image: UInt8Image,
    config: RaceConfig,
    num_threads: int,
    cores: tuple[int, ...],
) -> Iterator[RunningContender]:
    """Start the contender's process; whatever happens, it is gone after the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=serve, args=(theirs, contender.open, image, config.warm_up, cores), daemon=True
    )
    with inherited_by_child(num_threads):
        process.start()
    theirs.close()
    try:
        yield RunningContender(contender, process, ours, config)
    finally:
        ours.close()
        end_all([process])


def _check(contenders: Sequence[Contender], image: UInt8Image) -> None:
    """Refuse what would make the whole race meaningless."""
    if not contenders:
        raise BenchmarkError("there is nothing to race", fix="name at least one engine")
    names = [contender.name for contender in contenders]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BenchmarkError(f"contenders share a name: {sorted(twice)}", fix="give each its own")
    if image.ndim != 3 or image.dtype != np.uint8 or image.min() == image.max():
        raise BenchmarkError(
            f"the input is no photograph: {image.dtype} {image.shape}, values from {image.min()}"
            f" to {image.max()}",
            fix="pass a decoded photograph, uint8 (C, H, W): constant inputs flatter some kernels",
        )
    for contender in contenders:
        try:
            pickle.dumps(contender.open)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise BenchmarkError(
                f"{contender.name} cannot be opened in a process of its own: {error}",
                fix="make `open` a functools.partial of a function at a module's top level",
            ) from error


def _visits(runners: Sequence[RunningContender], config: RaceConfig) -> Iterator[RunningContender]:
    """Yield every contender once per round, in a fresh random order each time, until it is enough.

    That is when the budget has no room for another round, or when more would hardly move a median.
    """
    shuffle = random.Random(config.seed).shuffle
    start = time.perf_counter()
    for done in itertools.count(1):
        order = list(runners)
        shuffle(order)
        yield from order
        if done < config.min_rounds:
            continue
        elapsed_s = time.perf_counter() - start
        full = elapsed_s * (done + 1) / done > config.budget_s
        if full or done >= config.max_rounds or _settled(runners, done, config):
            return


def _settled(runners: Sequence[RunningContender], done: int, config: RaceConfig) -> bool:
    """Say whether every median is known as well as is asked for."""
    if done < config.confident_rounds:
        return False
    return all(runner.is_settled for runner in runners)


def _new_run_id() -> str:
    """Return when the race started, in UTC, and enough randomness to be unique."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def _refuse_if_all_failed(rows: Sequence[Measurement]) -> None:
    if all(has_failed(row.verdict) for row in rows):
        reasons = "\n".join(f"  {row.name}: {row.verdict}" for row in rows)
        raise BenchmarkError(
            f"no contender could be measured\n{reasons}",
            fix="run one of them alone: crowdrt count ENGINE IMAGE",
        )
