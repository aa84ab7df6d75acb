"""DeepCount as its paper and as its code train it, and the trainings of its Tables 2, 4, 5, 8, 9.

Chen et al., ECAI 2020, arXiv:1908.03314, section 3.6 and https://github.com/GeorgeChenZJ/deepcount.
Names are those that `crowdrt table deepcount-2` and its like look for. Table 7 needs no training of
its own: it counts by each branch's map of one of these. What cannot be had here is ImageNet's
VGG-16 for the front end: it begins from scratch, or with `--init` from weights of your own.
"""

from dataclasses import replace
from fractions import Fraction

from crowdrt.contracts import Recipe
from crowdrt.learning import BRANCH_SIZES, GradientFusion, TrainingConfig

NUM_BRANCHES = len(BRANCH_SIZES)


def deepcount_2() -> Recipe:
    """DeepCount by its paper, on ShanghaiTech A or B.

    Momentum, batches of 32, L2 on kernels, "around a hundred epochs": of B's 300 to 400 training
    photographs with 4 tiles, 30 crops and their mirrors each, about 85,000 steps. The paper calls
    its rate initial and says no more; it drops where the code's does, after two thirds.
    """
    return Recipe(
        name="deepcount-2",
        network="deepcount",
        width=Fraction(1),
        sizes=((384, 512),),
        training=TrainingConfig(
            steps=85_000,
            batch_size=32,
            optimizer="sgd",
            learning_rate=1e-4,
            backbone_rate=0.5,
            momentum=0.9,
            weight_decay=1e-5,
            schedule="drop",
            warm_up_steps=0,
            clip_norm=0.0,
            average=0.0,
            precision="32-true",
            colours=False,
            sigma_px=5.0,
            batch_norm=False,
            fusion=GradientFusion(),
        ),
    )


def deepcount_code() -> Recipe:
    """DeepCount by its published code: Adam, sigma 10, no 1/2 in the loss, some tiles grey."""
    base = deepcount_2()
    return replace(
        base,
        name="deepcount-code",
        training=replace(
            base.training,
            steps=60_000,
            batch_size=20,
            optimizer="adam",
            sigma_px=10.0,
            fusion=GradientFusion(half=False, grey=0.1),
        ),
    )


def deepcount_eighth() -> Recipe:
    """1/8-DeepCount for a CPU: the paper's loss and tiles, all else for a short run from scratch.

    Departures: Adam at a higher rate that falls as a cosine, batch normalisation while it learns,
    averaged weights, bf16, one rate for all layers.
    """
    base = deepcount_2()
    return replace(
        base,
        name="deepcount-eighth",
        width=Fraction(1, 8),
        training=replace(
            base.training,
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
        ),
    )


def deepcount_4() -> Recipe:
    """The same as `deepcount_2`, on UCF-QNRF."""
    return replace(deepcount_2(), name="deepcount-4")


def deepcount_5() -> Recipe:
    """The same as `deepcount_2`, on Mall."""
    return replace(deepcount_2(), name="deepcount-5")


def deepcount_8_leaky_relu() -> Recipe:
    """Table 8's second row, which is `deepcount_2`."""
    return replace(deepcount_2(), name="deepcount-8-leaky-relu")


def deepcount_8_relu() -> Recipe:
    """Table 8's first row: every activation a ReLU."""
    return replace(deepcount_2(), name="deepcount-8-relu", network="deepcount-relu")


def deepcount_9(num_ablated: int) -> Recipe:
    """Table 9: without so many branches, from the one of the largest map on."""
    if num_ablated == 0:
        name = "deepcount-9-all"
    else:
        name = "deepcount-9-without-1" + (f"-{num_ablated}" if num_ablated > 1 else "")
    left = BRANCH_SIZES[: NUM_BRANCHES - num_ablated]  # coarsest first
    base = deepcount_2()
    training = replace(base.training, fusion=GradientFusion(branches=left))
    return replace(base, name=name, training=training)
