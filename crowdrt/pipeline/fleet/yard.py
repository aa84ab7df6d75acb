"""Builds on the nodes of a Ray cluster, each by an actor that has its node's resource meanwhile.

Actors, not tasks that Ray repeats: one actor says what its engine will be and builds it, so that
both are said of one machine, and Ray repeats a task that ran out of memory without limit. Only
this process writes to the store, so nodes need no way to it, and no key to sign with.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.console import say
from crowdrt.engines.store import KINDS, folder_name
from crowdrt.errors import CrowdRTError, EngineError
from crowdrt.pipeline.fleet.builder import Builder, Built, Identified, Order, Started
from crowdrt.pipeline.fleet.job import Job, one_line, what_failed
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
from crowdrt.pipeline.fleet.summary import BUILT, FOUND, Row, failed
from crowdrt.pipeline.fleet.targets import Target
from crowdrt.pipeline.scale.parcel import Parcel

MAX_TRIES = 3  # of a target whose node or process is lost
POLL_S = 5.0  # between looks at which nodes there are
IDENTIFY_S = 600.0  # for a node to unpack the network and to ask its driver, which may hang
REPORT_S = 60.0  # between lines on what is going on
INTERNAL = ("node:", "memory", "object_store_memory")  # Ray's resources that tell nothing
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
            yield from self._hung()
            self._report()

    def _start(self, job: Job) -> Iterator[Row]:
        """Ask for a node; yields a row where there is none."""
        target = job.target
        if (error := lacking(self._ray.nodes(), target)) is not None:
            yield failed(job, error)
            return
        job.num_tries, job.since = job.num_tries + 1, time.monotonic()
        job.started = job.found = None
        needs = needs_of(target)
        job.actor = self._ray.remote(
            num_cpus=needs.pop("CPU"),
            num_gpus=needs.pop("GPU", 0),
            resources=needs,
            max_restarts=0,
            max_task_retries=0,
        )(Builder).remote()
        self._under_way[job.actor.start.remote(__version__)] = job

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

    def _answered(self, job: Job, answer: Started | Identified | Built) -> Iterator[Row]:
        row = None
        try:
            match answer:
                case Started():
                    self._started(job, answer)
                case Identified():
                    row = self._identified(job, answer)
                case Built():
                    self._dismiss(job)  # its node is free while the engine is written
                    row = self._built(job, answer)
        except REFUSED as error:  # what one engine meets does not end the others
            row = failed(job, what_failed(error))
        if row is not None:
            self._dismiss(job)
            yield row

    def _started(self, job: Job, answer: Started) -> None:
        """Ask a node that is there what its engine will be."""
        job.started, job.since = answer, time.monotonic()
        order = Order(
            target=job.target,
            model_sha256=self._sha256,
            timing_cache=self._timing_caches[job.target.name],
            to_be_signed=self._key_for(job.target) is not None,
        )
        self._under_way[job.actor.identify.remote(order, self._model)] = job

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
        twice(lambda: publish(self._place, key, engine, files))
        self._published.add(key)
        why = f"{job.host} had built it before" if built.reused else ""
        return self._row(job, BUILT, files, seconds=built.seconds, why=why)

    def _finished(self, job: Job) -> Files | None:
        target = job.target
        return read_finished(self._place, str(job.key), target.engine, self._key_for(target))

    def _check_writable(self) -> None:
        """Refuse to build for a store that takes nothing; what it says holds for all the rest."""
        if not self._tried_to_write:
            self._tried_to_write = True
            try:
                twice(lambda: check_writable(self._place))
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
                yield self._give_up(reference, error)

    def _hung(self) -> Iterator[Row]:
        """Give up nodes that do not say what their engine will be; building may take hours."""
        for reference, job in list(self._under_way.items()):
            looks = job.started is not None and job.found is None
            if looks and time.monotonic() - job.since > IDENTIFY_S:
                problem = f"it has not said in {IDENTIFY_S:.0f} s what its engine will be"
                fix = f"look what hangs there, such as a GPU's driver: ssh {job.host} nvidia-smi"
                yield self._give_up(reference, EngineError(problem, fix=fix))

    def _give_up(self, reference: Any, error: CrowdRTError) -> Row:
        job = self._under_way.pop(reference)
        self._dismiss(job)
        return failed(job, error)

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


def twice(write: Callable[[], None]) -> None:
    """Write, and where that fails once more: a store behind a network may be away for a moment."""
    try:
        write()
    except REFUSED as error:
        say(f"{what_failed(error).problem}; it is written once more")
        write()


def needs_of(target: Target) -> dict[str, float]:
    """Return what a build takes of its node, by Ray's names."""
    on_gpu = {"GPU": 1.0} if KINDS[target.engine].on_gpu else {}
    return {"CPU": 1.0, target.resource: 1.0, **on_gpu}


def lacking(nodes: Sequence[Mapping[str, Any]], target: Target) -> EngineError | None:
    """Return why no node can ever build for a target, None where one can."""
    needs = needs_of(target)
    alive = [node for node in nodes if node["Alive"]]
    fitting = [node for node in alive if node["Resources"].get(target.resource, 0) >= 1]
    start = f"""ray start --address HOST:PORT --resources '{{"{target.resource}": 1}}'"""
    if not fitting:
        names = {name for node in alive for name in node["Resources"]}
        shown = sorted(name for name in names if not name.startswith(INTERNAL))
        return EngineError(
            f"no node has {target.resource}: nodes have {', '.join(shown) or 'nothing'}",
            fix=f"start one: {start}",
        )
    for node in fitting:
        short = [name for name in needs if node["Resources"].get(name, 0) < needs[name]]
        if not short:
            return None
    return EngineError(
        f"{node['NodeManagerHostname']} has {target.resource}, but not 1 {' and 1 '.join(short)}",
        fix=f"start it with them: {start} {' '.join(f'--num-{name.lower()}s 1' for name in short)}",
    )
