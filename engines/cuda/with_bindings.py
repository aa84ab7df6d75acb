"""The CUDA device through NVIDIA's cuda-bindings, which come as a wheel and build nothing."""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from crowdrt.engines.cuda.device import Pinned, failed, no_device
from crowdrt.errors import EngineError
from crowdrt.lazy import require

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class BindingsDevice:
    """The first device; every handle of the driver is an integer already."""

    def __init__(self) -> None:
        self._cuda: Any = require("cuda.bindings.driver", extra="tensorrt")
        attribute = self._cuda.CUdevice_attribute
        try:
            self._call("cuInit", 0)
            device = self._call("cuDeviceGet", 0)
            self._context = self._call("cuDevicePrimaryCtxRetain", device)
        except EngineError as error:
            raise no_device(error.problem) from error
        self.name = self._call("cuDeviceGetName", 256, device).rstrip(b"\0").decode()
        asked = [
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        ]
        major, minor, sms = (int(self._call("cuDeviceGetAttribute", a, device)) for a in asked)
        self.compute_capability, self.num_sms = (major, minor), sms
        self.cuda_version = int(self._call("cuDriverGetVersion"))
        self._pinned: dict[int, int] = {}  # where an array's bytes begin -> what to free

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the driver; return what it answers beside its status, if anything."""
        status, *answer = getattr(self._cuda, name)(*arguments)
        if int(status):
            raise failed(name, status.name)
        return answer[0] if len(answer) == 1 else answer

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `Device.current`."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def free_bytes(self) -> int:
        """See `Device.free_bytes`."""
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def allocate(self, num_bytes: int) -> int:
        """See `Device.allocate`."""
        return int(self._call("cuMemAlloc", num_bytes))

    def release(self, address: int) -> None:
        """See `Device.release`."""
        self._call("cuMemFree", address)

    def pinned(self, num_bytes: int) -> Pinned:
        """See `Device.pinned`."""
        address = int(self._call("cuMemHostAlloc", num_bytes, 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))
        self._pinned[array.ctypes.data] = address
        return array

    def release_pinned(self, array: Pinned) -> None:
        """See `Device.release_pinned`."""
        self._call("cuMemFreeHost", self._pinned.pop(array.ctypes.data))

    def new_stream(self) -> int:
        """See `Device.new_stream`."""
        return int(self._call("cuStreamCreate", NON_BLOCKING))

    def drop_stream(self, stream: int) -> None:
        """See `Device.drop_stream`."""
        self._call("cuStreamDestroy", stream)

    def synchronise(self, stream: int) -> None:
        """See `Device.synchronise`."""
        self._call("cuStreamSynchronize", stream)

    def to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """See `Device.to_device`."""
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """See `Device.to_host`."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def new_event(self) -> int:
        """See `Device.new_event`."""
        return int(self._call("cuEventCreate", 0))

    def drop_event(self, event: int) -> None:
        """See `Device.drop_event`."""
        self._call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """See `Device.record`."""
        self._call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """See `Device.elapsed_ms`."""
        return float(self._call("cuEventElapsedTime", start, end))
