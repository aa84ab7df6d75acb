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
from typing import Any

import numpy as np
import scipy.io

from crowdrt.contracts import Artifact, Recipe
from crowdrt.data.synthetic.photographs import generate
from crowdrt.learning import TrainingConfig, Transfer
from crowdrt.manifest import sha256_file, write_manifest, write_whole

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


RATES = "learning_rate=1e-3,3e-4,1e-4"


def chosen(
    data: Path, *, search: str | None = None, seeds: tuple[int, ...] = (0, 1), **more: Any
) -> Any:
    """Return a sweep's options, with a quarter of the steps for each value that is searched."""
    from crowdrt.pipeline.comparison.searching import parse_search
    from crowdrt.pipeline.comparison.sweeping import SweepOptions

    tried = None if search is None else parse_search(search, 0.25)
    return SweepOptions(data=data, seeds=seeds, search=tried, **more)


def pretending(monkeypatch: Any, *recipes: Recipe) -> list[tuple[Recipe, Any]]:
    """Pretend to train and to test; return a list of what is trained: recipe and options."""
    from crowdrt.pipeline.comparison import searching, sweeping

    done = []

    def train(recipe: Recipe, **kwargs: Any) -> Artifact:
        done.append((recipe, kwargs["options"]))
        return pretended(recipe, **kwargs)

    for module in (sweeping, searching):
        monkeypatch.setattr(module, "train_stage", train)
    monkeypatch.setattr(sweeping, "record_stage", judged)
    monkeypatch.setattr("crowdrt.recipes.RECIPES", recipes)
    return done


def pretended(recipe: Recipe, *, out: Path, options: Any = None, **_: object) -> Artifact:
    """Leave what a training leaves, at once; the nearer to a rate of 3e-4, the better."""
    weights = out / "weights.safetensors"
    with write_whole(weights) as temporary:
        temporary.write_text(f"{recipe.name} {recipe.training}")
    error = 100 + abs(recipe.training.learning_rate - 3e-4)
    facts = {"validation_mae": error, "seconds": 3.0}
    start = options.pretrained if options else None
    made_from = {"pretrained": sha256_file(start) if start else None}
    return write_manifest(weights, kind="weights", made_from=made_from, facts=facts)


def judged(recipe: Recipe, artifact: Artifact, **_: object) -> list[dict[str, object]]:
    """Return a record of a test that nobody took."""
    record = {
        "recipe": recipe.name,
        "network": recipe.network,
        "width": str(recipe.width),
        "test": "ShanghaiTech part_A test",
        "num_images": 3,
        "seed": recipe.training.seed,
        "steps": recipe.training.steps,
        "crops": 4,
        "wall_s": 1.0,
        "num_threads": 1,
        "machine": "none",
        "weights_sha256": artifact.sha256,
        "mae": 10.0,
        "rmse": 12.0,
    }
    return [record]


def main(data: str, sweep: str, mark: str, seconds: str, *names: str) -> None:
    """Sweep with trainings that write a file and learn nothing.

    What is tested is who does which row; without PyTorch a process is there at once.
    """
    from crowdrt.pipeline.comparison import sweeping

    def marked(recipe: Recipe, **kwargs: Any) -> Artifact:
        with Path(mark).open("a") as file:
            file.write(f"{recipe.name} {recipe.training.seed}\n")
        time.sleep(float(seconds))
        return pretended(recipe, **kwargs)

    sweeping.POLL_S = 0.02
    sweeping.train_stage, sweeping.record_stage = marked, judged
    options = sweeping.SweepOptions(data=Path(data), seeds=(0, 1))
    sweeping.sweep_stage([RECIPES[name] for name in names], Path(sweep), options)
    assert not {"torch", "lightning"} & set(sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])
