"""Progress and messages for people, on stderr; stdout belongs to results."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

err = Console(stderr=True, highlight=False)
out = Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line for people."""
    err.print(message, markup=False, soft_wrap=True)


def progress_bar(*, auto_refresh: bool = True) -> Progress:
    """Return a progress display; use it as a context manager.

    Without `auto_refresh` no thread runs in the background, and the caller redraws.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        transient=not err.is_terminal,
        auto_refresh=auto_refresh,
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items while a bar on stderr shows how far it got."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)
