"""The machine that a measurement belongs to, as it is written into every record."""

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

from crowdrt.engines.machine import machine_identity
from crowdrt.manifest import versions

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_machine() -> dict[str, Any]:
    """Return the machine as one JSON-able mapping; what cannot be read is None.

    No host or user name is in it: records are committed.
    """
    return {
        **machine_identity(),
        "memory_mib": memory_mib(),
        "governor": governor(),
        "kernel": platform.release(),
        "versions": versions(),
    }


def memory_mib() -> int | None:
    """Return the installed memory in MiB."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return None


def governor() -> str | None:
    """Return how the kernel chooses clocks; None in most virtual machines."""
    try:
        return GOVERNOR.read_text().strip()
    except OSError:
        return None
