"""Learning to count from density maps: the task of every network that answers one."""

from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from crowdrt.contracts import DENSITY, MIN_SIDE_PX, Preprocessing, Sample
from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.models import DENSITY_NETWORKS, build_model
from crowdrt.models.network import Network, Normalise
from crowdrt.training.counting.crops import Batch, CropSource
from crowdrt.training.counting.evaluate import count_errors
from crowdrt.training.counting.losses import count_loss
from crowdrt.training.counting.sets import TrainingSet, annotation_of, check_validation
from crowdrt.training.counting.truth import Annotation, CountingLoss
from crowdrt.training.pruning.shaping import pruned_shaping
from crowdrt.training.quantization.shaping import QuantizedShaping
from crowdrt.training.shaping import Crops, Shaping
from crowdrt.training.task import Task


class DensityTask(Task[Sample]):
    """One counting network, its photographs and its loss.

    Args:
        network: what to build.
        width: at which width.
        config: crops, loss, optimiser, steps.
        data: what to learn from, and what to choose the best network by.
        pretrained: weights that it begins with where their names and shapes agree, or None.

    Raises:
        TrainingError: it has no map, or crops or photographs cannot be trained on.
    """

    def __init__(
        self,
        network: str,
        width: Fraction,
        config: TrainingConfig,
        data: TrainingSet,
        *,
        pretrained: Path | None = None,
    ) -> None:
        super().__init__(network, width, config, data, pretrained=pretrained)
        plain = build_model(network, width)
        check_answer(network, plain)
        check_crop(config.crop_px, plain.preprocessing)
        check_validation(data.validation)
        self.preprocessing, self.stride = plain.preprocessing, plain.density_stride
        self.border = target_border(plain, config.crop_px)
        self.normalise = Normalise(plain.preprocessing)
        self.source = CropSource(data.groups, self.preprocessing, self.stride, config)
        self.count_loss = count_loss(config)
        self.shaping = shaping_of(config, self.first_crops)

    def build(self) -> Network:
        """Return the network, normalised as the recipe says."""
        return self.counter()

    def counter(self) -> Network:
        """Return the network that counts, alone, as it begins."""
        return self.shaping.begin(self.begun())

    def batch(self, step: int, members: range) -> Batch:
        """Return some crops of a step's batch."""
        return self.source.batch(step, members)

    def first_crops(self, number: int) -> list[Tensor]:
        """Return at least so many crops, the first that are learned from, normalised."""
        size = self.config.batch_size
        batches = [self.batch(step, range(size)) for step in range(-(-number // size))]
        return [self.on_device(each, torch.device("cpu"))[0] for each in batches]

    def before_step(self, model: nn.Module, step: int) -> None:
        """Change the network that counts as the step asks."""
        self.shaping.before_step(self.counting(model), step)

    def counting(self, model: nn.Module) -> nn.Module:
        """Return the network that counts, of what `build` returned."""
        return model

    def losses(
        self, model: nn.Module, batch: Batch, *, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Return the error of the predicted map."""
        image, target = self.on_device(batch, device)
        return self.map_losses(model(image), target, batch)

    def on_device(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the normalised images (B, C, H, W) and their maps, as large as the answer's."""
        pixels = self.normalise.to(device)(torch.from_numpy(batch.images).to(device))
        target = functional.pad(torch.from_numpy(batch.density), self.border)
        return pixels.contiguous(memory_format=torch.channels_last), target.to(device)

    def map_losses(
        self, predicted: Tensor, target: Tensor, batch: Batch, *, loss: CountingLoss | None = None
    ) -> dict[str, Tensor]:
        """Return a loss, the recipe's by default, between an answer and a map: (B, 1, h, w)."""
        device = predicted.device
        predicted = predicted.float()
        if batch.region is not None:  # what a network answers elsewhere is not counted
            region = functional.pad(torch.from_numpy(batch.region), self.border).to(device)
            predicted, target = predicted * region, target * region
        heads = [torch.from_numpy(each).to(device) for each in batch.heads]
        short_px = torch.from_numpy(batch.short_px)
        annotation = Annotation(target, heads, self.stride, short_px)
        return (loss or self.count_loss)(predicted, annotation)

    def shipped(self, state: Mapping[str, Tensor]) -> Network:
        """Return the network as `build_model` makes it: what training added is folded."""
        return self.shaping.ship(build_model(self.network, self.width), state)

    def validate(self, model: Network, device: torch.device) -> Mapping[str, float]:
        """Return the errors on whole photographs."""
        return asdict(count_errors(model, self.data.validation, self.preprocessing, device=device))

    def annotation_of(self, sample: Sample) -> bytes:
        """Return the heads and the region of a photograph."""
        return annotation_of(sample)


def check_answer(network: str, model: Network) -> None:
    """Refuse a network that answers no density map of whatever image it is given.

    Raises:
        TrainingError: it counts without a map, takes one size only, or detects.
    """
    if model.output_names != (DENSITY,) or model.fixed_size is not None:
        raise TrainingError(
            f"{network} does not learn from density maps of crops of any size",
            fix=f"train one of {', '.join(DENSITY_NETWORKS)}, or a recipe of its own: "
            "crowdrt recipes",
        )


def check_crop(crop_px: int, preprocessing: Preprocessing) -> None:
    """Refuse crops that the network cannot divide into cells, or that hold no head."""
    stride = preprocessing.stride
    if crop_px % stride or crop_px < MIN_SIDE_PX:
        least = -(-MIN_SIDE_PX // stride)
        nearest = max(round(crop_px / stride), least) * stride
        raise TrainingError(
            f"crop_px={crop_px}: this network learns from crops of at least {MIN_SIDE_PX} px, in "
            f"multiples of {stride}",
            fix=f"use crop_px={nearest}",
        )


def target_border(model: Network, crop_px: int) -> tuple[int, int, int, int]:
    """Return the cells to add around a crop's density map: left, right, top and bottom.

    SANet's map is 7 px larger than its input and begins 3.5 px above and left of it. Nobody is
    annotated out there, so the target is 0: what the network answers there is part of its count.
    The odd cell goes to the right and the bottom, which shifts the target by half a pixel.
    """
    image = torch.zeros(1, model.preprocessing.num_channels, crop_px, crop_px)
    with torch.inference_mode():
        cells = model.eval()(image).shape[-1]
    extra = cells - crop_px // model.density_stride
    assert extra >= 0, f"{type(model).__name__} answers {cells} cells for {crop_px} px"
    before, after = extra // 2, extra - extra // 2
    return before, after, before, after


def shaping_of(config: TrainingConfig, crops: Crops) -> Shaping:
    """Return what a recipe does to its network.

    Args:
        config: the recipe's.
        crops: what layers are rebuilt by, where the recipe rebuilds any.
    """
    if config.pruning is not None:
        return pruned_shaping(config, crops)
    return Shaping(config) if config.quantization is None else QuantizedShaping(config)
