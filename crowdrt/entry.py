"""From a command to its exit status: every deliberate error becomes its message and status 1."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rich.text import Text
from typer.core import TyperGroup

from crowdrt.console import close_bars, err, tell
from crowdrt.errors import CrowdRTError
from crowdrt.lazy import missing_for_training


class StoppedError(Exception):
    """Ctrl-C, under a name by which typer lets it pass."""


class Verbs(TyperGroup):
    """The verbs; Ctrl-C reaches `run_app`, where typer itself would only set a status."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the command line."""
        with ctrl_c_passes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that `ctx` names."""
        with ctrl_c_passes():
            return super().invoke(ctx)


@contextlib.contextmanager
def ctrl_c_passes() -> Iterator[None]:
    """Give Ctrl-C a name that typer does not know."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise StoppedError from stop


def run_app(app: Callable[[], object]) -> None:
    """Run the command line; typer itself ends with 0, or with 2 for wrong usage."""
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:
        if stopped(error):
            close_bars()
            err.print("stopped; what was finished is kept, and the same command goes on from there")
            sys.exit(1)
        if (deliberate := explained(error)) is None:
            raise
        fail(deliberate)


def stopped(error: BaseException | None) -> bool:
    """Say whether Ctrl-C is what ended the work; a library that was loading says it its own way."""
    while error is not None and not isinstance(error, StoppedError | KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def explained(error: BaseException) -> CrowdRTError | None:
    """Return the error with what mends it; None for a mistake of our own."""
    match error:
        case CrowdRTError():
            return error
        case ImportError():
            return missing_for_training(error)
        case OSError():
            return refused(error)
        case MemoryError():
            said = f"out of memory: {error}" if str(error) else "out of memory"
            return CrowdRTError(said, fix="use a smaller size")
    return None


def fail(error: CrowdRTError) -> NoReturn:
    """Say what is wrong and what mends it, and end with status 1."""
    close_bars()
    problem, fix = (f": {text}" for text in (error.problem, error.fix))
    message = Text.assemble(("error", "bold red"), problem, "\n  ", ("fix", "bold"), fix)
    with contextlib.suppress(OSError):  # nobody listens
        err.print(message, soft_wrap=True)
    sys.exit(1)


def refused(error: OSError) -> CrowdRTError:
    """Return the error for what the operating system refuses somewhere else."""
    what = f"{error.filename}: " if error.filename else ""
    return CrowdRTError(
        f"the operating system refuses: {what}{error.strerror or error}",
        fix="check the path, who may use it, and the free space: df -h . /tmp",
    )


def emit(document: object) -> None:
    """Print the one JSON document of this command."""
    sys.stdout.write(json.dumps(document, indent=1, default=str) + "\n")
    sys.stdout.flush()  # here a full disk or a closed pipe can still be reported


def report(artifact: Any, as_json: bool) -> None:
    """Print what a stage wrote, or that nothing had changed."""
    from crowdrt.pipeline.stages import as_json as artifact_json

    if as_json:
        emit(artifact_json(artifact))
        return
    note = " (nothing had changed)" if artifact.reused else ""
    tell(f"{artifact.path}{note}")
