"""DSLA's trainings, by the tables of the paper they belong to.

Wang, Li, Xue and Huo, "Dual Subnet Label Assignment for End-to-End Fully Convolutional Pedestrian
Detection in Crowd Scenes", section 4.3: AdamW at 1e-3 on CrowdHuman and 4e-4 on COCO, 36 epochs;
batches of 16 and weight decay 1e-4 "consistent with OneNet". The text names neither a schedule nor
the weights of its losses: the rate drops once, after 27 epochs. What cannot be had here is
ImageNet's ResNet-50: all begins from scratch, or by `--init` from weights of your own.

Photographs are thought of with a short side of 800 px, the papers' test size, and learned from in
square crops of them at 0.6 to 1.5 times that, where OneNet resizes to 640 to 896 px.

`dsla-4-sla-fs` is also the row K = 6 of Table 6 and Tmax 0.6, Tmin 0.4 of Table 7, whose other Tmax
cannot be read in the paper's text. Table 8 is of COCO's 80 categories: here its people alone are
learned, which is no row of that table.

`...-cpu` are Table 4's rows within a CPU's budget, at 1/8 of the width, on generated pedestrians
and whatever `--data` names.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from crowdrt.contracts import Recipe
from crowdrt.learning import Assignment, TrainingConfig

EPOCHS, BATCH = 36, 16
CROWDHUMAN_IMAGES, COCO_IMAGES = 15_000, 118_287  # of the training splits
SIZE = (800, 1280)

PUBLISHED = TrainingConfig(
    steps=EPOCHS * CROWDHUMAN_IMAGES // BATCH,
    batch_size=BATCH,
    learning_rate=1e-3,
    weight_decay=1e-4,
    schedule="drop",
    drop_at=27 / 36,
    warm_up_steps=1000,
    average=0,
    crop_px=768,
    short_side_px=800,
    batch_norm=False,
    assignment=Assignment(),
)
COCO = replace(PUBLISHED, steps=EPOCHS * COCO_IMAGES // BATCH, learning_rate=4e-4)
ON_A_CPU = replace(
    PUBLISHED,
    steps=600,
    batch_size=4,
    schedule="cosine",
    warm_up_steps=100,
    average=0.99,
    precision="32-true",
    crop_px=192,
    short_side_px=256,
    num_synthetic=160,
)

# rows of Tables 4 and 8: the network, whether it has the SLA branch, and what people call it
ROWS = {
    "onenet": ("onenet", False, "OneNet, the baseline"),
    "fs": ("dsla", False, "with Feature Shuffle"),
    "sla": ("onenet", True, "with the SLA branch"),
    "sla-fs": ("dsla", True, "with both"),
}


def dsla_recipes() -> Iterator[Recipe]:
    """Yield every row of Tables 4, 6, 7 and 8, and Table 4 on a CPU's budget."""
    base = Recipe(name="dsla", network="dsla", width=Fraction(1), sizes=(SIZE,), training=PUBLISHED)
    yield from ablation(base, "dsla-4", "DSLA, Table 4: {}")
    for number in range(10, 3, -1):
        about = f"DSLA, Table 6: {number} soft anchors"
        yield assigned(base, f"dsla-6-k{number}", about, Assignment(num_soft=number))
    for lowest in (0.4, 0.3, 0.2, 0.1):
        about = f"DSLA, Table 7: soft targets from 0.6 to {lowest}"
        assignment = Assignment(soft_min=lowest)
        yield assigned(base, f"dsla-7-max-0.6-min-{lowest}", about, assignment)
    yield from ablation(replace(base, training=COCO), "dsla-8", "DSLA, as Table 8: {}, on people")
    small = replace(base, width=Fraction(1, 8), sizes=((256, 448),), training=ON_A_CPU)
    yield from ablation(small, "dsla-4", "DSLA, Table 4: {}, on a CPU's budget", suffix="-cpu")


def ablation(base: Recipe, table: str, about: str, *, suffix: str = "") -> Iterator[Recipe]:
    """Yield OneNet, and what each half of DSLA adds to it."""
    for row, (network, soft, said) in ROWS.items():
        changed = replace(base, network=network)
        assignment = Assignment(soft=soft)
        yield assigned(changed, f"{table}-{row}{suffix}", about.format(said), assignment)


def assigned(base: Recipe, name: str, about: str, assignment: Assignment) -> Recipe:
    """Return a recipe that differs from `base` in its assignment."""
    training = replace(base.training, assignment=assignment)
    return replace(base, name=name, about=about, training=training)
