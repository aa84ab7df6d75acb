"""How the engine of an attempt is opened; run in the attempt's own process."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from crowdrt.benchmarks.attempts.attempt import Opener, Runtime
from crowdrt.benchmarks.attempts.rewrites.float_layers import with_float_layers
from crowdrt.benchmarks.attempts.rewrites.phases import with_phases
from crowdrt.benchmarks.attempts.rewrites.stem import Pool, with_blocks
from crowdrt.contracts import Feeds
from crowdrt.engines import ort, ov
from crowdrt.engines.base import Engine, check_feeds
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.ov import OpenVinoEngine
from crowdrt.errors import EngineError
from crowdrt.onnx_file import read_onnx

IN_FLIGHT = 2  # images


def prepared(path: Path, runtime: Runtime) -> onnx.ModelProto:
    """Return a file as crowdrt hands it to a runtime; handed over again it stays as it is."""
    model = read_onnx(path)
    if runtime == "openvino":
        return ov.for_cpu(model)
    changed = ort.for_cpu(path, model)
    return onnx.load_from_string(changed) if isinstance(changed, bytes) else model


def opened(model: onnx.ModelProto, runtime: Runtime, num_threads: int) -> Engine:
    """Return the engine of a changed graph."""
    content = model.SerializeToString()
    if runtime == "openvino":
        return OpenVinoEngine(content, num_threads=num_threads)
    return OrtEngine(content, num_threads=num_threads)


def as_written(model: onnx.ModelProto, num_threads: int) -> Engine:
    """Return an engine that does what a graph says, node by node: Q/DQ round, the rest is float."""
    return OrtEngine(model.SerializeToString(), num_threads=num_threads, optimise=False)


def open_phases(path: Path, *, runtime: Runtime, num_threads: int) -> Engine:
    """Open a file with its dilated layers on phase images."""
    return opened(with_phases(prepared(path, runtime)), runtime, num_threads)


def open_blocks(path: Path, *, runtime: Runtime, pool: Pool, num_threads: int) -> Engine:
    """Open a file with its full-resolution layers on blocks of pixels."""
    return opened(with_blocks(prepared(path, runtime), pool=pool), runtime, num_threads)


def open_float_layers(
    path: Path, *, runtime: Runtime, num_threads: int, layers: tuple[str, ...] = ()
) -> Engine:
    """Open an INT8 file with some of its layers computed in float."""
    return opened(float_layers(path, runtime=runtime, layers=layers), runtime, num_threads)


def float_layers(path: Path, *, runtime: Runtime, layers: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return the graph of an INT8 file with some of its layers in float, as a runtime gets it."""
    return with_float_layers(prepared(path, runtime), layers)


def open_with_options(
    path: Path, *, num_threads: int, config: Mapping[str, str] | None = None, **options: Any
) -> Engine:
    """Open a file with other options of ONNX Runtime; `config` is added to crowdrt's own."""
    own = ort.session_config(read_onnx(path))
    return OrtEngine(path, num_threads=num_threads, config={**own, **(config or {})}, **options)


def open_bf16(path: Path, *, num_threads: int) -> Engine:
    """Open a file with OpenVINO free to compute in bfloat16, its own choice where there is AMX."""
    config = {"EXECUTION_MODE_HINT": "PERFORMANCE", "INFERENCE_PRECISION_HINT": "bf16"}
    return OpenVinoEngine(path, num_threads=num_threads, config=config)


def open_two(path: Path, *, runtime: Runtime, num_threads: int) -> Engine:
    """Open a file twice, each with half of the threads.

    Raises:
        EngineError: the two would share a thread's core.
    """
    check_threads(num_threads)
    opens = {"onnxruntime": OrtEngine, "openvino": OpenVinoEngine}[runtime]
    return TwoEngines(partial(opens, path, num_threads=num_threads // IN_FLIGHT))


def check_threads(num_threads: int) -> None:
    """Refuse fewer threads than images in flight."""
    if num_threads < IN_FLIGHT:
        raise EngineError(
            f"{IN_FLIGHT} images in flight need {IN_FLIGHT} threads, not {num_threads}",
            fix=f"give it --threads {IN_FLIGHT}, or leave the attempt out: --only NAME",
        )


class TwoEngines:
    """Two engines that count two images at once; here the same photograph, as equal work."""

    def __init__(self, open_one: Opener) -> None:
        self._engines = tuple(open_one() for _ in range(IN_FLIGHT))
        self._threads = ThreadPoolExecutor(IN_FLIGHT)
        first = self._engines[0]
        self.inputs, self.outputs, self.info = first.inputs, first.outputs, first.info

    def run(self, feeds: Feeds) -> Feeds:
        """Return the answers for both images, one behind the other."""
        answers = list(self._threads.map(lambda engine: engine.run(feeds), self._engines))
        return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}


class ThroughputHint:
    """OpenVINO asked for throughput: it divides its threads into streams, one per image."""

    def __init__(self, path: Path, *, num_threads: int) -> None:
        check_threads(num_threads)
        config = {"PERFORMANCE_HINT": "THROUGHPUT"}
        engine = OpenVinoEngine(path, num_threads=num_threads, config=config)
        self._requests = [engine.compiled.create_infer_request() for _ in range(IN_FLIGHT)]
        self.inputs, self.outputs, self.info = engine.inputs, engine.outputs, engine.info

    def run(self, feeds: Feeds) -> Feeds:
        """Return the answers for two images that are counted at once, one behind the other."""
        check_feeds(feeds, self.inputs, self.info)
        for request in self._requests:
            request.start_async(dict(feeds))
        for request in self._requests:
            request.wait()
        names = [output.name for output in self.outputs]
        return {
            name: np.concatenate([request.get_tensor(name).data for request in self._requests])
            for name in names
        }
