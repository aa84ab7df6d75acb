"""Printed accuracy: what the papers' prose says of cells, and what must hold among them."""

from decimal import Decimal

import pytest

from crowdrt.benchmarks.tables.printed import SKT_TABLE_2 as COSTS_OF_TABLE_2
from crowdrt.benchmarks.tables.printed_deepcount import TABLE_7 as COSTS_OF_TABLE_7
from crowdrt.benchmarks.tables.trained.definition import NUM_IMAGES, A, B
from crowdrt.benchmarks.tables.trained.names import DECLARED, declared
from crowdrt.benchmarks.tables.trained.tables import ACCURACY_TABLES


def cell(table, label, heading):
    printed = ACCURACY_TABLES[table]
    [row] = [row for row in printed.rows if row.label == label]
    [place] = [k for k, column in enumerate(printed.columns) if column.heading == heading]
    return Decimal(row.printed[place])


def test_every_table_of_the_papers_that_prints_accuracy_is_there():
    assert {name: len(table.rows) for name, table in ACCURACY_TABLES.items()} == {
        **{"skt-2": 9, "skt-3": 7, "skt-4": 3, "skt-6": 19, "skt-7": 20, "skt-9": 22},
        **{"deepcount-2": 9, "deepcount-4": 9, "deepcount-5": 6, "deepcount-7": 6},
        **{"deepcount-8": 2, "deepcount-9": 6},
        **{"dsla-2": 13, "dsla-3": 6, "dsla-4": 4, "dsla-6": 7, "dsla-7": 16, "dsla-8": 6},
    }


@pytest.mark.parametrize("name", ACCURACY_TABLES)
def test_a_table_is_sound(name):
    table = ACCURACY_TABLES[name]
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    assert set(table.tests) <= set(NUM_IMAGES)
    assert any(row.recipes for row in table.rows)
    for row in table.rows:
        assert bool(row.recipes) == bool(row.width)
        assert set(row.recipes) <= set(DECLARED)
        assert len(set(row.recipes)) == len(row.recipes)
        for printed in row.printed:
            assert printed == "-" or Decimal(printed) > 0


def test_one_recipe_reproduces_one_row_of_a_table():
    for table in ACCURACY_TABLES.values():
        seen = [(name, row.width) for row in table.rows for name in row.recipes]
        assert len(set(seen)) == len(seen), table.title


def test_what_skt_says_of_its_cells():
    # "its performance badly degrades, with the RMSE increasing to 137.32"
    assert cell("skt-2", "1/2-CSRNet", "RMSE") == Decimal("137.32")
    # Intra-PT: "decreasing MAE by at least 13 and RMSE by at least 25.8"
    without = [cell("skt-3", "without transfer", heading) for heading in ("MAE", "RMSE")]
    for label in ("Intra-PT: L2", "Intra-PT: cosine"):
        assert without[0] - cell("skt-3", label, "MAE") >= 13
        assert without[1] - cell("skt-3", label, "RMSE") >= Decimal("25.8")
    # Inter-RT: MAE "by at least 10 and RMSE decreased by at least 13"; dense FSP "by 16.40"
    assert without[0] - cell("skt-3", "Inter-RT: sparse FSP", "MAE") >= 10
    assert without[1] - cell("skt-3", "Inter-RT: sparse FSP", "RMSE") >= 13
    assert without[0] - cell("skt-3", "Inter-RT: dense FSP", "MAE") == Decimal("16.40")
    # "(MAE 71.55, RMSE 114.40)"; "a new state-of-the-art RMSE of 102.33 on ShanghaiTech Part-A"
    assert cell("skt-3", "cosine + dense FSP", "RMSE") == Decimal("114.40")
    assert cell("skt-6", "1/4-BL + SKT", "A RMSE") == Decimal("102.33")
    # "an impressive state-of-the-art RMSE of 156.82 on the UCF-QNRF", which Table 1 prints too
    assert cell("skt-7", "1/4-BL + SKT", "RMSE") == Decimal("156.82")


