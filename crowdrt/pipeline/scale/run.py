"""A results folder: bound to one engine, held by one process, filled shard by shard."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.console import err, progress_bar, say
from crowdrt.engines.machine import num_cores
from crowdrt.errors import CrowdRTError, DataError, EngineError
from crowdrt.lazy import check_installed
from crowdrt.manifest import read_json, write_json
from crowdrt.pipeline.locks import lock
from crowdrt.pipeline.scale.cluster import Cluster, check_listening, on_cluster
from crowdrt.pipeline.scale.counting import Counter, Settings, on_gpu
from crowdrt.pipeline.scale.crew import Foreman
from crowdrt.pipeline.scale.listing import list_photographs
from crowdrt.pipeline.scale.processes import Processes
from crowdrt.pipeline.scale.rows import Row
from crowdrt.pipeline.scale.shards import Plan, plan_shards, write_shard
from crowdrt.pipeline.scale.stores import EXTRA

COUNTS = "counts"  # the folder of shards, for `pandas.read_parquet(OUT/counts)`
BOUND = "run.json"
PARTS = ("engine", "settings")  # of it
LOCK = ".lock"
NUM_REASONS = 3  # errors that are shown
REPORT_S = 60.0  # between lines for a log file, which gets no bar


@dataclass(kw_only=True)
class Tally:
    """How far a run got."""

    out: Path
    num_photographs: int  # wanted, by different names
    num_before: int  # that runs before have counted
    num_counted: int = 0
    num_errors: int = 0
    people: float = 0.0  # on those that this run counted
    reasons: list[str] = field(default_factory=list)  # the first few
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def add(self, rows: Sequence[Row]) -> None:
        """Take note of a shard."""
        for row in rows:
            if row.error is None:
                self.num_counted += 1
                self.people += row.count or 0.0
            else:
                self.num_errors += 1
                if len(self.reasons) < NUM_REASONS:
                    self.reasons.append(row.error)
        self.seconds = time.monotonic() - self.started

    @property
    def num_done(self) -> int:
        """Photographs of this run that have a row."""
        return self.num_counted + self.num_errors

    @property
    def per_s(self) -> float:
        """Photographs per second, the start of the processes included."""
        return self.num_done / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        found = asdict(self) | {"out": str(self.out), "photographs_per_s": self.per_s}
        del found["started"]
        return found

    def __str__(self) -> str:
        done = f"{self.num_counted:,} photographs counted, {self.num_before:,} before"
        return f"{done}, {self.num_errors:,} errors: {self.out / COUNTS}"


def count_at_scale(
    sources: Sequence[str],
    out: Path,
    settings: Settings,
    *,
    cluster: str | None = None,
    workers: int = 0,
) -> Tally:
    """Count photographs into a folder, as far as that has not been done before.

    Args:
        sources: folders, files, lists and URLs; see `list_photographs`.
        out: the folder; `out/counts` gets the Parquet files.
        settings: the engine and how it counts.
        cluster: address of a Ray cluster, or `auto`; None counts on this machine.
        workers: processes; 0 takes as many as `num_workers` says.

    Raises:
        CrowdRTError: nothing can be counted: no photographs, no engine, no folder, no cluster; or
            the folder is another run's.
    """
    check_installed("pyarrow", extra=EXTRA)
    if cluster is not None:
        check_listening(cluster)
    with held(out):
        photos = list_photographs(sources)
        identity = Counter(settings).identity
        settings = replace(settings, identity=identity)
        check_bound(out, settings)
        with crew_of(settings, cluster) as crew:
            write_json(out / BOUND, bound_to(settings))
            number = workers or num_workers(settings, crew)
            plan = plan_shards(photos, out / COUNTS, engine=identity.text, num_workers=number)
            tally = Tally(out=out, num_photographs=len(photos), num_before=plan.num_done)
            del photos  # the plan has those that are left
            foreman = Foreman(crew=crew, num_workers=number, engine=identity.text)
            work_off(plan, foreman, tally)
    return tally


def work_off(plan: Plan, foreman: Foreman, tally: Tally) -> None:
    """Count what is left and write it, shard by shard."""
    if plan.num_done:
        say(f"{plan.num_done:,} photographs were counted before; {plan.num_left:,} are left")
    told = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("counting", total=plan.num_left, note="")
        for shard, rows in foreman.work_off(plan.shards):
            write_shard(shard, rows)
            tally.add(rows)
            bar.update(task, completed=tally.num_done, note=f"{tally.per_s:.1f} images/s")
            if not err.is_terminal and time.monotonic() - told > REPORT_S:
                told = time.monotonic()
                say(progress(tally, plan.num_left))


def progress(tally: Tally, total: int) -> str:
    """Return how far a run got in one line."""
    left_s = (total - tally.num_done) / tally.per_s
    hours, minutes = divmod(round(left_s / 60), 60)
    speed = f"{tally.per_s:.1f} images/s, {hours} h {minutes:02} min left"
    return f"{tally.num_done:,} of {total:,} photographs, {speed}"


def crew_of(
    settings: Settings, cluster: str | None
) -> contextlib.AbstractContextManager[Processes | Cluster]:
    """Return who counts: processes of this machine, or the nodes of a cluster."""
    return Processes(settings) if cluster is None else on_cluster(settings, cluster)


def num_workers(settings: Settings, crew: Processes | Cluster) -> int:
    """Return how many processes there are to be: one for as many cores as each has threads.

    Engines on a GPU have one process on this machine, however many GPUs it has; one per GPU on a
    cluster, where Ray tells each which is its own.
    """
    if isinstance(crew, Cluster):
        return crew.has_room_for(settings)
    return 1 if on_gpu(settings) else max(1, num_cores() // settings.num_threads)


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a results folder for this process alone; the operating system takes the lock back.

    Raises:
        CrowdRTError: another process holds it, or it cannot be written.
    """
    if out.parts and out.parts[0].endswith(":"):  # a URL, of which Path leaves one slash
        raise DataError(
            f"{out} is no folder of this machine",
            fix="write into a local folder, then copy its counts/: -o OUT",
        )
    with lock(out / LOCK) as is_ours:
        if not is_ours:
            raise DataError(
                f"another process is counting into {out}",
                fix="wait until it has finished, or choose another folder: -o OUT-2",
            )
        for rest in (out / COUNTS).glob(".*.tmp-*"):  # of a run that was killed while it wrote
            rest.unlink()
        yield


