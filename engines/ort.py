"""ONNX Runtime on the CPU: the default engine, and the one that needs no GPU."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from crowdrt.console import say
from crowdrt.contracts import METADATA_KEY, Feeds, GraphInfo, TensorSpec
from crowdrt.engines.base import check_feeds, check_threads, probe
from crowdrt.engines.machine import cpu_may_saturate
from crowdrt.engines.rewrites.channels import with_fourth_channel
from crowdrt.engines.rewrites.float_weights import with_float_weights
from crowdrt.engines.rewrites.normalisation import without_std
from crowdrt.engines.rewrites.unsigned import unsigned_activations
from crowdrt.errors import EngineError
from crowdrt.lazy import require
from crowdrt.onnx_file import read_onnx, stored_info
from crowdrt.onnx_graph import name_of

# Threads spin between the operators of a run, and stop when it ends: left spinning they take
# the cores from whatever runs next, another contender of a benchmark for one.
SPINNING = {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"}
# 8-bit weights are shifted to unsigned: slower than u8 x s8, and exact without VNNI.
EXACT_INT8 = {"session.x64quantprecision": "1"}

DTYPES = {"float": "float32", "double": "float64"}


class OrtEngine:
    """Runs an ONNX file with ONNX Runtime's CPU provider."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        num_threads: int = 0,
        optimise: bool = True,
        config: Mapping[str, str] | None = None,
        lean: bool = False,
        arena: bool = True,
        profile: Path | None = None,
    ) -> None:
        """Load `model`.

        Args:
            model: an ONNX file, or its bytes (no external data).
            num_threads: 0 lets ONNX Runtime use every core.
            optimise: False runs the graph as it is written, node by node.
            config: session settings; None chooses what is right for this graph and CPU.
            lean: do not plan the memory of an image from that of the last one of its size, which
                takes up to twice as much.
            arena: keep memory for the next tensors; False asks the system for each.
            profile: a folder into which every layer of every run is written, which slows it; see
                `end_profile`.
        """
        ort = require("onnxruntime", extra="cpu")
        check_threads(num_threads)
        source = str(model) if isinstance(model, Path) else "the network"
        content = model
        if optimise or config is None:
            graph = read_graph(model)
            config = session_config(graph) if config is None else config
            content = for_cpu(model, graph) if optimise else model
        if optimise and profile is not None:
            content = with_names(content)
        self.config = dict(config)
        options = session_options(ort, num_threads, self.config, optimise=optimise)
        options.enable_mem_pattern = not lean
        options.enable_cpu_mem_arena = arena
        self._graph_run = profiled(options, profile, content if not optimise else None)
        self._release = ort.RunOptions()
        self._release.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._session = open_session(ort, content, options, source=source)
        said = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.info = None if said is None else GraphInfo.from_json(said, source=source)
        self.inputs = tuple(map(spec_of, self._session.get_inputs()))
        self.outputs = tuple(map(spec_of, self._session.get_outputs()))

    def run(self, feeds: Feeds, *, release: bool = False) -> Feeds:
        """Run the network on named arrays; see `Engine.run`.

        With `release` it gives back the memory that it keeps for the next run otherwise.
        """
        check_feeds(feeds, self.inputs, self.info)
        names = [output.name for output in self.outputs]
        try:
            arrays = self._session.run(names, dict(feeds), self._release if release else None)
        except Exception as error:
            shapes = {name: array.shape for name, array in feeds.items()}
            raise EngineError(
                f"ONNX Runtime failed on {shapes}: {error}",
                fix="try another image size; if memory ran out, a smaller one",
            ) from error
        return dict(zip(names, arrays, strict=True))

    def end_profile(self) -> Path:
        """Return the file of events that an engine with `profile` has written."""
        return Path(self._session.end_profiling())

    def graph_run(self) -> onnx.GraphProto:
        """Return the graph whose nodes the profile speaks of: the optimised one."""
        assert self._graph_run is not None, "only an engine with `profile` keeps it"
        source = self._graph_run
        return (onnx.load(source) if isinstance(source, Path) else read_graph(source)).graph


def profiled(options: Any, folder: Path | None, model: Path | bytes | None) -> Path | bytes | None:
    """Ask for a profile in `folder`; return where the graph that will run is to be read."""
    if folder is None:
        return None
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "events")
    if model is not None:
        return model
    options.optimized_model_filepath = str(folder / "graph.onnx")
    return folder / "graph.onnx"


def with_names(model: Path | bytes) -> bytes:
    """Return the graph with a name for every node, by which the profile tells of it."""
    graph = read_graph(model)
    for node in graph.graph.node:
        node.name = name_of(node)
    content: bytes = graph.SerializeToString()
    return content


