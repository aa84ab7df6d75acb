"""One function per stage: files in, files out, nothing done twice.

Each stage asks the manifest beside its output whether its inputs have changed since; where they
have not, it does nothing and says so.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.console import say
from crowdrt.contracts import (
    Artifact,
    CalibrationConfig,
    Preprocessing,
    Recipe,
    Sample,
    Size,
    UInt8Image,
)
from crowdrt.engines.base import Engine, open_engine
from crowdrt.engines.store import DEFAULT_ENGINE, BuiltEngine, EngineStore
from crowdrt.errors import EngineError, RecipeError
from crowdrt.lazy import require
from crowdrt.manifest import fingerprint, read_manifest, reusable, sha256_file, versions
from crowdrt.onnx_file import graph_info
from crowdrt.pipeline.networks import Origin, open_eager
from crowdrt.pipeline.photographs import PROOF_SIZES, proof_photographs


def import_stage(source: Path, out: Path, *, network: str, width: Fraction) -> Artifact:
    """Turn MCNN's arrays (.npz), or a PyTorch checkpoint of any network, into safetensors."""
    from crowdrt.models.importers import import_checkpoint, import_mcnn
    from crowdrt.models.weights import save_weights

    if source.suffix != ".npz":
        model = import_checkpoint(source, network, width)
    elif network == "mcnn" and width == 1:
        model = import_mcnn(source)
    else:
        raise RecipeError(
            f"arrays of {network} at width {width} cannot be read from .npz",
            fix=f"leave out --network and --width: crowdrt import {source} -o {out}",
        )
    made_from = {"source": source.name, "sha256": sha256_file(source)}
    return save_weights(model, out, network=network, width=width, made_from=made_from)


def export_stage(
    origin: Origin,
    out: Path,
    *,
    size: Size | None = None,
    opset: int = 17,
    normalised_input: bool = False,
) -> Artifact:
    """Export, simplify and prove; does nothing when `out` was made from exactly this."""
    options = {"size": size, "opset": opset, "normalised_input": normalised_input}
    made_from = {
        **origin.describe(),
        **options,
        "crowdrt": __version__,
        "torch": versions().get("torch"),
    }
    if done := exported_before(out, made_from):
        return done
    from crowdrt.export.deploy import deploy
    from crowdrt.export.onnx_export import check_network_size, check_opset, export_onnx

    check_opset(opset)
    model = origin.build()
    check_network_size(model, size)
    fixed = size or model.fixed_size
    images = proof_photographs(model.preprocessing, sizes=[fixed] if fixed else PROOF_SIZES)
    return export_onnx(
        deploy(model, proof_tensor(images[0], model.preprocessing)),
        origin.graph_info(model),
        out,
        size=size,
        opset=opset,
        normalised_input=normalised_input,
        made_from=made_from,
        images=images,
        training=model,
    )


def cut_stage(source: Path, names: Sequence[str], out: Path) -> Artifact:
    """Cut an ONNX file of any tool to some of its outputs."""
    from crowdrt.export.keep_output import keep_outputs

    return keep_outputs(source, names, out)


def exported_before(out: Path, made_from: Mapping[str, Any]) -> Artifact | None:
    """Return `out` if it was exported from exactly this, without loading PyTorch to find out.

    The exporter's manifest holds `made_from` under the weights, beside what follows from it.
    """
    document = read_manifest(out) or {}
    found = document.get("made_from")
    if not isinstance(found, dict) or not isinstance(found.get("weights"), dict):
        return None
    same = fingerprint(found["weights"]) == fingerprint(made_from)
    return reusable(out, made_from=found) if same else None


def proof_tensor(image: UInt8Image, preprocessing: Preprocessing) -> Any:
    """Return a photograph as the float tensor that a network's `forward` takes."""
    import torch

    from crowdrt.models.network import Normalise

    return Normalise(preprocessing)(torch.from_numpy(image))


