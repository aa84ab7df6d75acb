"""What runs in a process of its own: an engine under its runtime's profiler, or peaks.

Runs with and without the profiler take turns, so that a clock that drifts and a neighbour that
comes and goes hit both alike.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crowdrt.benchmarks.feeds import feeds_for
from crowdrt.benchmarks.layers.peaks import PeakConfig, measure_peaks
from crowdrt.benchmarks.layers.process import ANSWER, IMAGE, ORDER
from crowdrt.benchmarks.timing.pinning import cores_for, pin
from crowdrt.benchmarks.timing.verdict import judge
from crowdrt.benchmarks.timing.worker import Visit, machine_busy_s, peak_mib
from crowdrt.contracts import Feeds, UInt8Image
from crowdrt.engines.base import Engine
from crowdrt.engines.layers.profilers import Profiler, open_profiler
from crowdrt.engines.layers.tracing import OnnxFile
from crowdrt.engines.store import read_built
from crowdrt.errors import CrowdRTError
from crowdrt.manifest import write_json
from crowdrt.onnx_file import read_onnx


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How often an engine runs; each time once with and once without its profiler."""

    num_warmup: int = 3
    min_runs: int = 5
    max_runs: int = 25
    seconds: float = 10.0  # after which no more begin than `min_runs`


def answer(folder: Path) -> None:
    """Do what the folder's order says, and leave the answer there.

    The process that gave the order removes the folder. Where that one was killed, we do.
    """
    parent = os.getppid()
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
    if os.getppid() != parent:
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
        "whole_ms": [visit.samples_ms[0] for visit in visits],
        "profiled_ms": profiled_ms,
        "verdict": judge(visits, num_threads=num_threads),
        "layers": [asdict(layer) for layer in profiler.layers(file, config.num_warmup)],
    }


def take_turns(
    plain: Engine, profiler: Profiler, feeds: Feeds, config: RunConfig
) -> tuple[list[Visit], list[float]]:
    """Return a visit per run without the profiler, and the milliseconds of those with it."""
    for _ in range(config.num_warmup):
        plain.run(feeds)
        profiler.run(feeds)
    visits: list[Visit] = []
    profiled_ms: list[float] = []
    start = time.perf_counter()
    while len(visits) < config.max_runs:
        if len(visits) >= config.min_runs and time.perf_counter() - start > config.seconds:
            break
        visits.append(timed(plain, feeds))
        before = time.perf_counter_ns()
        profiler.run(feeds)
        profiled_ms.append((time.perf_counter_ns() - before) / 1e6)
    return visits, profiled_ms


def timed(engine: Engine, feeds: Feeds) -> Visit:
    """Run an engine once, and see what else the machine did meanwhile."""
    wall, cpu, busy = time.perf_counter(), time.process_time(), machine_busy_s()
    engine.run(feeds)
    wall_s, busy_after = time.perf_counter() - wall, machine_busy_s()
    return Visit(
        samples_ms=(wall_s * 1000,),
        wall_s=wall_s,
        cpu_s=time.process_time() - cpu,
        busy_s=None if busy is None or busy_after is None else busy_after - busy,
        peak_mib=peak_mib(),
    )
