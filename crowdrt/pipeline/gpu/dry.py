"""ONNX files without their large weights, for hosts that little can be carried to.

What only costs time may have random weights, and those need no carrying: they come from seeds,
by a generator that NumPy froze (`RandomState`), so they are the same everywhere. Weights that were
learned are stored once, whichever of a network's files hold them; a float16 file holds the same
numbers rounded, and what its making changed beside that is stored as differences.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from crowdrt.errors import ExportError
from crowdrt.manifest import write_json, write_whole

Array = npt.NDArray[Any]
LARGE = 2048  # elements from which a tensor is left out
KEY = "crowdrt.dry"  # metadata property that says how to fill the file again
MOST_CHANGED = 0.25  # share of elements that a stored difference may have


def seeded(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Return weights drawn as He et al. do for ReLU networks (arXiv:1502.01852), by seed."""
    fan_in = math.prod(shape[1:])
    drawn = np.random.RandomState(seed).standard_normal(shape) * math.sqrt(2 / fan_in)
    return drawn.astype(np.float32)


def seed_weights(model: onnx.ModelProto) -> dict[str, int]:
    """Give every large float weight random numbers, in place; return tensor -> seed."""
    seeds: dict[str, int] = {}
    for i, stored in enumerate(model.graph.initializer):
        if is_large(stored) and stored.data_type == TensorProto.FLOAT and len(stored.dims) > 1:
            seeds[stored.name] = i
            drawn = seeded(tuple(stored.dims), i)
            stored.CopyFrom(numpy_helper.from_array(drawn, stored.name))
    return seeds


def is_large(stored: TensorProto) -> bool:
    """Say whether a tensor is worth leaving out."""
    return bool(math.prod(stored.dims) >= LARGE)


@dataclass
class Pool:
    """The weights that several files share: by seed, or stored."""

    seeds: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    stored: dict[str, Array] = field(default_factory=dict)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield every weight under its key."""
        for key, (seed, shape) in self.seeds.items():
            yield key, seeded(shape, seed)
        yield from self.stored.items()

    def named(self, key: str) -> Array:
        """Return one weight."""
        if key in self.seeds:
            seed, shape = self.seeds[key]
            return seeded(shape, seed)
        return self.stored[key]

    def save(self, folder: Path) -> None:
        """Write the pool as `pool.json` and `pool.npz`."""
        write_json(folder / "pool.json", {"seeds": self.seeds, "stored": sorted(self.stored)})
        with write_whole(folder / "pool.npz") as path, path.open("wb") as file:
            np.savez(file, allow_pickle=False, **self.stored)

    @classmethod
    def load(cls, folder: Path) -> "Pool":
        """Read what `save` wrote."""
        document = json.loads((folder / "pool.json").read_text())
        seeds = {key: (int(seed), tuple(shape)) for key, (seed, shape) in document["seeds"].items()}
        with np.load(folder / "pool.npz", allow_pickle=False) as arrays:
            return cls(seeds, {key: arrays[key] for key in document["stored"]})


def dry(model: onnx.ModelProto, pool: Pool, *, prefix: str) -> onnx.ModelProto:
    """Return a copy without its large weights, which go to the pool where it has them not.

    Args:
        model: any file of a network.
        pool: keeps what cannot be drawn again.
        prefix: begins the keys of what this file adds.
    """
    light = onnx.ModelProto()
    light.CopyFrom(model)
    known = list(pool.arrays())
    recipe: dict[str, Any] = {}
    for stored in light.graph.initializer:
        if not is_large(stored):
            continue
        array = numpy_helper.to_array(stored)
        found = next((r for key, base in known if (r := derived(array, key, base))), None)
        if found is None:
            key = f"{prefix}/{stored.name}"
            pool.stored[key] = array
            known.append((key, array))
            found = {"key": key}
        elif "changes" in found:
            key = f"{prefix}/{stored.name}.changes"
            places, values = found.pop("changes")
            pool.stored[f"{key}.places"], pool.stored[f"{key}.values"] = places, values
            found["changes"] = key
        recipe[stored.name] = found
        for each in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
            stored.ClearField(each)
    light.metadata_props.add(
        key=KEY, value=json.dumps({"weights": recipe, "sha256": weights_sha256(model)})
    )
    return light


def derived(array: Array, key: str, base: Array) -> dict[str, Any] | None:
    """Return how `array` follows from another: as it is, rounded, or with few differences."""
    if array.shape != base.shape:
        return None
    cast = base.astype(array.dtype)
    places = np.flatnonzero(cast.ravel().view(codes(cast)) != array.ravel().view(codes(array)))
    if len(places) > MOST_CHANGED * array.size:
        return None
    return {"key": key, "dtype": str(array.dtype)} | (
        {"changes": (places.astype(np.int32), array.ravel()[places])} if len(places) else {}
    )


def codes(array: Array) -> str:
    """Return the integer type of an array's bits, by which -0 is not 0."""
    return f"u{array.dtype.itemsize}"


def fill(light: onnx.ModelProto, pool: Pool, *, source: str) -> onnx.ModelProto:
    """Return a dried file with its weights.

    Raises:
        ExportError: the weights are not those that the file was dried with.
    """
    model = onnx.ModelProto()
    model.CopyFrom(light)
    entry = next((each for each in model.metadata_props if each.key == KEY), None)
    if entry is None:
        return model
    recipe = json.loads(entry.value)
    model.metadata_props.remove(entry)
    for stored in model.graph.initializer:
        if (how := recipe["weights"].get(stored.name)) is not None:
            stored.CopyFrom(numpy_helper.from_array(follow(how, pool), stored.name))
    if weights_sha256(model) != recipe["sha256"]:
        raise ExportError(
            f"{source}: its weights cannot be drawn again here as they were",
            fix="prepare the folder again, on a machine with the same NumPy: "
            "python -m crowdrt.pipeline.gpu prepare FOLDER",
        )
    return model


def follow(how: Mapping[str, Any], pool: Pool) -> Array:
    """Return the weight that `derived` describes."""
    base = pool.named(how["key"])
    array = np.array(base, dtype=how.get("dtype", base.dtype))
    if key := how.get("changes"):
        array.ravel()[pool.stored[f"{key}.places"]] = pool.stored[f"{key}.values"]
    return array


def weights_sha256(model: onnx.ModelProto) -> str:
    """Return a hash of every stored tensor, whatever else the file says."""
    digest = hashlib.sha256()
    for stored in model.graph.initializer:
        array = np.ascontiguousarray(numpy_helper.to_array(stored))
        digest.update(f"{stored.name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
