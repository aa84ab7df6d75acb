"""A Python of its own for one order, with as many threads as were asked for.

Order, photograph and answer lie in a folder that is removed whatever happens, with all that a
runtime's profiler wrote there.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crowdrt.benchmarks.timing.children import THREAD_VARIABLES
from crowdrt.contracts import UInt8Image
from crowdrt.errors import BenchmarkError
from crowdrt.manifest import cannot_write

ORDER, IMAGE, ANSWER = "order.json", "image.npy", "answer.json"
STDERR = 2
TIMEOUT_S = 900.0


def in_own_process(order: Mapping[str, Any], image: UInt8Image | None) -> dict[str, Any]:
    """Return what the order's process found out.

    Args:
        order: for `worker.answer`; its `num_threads` are every library's, set before any of them
            is imported.
        image: what an engine counts, (C, H, W).

    Raises:
        BenchmarkError: it failed, ended by itself or never answered; with its reason.
        CrowdRTError: the temporary folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="crowdrt-layers-") as name:
            folder = Path(name)
            (folder / ORDER).write_text(json.dumps({**order, "parent": os.getpid()}))
            if image is not None:
                np.save(folder / IMAGE, image)
            return asked(folder, order["num_threads"])
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()) / ORDER, error) from error


def asked(folder: Path, num_threads: int) -> dict[str, Any]:
    """Run the worker on a folder and read its answer."""
    code = run_worker(folder, num_threads)
    try:
        found: dict[str, Any] = json.loads((folder / ANSWER).read_text())
    except (FileNotFoundError, ValueError) as error:
        raise failed(f"its process ended with exit code {code}") from error
    if "problem" in found:
        raise BenchmarkError(found["problem"], fix=found["fix"])
    return found


def run_worker(folder: Path, num_threads: int) -> int:
    """Let a process of its own work on a folder; return its exit code."""
    threads = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    try:
        return subprocess.run(
            # -P: nothing is imported from the folder that we happen to be in
            [sys.executable, "-P", "-m", "crowdrt.benchmarks.layers", str(folder)],
            env={**os.environ, **threads},
            stdin=subprocess.DEVNULL,
            stdout=STDERR,  # ours belongs to the result
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it
            timeout=TIMEOUT_S,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired as error:
        raise failed(f"no answer within {TIMEOUT_S:g} s") from error
    except OSError as error:
        raise failed(f"no process of its own could be started: {error}") from error


def failed(reason: str) -> BenchmarkError:
    """Return the error for a process without an answer."""
    return BenchmarkError(
        f"the layers could not be timed: {reason}",
        fix="try a smaller --size; see whether it runs at all: crowdrt count ENGINE IMAGE",
    )
