"""The training loop: crops in, the best network by validation error out, resumable.

A plain first version for one process. The batch of a step depends on the seed and the step
alone, and a checkpoint holds everything else, so a killed run goes on as if nothing happened.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.progress import Progress, TaskID
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crowdrt.console import progress_bar, say
from crowdrt.contracts import DENSITY, MIN_SIDE_PX, Artifact, Preprocessing, Sample
from crowdrt.data.images import opening
from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.manifest import (
    fingerprint,
    manifest_path,
    reusable,
    sha256_file,
    write_manifest,
    write_whole,
)
from crowdrt.models import DENSITY_NETWORKS, build_model
from crowdrt.models.network import Network, Normalise, fold_blocks
from crowdrt.models.weights import save_weights
from crowdrt.training.batch_norm import AddedNorm, add_batch_norm
from crowdrt.training.checkpoint import load_checkpoint, save_checkpoint
from crowdrt.training.counting.crops import Batch, CropSource, SampleGroup, annotated_heads
from crowdrt.training.counting.evaluate import CountErrors, count_errors
from crowdrt.training.counting.losses import density_loss
from crowdrt.training.metrics import append_line, rewind

EMA_DECAY = 0.998
average_weights = get_ema_multi_avg_fn(EMA_DECAY)  # type: ignore[no-untyped-call]
WARM_UP_STEPS = 200

for library in ("lightning.fabric", "lightning.pytorch"):
    logging.getLogger(library).setLevel(logging.WARNING)  # they announce their settings


@dataclass(frozen=True)
class TrainingSet:
    """Photographs to learn from, by source, and photographs to choose the best network by."""

    groups: tuple[SampleGroup, ...]
    validation: tuple[Sample, ...]


def check_answer(network: str, model: Network) -> None:
    """Refuse a network that answers no density map of whatever image it is given.

    Raises:
        TrainingError: it counts without a map, takes one size only, or detects.
    """
    if model.output_names != (DENSITY,) or model.fixed_size is not None:
        raise TrainingError(
            f"{network} does not learn from density maps of crops, which is all that is trained "
            "here so far",
            fix=f"train one of {', '.join(DENSITY_NETWORKS)}, or import trained weights: "
            f"crowdrt import checkpoint.pth --network {network} -o {network}.safetensors",
        )


class Run:
    """One network being trained: its modules, its optimizer and where it stands."""

    def __init__(self, network: str, width: Fraction, config: TrainingConfig) -> None:
        self.network, self.width, self.config = network, width, config
        torch.manual_seed(config.seed)
        self.fabric = Fabric(accelerator="auto", devices=1, precision="bf16-mixed")
        model = build_model(network, width)
        check_answer(network, model)
        check_crop(config.crop_px, model.preprocessing)
        self.preprocessing = model.preprocessing
        self.normalise = Normalise(model.preprocessing).to(self.fabric.device)
        self.density_stride = model.density_stride
        self.border = target_border(model, config.crop_px)
        if config.batch_norm:
            add_batch_norm(model)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        self.average = AveragedModel(
            self.model.module, multi_avg_fn=average_weights, use_buffers=True
        )
        self.step = 0
        self.best_mae = math.inf

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds."""
        return {"model": self.model.module, "average": self.average}

    def learn(self, batch: Batch) -> float:
        """Take one optimisation step and return its loss.

        Raises:
            TrainingError: training diverged; the weights are as they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        self.model.train()
        images = torch.from_numpy(batch.images).to(self.fabric.device)
        target = functional.pad(torch.from_numpy(batch.density), self.border)
        target = target.to(self.fabric.device)
        pixels = self.normalise(images)
        predicted = self.model(pixels.contiguous(memory_format=torch.channels_last))
        loss = density_loss(predicted.float(), target)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=10.0, error_if_nonfinite=False
        )
        self.check_finite("loss", value := float(loss.detach()))
        self.check_finite("gradient", float(norm))  # type: ignore[arg-type]
        self.optimizer.step()
        self.average.update_parameters(self.model.module)
        self.step += 1
        return value

    def check_finite(self, what: str, value: float) -> None:
        """Stop before NaN or infinity reaches the weights or a checkpoint."""
        if not math.isfinite(value):
            raise TrainingError(
                f"step {self.step}: the {what} is {value}; training diverged",
                fix="lower training.learning_rate in the recipe, "
                f"{self.config.learning_rate:g} here, and train again",
            )

    def shipped(self) -> nn.Module:
        """Return the averaged network as `build_model` makes it, on the CPU.

        The normalisation that training added is folded; what the network has of its own stays.
        """
        model = build_model(self.network, self.width)
        if self.config.batch_norm:
            add_batch_norm(model)
        model.load_state_dict(self.average.module.state_dict())
        return fold_blocks(model, only=AddedNorm).to("cpu")

    def validate(self, samples: Sequence[Sample]) -> CountErrors:
        """Errors of the averaged network."""
        model = self.shipped().to(self.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return count_errors(model, samples, self.preprocessing, device=self.fabric.device)


def check_crop(crop_px: int, preprocessing: Preprocessing) -> None:
    """Refuse crops that the network cannot divide into cells, or that hold no head."""
    stride = preprocessing.stride
    if crop_px % stride or crop_px < MIN_SIDE_PX:
        nearest = max(round(crop_px / stride), math.ceil(MIN_SIDE_PX / stride)) * stride
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


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
    return config.learning_rate * warm * (0.01 + 0.99 * cosine)


def train(
    network: str,
    width: Fraction,
    config: TrainingConfig,
    data: TrainingSet,
    out: Path,
    *,
    save_every: int = 250,
    validate_every: int = 1000,
) -> Artifact:
    """Train a network and leave the best one at `out/weights.safetensors`.

    Args:
        network: what to build.
        width: at which width.
        config: steps, batch, crops, learning rate, seed.
        data: what to learn from, and what to choose the best network by.
        out: folder for the weights, `checkpoint.safetensors` and `metrics.jsonl`.
        save_every: steps between checkpoints; a killed run loses at most these.
        validate_every: steps between validations.

    Raises:
        TrainingError: the configuration or a photograph cannot be trained on, or training
            diverged.
    """
    made_from = {
        "network": network,
        "width": str(width),
        "config": asdict(config),
        "images": images_of(data),
    }
    checkpoint = checkpoint_of(out)
    if done := reusable(out / "weights.safetensors", made_from=made_from):
        return done
    check_validation(data.validation)
    run = Run(network, width, config)
    source = CropSource(data.groups, run.preprocessing, run.density_stride, config)
    if checkpoint.is_file():
        resume(run, checkpoint, key=fingerprint(made_from))
    rewind(out / "metrics.jsonl", run.step)
    clear(out, fresh=run.step == 0)
    with progress_bar() as bar:
        task = bar.add_task("training", total=config.steps, completed=run.step, note="")
        for loss in steps(run, source):
            show(bar, task, run, loss)
            last = run.step == config.steps
            if run.step % validate_every == 0 or last:
                keep_best(run, data.validation, out, loss)
            if run.step % save_every == 0 or last:
                facts = {"step": run.step, "best_mae": run.best_mae, "key": fingerprint(made_from)}
                save_checkpoint(checkpoint, run.modules, run.optimizer, facts)
    return finish(run, out, made_from)


def clear(out: Path, *, fresh: bool) -> None:
    """Remove what killed writes left behind and, for a fresh run, another run's best network."""
    for name in ("checkpoint", "best", "weights", "metrics"):
        for torn in out.glob(f".{name}.*.tmp-*"):
            torn.unlink(missing_ok=True)
    if fresh:
        best_weights(out).unlink(missing_ok=True)


