# ruff: noqa: ARG002 - the signatures are TensorRT's
"""A stand-in for tensorrt whose surface is the recorded one: a name that is not there fails.

Its plans hold the ONNX bytes that were parsed; ONNX Runtime computes them on "device memory", which
is plain memory under made-up addresses. It shows the order of calls and how arrays travel, and
nothing of what TensorRT itself does.
"""

import contextlib
import enum
import itertools
import json
import sys
import time
from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto
from trt_names import NAMES

from crowdrt.engines.trt.layers.precision import asked_of

MAGIC = b"stand-in plan\n"
ENUMS = (
    "BuilderFlag",
    "DataType",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParserFlag",
    "PreviewFeature",
    "ProfilingVerbosity",
    "TacticSource",
    "TensorIOMode",
)
TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}
NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
LAYERS = {
    "Cast": "CAST",
    "Constant": "CONSTANT",
    "Conv": "CONVOLUTION",
    "DequantizeLinear": "DEQUANTIZE",
    "QuantizeLinear": "QUANTIZE",
    "ReduceSum": "REDUCE",
    "Shape": "SHAPE",
}


class Surface:
    """An object of which only recorded names can be read or set; a leading `my_` is our own."""

    my_generation = ""

    def __init_subclass__(cls, of: str | None = None) -> None:
        cls.my_owner = of or cls.__name__

    def my_names(self) -> set[str]:
        return NAMES[self.my_generation][self.my_owner]

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith(("_", "my_")) and name not in self.my_names():
            raise AttributeError(f"{self.my_generation}: {self.my_owner} has no {name}")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith(("_", "my_")) and name not in self.my_names():
            raise AttributeError(f"{self.my_generation}: {self.my_owner} has no {name}")
        super().__setattr__(name, value)


