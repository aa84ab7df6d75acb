"""What this machine can do, what is missing, and the command that mends it."""

import importlib.util
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from rich.table import Table

from crowdrt.benchmarks.timing.machine import describe_machine
from crowdrt.console import show_table
from crowdrt.engines.cuda.device import gpu_identity, open_device
from crowdrt.engines.cuda.driver import driver_gpu, generations_for
from crowdrt.engines.machine import cpu_may_saturate, num_cores
from crowdrt.engines.trt.building.routes import route_of
from crowdrt.errors import CrowdRTError
from crowdrt.lazy import require

# What each extra brings, by the module that shows it is there.
CAPABILITIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("count and build on the CPU", "cpu", ("onnxruntime", "onnx_ir", "scipy")),
    ("build OpenVINO engines too, fast in INT8", "openvino", ("openvino",)),
    ("train and export", "train", ("torch", "safetensors", "lightning", "fvcore", "onnxsim")),
    ("draw plots and reports", "report", ("matplotlib", "jinja2")),
    ("sign TensorRT engines that travel", "signing", ("cryptography",)),
    ("count into Parquet, on a cluster too", "cluster", ("pyarrow", "fsspec", "ray")),
    ("write model repositories for Triton", "serve", ("tritonclient",)),
)


def examine() -> dict[str, Any]:
    """Return the findings as one JSON-able mapping."""
    capabilities = [capability(*entry) for entry in CAPABILITIES]
    machine = describe_machine()
    return {
        "machine": machine,
        "threads": num_cores(),
        "int8": int8_advice(),
        "capabilities": capabilities,
        "gpu": gpu(),
    }


def capability(purpose: str, extra: str, modules: tuple[str, ...]) -> dict[str, Any]:
    """Say whether one extra is installed; modules are looked up, not imported."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return {
        "purpose": purpose,
        "extra": extra,
        "ready": not missing,
        "missing": missing,
        "fix": f"pip install 'crowdrt[{extra}]'" if missing else None,
        "versions": {name: version_of(name) for name in modules if name not in missing},
    }


def version_of(module: str) -> str:
    """Return the installed version of the distribution that holds `module`."""
    try:
        return metadata.version(module.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "unknown"


def int8_advice() -> str:
    """Say how this CPU multiplies 8-bit integers."""
    if cpu_may_saturate():
        return "no VNNI: 16-bit sums can saturate, so keep the default 7-bit weights"
    return "8-bit products are exact on this CPU; 7-bit weights stay right on every other"


def gpu() -> dict[str, Any]:
    """Say whether TensorRT engines can be built here, by which route, or what is missing."""
    found: dict[str, Any] = {"ready": False, **(driver_gpu() or {})}
    found |= {"reached_by": version_of_any("pycuda", "cuda-bindings"),
              "watched_by": version_of_any("nvidia-ml-py")}  # fmt: skip
    try:
        device = open_device()
        found |= gpu_identity(device)
        trt = require("tensorrt", extra="tensorrt")
        found |= {"tensorrt": str(trt.__version__), "route": route_of(trt).name}
    except CrowdRTError as error:
        if "gpu" not in found:  # nothing that could be mended here
            return found | {"reason": f"none: {error.problem}"}
        found["generations"] = generations_for(found["compute_capability"])
        takes = f"for TensorRT {', '.join(found['generations'])}"
        here = f"{found['gpu']}, compute capability {found['compute_capability']} {takes}, but "
        return found | {"reason": here + error.problem, "fix": error.fix}
    about = f"{found['gpu']}, compute capability {found['compute_capability']}"
    route = f"TensorRT {found['tensorrt']}, route {found['route']}"
    watched = "" if found["watched_by"] else "; without nvidia-ml-py nobody watches its clocks"
    said = f"{about}, driver {found['driver']}; {route}{watched}"
    return found | {"ready": True, "reason": said}


def version_of_any(*distributions: str) -> str | None:
    """Return name and version of the first that is installed."""
    for name in distributions:
        if (version := version_of(name)) != "unknown":
            return f"{name} {version}"
    return None


def show(findings: Mapping[str, Any]) -> None:
    """Print the findings for people."""
    machine = findings["machine"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "CPU", f"{machine['cpu']}, {findings['threads']} cores, {machine['memory_mib']} MiB"
    )
    table.add_row("INT8", findings["int8"])
    for entry in findings["capabilities"]:
        versions = ", ".join(f"{name} {text}" for name, text in entry["versions"].items())
        missing = f"missing {', '.join(entry['missing'])}\n→ {entry['fix']}".replace("[", "\\[")
        mark = "[green]ready[/]" if entry["ready"] else "[yellow]not yet[/]"
        table.add_row(f"{mark}", f"{entry['purpose']}: {versions if entry['ready'] else missing}")
    found = findings["gpu"]
    fix = f"\n→ {found['fix']}".replace("[", "\\[") if "fix" in found else ""
    table.add_row("GPU", found["reason"] + fix)
    show_table(table)
