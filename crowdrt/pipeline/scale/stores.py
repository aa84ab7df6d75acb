"""Files that lie behind a URL: everything that fsspec opens, such as s3://bucket/key."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from crowdrt.data.images import SUFFIXES
from crowdrt.errors import CrowdRTError, DataError, MissingDependencyError
from crowdrt.lazy import require

EXTRA = "cluster"
CHANGES = ("ETag", "etag", "mtime", "LastModified", "last_modified")  # what stores call it


def is_url(name: str) -> bool:
    """Say whether a name is for fsspec."""
    return "://" in name


@contextlib.contextmanager
def opening_store(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL and the place in it.

    Raises:
        DataError: the block could not do what it wanted there.
        MissingDependencyError: fsspec needs one library more for this kind of URL.
    """
    fsspec = require("fsspec", extra=EXTRA)
    try:
        yield fsspec.core.url_to_fs(url)
    except CrowdRTError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"{url} cannot be opened: {error}",
            fix=f"install what fsspec asks for; for s3://: pip install 'crowdrt[{EXTRA}]' s3fs",
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist", fix="check the URL") from error
    except Exception as error:  # every store has its own
        said = str(error) or type(error).__name__
        raise DataError(
            f"{url} cannot be read: {said}",
            fix="check the URL and who may read it; credentials come from the environment, as the "
            "store's own tools take them",
        ) from error


def read_url(url: str) -> bytes:
    """Return the bytes behind a URL."""
    with opening_store(url) as (store, place):
        content: bytes = store.cat_file(place)
        return content


def images_below(store: Any, place: str) -> dict[str, Mapping[str, Any]]:
    """Return the images at any depth below a place by their URLs, hidden ones left out."""
    found = store.find(place, detail=True)
    images = [each for each in found if _is_image(each.removeprefix(place))]
    return {store.unstrip_protocol(each): found[each] for each in images}


def _is_image(below: str) -> bool:
    path = PurePosixPath(below)
    return path.suffix.lower() in SUFFIXES and not any(part[0] == "." for part in path.parts)


def stamp_of(details: Mapping[str, Any]) -> str | None:
    """Return what changes when the file behind a URL does; None where its store does not say."""
    said = [str(details[key]) for key in CHANGES if details.get(key) is not None]
    return " ".join([str(details.get("size")), *said]) if said else None