def bound_to(settings: Settings) -> dict[str, Any]:
    """Return what makes the counts of a folder, which `run.json` in it says."""
    assert settings.identity is not None
    how = {
        "tiles": settings.tiles,
        "strips": settings.num_strips,
        # the last digits of a count depend on these
        "batch": settings.batch,
        **asdict(settings.limits),
        "crowdrt": __version__,
    }
    return {"engine": settings.identity.as_dict(), "settings": how}


def check_bound(out: Path, settings: Settings) -> None:
    """Refuse a folder that holds counts of another engine, or by other settings.

    Raises:
        EngineError: names what differs; or nothing says how the counts there were made.
    """
    if not any((out / COUNTS).glob("*.parquet")):
        return
    there = read_json(out / BOUND)
    if there is None or not all(isinstance(there.get(part), dict) for part in PARTS):
        raise EngineError(
            f"{out} holds counts, and {out / BOUND}, which says how they were made, is missing or "
            "damaged",
            fix="bring it back, or choose another folder: -o OUT-2",
        )
    before, now = (_flat(each) for each in (there, bound_to(settings)))
    if other := [name for name in now if before.get(name) != now[name]]:
        what = ", ".join(f"{name} {before.get(name)} there, {now[name]} here" for name in other)
        raise EngineError(
            f"{out} holds counts that were made otherwise: {what}",
            fix="choose another folder (-o OUT-2), or count with what made them",
        )


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for part in PARTS for k, v in document[part].items()}


def check_tally(tally: Tally) -> None:
    """End with status 1 where photographs could not be counted; all the others are kept.

    Raises:
        CrowdRTError: says how many, and why the first ones.
    """
    if tally.num_errors:
        reasons = "".join(f"\n  {reason}" for reason in tally.reasons)
        more = "\n  ..." if tally.num_errors > len(tally.reasons) else ""
        raise CrowdRTError(
            f"{tally.num_errors:,} of {tally.num_photographs:,} photographs could not be counted, "
            f"the others were; why is in the column `error`:{reasons}{more}",
            fix="mend or leave them; the same command tries them, and only them, again",
        )
