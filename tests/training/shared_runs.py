"""Trains a small network for a few steps, on as many processes as this was started with.

python shared_runs.py OUT [DEVICES]
torchrun --nproc-per-node 2 shared_runs.py OUT
"""

import sys
from fractions import Fraction
from pathlib import Path

from crowdrt.data.synthetic.photographs import generate
from crowdrt.learning import TrainingConfig
from crowdrt.training import loop
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.devices import Devices
from crowdrt.training.loop import train

loop.LOG_EVERY = 1
loop.draw_curves = lambda *_, **__: None
CONFIG = TrainingConfig(steps=6, batch_size=4, accumulate=2, crop_px=64, precision="32-true")


def main(out: Path, devices: int) -> None:
    """Train in `out`."""
    made = generate(out.parent / "crowds", num_images=4, seed=1, size=(96, 96), people=(10, 40))
    data = TrainingSet((SampleGroup("crowds", tuple(made[1:]), 1.0),), tuple(made[:1]))
    task = DensityTask("csrnet", Fraction(1, 16), CONFIG, data)
    places = Devices(number=devices, accelerator="cpu")
    train(task, out, devices=places, save_every=2, validate_every=3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
