"""The state of a run in one file that holds no code: tensors, and a line of JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from crowdrt.errors import TrainingError
from crowdrt.manifest import write_whole


def save_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: Optimizer, facts: dict[str, Any]
) -> None:
    """Write modules, optimizer moments and facts (step, best error ...) whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        for name, value in module.state_dict().items():
            tensors[f"{prefix}/{name}"] = value.detach().contiguous().clone()
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            # contiguous: the moments follow the weights' channels-last layout
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value).contiguous().clone()
    with write_whole(path) as temporary:
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: Optimizer, *, key: str
) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote and return its facts.

    Returns:
        The facts, or None when the checkpoint's own `key` is another one: another run's state.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {})["facts"])
            if facts.get("key") != key:
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for prefix, module in modules.items():
            module.load_state_dict(with_prefix(tensors, prefix))
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise TrainingError(
            f"{path} cannot be resumed: {error}",
            fix="delete it to start over, or name another folder with --out",
        ) from error
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in with_prefix(tensors, "optimizer").items():
        index, name = key.split("/", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return facts


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors named `prefix/...`, without the prefix."""
    start = prefix + "/"
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
