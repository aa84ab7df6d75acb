"""How networks, engines and numbers are written in everything that people read."""

from math import floor, log10

from crowdrt.contracts import Size

NETWORKS = {
    "csrnet": "CSRNet",
    "bl": "BL",
    "sanet": "SANet",
    "mcnn": "MCNN",
    "can": "CAN",
    "dssinet": "DSSINet",
    "deepcount": "DeepCount",
    "deepcount-relu": "DeepCount (ReLU)",
    "onenet": "OneNet",
    "dsla": "DSLA",
}
ENGINES = {
    "pytorch": "PyTorch",
    "pytorch-channels-last": "PyTorch channels-last",
    "pytorch-compiled": "PyTorch compiled",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}
ABSENT = "–"


def network_label(network: str, width: str) -> str:
    """Return `1/4-CSRNet`, or `CSRNet` for the full network."""
    name = NETWORKS.get(network, network)
    return name if width == "1" else f"{width}-{name}"


def engine_label(engine: str) -> str:
    """Return the engine's name as its makers write it."""
    return ENGINES.get(engine, engine)


def size_label(size: Size) -> str:
    """Return `576x864`: height first, as on the command line."""
    return f"{size[0]}x{size[1]}"


def significant(value: float | None, digits: int = 3) -> str:
    """Return the value with this many significant digits, never in powers of ten."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - floor(log10(abs(value))))
    return f"{value:.{decimals}f}"


def fixed(value: float | None, decimals: int = 2) -> str:
    """Return the value with this many decimals."""
    return ABSENT if value is None else f"{value:.{decimals}f}"


def times(ratio: float | None) -> str:
    """Return a speed-up: `9.0x`."""
    return ABSENT if ratio is None else f"{ratio:.1f}x"