def calibrate_stage(
    onnx_path: Path,
    samples: Sequence[Sample],
    out: Path,
    config: CalibrationConfig,
    keep_float: Sequence[str] = (),
    *,
    cache: Path | None = None,
    ignore_trained: bool = False,
) -> Artifact:
    """Quantize to INT8 with ranges from some of these photographs, taken at even distances.

    A network that learned in simulated INT8 has ranges, and takes those unless `ignore_trained`.
    The convolutions that `keep_float` names stay in float. `cache` is the folder of the
    statistics; beside `out` by default.
    """
    from crowdrt.calibration.calibrate import calibrate
    from crowdrt.calibration.trained import calibrate_trained

    if not ignore_trained and has_trained_ranges(onnx_path):
        made = calibrate_trained(onnx_path, out, keep_float)
        seen = "; no photograph is looked at" if samples else ""
        say(f"{onnx_path.name}: its trained ranges and scales are used{seen}")
        return made
    images = [sample.image for sample in samples]
    return calibrate(onnx_path, images, out, config, keep_float, cache=cache)


def int8_settings(recipe: Recipe | None) -> tuple[CalibrationConfig, tuple[str, ...]]:
    """Return how a recipe quantizes, and which convolutions it keeps in float; without, nothing."""
    if recipe is None:
        return CalibrationConfig(), ()
    return recipe.calibration, recipe.keep_float


def has_trained_ranges(onnx_path: Path) -> bool:
    """Say whether a network learned in simulated INT8."""
    return graph_info(onnx_path).trained_int8 is not None


def check_ranges_stage(
    onnx_path: Path, int8_path: Path, samples: Sequence[Sample], num_images: int
) -> None:
    """Say which tensors leave the calibrated ranges on some of these photographs."""
    from crowdrt.calibration.calibrate import pick
    from crowdrt.calibration.ranges.check import FURTHER, exceeded_ranges

    images = pick([sample.image for sample in samples], num_images)
    found = exceeded_ranges(onnx_path, int8_path, images)
    where = f"on {len(images)} photographs"
    if not found:
        say(f"{where} no tensor reaches {FURTHER} times as far as in calibration")
        return
    say(f"warning: {where} the calibrated ranges are left; calibrate on photographs like these")
    for each in found:
        say(f"  {each}")


def default_store() -> Path:
    """Return where engines are kept: $CROWDRT_STORE, else the user's cache folder."""
    if named := os.environ.get("CROWDRT_STORE"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "crowdrt" / "engines"


def build_stage(onnx_path: Path, store: Path | None, engine: str = DEFAULT_ENGINE) -> BuiltEngine:
    """Build a counting network for this machine, which the same call later finds in the store.

    Raises:
        ExportError: the file is no network that crowdrt exported, so nothing says how a
            photograph enters it.
    """
    graph_info(onnx_path)
    return EngineStore(store or default_store()).build(onnx_path, engine=engine)


def engine_folder(path: Path, store: Path | None, engine: str = DEFAULT_ENGINE) -> Path:
    """Return the built engine at `path`; an ONNX file is built in passing."""
    return path if path.is_dir() else build_stage(path, store, engine).path


def open_any(path: Path, store: Path | None, *, num_threads: int = 0) -> Engine:
    """Load a built engine, or an ONNX file, which is built in passing.

    A safetensors file becomes the eager PyTorch reference.
    """
    if path.suffix == ".safetensors":
        require("torch", extra="train")
        from crowdrt.models.weights_info import describe_weights

        found = describe_weights(path)
        return open_eager(found.network, found.width, path, num_threads)
    engine = open_engine(engine_folder(path, store), num_threads=num_threads)
    if engine.info is None:
        raise EngineError(
            f"{path} was built from a network of another tool: nothing says how a photograph "
            "enters it",
            fix="export the network: crowdrt export NETWORK --weights F -o model.onnx",
        )
    return engine


def as_json(artifact: Artifact) -> dict[str, Any]:
    """Return an artifact as `--json` prints it."""
    return asdict(artifact) | {"path": str(artifact.path)}
