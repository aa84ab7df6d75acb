"""One heat: all contenders of a network at a size, in processes of their own, interleaved."""

import contextlib
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from crowdrt.benchmarks.timing.nvml import GpuSample, GpuWatch, judge_gpu, summarise
from crowdrt.benchmarks.timing.race import parts_of, with_gpu
from crowdrt.benchmarks.timing.verdict import judge
from crowdrt.benchmarks.timing.worker import GpuParts, Visit
from crowdrt.console import say
from crowdrt.contracts import Measurement, Precision
from crowdrt.pipeline.gpu.processes import Process, Pythons
from crowdrt.pipeline.gpu.rows import Row

VISIT_S, MAX_BURST = 0.5, 200
OPEN_S, WARM_S, RUN_S = 180.0, 150.0, 60.0  # that a process may take
MIN_ROUNDS = 3
PRECISION_OF: Mapping[str, Precision] = {
    "eager fp32": "fp32",
    "eager tf32": "fp32",
    "fp16 channels-last": "fp16",
    "compiled fp16": "fp16",
}


@dataclass(kw_only=True)
class Runner:
    """One contender: its process, what it measured, or why it failed."""

    row: Row
    facts: Mapping[str, Any]  # of its plan
    process: Process | None = None
    failure: str = ""
    num_runs: int = 1
    visits: list[Visit] = field(default_factory=list)
    gpu: list[GpuSample] = field(default_factory=list)

    def expect(self, key: str, timeout_s: float) -> dict[str, Any]:
        """Return the process's answer if it holds `key`; anything else becomes the failure."""
        assert self.process is not None
        answer = self.process.answer(timeout_s)
        if key not in answer:
            self.failure = str(answer.get("failed", answer))
            say(f"{self.row.name}: {self.failure}")
        return answer

    def warm(self) -> None:
        """Let it warm up alone, for what it finds fastest has to be found in peace."""
        assert self.process is not None
        self.process.say("warm")
        answer = self.expect("samples_ms", WARM_S)
        if not self.failure:
            run_s = float(np.median(answer["samples_ms"][-5:])) / 1000
            self.num_runs = max(1, min(MAX_BURST, int(VISIT_S / max(run_s, 1e-6))))

    def visit(self, watch: GpuWatch | None) -> None:
        """Let it run while all others are idle."""
        assert self.process is not None
        block = watch.during() if watch else contextlib.nullcontext([])
        with cast("contextlib.AbstractContextManager[list[GpuSample]]", block) as samples:
            self.process.say(f"visit {self.num_runs}")
            answer = self.expect("samples_ms", RUN_S)
        if not self.failure:
            self.visits.append(visit_from(answer))
            self.gpu += samples


def visit_from(document: Mapping[str, Any]) -> Visit:
    """Read a visit as a worker's JSON has it."""
    parts = tuple(GpuParts(**part) for part in document["parts"])
    return Visit(**{**document, "samples_ms": tuple(document["samples_ms"]), "parts": parts})


def run_heat(
    rows: Sequence[Row],
    built: Mapping[str, Mapping[str, Any]],
    *,
    image: Path,
    pythons: Pythons,
    watch: GpuWatch | None,
    machine: Mapping[str, Any],
    log: IO[bytes],
    race_s: float,
    ends: float,
) -> list[Measurement]:
    """Measure all rows, interleaved; a row that fails says why and stops nobody.

    Args:
        rows: the contenders.
        built: ONNX file -> what building its plan gave, or why it failed.
        image: what all of them count.
        pythons: of the host.
        watch: of the GPU.
        machine: what the records say of it.
        log: takes the processes' stderr.
        race_s: how long is measured.
        ends: by `time.monotonic`, when it all has to be over.
    """
    with contextlib.ExitStack() as stack:
        runners = [start(row, built.get(row.file, {}), image, pythons, log, stack) for row in rows]
        ready = [runner for runner in runners if not runner.failure]
        for runner in ready:
            runner.expect("open", min(OPEN_S, ends - time.monotonic()))
        for runner in ready:
            if not runner.failure and time.monotonic() < ends - race_s:
                runner.warm()
            elif not runner.failure:
                runner.failure = "no time was left to warm it up"
        race([r for r in ready if not r.failure], watch, min(time.monotonic() + race_s, ends))
        ours = [runner.process.pid for runner in runners if runner.process is not None]
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
        return [measurement(runner, machine, ours, run_id) for runner in runners]


def start(
    row: Row,
    facts: Mapping[str, Any],
    image: Path,
    pythons: Pythons,
    log: IO[bytes],
    stack: contextlib.ExitStack,
) -> Runner:
    """Start a row's process, unless its plan is not there."""
    runner = Runner(row=row, facts=facts)
    order = {"do": "serve", "row": row.to_json(), "image": str(image)}
    if row.engine == "tensorrt":
        if "folder" not in facts:
            runner.failure = str(facts.get("failed", "its plan was not built: no time was left"))
            return runner
        order["engine_folder"] = facts["folder"]
    runner.process = stack.enter_context(Process(pythons.of(row.engine), order, log))
    return runner


def race(runners: Sequence[Runner], watch: GpuWatch | None, ends: float) -> None:
    """Let every runner run once per round, in a fresh random order, until time is up."""
    shuffle = random.Random(0).shuffle
    rounds = 0
    while rounds < MIN_ROUNDS or time.monotonic() < ends:
        order = [runner for runner in runners if not runner.failure]
        if not order:
            return
        shuffle(order)
        for runner in order:
            runner.visit(watch)
        rounds += 1


def measurement(
    runner: Runner, machine: Mapping[str, Any], ours: Sequence[int], run_id: str
) -> Measurement:
    """Return a runner's record."""
    row, visits = runner.row, runner.visits
    gpu = summarise(runner.gpu, ours)
    failed = runner.failure or ("" if visits else "it was never timed")
    verdict = f"failed: {failed}" if failed else judge(visits, num_threads=1)
    doubts = [] if failed else [*judge_gpu(gpu), *doubts_of(runner.facts)]
    return Measurement(
        name=row.name,
        network=row.network,
        width=row.width,
        engine=row.engine,
        engine_version=str(machine.get("engines", {}).get(row.engine, "")),
        precision=PRECISION_OF.get(row.precision) or cast("Precision", row.precision),
        size=row.size,
        num_threads=1,
        samples_ms=tuple(ms for visit in visits for ms in visit.samples_ms),
        peak_mib=max((visit.peak_mib for visit in visits), default=0.0),
        machine=machine,
        verdict=with_gpu(verdict, doubts),
        run_id=run_id,
        gpu=gpu,
        runs_per_visit=runner.num_runs,
        **parts_of(visits),
    )


def doubts_of(facts: Mapping[str, Any]) -> list[str]:
    """Return what building a plan gave to doubt."""
    doubts = []
    precision, counts = facts.get("precision", {}), facts.get("counts", {})
    if errors := precision.get("errors"):
        doubts.append(
            f"disobeys: {errors[0]}" + (f" and {len(errors) - 1} more" * (len(errors) > 1))
        )
    if tf32 := precision.get("tf32"):
        doubts.append(f"disobeys: {len(tf32)} layers in tf32")
    if counts.get("agrees") is False:
        doubts.append(f"counts differ by {counts['worst']:.2%} from ONNX Runtime's")
    return doubts
