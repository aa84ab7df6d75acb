"""Silence for libraries that talk: stdout belongs to results."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what is printed, logged and warned inside; the result is checked by running it."""
    sink = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            descriptor_to_nowhere(2),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def descriptor_to_nowhere(descriptor: int) -> Iterator[None]:
    """Drop what libraries that are no Python write: onnxsim warns of what it did not fold yet."""
    try:
        kept = os.dup(descriptor)
    except OSError:  # closed: nothing can be written
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
