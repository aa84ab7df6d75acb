"""Count people through a Triton server: `python client.py MODEL PHOTOGRAPH... [--url HOST:PORT]`.

Needs `pip install 'tritonclient[http]' pillow`, and nothing of crowdrt. How a photograph enters the
network is asked of the server: it is the parameter `crowdrt` of the model's configuration.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Array = npt.NDArray[Any]


def decode(path: Path, channels: str) -> npt.NDArray[np.uint8]:
    """Return a photograph upright as (C, H, W): RGB or grey, transparent pixels white."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("F", "LAB") or upright.mode.startswith("I"):
            raise SystemExit(f"pixels of mode {upright.mode}; save it with 8 bits each")
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        pixels = np.asarray(upright.convert("RGB" if channels == "rgb" else "L"))
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def padded(image: npt.NDArray[np.uint8], size: tuple[int, int], level: list[int]) -> Array:
    """Return the image in the upper left corner of a size, the rest at a grey level."""
    full = np.empty((len(image), *size), np.uint8)
    full[:] = np.array(level, np.uint8)[:, None, None]
    full[:, : image.shape[1], : image.shape[2]] = image
    return full


def prepare(path: Path, facts: dict[str, Any], dims: list[int]) -> tuple[Array, tuple[int, int]]:
    """Return what the network is fed for a photograph, and the size that belongs to it.

    Args:
        path: the photograph.
        facts: of the model's configuration.
        dims: (C, H, W) of the model's input; -1 is free.

    Returns:
        (1, C, H', W') uint8, and the photograph's height and width as padded to the stride: what
        lies beyond was added because the network takes one size.
    """
    image = decode(path, facts["channels"])
    stride = facts["stride"]
    own = (-(-image.shape[1] // stride) * stride, -(-image.shape[2] // stride) * stride)
    size = (own[0] if dims[1] < 0 else dims[1], own[1] if dims[2] < 0 else dims[2])
    if facts["fixed_size"] and own != size:
        raise SystemExit(
            f"it has not {size[0]}x{size[1]} px: this network counts tiles of that size, which "
            "`crowdrt count` cuts; send it tiles, and add up their counts"
        )
    if own[0] > size[0] or own[1] > size[1]:
        raise SystemExit(f"it needs {own[0]}x{own[1]} px, the model takes {size[0]}x{size[1]}")
    return padded(image, size, facts["pad_value"])[None], own


def as_type(image: Array, kind: str, facts: dict[str, Any]) -> Array:
    """Return pixels in the type that the model takes; they are normalised where it wants that."""
    if not facts["normalised_input"]:
        return image.astype({"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}[kind])
    mean, std = (np.array(facts[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return ((image.astype(np.float32) - mean) / std).astype(np.float32)


def people(
    outputs: dict[str, Array], facts: dict[str, Any], own: tuple[int, int], fed: Array
) -> float:
    """Return the people on the photograph itself.

    Args:
        outputs: what the model answered.
        facts: of its configuration.
        own: height and width that belong to the photograph, in pixels.
        fed: the image that was sent; what it has beyond `own` is padding, whose cells do not count.
    """
    if fed.shape[2:] == own and "count" in outputs:
        return float(outputs["count"].flat[0])
    if "density" not in outputs:
        raise SystemExit(
            f"the photograph was padded from {own} to {fed.shape[2:]} px, and the count is of "
            "both: ask the model whose name ends in -density"
        )
    cells, stride = outputs["density"][0, 0], facts["density_stride"]
    beyond = max(0, cells.shape[0] - -(-fed.shape[2] // stride))  # some maps reach over the border
    rows, columns = (-(-side // stride) + beyond for side in own)
    return float(cells[:rows, :columns].sum(dtype=np.float32))


class Counter:
    """A model of a Triton server, asked over HTTP."""

    def __init__(self, url: str, model: str) -> None:
        import tritonclient.http as triton

        self.triton, self.model = triton, model
        self.server = triton.InferenceServerClient(url)
        config = self.server.get_model_config(model)
        said = config.get("parameters", {}).get("crowdrt")
        if said is None:
            raise SystemExit(
                f"{model} does not say how a photograph enters it, in the parameter `crowdrt` of "
                "its configuration: ask a model that `crowdrt triton` wrote"
            )
        self.facts = json.loads(said["string_value"])
        self.input = config["input"][0]
        self.dims = [int(axis) for axis in self.input["dims"]]
        self.batched = int(config.get("max_batch_size", 0)) > 0
        self.outputs = [output["name"] for output in config["output"]]
        if not {"count", "density"} & set(self.outputs):
            raise SystemExit(f"{model} answers {', '.join(self.outputs)}: it does not count")

    def count(self, path: Path) -> float:
        """Return the people on a photograph."""
        image, own = prepare(path, self.facts, self.dims[-3:])
        sent = as_type(image, self.input["data_type"], self.facts)
        if not self.batched:  # a file of one batch size takes no other: the first answer is ours
            sent = np.repeat(sent, max(1, self.dims[0]), axis=0)
        tensor = self.triton.InferInput(
            self.input["name"], sent.shape, self.input["data_type"].removeprefix("TYPE_")
        )
        tensor.set_data_from_numpy(sent)
        wanted = [self.triton.InferRequestedOutput(name) for name in self.outputs]
        answer = self.server.infer(self.model, [tensor], outputs=wanted)
        return people(
            {name: answer.as_numpy(name) for name in self.outputs}, self.facts, own, image
        )


def count_all(counter: Counter, paths: list[Path]) -> int:
    """Print a line for every photograph; returns how many could not be counted."""
    num_failed = 0
    for path in paths:
        try:
            print(f"{path}\t{counter.count(path):.3f}", flush=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (decoders have many; others count)
            num_failed += 1
            print(f"{path}: {error}", file=sys.stderr)
    return num_failed


def main() -> None:
    """Count the photographs; the exit status is 1 where one could not be."""
    parser = argparse.ArgumentParser(description="Count people through a Triton server.")
    parser.add_argument("model")
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--url", default="localhost:8000")
    arguments = parser.parse_args()
    from tritonclient.utils import InferenceServerException

    try:
        counter = Counter(arguments.url, arguments.model)
    except (OSError, InferenceServerException) as error:  # no server, or no such model
        raise SystemExit(f"{arguments.url}: {error}") from error
    sys.exit(1 if count_all(counter, arguments.photographs) else 0)


if __name__ == "__main__":
    main()
