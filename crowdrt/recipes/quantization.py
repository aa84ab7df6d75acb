"""Quantization-aware training, the quantized rows of SKT's Table 5.

The paper quantizes full CSRNet by DoReFa and QAT to 8 bits and gives their errors, no settings:
`skt-5-dorefa` and `skt-5-qat` go on with CSRNet's own for a tenth of its steps. `...-cpu` begin
with the shipped 1/4-CSRNet, with the optimiser and the crops of SKT's rows on a CPU.
`skt-5-skt-qat-cpu` goes on with the SKT-trained 1/8-CSRNet beside its teacher.

All learn in float32 and without batch normalisation: what is simulated is then what the engine
computes (docs/compression.md).
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from crowdrt.contracts import Recipe
from crowdrt.learning import Quantization, QuantizationMethod
from crowdrt.recipes import counting, skt

NAMES: dict[QuantizationMethod, str] = {"dorefa": "DoReFa", "qat": "QAT"}
# DoReFa's bounds are fixed: measured on the first steps, whose rates are still small
MOVING: dict[QuantizationMethod, float] = {"dorefa": 0.05, "qat": 0.8}
ON_A_CPU = replace(skt.ON_A_CPU, learning_rate=1e-4, batch_norm=False, precision="32-true")
TAUGHT = "skt-3-cosine-dense-fsp-cpu"


def quantization_recipes() -> Iterator[Recipe]:
    """Yield DoReFa and QAT as published and on a CPU's budget, and SKT with QAT."""
    published = counting.csrnet().training
    whole = replace(published, steps=published.steps // 10)
    for method, name in NAMES.items():
        yield Recipe(
            name=f"skt-5-{method}",
            network="csrnet",
            width=Fraction(1),
            about=f"SKT, Table 5: {name}, 8 bits, begins with --init CSRNet",
            training=replace(whole, quantization=learned(method, "csrnet-published")),
        )
        yield Recipe(
            name=f"skt-5-{method}-cpu",
            network="csrnet",
            width=Fraction(1, 4),
            about=f"SKT, Table 5: {name}, 8 bits, on a CPU's budget",
            training=replace(ON_A_CPU, quantization=learned(method, "csrnet-quarter")),
        )
    yield Recipe(
        name="skt-5-skt-qat-cpu",
        network="csrnet",
        width=Fraction(1, 8),
        about="SKT with QAT, on a CPU's budget, begins with --init of SKT's student",
        training=replace(ON_A_CPU, transfer=skt.BY_MEANS, quantization=learned("qat", TAUGHT)),
    )


def learned(method: QuantizationMethod, start: str) -> Quantization:
    """Return a method's settings."""
    return Quantization(method=method, start=start, moving=MOVING[method])
