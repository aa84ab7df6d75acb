"""Pruned networks, the pruned rows of SKT's Table 5.

The paper prunes full CSRNet to the size of 1/4-CSRNet and gives errors, no settings; its row of CP
has 6.89 M parameters, where the others have 1.02 M. Here every method leaves no more
multiply-accumulates than the uniform network: `skt-5-l1filter`, `-cp` and `-agp` those of
1/4-CSRNet, gone on with by CSRNet's own settings for a tenth of its steps; `...-cpu` prune the
shipped 1/4-CSRNet to those of 1/8-CSRNet, with the optimiser and the crops of SKT's rows on a CPU.
`skt-5-l1filter-skt-cpu` learns on beside its teacher, which is what it was before.

None adds batch normalisation: to trained weights it would be a change, not a help.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from crowdrt.contracts import Recipe
from crowdrt.learning import Pruning, PruningMethod
from crowdrt.recipes import counting, skt
from crowdrt.recipes.students import quantized_as_shipped

# of channels, that each keeps: docs/compression.md has what was seen
MULTIPLE: dict[PruningMethod, int] = {"l1": 8, "cp": 16, "agp": 8}
TITLES: dict[PruningMethod, str] = {"l1": "L1Filter", "cp": "CP", "agp": "AGP"}
# multiply-accumulates at 576x864 of CSRNet at 1, 1/4 and 1/8, by `crowdrt complexity`
WHOLE, QUARTER, EIGHTH = 205_531_748_352, 13_007_070_720, 3_305_546_496
ON_A_CPU = replace(skt.ON_A_CPU, learning_rate=1e-4, batch_norm=False)
# by which CP rebuilds full CSRNet: more equations than a layer's 4608 weights
SAMPLES = {"crops": 300, "points": 50}


def pruning_recipes() -> Iterator[Recipe]:
    """Yield L1Filter, CP and AGP as published and on a CPU's budget, and L1Filter with SKT."""
    published = counting.csrnet().training
    whole = replace(published, steps=published.steps // 10)
    for method, title in TITLES.items():
        name = f"skt-5-{title.lower()}"
        pruning = Pruning(
            method=method,
            start="csrnet-published",
            macs=QUARTER / WHOLE,
            multiple=MULTIPLE[method],
            **(SAMPLES if method == "cp" else {}),
        )
        yield Recipe(
            name=name,
            network="csrnet",
            width=Fraction(1),
            about=f"SKT, Table 5: {title} to the cost of 1/4, begins with --init CSRNet",
            training=replace(whole, pruning=pruning),
        )
        yield on_a_cpu(f"{name}-cpu", method, title)
    base = on_a_cpu("skt-5-l1filter-skt-cpu", "l1", "L1Filter with SKT")
    yield replace(base, training=replace(base.training, transfer=skt.BY_MEANS))


def on_a_cpu(name: str, method: PruningMethod, title: str) -> Recipe:
    """Return a row that prunes the shipped network to the cost of 1/8-CSRNet."""
    pruning = Pruning(
        method=method,
        start="csrnet-quarter",
        macs=EIGHTH / QUARTER,
        multiple=MULTIPLE[method],
    )
    recipe = Recipe(
        name=name,
        network="csrnet",
        width=Fraction(1, 4),
        about=f"SKT, Table 5: {title}, 1/4-CSRNet to the cost of 1/8, on a CPU's budget",
        training=replace(ON_A_CPU, pruning=pruning),
    )
    return quantized_as_shipped(recipe)
