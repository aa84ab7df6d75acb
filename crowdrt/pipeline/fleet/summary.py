"""What was built where, and why anything was not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.console import show_table
from crowdrt.errors import CrowdRTError
from crowdrt.pipeline.fleet.job import Job
from crowdrt.pipeline.fleet.targets import Target

BUILT, FOUND, FAILED = "built", "found", "failed"
MIB = 2**20
TITLES = ("name", "resource", "host", "engine", "", "s", "MiB", "where", "why")
NUMBERS = ("s", "MiB")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of a target."""

    target: Target
    status: str
    host: str | None = None  # where it was identified or built
    key: str | None = None
    seconds: float | None = None  # that building took
    num_bytes: int | None = None  # of the engine's files
    where: str | None = None  # its folder in the shared store
    why: str = ""  # it failed, or was no work
    fix: str = ""

    def __str__(self) -> str:
        took = "" if self.seconds is None else f" in {self.seconds:.1f} s"
        what = self.why if self.status == FAILED else self.where
        return f"{self.target.name}: {self.status}{took}: {what}"

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        target = {
            "name": self.target.name,
            "resource": self.target.resource,
            "engine": self.target.engine,
        }
        return target | {name: value for name, value in asdict(self).items() if name != "target"}


def failed(job: Job, error: CrowdRTError) -> Row:
    """Return the row of a target that has no engine."""
    return Row(
        target=job.target,
        status=FAILED,
        host=job.host,
        key=job.key,
        why=" ".join(error.problem.split()),
        fix=error.fix,
    )


def show_rows(rows: Sequence[Row]) -> None:
    """Print the table of all targets."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in TITLES:
        table.add_column(title, justify="right" if title in NUMBERS else "left")
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        mib = "" if row.num_bytes is None else f"{row.num_bytes / MIB:.1f}"
        target = row.target
        cells = (target.name, target.resource, row.host or "", target.engine, row.status)
        # as Text, since names hold anything
        table.add_row(*map(Text, (*cells, seconds, mib, row.where or "", row.why)))
    show_table(table)


def check_rows(rows: Sequence[Row]) -> None:
    """End with status 1 where an engine is not there; all the others are kept.

    Raises:
        CrowdRTError: says which; why is in their rows.
    """
    if lacking := [row for row in rows if row.status == FAILED]:
        names = ", ".join(row.target.name for row in lacking)
        fixes = "".join(f"\n  {row.target.name}: {row.fix}" for row in lacking if row.fix)
        raise CrowdRTError(
            f"{len(lacking)} of {len(rows)} engines were not built, the others are in the store: "
            f"{names}",
            fix=f"the same command builds only those that are missing{fixes and ':'}{fixes}",
        )
