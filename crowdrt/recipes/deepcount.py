"""DeepCount's trainings, by the tables of the paper they belong to.

Chen et al., "Deep Density-aware Count Regressor", ECAI 2020, arXiv:1908.03314, section 3.6. Table 7
needs no training of its own: it counts by each branch's map of `deepcount-2`, `-4` or `-5`. What
cannot be had here is ImageNet's VGG-16: the front end begins from scratch, or by `--init` from
weights of your own.

`...-code` is by the published code instead: Adam, batches of 20, sigma 10, no 1/2 in the loss, some
tiles grey. `...-cpu` are the same rows within a CPU's budget, at 1/8 of the width and from scratch.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from crowdrt.contracts import Recipe
from crowdrt.learning import BRANCH_SIZES, GradientFusion, TrainingConfig

# "Around a hundred epochs": of part B's 400 photographs with 4 tiles, 30 crops and their mirrors
# each, 85,000 steps. The rate is called initial, and no more is said: it drops where the code's
# does, after two thirds.
PUBLISHED = TrainingConfig(
    steps=85_000,
    batch_size=32,
    optimizer="sgd",
    learning_rate=1e-4,
    backbone_rate=0.5,
    momentum=0.9,
    weight_decay=1e-5,
    schedule="drop",
    warm_up_steps=0,
    clip_norm=0,
    average=0,
    precision="32-true",
    colours=False,
    sigma_px=5.0,
    batch_norm=False,
    fusion=GradientFusion(),
)
CODE = replace(
    PUBLISHED,
    steps=60_000,
    batch_size=20,
    optimizer="adam",
    sigma_px=10.0,
    fusion=GradientFusion(half=False, grey=0.1),
)
# The paper's loss and tiles; what differs helps a short run from scratch.
ON_A_CPU = replace(
    PUBLISHED,
    steps=700,
    batch_size=8,
    optimizer="adam",
    learning_rate=1e-3,
    backbone_rate=1.0,
    schedule="cosine",
    warm_up_steps=50,
    clip_norm=10.0,
    average=0.98,
    precision="bf16-mixed",
    batch_norm=True,
)
DATA_SETS = {"2": "ShanghaiTech", "4": "UCF-QNRF", "5": "Mall"}
TILE = (384, 512)


def deepcount_recipes() -> Iterator[Recipe]:
    """Yield what Tables 2, 4 and 5 train, and every row of Tables 8 and 9."""
    for suffix, width, config, how in (
        ("", Fraction(1), PUBLISHED, "as published"),
        ("-code", Fraction(1), CODE, "as its code does"),
        ("-cpu", Fraction(1, 8), ON_A_CPU, "on a CPU's budget"),
    ):
        base = Recipe(
            name=f"deepcount-2{suffix}",
            network="deepcount",
            width=width,
            sizes=(TILE,),
            training=config,
        )
        for table, data_set in DATA_SETS.items():
            about = f"DeepCount, Table {table}: {data_set}, {how}"
            yield replace(base, name=f"deepcount-{table}{suffix}", about=about)
        if config is not CODE:
            yield from activations(base, suffix, how)
            yield from ablations(base, suffix, how)


def activations(base: Recipe, suffix: str, how: str) -> Iterator[Recipe]:
    """Yield Table 8: leaky ReLUs, as in `base`, and ReLUs in their place."""
    about = "DeepCount, Table 8: {}, " + how
    leaky = about.format("leaky ReLUs, as in Table 2")
    yield replace(base, name=f"deepcount-8-leaky-relu{suffix}", about=leaky)
    yield replace(
        base,
        name=f"deepcount-8-relu{suffix}",
        network="deepcount-relu",
        about=about.format("ReLUs alone"),
    )


def ablations(base: Recipe, suffix: str, how: str) -> Iterator[Recipe]:
    """Yield Table 9: all branches, and without the first to without all five.

    The paper numbers them from the largest map on; sizes are listed from the smallest.
    """
    for left in range(len(BRANCH_SIZES), -1, -1):
        gone = len(BRANCH_SIZES) - left
        row = {0: "all", 1: "without-1"}.get(gone, f"without-1-{gone}")
        fusion = replace(base.training.fusion or GradientFusion(), branches=BRANCH_SIZES[:left])
        yield replace(
            base,
            name=f"deepcount-9-{row}{suffix}",
            about=f"DeepCount, Table 9: {row.replace('-', ' ', 1)}, {how}",
            training=replace(base.training, fusion=fusion),
        )
