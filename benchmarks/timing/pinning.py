"""On which cores a contender runs: always the same, and each of a core of its own."""

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
TASKS = Path("/proc/self/task")


def cores_for(num_threads: int, topology: Path = TOPOLOGY) -> tuple[int, ...]:
    """Return as many cores as there are threads, of those that this process may use.

    Two hardware threads of one core share its arithmetic, so the second of each is taken last. ()
    where there is nothing to choose: libraries bind their threads to cores better than we do.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    if num_threads >= len(allowed):
        return ()
    seen: dict[str, int] = {}
    order = []
    for core in allowed:
        siblings = siblings_of(core, topology)
        seen[siblings] = seen.get(siblings, 0) + 1
        order.append((seen[siblings], core))
    return tuple(sorted(core for _, core in sorted(order)[:num_threads]))


def siblings_of(core: int, topology: Path) -> str:
    """Return what names the physical core; a core whose neighbours are unknown is its own."""
    try:
        return (topology / f"cpu{core}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(core)


def pin(cores: tuple[int, ...]) -> None:
    """Keep every thread of this process, a library's too, on `cores`; () leaves them free."""
    if not cores:
        return
    for task in TASKS.iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue
