"""Progress and messages for people, on stderr; stdout belongs to results."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segments
from rich.table import Table

T = TypeVar("T")

# no emoji: a file may be called `:cat:.jpg`
err = Console(stderr=True, highlight=False, emoji=False)
out = Console(highlight=False, emoji=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line for people."""
    err.print(message, markup=False, soft_wrap=True)


def tell(result: str) -> None:
    """Print one line of a result on stdout, as it is: file names hold anything."""
    out.print(result, markup=False)


def show_table(table: Table) -> None:
    """Print a table as wide as it is; a terminal that is narrower wraps its lines."""
    width = Measurement.get(out, out.options.update(width=MAX_WIDTH), table).maximum
    out.print(Segments(out.render(table, out.options.update(width=width))))


MAX_WIDTH = 10_000


class Bar(Progress):
    """A progress display that `close_bars` can end, whoever holds it."""

    def start(self) -> None:
        """Show it."""
        open_bars.append(self)
        super().start()

    def stop(self) -> None:
        """End it; a second time does nothing."""
        if self in open_bars:
            open_bars.remove(self)
            super().stop()


open_bars: list[Bar] = []


def close_bars() -> None:
    """End what is still shown, so that a last message stands below it.

    An error leaves the generator of `track` as it is, and its bar would be drawn once more when
    the generator is collected.
    """
    for bar in list(open_bars):
        bar.stop()


def progress_bar(*, auto_refresh: bool = True, shown: bool = True) -> Bar:
    """Return a progress display; use it as a context manager. A file or a pipe gets none.

    Without `auto_refresh` no thread runs in the background, and the caller redraws. Of several
    processes that do one thing, one has it `shown`.
    """
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),  # may hold the name of a file
        console=err,
        disable=not (shown and err.is_terminal),
        auto_refresh=auto_refresh,
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items while a bar on stderr shows how far it got."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)
