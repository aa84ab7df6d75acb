"""A crew of processes on this machine, one core each."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Self

from crowdrt.benchmarks.timing.children import end_all, how_it_ended, inherited_by_child
from crowdrt.errors import CrowdRTError
from crowdrt.pipeline.scale.counting import Counter, Settings, count_in_time, too_slow
from crowdrt.pipeline.scale.crew import Done, Event, Failed, Lost, Ready
from crowdrt.pipeline.scale.rows import Photo

OPENED = "opened"
LEAVE_S = 2.0  # that a process has to end


@dataclass(frozen=True, kw_only=True)
class Hand:
    """A process and our end of the pipe to it."""

    process: BaseProcess
    connection: Connection


class Processes:
    """Processes that are started afresh, so that none inherits a lock or a thread of ours."""

    held_up = (
        "it hangs, or its drive does: see whether it opens at all, crowdrt count ENGINE PHOTO; "
        "if memory is short, use fewer processes: --workers 1"
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hands: dict[int, Hand] = {}
        self._num_hired = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all of them; what they have in hand is lost."""
        for hand in self._hands.values():
            hand.connection.close()
        end_all([hand.process for hand in self._hands.values()], LEAVE_S)

    def hire(self) -> int:
        """See `Crew.hire`."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._settings), daemon=True)
        with inherited_by_child(self._settings.num_threads):
            process.start()
        theirs.close()
        self._num_hired += 1
        self._hands[self._num_hired] = Hand(process=process, connection=ours)
        return self._num_hired

    def give(self, worker: int, photos: Sequence[Photo]) -> None:
        """See `Crew.give`; whether the process is still there, `events` will say."""
        with contextlib.suppress(OSError):
            self._hands[worker].connection.send(list(photos))

    def events(self, timeout_s: float) -> list[Event]:
        """See `Crew.events`."""
        ends = {hand.connection: worker for worker, hand in self._hands.items()}
        return [self._heard(ends[end]) for end in wait(list(ends), timeout_s) if end in ends]

    def _heard(self, worker: int) -> Event:
        """Read what a process sent; one that is gone has closed its end."""
        try:
            said = self._hands[worker].connection.recv()
        except (EOFError, OSError):
            return Lost(worker=worker, reason=self._bury(worker))
        match said:
            case CrowdRTError():
                return Failed(error=said)
            case list():
                return Done(worker=worker, rows=said)
            case _:
                return Ready(worker=worker)

    def _bury(self, worker: int) -> str:
        """Forget a process; returns how it ended."""
        hand = self._hands.pop(worker)
        hand.connection.close()
        hand.process.join(LEAVE_S)
        code = hand.process.exitcode
        return ended_by(code, self._settings.timeout_s)


def ended_by(code: int | None, timeout_s: float) -> str:
    """Say in words how a process ended."""
    if code == -signal.SIGALRM:
        return too_slow(timeout_s)
    return f"it {how_it_ended(code)}"


def serve(connection: Connection, settings: Settings) -> None:
    """Open the engine, then count what is sent until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        counter = Counter(settings)
    except CrowdRTError as error:
        connection.send(error)
        return
    connection.send(OPENED)
    while True:
        try:
            photos = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(count_in_time(counter, photos, settings.timeout_s))


def leave_with_parent() -> None:
    """End this process when its parent does, in whatever way."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
