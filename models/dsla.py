"""DSLA: a fully convolutional people detector whose answer needs no non-maximum suppression.

Wang, Li, Xue and Huo, "Dual Subnet Label Assignment for End-to-End Fully Convolutional Pedestrian
Detection in Crowd Scenes". No code was released with it. The network is FCOS (Tian et al.,
arXiv:1904.01355) with one-to-one labels as in OneNet (Sun et al., arXiv:2012.05780), a soft label
assignment (SLA) branch that only training needs, and Feature Shuffle between the pyramid's levels.
Its details are the ones that reproduce the paper's Table 5.

What the text leaves open:

* Centerness: the printed cost holds FCOS's centerness convolution, but no loss and no score of the
  paper reads it. So here it belongs to training, and the shipped score is the class score alone:
  multiplying by what nothing has trained would only halve it.
* Feature Shuffle: a quarter of the channels goes either way (64 of 256), as in DDQ's code (Zhang
  et al., CVPR 2023, arXiv:2303.12776). The outermost levels exchange with themselves.
* Distances to a box's sides are ReLU(scale * prediction) * stride, as in OneNet.

`shuffle=False` builds `onenet`, the baseline of the ablation: the same without Feature Shuffle.

Departures: `width` scales every layer; one class, people, unless asked for more (Table 5 counts
the 80 of COCO); weights begin Kaiming-normal instead of from ImageNet's ResNet-50.

Shapes: B images, H x W input pixels, both multiples of 32; levels of stride 8 to 128 with h x w
cells; L cells in all levels, C classes, K detections. At 800x1280 L is 21,330: levels 6 and 7
round 12.5 and 6.5 rows up, so their last row's centre lies on the border or up to half a cell
beyond it, and boxes are clipped.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from crowdrt.contracts import IMAGENET, NUM_DETECTIONS
from crowdrt.models.layers import initialise
from crowdrt.models.network import Network
from crowdrt.models.resnet_fpn import PYRAMID, FeaturePyramid, ResNet50
from crowdrt.models.scaling import scaled

STRIDES = (8, 16, 32, 64, 128)  # input pixels per cell of levels 3 to 7
TOWER_DEPTH = 4  # convolutions before the heads
GROUP = 8  # channels that a group norm takes together: 32 groups of 256

NEVER = -1000.0  # a logit whose score is exactly 0

PRIOR = 0.01  # of a class at a cell, before anything is learned; FCOS's start
HEAD_STD = 0.01  # of a head's weights at full width
START_DISTANCE = 4.0  # cells from a centre to a side: boxes begin alive, ReLU passes them

OUTPUTS = {"boxes": ("boxes", "scores", "labels"), "raw": ("logits", "boxes")}


class TrainOutputs(NamedTuple):
    """What the losses see, level by level from fine to coarse."""

    logits: list[Tensor]  # (B, h * w, C) of the one-to-one branch, which ships
    soft_logits: list[Tensor]  # (B, h * w, C) of the SLA branch
    boxes: list[Tensor]  # (B, h * w, 4) x1, y1, x2, y2 in input pixels, not clipped
    centerness: list[Tensor]  # (B, h * w, 1) logits
    centres: list[Tensor]  # (h * w, 2) x, y of the cells in input pixels


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation with about as many channels in a group as at full width."""
    most = max(1, channels // GROUP)
    return nn.GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels)


