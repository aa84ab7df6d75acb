"""The CUDA device through pycuda."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from crowdrt.engines.cuda.device import Pinned, failed, no_device
from crowdrt.lazy import require


class PycudaDevice:
    """The first device; pycuda's objects are kept here under the integers that stand for them."""

    def __init__(self) -> None:
        self._cuda: Any = require("pycuda.driver", extra="tensorrt")
        try:
            self._cuda.init()
            device = self._cuda.Device(0)
        except self._cuda.Error as error:
            raise no_device(error) from error
        self.name = str(device.name())
        self.compute_capability: tuple[int, int] = device.compute_capability()
        self.num_sms = int(device.get_attribute(self._cuda.device_attribute.MULTIPROCESSOR_COUNT))
        self.cuda_version = int(self._cuda.get_driver_version())
        self._context = device.retain_primary_context()
        self._kept: dict[int, Any] = {}  # pycuda frees what nobody holds

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call pycuda; its errors become ours."""
        try:
            return function(*arguments)
        except self._cuda.Error as error:
            raise failed(getattr(function, "__name__", "pycuda"), error) from error

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `Device.current`."""
        self._call(self._context.push)
        try:
            yield
        finally:
            self._call(self._context.pop)

    def free_bytes(self) -> int:
        """See `Device.free_bytes`."""
        free, _ = self._call(self._cuda.mem_get_info)
        return int(free)

    def allocate(self, num_bytes: int) -> int:
        """See `Device.allocate`."""
        memory = self._call(self._cuda.mem_alloc, num_bytes)
        return self._keep(int(memory), memory)

    def release(self, address: int) -> None:
        """See `Device.release`."""
        self._kept.pop(address).free()

    def pinned(self, num_bytes: int) -> Pinned:
        """See `Device.pinned`."""
        array: Pinned = self._call(self._cuda.pagelocked_empty, num_bytes, np.uint8)
        return array

    def release_pinned(self, array: Pinned) -> None:
        """See `Device.release_pinned`."""
        allocation: Any = array.base
        allocation.free()

    def new_stream(self) -> int:
        """See `Device.new_stream`."""
        stream = self._call(self._cuda.Stream, 1)  # CU_STREAM_NON_BLOCKING
        return self._keep(int(stream.handle), stream)

    def drop_stream(self, stream: int) -> None:
        """See `Device.drop_stream`."""
        self._kept.pop(stream)

    def synchronise(self, stream: int) -> None:
        """See `Device.synchronise`."""
        self._call(self._kept[stream].synchronize)

    def to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """See `Device.to_device`."""
        self._call(self._cuda.memcpy_htod_async, address, array, self._kept[stream])

    def to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """See `Device.to_host`."""
        self._call(self._cuda.memcpy_dtoh_async, array, address, self._kept[stream])

    def new_event(self) -> int:
        """See `Device.new_event`."""
        event = self._call(self._cuda.Event)
        return self._keep(id(event), event)

    def drop_event(self, event: int) -> None:
        """See `Device.drop_event`."""
        self._kept.pop(event)

    def record(self, event: int, stream: int) -> None:
        """See `Device.record`."""
        self._call(self._kept[event].record, self._kept[stream])

    def elapsed_ms(self, start: int, end: int) -> float:
        """See `Device.elapsed_ms`."""
        return float(self._call(self._kept[start].time_till, self._kept[end]))

    def _keep(self, handle: int, thing: Any) -> int:
        self._kept[handle] = thing
        return handle
