"""What this machine does at most: dense products and a large copy, by the engines' own runtimes.

The best of repeated runs, since a peak is what nothing disturbed. All numbers are random: products
of zeros may run faster than real ones.
"""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from crowdrt.benchmarks.timing.machine import memory_mib
from crowdrt.benchmarks.timing.pinning import cores_for, pin
from crowdrt.benchmarks.timing.verdict import share_of_others
from crowdrt.benchmarks.timing.worker import machine_busy_s
from crowdrt.contracts import Feeds, GraphInfo, Preprocessing
from crowdrt.engines.base import Engine
from crowdrt.engines.layers.roofline import OPERATIONS_PER_MAC
from crowdrt.engines.machine import cpu
from crowdrt.engines.ort import SPINNING, OrtEngine
from crowdrt.engines.ov import OpenVinoEngine
from crowdrt.engines.store import installed_engines, runtime_version
from crowdrt.onnx_file import set_info

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
LARGER = 4  # times the largest cache is copied ...
MIN_COPY, MEMORY_SHARE = 64 * 2**20, 16  # ... at least this, and one in so many bytes of memory
MIN_RUNS = 3
OPSET, IR_VERSION = 17, 8
# 7-bit weights, so that no CPU's sums overflow; what OpenVINO asks a file to say
SAYS = GraphInfo(
    network="product",
    width="1",
    preprocessing=Preprocessing(channels="rgb", mean=(0.0,) * 3, std=(1.0,) * 3, stride=1),
    density_stride=1,
    precision="int8",
    weight_bits=7,
)


@dataclass(frozen=True, kw_only=True)
class PeakConfig:
    """How large and how long; the defaults take about six seconds."""

    sides: tuple[int, ...] = (512, 1024, 2048)  # of the matrices; the best counts
    seconds: float = 0.4  # for each product, and for the copy
    copy_bytes: int = 0  # 0: several times the largest cache


def measure_peaks(num_threads: int, config: PeakConfig) -> dict[str, Any]:
    """Return what a record keeps: rates, by what and how they were reached, and who disturbed."""
    pin(cores_for(num_threads))
    start, busy, cpu_s = time.perf_counter(), machine_busy_s(), time.process_time()
    rate, copied = copy_rate(num_threads, config)
    best: dict[str, dict[str, Any]] = {}
    for precision, runtime, product in products(num_threads):
        for side in config.sides:
            seconds, runs = best_of(product(side), config.seconds)
            found = OPERATIONS_PER_MAC * side**3 / seconds
            if found > best.get(precision, {}).get("rate", 0.0):
                said = {"runtime": runtime, "side": side, "runs": runs}
                best[precision] = {"rate": found, "how": said}
            if seconds > config.seconds:
                break  # a larger one would take many times as long
    others = others_share(start, busy, cpu_s)
    return {
        "cpu": cpu()[0],
        "num_threads": num_threads,
        "others": others,
        "bytes_per_s": rate,
        "operations_per_s": {precision: each["rate"] for precision, each in best.items()},
        "how": {"copy": copied, **{precision: each["how"] for precision, each in best.items()}},
    }


def others_share(start: float, busy_s: float | None, cpu_s: float) -> float | None:
    """Return the share of the machine's cores that others used since; None if it is not known."""
    busy_now = machine_busy_s()
    if busy_s is None or busy_now is None:
        return None
    wall_s = time.perf_counter() - start
    return share_of_others(busy_now - busy_s, time.process_time() - cpu_s, wall_s)


def best_of(work: Callable[[], object], seconds: float) -> tuple[float, int]:
    """Return the shortest of repeated runs after a first one, and how many there were."""
    work()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < MIN_RUNS or time.perf_counter() - start < seconds:
        before = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - before) / 1e9)
    return min(times), len(times)


def products(num_threads: int) -> Iterator[tuple[str, str, Callable[[int], Callable[[], Feeds]]]]:
    """Yield precision, runtime, and what makes a product of matrices of a side.

    ONNX Runtime multiplies codes into int32 sums. OpenVINO does so only where these become codes
    again, which adds little to a large product.
    """
    ort = f"onnxruntime {runtime_version('onnxruntime')}"

    def by_ort(model: onnx.ModelProto) -> Engine:
        return OrtEngine(model.SerializeToString(), num_threads=num_threads, config=SPINNING)

    def by_openvino(model: onnx.ModelProto) -> Engine:
        return OpenVinoEngine(model.SerializeToString(), num_threads=num_threads)

    yield "fp32", ort, lambda side: running(by_ort(float_product(side)), floats(side))
    yield "int8", ort, lambda side: running(by_ort(integer_product(side)), codes(side))
    if "openvino" in installed_engines():
        name = f"openvino {runtime_version('openvino')}"
        yield "fp32", name, lambda side: running(by_openvino(float_product(side)), floats(side))
        yield "int8", name, lambda side: running(by_openvino(quantized_product(side)), codes(side))


