"""Trains in processes that are killed, and prints what became of them as JSON.

    OMP_NUM_THREADS=1 python killed_runs.py EMPTY_FOLDER

A program of its own, since a run is bit-identical with one thread, and pytest has more. Every
run is a fork of this process, which pays for the imports once and itself learns nothing: a
process whose autograd has run cannot fork.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import safe_open

from crowdrt.contracts import Sample
from crowdrt.data.synthetic.photographs import generate
from crowdrt.learning import TrainingConfig
from crowdrt.manifest import sha256_file
from crowdrt.training import loop
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.loop import train
from crowdrt.training.metrics import read_lines

loop.LOG_EVERY = 1
loop.draw_curves = lambda *_, **__: None  # it takes longer than what is learned here

CONFIG = TrainingConfig(steps=6, batch_size=2, crop_px=64)
WIDTH = Fraction(1, 16)
INTERRUPTED = 130
KILLS = 20
TRIES = 5  # a run may end before its kill arrives

fork = multiprocessing.get_context("fork").Process


def main(folder: Path) -> None:
    """Run everything in `folder` and print the report."""
    data = photographs(folder)
    whole, states = folder / "whole", folder / "states"
    start = time.monotonic()
    assert finished(lambda: run_and_keep_states(data, whole, states)) == 0
    seconds = time.monotonic() - start
    report: dict[str, Any] = {
        "whole": outcome(whole),
        "states": [describe(state) for state in sorted(states.iterdir())],
        "resumed": [],
        "killed": kill_somewhere(data, folder / "killed", seconds),
        "killed often": kill_often(data, folder / "often", seconds),
        "interrupted": interrupt(data, folder / "interrupted"),
    }
    everything = sorted(states.iterdir())
    assert finished(lambda: [run(data, state) for state in everything]) == 0
    report["resumed"] = [outcome(state) for state in everything]
    print(json.dumps(report))


def photographs(folder: Path) -> TrainingSet:
    """Three crowds to learn from, one to validate on."""
    made = generate(folder / "crowds", num_images=4, seed=1, size=(96, 96), people=(10, 40))
    samples: tuple[Sample, ...] = tuple(made)
    return TrainingSet((SampleGroup("crowds", samples[1:], 1.0),), samples[:1])


def run(data: TrainingSet, out: Path) -> bool:
    """Train, or go on training, in `out`; say whether nothing had to be done."""
    task = DensityTask("csrnet", WIDTH, CONFIG, data)
    artifact = train(task, out, save_every=2, validate_every=3)
    return artifact.reused


def run_and_keep_states(data: TrainingSet, out: Path, states: Path) -> None:
    """Train without a break, and copy the folder as every kill between two files would leave it."""
    replace, unlink = Path.replace, Path.unlink

    def keep() -> None:
        number = len(list(states.iterdir()))
        shutil.copytree(out, states / f"{number:02d}", copy_function=shutil.copy)

    def kept_before_replace(path: Path, target: Path) -> Path:
        if out in path.parents:
            keep()
        return replace(path, target)

    def kept_before_unlink(path: Path, missing_ok: bool = False) -> None:
        if out in path.parents and path.exists() and ".tmp-" not in path.name:
            keep()
        unlink(path, missing_ok)

    states.mkdir()
    Path.replace, Path.unlink = kept_before_replace, kept_before_unlink
    run(data, out)
    keep()
    Path.replace, Path.unlink = replace, unlink
    assert run(data, out), "a finished run was done again"


def kill_somewhere(data: TrainingSet, out: Path, seconds: float) -> dict[str, object]:
    """SIGKILL behind the first checkpoint, SIGKILL anywhere, then let it finish."""
    for _ in range(TRIES):
        shutil.rmtree(out, ignore_errors=True)
        first = started(lambda: run(data, out))
        wait_for(out / "checkpoint.safetensors")
        time.sleep(random.uniform(0, seconds / 10))
        left = stop(first, signal.SIGKILL), describe(out)
        if left[0] == -signal.SIGKILL and left[1]["step"]:
            break
    second = started(lambda: run(data, out))
    time.sleep(random.uniform(0, seconds))
    stop(second, signal.SIGKILL)
    finished(lambda: run(data, out))
    return {"exit": left[0], "left": left[1]} | outcome(out)


def kill_often(data: TrainingSet, out: Path, seconds: float) -> dict[str, object]:
    """SIGKILL at twenty random moments of a run that goes on each time, then let it finish."""
    ends = []
    while ends.count(-signal.SIGKILL) < KILLS:
        process = started(lambda: run(data, out))
        time.sleep(random.uniform(0, seconds / 3))
        ends.append(stop(process, signal.SIGKILL))
        if ends[-1] == 0:  # it was done before the kill came: begin another
            shutil.rmtree(out)
    finished(lambda: run(data, out))
    return {"ends": ends} | outcome(out)


def interrupt(data: TrainingSet, out: Path) -> dict[str, object]:
    """Ctrl-C behind the first checkpoint, then let it finish."""
    for _ in range(TRIES):
        shutil.rmtree(out, ignore_errors=True)
        process = started(lambda: ended_by_interrupt(lambda: run(data, out)))
        wait_for(out / "checkpoint.safetensors")
        left = stop(process, signal.SIGINT), describe(out)
        if left[0] == INTERRUPTED and left[1]["step"]:
            break
    finished(lambda: run(data, out))
    return {"exit": left[0], "left": left[1]} | outcome(out)


def ended_by_interrupt(work: Callable[[], object]) -> None:
    """Exit as the command line does, with a status of its own."""
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def started(work: Callable[[], object]) -> multiprocessing.Process:
    """Begin `work` in a process of its own."""
    process = fork(target=work)
    process.start()
    return process


def finished(work: Callable[[], object]) -> int | None:
    """Do `work` in a process of its own and return its exit status."""
    process = started(work)
    process.join()
    return process.exitcode


def stop(process: multiprocessing.Process, with_signal: signal.Signals) -> int | None:
    """Send the signal and return the exit status."""
    os.kill(process.pid or 0, with_signal)
    process.join()
    return process.exitcode


def wait_for(path: Path) -> None:
    """Wait until the file is there."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.001)


def describe(out: Path) -> dict[str, Any]:
    """What a kill left behind."""
    return {"files": names(out), "logged": logged_steps(out), "step": checkpoint_step(out)}


def outcome(out: Path) -> dict[str, object]:
    """What a finished run left behind, with nothing that depends on the time of day."""
    metrics = read_lines(out / "metrics.jsonl")
    for line in metrics:
        del line["time"]
    return {
        "files": names(out),
        "weights": sha256_file(out / "weights.safetensors"),
        "metrics": metrics,
        "losses": read_lines(out / "losses.jsonl"),
    }


def names(out: Path) -> list[str]:
    """The names of the files in a run's folder."""
    return sorted(path.name for path in out.iterdir())


def logged_steps(out: Path) -> list[int]:
    """The steps of the validations that were logged."""
    return [line["step"] for line in read_lines(out / "metrics.jsonl")]


def checkpoint_step(out: Path) -> int | None:
    """The step of the checkpoint, if there is one."""
    if not (out / "checkpoint.safetensors").exists():
        return None
    with safe_open(out / "checkpoint.safetensors", framework="np") as file:
        return int(json.loads(file.metadata()["facts"])["step"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
