"""The folder that travels to the GPU host: dried ONNX files, photographs, and what they count.

Made on any machine with PyTorch and ONNX Runtime. Full networks get random weights by seed, since
only their time is asked for; the shipped student keeps its own.
"""

import gc
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from crowdrt import __version__
from crowdrt.benchmarks.feeds import feeds_for
from crowdrt.calibration.calibrate import calibrate
from crowdrt.calibration.fp16.cast import CastConfig, cast
from crowdrt.console import say, track
from crowdrt.contracts import (
    COUNT,
    DENSITY,
    Recipe,
    Size,
    UInt8Image,
    parse_width,
)
from crowdrt.data.synthetic.photographs import crowd_photograph, generate
from crowdrt.engines.ort import OrtEngine
from crowdrt.manifest import sha256_file, versions, write_json, write_whole
from crowdrt.onnx_file import external_files, read_onnx
from crowdrt.pipeline.gpu.dry import Pool, dry, seed_weights, seeded
from crowdrt.pipeline.gpu.rows import HEATS, LARGE, PRECISIONS, WIDTHS, stem
from crowdrt.pipeline.networks import Origin
from crowdrt.pipeline.stages import export_stage, int8_settings

SEEDS = (3, 4)  # of the photographs
PEOPLE = (100, 400)
CALIBRATION_SIZE = (288, 432)
NUM_CALIBRATION = 4


def prepare(folder: Path, *, networks: tuple[str, ...] = (), large_counts: bool = False) -> None:
    """Fill `folder` with all that a campaign needs.

    Args:
        folder: made where it is not there; files in it are replaced.
        networks: some of those that have heats; none: all.
        large_counts: count with full networks at the largest size, too, which takes minutes and
            gigabytes; without, such rows are held against each other on the GPU alone.
    """
    every = dict.fromkeys(network for network, _ in HEATS)
    wanted = [name for name in every if not networks or name in networks]
    images = write_images(folder / "images", sizes=list(dict.fromkeys(size for _, size in HEATS)))
    pool, counts = Pool(), dict[str, Any]()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        calibration = generate(
            scratch / "photographs", num_images=NUM_CALIBRATION, seed=21, size=CALIBRATION_SIZE,
            people=(20, 80),
        )  # fmt: skip
        paths = [sample.image for sample in calibration]
        pairs = [(network, width) for network in wanted for width in reversed(WIDTHS)]
        for network, width in track(pairs, "preparing"):
            files = write_forms(network, width, scratch, paths, pool)
            for file in files:
                light = dry(onnx.load(file), pool, prefix=file.name)
                save(light, folder / "files" / file.name)
                counts[file.name] = counted(file, images, width, large_counts)
                say(f"{file.name}: {counts[file.name]}")
            gc.collect()
    pool.save(folder)
    write_json(folder / "counts.json", counts)
    write_json(folder / "prepared.json", facts(folder, wanted))


def write_images(folder: Path, sizes: list[Size]) -> dict[Size, list[Path]]:
    """Write photographs of generated crowds; one of the largest size, two of the others."""
    written: dict[Size, list[Path]] = {}
    for size in sizes:
        for seed in SEEDS[:1] if size == LARGE else SEEDS:
            image, _ = crowd_photograph(seed, size=size, people_range=PEOPLE)
            path = folder / f"{size[0]}x{size[1]}-{seed}.png"
            with write_whole(path) as temporary:
                Image.fromarray(image.transpose(1, 2, 0)).save(temporary, format="png")
            written.setdefault(size, []).append(path)
    return written


def read_image(path: Path) -> UInt8Image:
    """Return (3, H, W) pixels."""
    with Image.open(path) as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def write_forms(
    network: str, width: str, folder: Path, images: list[Path], pool: Pool
) -> list[Path]:
    """Write a network in FP32, FP16 and INT8, and add its seeds to the pool."""
    name = stem(network, width)
    paths = {precision: folder / f"{name}.{precision}.onnx" for precision in PRECISIONS}
    origin = origin_of(network, parse_width(width))
    export_stage(origin, paths["fp32"])
    if origin.weights is None:
        model = read_onnx(paths["fp32"])
        for tensor, seed in seed_weights(model).items():
            shape = next(tuple(t.dims) for t in model.graph.initializer if t.name == tensor)
            pool.seeds[f"{name}/{tensor}"] = (seed, shape)
        save(model, paths["fp32"])
    base, keep_float = int8_settings(recipe_of(origin))
    config = replace(base, num_images=len(images), weight_bits=8)
    calibrate(paths["fp32"], images, paths["int8"], config, keep_float)
    halving = CastConfig(num_images=len(images), tolerance=1.0)
    cast(paths["fp32"], images, paths["fp16"], halving, keep_float)
    return [paths[precision] for precision in PRECISIONS]


def origin_of(network: str, width: Fraction) -> Origin:
    """Return a network with the weights that the project ships for it, else without."""
    from crowdrt.pipeline.measuring import student_origin

    shipped = student_origin(network)
    return shipped if shipped.width == width else Origin(network=network, width=width, weights=None)


def recipe_of(origin: Origin) -> Recipe | None:
    """Return the recipe of a network that the project ships, which says what stays float."""
    from crowdrt.pipeline.measuring import student_recipe

    return None if origin.weights is None else student_recipe(origin.network)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a network whole or not at all."""
    with write_whole(path) as temporary:
        onnx.save(model, temporary)


def counted(
    file: Path, images: dict[Size, list[Path]], width: str, large: bool
) -> dict[str, dict[str, float]]:
    """Return image -> count and sum of |density|, as ONNX Runtime computes them."""
    engine = OrtEngine(file)
    found = {}
    for size, paths in images.items():
        if size == LARGE and width == "1" and not large:
            continue
        for path in paths:
            answers = engine.run(feeds_for(engine, read_image(path)))
            found[path.name] = figures(answers)
    return found


def figures(answers: Any) -> dict[str, float]:
    """Return what two engines' answers are compared by."""
    density = np.asarray(answers[DENSITY], np.float64)
    return {
        "count": float(np.asarray(answers[COUNT], np.float64).sum()),
        "absolute": float(np.abs(density).sum()),
        "std": float(density.std()),
    }


def facts(folder: Path, networks: list[str]) -> dict[str, Any]:
    """Return what `prepared.json` says."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert not any(external_files(path) for path in files if path.suffix == ".onnx")
    return {
        "networks": networks,
        "crowdrt": __version__,
        "versions": versions(),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": {str(path.relative_to(folder)): sha256_file(path) for path in files},
        "seeded": "numpy.random.RandomState, He et al.: " + seeded.__name__,
    }
