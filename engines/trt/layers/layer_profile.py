"""How long every layer of a plan takes, by TensorRT's own profiler."""

from collections.abc import Callable
from statistics import median
from types import ModuleType
from typing import Any

from crowdrt.contracts import Feeds
from crowdrt.engines.cuda.device import open_device
from crowdrt.engines.trt.session import Plan, Session
from crowdrt.errors import EngineError

NUM_WARMUP = 3
Report = Callable[[str, float], None]  # a layer's name, milliseconds


class ProfiledSession(Session):
    """A session whose context tells of every layer, and therefore uses no CUDA graph."""

    def __init__(self, plan: Plan, report: Report) -> None:
        super().__init__(plan, graphs=False)
        self._profiler = profiler_for(plan.trt, report)  # the context does not keep it alive
        self._context.profiler = self._profiler


def profiler_for(trt: ModuleType, report: Report) -> Any:
    """Return a profiler in the form that TensorRT calls."""

    class LayerProfiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return LayerProfiler()


def profile_layers(plan: bytes, feeds: Feeds, *, num_runs: int) -> list[dict[str, Any]]:
    """Return layers' times as trtexec writes them: a count, then a mapping per layer.

    It takes a run apart from all timing: the profiler waits for every layer.

    Args:
        plan: of the store, which has checked it.
        feeds: what it runs on.
        num_runs: of which each layer's median is taken.

    Raises:
        EngineError: TensorRT refuses the plan, or its profiler names no layer.
    """
    seen: dict[str, list[float]] = {}
    loaded = Plan(plan, open_device())
    with loaded.device.current():
        session = ProfiledSession(loaded, lambda name, ms: seen.setdefault(name, []).append(ms))
        try:
            for run in range(NUM_WARMUP + num_runs):
                if run == NUM_WARMUP:
                    seen.clear()
                session.run(feeds)
        finally:
            session.close()
    if not seen:
        raise EngineError(
            "TensorRT's profiler named no layer",
            fix="build the engine again: crowdrt build MODEL.onnx --engine tensorrt",
        )
    return entries_of(seen, num_runs)


def entries_of(seen: dict[str, list[float]], num_runs: int) -> list[dict[str, Any]]:
    """Return the profile's entries; a layer that ran several times in a run counts as all."""
    return [
        {"count": num_runs},
        *(
            {
                "name": name,
                "timeMs": sum(times),
                "averageMs": sum(times) / num_runs,
                "medianMs": median(times) * len(times) / num_runs,
            }
            for name, times in seen.items()
        ),
    ]
