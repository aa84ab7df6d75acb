"""Weights that others trained: old PyTorch checkpoints and the MCNN arrays.

Foreign files are read as data. A pickle that holds code is refused before any of it runs.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crowdrt.console import say
from crowdrt.errors import WeightsError
from crowdrt.models import build_model
from crowdrt.models.csrnet import FRONT_END
from crowdrt.models.layers import POOL
from crowdrt.models.mcnn import COLUMNS, MCNN
from crowdrt.models.network import Network
from crowdrt.models.tensors import check_shapes, fill

WRAPPERS = ("state_dict", "model_state_dict")  # beside epoch, optimizer and the like
MAX_MCNN_BYTES = 16 * 2**20  # the arrays are 0.5 MB; more is a decompression bomb
CONV_POSITIONS = (0, 3, 6, 8)  # of the convolutions in an MCNN column
FOREIGN_COLUMNS = (3, 2, 1)  # the arrays count the columns from the smallest kernels
SKT_ADAPTERS = tuple(f"transform{tap}." for tap in ("0_0", "1_0", "2_0", "3_0", "4_0", "4_3"))


def import_checkpoint(path: Path, network: str, width: Fraction) -> Network:
    """Return `network` filled from an old PyTorch checkpoint.

    Understood: plain state dicts and those under "state_dict" or "model_state_dict"; names with
    DataParallel's "module."; our names, CSRNet-pytorch's and SKT's for csrnet (SKT's adapters,
    which only training needs, are left out and counted on stderr) and for skt (adapters and all),
    Bayesian-Crowd-Counting's for bl.

    Raises:
        WeightsError: missing, damaged or holding code; or it does not fit network and width.
    """
    model = build_model(network, width)
    tensors: dict[str, Tensor] = {}
    adapters: dict[str, Tensor] = {}
    for foreign, tensor in read_state_dict(path).items():
        name = foreign.removeprefix("module.")
        if network == "csrnet" and is_adapter(name):
            adapters[name] = tensor
            continue
        name = own_name(name, network)
        if name in tensors:
            raise WeightsError(
                f"{path} holds {name} twice, the second time as {foreign}",
                fix="save the state dict of one network: torch.save(model.state_dict(), path)",
            )
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    fill(model, tensors, source=str(path))
    if adapters:
        total = sum(tensor.numel() for tensor in adapters.values())
        say(f"{path}: left out SKT's adapters, {total:,} parameters that only training needs")
    return model.eval()


def is_adapter(name: str) -> bool:
    """Say whether a tensor of a training student belongs to SKT's adapters, by either name."""
    return name.startswith((*SKT_ADAPTERS, "adapters."))


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Read a checkpoint without running code from it."""
    check_exists(path)
    try:
        payload: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler meets arbitrary bytes
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors and was not run: "
            f"{str(error).partition('.')[0]}",
            fix="where you trust the file, save its tensors alone: "
            "torch.save(model.state_dict(), 'weights.pth'); then import that",
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(payload, dict) and isinstance(payload.get(wrapper), dict):
            payload = payload[wrapper]
    if not isinstance(payload, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in payload.items()
    ):
        raise WeightsError(
            f"{path} holds no state dict: names with one tensor each",
            fix="save it with torch.save(model.state_dict(), 'weights.pth'); then import that",
        )
    return payload


def own_name(name: str, network: str) -> str:
    """Translate the name that a public code base gives a tensor of `network`."""
    for foreign, own in foreign_prefixes(network):
        if name.startswith(foreign):
            return own + name.removeprefix(foreign)
    return name


def foreign_prefixes(network: str) -> Iterator[tuple[str, str]]:
    """Yield (their prefix, ours); the first that matches counts."""
    match network:
        case "csrnet":
            yield ("student.", "")  # our own training student
            yield from (("frontend.", "front_end."), ("backend.", "back_end."))
            yield from (("output_layer.", "density_head."), ("conv5_0.", "density_head."))
            yield from zip(skt_front_end(), own_front_end(), strict=True)
            yield from ((f"conv4_{i}.0.", f"back_end.{2 * i}.") for i in range(6))
        case "skt":
            yield from ((name, f"adapters.{i}.") for i, name in enumerate(SKT_ADAPTERS))
            yield from ((name, f"student.{own}") for name, own in foreign_prefixes("csrnet") if own)
        case "bl":
            yield from (("features.", "front_end."), ("reg_layer.4.", "density_head."))
            yield ("reg_layer.", "back_end.")


def skt_front_end() -> Iterator[str]:
    """Yield SKT's names of the front end's convolutions: the stage, then the place in it."""
    stage = place = 0
    for channels in FRONT_END:
        if channels == POOL:
            stage, place = stage + 1, 0
            continue
        yield f"conv{stage}_{place}.0."
        place += 1


def own_front_end() -> Iterator[str]:
    """Yield our names of the front end's convolutions, each followed by a ReLU."""
    position = 0
    for channels in FRONT_END:
        if channels != POOL:
            yield f"front_end.{position}."
        position += 1 if channels == POOL else 2


