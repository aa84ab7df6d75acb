"""Every convolution in INT8 alone, ordered by what that does to counts."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from crowdrt.calibration.sensitivity.judge import CountError
from crowdrt.calibration.sensitivity.search import Search
from crowdrt.console import track


@dataclass(frozen=True)
class Layer:
    """One convolution, alone in INT8: what it reads and its weights; the rest is float."""

    name: str
    macs_share: float  # of the convolutions' MACs
    error: CountError
    sqnr_db: float | None  # of the network's map; None where nothing differs

    def facts(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        facts = asdict(self)
        return {"name": self.name, "macs_share": self.macs_share, **facts.pop("error")} | {
            "sqnr_db": self.sqnr_db
        }


def rank(search: Search) -> list[Layer]:
    """Try every convolution alone and return them, the most harmful first.

    By counts: how far they move on average, whichever way. A MAE would hide what moves counts
    towards what people counted.
    """
    if any(search.journal.find([name]) is None for name in search.plan.convs):
        search.collect()  # shows a bar of its own
    layers = []
    for name in track(search.plan.convs, "one layer at a time in INT8", len(search.plan.convs)):
        alone = [name]
        layers.append(
            Layer(name, search.share(alone), search.error(alone), search.trial(alone).sqnr_db)
        )
    if search.config.by == "sqnr":
        return sorted(layers, key=lambda layer: layer_sqnr(layer.sqnr_db))
    return sorted(layers, key=lambda layer: -layer.error.change)


def layer_sqnr(sqnr_db: float | None) -> float:
    """Return an SQNR to sort by: what differs in nothing comes last."""
    return math.inf if sqnr_db is None else sqnr_db
