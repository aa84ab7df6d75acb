"""Which photographs are to be counted: folders, files, lists and object stores.

Every photograph has one name, an absolute path or a URL, whatever way it was named and from
wherever the command was given: by that name a rerun knows it again.
"""

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from crowdrt.console import track
from crowdrt.data.images import (
    SUFFIXES,
    cannot_open,
    check_file,
    is_image,
    natural_order,
    opening,
)
from crowdrt.errors import DataError
from crowdrt.lazy import require
from crowdrt.pipeline.scale.parquet import open_parquet
from crowdrt.pipeline.scale.rows import Photo
from crowdrt.pipeline.scale.stores import (
    EXTRA,
    check_public,
    images_below,
    is_url,
    opening_store,
    stamp_of,
)

COLUMNS = ("image", "path")  # of a Parquet list: the first that is there
TEXT, PARQUET = ".txt", ".parquet"
SHOWN = 80  # letters of a name in an error: a list may hold whole files where names should be


def list_photographs(sources: Iterable[str]) -> list[Photo]:
    """Return the photographs that folders, files, lists and URLs name, each name once, in order.

    A list may name files that are missing: those become rows with an error. What the command line
    names has to be there.

    Raises:
        DataError: a source is missing or cannot be read, or there is no photograph at all.
    """
    given = list(sources)
    photos: dict[str, Photo] = {}
    for photo in track(_all_of(given), "listing"):
        photos.setdefault(photo.name, photo)
    if not photos:
        raise DataError(
            f"{' '.join(given)} names no photographs",
            fix=f"name a folder with {' '.join(SUFFIXES)}, or a list of such files",
        )
    return list(photos.values())


def _all_of(sources: Iterable[str]) -> Iterator[Photo]:
    for source in sources:
        yield from _in_store(source) if is_url(source) else _on_disk(source)


def _on_disk(source: str) -> Iterator[Photo]:
    path = Path(source)
    with opening(path):
        is_folder = path.is_dir()
    if is_folder:
        yield from _in_folder(path)
        return
    check_file(path)
    if path.suffix.lower() in (TEXT, PARQUET):
        yield from map(named, names_in(path))
    else:
        yield named(source)


def named(name: str) -> Photo:
    """Return a photograph that may or may not be there."""
    if is_url(name):
        check_public(name)
        return Photo(name=name)
    path = absolute(name)
    try:
        found = os.stat(path)  # noqa: PTH116 (a million times)
    except (OSError, ValueError):  # its row will say why
        return Photo(name=path)
    return Photo(name=path, stamp=f"{found.st_size} {found.st_mtime_ns}")


def absolute(name: str) -> str:
    """Return the absolute path of the file that the system opens under a name.

    A link keeps its own name. `link/..` is the folder above what the link leads to, though
    `os.path.abspath` says the one that holds the link.
    """
    path = os.path.abspath(name)  # noqa: PTH100 (a link keeps its name)
    if ".." not in name.split("/"):
        return path
    folder, own = os.path.split(name)
    if own == "..":
        return _meant(name, path)
    return os.path.join(_meant(folder, os.path.split(path)[0]), own)  # noqa: PTH118


def _meant(folder: str, said: str) -> str:
    there = os.path.realpath(folder)
    return said if there == os.path.realpath(said) else there


def _in_folder(folder: Path) -> Iterator[Photo]:
    """Yield the images at any depth, hidden ones left out; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise cannot_open(error.filename or folder, error) from error

    with opening(folder):
        # made absolute once, and not for each of a million files
        for top, folders, files in os.walk(absolute(str(folder)), onerror=refuse):
            folders[:] = sorted((name for name in folders if name[0] != "."), key=_naturally)
            for name in sorted(filter(is_image, files), key=_naturally):
                yield named(os.path.join(top, name))  # noqa: PTH118 (a million times)


def _naturally(name: str) -> Any:
    return natural_order(Path(name))


def _in_store(url: str) -> Iterator[Photo]:
    """Yield what a URL names: a photograph, the names in a list, or all images below it."""
    with opening_store(url) as (store, place):
        if url.lower().endswith((TEXT, PARQUET)):
            with store.open(place, "rb") as file:
                text = url.lower().endswith(TEXT)
                yield from map(named, _lines(file.read()) if text else _column(file, source=url))
        elif store.isdir(place):
            found = images_below(store, place, url)
            for each in sorted(found, key=_naturally):
                yield Photo(name=each, stamp=stamp_of(found[each]))
        else:
            yield Photo(name=url, stamp=stamp_of(store.info(place)))


def names_in(path: Path) -> list[str]:
    """Return what a list names: a Parquet file's column, or the lines of a text.

    Relative paths start where the command is given, as those that `find` writes.

    Raises:
        DataError: the list is damaged, has no such column, or leaves a name out.
    """
    with opening(path):
        if path.suffix.lower() == PARQUET:
            return _column(str(path), source=str(path))
        return _lines(path.read_bytes())


def _lines(content: bytes) -> list[str]:
    content = content.removeprefix(codecs.BOM_UTF8)  # Windows writes it
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    return [line.rstrip("\r") for line in lines if line.strip()]


def _column(file: Any, *, source: str) -> list[str]:
    """Return the names in a Parquet file, which is a path or open."""
    with open_parquet(
        file,
        source=source,
        problem="is no Parquet file, or a damaged one",
        fix="write it again, or give a text file with one path per line: LIST.txt",
    ) as opened:
        column = _column_with_names(opened.schema_arrow, source=source)
        names: list[Any] = opened.read([column])[column].to_pylist()
    for row, name in enumerate(names):
        if name is None or not name.strip():
            raise DataError(
                f"{source}: row {row} holds {name and name[:SHOWN]!r} where a path should be",
                fix="leave such rows out of the list",
            )
    return names


def _column_with_names(schema: Any, *, source: str) -> str:
    """Return the column with the paths, before anything is read of a file of any size."""
    types = require("pyarrow", extra=EXTRA).types
    there = schema.names
    column = next((name for name in COLUMNS if name in there), None)
    if column is None:
        raise DataError(
            f"{source} has no column {' or '.join(COLUMNS)}, only {', '.join(there)[:SHOWN]}",
            fix=f"name the column with the paths `{COLUMNS[0]}`",
        )
    if there.count(column) > 1:
        raise DataError(
            f"{source} has {there.count(column)} columns {column}", fix="leave one of them"
        )
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DataError(
            f"{source}: the column {column} holds {str(kind)[:SHOWN]} where paths should be",
            fix=f"write the photographs into files, and their paths into the column `{column}`",
        )
    return column
