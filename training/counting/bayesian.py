"""The Bayesian loss: heads are compared with the people expected at them, not with a drawn map.

Ma, Wei, Hong and Gong, "Bayesian Loss for Crowd Count Estimation With Point Supervision",
ICCV 2019, arXiv:1908.03684. Every cell of a predicted map belongs to each head by a posterior,
from a Gaussian likelihood around it and equal priors; a head's expected count is the map weighted
by its posterior, and should be one. Cells far from every head belong to the background, which
should count nobody.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crowdrt.learning import Posterior
from crowdrt.training.counting.truth import Annotation

NEAR_PX2 = 1e-5  # keeps the "inverse" background finite on a head


@dataclass(frozen=True)
class BayesianLoss:
    """Absolute errors of the expected counts of an image's heads, and of its background.

    An image without heads is background everywhere, as in the published code; the paper does not
    speak of it.
    """

    posterior: Posterior

    def __call__(self, predicted: Tensor, truth: Annotation) -> dict[str, Tensor]:
        """Return the heads' and the background's part."""
        errors = [
            self.errors(density[0], heads, short, stride=truth.stride)
            for density, heads, short in zip(
                predicted, truth.heads, truth.short_px.tolist(), strict=True
            )
        ]
        heads, background = torch.stack(errors).mean(0).unbind()
        return {"heads": heads, "background": background}

    def errors(self, density: Tensor, heads: Tensor, short_px: float, *, stride: int) -> Tensor:
        """(h, w) people per cell, (N, 2) heads -> the two sums of absolute errors, (2,)."""
        if not len(heads):
            nobody = density.sum()
            return torch.stack((nobody * 0, nobody.abs()))
        share = posteriors(heads, density.shape, short_px, stride=stride, options=self.posterior)
        expected = share.flatten(1) @ density.flatten()
        people, nobody = expected[: len(heads)], expected[len(heads) :]
        return torch.stack(((1 - people).abs().sum(), nobody.abs().sum()))


def posteriors(
    heads: Tensor,
    cells: tuple[int, ...],
    short_px: float,
    *,
    stride: int,
    options: Posterior,
) -> Tensor:
    """Return whose each cell is.

    Args:
        heads: (N, 2) x, y in input pixels, 0 the centre of the first; at least one.
        cells: rows and columns of the map.
        short_px: the photograph's shorter side in input pixels.
        stride: input pixels per cell.
        options: sigma and background.

    Returns:
        (N, h, w), or (N + 1, h, w) with the background last; sums to 1 over the first axis.

    The paper's background is a dummy head for every cell, d away from the nearest head on the way
    to the cell: "margin" gives it the cells beyond d / 2. The code's later "inverse" has no such
    picture: it gives the background the cells beyond the root of d, both in pixels.
    """
    square = squared_distances(heads, cells, stride=stride)
    if options.background is not None:
        nearest, d = square.amin(0, keepdim=True), options.background_ratio * short_px
        if options.background == "margin":
            beyond = (d - nearest.sqrt()).square()
        else:
            beyond = d**2 / (nearest + NEAR_PX2)
        square = torch.cat((square, beyond))
    return (-square / (2 * options.sigma_px**2)).softmax(0)


def squared_distances(heads: Tensor, cells: tuple[int, ...], *, stride: int) -> Tensor:
    """Return the squared distances of heads and centres of cells in input pixels, (N, h, w)."""
    y, x = (
        (stride * (torch.arange(num, device=heads.device) + 0.5) - 0.5 - heads[:, axis, None])
        for num, axis in zip(cells, (1, 0), strict=True)
    )
    return y.square()[:, :, None] + x.square()[:, None, :]
