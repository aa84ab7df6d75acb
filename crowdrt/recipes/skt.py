"""SKT's students, by the tables of the paper they belong to.

Liu et al., "Efficient Crowd Counting via Structured Knowledge Transfer", ACM MM 2020,
arXiv:2003.10120. `skt-3-...` are the rows of Table 3 (what is transferred) and `skt-4-...` of
Table 4 (which ground truth), at 1/4-CSRNet and the settings of the authors' code: Adam at 1e-4,
weight decay 5e-4, batches of one crop, 1000 epochs of 300 photographs repeated four times, from
scratch.

`...-cpu` are the same rows within a CPU's budget, at 1/8-CSRNet and from scratch: batches, batch
normalisation, the loss of the shipped student, and transfers as means over locations, so that the
error of the map is not drowned. Both rows of a comparison differ in the transfer alone.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from crowdrt.contracts import Recipe
from crowdrt.learning import TrainingConfig, Transfer
from crowdrt.recipes import counting
from crowdrt.recipes.students import quantized_as_shipped

PUBLISHED = replace(
    counting.PUBLISHED,
    steps=1000 * 4 * counting.PHOTOGRAPHS,
    learning_rate=1e-4,
    weight_decay=5e-4,
    initial="fan-out",
    crop_ratio=(0.5, 1.0),
    flip=0.2,
)
# Convolutions that begin near nobody: from "fan-in" weights, all else equal, seed 0 of Part A ended
# at MAE 279 and not at 169 (docs/training.md).
ON_A_CPU = TrainingConfig(steps=600, batch_size=4, crop_px=320, initial="gaussian")
CODE = Transfer(
    teacher="csrnet-published",
    taps="code",
    adapter_relu=True,
    normalise=True,
    with_density=True,
    intra_weight=0.5,
    inter_weight=0.5,
)
BY_MEANS = Transfer(
    teacher="csrnet-quarter", taps="code", adapter_relu=True, normalise=True, mean=True
)

# rows of Table 3: what is transferred between the layers; the map's loss is the same in all
TRANSFERS: dict[str, dict[str, str | None]] = {
    "l2": {"intra": "l2", "inter": None},
    "cosine": {"intra": "cosine", "inter": None},
    "sparse-fsp": {"intra": None, "inter": "sparse"},
    "dense-fsp": {"intra": None, "inter": "dense"},
    "l2-dense-fsp": {"intra": "l2", "inter": "dense"},
    "cosine-dense-fsp": {"intra": "cosine", "inter": "dense"},
}
GROUND_TRUTHS = {"hard": "hard", "soft": "soft", "hard-soft": "both"}


def skt_recipes() -> Iterator[Recipe]:
    """Yield every row of Tables 3, 4 and 6, as published and on a CPU's budget.

    Table 2 is `skt-3-none` and `skt-3-cosine-dense-fsp` at other widths: `--width 1/2`.
    """
    yield from other_networks()
    for suffix, width, config, transfer in (
        ("", Fraction(1, 4), PUBLISHED, CODE),
        ("-cpu", Fraction(1, 8), ON_A_CPU, BY_MEANS),
    ):
        base = Recipe(
            name=f"skt-3-none{suffix}",
            network="csrnet",
            width=width,
            about=f"SKT without transfer, {BUDGETS[suffix]}",
            training=config,
        )
        if suffix:  # quantized alike, so that a comparison in INT8 is one of trainings
            base = quantized_as_shipped(base)
        yield base
        for name, changes in TRANSFERS.items():
            changed = replace(transfer, **changes)  # type: ignore[arg-type]
            about = f"SKT, Table 3: {name.replace('-', ' ')}, {BUDGETS[suffix]}"
            yield taught(base, f"skt-3-{name}{suffix}", changed, about)
        for name, truth in GROUND_TRUTHS.items():
            changed = replace(transfer, ground_truth=truth)  # type: ignore[arg-type]
            about = f"SKT, Table 4: {name.replace('-', ' and ')} ground truth, {BUDGETS[suffix]}"
            yield taught(base, f"skt-4-{name}{suffix}", changed, about)


BUDGETS = {"": "as published", "-cpu": "on a CPU's budget"}


def other_networks() -> Iterator[Recipe]:
    """Yield the rows of Table 6 that are not Table 3's: teachers, and students of BL and SANet.

    A student has its teacher's loss and optimiser, "the same transfer configuration" and no other
    word of the paper. Tables 7 and 9 are the same recipes on other photographs.
    """
    bases = {recipe.name: recipe for recipe in counting.counting_recipes()}
    for suffix, teachers, student in (
        ("", "-published", Fraction(1, 4)),
        ("-cpu", "-cpu", Fraction(1, 16)),
    ):
        transfer = BY_MEANS if suffix else CODE
        for network in ("csrnet", "bl", "sanet"):
            base = bases[f"{network}{teachers}"]
            about = f"SKT, Table 6: {network}, {BUDGETS[suffix]}"
            yield replace(base, name=f"skt-6-{network}{suffix}", about=f"{about}: the teacher")
            if network == "csrnet":
                continue
            none = replace(
                base,
                name=f"skt-6-{network}-none{suffix}",
                width=student,
                about=f"{about}: the student without transfer",
            )
            yield none
            changed = replace(transfer, teacher=f"{network}{teachers}")
            yield taught(none, f"skt-6-{network}-transfer{suffix}", changed, f"{about}: transfer")


def taught(base: Recipe, name: str, transfer: Transfer, about: str) -> Recipe:
    """Return a recipe that differs from `base` in its teacher alone."""
    training = replace(base.training, transfer=transfer)
    return replace(base, name=name, about=about, training=training)
