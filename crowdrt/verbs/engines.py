"""The verb `crowdrt build`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.console import tell
from crowdrt.entry import emit
from crowdrt.verbs.options import AsJson, Store, Threads


def build(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    runtime: Annotated[
        str, typer.Option("--engine", help="onnxruntime or openvino.")
    ] = "onnxruntime",
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Build an engine for this machine into the store; the second time is a hit."""
    from crowdrt.engines.store import EngineStore
    from crowdrt.pipeline.stages import default_store

    engines = EngineStore(store or default_store())
    engine = engines.build(model, engine=runtime, num_threads=threads)
    if as_json:
        emit({"path": str(engine.path), "key": engine.key, "reused": engine.reused,
              "seconds": engine.seconds})  # fmt: skip
        return
    how = "was built before" if engine.reused else f"built in {engine.seconds:.1f} s"
    tell(f"{engine.path} ({how})")