def import_mcnn(path: Path) -> MCNN:
    """Return the full-width grey MCNN filled from trained arrays in an .npz file.

    The arrays are `w_convL_C` (kernel height, kernel width, in, out) and `b_convL_C` of layer L
    in column C, columns from the smallest kernels to the largest, and `conv5`, their fusion.

    Raises:
        WeightsError: missing or damaged, holding Python objects, or of other shapes.
    """
    arrays = read_arrays(path)
    model = MCNN()
    tensors: dict[str, Tensor] = {}
    for index, column in enumerate(FOREIGN_COLUMNS):
        for layer, position in enumerate(CONV_POSITIONS, start=1):
            name, foreign = f"columns.{index}.{position}", f"conv{layer}_{column}"
            tensors[f"{name}.weight"] = oihw(arrays[f"w_{foreign}"])
            tensors[f"{name}.bias"] = torch.from_numpy(arrays[f"b_{foreign}"])
    tensors["density_head.weight"] = oihw(arrays["w_conv5"][:, :, fused_order(), :])
    tensors["density_head.bias"] = torch.from_numpy(arrays["b_conv5"])
    fill(model, tensors, source=str(path))
    model.eval()
    return model


def fused_order() -> list[int]:
    """Return where the fusion's inputs, in our order of the columns, lie in theirs."""
    large, medium, small = (channels[-1] for _, channels in COLUMNS)
    places = range(large + medium + small)
    return [*places[small + medium :], *places[small : small + medium], *places[:small]]


def read_arrays(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read the MCNN arrays, all of them and nothing else."""
    check_exists(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if sum(member.file_size for member in archive.zip.infolist()) > MAX_MCNN_BYTES:
                raise ValueError("it is far too large for an MCNN")
            arrays = {name: np.asarray(archive[name], np.float32) for name in archive.files}
    except Exception as error:  # zipfile, zlib and numpy each fail in their own ways
        raise WeightsError(
            f"{path} is damaged or holds more than arrays: {error}",
            fix="copy it again; it must be the .npz of the trained MCNN",
        ) from error
    found = {name: array.shape for name, array in arrays.items()}
    check_shapes(found, dict(mcnn_array_shapes()), source=str(path))
    return arrays


def mcnn_array_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every array's name and shape."""
    for (kernels, channels), column in zip(COLUMNS, FOREIGN_COLUMNS, strict=True):
        inputs = (1, *channels[:-1])
        for layer, (k, i, o) in enumerate(zip(kernels, inputs, channels, strict=True), start=1):
            yield f"w_conv{layer}_{column}", (k, k, i, o)
            yield f"b_conv{layer}_{column}", (o,)
    yield "w_conv5", (1, 1, sum(channels[-1] for _, channels in COLUMNS), 1)
    yield "b_conv5", (1,)


def oihw(kernel: npt.NDArray[np.float32]) -> Tensor:
    """Turn TensorFlow's (height, width, in, out) into PyTorch's (out, in, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))


def check_exists(path: Path) -> None:
    """Refuse a path that is no file."""
    if not path.is_file():
        raise WeightsError(
            f"{path} does not exist or is no file", fix=f"check the path: ls -l {path.parent}"
        )
