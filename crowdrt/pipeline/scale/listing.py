"""Which photographs are to be counted: folders, files, lists and object stores.

Every photograph has one name, an absolute path or a URL, whatever way it was named and from
wherever the command was given: by that name a rerun knows it again.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from crowdrt.data.images import SUFFIXES, check_file, natural_order, opening
from crowdrt.errors import DataError
from crowdrt.lazy import require
from crowdrt.pipeline.scale.rows import Photo
from crowdrt.pipeline.scale.stores import EXTRA, images_below, is_url, opening_store, stamp_of

COLUMNS = ("image", "path")  # of a Parquet list: the first that is there
TEXT, PARQUET = ".txt", ".parquet"


def list_photographs(sources: Iterable[str]) -> list[Photo]:
    """Return the photographs that folders, files, lists and URLs name, each name once, in order.

    A list may name files that are missing: those become rows with an error. What the command line
    names has to be there.

    Raises:
        DataError: a source is missing or cannot be read, or there is no photograph at all.
    """
    given = list(sources)
    photos: dict[str, Photo] = {}
    for source in given:
        for photo in _in_store(source) if is_url(source) else _on_disk(source):
            photos.setdefault(photo.name, photo)
    if not photos:
        raise DataError(
            f"{' '.join(given)} names no photographs",
            fix=f"name a folder with {' '.join(SUFFIXES)}, or a list of such files",
        )
    return list(photos.values())


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
        return Photo(name=name)
    path = os.path.abspath(name)  # noqa: PTH100 (a link keeps its name)
    try:
        found = os.stat(path)  # noqa: PTH116 (a million times)
    except (OSError, ValueError):  # its row will say why
        return Photo(name=path)
    return Photo(name=path, stamp=f"{found.st_size} {found.st_mtime_ns}")


def _in_folder(folder: Path) -> Iterator[Photo]:
    """Yield the images at any depth, hidden ones left out; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise error

    with opening(folder):
        for top, folders, files in os.walk(folder, onerror=refuse):
            folders[:] = sorted((name for name in folders if name[0] != "."), key=_naturally)
            for name in sorted(filter(_is_image, files), key=_naturally):
                yield named(os.path.join(top, name))  # noqa: PTH118 (a million times)


def _naturally(name: str) -> Any:
    return natural_order(Path(name))


def _is_image(name: str) -> bool:
    return name[0] != "." and name.lower().endswith(SUFFIXES)


def _in_store(url: str) -> Iterator[Photo]:
    """Yield what a URL names: a photograph, the names in a list, or all images below it."""
    with opening_store(url) as (store, place):
        if url.lower().endswith((TEXT, PARQUET)):
            with store.open(place, "rb") as file:
                text = url.lower().endswith(TEXT)
                yield from map(named, _lines(file.read()) if text else _column(file, source=url))
        elif store.isdir(place):
            found = images_below(store, place)
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
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    return [line.rstrip("\r") for line in lines if line.strip()]


def _column(file: Any, *, source: str) -> list[str]:
    """Return the names in a Parquet file, which is a path or open."""
    arrow = require("pyarrow", extra=EXTRA)
    parquet = require("pyarrow.parquet", extra=EXTRA)
    try:
        with parquet.ParquetFile(file) as opened:
            there = opened.schema_arrow.names
            column = next((name for name in COLUMNS if name in there), None)
            names = [] if column is None else opened.read([column])[column].to_pylist()
    except arrow.ArrowException as error:
        raise DataError(
            f"{source} is no Parquet file, or a damaged one: {error}",
            fix="write it again, or give a text file with one path per line: LIST.txt",
        ) from error
    if column is None:
        raise DataError(
            f"{source} has no column {' or '.join(COLUMNS)}, only {', '.join(there)}",
            fix=f"name the column with the paths `{COLUMNS[0]}`",
        )
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{source}: row {row} holds {name!r} where a path should be",
                fix="leave such rows out of the list",
            )
    return list(names)
