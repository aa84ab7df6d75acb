"""One process on the GPU: builds a plan, or opens a row and runs it when it is told to.

It is started in the Python that has what the row needs, TensorRT or PyTorch, and speaks JSON, a
line per answer. All else that it prints goes to stderr.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from crowdrt.benchmarks.timing.worker import Runner, WarmUp
from crowdrt.contracts import parse_width
from crowdrt.engines.base import Engine
from crowdrt.errors import CrowdRTError
from crowdrt.pipeline.gpu.rows import Row, row_from

WARM_UP = WarmUp(runs=20, seconds=1.0, max_s=15.0)


def main(text: str) -> None:
    """Do what an order says, and answer on stdout."""
    order = json.loads(text)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), 1)  # libraries print where they like
    try:
        do(order, answers)
    except CrowdRTError as error:
        tell(answers, {"failed": error.problem, "fix": error.fix})
    except Exception as error:  # noqa: BLE001 - whatever a library raises is its row's verdict
        tell(answers, {"failed": f"{type(error).__name__}: {error}"})


def do(order: Mapping[str, Any], answers: IO[str]) -> None:
    """Carry out one order: build, serve or peaks."""
    match order["do"]:
        case "peaks":
            from crowdrt.pipeline.gpu.peaks import measure_peaks

            tell(answers, {"peaks": measure_peaks()})
        case "build":
            from crowdrt.pipeline.gpu.plans import build_row

            folder, work = Path(order["folder"]), Path(order["work"])
            tell(answers, {"built": build_row(row_from(order["row"]), folder, work)})
        case "serve":
            serve(order, answers)
        case unknown:
            raise ValueError(f"order {unknown!r}")


def serve(order: Mapping[str, Any], answers: IO[str]) -> None:
    """Open a row; then warm up and run as stdin says, until it closes."""
    from crowdrt.pipeline.gpu.prepare import read_image

    row = row_from(order["row"])
    engine = open_row(row, order)
    image = read_image(Path(order["image"]))
    tell(answers, {"open": True})
    runner: Runner | None = None
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "warm":
            runner = Runner(engine, image)
            tell(answers, asdict(runner.warm_up(WARM_UP)))
        elif word == "visit" and runner is not None:
            tell(answers, asdict(runner.visit(int(number))))


def open_row(row: Row, order: Mapping[str, Any]) -> Engine:
    """Return a row's engine."""
    if row.engine == "tensorrt":
        from crowdrt.engines.store import read_built

        return read_built(Path(order["engine_folder"])).open(graphs=row.graphs)
    from crowdrt.pipeline.gpu.prepare import origin_of
    from crowdrt.pipeline.gpu.torch_forms import open_torch

    return open_torch(row, origin_of(row.network, parse_width(row.width)))


def tell(answers: IO[str], document: Mapping[str, Any]) -> None:
    """Answer with one line."""
    answers.write(json.dumps(document) + "\n")
    answers.flush()
