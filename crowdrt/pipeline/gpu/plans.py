"""One TensorRT row: built, held against its file, compared with ONNX Runtime, timed by layer."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx

from crowdrt.benchmarks.feeds import feeds_for
from crowdrt.engines.base import Engine
from crowdrt.engines.store import EngineStore, read_built
from crowdrt.engines.trt.building.options import PlanOptions
from crowdrt.engines.trt.layers.inspector import read_inspector
from crowdrt.engines.trt.layers.layer_profile import profile_layers
from crowdrt.engines.trt.layers.precision import asked_of, hold
from crowdrt.errors import CrowdRTError
from crowdrt.manifest import write_json, write_whole
from crowdrt.pipeline.gpu.dry import Pool, fill
from crowdrt.pipeline.gpu.prepare import figures, read_image
from crowdrt.pipeline.gpu.rows import LARGE, Row

# of the count, or of the sum of |density| where the count is small beside it
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 2e-2}
WORKSPACE = 8 << 30  # full networks at the largest size need gigabytes for one layer
SIDECARS = ("engine.json", "inspector.json", "profile.json")
Facts = dict[str, Any]


def onnx_file(row: Row, folder: Path, work: Path) -> Path:
    """Return the row's ONNX file with its weights, filled where that was not done before."""
    path = work / "onnx" / row.file
    if not path.is_file():
        light = onnx.load(folder / "files" / row.file)
        model = fill(light, Pool.load(folder), source=row.file)
        with write_whole(path) as temporary:
            onnx.save(model, temporary)
    return path


def build_row(row: Row, folder: Path, work: Path) -> Facts:
    """Build a row's plan and find out what there is to know of it.

    What is wrong with a plan that runs is a fact, not an error: it is timed all the same, and its
    row says so.
    """
    path = onnx_file(row, folder, work)
    options = PlanOptions(shape=(row.size,) * 3, workspace_bytes=WORKSPACE, any_precision=True)
    built = EngineStore(work / "store").build(path, engine="tensorrt", plan=options)
    facts: Facts = {
        "folder": str(built.path),
        "reused": built.reused,
        "seconds": round(built.seconds, 1),
        "plan_bytes": (built.path / "engine.plan").stat().st_size,
    }
    facts["precision"] = precision_facts(built.path, path)
    engine = read_built(built.path).open(graphs=False)
    facts["counts"] = compare_counts(row, engine, folder)
    facts["layers"] = profile_facts(row, engine, built.path, folder)
    keep_sidecars(row, built.path, work)
    return facts


def precision_facts(engine_folder: Path, onnx_path: Path) -> Facts:
    """Hold the plan's layers against the file."""
    inspection = read_inspector((engine_folder / "inspector.json").read_text())
    tf32 = [layer.name for layer in inspection.layers if layer.precision == "tf32"]
    return {
        **hold(inspection, asked_of(onnx.load(onnx_path))).facts(),
        "tf32": tf32,
        "layers": len(inspection.layers),
    }


def compare_counts(row: Row, engine: Engine, folder: Path) -> Facts:
    """Return how far an engine's counts are from those that ONNX Runtime had of the same file."""
    recorded = json.loads((folder / "counts.json").read_text()).get(row.file, {})
    found, worst = {}, 0.0
    for path in sorted((folder / "images").glob(f"{row.size[0]}x{row.size[1]}-*.png")):
        ours = figures(engine.run(feeds_for(engine, read_image(path))))
        theirs = recorded.get(path.name)
        entry: Facts = {"tensorrt": ours, "onnxruntime": theirs}
        if theirs is not None:
            scale = max(abs(theirs["count"]), theirs["absolute"])
            entry["off"] = abs(ours["count"] - theirs["count"]) / scale
            worst = max(worst, entry["off"])
        found[path.name] = entry
    known = any(entry["onnxruntime"] for entry in found.values())
    agrees = worst <= TOLERANCE[row.precision] if known else None
    return {"images": found, "worst": worst, "agrees": agrees}


def profile_facts(row: Row, engine: Any, engine_folder: Path, folder: Path) -> Facts:
    """Time every layer, in a run apart: it slows the whole, and breaks CUDA graphs."""
    images = sorted((folder / "images").glob(f"{row.size[0]}x{row.size[1]}-*.png"))
    feeds = feeds_for(engine, read_image(images[0]))
    try:
        plan = (engine_folder / "engine.plan").read_bytes()
        layers = profile_layers(plan, feeds, num_runs=10 if row.size == LARGE else 50)
    except CrowdRTError as error:
        return {"failed": error.problem}
    write_json(engine_folder / "profile.json", layers)
    return {"ms": sum(entry.get("medianMs", 0.0) for entry in layers)}


def keep_sidecars(row: Row, engine_folder: Path, work: Path) -> None:
    """Copy what says of a plan what it is; the plan itself stays on this GPU."""
    kept = work / "sidecars" / row.plan
    kept.mkdir(parents=True, exist_ok=True)
    for name in SIDECARS:
        if (engine_folder / name).is_file():
            shutil.copy(engine_folder / name, kept / name)
