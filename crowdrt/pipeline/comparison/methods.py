"""What a finished row's settings say of its method, in the words of the papers."""

from collections.abc import Mapping
from typing import Any

from crowdrt.benchmarks.tables.compression.printed import NAIVE
from crowdrt.recipes import distillation, pruning, quantization

SKT = {"intra": "cosine", "inter": "dense", "ground_truth": "both"}  # the paper's own setting


def method_of(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return a row's method and its kind: ("L1Filter + SKT", "pruning + distillation").

    Args:
        settings: what `row.json` holds; a part that a recipe does not have is None or missing.
    """
    found: list[tuple[str, str]] = []
    if pruned := settings.get("pruning"):
        found.append((titled(pruning.TITLES, pruned["method"]), "pruning"))
    if transfer := settings.get("transfer"):
        found.append((transferred(transfer), "distillation"))
    if distilled := settings.get("distillation"):
        found.append((titled(distillation.TITLES, distilled["method"]), "distillation"))
    if quantized := settings.get("quantization"):
        found.append((titled(quantization.NAMES, quantized["method"]), "quantization"))
    if not found:
        return NAIVE, "none"
    methods, kinds = zip(*found, strict=True)
    return " + ".join(methods), " + ".join(kinds)


def titled(titles: Mapping[Any, str], method: str) -> str:
    """Return a method as its paper calls it."""
    return titles.get(method, method.upper())


def transferred(transfer: Mapping[str, Any]) -> str:
    """Return `SKT`, or what of it was transferred: `SKT (l2, no inter)`."""
    parts = [
        f"{transfer.get(name) or f'no {name}'}"
        for name, whole in SKT.items()
        if transfer.get(name) != whole
    ]
    return f"SKT ({', '.join(parts)})" if parts else "SKT"