class Memory:
    """The device's memory: what is where, by address."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytearray] = {}
        self.addresses = itertools.count(0x10000, 0x10000)
        self.most = 0

    def allocate(self, num_bytes: int) -> int:
        address = next(self.addresses)
        self.blocks[address] = bytearray(num_bytes)
        self.most = max(self.most, len(self.blocks))
        return address


class StandInDevice:
    """A `Device` in plain memory; its streams do everything at once."""

    def __init__(self, *, free: int = 64 << 30, name: str = "Stand-in GPU") -> None:
        self.name, self.compute_capability, self.num_sms = name, (9, 0), 132
        self.cuda_version = 12080
        self.memory = Memory()
        self.free = free
        self.depth = 0  # how often `current` is entered
        self.pinned_alive = 0
        self.streams: set[int] = set()
        self.events: dict[int, float] = {}
        self.handles = itertools.count(1)
        self.calls: Counter[str] = Counter()

    @contextlib.contextmanager
    def current(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def _used(self, name: str) -> None:
        assert self.depth, f"{name} outside of `with device.current():`"
        self.calls[name] += 1

    def free_bytes(self) -> int:
        self._used("free_bytes")
        return self.free

    def allocate(self, num_bytes: int) -> int:
        self._used("allocate")
        return self.memory.allocate(num_bytes)

    def release(self, address: int) -> None:
        self._used("release")
        del self.memory.blocks[address]

    def pinned(self, num_bytes: int):
        self._used("pinned")
        self.pinned_alive += 1
        return np.full(num_bytes, 0xAB, np.uint8)

    def release_pinned(self, array) -> None:
        self._used("release_pinned")
        self.pinned_alive -= 1

    def new_stream(self) -> int:
        self._used("new_stream")
        stream = next(self.handles)
        self.streams.add(stream)
        return stream

    def drop_stream(self, stream: int) -> None:
        self._used("drop_stream")
        self.streams.remove(stream)

    def synchronise(self, stream: int) -> None:
        self._used("synchronise")
        assert stream in self.streams

    def to_device(self, address: int, array, stream: int) -> None:
        self._used("to_device")
        assert stream in self.streams
        assert array.flags.c_contiguous
        self.memory.blocks[address][: array.nbytes] = array.tobytes()

    def to_host(self, array, address: int, stream: int) -> None:
        self._used("to_host")
        assert array.flags.c_contiguous
        content = bytes(self.memory.blocks[address][: array.nbytes])
        array[...] = np.frombuffer(content, array.dtype).reshape(array.shape)

    def new_event(self) -> int:
        self._used("new_event")
        event = next(self.handles)
        self.events[event] = 0.0
        return event

    def drop_event(self, event: int) -> None:
        self._used("drop_event")
        del self.events[event]

    def record(self, event: int, stream: int) -> None:
        self._used("record")
        self.events[event] = time.perf_counter()

    def elapsed_ms(self, start: int, end: int) -> float:
        self._used("elapsed_ms")
        return (self.events[end] - self.events[start]) * 1e3


def stand_in(generation: str, device: StandInDevice, *, refuses: str = "") -> ModuleType:
    """Return the module `tensorrt` of a generation.

    Args:
        generation: 8.6, 10.16 or 11.4.
        device: where engines keep their arrays.
        refuses: an operator that the parser does not know.
    """
    names = NAMES[generation]
    trt = ModuleType("tensorrt")
    trt.__version__ = {"8.6": "8.6.1", "10.16": "10.16.1.11", "11.4": "11.4.0.106"}[generation]
    trt.my_log = []  # what was asked of the builder, in order
    trt.my_fails = False
    trt.my_types = True  # the inspector says in what each node runs
    trt.my_slow = set()  # nodes that run in FP32 whatever the file asks
    trt.my_meanwhile = lambda: None  # what else happens while a plan is built
    for owner in ENUMS:
        members = sorted(names[owner] - {"name", "value", "itemsize"})
        setattr(trt, owner, enum.IntEnum(owner, {name: i for i, name in enumerate(members)}))
    trt.nptype = lambda kind: NUMPY[kind.name]

    class Base(Surface):
        my_generation = generation

    class Tensor(Base, of="ITensor"):
        def __init__(self, dtype):
            self.dtype = dtype

    class Layer(Base, of="ILayer"):
        def __init__(self, name, kind, dtypes):
            self.name, self.type = name, kind
            self.num_outputs = len(dtypes)
            self.my_outputs = [Tensor(dtype) for dtype in dtypes]
            self.my_types = {}

        def get_output(self, i):
            return self.my_outputs[i]

        def set_output_type(self, i, dtype):
            self.my_types[i] = dtype

    class Network(Base, of="INetworkDefinition"):
        def __init__(self, flags):
            self.my_flags, self.my_model, self.my_layers = flags, None, []

        @property
        def num_layers(self):
            return len(self.my_layers)

        def get_layer(self, i):
            return self.my_layers[i]

    class ParserError(Base):
        def __init__(self, place, text):
            self.my_place, self.my_text = place, text

        def node(self):
            return self.my_place

        def desc(self):
            return self.my_text

    class OnnxParser(Base):
        def __init__(self, network, logger):
            assert device.depth
            self.my_network, self.my_errors, self.my_flags = network, [], set()

        def set_flag(self, flag):
            self.my_flags.add(flag)

        def parse(self, content):
            assert trt.OnnxParserFlag.NATIVE_INSTANCENORM in self.my_flags
            model = onnx.load_from_string(content)
            for i, node in enumerate(model.graph.node):
                if node.op_type == refuses:
                    self.my_errors.append(ParserError(i, f"no importer for {refuses}"))
            inferred = onnx.shape_inference.infer_shapes(model).graph
            values = [*inferred.value_info, *inferred.output, *inferred.input]
            types = {v.name: TYPES.get(v.type.tensor_type.elem_type) for v in values}
            self.my_network.my_model = model
            self.my_network.my_layers = [
                Layer(
                    node.name,
                    trt.LayerType[LAYERS.get(node.op_type, "ELEMENTWISE")],
                    [getattr(trt.DataType, types[name] or "FLOAT", None) for name in node.output],
                )
                for node in model.graph.node
            ]
            # parsers add layers of their own, which may be called after the node too
            helpers = [
                Layer(layer.name, trt.LayerType.CONSTANT, [trt.DataType.FLOAT])
                for layer in self.my_network.my_layers
                if layer.type is trt.LayerType.CONVOLUTION
            ]
            self.my_network.my_layers += helpers
            return not self.my_errors

        @property
        def num_errors(self):
            return len(self.my_errors)

        def get_error(self, i):
            return self.my_errors[i]

    class OptimizationProfile(Base, of="IOptimizationProfile"):
        def __init__(self):
            self.my_shapes = {}

        def set_shape(self, name, low, best, high):
            self.my_shapes[name] = (low, best, high)

    class HostMemory(Base, of="IHostMemory"):
        def __init__(self, content):
            self.my_content = content

        def __bytes__(self):
            return self.my_content

    class TimingCache(Base, of="ITimingCache"):
        def __init__(self, content):
            self.my_entries = set(filter(None, content.split(b" ")))

        def serialize(self):
            return HostMemory(b" ".join(sorted(self.my_entries)))

        def combine(self, other, ignore_mismatch):
            assert not ignore_mismatch
            self.my_entries |= other.my_entries
            return True

    class BuilderConfig(Base, of="IBuilderConfig"):
        def __init__(self):
            self.my_flags = {"TF32"}  # TensorRT's own choice
            self.my_profiles, self.my_cache, self.my_limits = [], None, {}
            self.my_preview, self.my_sources = set(), None

        def set_flag(self, flag):
            self.my_flags.add(flag.name)

        def clear_flag(self, flag):
            self.my_flags.discard(flag.name)

        def set_memory_pool_limit(self, pool, limit):
            self.my_limits[pool.name] = limit

        def set_tactic_sources(self, mask):
            self.my_sources = {s.name for s in trt.TacticSource if mask >> int(s) & 1}

        def set_preview_feature(self, feature, on):
            self.my_preview.add(feature.name)

        def add_optimization_profile(self, profile):
            self.my_profiles.append(profile)

        def create_timing_cache(self, content):
            return TimingCache(content)

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            if b"refused" in cache.my_entries:
                return False
            self.my_cache = cache
            return True

        def get_timing_cache(self):
            return self.my_cache

    class Builder(Base):
        def __init__(self, logger):
            assert device.depth
            self.my_logger = logger

        def create_network(self, flags):
            return Network(flags)

        def create_builder_config(self):
            return BuilderConfig()

        def create_optimization_profile(self):
            return OptimizationProfile()

        def build_serialized_network(self, network, config):
            trt.my_log.append((network, config))
            trt.my_meanwhile()
            if monitor := config.__dict__.get("progress_monitor"):
                monitor.phase_start("Building", None, 2)
                if not all(monitor.step_complete("Building", i) for i in range(2)):
                    return None
                monitor.phase_finish("Building")
            if trt.my_fails:
                self.my_logger.log(trt.ILogger.ERROR, "no tactic for Conv")
                return None
            if config.my_cache is not None:
                config.my_cache.my_entries |= {
                    n.op_type.encode() for n in network.my_model.graph.node
                }
            shapes = config.my_profiles[0].my_shapes if config.my_profiles else {}
            said = {"version": trt.__version__, "ranges": shapes}
            content = network.my_model.SerializeToString()
            return HostMemory(MAGIC + json.dumps(said).encode() + b"\n" + content)

    class EngineInspector(Base):
        def __init__(self, model):
            self.my_model = model

        def get_engine_information(self, kind):
            assert kind is trt.LayerInformationFormat.JSON
            asked = asked_of(self.my_model)
            layers = [self.my_layer(node, asked) for node in self.my_model.graph.node]
            return json.dumps({"Layers": layers})

        def my_layer(self, node, asked):
            if not trt.my_types:
                return {"Name": node.name}
            wish = asked.get(node.name)
            ran = "FP32" if wish is None or node.name in trt.my_slow else wish.precision.upper()
            read = {"Name": "in", "Dimensions": [1], "Format/Datatype": f"Row major {ran}"}
            return {"Name": node.name, "LayerType": node.op_type, "Inputs": [read], "Outputs": []}

    class ExecutionContext(Base, of="IExecutionContext"):
        def __init__(self, engine):
            self.my_engine, self.my_addresses, self.my_shapes = engine, {}, {}
            self.my_warm = False  # whether it ran since its shapes were set

        def set_input_shape(self, name, shape):
            self.my_shapes[name] = tuple(shape)
            self.my_warm = False
            return True

        def set_tensor_address(self, name, address):
            assert address in device.memory.blocks
            self.my_addresses[name] = address
            return True

        def get_tensor_shape(self, name):
            if name in self.my_shapes:
                return self.my_shapes[name]
            sized = onnx.ModelProto()
            sized.CopyFrom(self.my_engine.my_model)
            for value in sized.graph.input:
                axes = value.type.tensor_type.shape.dim
                for axis, side in zip(axes, self.my_shapes[value.name], strict=True):
                    axis.dim_value = side
            for value in sized.graph.output:
                value.type.tensor_type.ClearField("shape")
            inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
            found = next(v for v in inferred.output if v.name == name)
            return tuple(axis.dim_value for axis in found.type.tensor_type.shape.dim)

        def execute_async_v3(self, stream):
            assert stream in device.streams
            self.my_warm = True
            feeds = {}
            for value in self.my_engine.my_model.graph.input:
                dtype = NUMPY[TYPES[value.type.tensor_type.elem_type]]
                shape = self.my_shapes[value.name]
                content = device.memory.blocks[self.my_addresses[value.name]]
                count = int(np.prod(shape))
                feeds[value.name] = np.frombuffer(content, dtype, count).reshape(shape)
            for name, array in self.my_engine.my_run(feeds).items():
                content = array.astype(NUMPY[self.my_engine.get_tensor_dtype(name).name]).tobytes()
                device.memory.blocks[self.my_addresses[name]][: len(content)] = content
            for node in self.my_engine.my_model.graph.node if "profiler" in vars(self) else ():
                self.profiler.report_layer_time(node.name, 0.5)
            return True

    class CudaEngine(Base, of="ICudaEngine"):
        def __init__(self, model, ranges):
            self.my_model, self.my_ranges = model, ranges
            self.my_inputs = {v.name: v for v in model.graph.input}
            self.my_values = self.my_inputs | {v.name: v for v in model.graph.output}
            self.num_io_tensors = len(self.my_values)
            self.my_session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )

        def my_run(self, feeds):
            outputs = [v.name for v in self.my_model.graph.output]
            return dict(zip(outputs, self.my_session.run(outputs, feeds), strict=True))

        def get_tensor_name(self, i):
            return list(self.my_values)[i]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name in self.my_inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            kind = TYPES[self.my_values[name].type.tensor_type.elem_type]
            return trt.DataType["INT32" if kind == "INT64" and generation == "8.6" else kind]

        def get_tensor_shape(self, name):
            axes = self.my_values[name].type.tensor_type.shape.dim
            return [axis.dim_value or -1 for axis in axes]

        def get_tensor_profile_shape(self, name, i):
            return self.my_ranges[name]

        def create_execution_context(self):
            assert device.depth
            return ExecutionContext(self)

        def create_engine_inspector(self):
            return EngineInspector(self.my_model)

    class Runtime(Base):
        def __init__(self, logger):
            assert device.depth
            self.my_logger = logger

        def deserialize_cuda_engine(self, content):
            assert self.engine_host_code_allowed is False
            trt.my_log.append(("loaded", len(content)))
            head, _, rest = content.removeprefix(MAGIC).partition(b"\n")
            if not content.startswith(MAGIC) or json.loads(head)["version"] != trt.__version__:
                self.my_logger.log(trt.ILogger.ERROR, "serialization: version tag does not match")
                return None
            return CudaEngine(onnx.load_from_string(rest), json.loads(head)["ranges"])

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING, INFO, VERBOSE = "ERROR", "INTERNAL", "WARNING", "INFO", "V"

    trt.ILogger = ILogger
    for made in (Builder, OnnxParser, ParserError, Runtime, EngineInspector):
        setattr(trt, made.__name__, made)
    trt.IProfiler = type("IProfiler", (), {})
    if "IProgressMonitor" in names[""]:
        trt.IProgressMonitor = type("IProgressMonitor", (), {})
    check_surface(generation, trt)
    return trt


def installed(
    monkeypatch: Any, generation: str = "8.6", **options: Any
) -> tuple[ModuleType, StandInDevice]:
    """Put the stand-ins where the code looks for TensorRT and for a GPU."""
    from crowdrt.engines.trt import run
    from crowdrt.engines.trt.building import build
    from crowdrt.engines.trt.layers import layer_profile

    device = StandInDevice()
    trt = stand_in(generation, device, **options)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    for module in (build, layer_profile, run):
        monkeypatch.setattr(module, "open_device", lambda: device)
    return trt, device


def check_surface(generation: str, trt: ModuleType) -> None:
    """Hold the stand-in itself to the names that are recorded."""
    for name in vars(trt):
        if not name.startswith(("_", "my_")):
            assert name in NAMES[generation][""], f"{generation} has no {name}"
