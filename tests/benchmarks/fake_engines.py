"""Engines with planted faults. Workers import this module too: see conftest.py."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from crowdrt.contracts import IMAGENET, Feeds, GraphInfo, TensorSpec
from crowdrt.errors import EngineError

INFO = GraphInfo(network="csrnet", width="1/4", preprocessing=IMAGENET, density_stride=8)


class FakeEngine:
    """Counts one person per 64 pixels of grey level 255, after `run_s` of doing nothing."""

    inputs = (TensorSpec(name="image", shape=("n", 3, "h", "w"), dtype="uint8"),)
    outputs = (
        TensorSpec(name="density", shape=("n", 1, "h8", "w8"), dtype="float32"),
        TensorSpec(name="count", shape=("n",), dtype="float32"),
    )
    info: GraphInfo | None = INFO

    def __init__(self, run_s: float = 0.0, log: str = "", name: str = "") -> None:
        self.run_s, self.log, self.name, self.num_runs = run_s, log, name, 0

    def run(self, feeds: Feeds) -> Feeds:
        self.num_runs += 1
        time.sleep(self.run_s)
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(self.name + "\n")
        return self.outputs_for(feeds["image"])

    def outputs_for(self, image: np.ndarray) -> Feeds:
        n, c, height, width = image.shape
        cells = image.reshape(n, c, height // 8, 8, width // 8, 8).mean(axis=(1, 3, 5))
        density = (cells[:, None] / 255).astype(np.float32)
        return {"density": density, "count": density.sum(axis=(1, 2, 3))}


class CoresEngine(FakeEngine):
    """Fails once it is timed on more cores than one; opening it is free."""

    def run(self, feeds: Feeds) -> Feeds:
        if self.num_runs > 2 and len(os.sched_getaffinity(0)) > 1:  # two runs check its answer
            raise RuntimeError(f"runs on cores {os.sched_getaffinity(0)}")
        return super().run(feeds)


class SizedEngine(FakeEngine):
    """Takes 64x96 only."""

    inputs = (TensorSpec(name="image", shape=(1, 3, 64, 96), dtype="uint8"),)


class GrownEngine(FakeEngine):
    """Counts the brightness above 120; its map reaches 3.5 px over every border, as SANet's does.

    Pixel (y, x) lies between the cells y + 3 and y + 4, x + 3 and x + 4, and is shared by the four.
    """

    info: GraphInfo | None = replace(INFO, density_stride=1)

    def outputs_for(self, image: np.ndarray) -> Feeds:
        n, _, height, width = image.shape
        light = np.maximum(image.mean(axis=1) - 120, 0).astype(np.float32)
        density = np.zeros((n, height + 7, width + 7), np.float32)
        for row in (3, 4):
            for column in (3, 4):
                density[:, row : row + height, column : column + width] += light / 4
        return {"density": density[:, None], "count": density.sum(axis=(1, 2))}


class SizedGrownEngine(GrownEngine):
    """Takes 64x96 only."""

    inputs = SizedEngine.inputs


class NanEngine(FakeEngine):
    def outputs_for(self, image: np.ndarray) -> Feeds:
        outputs = super().outputs_for(image)
        return {**outputs, "count": outputs["count"] * np.float32("nan")}


class DriftingEngine(FakeEngine):
    """Right at first, then a little more every run."""

    def outputs_for(self, image: np.ndarray) -> Feeds:
        outputs = super().outputs_for(image)
        return {**outputs, "count": outputs["count"] * np.float32(1 + self.num_runs / 100)}


class RaisingEngine(FakeEngine):
    def run(self, _feeds: Feeds) -> Feeds:
        raise RuntimeError("the kernel is not implemented")


class DyingEngine(FakeEngine):
    """Its process disappears, as one does that the kernel killed for lack of memory."""

    def run(self, feeds: Feeds) -> Feeds:
        if self.num_runs == 5:
            os.kill(os.getpid(), 9)
        return super().run(feeds)


class SlowerEngine(FakeEngine):
    """Each run takes longer than the one before."""

    def run(self, feeds: Feeds) -> Feeds:
        self.run_s += 0.002
        return super().run(feeds)


class HangingEngine(FakeEngine):
    def run(self, feeds: Feeds) -> Feeds:
        time.sleep(3600)
        return super().run(feeds)


class PrintingEngine(FakeEngine):
    def run(self, feeds: Feeds) -> Feeds:
        print("noise of a library on stdout", flush=True)
        return super().run(feeds)


def refuse_to_open(problem: str) -> FakeEngine:
    raise EngineError(problem, fix="build it")


def expect_threads(expected: str) -> FakeEngine:
    assert os.environ["OMP_NUM_THREADS"] == expected
    return FakeEngine()


class CachingEngine(FakeEngine):
    """Answers what it has seen before from memory, at once."""

    def __init__(self, run_s: float = 0.0) -> None:
        super().__init__(run_s)
        self.seen: dict[bytes, Feeds] = {}

    def run(self, feeds: Feeds) -> Feeds:
        key = feeds["image"].tobytes()
        if key not in self.seen:
            self.seen[key] = super().run(feeds)
        return self.seen[key]


class DeafEngine(FakeEngine):
    """Answers everything as it answered the first photograph."""

    first: Feeds | None = None

    def run(self, feeds: Feeds) -> Feeds:
        self.first = self.first or super().run(feeds)
        return self.first


class AsynchronousEngine(FakeEngine):
    """Returns at once, and its answer comes later, as from a device that nobody waits for."""

    def run(self, feeds: Feeds) -> Feeds:
        answer = self.outputs_for(feeds["image"])
        outputs = {name: np.zeros_like(array) for name, array in answer.items()}

        def arrive() -> None:
            time.sleep(self.run_s)
            for name, array in answer.items():
                outputs[name][...] = array

        threading.Thread(target=arrive, daemon=True).start()
        return outputs


class LateEngine(FakeEngine):
    """Returns the answer to the photograph before, as a pipeline does that nobody drains."""

    before: Feeds | None = None

    def run(self, feeds: Feeds) -> Feeds:
        answer = super().run(feeds)
        nothing = {name: np.zeros_like(array) for name, array in answer.items()}
        late, self.before = self.before or nothing, answer
        return late


class Parts:
    """A GPU's clock."""

    to_device_ms, compute_ms, to_host_ms = 0.25, 1.5, 0.125


class GpuEngine(FakeEngine):
    """Says where its time went, as an engine on a GPU does."""

    def timed(self, feeds: Feeds) -> tuple[Feeds, Parts]:
        return self.run(feeds), Parts()