def finish(run: Run, out: Path, made_from: Mapping[str, Any]) -> Artifact:
    """Give the best network its final name. It can be killed anywhere and done again."""
    best, weights, checkpoint = best_weights(out), out / "weights.safetensors", checkpoint_of(out)
    if not best.is_file():
        raise TrainingError(
            f"{best} is gone, and with it the best network of this run",
            fix=f"put it back, or train from the start: rm '{checkpoint}'",
        )
    with write_whole(weights) as temporary:
        temporary.write_bytes(best.read_bytes())
    artifact = write_manifest(
        weights, kind="weights", made_from=made_from, facts={"validation_mae": run.best_mae}
    )
    for leftover in (checkpoint, best, manifest_path(best)):
        leftover.unlink(missing_ok=True)
    return artifact


def best_weights(out: Path) -> Path:
    """Return where the best network so far lies while a run goes on."""
    return out / "best.safetensors"


def checkpoint_of(out: Path) -> Path:
    """Return where a run's state lies while it goes on."""
    return out / "checkpoint.safetensors"


def check_validation(samples: Sequence[Sample]) -> None:
    """Refuse what the best network cannot be chosen by."""
    if not samples:
        raise TrainingError(
            "there is no annotated photograph to choose the best network by",
            fix="give TrainingSet at least one for validation",
        )
    for sample in samples:
        annotated_heads(sample)


