"""The networks, one paper per file, and the one list of them.

Importing this needs no torch: a network's module loads when the network is built.
"""

from fractions import Fraction
from typing import TYPE_CHECKING

from crowdrt.errors import RecipeError

if TYPE_CHECKING:
    from crowdrt.models.network import Network

DENSITY_NETWORKS = ("csrnet", "bl", "sanet", "mcnn", "can", "dssinet")  # a map, at any size
NETWORKS = (*DENSITY_NETWORKS, "deepcount", "dsla")
TRAINING_FORMS = ("skt",)  # a network with what only its training needs beside it
ABLATIONS = ("deepcount-relu", "onenet")  # a network as a paper's ablation alters it
BUILDABLE = (*NETWORKS, *TRAINING_FORMS, *ABLATIONS)  # what a weights file may name


def build_model(network: str, width: Fraction = Fraction(1)) -> "Network":
    """Return the freshly initialised `network` with every layer `width` times as wide.

    Raises:
        RecipeError: no such network, or the width is not in (0, 1].
    """
    if not 0 < width <= 1:
        raise RecipeError(
            f"width {width} is not a fraction in (0, 1]", fix="write 1, 1/2, 1/4 ... "
        )
    match network:
        case "csrnet":
            from crowdrt.models.csrnet import CSRNet

            return CSRNet(width)
        case "bl":
            from crowdrt.models.bl import BL

            return BL(width)
        case "sanet":
            from crowdrt.models.sanet import SANet

            return SANet(width)
        case "mcnn":
            from crowdrt.models.mcnn import MCNN

            return MCNN(width)
        case "can":
            from crowdrt.models.can import CAN

            return CAN(width)
        case "dssinet":
            from crowdrt.models.dssinet import DSSINet

            return DSSINet(width)
        case "skt":
            from crowdrt.models.csrnet import CSRNet
            from crowdrt.models.skt import SktStudent

            return SktStudent(CSRNet(width))
        case "deepcount":
            from crowdrt.models.deepcount import DeepCount

            return DeepCount(width)
        case "deepcount-relu":
            from crowdrt.models.deepcount import DeepCount

            return DeepCount(width, slope=0.0)
        case "dsla":
            from crowdrt.models.dsla import DSLA

            return DSLA(width)
        case "onenet":
            from crowdrt.models.dsla import DSLA

            return DSLA(width, shuffle=False)
        case _:
            raise RecipeError(
                f"network {network!r} is unknown", fix=f"choose from {', '.join(NETWORKS)}"
            )