def read_graph(model: Path | bytes) -> onnx.ModelProto:
    """Return the graph in a file, which is checked, or in bytes, which are our own."""
    return read_onnx(model) if isinstance(model, Path) else onnx.load_from_string(model)


def session_config(graph: onnx.ModelProto) -> dict[str, str]:
    """Return the ONNX Runtime settings that are right for this graph on this CPU."""
    exact = EXACT_INT8 if full_range_int8(graph) and cpu_may_saturate() else {}
    return {**SPINNING, **exact}


def full_range_int8(model: onnx.ModelProto) -> bool:
    """Say whether the graph multiplies 8-bit weights; one of another tool may, if it is INT8."""
    info = stored_info(model, source="the network")
    if info is not None:
        return info.precision.startswith("int8") and info.weight_bits > 7
    return any("Linear" in node.op_type or "Integer" in node.op_type for node in model.graph.node)


def save_optimised(
    model: Path, out: Path, *, num_threads: int = 0, config: Mapping[str, str]
) -> None:
    """Write `model` as ONNX Runtime optimises it for this CPU: fused, in blocked layouts."""
    ort = require("onnxruntime", extra="cpu")
    options = session_options(ort, num_threads, config, optimise=True)
    options.optimized_model_filepath = str(out)
    open_session(ort, for_cpu(model, read_graph(model)), options, source=str(model))


def for_cpu(model: Path | bytes, graph: onnx.ModelProto) -> Path | bytes:
    """Return `model`, or its graph in the form that ONNX Runtime's CPU kernels are fast at."""
    unsigned = unsigned_activations(graph)
    if unsigned is None:
        changed = without_std(graph)
    else:
        changed = with_float_weights(with_fourth_channel(unsigned))
    return model if changed is None else changed.SerializeToString()


def session_options(
    ort: ModuleType, num_threads: int, config: Mapping[str, str], *, optimise: bool
) -> Any:
    """Return ONNX Runtime session options."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # its errors reach the caller as exceptions
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def open_session(ort: ModuleType, model: Path | bytes, options: Any, *, source: str) -> Any:
    """Return an ONNX Runtime session, or say what it has against the network."""
    # its exceptions have no common base of their own, and derive from Exception directly
    try:
        return ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:
        raise EngineError(
            f"ONNX Runtime {ort.__version__} cannot load {source}: {error}",
            fix="export it again with a lower --opset, or: pip install -U onnxruntime",
        ) from error


def spec_of(arg: Any) -> TensorSpec:
    """Turn ONNX Runtime's description of an input or output into ours."""
    kind = str(arg.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(
        axis if isinstance(axis, int) else str(axis or f"axis{i}")
        for i, axis in enumerate(arg.shape)
    )
    return TensorSpec(name=arg.name, shape=shape, dtype=DTYPES.get(kind, kind))


def write_optimised(onnx_path: Path, out: Path, num_threads: int) -> dict[str, Any]:
    """Write the engine file of the store; return what its manifest says of it."""
    engine = OrtEngine(onnx_path, num_threads=num_threads)
    objection = _write(engine, onnx_path, out, num_threads)
    if objection is not None:
        out.write_bytes(read_onnx(onnx_path).SerializeToString())  # a full disk is the reason then
        say(f"{onnx_path.name}: stored as it is, to be optimised at each start: {objection}")
    return {
        "optimised": objection is None,
        "objection": objection,
        "config": engine.config,
        "info": None if engine.info is None else asdict(engine.info),
    }


def _write(engine: OrtEngine, onnx_path: Path, out: Path, num_threads: int) -> str | None:
    """Write the optimised graph to `out`; say what is wrong with it, if anything."""
    try:
        save_optimised(onnx_path, out, num_threads=num_threads, config=engine.config)
        saved = OrtEngine(
            out.read_bytes(), num_threads=num_threads, optimise=False, config=engine.config
        )
        feeds = probe(engine)
        before, after = engine.run(feeds), saved.run(feeds)
    except (EngineError, OSError) as error:
        reason = error.problem if isinstance(error, EngineError) else error
        return f"its optimised form cannot be saved and loaded: {reason}"
    if all(np.array_equal(before[name], after[name]) for name in before):
        return None
    return "its optimised form answers differently once saved"


def optimised_opener(content: bytes, document: Mapping[str, Any]) -> Callable[..., OrtEngine]:
    """Return what opens an engine file of the store, given its manifest."""
    return functools.partial(
        OrtEngine,
        content,
        optimise=not document["optimised"],
        config=dict(document["config"]),
    )
