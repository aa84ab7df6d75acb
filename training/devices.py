"""Where a run takes place: one process, or several that share every batch."""

import os
from dataclasses import dataclass

from lightning.fabric import Fabric

from crowdrt.errors import TrainingError
from crowdrt.learning import FloatPrecision


@dataclass(frozen=True, kw_only=True)
class Devices:
    """How many devices, and of which kind; no part of a run's identity."""

    number: int = 1
    accelerator: str = "auto"  # "cpu", "cuda", or whichever is there


def launch(devices: Devices, precision: FloatPrecision, *, partial: bool = False) -> Fabric:
    """Return the fabric of this process; under torchrun it joins the others.

    With more than one device and no torchrun, the other processes are started here, each with
    this process's command line.

    Args:
        devices: how many, and of which kind.
        precision: of the computation.
        partial: some step's losses leave parameters out.

    Raises:
        TrainingError: there are fewer devices, or they cannot compute in that precision.
    """
    number = int(os.environ.get("LOCAL_WORLD_SIZE", devices.number))
    ddp = "ddp_find_unused_parameters_true" if partial else "ddp"
    try:
        fabric = Fabric(
            accelerator=devices.accelerator,
            devices=number,
            strategy=ddp if world_size(number) > 1 else "auto",
            num_nodes=world_size(number) // number,
            precision=precision,
        )
        if world_size(number) > 1:
            fabric.launch()
    except (RuntimeError, ValueError) as error:  # MisconfigurationException is a ValueError
        raise TrainingError(
            f"cannot train on {number} {devices.accelerator} device(s) in {precision}: {error}",
            fix="see what is there: crowdrt doctor; or train on the CPU: --accelerator cpu",
        ) from error
    return fabric


def world_size(number: int) -> int:
    """Return how many processes take part: torchrun says so, else it is the number of devices."""
    return int(os.environ.get("WORLD_SIZE", number))
