"""Who stands in a synthetic crowd: colours, clothes, hair, hats and poses."""

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Self, TypeVar

import numpy as np

Colour = tuple[int, int, int]
T = TypeVar("T")

SKIN: tuple[Colour, ...] = (
    (236, 198, 172),
    (224, 178, 146),
    (205, 156, 122),
    (172, 122, 90),
    (122, 84, 62),
    (84, 58, 46),
)
HAIR: tuple[Colour, ...] = (
    (22, 19, 18),
    (38, 29, 24),
    (70, 48, 34),
    (112, 80, 50),
    (178, 142, 92),
    (150, 148, 146),
)
MUTED: tuple[Colour, ...] = (
    (26, 26, 29),
    (54, 55, 60),
    (30, 38, 62),
    (66, 86, 122),
    (128, 150, 180),
    (233, 233, 231),
    (214, 210, 200),
    (146, 147, 150),
    (186, 168, 140),
    (116, 100, 76),
    (84, 60, 46),
    (104, 38, 44),
    (82, 88, 62),
    (190, 150, 156),
    (62, 104, 110),
    (178, 198, 214),
)
BRIGHT: tuple[Colour, ...] = (
    (196, 38, 40),
    (232, 196, 52),
    (58, 138, 74),
    (222, 112, 40),
    (40, 84, 176),
    (216, 92, 140),
    (66, 176, 190),
)
TROUSERS: tuple[Colour, ...] = (
    (28, 29, 34),
    (44, 56, 84),
    (74, 96, 134),
    (58, 56, 56),
    (120, 104, 80),
    (176, 160, 132),
    (210, 208, 204),
)


COMMON = (2.5, 2, 2, 1, 1, 3, 1.5, 1.5, 1, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 1.2)  # of MUTED
PATTERNS = {"plain": 46, "stripes": 10, "check": 8, "print": 14, "open": 14, "backpack": 8}
HAIR_STYLES = {"short": 56, "long": 24, "bald": 5, "tied": 15}
LEGS = {"trousers": 72, "shorts": 14, "skirt": 14}


@dataclass(frozen=True, kw_only=True)
class Wardrobe:
    """What the people of one photograph have in common."""

    skin: dict[Colour, float]  # colours with their weights
    hair: dict[Colour, float]
    clothes: dict[Colour, float]
    hats: float  # share of people with something on the head
    raised: float  # share of arms that are up
    carried: float  # share of people with an umbrella or a placard
    facing: float  # share of people who look at the camera
    light: tuple[float, float]  # where the light comes from: x, -1 to 1, and its strength 0 to 1

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Choose a crowd: summer or winter, fans in one colour, a demonstration ..."""
        muted = rng.dirichlet(0.5 * np.asarray(COMMON)) + 0.01
        bright = rng.uniform(0.03, 0.3) * rng.dirichlet(np.full(len(BRIGHT), 0.6))
        return cls(
            skin=dict(zip(SKIN, rng.dirichlet((5, 4, 2, 1, 0.6, 0.4)).tolist(), strict=True)),
            hair=dict(zip(HAIR, rng.dirichlet((6, 4, 2, 0.7, 0.4, 0.4)).tolist(), strict=True)),
            clothes=dict(zip(MUTED + BRIGHT, [*muted.tolist(), *bright.tolist()], strict=True)),
            hats=float(rng.uniform(0.03, 0.25)),
            raised=choose(rng, {0.01: 5, 0.03: 3, 0.12: 2}),
            carried=choose(rng, {0.0: 6, 0.01: 3, 0.06: 1}),
            facing=float(rng.uniform(0.1, 0.75)),
            light=(float(rng.uniform(-1, 1)), float(rng.uniform(0.3, 1.0))),
        )


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything about one person that does not depend on the camera."""

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    accent: Colour
    view: str  # front, back, side (facing right)
    hair_style: str
    hat: str  # none, cap, brim, beanie
    pattern: str
    sleeves: str  # long, short
    legs: str
    arms: tuple[str, str]  # down, bent, up, out
    carries: str  # nothing, bag, umbrella, placard
    shoulder: float  # half the width of the shoulders, in heads
    lean: float  # heads to the right for each head down

    @classmethod
    def draw(cls, rng: np.random.Generator, wardrobe: Wardrobe) -> Self:
        """Choose a person."""
        front, up, hats = wardrobe.facing, wardrobe.raised, wardrobe.hats
        view = choose(rng, {"front": 0.75 * front, "back": 0.75 * (1 - front), "side": 0.25})
        arms = {"down": 0.55, "bent": 0.38, "up": up, "out": 0.07}
        props = {"nothing": 0.8, "bag": 0.2}
        props |= {"umbrella": wardrobe.carried, "placard": wardrobe.carried}
        return cls(
            skin=varied(rng, choose(rng, wardrobe.skin)),
            hair=varied(rng, choose(rng, wardrobe.hair)),
            top=varied(rng, choose(rng, wardrobe.clothes)),
            bottom=varied(rng, TROUSERS[int(rng.integers(len(TROUSERS)))]),
            accent=varied(rng, choose(rng, wardrobe.clothes)),
            view=view,
            hair_style=choose(rng, HAIR_STYLES),
            hat=choose(rng, {"none": 1 - hats, "cap": hats, "brim": hats / 3, "beanie": hats / 3}),
            pattern=choose(rng, PATTERNS),
            sleeves=choose(rng, {"long": 1, "short": 1}),
            legs=choose(rng, LEGS),
            arms=(choose(rng, arms), choose(rng, arms)),
            carries=choose(rng, props),
            shoulder=float(rng.uniform(0.78, 1.02)) * (0.7 if view == "side" else 1.0),
            lean=float(rng.normal(0, 0.035)),
        )


def choose(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """One of the keys, in proportion to its weight; numpy's own choice takes ten times longer."""
    bounds = list(accumulate(weights.values()))
    return list(weights)[min(bisect(bounds, rng.random() * bounds[-1]), len(bounds) - 1)]


def tinted(colour: Colour, factor: float) -> Colour:
    """A lighter or darker version of a colour."""
    red, green, blue = (min(255, max(0, round(level * factor))) for level in colour)
    return red, green, blue


def varied(rng: np.random.Generator, colour: Colour) -> Colour:
    """The colour slightly changed, so that no two people match exactly."""
    shift = rng.normal(0, 6, 4).tolist()
    red, green, blue = (
        int(min(250, max(8, level + s + 1.5 * shift[3])))
        for level, s in zip(colour, shift[:3], strict=True)
    )
    return red, green, blue
