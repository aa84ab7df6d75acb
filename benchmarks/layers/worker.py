"""What runs in a process of its own: an engine under its runtime's profiler, or peaks.

Runs with and without the profiler take turns, so that a clock that drifts and a neighbour that
comes and goes hit both alike.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crowdrt.benchmarks.feeds import feeds_for
from crowdrt.benchmarks.layers.peaks import PeakConfig, measure_peaks
from crowdrt.benchmarks.layers.process import ANSWER, IMAGE, ORDER
from crowdrt.benchmarks.timing.pinning import cores_for, pin
from crowdrt.benchmarks.timing.statistics import FEW_VISITS
from crowdrt.benchmarks.timing.verdict import judge
from crowdrt.benchmarks.timing.worker import Visit, timed_visit
from crowdrt.contracts import Feeds, UInt8Image
from crowdrt.engines.base import Engine
from crowdrt.engines.layers.profilers import Profiler, open_profiler
from crowdrt.engines.layers.tracing import OnnxFile
from crowdrt.engines.store import read_built
from crowdrt.errors import CrowdRTError
from crowdrt.manifest import write_json
from crowdrt.onnx_file import read_onnx

MAX_BURST = 250  # runs per visit


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How often an engine runs: a visit without its profiler, then a run with it, and again.

    A visit is a burst of runs: the system counts what others use in ticks of 10 ms, by which a
    single short run cannot be judged.
    """

    num_warmup: int = 3
    min_runs: int = FEW_VISITS  # of fewer, no interval of the median is known
    max_runs: int = 25
    seconds: float = 10.0  # after which no more begin than `min_runs`
    visit_s: float = 0.25


def answer(folder: Path) -> None:
    """Do what the folder's order says, and leave the answer there.

    The process that gave the order removes the folder. Where that one was killed, we do.
    """
    order = json.loads((folder / ORDER).read_text())
    try:
        if "engine" in order:
            found = profile(order, np.load(folder / IMAGE), folder)
        else:
            config = PeakConfig(**{**order["config"], "sides": tuple(order["config"]["sides"])})
            found = measure_peaks(order["num_threads"], config)
    except CrowdRTError as error:
        found = {"problem": error.problem, "fix": error.fix}
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises becomes the reason
        found = {
            "problem": f"the layers could not be timed: {type(error).__name__}: {error}",
            "fix": "see whether the engine runs at all: crowdrt count ENGINE IMAGE",
        }
    write_json(folder / ANSWER, found)
    if os.getppid() != order["parent"]:
        shutil.rmtree(folder, ignore_errors=True)


def profile(order: Mapping[str, Any], image: UInt8Image, folder: Path) -> dict[str, Any]:
    """Return the layers of an engine and how long whole runs took with and without profiling."""
    stored, num_threads = read_built(Path(order["engine"])), int(order["num_threads"])
    config = RunConfig(**order["config"])
    plain: Engine = stored.open(num_threads=num_threads)
    profiler = open_profiler(stored, num_threads, folder)
    pin(cores_for(num_threads))
    visits, profiled_ms = take_turns(plain, profiler, feeds_for(plain, image), config)
    height, width = image.shape[1:]
    file = OnnxFile(read_onnx(Path(order["onnx"])), (height, width)) if order["onnx"] else None
    return {
        "whole_ms": [sample for visit in visits for sample in visit.samples_ms],
        "profiled_ms": profiled_ms,
        "verdict": judge(visits, num_threads=num_threads),
        "layers": [layer.to_json() for layer in profiler.layers(file, config.num_warmup)],
    }


def take_turns(
    plain: Engine, profiler: Profiler, feeds: Feeds, config: RunConfig
) -> tuple[list[Visit], list[float]]:
    """Return the visits without the profiler, and the milliseconds of a run with it after each."""
    run_s = min(warm_up(plain, profiler, feeds, config.num_warmup))
    num_runs = max(1, min(MAX_BURST, int(config.visit_s / run_s)))
    visits: list[Visit] = []
    profiled_ms: list[float] = []
    start = time.perf_counter()
    while len(visits) < config.max_runs:
        if len(visits) >= config.min_runs and time.perf_counter() - start > config.seconds:
            break
        visits.append(timed_visit(partial(timed_run, plain, feeds), num_runs))
        before = time.perf_counter_ns()
        profiler.run(feeds)
        profiled_ms.append((time.perf_counter_ns() - before) / 1e6)
    return visits, profiled_ms


def warm_up(plain: Engine, profiler: Profiler, feeds: Feeds, num_runs: int) -> list[float]:
    """Run both as often as is asked for; return the seconds of the runs without the profiler."""
    found = []
    for _ in range(num_runs):
        found.append(timed_run(plain, feeds) / 1000)
        profiler.run(feeds)
    return found


def timed_run(engine: Engine, feeds: Feeds) -> float:
    """Run an engine once; return the milliseconds."""
    before = time.perf_counter_ns()
    engine.run(feeds)
    return (time.perf_counter_ns() - before) / 1e6