def tower(channels: int) -> nn.Sequential:
    """Return the convolutions in front of a head."""
    layers: list[nn.Module] = []
    for _ in range(TOWER_DEPTH):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        layers += [group_norm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def head(channels: int, num_outputs: int, bias: float) -> nn.Conv2d:
    """Return a last convolution whose answers begin near `bias`, as much apart at any width."""
    conv = nn.Conv2d(channels, num_outputs, 3, padding=1)
    if not conv.weight.is_meta:  # drawing numbers there loads PyTorch's compiler, for nothing
        nn.init.normal_(conv.weight, std=HEAD_STD * math.sqrt(PYRAMID / channels))
        nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
    return conv


def feature_shuffle(levels: Sequence[Tensor]) -> list[Tensor]:
    """Exchange channels between neighbouring levels.

    Of C channels and with S = C / 4, a level keeps its first C - 2S. Then come the last S of the
    next coarser level, and then the S before those of the next finer one, resized bilinearly with
    aligned corners. At either end of the pyramid a level stands in for its missing neighbour.
    Nothing is learned.

    Args:
        levels: from fine to coarse, each (B, C, h, w).
    """
    channels = levels[0].shape[1]
    shared = max(1, channels // 4)
    cuts = (channels - 2 * shared, channels - shared)
    shuffled = []
    for i, own in enumerate(levels):
        coarser, finer = levels[min(i + 1, len(levels) - 1)], levels[max(i - 1, 0)]
        parts = [own[:, : cuts[0]]]
        for source, taken in ((coarser, coarser[:, cuts[1] :]), (finer, finer[:, slice(*cuts)])):
            parts.append(taken if source is own else resized(taken, own))
        shuffled.append(torch.cat(parts, dim=1))
    return shuffled


def resized(features: Tensor, to: Tensor) -> Tensor:
    """Return `features` as large as `to`: bilinear, corners on corners."""
    return functional.interpolate(features, to.shape[2:], mode="bilinear", align_corners=True)


def cell_centres(level: Tensor, stride: int) -> Tensor:
    """Return (h * w, 2): x, y in input pixels of each cell's centre, row by row."""
    height, width = level.shape[2:]
    rows, columns = (torch.arange(length, device=level.device) for length in (height, width))
    x, y = columns.expand(height, width), rows.unsqueeze(1).expand(height, width)
    return (torch.stack([x, y], dim=2).flatten(0, 1) + 0.5) * stride


def by_cell(answers: Tensor) -> Tensor:
    """(B, n, h, w) -> (B, h * w, n), row by row."""
    return answers.flatten(2).transpose(1, 2)


def best_detections(
    logits: Tensor, boxes: Tensor, num_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the K = `num_detections` best pairs of cell and class, without suppression.

    The number is the same for every image size, as TensorRT 8 wants it: beyond what an image has
    there are boxes of zeros with a score of 0.

    Args:
        logits: (B, L, C).
        boxes: (B, L, 4).
        num_detections: K.

    Returns:
        boxes (B, K, 4), scores (B, K) from high to low, labels (B, K) int64.
    """
    num_classes = logits.shape[2]
    flat = functional.pad(logits.flatten(1), (0, num_detections), value=NEVER)
    # sorted, an order that the sigmoid keeps; reshaped so that a graph for any size knows K
    top, index = (each.reshape(-1, num_detections) for each in flat.topk(num_detections, dim=1))
    cell = torch.div(index, num_classes, rounding_mode="trunc")
    padded = functional.pad(boxes, (0, 0, 0, num_detections))
    chosen = padded.gather(1, cell.unsqueeze(2).expand(-1, -1, 4))
    return chosen, top.sigmoid(), index - cell * num_classes


class DSLA(Network):
    """`forward` is the deployed detector; `forward_train` adds what only the losses need."""

    preprocessing = replace(IMAGENET, stride=STRIDES[2])  # levels 3 to 5 are exact at 32
    density_stride = STRIDES[0]  # of its finest cells; it has no density map
    train_only = ("sla_head", "centerness_head")
    offers = tuple(OUTPUTS)
    output_names = OUTPUTS["boxes"]
    whole_image = "group normalisation takes its statistics from the whole image"

    def __init__(
        self, width: Fraction = Fraction(1), *, num_classes: int = 1, shuffle: bool = True
    ) -> None:
        super().__init__()
        channels = scaled(PYRAMID, width)
        self.num_classes = num_classes
        self.shuffle = shuffle
        self.backbone = ResNet50(width)
        self.pyramid = FeaturePyramid(width)
        self.class_tower = tower(channels)
        self.box_tower = tower(channels)
        initialise(self)
        rare = -math.log((1 - PRIOR) / PRIOR)
        self.class_head = head(channels, num_classes, rare)
        self.sla_head = head(channels, num_classes, rare)
        self.box_head = head(channels, 4, START_DISTANCE)
        self.centerness_head = head(channels, 1, 0.0)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in STRIDES)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) ImageNet-normalised RGB -> detections, as `keep` chose.

        Returns:
            "boxes": boxes (B, K, 4) x1, y1, x2, y2 in input pixels, inside the image; scores
            (B, K) from high to low; labels (B, K) int64.
            "raw": logits (B, L, C) and boxes (B, L, 4), for `crowdrt.engines.decode`.
        """
        class_features, box_features = self.features(image)
        logits = [by_cell(self.class_head(level)) for level in class_features]
        centres = [cell_centres(*pair) for pair in zip(box_features, STRIDES, strict=True)]
        # the finest level's last cell ends where the image does
        corner = centres[0][-1] + STRIDES[0] / 2
        boxes = torch.cat(self.boxes(box_features, centres), dim=1).clamp(min=0)
        answers = torch.cat(logits, dim=1), torch.minimum(boxes, torch.cat([corner, corner]))
        if self.output_names == OUTPUTS["raw"]:
            return answers
        return best_detections(*answers, NUM_DETECTIONS)

    def forward_train(self, image: Tensor) -> TrainOutputs:
        """(B, 3, H, W) ImageNet-normalised RGB -> every branch's answers, level by level."""
        class_features, box_features = self.features(image)
        centres = [cell_centres(*pair) for pair in zip(box_features, STRIDES, strict=True)]
        return TrainOutputs(
            logits=[by_cell(self.class_head(level)) for level in class_features],
            soft_logits=[by_cell(self.sla_head(level)) for level in class_features],
            boxes=self.boxes(box_features, centres),
            centerness=[by_cell(self.centerness_head(level)) for level in box_features],
            centres=centres,
        )

    def keep(self, output: str) -> None:
        """Ship detections ("boxes"), or every cell's answer ("raw") to be decoded outside."""
        super().keep(output)
        self.output_names = OUTPUTS[output]

    def features(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return what the class heads and what the box heads read, levels 3 to 7."""
        levels = self.pyramid(self.backbone(image))
        if self.shuffle:
            levels = feature_shuffle(levels)
        return [self.class_tower(level) for level in levels], [
            self.box_tower(level) for level in levels
        ]

    def boxes(self, features: Sequence[Tensor], centres: Sequence[Tensor]) -> list[Tensor]:
        """Return the boxes of each level in input pixels: its centre less and plus distances."""
        boxes = []
        for level, centre, scale, stride in zip(
            features, centres, self.scales, STRIDES, strict=True
        ):
            sides = by_cell(functional.relu(scale * self.box_head(level)) * stride)
            boxes.append(torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], dim=2))
        return boxes
