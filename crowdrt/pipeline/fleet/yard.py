"""Builds on the nodes of a Ray cluster, each by an actor that has its node's resource meanwhile.

Actors, not tasks that Ray repeats: one actor says what its engine will be and builds it, so that
both are said of one machine, and Ray repeats a task that ran out of memory without limit. Only
this process writes to the store, so nodes need no way to it, and no key to sign with.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.console import say
from crowdrt.engines.store import KINDS, folder_name
from crowdrt.errors import CrowdRTError, EngineError
from crowdrt.pipeline.fleet.builder import Builder, Built, Identified, Order
from crowdrt.pipeline.fleet.job import Job, failed, one_line, what_failed
from crowdrt.pipeline.fleet.nodes import lacking, needs_of
from crowdrt.pipeline.fleet.shared import (
    Files,
    Place,
    check_engine,
    check_writable,
    known,
    publish,
    read_finished,
    signed,
)
from crowdrt.pipeline.fleet.summary import BUILT, FOUND, Row
from crowdrt.pipeline.fleet.targets import Target
from crowdrt.pipeline.scale.parcel import Parcel

MAX_TRIES = 3  # of a target whose node or process is lost
POLL_S = 5.0  # between looks at which nodes there are
REPORT_S = 60.0  # between lines on what is going on
REFUSED = (CrowdRTError, OSError, MemoryError, RecursionError)  # by a store, or by what is in it


class Yard:
    """Builds of one network on the nodes of a Ray cluster."""

    def __init__(
        self,
        ray: Any,
        model: Parcel,
        place: Place,
        sign_key: Path | None,
        timing_caches: Mapping[str, Parcel | None],
    ) -> None:
        """Send the network; `ray` is connected."""
        self._ray = ray
        self._model = ray.put(model)
        self._sha256 = model.sha256
        self._place = place
        self._sign_key = sign_key
        self._timing_caches = timing_caches
        self._under_way: dict[Any, Job] = {}  # by Ray's reference
        self._reported = time.monotonic()
        self._published: set[str] = set()  # keys
        self._tried_to_write = False
        self._refused: CrowdRTError | None = None  # by the store

    def rows(self, targets: Sequence[Target]) -> Iterator[Row]:
        """Yield a row per target, as they are done."""
        for target in targets:
            yield from self._start(Job(target=target))
        while self._under_way:
            references = list(self._under_way)
            happened, _ = self._ray.wait(references, num_returns=1, timeout=POLL_S)
            for reference in happened:
                yield from self._heard(self._under_way.pop(reference), reference)
            yield from self._stranded()
            self._report()

    def _start(self, job: Job) -> Iterator[Row]:
        """Ask for a node; yields a row where there is none."""
        target = job.target
        if (error := lacking(self._ray.nodes(), target)) is not None:
            yield failed(job, error)
            return
        job.num_tries, job.found, job.since = job.num_tries + 1, None, time.monotonic()
        needs = needs_of(target)
        job.actor = self._ray.remote(
            num_cpus=needs.pop("CPU"),
            num_gpus=needs.pop("GPU", 0),
            resources=needs,
            max_restarts=0,
            max_task_retries=0,
        )(Builder).remote()
        order = Order(
            target=target,
            model_sha256=self._sha256,
            timing_cache=self._timing_caches[target.name],
            to_be_signed=self._key_for(target) is not None,
            crowdrt=__version__,
        )
        self._under_way[job.actor.identify.remote(order, self._model)] = job

    def _key_for(self, target: Target) -> Path | None:
        return self._sign_key if KINDS[target.engine].on_gpu else None

    def _heard(self, job: Job, reference: Any) -> Iterator[Row]:
        """Take an answer; yields a row where it is the last."""
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            self._dismiss(job)
            yield failed(job, what_failed(error.cause or error))
        except exceptions.RayError as error:
            self._dismiss(job)
            yield from self._lost(job, error)
        else:
            yield from self._answered(job, answer)

    def _answered(self, job: Job, answer: Identified | Built) -> Iterator[Row]:
        try:
            if isinstance(answer, Identified):
                row = self._identified(job, answer)
            else:
                self._dismiss(job)  # its node is free while the engine is written
                row = self._built(job, answer)
        except REFUSED as error:  # what one engine meets does not end the others
            row = failed(job, what_failed(error))
        if row is not None:
            self._dismiss(job)
            yield row

    def _identified(self, job: Job, answer: Identified) -> Row | None:
        """Look for a finished engine, and have it built where there is none."""
        job.found, job.since = answer, time.monotonic()
        if (files := self._finished(job)) is not None:
            return self._row(job, FOUND, files)
        self._check_writable()
        say(f"{job.target.name}: {job.host} builds")
        self._under_way[job.actor.build.remote()] = job
        return None

    def _built(self, job: Job, built: Built) -> Row:
        """Write what was built into the store."""
        key, engine = str(job.key), job.target.engine
        files = known(built.files, engine)
        check_engine(files, key, engine)
        if key in self._published and (there := self._finished(job)) is not None:
            return self._row(job, FOUND, there)  # another target has the same engine
        if (sign_key := self._key_for(job.target)) is not None:
            files = signed(files, sign_key)
        publish(self._place, key, engine, files)
        self._published.add(key)
        why = f"{job.host} had built it before" if built.reused else ""
        return self._row(job, BUILT, files, seconds=built.seconds, why=why)

    def _finished(self, job: Job) -> Files | None:
        target = job.target
        return read_finished(self._place, str(job.key), target.engine, self._key_for(target))

    def _check_writable(self) -> None:
        """Refuse to build for a store that takes nothing; it is asked once."""
        if not self._tried_to_write:
            self._tried_to_write = True
            try:
                check_writable(self._place)
            except CrowdRTError as error:
                self._refused = error
        if self._refused is not None:
            raise self._refused

    def _row(self, job: Job, status: str, files: Files, **more: Any) -> Row:
        return Row(
            target=job.target,
            status=status,
            host=job.host,
            key=job.key,
            num_bytes=sum(map(len, files.values())),
            where=self._place.where(folder_name(str(job.key), job.target.engine)),
            **more,
        )

    def _lost(self, job: Job, error: Exception) -> Iterator[Row]:
        """Start again what a process had in hand that is gone, unless it could not even start."""
        if getattr(error, "actor_init_failed", False):
            fix = f"install the same on every node: pip install 'crowdrt[cluster]=={__version__}'"
            yield failed(job, EngineError(one_line(error), fix=fix))
            return
        lost = f"{job.host or 'its node'}: {one_line(error)}"
        if job.num_tries < MAX_TRIES:
            say(f"{job.target.name}: lost with {lost}; it is tried again")
            yield from self._start(job)
            return
        resource = job.target.resource
        problem = f"it was lost {MAX_TRIES} times, at last with {lost}"
        fix = f"look at memory and logs of the nodes with {resource}: /tmp/ray/session_latest/logs"
        yield failed(job, EngineError(problem, fix=fix))

    def _stranded(self) -> Iterator[Row]:
        """Give up what waits for a node that has gone."""
        nodes = self._ray.nodes()
        for reference, job in list(self._under_way.items()):
            if job.found is None and (error := lacking(nodes, job.target)) is not None:
                del self._under_way[reference]
                self._dismiss(job)
                yield failed(job, error)

    def _dismiss(self, job: Job) -> None:
        """End the actor, which frees its node."""
        if job.actor is not None:
            self._ray.kill(job.actor)
            job.actor = None

    def _report(self) -> None:
        if time.monotonic() - self._reported > REPORT_S:
            self._reported = time.monotonic()
            for job in self._under_way.values():
                say(str(job))
