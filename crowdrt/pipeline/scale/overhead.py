"""What a cluster costs on one machine: the same photographs by both crews, in turns.

    ray start --head                                  # prints HOST:6379
    python -m crowdrt.pipeline.scale.overhead ENGINE PHOTOS --cluster HOST:6379 -o FILE.json

Every run is a `crowdrt count -o` of its own into an empty folder, and the memory of its
processes is looked at twice a second.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.table import Table

from crowdrt.benchmarks.timing.machine import describe_machine
from crowdrt.benchmarks.timing.statistics import median_interval
from crowdrt.console import show_table, track
from crowdrt.entry import Verbs, run_app
from crowdrt.errors import EngineError
from crowdrt.manifest import write_json

LOCAL, CLUSTER = "processes here", "Ray actors"
LOOK_S = 0.5
MIB = 2**20
ACTOR = "ray::Actor"
PROC = Path("/proc")

app = typer.Typer(cls=Verbs, add_completion=False, no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one crew."""

    crew: str
    wall_s: float  # of the command, its start included
    photographs_per_s: float  # as the command says: from the first process's start
    photographs: int
    mib: Sequence[float]  # of the command and its workers, every `LOOK_S`; not Ray's own processes


@app.command()
def main(
    engine: Path,
    photos: Annotated[list[str], typer.Argument(help="Folders, lists or URLs.")],
    cluster: Annotated[str, typer.Option(help="HOST:PORT of a Ray head on this machine.")],
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each crew.")] = 6,
    out: Annotated[Path | None, typer.Option("-o", help="A JSON file.")] = None,
) -> None:
    """Count by processes and by Ray actors in turns, and say what the second costs."""
    orders = [(LOCAL, CLUSTER) if k % 2 == 0 else (CLUSTER, LOCAL) for k in range(rounds)]
    turns = track([crew for order in orders for crew in order], "counting", 2 * rounds)
    runs = [counted(crew, engine, photos, cluster) for crew in turns]
    found = summary(runs)
    if out is not None:
        each = [asdict(run) for run in runs]
        about = {"engine": engine.name, "machine": describe_machine()}
        write_json(out, {**about, "summary": found, "runs": each})
    show(found)


def counted(crew: str, engine: Path, photos: Sequence[str], cluster: str) -> Run:
    """Count everything once.

    Raises:
        EngineError: a run failed; with what it said.
    """
    more = ["--cluster", cluster] if crew == CLUSTER else []
    command = [sys.executable, "-P", "-m", "crowdrt", "count", str(engine), *photos, *more]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        start = time.monotonic()
        with subprocess.Popen(
            [*command, "-o", f"{folder}/out", "--json"], stdout=subprocess.PIPE, stderr=said
        ) as process:
            looks = list(looks_at(process, crew))
            wall_s = time.monotonic() - start
            assert process.stdout is not None
            answer = process.stdout.read()
        if process.returncode != 0:
            said.seek(0)
            raise EngineError(
                f"a run by {crew} failed:\n{said.read().decode(errors='replace').strip()}",
                fix="see that the command itself works: " + " ".join([*command, "-o", "OUT"]),
            )
    tally = json.loads(answer)
    if crew == CLUSTER and not any(number for _, number in looks):
        raise EngineError(
            "no Ray actor was seen on this machine while they counted",
            fix="start the cluster here, as this user: ray start --head",
        )
    return Run(
        crew=crew, wall_s=wall_s, mib=[mib for mib, _ in looks], photographs=tally["num_counted"],
        photographs_per_s=tally["photographs_per_s"],
    )  # fmt: skip


def looks_at(process: subprocess.Popen[bytes], crew: str) -> Iterator[tuple[float, int]]:
    """Yield memory in MiB and how many actors there are, every `LOOK_S`, until a run ends."""
    while process.poll() is None:
        below = processes_below(process.pid)
        acting = actors() if crew == CLUSTER else []
        yield sum(map(private_mib, [*below, *acting])), len(acting)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)


def processes_below(pid: int) -> list[int]:
    """Return a process and all that it or its children started."""
    children: dict[int, list[int]] = {}
    for child, parent in parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:  # which grows
        found += children.get(each, [])
    return found


def actors() -> list[int]:
    """Return this machine's actors that count, which a raylet started and not their command."""
    return [pid for pid, _ in parents() if is_actor(pid)]


def parents() -> Iterator[tuple[int, int]]:
    """Yield every process and its parent."""
    for status in PROC.glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            yield int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])


def is_actor(pid: int) -> bool:
    """Say whether a process is one of ours on Ray."""
    with suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_text(errors="replace").startswith(ACTOR)
    return False


def private_mib(pid: int) -> float:
    """Return a process's memory without files that others map, too; 0 when it is gone."""
    with suppress(OSError, StopIteration, ValueError):
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        return int(next(li for li in lines if li.startswith("RssAnon:")).split()[1]) * 1024 / MIB
    return 0.0


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return rates, what the cluster costs, and memory in the second and the last fifth of runs."""
    found: dict[str, Any] = {}
    for crew in (LOCAL, CLUSTER):
        ours = [run for run in runs if run.crew == crew]
        found[crew] = {
            "photographs_per_s": median(run.photographs_per_s for run in ours),
            "with_start_per_s": median(run.photographs / run.wall_s for run in ours),
            "mib_early": median(part_of(run.mib, 1) for run in ours),
            "mib_late": median(part_of(run.mib, 4) for run in ours),
            "mib_peak": max(max(run.mib, default=0.0) for run in ours),
        }
    rates = ([r.photographs_per_s for r in runs if r.crew == c] for c in (CLUSTER, LOCAL))
    ratios = [one / other for one, other in zip(*rates, strict=True)]  # round by round
    found["ratio"] = median(ratios)
    found["ratio_interval"] = median_interval(ratios, 1)
    return found


def part_of(mib: Sequence[float], part: int) -> float:
    """Return the median memory in one of five parts of a run, from 0."""
    fifth = len(mib) / 5
    return median(mib[int(part * fifth) : int((part + 1) * fifth)] or mib or [0.0])


def show(found: Mapping[str, Any]) -> None:
    """Print a summary."""
    table = Table("crew", "images/s", "with its start", "MiB early", "MiB late", "MiB at most")
    for crew in (LOCAL, CLUSTER):
        row = found[crew]
        table.add_row(
            crew, f"{row['photographs_per_s']:.2f}", f"{row['with_start_per_s']:.2f}",
            *(f"{row[f'mib_{when}']:.0f}" for when in ("early", "late", "peak")),
        )  # fmt: skip
    known = found["ratio_interval"]
    within = f"{known[0]:.3f} to {known[1]:.3f}" if known else "under six rounds: not known"
    table.caption = f"Ray's images/s over those here: {found['ratio']:.3f} ({within})"
    show_table(table)


if __name__ == "__main__":
    run_app(app)
