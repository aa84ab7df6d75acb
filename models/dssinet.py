"""DSSINet: one VGG-16 body on three sizes of the image, whose features send each other messages.

Liu, Qiu, Li, Liu, Ouyang and Lin, "Crowd Counting with Deep Structured Scale Integration
Network", ICCV 2019, arXiv:1908.08692. This is the form whose parameters and FLOPs SKT prints (Liu
et al., ACM MM 2020, arXiv:2003.10120, Tables 1 and 8). Three departures from the paper: `width`
scales every layer, weights begin as `DSSINet.draw_weights` says instead of from ImageNet's VGG-16,
and what becomes ONNX has LeakyReLUs of a fixed slope for PReLUs of one learned slope.

Shapes: B images, H x W input pixels, both multiples of 16; the map has H x W pixels.

The image is seen at twice its size (up), its own (mid) and half of it (down). Of the body's four
stages 1 to 4, each but the first begins with a pool; "raw" is a stage's output before its last
activation. Where raw features of neighbouring sizes have the same height and width, a message
block lets them exchange what they hold, and the next stages go on from its answers.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

from crowdrt.contracts import IMAGENET
from crowdrt.models.layers import POOL, initialise, start_positive
from crowdrt.models.network import Network
from crowdrt.models.scaling import scaled

STAGES = ((64, 64), (POOL, 128, 128), (POOL, 256, 256, 256), (POOL, 512, 512, 512))
DECODER = 128  # channels
ITERATIONS = 2  # of message passing
FAINT = 0.1


class ScalarPReLU(nn.PReLU):
    """A PReLU whose one learned slope is for all channels; it ships as a LeakyReLU."""

    def fold(self) -> nn.LeakyReLU:
        """Return the activation with the slope as a plain number, which runtimes fuse."""
        return nn.LeakyReLU(self.weight.item(), inplace=True)


def raw_stage(in_channels: int, plan: Sequence[int]) -> nn.Sequential:
    """Return a stage of the body without its last activation."""
    layers: list[nn.Module] = []
    for channels in plan:
        if channels == POOL:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), ScalarPReLU()]
        in_channels = channels
    return nn.Sequential(*layers[:-1])


class MessageBlock(nn.Module):
    """Features of one height and width that send each other messages, twice over."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.messages = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(c, own, 1) for i, c in enumerate(channels) if i != receiver)
            for receiver, own in enumerate(channels)
        )
        self.activation = ScalarPReLU()
        self.relu = nn.ReLU()

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """(B, C_i, h, w) for each i -> the same shapes."""
        for _ in range(ITERATIONS):
            features = tuple(
                self.relu(own + self.activation(self.message_to(receiver, features)))
                for receiver, own in enumerate(features)
            )
        return features

    def message_to(self, receiver: int, features: Sequence[Tensor]) -> Tensor:
        """Return the sum of what the others send."""
        others = [each for i, each in enumerate(features) if i != receiver]
        convs = self.messages[receiver]
        assert isinstance(convs, nn.ModuleList)
        sent: list[Tensor] = [conv(each) for conv, each in zip(convs, others, strict=True)]
        return reduce(torch.add, sent)


class DSSINet(Network):
    """`forward` is the deployed network; nothing is only for training."""

    preprocessing = replace(IMAGENET, stride=16)
    density_stride = 1
    # the released code has a convolution class of its own there, which no counter hooks
    unseen = ("messages", "decoders", "fusions")

    def __init__(self, width: Fraction = Fraction(1)) -> None:
        super().__init__()
        stages = [[c and scaled(c, width) for c in stage] for stage in STAGES]
        c1, c2, c3, c4 = (stage[-1] for stage in stages)
        inputs = (3, c1, c2, c3)
        blocks = ((c2, c1), (c3, c2, c1), (c4, c3, c2), (c4, c3))
        self.front_end = nn.ModuleList(map(raw_stage, inputs, stages))
        self.activations = nn.ModuleList(ScalarPReLU() for _ in stages)  # 2nd and 3rd: not used
        self.messages = nn.ModuleList(map(MessageBlock, blocks))
        self.decoders = nn.ModuleList(
            decoder(channels, scaled(DECODER, width)) for channels in (c4, *map(sum, blocks[::-1]))
        )
        self.fusions = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in blocks)
        self.activation = ScalarPReLU()
        self.relu = nn.ReLU()
        self.draw_weights()

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) ImageNet-normalised RGB -> (B, 1, H, W) people per pixel; sum = count."""
        coarsest, *finer = self.features(image)
        density: Tensor = self.activation(self.decoders[0](coarsest))
        activations = [*[self.activation] * (len(finer) - 1), self.relu]
        for features, decode, fuse, activate in zip(
            finer, self.decoders[1:], self.fusions, activations, strict=True
        ):
            density = activate(decode(features) + fuse(resized(density, 2)))
        return density

    def draw_weights(self) -> None:
        """Draw weights with which the answer is a number of people, and depends on the image.

        Messages begin faint, as in the released code, or two rounds in four blocks would make
        features a hundred times as large. Behind a decoder's ReLU and in a fusion, weights begin
        as averages: nothing is negative, so nothing is cut off, and nothing grows.
        """
        initialise(self)
        with torch.no_grad():
            for conv in convolutions(self.messages):
                conv.weight.mul_(FAINT)
            for conv in convolutions(self.decoders, self.fusions):
                if conv.out_channels == 1:
                    start_positive(conv)
                    conv.weight.div_(conv.weight.sum())

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what is decoded, coarse to fine: (B, C, ., .) at 1/16, 1/8, 1/4, 1/2 and 1/1."""
        one, two, three, four = self.front_end
        after_one, _, _, after_four = self.activations
        up, mid = self.messages[0](two(after_one(one(resized(image, 2)))), one(image))
        finest = torch.cat([up, mid], dim=1)
        up, mid, down = self.messages[1](three(up), two(mid), one(resized(image, 0.5)))
        fine = torch.cat([up, mid, down], dim=1)
        up, mid, down = self.messages[2](four(up), three(mid), two(down))
        middle = torch.cat([up, mid, down], dim=1)
        mid, down = self.messages[3](four(mid), three(down))
        coarse = torch.cat([mid, down], dim=1)
        return after_four(four(down)), coarse, middle, fine, finest


def decoder(in_channels: int, channels: int) -> nn.Sequential:
    """Return what reads a density map, one channel, from features."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, 1, kernel_size=3, padding=1),
    )


def convolutions(*models: nn.Module) -> Iterator[nn.Conv2d]:
    """Yield every convolution in the models."""
    for module in itertools.chain.from_iterable(model.modules() for model in models):
        if isinstance(module, nn.Conv2d):
            yield module


def resized(image: Tensor, factor: float) -> Tensor:
    """Return a bilinear resize with half-pixel centres, as in the paper's code."""
    return functional.interpolate(image, scale_factor=factor, mode="bilinear")
