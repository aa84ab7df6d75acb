"""DSLA's Table 5, cell by cell: parameters and FLOPs of the detector, for inference and training.

Wang, Li, Xue and Huo, "Dual Subnet Label Assignment for End-to-End Fully Convolutional Pedestrian
Detection in Crowd Scenes". The paper says neither at what size nor for how many classes; the
cells come out with mmdetection's defaults, 1280x800 px and the 80 classes of COCO.
"""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from crowdrt.benchmarks.tables.cells import Cell, like
from crowdrt.contracts import Size

if TYPE_CHECKING:
    from torch import nn

    from crowdrt.models.dsla import DSLA

SIZE: Size = (800, 1280)
NUM_CLASSES = 80
TABLE_5 = (  # model, phase, parameters in M, FLOPs in G
    ("OneNet", "infer", "32.0", "201"),
    ("DSLA", "infer", "32.0", "201"),
    ("DSLA", "train", "32.2", "204"),
)
TRAINED = (
    "counts what is trained: stem, first stage and batch norm are frozen, and {stored} M are stored"
)
CLASSES = (
    "comes out for the 80 classes of COCO at 1280x800, though the caption says CrowdHuman, and "
    "with FCOS's centerness convolution, which none of the paper's losses reads; the detector of "
    "one class that ships here has neither and takes 196.61"
)


class Cost(NamedTuple):
    """What one phase takes."""

    trained: int  # parameters that are not frozen
    stored: int  # parameters
    paper_flops: int
    macs: int


def dsla_5() -> list[Cell]:
    """Table 5. OneNet's row is DSLA's, whose Feature Shuffle has no parameters and costs nothing.

    That is, nothing that the papers' counter sees: it resizes and concatenates.
    """
    return [
        cell
        for model, phase, params, flops in TABLE_5
        for cell in cells_of(
            f"{model}, {phase}", params, flops, cost_of(NUM_CLASSES, sla=phase == "train")
        )
    ]


def cells_of(row: str, params: str, flops: str, cost: Cost) -> tuple[Cell, Cell]:
    """Return the two cells of a row beside what is printed."""
    parameters = Cell.of(
        row=row,
        column="parameters, M",
        printed=params,
        value=cost.trained,
        unit=10**6,
        note=TRAINED.format(stored=like(params, cost.stored, 10**6)),
    )
    operations = Cell.of(
        row=row,
        column="FLOPs at 800x1280, G",
        printed=flops,
        value=cost.paper_flops,
        true=cost.macs,
        unit=10**9,
        note=CLASSES,
    )
    return parameters, operations


@cache
def cost_of(num_classes: int, *, sla: bool) -> Cost:
    """Return what the training network takes, with or without its SLA branch."""
    import torch
    from torch import nn

    from crowdrt.export.complexity import count_macs
    from crowdrt.export.paper_accounting import count_paper_flops
    from crowdrt.export.strip import Seen
    from crowdrt.models.dsla import DSLA

    with torch.device("meta"):
        model = DSLA(num_classes=num_classes)
    if not sla:
        model.sla_head = nn.Identity()  # type: ignore[assignment]
    graph = Seen(model, by_losses=True)
    image = torch.empty(1, model.preprocessing.num_channels, *SIZE, device="meta")
    stored = num_params(model)
    return Cost(
        trained=stored - frozen_params(model),
        stored=stored,
        paper_flops=count_paper_flops(graph, image),
        macs=count_macs(graph, image),
    )


def frozen_params(model: "DSLA") -> int:
    """Return how many parameters mmdetection does not train: pretrained, and normalisation."""
    from torch import nn

    backbone = model.backbone
    frozen: set[nn.Module] = {backbone.stem, backbone.stages[0]}
    inside = {each for module in frozen for each in module.modules()}
    norms = {each for each in backbone.modules() if isinstance(each, nn.BatchNorm2d)} - inside
    return sum(map(num_params, frozen | norms))


def num_params(module: "nn.Module") -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())
