"""A crew of Ray actors, on all nodes of a cluster.

Plain actors, not Ray Data, whose actor pool (2.60) restarts an actor and repeats its task without
limit, so that one photograph that kills its process would hold the run for ever; and whose Parquet
files are named by the write and its task, so that a second write leaves the same rows twice. Here
the same foreman deals out the same shards as on one machine, and only this process writes: nodes
need neither the results folder nor that of the engine, which reaches them through Ray's object
store. Photographs in local folders have to be on every node; those behind URLs do not.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from queue import Empty, Queue
from typing import Any

from crowdrt import __version__
from crowdrt.errors import EngineError, MissingDependencyError
from crowdrt.lazy import require
from crowdrt.pipeline.scale.counting import (
    TIMEOUT_S,
    Counter,
    Settings,
    count_in_time,
    on_gpu,
    too_slow,
)
from crowdrt.pipeline.scale.crew import Done, Event, Failed, Lost, Ready
from crowdrt.pipeline.scale.parcel import MismatchError, Parcel, check_version, parcel_of
from crowdrt.pipeline.scale.rows import Photo, Row
from crowdrt.pipeline.scale.stores import EXTRA

CONNECT_S = 12.0
# what no node may have otherwise than the run; a full disk or too little memory is one node's own
EVERYWHERE = (MismatchError, MissingDependencyError)
START = "start a cluster here with `ray start --head`, and name what it prints: --cluster HOST:6379"


class Actor:
    """What runs on a node: an engine that is opened once."""

    def __init__(self) -> None:
        self._counter: Counter | None = None
        self._timeout_s = TIMEOUT_S

    def open(self, settings: Settings, parcel: Parcel, sha256: str, version: str) -> None:
        """Unpack the engine into this node's store, and open it."""
        check_version(version)
        path = parcel.unpack(sha256)
        self._counter = Counter(replace(settings, engine=path, store=None))
        self._timeout_s = settings.timeout_s

    def count(self, photos: Sequence[Photo]) -> list[Row]:
        """Count photographs, one row each."""
        assert self._counter is not None
        return count_in_time(self._counter, photos, self._timeout_s)


@contextlib.contextmanager
def on_cluster(settings: Settings, address: str) -> Iterator["Cluster"]:
    """Connect to a cluster for the block; at its end what the actors have in hand is lost.

    Args:
        settings: of the run; its engine is a path on this machine.
        address: HOST:PORT of the cluster's head, or `auto` for the one that runs here.

    Raises:
        EngineError: there is no cluster.
    """
    with connected(address) as ray:
        yield Cluster(ray, settings)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a cluster that runs; see `connect`."""
    ray = connect(address)
    # Ray reports lost workers on stdout, which belongs to results
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield ray
        finally:
            ray.shutdown()  # and with it the actors


class Cluster:
    """Actors on the nodes of a Ray cluster."""

    held_up = (
        "look for free CPUs on the cluster: ray status; if there are some, the engine hangs while "
        "it is opened, so count one photograph on a node: crowdrt count ENGINE PHOTO"
    )

    def __init__(self, ray: Any, settings: Settings) -> None:
        """Send the engine; `ray` is connected."""
        self._ray = ray
        parcel = parcel_of(settings.engine)
        self._opening = (settings, ray.put(parcel), parcel.sha256, __version__)
        needs = {"num_cpus": settings.num_threads, "max_restarts": 0, "max_task_retries": 0}
        if on_gpu(settings):
            needs["num_gpus"] = 1
        self._hire = ray.remote(**needs)(Actor)
        self._actors: dict[int, Any] = {}
        # by Ray's reference; since when it counts, None where it opens
        self._under_way: dict[Any, tuple[int, float | None]] = {}
        self._timeout_s = settings.timeout_s
        self._num_hired = 0

    def has_room_for(self, settings: Settings) -> int:
        """Return how many engines the whole cluster has CPUs or GPUs for, at least one."""
        there = self._ray.cluster_resources()
        if on_gpu(settings):
            return max(1, int(there.get("GPU", 0)))
        return max(1, int(there.get("CPU", 0)) // settings.num_threads)

    def hire(self) -> int:
        """See `Crew.hire`; where no CPU is free, Ray starts it as soon as one is."""
        self._num_hired += 1
        actor = self._hire.remote()
        self._actors[self._num_hired] = actor
        self._under_way[actor.open.remote(*self._opening)] = (self._num_hired, None)
        return self._num_hired

    def give(self, worker: int, photos: Sequence[Photo]) -> None:
        """See `Crew.give`."""
        counting = self._actors[worker].count.remote(list(photos))
        self._under_way[counting] = (worker, time.monotonic())

    def events(self, timeout_s: float) -> list[Event]:
        """See `Crew.events`; an actor that dies with nothing to do is missed when it is asked."""
        references = list(self._under_way)
        happened, _ = self._ray.wait(references, num_returns=1, timeout=timeout_s)
        return [self._heard(reference) for reference in happened]

    def _heard(self, reference: Any) -> Event:
        worker, since = self._under_way.pop(reference)
        try:
            rows = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EVERYWHERE):
                return Failed(error=error.cause)
            return Lost(worker=worker, reason=self._dismiss(worker, error.cause or error))
        except self._ray.exceptions.RayError as error:
            reason = self._dismiss(worker, error)
            if since is not None and time.monotonic() - since >= self._timeout_s:
                reason += f" Perhaps {too_slow(self._timeout_s)}"  # Ray does not say which signal
            return Lost(worker=worker, reason=reason)
        return Ready(worker=worker) if since is None else Done(worker=worker, rows=rows)

    def _dismiss(self, worker: int, error: Exception) -> str:
        """Forget an actor; returns why, in one line."""
        self._ray.kill(self._actors.pop(worker))
        return " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])


def connect(address: str) -> Any:
    """Return Ray, connected to a cluster that runs.

    Raises:
        EngineError: there is none, or it does not answer.
        MissingDependencyError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", extra=EXTRA)
    check_listening(address)
    said: Queue[Exception | None] = Queue()

    def reach() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # noqa: BLE001 (Ray has several for this; handed on)
            said.put(error)
        else:
            said.put(None)

    # in a thread, for where something else listens Ray tries it for minutes and cannot be stopped
    threading.Thread(target=reach, daemon=True).start()
    try:
        refused = said.get(timeout=CONNECT_S)
    except Empty:
        raise unreachable(address, f"no answer within {CONNECT_S:.0f} s") from None
    if refused is not None:
        raise unreachable(address, str(refused)) from refused
    return ray


def check_listening(address: str) -> None:
    """Refuse an address at which nobody listens at once: Ray would try it for a while.

    Raises:
        EngineError: it is said so; or the address is one of Ray's client, with which nobody tried.
    """
    if "://" in address:
        raise EngineError(
            f"{address} is no address of a cluster's head: that is HOST:PORT, or auto", fix=START
        )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S / 2).close()
        except (OSError, OverflowError) as error:
            raise unreachable(address, str(error)) from error


def unreachable(address: str, reason: str) -> EngineError:
    """Return the error for a cluster that cannot be reached."""
    where = "on this machine" if address == "auto" else f"at {address}"
    first = reason.strip().splitlines()[0] if reason.strip() else "no answer"
    return EngineError(f"there is no Ray cluster {where}: {first}", fix=START)
