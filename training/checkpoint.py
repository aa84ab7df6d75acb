"""The state of a run in one file that holds no code: tensors, and a line of JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from crowdrt.errors import TrainingError
from crowdrt.manifest import write_whole

# RuntimeError: tensors that do not fit the module; the last three: JSON that says something else.
UNREADABLE = (
    *(SafetensorError, OSError, ValueError, RuntimeError),
    *(TypeError, LookupError, AttributeError),
)


def save_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: Optimizer, facts: dict[str, Any]
) -> None:
    """Write modules, optimizer moments and facts whole or not at all.

    Args:
        path: a .safetensors file.
        modules: by the name under which `load_checkpoint` finds them again.
        optimizer: its moments are kept, its options are not.
        facts: `key`, what the run is made from; `step`; `best`. Parameters that have moments are
            added where not all do: some are not learned from the start.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        for name, value in module.state_dict().items():
            tensors[f"{prefix}/{name}"] = value.detach().contiguous().clone()
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            # contiguous: the moments follow the weights' channels-last layout
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value).contiguous().clone()
    if len(moved := optimizer.state_dict()["state"]) < len(indices_of(optimizer)):
        facts = facts | {"moved": sorted(moved)}
    # save_file would report a full disk as an error of its own, not as OSError
    content = save(tensors, metadata={"facts": json.dumps(facts)})
    with write_whole(path) as temporary:
        temporary.write_bytes(content)


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        restored = facts | {"step": int(facts["step"]), "best": float(facts["best"])}
        for prefix, module in modules.items():
            module.load_state_dict(with_prefix(tensors, prefix))
        restore_moments(optimizer, with_prefix(tensors, "optimizer"), facts.get("moved"))
    except UNREADABLE as error:
        raise TrainingError(
            f"{path} cannot be resumed: {error}",
            fix=f"start over: rm '{path}', or name another folder with --out",
        ) from error
    return restored


def restore_moments(
    optimizer: Optimizer, tensors: dict[str, Tensor], moved: list[int] | None
) -> None:
    """Give every parameter its moments back.

    Args:
        optimizer: of the same parameters.
        tensors: named `index/moment`.
        moved: the parameters that have moments; all if None.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        moments.setdefault(int(index), {})[name] = value
    state = optimizer.state_dict()
    known = indices_of(optimizer) if moved is None else set(moved)
    if moments and set(moments) != known:
        raise ValueError(f"moments of {len(moments)} parameters, not of {len(known)}")
    optimizer.load_state_dict(state | {"state": moments})


def indices_of(optimizer: Optimizer) -> set[int]:
    """Return the numbers that an optimiser gives its parameters."""
    groups = optimizer.state_dict()["param_groups"]
    return {index for group in groups for index in group["params"]}


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors named `prefix/...`, without the prefix."""
    start = prefix + "/"
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
