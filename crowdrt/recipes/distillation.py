"""The ways to distil that SKT's Table 5 compares with: `skt-5-at`, `skt-5-nst` and so on.

Each is the student without transfer, `skt-3-none` or `skt-3-none-cpu`, with the method's loss
beside or before: the same network, photographs, steps and optimiser. Weights are those of the
methods' papers, or of the code that their authors published; they belong to classifiers, and SKT
does not say which it used. `...-cpu` takes means over locations, and weights beside which neither
the map's error nor the transfer drowns: docs/compression.md has the terms of a first step.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from crowdrt.contracts import Recipe
from crowdrt.learning import Distillation, Method
from crowdrt.recipes.skt import BUDGETS, skt_recipes

TEACHERS = {"": "csrnet-published", "-cpu": "csrnet-quarter"}
TITLES: dict[Method, str] = {
    "fitnets": "FitNets",
    "dml": "DML",
    "nst": "NST",
    "at": "AT",
    "ab": "AB",
}
PUBLISHED: dict[Method, dict[str, Any]] = {
    "fitnets": {"soft_weight": 4, "soft_last": 1},
    "dml": {},
    "nst": {"weight": 50},
    "at": {"weight": 1000},
    "ab": {"weight": 3 / 1000},
}
ON_A_CPU: dict[Method, dict[str, Any]] = {
    "fitnets": {"mean": True},
    "dml": {},
    "nst": {"weight": 5},
    "at": {"weight": 2, "mean": True},
    "ab": {"weight": 1, "mean": True},
}


def distillation_recipes() -> Iterator[Recipe]:
    """Yield every method, as published and on a CPU's budget."""
    bases = {recipe.name: recipe for recipe in skt_recipes()}
    for suffix, teacher in TEACHERS.items():
        base = bases[f"skt-3-none{suffix}"]
        for method, title in TITLES.items():
            training = replace(
                base.training, distillation=distillation(method, teacher, on_a_cpu=bool(suffix))
            )
            yield replace(
                base,
                name=f"skt-5-{method}{suffix}",
                about=f"SKT, Table 5: {title}, {BUDGETS[suffix]}",
                training=training,
            )


def distillation(method: Method, teacher: str, *, on_a_cpu: bool) -> Distillation:
    """Return a method's settings, its features taken where SKT's code takes them."""
    settings = PUBLISHED[method] | (ON_A_CPU[method] if on_a_cpu else {})
    if method == "dml":
        return Distillation(method=method, **settings)
    return Distillation(method=method, teacher=teacher, taps="code", **settings)
