"""DeepCount's loss: absolute errors of the count and of five maps of one crowd.

Chen et al., "Deep Density-aware Count Regressor", ECAI 2020, arXiv:1908.03314, equations 4 to 6.
The L2 term of equation 6 is the optimiser's: see `DeepCountTask.parameter_groups`.
"""

from torch import Tensor
from torch.nn import functional

from crowdrt.learning import GradientFusion
from crowdrt.models.deepcount import TrainOutputs


def fusion_losses(
    outputs: TrainOutputs, density: Tensor, fusion: GradientFusion
) -> dict[str, Tensor]:
    """Return the weighted errors of the count ("count") and of each map ("density:3x4" ...).

    A map's error is summed over its cells. The count's target is the sum of the crop's map, as in
    the published code: whoever is in the crop.

    Args:
        outputs: of the network, B crops.
        density: (B, 1, 48, 64) people per cell of the finest map.
        fusion: the weights.
    """
    omega = fusion.scale * (0.5 if fusion.half else 1.0)
    people = (outputs.people.float() - density.sum((1, 2, 3))).abs().mean()
    terms = {"count": omega * fusion.count_weight * people}
    for cells, predicted in outputs.density.items():
        target = pooled(density, rows=predicted.shape[2])
        error = (predicted.float() - target).abs().sum((1, 2, 3)).mean()
        terms[f"density:{cells}"] = omega * error
    return terms


def pooled(density: Tensor, *, rows: int) -> Tensor:
    """(B, 1, h, w) people per cell -> the same people on a map of so many rows."""
    side = density.shape[2] // rows
    assert side * rows == density.shape[2], (density.shape, rows)
    return functional.avg_pool2d(density, side, divisor_override=1)
