"""Profiles of layers as they are read from a file, for tests of what is made from them."""

from examples import MACHINE

from crowdrt.benchmarks.layers.records import LayerProfile
from crowdrt.engines.layers.layer import EngineLayer

PEAKS = {
    "cpu": "Example CPU",
    "num_threads": 2,
    "others": 0.0,
    "bytes_per_s": 1e10,
    "operations_per_s": {"fp32": 1e11, "int8": 4e11},
    "how": {
        "copy": {"runtime": "numpy", "bytes": 1, "runs": 3},
        "fp32": {"runtime": "onnxruntime 1.31.1", "side": 1024, "runs": 3},
        "int8": {"runtime": "onnxruntime 1.31.1", "side": 1024, "runs": 3},
    },
}


def a_layer(name: str, ms: float, **facts) -> EngineLayer:
    """A convolution of 0.5 G MACs on 10 MB whose median is `ms`."""
    known = {
        "kind": "Conv", "kernel": None, "nodes": (name,), "precision": "fp32",
        "input_shape": (1, 3, 40, 64), "output_shape": (1, 16, 40, 64), "macs": 500_000_000,
        "num_bytes": 10_000_000, "samples_ms": (2 * ms, ms, 0.5 * ms),
    }  # fmt: skip
    return EngineLayer(name=name, **known | facts)


def a_profile(precision: str, layers, **facts) -> LayerProfile:
    known = {
        "name": f"csrnet 1/4 onnxruntime {precision}", "network": "csrnet", "width": "1/4",
        "engine": "onnxruntime", "engine_version": "1.31.1", "precision": precision,
        "size": (576, 864), "num_threads": 2, "sha256": "ab" * 32, "when": "2026-11-22T18:00:00Z",
        "machine": MACHINE, "peaks": PEAKS, "whole_ms": (31.0, 30.0, 29.0),
        "profiled_ms": (33.0, 32.0, 31.0), "verdict": "valid",
    }  # fmt: skip
    return LayerProfile(layers=tuple(layers), **known | facts)


def two_files() -> list[LayerProfile]:
    """An FP32 file and its INT8 form, of which one layer stayed float."""
    names = [f"/net/front.{n}/Conv" for n in range(4)]
    pool = {"kind": "MaxPool", "macs": None}
    eight = {"precision": "int8", "kind": "QLinearConv", "num_bytes": 2_500_000}
    return [
        a_profile(
            "fp32",
            [
                *(a_layer(name, ms) for name, ms in zip(names, (9, 12, 6, 2), strict=True)),
                a_layer("/net/pool", 0.1, **pool),
                a_layer("Reorder", 0.05, **pool | {"nodes": ()}),
            ],
        ),
        a_profile(
            "int8",
            [
                a_layer("quantize", 3.0, kind="QuantizeLinear", macs=None),
                *(a_layer(n, ms, **eight) for n, ms in zip(names[:3], (3, 4, 2), strict=True)),
                a_layer("/net/pool", 0.1, **pool | {"precision": "int8"}),
                a_layer(names[3], 2.0),
                a_layer("Reorder", 0.05, **pool | {"nodes": ()}),
            ],
            whole_ms=(14.0, 13.0, 12.5),
        ),
    ]
