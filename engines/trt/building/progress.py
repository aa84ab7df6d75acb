"""A build that takes minutes, shown while it runs."""

from types import ModuleType
from typing import Any

from crowdrt.console import Bar
from crowdrt.errors import EngineError


def monitor_for(trt: ModuleType, bar: Bar) -> Any:
    """Return a monitor that draws the builder's phases, each a bar; TensorRT 10 and later.

    Ctrl-C reaches Python only while the builder calls it, and ends the build at its next step.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Draws what TensorRT reports; `interrupted` says that the user had enough."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # pybind demands it
            self.interrupted = False
            self._tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = 0 if parent_phase is None else 1
            text = "  " * depth + phase_name
            self._tasks[phase_name] = bar.add_task(text, total=num_steps, note="")

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                bar.update(self._tasks[phase_name], completed=step + 1)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            task = self._tasks.pop(phase_name)
            bar.remove_task(task)

    return Monitor()


def recorder_for(trt: ModuleType) -> Any:
    """Return a logger that keeps errors for our own message, and warnings to be counted."""

    class Recorder(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what TensorRT has to say instead of printing it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(msg)

        def complaint(self) -> str:
            """Return the first error, which the others follow from; else the last warning."""
            told = [*self.errors[:1], *self.warnings[-1:], "it says not why"]
            self.errors.clear()
            return told[0].strip()

    return Recorder()


def started(kind: Any, logger: Any) -> Any:
    """Return a builder or a runtime.

    Raises:
        EngineError: TensorRT does not start on this GPU and driver.
    """
    try:
        return kind(logger)
    except (TypeError, RuntimeError) as error:  # its factory answers with nothing
        raise EngineError(
            f"TensorRT's {kind.__name__} does not start: {logger.complaint()}",
            fix="see that the driver suits this TensorRT: nvidia-smi, crowdrt doctor",
        ) from error