@pytest.mark.parametrize("heading", ["MAE", "RMSE"])
def test_skt_prints_its_student_alike_in_four_tables(heading):
    taught = cell("skt-6", "1/4-CSRNet + SKT", f"A {heading}")
    assert taught == cell("skt-3", "cosine + dense FSP", heading)
    assert taught == cell("skt-4", "hard + soft", heading)
    alone = cell("skt-6", "1/4-CSRNet", f"A {heading}")
    assert alone == cell("skt-3", "without transfer", heading)
    if heading == "RMSE":
        assert taught == cell("skt-2", "1/4-CSRNet + SKT", heading)
        assert alone == cell("skt-2", "1/4-CSRNet", heading)
        assert cell("skt-6", "CSRNet*", "A RMSE") == cell("skt-2", "CSRNet", heading)


def test_table_2_has_the_widths_whose_cost_it_prints():
    rows = ACCURACY_TABLES["skt-2"].rows
    assert [row.width for row in rows if "SKT" not in row.label] == list(COSTS_OF_TABLE_2)


def test_averages_over_five_scenes_are_their_means():
    """But for one cell, which carries a note; scenes are rounded, so means are as far off."""
    table = ACCURACY_TABLES["skt-9"]
    off = []
    for row in table.rows:
        *scenes, average = map(Decimal, row.printed)
        unit = Decimal(1).scaleb(max(scene.as_tuple().exponent for scene in (*scenes, average)))
        if abs(sum(scenes) / 5 - average) > unit:
            off.append(row.label)
    assert off == [label for label, _ in table.notes] == ["Shang et al."]


@pytest.mark.parametrize("name", ACCURACY_TABLES)
def test_no_rmse_lies_below_its_mae_but_for_two_noted_cells(name):
    table = ACCURACY_TABLES[name]
    headings = [column.heading for column in table.columns]
    off = []
    for row in table.rows:
        errors = dict(zip(headings, row.printed, strict=True))
        for heading, printed in errors.items():
            mae = errors.get(heading.replace("RMSE", "MAE"), "-")
            if "RMSE" in heading and "-" not in (mae, printed) and Decimal(printed) < Decimal(mae):
                off.append((row.label, heading))
    assert off == ([("R-FCN", "RMSE"), ("COUNT Forest", "RMSE")] if name == "deepcount-5" else [])
    assert set(off) <= set(table.notes)


def test_deepcounts_backbone_is_printed_alike_in_six_tables():
    backbone = ("Backbone", "DeepCount")
    assert cell("deepcount-7", backbone[0], "A") == cell("deepcount-2", backbone[1], "A MAE")
    assert cell("deepcount-7", backbone[0], "UCF-QNRF") == cell("deepcount-4", "DeepCount", "MAE")
    assert cell("deepcount-7", backbone[0], "Mall") == cell("deepcount-5", "DeepCount", "MAE")
    on_b = {
        cell("deepcount-7", backbone[0], "B"),
        cell("deepcount-2", backbone[1], "B MAE"),
        cell("deepcount-8", "PReLU (leaky ReLU)", "MAE"),
        cell("deepcount-9", "No ablation", "MAE"),
    }
    assert on_b == {Decimal("7.2")}


def test_the_larger_deepcounts_map_the_larger_its_error():
    """ "The larger the density map, the harder it is to be precise"; the same with ablation."""
    rows = ACCURACY_TABLES["deepcount-7"].rows
    assert [row.label for row in rows] == [*(f"Branch {k}" for k in COSTS_OF_TABLE_7), "Backbone"]
    for place in range(4):
        errors = [Decimal(row.printed[place]) for row in rows]
        assert errors == sorted(errors, reverse=True)
    ablated = [Decimal(row.printed[0]) for row in ACCURACY_TABLES["deepcount-9"].rows]
    assert ablated == sorted(ablated)


