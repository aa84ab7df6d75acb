"""The CUDA device that engines run on, behind the least that they need of it.

Streams, events and device memory are plain integers, as the driver and TensorRT take them.
"""

import ctypes
import functools
import importlib.util
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crowdrt.errors import EngineError, MissingDependencyError

DRIVER_FILE = Path("/proc/driver/nvidia/version")
DRIVER = re.compile(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)")
Pinned = npt.NDArray[np.uint8]  # bytes of page-locked host memory


class Device(Protocol):
    """The first CUDA device, through its primary context, which PyTorch uses too.

    Everything but `current` is called within `with device.current():`.
    """

    name: str
    compute_capability: tuple[int, int]
    num_sms: int
    cuda_version: int  # that the driver speaks: 12080 is CUDA 12.8

    def current(self) -> AbstractContextManager[None]:
        """Make the primary context current in this thread, and give back what was before."""
        ...

    def free_bytes(self) -> int:
        """Return how much device memory nobody has."""
        ...

    def allocate(self, num_bytes: int) -> int:
        """Return the address of new device memory."""
        ...

    def release(self, address: int) -> None:
        """Give device memory back."""
        ...

    def pinned(self, num_bytes: int) -> Pinned:
        """Return page-locked host memory, which copies need to run beside other work."""
        ...

    def release_pinned(self, array: Pinned) -> None:
        """Give page-locked memory back; no view of it may be used any more."""
        ...

    def new_stream(self) -> int:
        """Return a stream that does not wait for the default one."""
        ...

    def drop_stream(self, stream: int) -> None:
        """End a stream."""
        ...

    def synchronise(self, stream: int) -> None:
        """Wait for what was given to a stream."""
        ...

    def to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Begin to copy page-locked memory to the device."""
        ...

    def to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Begin to copy device memory to page-locked memory."""
        ...

    def new_event(self) -> int:
        """Return an event that takes the time."""
        ...

    def drop_event(self, event: int) -> None:
        """End an event."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Let the event happen once the stream has done what it was given."""
        ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the milliseconds between two events that have happened."""
        ...


@functools.cache
def open_device() -> Device:
    """Return the first CUDA device (CUDA_VISIBLE_DEVICES says which that is), once per process.

    Whoever lets go of the last hold on a primary context ends it, and starting it takes long.

    Raises:
        MissingDependencyError: neither pycuda nor cuda-bindings is installed.
        EngineError: there is no driver, or no device.
    """
    try:
        ctypes.CDLL("libcuda.so.1")  # else either library fails on import, each in its own words
    except OSError as error:
        raise no_device(error) from error
    if importlib.util.find_spec("pycuda") is not None:
        from crowdrt.engines.cuda.with_pycuda import PycudaDevice

        return PycudaDevice()
    # looked up in two steps: finding a module imports its parent
    if importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings"):
        from crowdrt.engines.cuda.with_bindings import BindingsDevice

        return BindingsDevice()
    raise MissingDependencyError(
        "neither pycuda nor cuda-bindings is installed, so nothing reaches the GPU",
        fix="pip install 'crowdrt[tensorrt]'",
    )


def no_device(reason: object) -> EngineError:
    """Return the error for a machine without a GPU, or without its driver."""
    return EngineError(
        f"no CUDA device answers: {reason}",
        fix="run this on a machine with an NVIDIA GPU and its driver (nvidia-smi lists them); "
        "on this one use --engine onnxruntime",
    )


def failed(what: str, reason: object) -> EngineError:
    """Return the error for a call of the driver that fails on a GPU that answers."""
    return EngineError(
        f"the CUDA driver failed in {what}: {reason}",
        fix="see who else is on the GPU and what is free: nvidia-smi; then try again",
    )


def gpu_identity(device: Device) -> dict[str, object]:
    """Return what must be the same for a TensorRT plan to be loaded again."""
    major, minor = device.compute_capability
    return {
        "gpu": device.name,
        "compute_capability": f"{major}.{minor}",
        "num_sms": device.num_sms,
        "driver": driver_version(device),
    }


def driver_version(device: Device) -> str:
    """Return the driver's version, or what CUDA it speaks where the system does not say."""
    try:
        return parse_driver(DRIVER_FILE.read_text())
    except (OSError, ValueError):
        version = device.cuda_version
        return f"CUDA {version // 1000}.{version % 1000 // 10}"


def parse_driver(text: str) -> str:
    """Read the version of Linux's kernel module, whose line has two forms.

    Raises:
        ValueError: there is none in the text.
    """
    found = DRIVER.search(text)
    if found is None:
        raise ValueError("no driver version")
    return found[1]
