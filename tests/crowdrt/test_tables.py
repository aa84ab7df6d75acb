"""The tables that need no stopwatch: what is printed, what comes out, and why not."""

import json

import pytest

from crowdrt.benchmarks.tables.cells import Cell, cells_markdown, like, matched
from crowdrt.benchmarks.tables.printed import SKT_TABLE_8, UCF_QNRF
from crowdrt.errors import RecipeError
from crowdrt.pipeline.tables.accuracy import shown_table
from crowdrt.pipeline.tables.skt import (
    SWAPPED,
    TABLES,
    costs_of_row,
    show_cells,
)


def cell(**changes) -> Cell:
    fields = {"row": "A", "column": "x", "printed": "1.0", "ours": "1.0", "true": "0.9"}
    return Cell(**(fields | changes))


def test_only_table_2s_cut_off_cell_differs():
    cells = TABLES["skt-2"]()
    assert len(cells) == 10
    [slip] = [each for each in cells if not each.matches]
    assert (slip.row, slip.printed, slip.ours) == ("1/5-CSRNet", "0.64", "0.65")
    assert "647,489" in slip.note


# Tables 1 and 8 of SKT take half a minute: tests/export/test_complexity.py counts every cell.
@pytest.mark.parametrize("name", sorted({*TABLES} - {"skt-1", "skt-8"}))
def test_whatever_differs_has_its_reason(name):
    cells = TABLES[name]()
    assert cells
    assert all(each.note for each in cells if not each.matches)


def test_a_row_of_table_8_carries_its_caveat():
    [row] = [row for row in SKT_TABLE_8 if (row.network, row.width) == ("sanet", "1/4")]
    params, flops = costs_of_row(row, (UCF_QNRF,))
    assert (params.printed, params.matches, params.note) == ("0.058", True, "")
    assert (flops.column, flops.printed, flops.matches) == ("FLOPs at 2032x2912, G", "29.92", True)
    assert flops.note == SWAPPED


def test_table_1_shows_what_it_repeats_of_table_8(monkeypatch):
    monkeypatch.setattr("crowdrt.pipeline.tables.skt.SKT_TABLE_8", SKT_TABLE_8[5:7])
    monkeypatch.setattr("crowdrt.pipeline.tables.skt.SKT_TABLE_1", SKT_TABLE_8[5:6])
    eighth, first = TABLES["skt-8"](), TABLES["skt-1"]()
    assert [len(eighth), len(first)] == [10, 2]
    assert all(each.matches for each in eighth)
    assert [eighth[0], eighth[4]] == first


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(RecipeError, match="'skt-10' is unknown") as caught:
        shown_table("skt-10")
    assert "skt-1, skt-2, skt-3" in caught.value.fix


def test_figures_are_rounded_half_up_to_the_printed_digits():
    assert like("0.64", 647_489, 10**6) == "0.65"
    assert like("2.52", 2_525_000_000, 10**9) == "2.53"
    assert like("37", 37_749, 1000) == "38"


def test_notes_are_numbered_once_and_stand_below(capsys):
    cells = [cell(note="why"), cell(column="y", ours="1.1", note="why"), cell(row="B")]
    text = cells_markdown(cells)
    assert text.count("why") == 1
    assert "| A | x | 1.0 | 1.0 | 0.9 | = (1) |" in text
    assert "|  | y | 1.0 | 1.1 | 0.9 | differs (1) |" in text
    assert "| A \\| B |" in cells_markdown([cell(row="A | B")])  # one cell of Markdown, not two
    show_cells(cells)
    shown = capsys.readouterr().out
    assert "(1) why" in shown
    assert "2 of 3 printed figures" in shown


def test_a_cell_as_json_says_whether_it_matches():
    document = json.loads(json.dumps(cell(ours="1.1").as_dict()))
    assert document["matches"] is False
    assert matched([cell()]) == "1 of 1 printed figures come out to the last digit"
