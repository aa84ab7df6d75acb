"""DeepCount's Tables 3, 6 and 7, cell by cell: its equation 10 beside what is printed."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from crowdrt.benchmarks.tables.cells import Cell
from crowdrt.benchmarks.tables.printed_deepcount import (
    CSRNET_PARAMS_M,
    DEEPCOUNT_PARAMS_M,
    DEEPCOUNT_TRAINING_PARAMS_M,
    TABLE_3,
    TABLE_7,
    PrintedLayer,
)

if TYPE_CHECKING:
    from torch import nn

    from crowdrt.export.equation_10 import LayerCost
    from crowdrt.models.network import Network

TRANSPOSED = (
    "equation 10 counts transposed convolutions on their output grid: 12 times the work of the "
    "3x4 layer, 4 times that of each stride-2 layer"
)
CUT_OFF = "printed cut off: 37.749 M are 38, as Table 7 prints the same layer. And " + TRANSPOSED
COPIED = (
    "a copied cell: 6034 is the total of the backbone's back end in Table 3, where this branch's "
    "is 8596. And " + TRANSPOSED
)
WITHOUT_FRONT = "without the ten VGG layers in front, which take 54,698 M more"
SLIPS = {("DeepCount, branch 1", 0): CUT_OFF}


def deepcount_3() -> list[Cell]:
    """Table 3: the back ends of CSRNet and DeepCount and branch 1, layer by layer."""
    return [
        cell
        for part, (printed, total) in TABLE_3.items()
        for cell in cells_of_part(part, printed, total, costs_of_parts()[part])
    ]


def cells_of_part(
    part: str, printed: Sequence[PrintedLayer], total: str, costs: Sequence["LayerCost"]
) -> list[Cell]:
    """Return one column of Table 3: a cell per layer, and their total."""
    cells = []
    for place, (layer, cost) in enumerate(zip(printed, costs, strict=True)):
        note = TRANSPOSED if cost.equation_10 != cost.macs else ""
        cells.append(
            flops_cell(
                part,
                f"{layer.name} {layer.kernel} to {layer.output}, M",
                layer.flops_m,
                [cost],
                SLIPS.get((part, place), note),
            )
        )
    note = TRANSPOSED if "branch" in part else WITHOUT_FRONT
    return [*cells, flops_cell(part, "total, M", total, costs, note)]


def deepcount_6() -> list[Cell]:
    """Table 6: parameters; its other columns are errors and frames per second."""
    csrnet, deepcount = (num_params(network) for network in networks())
    branches = sum(num_params(getattr(networks()[1], name)) for name in networks()[1].train_only)
    rows = (
        ("CSRNet", "parameters, M", CSRNET_PARAMS_M, csrnet),
        ("DeepCount", "parameters for inference, M", DEEPCOUNT_PARAMS_M, deepcount - branches),
        ("DeepCount", "parameters in training, M", DEEPCOUNT_TRAINING_PARAMS_M, deepcount),
    )
    return [
        Cell.of(row=row, column=column, printed=printed, value=params, unit=10**6)
        for row, column, printed, params in rows
    ]


def deepcount_7() -> list[Cell]:
    """Table 7: what each branch takes; its other rows are errors."""
    parts = costs_of_parts()
    return [
        flops_cell(
            f"Branch {number}",
            f"FLOPs of the {cells} map, M",
            printed,
            parts[f"DeepCount, branch {number}"],
            COPIED if number == 1 else TRANSPOSED,
        )
        for number, (cells, printed) in TABLE_7.items()
    ]


def flops_cell(
    row: str, column: str, printed: str, costs: Iterable["LayerCost"], note: str
) -> Cell:
    """Return the sum of some layers beside what is printed, in millions."""
    layers = list(costs)
    return Cell.of(
        row=row,
        column=column,
        printed=printed,
        value=sum(layer.equation_10 for layer in layers),
        true=sum(layer.macs for layer in layers),
        unit=10**6,
        note=note,
    )


@cache
def networks() -> tuple["Network", "Network"]:
    """Return CSRNet and DeepCount with its branches, on the meta device."""
    import torch

    from crowdrt.models import build_model

    with torch.device("meta"):
        return build_model("csrnet"), build_model("deepcount")


def num_params(module: "nn.Module") -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def costs_of_parts() -> dict[str, list["LayerCost"]]:
    """Return the layers of each part of the two networks, in the order of their calls."""
    import torch

    from crowdrt.export.equation_10 import layer_costs

    csrnet, deepcount = networks()
    assert deepcount.fixed_size is not None
    image = torch.empty(1, 3, *deepcount.fixed_size, device="meta")
    parts: dict[str, list[LayerCost]] = {}
    for name, network in (("CSRNet", csrnet), ("DeepCount", deepcount)):
        for layer, cost in layer_costs(network, network.forward_train, image).items():
            parts.setdefault(f"{name}, {part_of(layer)}", []).append(cost)
    return parts


def part_of(layer: str) -> str:
    """Return to which part of a network a layer belongs, by its module's name."""
    module = layer.split(".")[0]
    if module.startswith("branch"):
        return module.replace("_", " ")
    return "front end" if module == "front_end" else "back end"
