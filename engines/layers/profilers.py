"""Engines of the store opened so that their runtime tells how long every layer took."""

from pathlib import Path
from typing import Protocol

import onnx

from crowdrt.contracts import Feeds
from crowdrt.engines.layers.layer import EngineLayer
from crowdrt.engines.layers.ort_events import ort_layers, read_events
from crowdrt.engines.layers.ov_counters import Averages, ov_layers
from crowdrt.engines.layers.tracing import OnnxFile
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.ov import OpenVinoEngine
from crowdrt.engines.store import StoredEngine
from crowdrt.errors import EngineError

WITH_PROFILER = ("onnxruntime", "openvino")


class Profiler(Protocol):
    """An engine that is watched."""

    def run(self, feeds: Feeds) -> None:
        """Run it once."""
        ...

    def layers(self, file: OnnxFile | None, num_warmup: int) -> list[EngineLayer]:
        """Return what it did since it was opened, without the first `num_warmup` runs."""
        ...


class OrtProfiler:
    """ONNX Runtime, which writes an event per layer and run into a file."""

    def __init__(self, engine: OrtEngine, graph: onnx.GraphProto) -> None:
        self._engine, self._graph = engine, graph

    def run(self, feeds: Feeds) -> None:
        """Run it once."""
        self._engine.run(feeds)

    def layers(self, file: OnnxFile | None, num_warmup: int) -> list[EngineLayer]:
        """Return what it did, once: the profile ends with it."""
        return ort_layers(read_events(self._engine.end_profile()), self._graph, file, num_warmup)


class OpenVinoProfiler:
    """OpenVINO, whose averages are read after every run."""

    def __init__(self, engine: OpenVinoEngine) -> None:
        self._engine = engine
        self._averages: list[Averages] = []

    def run(self, feeds: Feeds) -> None:
        """Run it once."""
        self._engine.run(feeds)
        self._averages.append(self._engine.averages_us())

    def layers(self, file: OnnxFile | None, num_warmup: int) -> list[EngineLayer]:
        """Return what it did."""
        return ov_layers(self._engine.compiled, self._averages, file, num_warmup)


def open_profiler(stored: StoredEngine, num_threads: int, folder: Path) -> Profiler:
    """Open an engine under its runtime's profiler.

    Args:
        stored: of `read_built`.
        num_threads: 0 takes every core.
        folder: where ONNX Runtime writes; the caller removes it.

    Raises:
        EngineError: the runtime has no profiler of layers here.
    """
    match stored.engine:
        case "onnxruntime":
            engine = stored.open(num_threads=num_threads, profile=folder)
            assert isinstance(engine, OrtEngine)
            return OrtProfiler(engine, engine.graph_run())
        case "openvino":
            engine = stored.open(num_threads=num_threads, count_layers=True)
            assert isinstance(engine, OpenVinoEngine)
            return OpenVinoProfiler(engine)
        case unknown:
            raise EngineError(
                f"{unknown} has no profiler of layers here",
                fix=f"use an engine of {' or '.join(WITH_PROFILER)}: "
                f"crowdrt build MODEL.onnx --engine {WITH_PROFILER[0]}",
            )