def steps(run: Run, source: CropSource) -> Iterator[float]:
    """Learn step by step; the next batch is cut while this one is learned."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(source.batch, run.step)
        while run.step < run.config.steps:
            batch = coming.result()
            coming = pool.submit(source.batch, run.step + 1)
            yield run.learn(batch)


def resume(run: Run, checkpoint: Path, *, key: str) -> None:
    """Go on where a killed run stood, if it was the same run; otherwise start over."""
    facts = load_checkpoint(checkpoint, run.modules, run.optimizer, key=key)
    if facts is None:
        say(f"{checkpoint} is of another recipe or other images: starting from step 0")
        return
    run.step, run.best_mae = facts["step"], facts["best_mae"]
    say(f"resuming at step {run.step}")


def keep_best(run: Run, validation: Sequence[Sample], out: Path, loss: float) -> None:
    """Validate, log one line, and keep the weights when they are the best so far."""
    errors = run.validate(validation)
    run.check_finite("validation error", errors.mae)
    facts: dict[str, Any] = {"step": run.step, "loss": loss, **asdict(errors)}
    append_line(out / "metrics.jsonl", facts | {"time": time.time()})
    best = best_weights(out)
    say(f"step {run.step}: validation MAE {errors.mae:.2f}, bias {errors.bias:+.2f}")
    if errors.mae < run.best_mae or not best.is_file():
        run.best_mae = errors.mae
        save_weights(run.shipped(), best, network=run.network, width=run.width, facts=facts)


def show(bar: Progress, task: TaskID, run: Run, loss: float) -> None:
    """Update the progress line."""
    note = f"loss {loss:.2f}" + ("" if math.isinf(run.best_mae) else f", MAE {run.best_mae:.1f}")
    bar.update(task, completed=run.step, note=note)


def images_of(data: TrainingSet) -> dict[str, Any]:
    """Name the photographs and what is in them: another set is never taken for this one."""
    return {
        "groups": {
            f"{group.name} x{group.share:g}": [label(sample) for sample in group.samples]
            for group in data.groups
        },
        "validation": [label(sample) for sample in data.validation],
    }


def label(sample: Sample) -> str:
    """Return a photograph's name, count and content, with nothing of the machine's paths.

    Hashing both parts of ShanghaiTech takes about a second.
    """
    heads = "" if sample.heads is None else sample.heads.tobytes().hex()
    with opening(sample.image):
        content = fingerprint({"image": sha256_file(sample.image), "heads": heads})
    return f"{sample.image.name}:{sample.annotated}:{content[:16]}"
