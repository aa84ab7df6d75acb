"""What a finished row's settings say of its method, in the words of the papers."""

from collections.abc import Mapping
from typing import Any

from crowdrt.benchmarks.tables.compression.printed import NAIVE

PRUNED = {"l1": "L1Filter", "cp": "CP", "agp": "AGP"}
QUANTIZED = {"dorefa": "DoReFa", "qat": "QAT"}
DISTILLED = {"fitnets": "FitNets", "dml": "DML", "nst": "NST", "at": "AT", "ab": "AB"}
SKT = {"intra": "cosine", "inter": "dense", "ground_truth": "both"}  # the paper's own setting


def method_of(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return a row's method and its kind: ("L1Filter + SKT", "pruning + distillation").

    Args:
        settings: what `row.json` holds; a part that a recipe does not have is None or missing.
    """
    found: list[tuple[str, str]] = []
    if pruning := settings.get("pruning"):
        found.append((titled(PRUNED, pruning["method"]), "pruning"))
    if transfer := settings.get("transfer"):
        found.append((transferred(transfer), "distillation"))
    if distillation := settings.get("distillation"):
        found.append((titled(DISTILLED, distillation["method"]), "distillation"))
    if quantization := settings.get("quantization"):
        found.append((titled(QUANTIZED, quantization["method"]), "quantization"))
    if not found:
        return NAIVE, "none"
    methods, kinds = zip(*found, strict=True)
    return " + ".join(methods), " + ".join(kinds)


def titled(titles: Mapping[str, str], method: str) -> str:
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
