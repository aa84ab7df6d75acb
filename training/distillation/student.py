"""The training student of these methods: what ships, what is tapped on the way, and adapters."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from crowdrt.models.network import Network
from crowdrt.models.taps import TapList, forward_tapped

Forward = Callable[[Network, TapList, Tensor], tuple[Tensor, list[Tensor]]]


class StudentOutputs(NamedTuple):
    """What the losses see; the deployed network returns `density` alone."""

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


class Peers(Network):
    """Two students of one width; the first ships."""

    train_only = ("peer",)

    def __init__(self, student: Network, peer: Network) -> None:
        super().__init__()
        self.student, self.peer = student, peer
        self.preprocessing = student.preprocessing
        self.density_stride = student.density_stride
        self.whole_image = student.whole_image

    def forward(self, image: Tensor) -> Any:
        """Return what the student does."""
        return self.student(image)

    def forward_train(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the densities of both."""
        return self.student(image), self.peer(image)
