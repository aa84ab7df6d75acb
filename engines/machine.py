"""What an engine depends on in the machine below it."""

import functools
import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# Instruction sets by which ONNX Runtime chooses kernels and layouts.
RELEVANT_FLAGS = re.compile(r"(sse4_1|fma|f16c|avx|amx|asimd|i8mm|bf16|sve|sme)\w*")
X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
VNNI = frozenset({"avx_vnni", "avx512_vnni"})


@functools.cache
def cpu() -> tuple[str, frozenset[str]]:
    """Return the CPU's model name and its instruction-set flags, empty where unknown."""
    try:
        return parse_cpuinfo(CPUINFO.read_text())
    except OSError:  # not Linux
        return platform.processor() or "unknown", frozenset()


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Read Linux's /proc/cpuinfo, whose keys differ between x86 and Arm."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())  # the first core speaks for all
    part = f"{fields.get('CPU implementer', '?')} {fields.get('CPU part', '?')}"
    name = fields.get("model name", part)
    flags = fields.get("flags", fields.get("Features", ""))
    return name, frozenset(flags.split())


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def may_saturate(arch: str, flags: frozenset[str]) -> bool:
    """Say whether u8 x s8 products can overflow 16-bit sums on this CPU.

    x86 without VNNI adds pairs of products with vpmaddubsw, which saturates. A CPU whose flags
    are unknown is taken to be one of these.
    """
    return arch.lower() in X86 and not flags & VNNI


def cpu_may_saturate() -> bool:
    """`may_saturate` of the CPU this runs on."""
    return may_saturate(platform.machine(), cpu()[1])


def machine_identity() -> dict[str, object]:
    """Return what must be the same for a built engine to be loaded again."""
    name, flags = cpu()
    return {
        "cpu": name,
        "flags": sorted(filter(RELEVANT_FLAGS.fullmatch, flags)),
        "arch": platform.machine(),
        "os": platform.system(),
        "num_cores": num_cores(),
    }
