"""DeepCount's Tables 3, 6 and 7: every cell, and the reason where one does not come out."""

import pytest

from crowdrt.benchmarks.tables.printed_deepcount import TABLE_3
from crowdrt.pipeline.tables.deepcount import (
    CUT_OFF,
    costs_of_parts,
    deepcount_3,
    deepcount_6,
    deepcount_7,
)


def slips(cells):
    return [(cell.row, cell.printed, cell.ours) for cell in cells if not cell.matches]


def test_table_3_comes_out_but_for_one_cell_that_was_cut_off():
    cells = deepcount_3()
    assert len(cells) == 27
    assert slips(cells) == [("DeepCount, branch 1", "37", "38")]
    [cell] = [cell for cell in cells if not cell.matches]
    assert cell.note == CUT_OFF
    assert cell.true == "3"


@pytest.mark.parametrize("part", TABLE_3)
def test_table_3_names_the_layers_that_are_counted(part):
    """Kernels and outputs are printed too: they must be those of our networks."""
    printed, _ = TABLE_3[part]
    ours = [(cost.kernel, cost.output) for cost in costs_of_parts()[part]]
    assert ours == [(layer.kernel, layer.output) for layer in printed]


def test_table_6_comes_out():
    cells = deepcount_6()
    assert [cell.printed for cell in cells] == ["16.3", "21.4", "58.1"]
    assert slips(cells) == []


def test_table_7_comes_out_but_for_a_copied_cell():
    cells = deepcount_7()
    assert [cell.true for cell in cells] == ["2144", "532", "129", "28", "3"]
    assert slips(cells) == [("Branch 1", "6034", "8596")]
    assert "copied" in cells[0].note
    assert cells[0].printed == TABLE_3["DeepCount, back end"][1]  # whence it was copied


def test_true_costs_of_the_parts():
    """In thousands of MACs, as worked out from the layers by hand."""
    macs = {part: sum(cost.macs for cost in costs) for part, costs in costs_of_parts().items()}
    assert {part: round(value / 1e3) for part, value in macs.items()} == {
        "CSRNet, front end": 54_697_918,
        "CSRNet, back end": 26_499_809,
        "DeepCount, front end": 54_697_918,
        "DeepCount, back end": 6_033_507,
        "DeepCount, branch 5": 3_152,
        "DeepCount, branch 4": 28_336,
        "DeepCount, branch 3": 129_073,
        "DeepCount, branch 2": 532_021,
        "DeepCount, branch 1": 2_143_814,
    }
