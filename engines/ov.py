"""OpenVINO on the CPU: beside ONNX Runtime, and faster than it in INT8."""

import functools
import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from crowdrt.contracts import Feeds, GraphInfo, TensorSpec
from crowdrt.engines.base import check_feeds, check_threads, probe
from crowdrt.engines.machine import cpu_may_saturate, num_cores
from crowdrt.engines.ort import full_range_int8, read_graph
from crowdrt.engines.rewrites.unsigned import unsigned_activations
from crowdrt.engines.rewrites.weight_codes import stored_codes
from crowdrt.errors import EngineError
from crowdrt.lazy import require
from crowdrt.onnx_file import fed, spec_of, stored_info

# What a file does not quantize runs in float32: OpenVINO's own choice is bfloat16 where the CPU has
# it, for an FP32 network too. A saved network forgets this, so it is said whenever one is opened.
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32"}
# One image at a time. Threads tied to cores would meet those of another process on the same ones.
# What is prepared for an image size is kept, but for ever only by OpenVINO's own choice: 1/4-CSRNet
# in INT8 grew by 5 MiB with every new size, and ends at 440 MiB with room for 256 layers.
ALONE = {
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
    "CPU_RUNTIME_CACHE_CAPACITY": 256,
}


class OpenVinoEngine:
    """Runs an ONNX file with OpenVINO's CPU plugin.

    Free axes stay free. The first run at a new image size prepares its layers, which on a CPU with
    AMX takes an INT8 network longer than the run itself; sizes that come again do not.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        num_threads: int = 0,
        saved: bool = False,
        count_layers: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Load `model`.

        Args:
            model: an ONNX file, or its bytes (no external data).
            num_threads: 0 takes every core.
            saved: True where `model` is what `saved` returned, on this kind of machine.
            count_layers: keep the time of every layer, which slows it; see `averages_us`.
            config: OpenVINO's properties, in place of our own.
        """
        check_threads(num_threads)
        threads = {"INFERENCE_NUM_THREADS": num_threads or num_cores()}
        config = {**EXACT, **ALONE, **threads, **(config or {})}
        if count_layers:
            config["PERF_COUNT"] = True
        core = core_of(require("openvino", extra="openvino"))
        self._description, self.compiled = (
            reopened(core, model, config) if saved else compiled(core, model, config)
        )
        self._request = self.compiled.create_infer_request()
        self._one_at_a_time = threading.Lock()  # a request holds one run's tensors
        self.inputs = specs_from_json(self._description["inputs"])
        self.outputs = specs_from_json(self._description["outputs"])
        said = self._description["info"]
        self.info = None if said is None else GraphInfo.from_json(said, source="the network")

    def run(self, feeds: Feeds) -> Feeds:
        """Run the network on named arrays; see `Engine.run`."""
        check_feeds(feeds, self.inputs, self.info)
        try:
            with self._one_at_a_time:
                arrays = self._request.infer(dict(feeds))  # copies
        except Exception as error:
            shapes = {name: array.shape for name, array in feeds.items()}
            raise EngineError(
                f"OpenVINO failed on {shapes}: {error}",
                fix="try another image size; if memory ran out, a smaller one",
            ) from error
        return {output.name: arrays[output.name] for output in self.outputs}

    def averages_us(self) -> dict[str, int]:
        """Return each layer's microseconds per run, averaged over all runs since it was opened."""
        return {
            layer.node_name: layer.real_time // timedelta(microseconds=1)
            for layer in self._request.get_profiling_info()
        }

    def saved(self) -> bytes:
        """Return the network as compiled here: a line of JSON about it, then OpenVINO's bytes."""
        stream = io.BytesIO()
        self.compiled.export_model(stream)
        return json.dumps(self._description).encode() + b"\n" + stream.getvalue()


@functools.cache
def core_of(openvino: ModuleType) -> Any:
    """Return the one core of this process, which is never given back.

    With the last core OpenVINO 2026.4 unloads its plugin, and frees the memory that it had made
    the thread's stack for signals: the next Ctrl-C ended the process with a segmentation fault.
    """
    return openvino.Core()


def compiled(core: Any, model: Path | bytes, config: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the description of an ONNX network, and the network compiled for this CPU."""
    source = str(model) if isinstance(model, Path) else "the network"
    graph = read_graph(model)
    if full_range_int8(graph) and cpu_may_saturate():
        raise EngineError(
            f"{source} has 8-bit weights, whose sums OpenVINO lets overflow on a CPU without VNNI",
            fix="crowdrt calibrate MODEL.onnx --images DIR --weight-bits 7 -o MODEL.int8.onnx; "
            "or keep it, with crowdrt build MODEL.int8.onnx --engine onnxruntime",
        )
    # OpenVINO's exceptions have no common base of their own
    try:
        network = core.read_model(for_cpu(graph).SerializeToString())
        return describe(graph, source), core.compile_model(network, "CPU", config)
    except Exception as error:
        raise EngineError(
            f"OpenVINO cannot load {source}: {error}",
            fix="use --engine onnxruntime, or: pip install -U openvino",
        ) from error


def reopened(
    core: Any, content: Path | bytes, config: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    """Return the description and the compiled network that `OpenVinoEngine.saved` returned."""
    header, _, blob = (content.read_bytes() if isinstance(content, Path) else content).partition(
        b"\n"
    )
    try:
        return json.loads(header), core.import_model(io.BytesIO(blob), "CPU", config)
    except Exception as error:
        raise EngineError(
            f"OpenVINO cannot open what it saved: {error}",
            fix="build it again: crowdrt build MODEL.onnx --engine openvino",
        ) from error


def for_cpu(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a network in the form that OpenVINO computes exactly.

    Without VNNI its kernels for signed activations halve the weights; unsigned ones are exact on
    every CPU, and as fast.
    """
    return stored_codes(unsigned_activations(graph) or graph)


def describe(graph: onnx.ModelProto, source: str) -> dict[str, Any]:
    """Return what OpenVINO does not keep of a network: names of free axes, and our metadata."""
    info = stored_info(graph, source=source)
    return {
        "inputs": [asdict(spec_of(value)) for value in fed(graph)],
        "outputs": [asdict(spec_of(value)) for value in graph.graph.output],
        "info": None if info is None else info.to_json(),
    }


def specs_from_json(documents: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return the specs that `describe` wrote down."""
    return tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in documents)


def write_compiled(onnx_path: Path, out: Path, num_threads: int) -> dict[str, Any]:
    """Write the engine file of the store; its manifest has nothing to say of it.

    Raises:
        EngineError: OpenVINO refuses the network, or answers differently once it was saved.
    """
    engine = OpenVinoEngine(onnx_path, num_threads=num_threads)
    content, feeds = engine.saved(), probe(engine)
    before = engine.run(feeds)
    after = OpenVinoEngine(content, num_threads=num_threads, saved=True).run(feeds)
    if not all(np.array_equal(before[name], after[name]) for name in before):
        raise EngineError(
            f"{onnx_path.name} answers differently once OpenVINO saved it",
            fix=f"crowdrt build {onnx_path} --engine onnxruntime",
        )
    out.write_bytes(content)
    return {}


def compiled_opener(content: bytes, _: Mapping[str, Any]) -> Callable[..., OpenVinoEngine]:
    """Return what opens an engine file of the store."""
    return functools.partial(OpenVinoEngine, content, saved=True)
