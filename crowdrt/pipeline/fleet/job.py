"""A target that is being built, and what is said of the errors that nodes send."""

import time
from dataclasses import dataclass
from typing import Any

from crowdrt.engines.store import key_of
from crowdrt.entry import explained
from crowdrt.errors import CrowdRTError, EngineError
from crowdrt.pipeline.fleet.builder import Identified, Started
from crowdrt.pipeline.fleet.targets import Target


@dataclass(kw_only=True)
class Job:
    """A target that is being built."""

    target: Target
    num_tries: int = 0
    actor: Any = None
    since: float = 0.0  # by `time.monotonic`, that it waits, looks or builds
    started: Started | None = None
    found: Identified | None = None

    @property
    def key(self) -> str | None:
        """The engine's, once a node has said what it will be."""
        return None if self.found is None else key_of(self.found.identity)

    @property
    def host(self) -> str | None:
        """The node's, once it has answered."""
        return None if self.started is None else self.started.host

    def __str__(self) -> str:
        doing = f"waits for a node with {self.target.resource}"
        if self.started is not None:
            doing = f"{self.host} " + ("builds" if self.found else "looks what its engine will be")
        return f"{self.target.name}: {doing}, {(time.monotonic() - self.since) / 60:.0f} min so far"


def what_failed(error: BaseException) -> CrowdRTError:
    """Return an error of a node as one that says what to do."""
    return explained(error) or EngineError(
        one_line(error), fix="build it there by hand, which shows all of it: crowdrt build"
    )


def one_line(error: BaseException) -> str:
    """Return what an error is, and the last line that it says: of a traceback, the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"
