"""DeepCount's loss: equation 6 worked by hand, and maps that keep their people."""

import pytest
import torch

from crowdrt.errors import RecipeError
from crowdrt.learning import BRANCH_SIZES, GradientFusion
from crowdrt.models.deepcount import TrainOutputs
from crowdrt.training.divided.losses import fusion_losses, pooled

# Two crops of 2x2 cells: 3 + 1 = 4 people, and nobody.
DENSITY = torch.tensor([[[[3.0, 0.0], [0.0, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
OUTPUTS = TrainOutputs(
    people=torch.tensor([6.0, -0.5]),  # off by 2 and 0.5
    density={
        "1x1": torch.tensor([4.0, 1.0]).view(2, 1, 1, 1),  # off by 0 and 1
        "2x2": torch.tensor([[[[2.0, 1.0], [0.0, 1.5]]], [[[0.0, -0.5], [0.0, 0.0]]]]),  # 2.5, 0.5
    },
)


def test_equation_6_by_hand():
    """1 / (2 * 2) * (16 * 2.5 + 1 + 3) * 0.01, term by term."""
    terms = fusion_losses(OUTPUTS, DENSITY, GradientFusion())
    assert [*terms] == ["count", "density:1x1", "density:2x2"]
    assert terms["count"].item() == pytest.approx(0.01 * 16 * 2.5 / 4)
    assert terms["density:1x1"].item() == pytest.approx(0.01 * 1 / 4)
    assert terms["density:2x2"].item() == pytest.approx(0.01 * 3 / 4)


def test_the_code_leaves_out_the_half():
    paper = fusion_losses(OUTPUTS, DENSITY, GradientFusion())
    code = fusion_losses(OUTPUTS, DENSITY, GradientFusion(half=False))
    for name, term in paper.items():
        assert code[name].item() == pytest.approx(2 * term.item())


def test_weights_are_multiplied_in():
    terms = fusion_losses(OUTPUTS, DENSITY, GradientFusion(count_weight=3, scale=1))
    assert terms["count"].item() == pytest.approx(3 * 2.5 / 4)
    assert terms["density:2x2"].item() == pytest.approx(3 / 4)


def test_parts_of_a_batch_average_to_it():
    whole = fusion_losses(OUTPUTS, DENSITY, GradientFusion())
    parts = []
    for k in range(2):
        maps = {name: each[k : k + 1] for name, each in OUTPUTS.density.items()}
        outputs = TrainOutputs(OUTPUTS.people[k : k + 1], maps)
        parts.append(fusion_losses(outputs, DENSITY[k : k + 1], GradientFusion()))
    for name, term in whole.items():
        assert term.item() == pytest.approx((parts[0][name] + parts[1][name]).item() / 2)


@pytest.mark.parametrize("cells", BRANCH_SIZES)
def test_pooled_maps_keep_everybody_where_they_are(cells):
    rows, columns = map(int, cells.split("x"))
    density = torch.zeros(2, 1, 48, 64)
    density[0, 0, 47, 63] = 2
    density[1, 0, 17, 40] = 5
    small = pooled(density, rows=rows)
    assert small.shape == (2, 1, rows, columns)
    assert small.sum((1, 2, 3)).tolist() == [2, 5]
    assert small[0, 0, -1, -1] == 2
    assert small[1, 0, 17 * rows // 48, 40 * columns // 64] == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"branches": ("3x4", "96x128")},
        {"scale": 0.0},
        {"count_weight": -1.0},
        {"num_crops": -1},
        {"grey": 1.5},
    ],
)
def test_what_means_nothing_is_refused(wrong):
    with pytest.raises(RecipeError) as caught:
        GradientFusion(**wrong)
    assert next(iter(wrong)) in caught.value.problem
