"""CUDA graphs by the driver's own functions: pycuda has none.

A graph launches all kernels of a run at once; a small network spends more time on launching them
one by one than on computing.
"""

import ctypes
import functools
from collections.abc import Callable
from ctypes import byref, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

from crowdrt.errors import EngineError

THREAD_LOCAL = 1  # of the capture: other threads may allocate meanwhile
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuStreamBeginCapture_v2": (c_void_p, c_uint),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}


class GraphError(EngineError):
    """The driver cannot make a graph of what was asked, or cannot launch it."""

    def __init__(
        self, problem: str, fix: str = "run it without: open the engine with graphs=False"
    ) -> None:
        super().__init__(problem, fix)


@functools.cache
def driver() -> ctypes.CDLL:
    """Return the driver's library with the functions that make graphs (CUDA 11.4 and later).

    Raises:
        GraphError: there is no driver, or it is older.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
        for name, types in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, c_int
    except (OSError, AttributeError) as error:
        raise GraphError(f"the driver makes no graphs: {error}") from error
    return library


def _check(name: str, *arguments: Any) -> None:
    status = getattr(driver(), name)(*arguments)
    if status:
        raise GraphError(f"{name} answered CUDA error {status}")


class CudaGraph:
    """What was given to a stream once, to be launched again at the same addresses."""

    def __init__(self, stream: int, work: Callable[[int], None]) -> None:
        """Record what `work` gives to the stream; nothing is computed.

        Raises:
            GraphError: it cannot be recorded.
        """
        graph, self._exec = c_void_p(), c_void_p()
        _check("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        try:
            work(stream)
        finally:  # the stream has to leave its recording in any case
            status = driver().cuStreamEndCapture(stream, byref(graph))
        if status:
            raise GraphError(f"cuStreamEndCapture answered CUDA error {status}")
        try:
            _check("cuGraphInstantiateWithFlags", byref(self._exec), graph, 0)
        finally:
            _check("cuGraphDestroy", graph)

    def launch(self, stream: int) -> None:
        """Give the recorded work to a stream."""
        _check("cuGraphLaunch", self._exec, stream)

    def close(self) -> None:
        """Give the graph back."""
        if self._exec:
            _check("cuGraphExecDestroy", self._exec)
            self._exec = c_void_p()
