"""TensorRT on a GPU: a plan of the store as an engine like every other."""

import functools
import json
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from crowdrt.contracts import Feeds, GraphInfo, TensorSpec
from crowdrt.engines.base import check_feeds, check_threads
from crowdrt.engines.cuda.device import Device, open_device
from crowdrt.engines.trt.session import Plan, Session, Timing
from crowdrt.errors import EngineError


class TrtEngine:
    """Runs a plan, one image at a time; threads that want to run at once take one each, `beside`.

    It works in the device's primary context, so PyTorch may use the GPU in the same process.
    """

    def __init__(
        self,
        plan: bytes | Plan,
        document: Mapping[str, Any],
        *,
        num_threads: int = 0,
        graphs: bool = True,
        device: Device | None = None,
    ) -> None:
        """Load a plan and allocate all that runs need.

        Args:
            plan: what TensorRT serialized, or a plan that is loaded already.
            document: the store's manifest of it, which says how the network is fed.
            num_threads: means nothing on a GPU; every engine takes it.
            graphs: launch all kernels of a size that comes again at once.
            device: None takes the first one.

        Raises:
            EngineError: no GPU answers, or it has too little memory, or TensorRT refuses the plan.
        """
        check_threads(num_threads)
        self._plan = plan if isinstance(plan, Plan) else Plan(plan, device or open_device())
        self._document, self._graphs = document, graphs
        self.inputs = specs_from(document["inputs"])
        self.outputs = specs_from(document["outputs"])
        self.info = info_from(document.get("info"))
        self._one_at_a_time = threading.Lock()
        with self._plan.device.current():
            self._session = Session(self._plan, graphs=graphs)
        # holds the session, not the engine, and runs at the latest when the program ends
        self._release = weakref.finalize(self, release, self._session, self._plan.device)

    def run(self, feeds: Feeds) -> Feeds:
        """Run the network on named arrays; see `Engine.run`."""
        return self.timed(feeds)[0]

    def timed(self, feeds: Feeds) -> tuple[Feeds, Timing]:
        """Run the network; return its answers, and where the time went on the GPU."""
        check_feeds(feeds, self.inputs, self.info)
        with self._one_at_a_time:
            if not self._release.alive:
                raise EngineError("the engine is closed", fix="open it again")
            with self._plan.device.current():
                answers, timing = self._session.run(feeds), self._session.timing()
        # TensorRT may keep other numbers than the file says, int32 for int64 for one
        typed = {
            spec.name: answers[spec.name].astype(spec.dtype, copy=False) for spec in self.outputs
        }
        return typed, timing

    def beside(self) -> "TrtEngine":
        """Return an engine on the same plan, with a context, a stream and memory of its own."""
        return TrtEngine(self._plan, self._document, graphs=self._graphs)

    def close(self) -> None:
        """Give the GPU's memory back; closing twice does nothing."""
        with self._one_at_a_time:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


def release(session: Session, device: Device) -> None:
    """End a session on its device."""
    with device.current():
        session.close()


def specs_from(documents: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return the inputs or outputs that a manifest names."""
    return tuple(
        TensorSpec(
            name=each["name"], shape=tuple(each["shape"]), dtype=str(np.dtype(each["dtype"]))
        )
        for each in documents
    )


def info_from(document: Mapping[str, Any] | None) -> GraphInfo | None:
    """Return what the network said of itself, None where another tool exported it."""
    if document is None:
        return None
    return GraphInfo.from_json(json.dumps(document), source="the engine")


def plan_opener(content: bytes, document: Mapping[str, Any]) -> Callable[..., TrtEngine]:
    """Return what opens an engine file of the store, given its manifest."""
    return functools.partial(TrtEngine, content, document)
