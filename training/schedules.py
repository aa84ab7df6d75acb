"""Optimisers and learning rates by their names in a recipe."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from crowdrt.learning import TrainingConfig

LAST_RATE = 0.01  # of the first, where a cosine ends
DROP = 0.1


def build_optimizer(groups: Iterable[Mapping[str, Any]], config: TrainingConfig) -> Optimizer:
    """Return the recipe's optimiser.

    Args:
        groups: parameters with their `scale`, which multiplies the rate, and perhaps a weight
            decay of their own.
        config: names the optimiser, its rate, momentum and weight decay.
    """
    rate, decay = config.learning_rate, config.weight_decay
    listed = [dict(group) for group in groups]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(listed, lr=rate, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(listed, lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(listed, lr=rate, weight_decay=decay, momentum=config.momentum)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the rate of a step: a linear warm-up, and then what the recipe's schedule says."""
    warm = min(1.0, (step + 1) / config.warm_up_steps) if config.warm_up_steps else 1.0
    done = min(1.0, step / config.steps)
    match config.schedule:
        case "cosine":
            cosine = 0.5 * (1 + math.cos(math.pi * done))
            factor = LAST_RATE + (1 - LAST_RATE) * cosine
        case "drop":
            factor = DROP if done >= config.drop_at else 1.0
        case "constant":
            factor = 1.0
    return config.learning_rate * warm * factor


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group the rate times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
