"""Where a teacher and its student are compared: the features that are taken on the way.

The places are those of SKT (Liu et al., ACM MM 2020, arXiv:2003.10120). The taps of CSRNet follow
the code that its authors published, which takes the first three pools where the paper's text takes
the convolutions behind them. BL has "the same transfer configuration", so VGG-19's convolutions of
the same names; SANet gives "the output features of each block". Neither was published as code.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crowdrt.errors import RecipeError
from crowdrt.learning import Taps
from crowdrt.models.bl import BL
from crowdrt.models.csrnet import CSRNet
from crowdrt.models.network import Network
from crowdrt.models.sanet import SANet, ScaleAggregation

TapList = tuple[tuple[str, int], ...]  # a module whose output is a feature, the teacher's channels
Forward = Callable[[Network, TapList, Tensor], tuple[Tensor, list[Tensor]]]

CSRNET_CODE: TapList = (
    ("front_end.1", 64),  # ReLU(conv1_1), 1/1
    ("front_end.4", 64),  # pool 1, 1/2
    ("front_end.9", 128),  # pool 2, 1/4
    ("front_end.16", 256),  # pool 3, 1/8
    ("back_end.1", 512),  # ReLU(first dilated convolution), 1/8
    ("back_end.7", 256),  # ReLU(fourth dilated convolution), 1/8
)
BL_CODE: TapList = (
    ("front_end.1", 64),  # ReLU(conv1_1), 1/1
    ("front_end.4", 64),  # pool 1, 1/2
    ("front_end.9", 128),  # pool 2, 1/4
    ("front_end.18", 256),  # pool 3, 1/8
    ("front_end.29", 512),  # ReLU(conv5_1), 1/16
    ("front_end.35", 512),  # ReLU(conv5_4), 1/16
)
CSRNET_PAPER: TapList = (
    ("front_end.1", 64),  # ReLU(conv1_1), 1/1
    ("front_end.6", 128),  # ReLU(conv2_1), 1/2
    ("front_end.11", 256),  # ReLU(conv3_1), 1/4
    ("front_end.18", 512),  # ReLU(conv4_1), 1/8
    ("back_end.1", 512),
    ("back_end.7", 256),
)
BL_PAPER: TapList = (
    ("front_end.1", 64),  # ReLU(conv1_1), 1/1
    ("front_end.6", 128),  # ReLU(conv2_1), 1/2
    ("front_end.11", 256),  # ReLU(conv3_1), 1/4
    ("front_end.20", 512),  # ReLU(conv4_1), 1/8
    ("front_end.29", 512),
    ("front_end.35", 512),
)
SANET_TAPS: TapList = (("encoder.0", 64), ("encoder.2", 128), ("encoder.4", 128), ("encoder.6", 64))


def taps_of(network: Network, taps: Taps = "code") -> TapList:
    """Return where SKT takes features from a teacher and its student.

    Args:
        network: either of them.
        taps: "code", behind the first three pools, or "paper", behind the first convolution of
            each stage (equation 1). SANet has its blocks' outputs in both.
    """
    match network:
        case CSRNet():
            return CSRNET_CODE if taps == "code" else CSRNET_PAPER
        case BL():
            return BL_CODE if taps == "code" else BL_PAPER
        case SANet():
            return SANET_TAPS
    raise RecipeError(
        f"SKT says nothing of where to take features from {type(network).__name__}",
        fix="distil csrnet, bl or sanet",
    )


def forward_tapped(network: Network, taps: TapList, image: Tensor) -> tuple[Any, list[Tensor]]:
    """Run `network` and return its answer and the output of every tapped module.

    Args:
        network: a student, or its teacher at full width.
        taps: which modules.
        image: (B, C, H, W) normalised.
    """
    features: dict[str, Tensor] = {}
    hooks = []
    for name, _ in taps:

        def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            features[name] = output

        hooks.append(network.get_submodule(name).register_forward_hook(keep))
    try:
        answer = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return answer, [features[name] for name, _ in taps]


def forward_before_relu(network: Network, taps: TapList, image: Tensor) -> tuple[Any, list[Tensor]]:
    """Run `network` and return its answer and the values whose ReLU the tapped features are.

    A pool's are pooled: the larger of two values is the one whose ReLU is larger.
    """
    places = [relus_of(network, name) for name, _ in taps]
    values: dict[nn.Module, Tensor] = {}
    hooks = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values[module] = inputs[0].clone()  # which a ReLU in place writes over

    for relu in (relu for relus, _ in places for relu in relus):
        hooks.append(relu.register_forward_pre_hook(keep))
    try:
        answer = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    features = [(torch.cat([values[r] for r in relus], dim=1), pool) for relus, pool in places]
    return answer, [pool(each) if pool else each for each, pool in features]


def relus_of(network: Network, name: str) -> tuple[list[nn.Module], nn.Module | None]:
    """Return the ReLUs whose outputs, side by side, are a tapped feature, and the pool behind."""
    module = network.get_submodule(name)
    if isinstance(module, nn.MaxPool2d):
        stack, _, place = name.rpartition(".")
        return [network.get_submodule(f"{stack}.{int(place) - 1}")], module
    branches = module.branches if isinstance(module, ScaleAggregation) else [module]
    return [
        [m for m in branch.modules() if isinstance(m, nn.ReLU)][-1] for branch in branches
    ], None


def tapped_channels(network: Network, taps: TapList) -> Sequence[int]:
    """Return the channels of every tapped feature; on the meta device, which costs nothing."""
    image = torch.empty(1, network.preprocessing.num_channels, 64, 64, device="meta")
    with torch.no_grad():
        _, features = forward_tapped(copy.deepcopy(network).to("meta"), taps, image)
    return [feature.shape[1] for feature in features]


class StudentOutputs(NamedTuple):
    """What the losses of a tapped student see; what ships returns `density` alone."""

    density: Tensor | None  # (B, 1, h, w) people per cell; None where it is not learned from
    features: tuple[Tensor, ...]  # one per adapter


class TappedStudent(Network):
    """`forward` is the student; `forward_train` adds its adapted features.

    Args:
        student: what ships.
        taps: where its features are taken.
        adapters: one per feature; `nn.Identity` where none is needed.
        forward: runs it and returns its answer and features, as `forward_tapped` does.
    """

    train_only = ("adapters",)

    def __init__(
        self,
        student: Network,
        taps: TapList,
        adapters: Iterable[nn.Module],
        forward: Forward = forward_tapped,
    ) -> None:
        super().__init__()
        self.student, self.taps, self.forward_tapped = student, taps, forward
        self.adapters = nn.ModuleList(adapters)
        self.preprocessing = student.preprocessing
        self.density_stride = student.density_stride
        self.whole_image = student.whole_image

    def forward(self, image: Tensor) -> Any:
        """Return what the student does."""
        return self.student(image)

    def forward_train(self, image: Tensor, *, answer: bool = True) -> StudentOutputs:
        """Return the student's features as its teacher has them, and its density if asked.

        An answer that is returned is one whose parameters several devices wait for.
        """
        density, features = self.forward_tapped(self.student, self.taps, image)
        pairs = zip(self.adapters, features, strict=True)
        return StudentOutputs(
            density if answer else None, tuple(adapt(feature) for adapt, feature in pairs)
        )
