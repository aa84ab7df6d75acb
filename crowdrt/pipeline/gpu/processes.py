"""The processes of a campaign, each in its own Python, and how they are spoken to."""

import contextlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from crowdrt.errors import BenchmarkError

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, kw_only=True)
class Pythons:
    """The interpreters of a GPU host: TensorRT's and PyTorch's need not be one."""

    tensorrt: str
    torch: str

    def of(self, engine: str) -> str:
        """Return the one that has an engine."""
        return self.tensorrt if engine == "tensorrt" else self.torch


class Process:
    """One worker; a context manager, after which it is gone."""

    def __init__(self, python: str, order: Mapping[str, Any], log: IO[bytes]) -> None:
        """Start it.

        Args:
            python: the interpreter.
            order: what it does.
            log: takes its stderr.

        Raises:
            BenchmarkError: there is no such interpreter.
        """
        command = [python, "-m", "crowdrt.pipeline.gpu", "worker", json.dumps(order)]
        found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": found, "PYTHONUNBUFFERED": "1"}
        try:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=log,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        except OSError as error:
            raise BenchmarkError(
                f"{python} cannot be started: {error}",
                fix="unpack the bundle and name its interpreter: --trt-python ~/trt/bin/trt-python",
            ) from error
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process; a launcher that execs keeps it."""
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def say(self, line: str) -> None:
        """Send an order."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:  # the missing answer tells of its death
            return

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """Return its next answer; what went wrong is under `failed`."""
        try:
            line = self._answers.get(timeout=max(timeout_s, 0.01))
        except queue.Empty:
            return {"failed": f"no answer within {timeout_s:.0f} s"}
        if line is None:
            return {"failed": f"its process ended with exit code {self._process.wait()}"}
        try:
            document: dict[str, Any] = json.loads(line)
        except ValueError:
            return {"failed": f"it said {line.strip()[:200]!r}"}
        return document

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def ask_once(
    python: str, order: Mapping[str, Any], log: IO[bytes], timeout_s: float
) -> dict[str, Any]:
    """Start a process for one answer."""
    with Process(python, order, log) as process:
        return process.answer(timeout_s)
