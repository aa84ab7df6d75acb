"""DSLA's Table 5, and the one-class detector that ships: costs to the last printed digit."""

from fractions import Fraction

import pytest

from crowdrt.benchmarks.tables.cells import like
from crowdrt.export.complexity import complexity
from crowdrt.pipeline.tables.dsla import SIZE, cost_of, dsla_5


def in_g(value: int) -> str:
    return like("0.001", value, 10**9)


def test_every_printed_cell_comes_out():
    cells = dsla_5()
    assert [cell.printed for cell in cells] == ["32.0", "201", "32.0", "201", "32.2", "204"]
    assert all(cell.matches for cell in cells)
    assert [cell.true for cell in cells] == ["", "200", "", "200", "", "204"]
    assert "32.3 M are stored" in cells[2].note
    assert "32.5 M are stored" in cells[4].note
    assert all("80 classes" in cell.note for cell in cells[1::2])


@pytest.mark.parametrize(
    ("num_classes", "sla", "trained_m", "stored_m", "paper_flops_g"),
    [
        (80, True, "32.2042", "32.4797", "204.479"),
        (80, False, "32.0198", "32.2953", "200.546"),
        (1, False, "31.8377", "32.1132", "196.662"),
    ],
)  # fmt: skip
def test_costs_of_the_variants(num_classes, sla, trained_m, stored_m, paper_flops_g):
    cost = cost_of(num_classes, sla=sla)
    assert like("0.0001", cost.trained, 10**6) == trained_m
    assert like("0.0001", cost.stored, 10**6) == stored_m
    assert in_g(cost.paper_flops) == paper_flops_g


def test_the_sla_branch_is_one_convolution():
    whole, inference = cost_of(80, sla=True), cost_of(80, sla=False)
    assert whole.stored - inference.stored == (9 * 256 + 1) * 80
    assert whole.macs - inference.macs == 9 * 256 * 80 * 21_330
    assert whole.paper_flops - inference.paper_flops == (9 * 256 + 1) * 80 * 21_330


def test_what_ships_has_one_class_and_no_centerness():
    shipped = complexity("dsla", Fraction(1), SIZE)
    assert shipped.params == 32_110_922
    assert in_g(shipped.paper_flops) == "196.612"
    with_centerness = cost_of(1, sla=False)
    assert with_centerness.stored - shipped.params == 9 * 256 + 1
    assert with_centerness.macs - shipped.macs == 9 * 256 * 21_330
