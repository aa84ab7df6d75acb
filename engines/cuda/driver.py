"""The GPU as the driver alone tells of it, where no library that reaches it is installed."""

import ctypes
from typing import Any

NAME_BYTES = 256
SMS, MAJOR, MINOR = 16, 75, 76  # CU_DEVICE_ATTRIBUTE_... in cuda.h
VOLTA_GONE = (7, 5)  # TensorRT 10.5 and later
NEWEST_OF_8_6 = (9, 0)


def driver_gpu(library: Any = None) -> dict[str, Any] | None:
    """Return name, compute capability, multiprocessors, memory and CUDA version of the first GPU.

    Args:
        library: the driver's; None loads it.

    Returns:
        None where there is no driver, or no device behind it.
    """
    try:
        cuda = library or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, version, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(NAME_BYTES)
    numbers = {place: ctypes.c_int() for place in (SMS, MAJOR, MINOR)}
    calls = [
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDriverGetVersion(ctypes.byref(version)),
        cuda.cuDeviceGetName(name, NAME_BYTES, device),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        *(cuda.cuDeviceGetAttribute(ctypes.byref(n), p, device) for p, n in numbers.items()),
    ]
    if any(calls):
        return None
    return {
        "gpu": name.value.decode(errors="replace"),
        "compute_capability": f"{numbers[MAJOR].value}.{numbers[MINOR].value}",
        "num_sms": numbers[SMS].value,
        "memory_mib": memory.value // 2**20,
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def generations_for(compute_capability: str) -> list[str]:
    """Return the TensorRT generations that drive a GPU, as far as their notes say."""
    major, _, minor = compute_capability.partition(".")
    gpu = (int(major), int(minor))
    found = ["8.6"] if gpu <= NEWEST_OF_8_6 else []
    return found + ["10", "11"] * (gpu >= VOLTA_GONE)
