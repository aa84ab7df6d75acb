"""Counting networks, trained as their papers and published codes do, and within a CPU's budget.

Published runs begin with ImageNet's VGG-16 or VGG-19, except for SANet and MCNN; that is
`crowdrt train RECIPE --init vgg16.pth`. No such weights are shipped here, and at the published
rates CSRNet, BL and CAN learn little from nothing. Steps are the published epochs of the 300
training photographs of ShanghaiTech A; Part B has 400.

`...-cpu` are the same losses (but MCNN's) from scratch on narrow networks, with batch normalisation
that is folded, AdamW, and crops at random scales. A step took 0.15 to 0.35 s of a core of a shared
Xeon server, so 1200 are some minutes; SANet, whose map has a cell per pixel, took 1.4 s.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from crowdrt.contracts import Recipe
from crowdrt.learning import CountLoss, TrainingConfig

PHOTOGRAPHS = 300  # of ShanghaiTech A's training split
PUBLISHED = TrainingConfig(
    batch_size=1,
    optimizer="adam",
    weight_decay=0,
    schedule="constant",
    warm_up_steps=0,
    clip_norm=0,
    average=0,
    precision="32-true",
    initial="gaussian",
    loss="squared",
    crops="ratio",
    crop_ratio=(0.5, 0.5),
    colours=False,
    batch_norm=False,
)
ON_A_CPU = TrainingConfig(steps=1200, batch_size=8, crop_px=192, initial="gaussian")
# By squared errors MCNN's validation MAE on ShanghaiTech A was 318 after 400 steps of 4 crops, the
# mean count's being about 300; by blocks it was 249.
CPU_LOSSES: dict[str, CountLoss] = {"mcnn": "blocks"}
# On its way up to 1e-3 the ReLU behind SANet's map died after some 110 steps of ShanghaiTech A.
SANET_RATE = 1e-4


def counting_recipes() -> Iterator[Recipe]:
    """Yield every counting network as published, and within a CPU's budget."""
    for make, width in (
        (csrnet, Fraction(1, 8)),
        (can, Fraction(1, 8)),
        (bl, Fraction(1, 8)),
        (sanet, Fraction(1, 4)),
        (mcnn, Fraction(1)),
    ):
        yield (base := make())
        yield replace(
            base,
            name=f"{base.network}-cpu",
            width=width,
            about=f"{base.network}, from scratch within a CPU's budget",
            training=replace(
                ON_A_CPU,
                loss=CPU_LOSSES.get(base.network, base.training.loss),
                posterior=base.training.posterior,
                learning_rate=SANET_RATE if base.network == "sanet" else ON_A_CPU.learning_rate,
            ),
        )


def csrnet() -> Recipe:
    """CSRNet (arXiv:1802.10062) by the code that SKT's teacher was trained with.

    SGD at 1e-7 with momentum 0.95 and weight decay 5e-4; one crop of half of each side; 400 epochs
    of the photographs four times over; not mirrored. The paper says 1e-6, and nine crops of a
    quarter of the area with their mirror images; it leaves batch, decay and epochs open.
    """
    return Recipe(
        name="csrnet-published",
        network="csrnet",
        width=Fraction(1),
        about="CSRNet by its authors' code: squared errors; begin with --init VGG-16",
        training=replace(
            PUBLISHED,
            steps=400 * 4 * PHOTOGRAPHS,
            optimizer="sgd",
            learning_rate=1e-7,
            momentum=0.95,
            weight_decay=5e-4,
            flip=0,
        ),
    )


def can() -> Recipe:
    """CAN (arXiv:1811.10452) by its authors' code.

    Adam at 1e-4, weight decay 5e-4, batches of 26 for 1000 epochs; one crop in five mirrored.
    Departures: the code cuts one of the photograph's four quarters, here it is half of each side
    at any place; and it has photographs of one size, here a batch is cut to its first one's.
    """
    return Recipe(
        name="can-published",
        network="can",
        width=Fraction(1),
        about="CAN by its authors' code: squared errors; begin with --init VGG-16",
        training=replace(
            PUBLISHED,
            steps=1000 * -(-PHOTOGRAPHS // 26),
            batch_size=26,
            learning_rate=1e-4,
            weight_decay=5e-4,
            flip=0.2,
        ),
    )


def bl() -> Recipe:
    """BL (arXiv:1908.03684) by its authors' code, as SKT's teacher: the Bayesian loss.

    Adam at 1e-5, weight decay 1e-4, one crop of 512 px, 1000 epochs, half of the crops mirrored;
    sigma 8 and the paper's background with d = 1.0 of the shorter side. For ShanghaiTech A the
    authors' notes lower the rate to 1e-6 and d to 0.1. Their code for ShanghaiTech also keeps
    heads just outside of a crop; here and in their code for UCF-QNRF only those inside count.
    """
    return Recipe(
        name="bl-published",
        network="bl",
        width=Fraction(1),
        about="BL by its authors' code: the Bayesian loss; begin with --init VGG-19",
        training=replace(
            PUBLISHED,
            steps=1000 * PHOTOGRAPHS,
            learning_rate=1e-5,
            weight_decay=1e-4,
            initial="fan-in",
            loss="bayesian",
            crops="fixed",
            crop_px=512,
        ),
    )


def sanet() -> Recipe:
    """SANet (Cao et al., ECCV 2018) as its paper says: squared errors and local consistency.

    Adam at 1e-5 from Gaussian weights; crops of a quarter of the area at random places, half of
    them mirrored. The paper leaves batch and epochs open: here 1 and, as for BL, 1000. No code
    was published.
    """
    return Recipe(
        name="sanet-published",
        network="sanet",
        width=Fraction(1),
        about="SANet as its paper says: squared errors and local consistency",
        training=replace(PUBLISHED, steps=1000 * PHOTOGRAPHS, learning_rate=1e-5, loss="sanet"),
    )


def mcnn() -> Recipe:
    """MCNN (Zhang et al., CVPR 2016) by the PyTorch code that most comparisons use.

    That is svishwa/crowdcount-mcnn: Adam at 1e-5 from Gaussian weights, batches of one, 2000
    epochs of nine crops of a quarter of the area from each photograph, drawn once; here every
    step draws anew. The paper trains the three columns alone before all together, by SGD at a
    rate that it does not say.
    """
    return Recipe(
        name="mcnn-published",
        network="mcnn",
        width=Fraction(1),
        about="MCNN by a widely used code: squared errors",
        training=replace(PUBLISHED, steps=2000 * 9 * PHOTOGRAPHS, learning_rate=1e-5, flip=0),
    )
