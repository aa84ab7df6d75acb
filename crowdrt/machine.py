"""What a measurement or a built engine must know of the machine it belongs to."""

import contextlib
import os
import platform
import socket
from pathlib import Path
from typing import Any

from crowdrt.manifest import versions

CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# The instruction sets that decide which kernels a CPU library picks.
FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16")
FLAGS += ("amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve")


def describe_machine() -> dict[str, Any]:
    """Return the machine as one JSON-able mapping; what cannot be read is None."""
    return {
        "cpu": cpu_model(),
        "flags": list(cpu_flags()),
        "cores": usable_cores(),
        "memory_mib": memory_mib(),
        "governor": _read(GOVERNOR),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "host": socket.gethostname(),
        "versions": versions(),
    }


def usable_cores() -> int:
    """Return how many cores this process may run on, which a container can restrict."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the CPU's name as the kernel gives it."""
    fields = _cpuinfo()
    name = fields.get("model name") or fields.get("Model") or platform.processor()
    return name or platform.machine()


def cpu_flags() -> tuple[str, ...]:
    """Return which of `FLAGS` the CPU offers."""
    fields = _cpuinfo()
    present = (fields.get("flags") or fields.get("Features") or "").split()
    return tuple(flag for flag in FLAGS if flag in present)


def memory_mib() -> int | None:
    """Return the installed memory in MiB."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return None


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor listed."""
    first = (_read(CPUINFO) or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
