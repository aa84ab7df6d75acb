"""Ray nodes on this machine for tests: small, without a dashboard, and gone afterwards."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


@contextlib.contextmanager
def ray_cluster(*, num_cpus: int) -> Iterator[Any]:
    """One node; `add_node(**SMALL)` adds another."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus, **SMALL})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def actors(kind: str = "Actor", node: Any = None) -> list[int]:
    """The processes of actors below this process, or of one node: nobody else's cluster."""
    found, waiting = [], [os.getpid()]
    if node is not None:  # a node's raylet starts its workers
        waiting = [each.process.pid for each in node.all_processes["raylet"]]
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    while waiting:
        inside = parents.get(waiting.pop(), [])
        waiting += inside
        found += [pid for pid in inside if command_of(pid).startswith(f"ray::{kind}")]
    return found


def command_of(pid: int) -> str:
    """What a process calls itself."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def kill_actor(number: int) -> int:
    """Kill one of the actors with -9; returns its process."""
    pids = sorted(actors())
    pid = pids[number % len(pids)]
    os.kill(pid, signal.SIGKILL)
    return pid