def test_what_dsla_says_of_its_cells():
    ours, baseline = "DSLA", "OneNet (baseline)"
    # "1.6 higher AP than OneNet as well as 2.8 and 2.1 improvement in MR^-2 and JI"
    gains = [cell("dsla-2", ours, h) - cell("dsla-2", baseline, h) for h in ("AP", "MR^-2", "JI")]
    assert gains == [Decimal("1.6"), Decimal("-2.8"), Decimal("2.1")]
    # "improves 2.6 AP and 0.6 MR^-2 compared to DeFCN"
    gains = [cell("dsla-3", ours, h) - cell("dsla-3", "DeFCN", h) for h in ("AP", "MR^-2")]
    assert gains == [Decimal("2.6"), Decimal("-0.6")]
    # "after adding SLA branch, AP, MR^-2, and Recall have 1.0, 2.2, and 0.3 enhancements"
    gains = [
        cell("dsla-4", "+ SLA", h) - cell("dsla-4", baseline, h) for h in ("AP", "MR^-2", "Recall")
    ]
    assert gains == [Decimal("1.0"), Decimal("-2.2"), Decimal("0.3")]


def test_dslas_settings_are_printed_alike():
    best = cell("dsla-2", "DSLA", "AP")
    assert best == cell("dsla-3", "DSLA", "AP") == cell("dsla-4", "+ SLA + FS", "AP")
    assert best == cell("dsla-6", "K = 6", "AP") == cell("dsla-7", "T^max 0.6, T^min 0.4", "AP")
    for table, label in (("dsla-6", "K = 6"), ("dsla-7", "T^max 0.6, T^min 0.4")):
        assert best == max(Decimal(row.printed[0]) for row in ACCURACY_TABLES[table].rows), label
    # "when T^max is taken as 0.6, a reduced T^min will decrease the detector performance"
    falling = [cell("dsla-7", f"T^max 0.6, T^min 0.{k}", "AP") for k in (4, 3, 2, 1)]
    assert falling == sorted(falling, reverse=True)


def test_gains_on_coco_that_the_cells_do_not_bear_out_carry_a_note():
    table = ACCURACY_TABLES["dsla-8"]
    for heading, said in (("AP", "1.8"), ("AP50", "1.9"), ("AP75", "2.0")):
        ours, baseline = (
            cell("dsla-8", label, heading) for label in ("+ SLA + FS", "OneNet (baseline)")
        )
        note = table.notes.get(("+ SLA + FS", heading), "")
        assert bool(note) == (ours - baseline != Decimal(said))
        if note:
            assert f"+{said} " in note
            assert note.endswith(str(ours - baseline))


def test_no_recipe_stands_beside_a_setting_whose_heading_is_lost():
    rows = ACCURACY_TABLES["dsla-7"].rows
    assert [bool(row.recipes) for row in rows] == ["column" not in row.label for row in rows]
    assert sum(bool(row.recipes) for row in rows) == 4


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("skt-3-none", "skt-3-none"),
        ("skt-3-none-cpu", "skt-3-none"),
        ("skt-3-l2-dense-fsp", "skt-3-l2-dense-fsp"),
        ("skt-3-l2-dense-fsp-cpu", "skt-3-l2-dense-fsp"),
        ("skt-3-l2-cpu", "skt-3-l2"),
        ("deepcount-9-without-1-2-cpu", "deepcount-9-without-1-2"),
        ("skt-3-nonesuch", None),
        ("csrnet-quarter", None),
    ],
)
def test_a_variant_belongs_to_the_longest_name_that_begins_its_own(recipe, name):
    assert declared(recipe) == name


def test_one_training_serves_every_table_that_prints_its_recipe():
    rows = {
        (name, row.label)
        for name, table in ACCURACY_TABLES.items()
        for row in table.rows
        if "skt-3-none" in row.recipes and row.width == "1/4" and {A, B} & set(table.tests)
    }
    assert rows == {
        ("skt-2", "1/4-CSRNet"),
        ("skt-3", "without transfer"),
        ("skt-6", "1/4-CSRNet"),
    }
