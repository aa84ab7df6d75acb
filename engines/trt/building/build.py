"""ONNX -> a TensorRT plan for the GPU of this machine."""

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from crowdrt.console import progress_bar, say
from crowdrt.engines.cuda.device import gpu_identity, open_device
from crowdrt.engines.trt.building.estimate import check_memory, estimate_memory
from crowdrt.engines.trt.building.options import PlanOptions
from crowdrt.engines.trt.building.progress import monitor_for, recorder_for, started
from crowdrt.engines.trt.building.routes import Route, route_of
from crowdrt.engines.trt.building.timing_cache import TimingCache, read_timings
from crowdrt.engines.trt.graphs.graph import PlanGraph, plan_graph
from crowdrt.engines.trt.layers.inspector import read_inspector
from crowdrt.engines.trt.layers.precision import check_precision
from crowdrt.errors import EngineError
from crowdrt.lazy import require
from crowdrt.onnx_file import read_onnx

INSPECTOR = "inspector.json"  # beside the plan: what TensorRT says of each layer
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A serialized plan, and what TensorRT says of it."""

    plan: bytes
    layers: str  # the inspector's JSON, in the dialect of the version
    facts: Facts


def this_gpu() -> dict[str, object]:
    """Return what must be the same for a plan to be loaded again: the GPU and its driver."""
    return gpu_identity(open_device())


def write_plan(onnx_path: Path, out: Path, options: PlanOptions) -> Facts:
    """Write the plan and the inspector's layers into the store; return the manifest's facts.

    Raises:
        EngineError: no GPU answers, it has too little memory, TensorRT refuses the network, or runs
            a layer in more digits than the file asks.
        ExportError: the ONNX file cannot be used.
    """
    trt = require("tensorrt", extra="tensorrt")
    graph = plan_graph(read_onnx(onnx_path), options, source=str(onnx_path))
    device = open_device()
    with device.current():
        free = device.free_bytes()
        estimate = estimate_memory(graph.largest, options.workspace_bytes)
        check_memory(estimate, free)
        if estimate.unknown:
            say(f"the estimate leaves out {len(estimate.unknown)} tensors whose shape is unknown")
        machine = {**gpu_identity(device), "tensorrt": str(trt.__version__)}
        built = build_plan(trt, graph, options, machine)
    held = check_precision(
        read_inspector(built.layers),
        graph.model,
        tf32=options.tf32,
        refuse=not options.any_precision,
    )
    if num := len(held.errors) + len(held.exceptions):
        say(f"layers that run in more digits than the file asks: {num}; the manifest names them")
    out.write_bytes(built.plan)
    out.with_name(INSPECTOR).write_text(built.layers)
    return {
        **graph.description(),
        "precision": held.facts(),
        "inspector_sha256": hashlib.sha256(built.layers.encode()).hexdigest(),
        "build": {
            **built.facts,
            "float_pixels": list(graph.float_pixels),
            "estimate_bytes": {**asdict(estimate), "total": estimate.total},
            "free_bytes": free,
        },
    }


def build_plan(
    trt: ModuleType, graph: PlanGraph, options: PlanOptions, machine: dict[str, Any]
) -> BuiltPlan:
    """Build a plan on the current device.

    Raises:
        EngineError: TensorRT cannot parse the network, or finds no kernel for it.
    """
    start = time.perf_counter()
    route = route_of(trt)
    logger = recorder_for(trt)
    builder = started(trt.Builder, logger)
    network = route.create_network(builder)
    parse(trt, network, logger, graph, route)
    config = builder.create_builder_config()
    said = configure(trt, builder, config, graph, options)
    said |= route.set_precision(config, network, graph)
    timings = Timings(options, machine)
    timings.attach(config)
    plan = run_builder(trt, builder, network, config, logger, route)
    facts = {
        "route": route.name,
        "tensorrt": str(trt.__version__),
        **said,
        "timings": timings.collect(config),
        "warnings": len(logger.warnings),
        "seconds": round(time.perf_counter() - start, 2),
    }
    return BuiltPlan(plan=plan, layers=inspected(trt, plan, logger), facts=facts)


def parse(trt: ModuleType, network: Any, logger: Any, graph: PlanGraph, route: Route) -> None:
    """Fill a network from the graph.

    Raises:
        EngineError: names the node that TensorRT cannot take.
    """
    parser = trt.OnnxParser(network, logger)
    # its own instance normalisation; the other one is a plugin, and none is loaded
    parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if parser.parse(graph.model.SerializeToString()):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    told = [describe(parse_error, graph.model) for parse_error in errors] or logger.errors[:1]
    raise EngineError(
        f"TensorRT {trt.__version__} cannot take the network: "
        f"{'; '.join(told) or 'it says not why'}",
        fix=parse_fix(graph.model, route),
    )


def describe(parse_error: Any, model: onnx.ModelProto) -> str:
    """Return one error of the parser with the node's name and operator."""
    place, text = parse_error.node(), str(parse_error.desc()).strip()
    if not 0 <= place < len(model.graph.node):
        return text
    node = model.graph.node[place]
    return f"{node.op_type} {node.name}: {text}"


