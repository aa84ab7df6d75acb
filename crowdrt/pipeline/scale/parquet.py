"""Parquet files that may be damaged: whatever is wrong in one becomes one error that names it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from crowdrt.data.images import cannot_open
from crowdrt.errors import DataError
from crowdrt.lazy import require
from crowdrt.pipeline.scale.stores import EXTRA


@contextlib.contextmanager
def open_parquet(file: Any, *, source: str, problem: str, fix: str) -> Iterator[Any]:
    """Yield a `pyarrow.parquet.ParquetFile`; what is read of it is to be used in the block, too.

    Args:
        file: a path, or an open file.
        source: what people call it.
        problem: what to say of a damaged one, behind its name.
        fix: what to do then.

    Raises:
        DataError: the operating system refuses the file, or it is damaged.
    """
    arrow = require("pyarrow", extra=EXTRA)
    parquet = require("pyarrow.parquet", extra=EXTRA)
    # one changed byte gives any of these
    damaged = (arrow.ArrowException, OSError, UnicodeDecodeError, KeyError)
    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except damaged as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own have none
            raise cannot_open(source, error) from error
        raise DataError(f"{source} {problem}: {error}", fix=fix) from error
