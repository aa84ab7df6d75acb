"""Files that lie behind a URL: everything that fsspec opens, such as s3://bucket/key."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from crowdrt.data.images import check_file, is_image, opening
from crowdrt.errors import CrowdRTError, DataError, MissingDependencyError
from crowdrt.lazy import require

EXTRA = "cluster"
CHANGES = ("ETag", "etag", "mtime", "LastModified", "last_modified")  # what stores call it
MAX_BYTES = 1 << 30  # of a photograph; the largest that is decoded has 0.7 GB as a 16-bit TIFF
CREDENTIALS = "give credentials to the environment, as the store's own tools take them"
# the second: a password with a slash; digits behind the colon are a port, several colons an ARN
USER = re.compile(r"(?<=://)(?:[^/]*@|[^/:@]*:(?!\d*/)[^:]*@)")
# the signatures of S3, Google, CloudFront and Azure, and what other servers call a secret
SIGNATURES = {
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "awsaccesskeyid"),
    *("x-goog-signature", "x-goog-credential", "googleaccessid"),
    *("signature", "sig", "token", "access_token", "api_key"),
}


def is_url(name: str) -> bool:
    """Say whether a name is for fsspec."""
    return "://" in name


def check_public(url: str) -> None:
    """Refuse a URL that holds a secret: it is a photograph's name, and names are written.

    Raises:
        DataError: it does, and is named without it.
    """
    for part in url.split("::"):  # zip://a.jpg::ftp://...
        # by hand: urlsplit has errors of its own for brackets, which names may have
        scheme, user = part.partition("://")[0].lower(), USER.search(part)
        # the account of abfs://container@account is no secret
        if user and (":" in user[0] or scheme in ("http", "https")):
            raise DataError(f"{USER.sub('...@', part)} holds a user or a password", fix=CREDENTIALS)
        query = part.partition("?")[2]
        if found := SIGNATURES & {key.lower() for key, _ in parse_qsl(query)}:
            raise DataError(
                f"{part.partition('?')[0]} is signed ({', '.join(sorted(found))}): everybody who "
                "reads the results could open it, and signed again it would have another name",
                fix=f"name it without its signature, such as s3://bucket/key, and {CREDENTIALS}",
            )


@contextlib.contextmanager
def opening_store(url: str, *, to_be: str = "read") -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL and the place in it, to be read or written.

    Raises:
        DataError: the block could not do what it wanted there, or the URL holds a secret.
        MissingDependencyError: fsspec needs one library more for this kind of URL.
    """
    check_public(url)
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
            f"{url} cannot be {to_be}: {said}",
            fix=f"check the URL and what you may do there; {CREDENTIALS}",
        ) from error


def read_file(path: Path) -> bytes:
    """Return the bytes of a photograph on disk.

    Raises:
        DataError: it is missing, no ordinary file, empty or absurdly large.
    """
    check_file(path)
    with opening(path), path.open("rb") as file:
        # before reading: files of the kernel, such as /proc/kmsg, say 0 and may block for ever
        check_length(os.fstat(file.fileno()).st_size, path)
        content = file.read(MAX_BYTES + 1)
    check_length(len(content), path)
    return content


def read_url(url: str) -> bytes:
    """Return the bytes behind a URL.

    Raises:
        DataError: nothing is there, it cannot be read, or is empty or absurdly large.
    """
    with opening_store(url) as (store, place):
        if isinstance(store, require("fsspec.implementations.local", extra=EXTRA).LocalFileSystem):
            return read_file(Path(place))
        with store.open(place, "rb") as file:
            content = read_at_most(file, MAX_BYTES + 1)
    check_length(len(content), url)
    return content


def read_at_most(file: Any, num_bytes: int) -> bytes:
    """Read so many bytes, or all there are; a file over HTTP gives what has arrived."""
    parts: list[bytes] = []
    while num_bytes and (part := file.read(num_bytes)):
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def check_length(num_bytes: int, source: Path | str) -> None:
    """Refuse what is empty, and what is too long for a photograph."""
    if not num_bytes:
        raise DataError(f"{source} is empty", fix="copy or download it again, or remove it")
    if num_bytes > MAX_BYTES:
        raise DataError(
            f"{source} has more than {MAX_BYTES:,} bytes, too many for a photograph",
            fix="save it smaller, or remove it",
        )


def images_below(store: Any, place: str, url: str) -> dict[str, Mapping[str, Any]]:
    """Return the images at any depth below a URL by theirs, hidden ones left out.

    Raises:
        DataError: the URL is a chain: what is below cannot be named.
    """
    if "::" in url:
        raise DataError(
            f"{url} is a folder in an archive", fix="unpack it, or list the photographs: LIST.txt"
        )
    scheme, _, top = url.partition("://")
    # not `unstrip_protocol`, which forgets the host of ftp://, sftp:// and hdfs://
    top = f"{scheme}://{top.rstrip('/')}/" if top else f"{scheme}://"
    found = store.find(place, detail=True)
    below = {each.removeprefix(place).lstrip("/"): each for each in found}
    return {top + name: found[below[name]] for name in below if _is_shown(name)}


def _is_shown(below: str) -> bool:
    *folders, name = below.split("/")
    return is_image(name) and not any(folder[:1] == "." for folder in folders)


def stamp_of(details: Mapping[str, Any]) -> str | None:
    """Return what changes when the file behind a URL does; None where its store does not say."""
    said = [str(details[key]) for key in CHANGES if details.get(key) is not None]
    return " ".join([str(details.get("size")), *said]) if said else None
