"""Processes of our own: what they take over when they start, and how they end."""

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextlib.contextmanager
def inherited_by_child(num_threads: int) -> Iterator[None]:
    """Set what a child takes over when it starts, before it imports anything.

    Ctrl-C is blocked, not ignored: ours arrives after the block, and never in the child, which
    would print a traceback if it came while Python starts.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(num_threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_all(processes: list[BaseProcess], patience_s: float = 2.0) -> None:
    """End processes, with force where one has not gone in time."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(patience_s)
        if process.is_alive():
            process.kill()
            process.join()


def how_it_ended(code: int | None) -> str:
    """Say how a process ended, to follow `it`.

    Args:
        code: `exitcode` of a process that has been joined.
    """
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # one of the real-time signals
        name = f"signal {-code}"
    hint = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"
