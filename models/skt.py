"""SKT's training student: a narrow network, and adapters that let it be compared with its teacher.

Liu et al., "Efficient Crowd Counting via Structured Knowledge Transfer", ACM MM 2020,
arXiv:2003.10120. An adapter is a 1x1 convolution with bias and ReLU that turns a feature of the
student into as many channels as the teacher has there, so that a loss can hold the two side by
side. Only training needs it: what ships is the student alone.

Features are taken where models/taps.py says. The code that SKT's authors published has a ReLU that
the paper's text does not mention. Departure: an adapter's weights begin Kaiming-normal by fan-in,
as everything here does, not by fan-out.

Shapes: B images, H x W input pixels, h x w = H/8 x W/8 output cells.
"""

from collections.abc import Sequence

from torch import nn

from crowdrt.learning import Taps
from crowdrt.models.layers import initialise
from crowdrt.models.network import Network
from crowdrt.models.taps import TappedStudent, tapped_channels, taps_of


class SktStudent(TappedStudent):
    """`forward` is the student; `forward_train` adds its adapted features."""

    def __init__(
        self,
        student: Network,
        *,
        taps: Taps = "code",
        channels: Sequence[int] | None = None,
        relu: bool = True,
    ) -> None:
        """Put adapters beside `student`, a CSRNet, BL or SANet of any width.

        Args:
            student: what ships.
            taps: where features are taken.
            channels: of the teacher at each tap; those of full width if None.
            relu: behind each adapter, as in the code of SKT's authors.

        Raises:
            RecipeError: SKT says nothing of where to tap that network.
        """
        places = taps_of(student, taps)
        wanted = channels or [channels for _, channels in places]
        narrow = tapped_channels(student, places)
        adapters = nn.ModuleList(
            adapter(own, theirs, relu=relu) for own, theirs in zip(narrow, wanted, strict=True)
        )
        initialise(adapters)
        super().__init__(student, places, adapters)


def adapter(in_channels: int, out_channels: int, *, relu: bool = True) -> nn.Sequential:
    """Return the 1x1 convolution from a student's channels to its teacher's, with ReLU or not."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)
    return nn.Sequential(conv, nn.ReLU(inplace=True)) if relu else nn.Sequential(conv)
