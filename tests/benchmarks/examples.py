"""Measurements as a race returns them, for tests of what is made from them."""

import numpy as np

from crowdrt.benchmarks.tables.table import Operations
from crowdrt.contracts import Measurement

MACHINE = {
    "cpu": "Example CPU",
    "flags": ["avx2", "fma"],
    "num_cores": 2,
    "arch": "x86_64",
    "os": "Linux",
    "memory_mib": 8192,
    "governor": None,
    "kernel": "6.1",
    "versions": {"python": "3.11.7", "onnxruntime": "1.31.1"},
}
COSTS = {
    ("csrnet", "1", (576, 864)): Operations(16_263_489, 205_532_000_000, 205_880_754_816),
    ("csrnet", "1/4", (576, 864)): Operations(1_017_681, 13_000_000_000, 13_094_000_000),
    ("sanet", "1/4", (576, 864)): Operations(58_389, 2_500_000_000, 2_521_000_000),
}


def measured(
    network: str,
    width: str,
    engine: str,
    median_ms: float,
    *,
    precision: str = "fp32",
    verdict: str = "valid",
    size=(576, 864),
    run_id: str = "20261121T101500Z-abc123",
    num_samples: int = 31,
) -> Measurement:
    """Samples within 10 % of `median_ms`, which is exactly their median."""
    spread = np.linspace(0.9, 1.1, num_samples) if num_samples else np.array([])
    return Measurement(
        name=f"{network} {width} {engine} {precision}",
        network=network,
        width=width,
        engine=engine,
        engine_version="2.13.0" if engine == "pytorch" else "1.31.1",
        precision=precision,
        size=size,
        num_threads=2,
        samples_ms=tuple((median_ms * spread).tolist()),
        peak_mib=742.3,
        machine=MACHINE,
        verdict=verdict,
        run_id=run_id,
        sha256="ab" * 32,
    )


def a_race() -> list[Measurement]:
    return [
        measured("csrnet", "1/4", "onnxruntime", 113.0, precision="int8"),
        measured("sanet", "1/4", "onnxruntime", 99.0, verdict="shared: others used 8 % of the CPU"),
        measured("csrnet", "1", "pytorch", 3955.0),
        measured("csrnet", "1/4", "onnxruntime", 158.2),
        measured(
            "bl",
            "1",
            "pytorch",
            1.0,
            num_samples=0,
            verdict="failed: its process was ended by SIGKILL",
        ),
    ]