def running(engine: Engine, feeds: Feeds) -> Callable[[], Feeds]:
    """Return a function that multiplies once."""
    return lambda: engine.run(feeds)


def floats(side: int) -> Feeds:
    """Return a matrix of floats."""
    return {"a": np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)}


def codes(side: int) -> Feeds:
    """Return a matrix of 8-bit codes."""
    return {"a": np.random.default_rng(0).integers(0, 128, (side, side)).astype(np.uint8)}


def stored_codes(side: int) -> onnx.TensorProto:
    """Return the matrix of codes that a product stores, as a network stores its weights."""
    rng = np.random.default_rng(1)
    return numpy_helper.from_array(rng.integers(-63, 64, (side, side)).astype(np.int8), "b")


def float_product(side: int) -> onnx.ModelProto:
    """Return A B of floats, B stored."""
    stored = np.random.default_rng(1).standard_normal((side, side)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    types = (TensorProto.FLOAT, TensorProto.FLOAT)
    return model_of(nodes, types, side, [numpy_helper.from_array(stored, "b")])


def integer_product(side: int) -> onnx.ModelProto:
    """Return A B of codes, B stored, as int32 sums."""
    nodes = [helper.make_node("MatMulInteger", ["a", "b"], ["c"])]
    return model_of(nodes, (TensorProto.UINT8, TensorProto.INT32), side, [stored_codes(side)])


def quantized_product(side: int) -> onnx.ModelProto:
    """Return A B of codes, B stored, as codes."""
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "step", "zero"], ["a_float"]),
        helper.make_node("DequantizeLinear", ["b", "step", "signed_zero"], ["b_float"]),
        helper.make_node("MatMul", ["a_float", "b_float"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "coarse", "zero"], ["c"]),
    ]
    values = {
        "step": np.float32(0.01),
        "coarse": np.float32(0.01 * side**0.5),
        "zero": np.uint8(0),
        "signed_zero": np.int8(0),
    }
    stored = [numpy_helper.from_array(np.array(value), name) for name, value in values.items()]
    types = (TensorProto.UINT8, TensorProto.UINT8)
    model = model_of(nodes, types, side, [*stored, stored_codes(side)])
    set_info(model, SAYS)
    return model


def model_of(
    nodes: list[onnx.NodeProto], types: tuple[int, int], side: int, stored: list[onnx.TensorProto]
) -> onnx.ModelProto:
    """Return a network from a square matrix `a` to a square matrix `c`."""
    fed, made = (
        helper.make_tensor_value_info(name, kind, [side, side])
        for name, kind in zip("ac", types, strict=True)
    )
    graph = helper.make_graph(nodes, "product", [fed], [made], stored)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def copy_rate(num_threads: int, config: PeakConfig) -> tuple[float, dict[str, Any]]:
    """Return the bytes that a copy reads and writes in a second, and how it was made."""
    num_bytes = config.copy_bytes or copy_bytes()
    source = np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8)
    target = np.empty_like(source)
    halves = (np.array_split(each, num_threads) for each in (target, source))
    parts = list(zip(*halves, strict=True))
    with ThreadPoolExecutor(num_threads) as pool:  # numpy copies without Python's lock
        seconds, runs = best_of(
            lambda: list(pool.map(lambda part: np.copyto(*part), parts)), config.seconds
        )
    how = {"runtime": f"numpy {np.__version__}", "bytes": num_bytes, "runs": runs}
    return 2 * num_bytes / seconds, how


def copy_bytes() -> int:
    """Return how much is copied, so that no cache holds it, and memory does."""
    room = (memory_mib() or 0) * 2**20 // MEMORY_SHARE
    return max(MIN_COPY, min(LARGER * largest_cache(), room))


def largest_cache(folder: Path = CACHES) -> int:
    """Return the bytes of the largest cache; 0 where the system does not say."""
    sizes = [0]
    for path in folder.glob("index*/size"):
        if found := re.fullmatch(r"(\d+)([KMG])", path.read_text().strip()):
            sizes.append(int(found[1]) * UNITS[found[2]])
    return max(sizes)
