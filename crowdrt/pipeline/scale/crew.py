"""Who counts, and how work is dealt out so that a process that dies costs nothing but time.

Processes here (`processes`) and actors on a cluster (`cluster`) are both a `Crew`. What a lost
process had in hand is given out again; if that is lost, too, its photographs go one by one, and the
one that kills whoever counts it becomes a row with an error. concurrent.futures gives up its whole
pool when one process is killed, and does not say what it had in hand.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crowdrt.console import say
from crowdrt.errors import CrowdRTError, EngineError
from crowdrt.pipeline.scale.rows import Photo, Row
from crowdrt.pipeline.scale.shards import Shard

WHOLE, ALONE = 2, 3  # how often a shard and a single photograph may be lost
FAILED_STARTS = 2  # per worker, one after the other: a node may go down with all that start on it
PATIENCE_S = 60.0  # without any process, until people are told why nothing happens
GIVE_UP_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker has opened its engine."""

    worker: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """A worker has counted what it was given."""

    worker: int
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A worker is gone."""

    worker: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A worker cannot open its engine, so no other will."""

    error: CrowdRTError


Event = Ready | Done | Lost | Failed


class Crew(Protocol):
    """Processes that count, one engine each."""

    held_up: str  # what to do where none starts for long

    def hire(self) -> int:
        """Start one more; it says `Ready` when its engine is open."""
        ...

    def give(self, worker: int, photos: Sequence[Photo]) -> None:
        """Give photographs to one that has nothing to do."""
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """Return what has happened, at least one thing unless the time is over."""
        ...


@dataclass(kw_only=True)
class Job:
    """Photographs of one shard that one worker is given."""

    shard: Shard
    photos: tuple[Photo, ...]
    num_lost: int = 0


@dataclass(kw_only=True)
class Foreman:
    """Deals out the shards to a crew, and keeps it at its strength."""

    crew: Crew
    num_workers: int
    engine: str  # of rows that nobody could count
    waiting: deque[Job] = field(default_factory=deque)
    busy: dict[int, Job] = field(default_factory=dict)
    starting: set[int] = field(default_factory=set)
    idle: list[int] = field(default_factory=list)
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)  # of shards that are not whole
    num_failed_starts: int = 0
    max_failed_starts: int = field(init=False)  # in a row

    def __post_init__(self) -> None:
        # of those wanted at the start: with fewer left, a bad node may be tried as often
        self.max_failed_starts = FAILED_STARTS * self.num_workers

    def work_off(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, list[Row]]]:
        """Yield every shard with its rows, as they are done.

        Raises:
            CrowdRTError: no worker can open the engine, or none appears at all.
        """
        self.waiting.extend(Job(shard=shard, photos=shard.photos) for shard in shards)
        idle_s = 0.0
        while self.waiting or self.busy:
            self._deal()
            happened = self.crew.events(PATIENCE_S)
            idle_s = 0.0 if happened or self.busy else idle_s + PATIENCE_S
            if idle_s:
                check_patience(idle_s, self.crew.held_up)
            for event in happened:
                if (done := self._heed(event)) is not None:
                    yield from self._collect(*done)

    def _deal(self) -> None:
        """Hire who is missing, as far as there is work, and give work to who has none."""
        wanted = min(self.num_workers, len(self.waiting) + len(self.busy))
        for _ in range(wanted - len(self.busy) - len(self.idle) - len(self.starting)):
            self.starting.add(self.crew.hire())
        while self.waiting and self.idle:
            worker, job = self.idle.pop(), self.waiting.popleft()
            self.busy[worker] = job
            self.crew.give(worker, job.photos)

    def _heed(self, event: Event) -> tuple[Job, Sequence[Row]] | None:
        """Take note of what happened; returns a job that is done."""
        match event:
            case Failed(error=error):
                raise error
            case Ready(worker=worker):
                self.num_failed_starts = 0
                self.starting.discard(worker)
                self.idle.append(worker)
            case Done(worker=worker, rows=rows):
                self.idle.append(worker)
                return self.busy.pop(worker), rows
            case Lost(worker=worker, reason=reason):
                return self._lost(worker, reason)
        return None

    def _lost(self, worker: int, reason: str) -> tuple[Job, Sequence[Row]] | None:
        if worker in self.idle:
            self.idle.remove(worker)
        if worker in self.starting:
            self.starting.remove(worker)
            self.num_failed_starts += 1
            if self.num_failed_starts > self.max_failed_starts:
                self._do_without(reason)
        job = self.busy.pop(worker, None)
        return None if job is None else self._redo(job, reason)

    def _do_without(self, reason: str) -> None:
        """Go on with those that have opened the engine, on other nodes, if there are any."""
        opened = len(self.busy) + len(self.idle)
        if not opened:
            raise cannot_start(self.num_failed_starts, reason)
        failed = f"{self.num_failed_starts} processes in a row could not start"
        say(f"{failed} ({reason}); {opened} go on")
        self.num_workers, self.num_failed_starts = opened, 0

    def _redo(self, job: Job, reason: str) -> tuple[Job, Sequence[Row]] | None:
        """Put what was lost in front again; returns a photograph that nobody survives."""
        job.num_lost += 1
        alone = len(job.photos) == 1
        if job.num_lost < (ALONE if alone else WHOLE):
            say(f"a process that counts was lost ({reason}); its photographs are counted again")
            self.waiting.appendleft(job)
        elif not alone:
            singles = [Job(shard=job.shard, photos=(photo,)) for photo in job.photos]
            self.waiting.extendleft(reversed(singles))
        else:
            photo = job.photos[0]
            error = f"the process that counted it was lost {job.num_lost} times: {reason}"
            row = Row(image=photo.name, stamp=photo.stamp, engine=self.engine, error=error)
            return job, [row]
        return None

    def _collect(self, job: Job, rows: Sequence[Row]) -> Iterator[tuple[Shard, list[Row]]]:
        """Yield the job's shard once all of it is there."""
        key = str(job.shard.path)
        found = self.rows.setdefault(key, {})
        found.update((row.image, row) for row in rows)
        if len(found) == len(job.shard.photos):
            yield job.shard, list(self.rows.pop(key).values())


def cannot_start(number: int, reason: str) -> EngineError:
    """Return the error for processes that die before they have opened the engine."""
    return EngineError(
        f"{number} processes in a row were lost while they opened the engine: {reason}",
        fix="if memory ran out, use fewer of them: --workers 1; else count one photograph with it: "
        "crowdrt count ENGINE PHOTO",
    )


def check_patience(idle_s: float, held_up: str) -> None:
    """Tell people that there is work and nobody who does it; in the end give up.

    Args:
        idle_s: for how long.
        held_up: `Crew.held_up`.
    """
    problem = f"for {idle_s:.0f} s no process has opened the engine"
    if idle_s >= GIVE_UP_S:
        raise EngineError(problem, fix=held_up)
    say(f"{problem}; {held_up}")
