"""The options that several verbs share, and the one place where a table's format is chosen."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol

import typer

from crowdrt.entry import emit

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Store = Annotated[
    Path | None,
    typer.Option(help="Engine store; default $CROWDRT_STORE, else the user's cache folder."),
]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 takes every core.")]
Sizes = Annotated[
    list[str] | None, typer.Option("--size", help="HEIGHTxWIDTH in pixels; may be repeated.")
]
Data = Annotated[
    Path | None,
    typer.Option(help="ShanghaiTech, or any folder of photographs. Default: generated crowds."),
]


class Format(StrEnum):
    """How a table is written to stdout."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"
    JSON = "json"


AsFormat = Annotated[
    Format | None, typer.Option("--format", help="How the table is written; default terminal.")
]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Short for --format markdown.")]


class Written(Protocol):
    """A table that can be written in every format."""

    def show(self) -> None:
        """Print it for a terminal."""
        ...

    def markdown(self) -> str:
        """Return it with what a reader must know below it."""
        ...

    def csv(self) -> str:
        """Return it under names for programs, with numbers as they are."""
        ...

    def latex(self) -> str:
        """Return a tabular, or several."""
        ...

    def document(self) -> object:
        """Return what `--json` prints."""
        ...


def format_of(chosen: Format | None, *, markdown: bool, as_json: bool) -> Format:
    """Return the one format that was asked for, before any work is done for it.

    Raises:
        typer.BadParameter: several were.
    """
    given = {f"--format {chosen}": chosen} if chosen else {}
    given |= {"--markdown": Format.MARKDOWN} if markdown else {}
    given |= {"--json": Format.JSON} if as_json else {}
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} exclude each other: leave out all but one")
    return next(iter(given.values()), Format.TERMINAL)


def write_table(table: Written, form: Format) -> None:
    """Write a table to stdout."""
    match form:
        case Format.TERMINAL:
            table.show()
        case Format.MARKDOWN:
            print(table.markdown(), end="")
        case Format.CSV:
            print(table.csv(), end="")
        case Format.LATEX:
            print(table.latex(), end="")
        case Format.JSON:
            emit(table.document())