def parse_fix(model: onnx.ModelProto, route: Route) -> str:
    """Return what helps against a network that the parser refuses."""
    opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
    if opset > route.max_opset:
        return (
            f"the file has opset {opset}, this TensorRT reads up to {route.max_opset}: "
            f"crowdrt export NETWORK --opset {route.max_opset} -o model.onnx"
        )
    return (
        "if it is no part of what you need, cut it off: crowdrt export model.onnx --keep-output "
        "NAME -o cut.onnx; else run the network with --engine onnxruntime"
    )


def configure(
    trt: ModuleType, builder: Any, config: Any, graph: PlanGraph, options: PlanOptions
) -> Facts:
    """Say what is the same on every route; return what was said."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # TensorRT's own kernels alone: cuDNN and cuBLAS are libraries that need not be there
    sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
    config.set_tactic_sources(sum(1 << int(source) for source in sources))
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by TensorRT's own choice
    if graph.ranges:
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in graph.ranges.items():
            profile.set_shape(name, low, best, high)
        config.add_optimization_profile(profile)
    return {
        "tf32": options.tf32,
        "tactic_sources": ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"],
        "profile": {
            name: [list(shape) for shape in shapes] for name, shapes in graph.ranges.items()
        },
    }


class Timings:
    """The timing cache of one build: the one named, or what builds of this GPU share."""

    def __init__(self, options: PlanOptions, machine: dict[str, Any]) -> None:
        self._machine = machine
        self._pinned = options.timing_cache
        self._shared = None
        if options.timings is not None and self._pinned is None:
            self._shared = TimingCache(options.timings, machine)
        self._before = b""

    def attach(self, config: Any) -> None:
        """Give the builder what was measured before."""
        if self._pinned is not None:
            self._before = pinned_timings(self._pinned, self._machine)
        elif self._shared is not None:
            self._before = self._shared.load()
        cache = config.create_timing_cache(self._before)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        if self._pinned is not None:
            raise EngineError(
                f"TensorRT refuses the timing cache {self._pinned}",
                fix="leave out --timing-cache, or name one that this version wrote on this GPU",
            )
        if self._shared is not None:
            self._shared.set_aside("TensorRT refuses it")
        self._before = b""
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def collect(self, config: Any) -> Facts:
        """Keep what this build measured, beside what others have added; return both digests."""
        before = hashlib.sha256(self._before).hexdigest() if self._before else None
        facts: Facts = {"pinned": self._pinned is not None, "before_sha256": before}
        if self._shared is None:
            return facts
        try:
            with self._shared.locked():
                return {**facts, "after_sha256": self._merge(self._shared, config)}
        except (EngineError, OSError) as error:  # the plan is worth more than its timings
            say(f"the timings of this build are not kept: {error}")
            return facts

    def _merge(self, shared: TimingCache, config: Any) -> str:
        cache, newest = config.get_timing_cache(), shared.load()
        if newest and newest != self._before:  # another build was quicker
            other_cache = config.create_timing_cache(newest)
            if other_cache is not None:
                cache.combine(other_cache, False)
        return shared.save(bytes(cache.serialize()))


def pinned_timings(path: Path, machine: dict[str, Any]) -> bytes:
    """Return the timings in the file that the user named.

    Raises:
        EngineError: it is damaged, or was measured elsewhere.
    """
    try:
        return read_timings(path, machine)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"the timing cache {path} cannot be used: {error}",
            fix="leave out --timing-cache, or name one that this version wrote on this GPU",
        ) from error


def run_builder(
    trt: ModuleType, builder: Any, network: Any, config: Any, logger: Any, route: Route
) -> bytes:
    """Build, and show how far it is.

    Raises:
        EngineError: TensorRT finds no way to run the network.
        KeyboardInterrupt: the user stopped it.
    """
    with progress_bar() as bar:
        monitor = monitor_for(trt, bar) if hasattr(trt, "IProgressMonitor") else None
        watched = monitor is not None and route.watch(config, monitor)
        if not watched:
            bar.add_task("TensorRT builds", total=None, note="")
        plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(
            f"TensorRT {trt.__version__} could not build the plan: {logger.complaint()}",
            fix="if memory or a tactic is missing, give it more: --workspace 8GiB, or a smaller "
            "--shape; otherwise run the network with --engine onnxruntime",
        )
    return bytes(plan)


def inspected(trt: ModuleType, plan: bytes, logger: Any) -> str:
    """Return what TensorRT says of the plan's layers, as JSON."""
    runtime = started(trt.Runtime, logger)
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"TensorRT cannot load the plan that it has just built: {logger.complaint()}",
            fix="build it again; if that fails too, with a lower level: --level 2",
        )
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
