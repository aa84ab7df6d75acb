"""One network being trained: its modules, its optimiser, its devices and where it stands."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.models.network import Network
from crowdrt.training.batch_norm import share_statistics
from crowdrt.training.devices import Devices, launch, world_size
from crowdrt.training.schedules import build_optimizer, learning_rate, set_rate
from crowdrt.training.task import Task

Parameters = tuple[Tensor, ...] | list[Tensor]
ONE_DEVICE = Devices()

for library in ("lightning.fabric", "lightning.pytorch"):
    logging.getLogger(library).setLevel(logging.WARNING)  # they announce their settings


class Run:
    """A task on its devices.

    Every process holds one, with the same weights and another share of every batch.

    Args:
        task: what is trained.
        devices: on how many processes, and of which kind.

    Raises:
        TrainingError: a batch cannot be shared equally.
    """

    def __init__(self, task: Task[Any], devices: Devices = ONE_DEVICE) -> None:
        self.task, self.config = task, task.config
        check_shares(task.config, world_size(devices.number))
        self.fabric = launch(devices, task.config.precision, partial=task.partial)
        torch.manual_seed(task.config.seed)
        model: nn.Module = task.build()
        groups = task.parameter_groups(model)  # type: ignore[arg-type]
        if self.fabric.world_size > 1:
            share_statistics(model)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = build_optimizer(groups, task.config)
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        self.model.mark_forward_method("forward_train")
        self.average = averaged(self.module, task.config)
        self.parts = parts_of(task.config, self.fabric)
        self.step = 0
        self.best = math.inf
        self.seconds = 0.0  # that earlier processes spent on it
        self.began = time.monotonic()

    @property
    def spent(self) -> float:
        """The seconds of wall clock so far, over every process that went on with it."""
        return self.seconds + time.monotonic() - self.began

    @property
    def module(self) -> nn.Module:
        """The network itself, without what shares it between devices."""
        module: nn.Module = self.model.module
        return module

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.fabric.is_global_zero

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds."""
        average = {} if self.average is None else {"average": self.average}
        return {"model": self.module, **average}

    def wait(self) -> None:
        """Wait for the other processes.

        Raises:
            TrainingError: one of them has ended, and has said why.
        """
        try:
            self.fabric.barrier()
        except RuntimeError as error:
            raise TrainingError(
                f"process {self.fabric.global_rank} ends: another one of this training has ended",
                fix="mend what that one says, and train again: it goes on where it stood",
            ) from error

    def batches(self, step: int) -> list[Any]:
        """Return this process's parts of a step's batch."""
        return [self.task.batch(step, members) for members in self.parts]

    def learn(self, batches: Sequence[Any]) -> dict[str, float]:
        """Take one optimisation step and return its terms, and their sum as "loss".

        Raises:
            TrainingError: training diverged; the weights are as they were.
        """
        set_rate(self.optimizer, learning_rate(self.step, self.config))
        self.model.train()
        self.task.before_step(self.module, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.descend(batches)
        self.check_finite("loss", terms["loss"])
        self.check_gradient()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.module)
        self.step += 1
        return terms

    def descend(self, batches: Sequence[Any]) -> dict[str, float]:
        """Add up the gradient of all parts and return the terms, means over all processes."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with self.fabric.no_backward_sync(self.model, enabled=number < len(batches)):
                found = self.task.losses(self.model, batch, device=self.fabric.device)
                loss = torch.stack(list(found.values())).sum()
                self.fabric.backward(loss / len(batches))
            for name, value in {"loss": loss, **found}.items():
                sums[name] = sums.get(name, torch.zeros(())) + value.detach().float().cpu()
        means = torch.stack(list(sums.values())) / len(batches)
        shared = self.fabric.all_reduce(means.to(self.fabric.device), reduce_op="mean")
        assert isinstance(shared, Tensor)
        return dict(zip(sums, shared.tolist(), strict=True))

    def check_gradient(self) -> None:
        """Clip the gradient as the recipe says; refuse one that is not finite."""
        limit = self.config.clip_norm or math.inf
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False
        )
        if self.config.precision != "16-mixed":  # whose scale is found by overflowing
            self.check_finite("gradient", float(norm))  # type: ignore[arg-type]

    def check_finite(self, what: str, value: float) -> None:
        """Stop before NaN or infinity reaches the weights or a checkpoint."""
        if not math.isfinite(value):
            raise TrainingError(
                f"step {self.step}: the {what} is {value}; training diverged",
                fix="lower training.learning_rate in the recipe, "
                f"{self.config.learning_rate:g} here, and train again",
            )

    def shipped(self) -> Network:
        """Return what ships, on the CPU: the averaged network where there is an average."""
        source = self.module if self.average is None else self.average.module
        state = {name: tensor.detach().cpu() for name, tensor in source.state_dict().items()}
        return self.task.shipped(state)

    def validate(self) -> Mapping[str, float]:
        """Return the errors of what ships."""
        model = self.shipped().to(self.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.task.validate(model, self.fabric.device)


def averaged(module: nn.Module, config: TrainingConfig) -> AveragedModel | None:
    """Return the network whose weights are the moving average, if the recipe wants one."""
    if not config.average:
        return None

    def average(old: Parameters, new: Parameters, seen: Tensor | int) -> None:
        """Forget the weights it began with soon: a short run's average would be made of them."""
        decay = min(config.average, (1 + int(seen)) / (10 + int(seen)))
        get_ema_multi_avg_fn(decay)(old, new, seen)  # type: ignore[no-untyped-call]

    return AveragedModel(module, multi_avg_fn=average, use_buffers=True)


def parts_of(config: TrainingConfig, fabric: Fabric) -> list[range]:
    """Return which members of a batch this process takes, part by part.

    A part of all processes together is the part that one process would take, so that batch
    normalisation sees the same members.
    """
    size = check_shares(config, fabric.world_size)
    starts = range(fabric.global_rank * size, config.batch_size, fabric.world_size * size)
    return [range(start, start + size) for start in starts]


def check_shares(config: TrainingConfig, num_processes: int) -> int:
    """Return the members of one part; refuse a batch that cannot be shared equally.

    Before any other process is started: one that waited for the others would wait for ever.
    """
    shares = num_processes * config.accumulate
    if config.batch_size % shares:
        raise TrainingError(
            f"a batch of {config.batch_size} cannot be shared by {num_processes} devices in "
            f"{config.accumulate} parts each",
            fix=f"use a batch_size that is a multiple of {shares}, or fewer --devices",
        )
    return config.batch_size // shares
