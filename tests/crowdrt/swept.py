"""What the tests of a sweep share: tiny recipes, a published layout, and sweeps in processes.

    python swept.py DATA SWEEP MARK SECONDS RECIPE...

sweeps the named tiny recipes over seeds 0 and 1 with trainings that only pretend, for as many
seconds each, and writes a line per row to the file MARK as it begins.
"""

import shutil
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import scipy.io

from crowdrt.contracts import Artifact, Recipe
from crowdrt.data.synthetic.photographs import generate
from crowdrt.learning import TrainingConfig, Transfer
from crowdrt.manifest import write_manifest, write_whole

TINY = Recipe(
    name="tiny",
    network="csrnet",
    width=Fraction(1, 16),
    training=TrainingConfig(steps=2, batch_size=2, crop_px=64, learning_rate=1e-4),
)
FASTER = replace(TINY, name="faster", training=replace(TINY.training, learning_rate=1e-3))
UNTAUGHT = replace(  # whose teacher does not ship: it fails
    TINY,
    name="untaught",
    training=replace(TINY.training, transfer=Transfer(teacher="skt-3-none", mean=True)),
)
RECIPES = {recipe.name: recipe for recipe in (TINY, FASTER, UNTAUGHT)}


def part_a(root: Path, *, seed: int = 0) -> Path:
    """Write three generated photographs per split in the layout of ShanghaiTech Part A."""
    part = root / "part_A"
    for number, split in enumerate(("train_data", "test_data")):
        images, truth = part / split / "images", part / split / "ground-truth"
        for folder in (images, truth):
            folder.mkdir(parents=True)
        made = generate(
            root / split, num_images=3, seed=2 * seed + number, size=(96, 96), people=(30, 46)
        )
        for k, sample in enumerate(made, start=1):
            shutil.move(sample.image, images / f"IMG_{k}.jpg")
            cell = np.empty((1, 1), object)
            cell[0, 0] = {"location": sample.heads.astype(float), "number": len(sample.heads)}
            scipy.io.savemat(truth / f"GT_IMG_{k}.mat", {"image_info": cell})
        shutil.rmtree(root / split)
    return part


def main(data: str, sweep: str, mark: str, seconds: str, *names: str) -> None:
    """Sweep with trainings that write a file and learn nothing.

    What is tested is who does which row; without PyTorch a process is there at once.
    """
    from crowdrt.pipeline.comparison import sweeping

    def pretended(recipe: Recipe, *, out: Path, **_: object) -> Artifact:
        with Path(mark).open("a") as file:
            file.write(f"{recipe.name} {recipe.training.seed}\n")
        time.sleep(float(seconds))
        weights = out / "weights.safetensors"
        with write_whole(weights) as temporary:
            temporary.write_text(recipe.name)
        return write_manifest(weights, kind="weights", made_from={})

    def judged(recipe: Recipe, artifact: Artifact, **_: object) -> list[dict[str, object]]:
        seed, sha256 = recipe.training.seed, artifact.sha256
        return [{"recipe": recipe.name, "seed": seed, "test": "A", "weights_sha256": sha256}]

    sweeping.POLL_S = 0.02
    sweeping.train_stage, sweeping.record_stage = pretended, judged
    options = sweeping.SweepOptions(data=Path(data), seeds=(0, 1))
    sweeping.sweep_stage([RECIPES[name] for name in names], Path(sweep), options)
    assert not {"torch", "lightning"} & set(sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])
