"""DeepCount: its parts to the digit, what ships, and how it pads, starts and learns."""

from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional

from crowdrt.errors import ExportError
from crowdrt.export.complexity import complexity
from crowdrt.models import build_model
from crowdrt.models.deepcount import BRANCHES, DeepCount, HalvingConv2d

TILE = (384, 512)
NARROW = Fraction(1, 16)
BRANCH_PARAMETERS = {  # design/NETWORKS.md, section 2
    "branch_1": 11_536_129,
    "branch_2": 9_438_721,
    "branch_3": 7_341_313,
    "branch_4": 5_243_905,
    "branch_5": 3_146_497,
}
STRIDES = {"3x4": 128, "6x8": 64, "12x16": 32, "24x32": 16, "48x64": 8}


def scenes(number: int = 1) -> torch.Tensor:
    """Normalised blobs that differ on every scale, as photographs do."""
    blobs = torch.randn(number, 3, 6, 8)
    return functional.interpolate(blobs, size=TILE, mode="bilinear")


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def narrow(seed: int = 0, width: Fraction = NARROW) -> DeepCount:
    torch.manual_seed(seed)
    return DeepCount(width).eval()


def test_parameters_are_the_papers():
    with torch.device("meta"):
        model = build_model("deepcount")
    branches = {name: num_parameters(getattr(model, name)) for name in BRANCHES.values()}
    assert branches == BRANCH_PARAMETERS
    assert num_parameters(model.front_end) == 7_635_264
    assert num_parameters(model) - sum(branches.values()) == 21_403_201


def test_the_backbone_costs_what_its_layers_take():
    cost = complexity("deepcount", Fraction(1), TILE)
    assert cost.params == 21_403_201
    assert cost.macs == 54_697_918_464 + 6_033_507_328
    with pytest.raises(ExportError, match="not 576x864") as caught:
        complexity("deepcount", Fraction(1), (576, 864))
    assert "--size 384x512" in caught.value.fix


def test_the_maps_have_the_sizes_that_their_names_say():
    model = narrow(width=Fraction(1, 3))
    with torch.no_grad():
        people, maps = model.forward_train(scenes(2))
    assert people.shape == (2,)
    sizes = [f"{density.shape[2]}x{density.shape[3]}" for density in maps.values()]
    assert sizes == list(maps) == list(BRANCHES)
    assert {density.shape[:2] for density in maps.values()} == {(2, 1)}


@pytest.mark.parametrize("cells", BRANCHES)
def test_keeping_a_branch_drops_the_others_and_leaves_the_count_alone(cells):
    model, image = narrow(), scenes()
    with torch.no_grad():
        alone = model(image)
        trained = model.forward_train(image)
        model.keep(f"density:{cells}")
        for name in model.train_only:
            delattr(model, name)
        density, count = model(image)

    assert {name for name, _ in model.named_children() if name.startswith("branch")} == {
        BRANCHES[cells]
    }
    assert model.output_names == ("density", "count")
    assert model.density_stride == STRIDES[cells] == TILE[0] // density.shape[2]
    assert torch.equal(count, alone)
    assert torch.equal(density, trained.density[cells].relu())
    assert density.std() > 0.05 * density.mean() > 0


def test_the_count_alone_ships_by_default_and_again_on_request():
    model = narrow()
    assert (model.offers[0], model.output_names) == ("count", ("count",))
    model.keep("density:3x4")
    model.keep("count")
    assert model.output_names == ("count",)
    assert set(model.train_only) == set(BRANCH_PARAMETERS)
    assert isinstance(model(scenes()), torch.Tensor)


@pytest.mark.parametrize("output", ["density", "density:48x63", "branch_1", "boxes", ""])
def test_a_branch_that_does_not_exist_is_refused_with_the_offers(output):
    with pytest.raises(ExportError) as caught:
        narrow().keep(output)
    assert repr(output) in caught.value.problem
    assert all(offer in caught.value.fix for offer in ("count", *BRANCHES))


@pytest.mark.parametrize("width", [Fraction(1, 4), Fraction(1, 8), NARROW, Fraction(1, 32)])
def test_a_fresh_network_counts_something_and_sees_differences(width):
    for seed in range(1 if width == Fraction(1, 4) else 3):
        model = narrow(seed, width)
        with torch.no_grad():
            one, other = model(scenes(2)).tolist()
        assert min(one, other) > 0
        assert abs(one - other) > 0.01 * max(one, other)


def test_answers_are_not_negative_and_training_sees_below_zero():
    model, image = narrow(), scenes()
    with torch.no_grad():
        model.count_head.weight.neg_()
        model.branch_1.density_head.weight.neg_()
        trained = model.forward_train(image)
        raw = model.count_head(model.look(image)[0]).item()
        model.keep("density:48x64")
        density, count = model(image)
    assert trained.people.item() == pytest.approx(0.2 * raw)
    assert raw < 0
    assert trained.density["48x64"].min() < 0
    assert count.item() == 0
    assert density.min() == 0


def test_every_later_layer_leaks_a_fifth():
    slopes = [m.negative_slope for m in narrow().modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * (10 + 5 + 10)  # backbone, spreads, doublings


def test_every_parameter_learns_from_the_training_outputs():
    model = narrow().train()
    people, maps = model.forward_train(scenes())
    sum(answer.sum() for answer in (people, *maps.values())).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_the_count_alone_teaches_no_branch():
    model = narrow().train()
    model(scenes()).sum().backward()
    learned = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert "count_head" in learned
    assert not learned & set(BRANCH_PARAMETERS)


def test_halving_pads_at_the_bottom_and_the_right_alone():
    """As TensorFlow's "same" does at stride 2: window k begins at pixel 2k."""
    layer = HalvingConv2d(1, 1)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    image = torch.zeros(1, 1, 4, 6)
    image[..., 0, 0] = 1  # seen by the first window only: nothing is padded before it
    image[..., 3, 5] = 10  # by the last only
    image[..., 2, 2] = 100  # where four windows meet
    with torch.no_grad():
        assert layer(image).squeeze().tolist() == [[101, 100, 0], [100, 100, 10]]


def test_branches_share_nothing():
    model = narrow()
    image = scenes()
    with torch.no_grad():
        before = model.forward_train(image)
        model.branch_2.spread[0].weight.mul_(2)
        after = model.forward_train(image)
    changed = [c for c in BRANCHES if not torch.equal(before.density[c], after.density[c])]
    assert changed == ["24x32"]
    assert torch.equal(before.people, after.people)


def test_a_branch_that_is_left_out_is_not_computed():
    model, image = narrow(), scenes()
    for name in ("branch_1", "branch_4"):
        delattr(model, name)
    with torch.no_grad():
        found = model.forward_train(image, ["24x32", "3x4", "12x16"])
    assert list(found.density) == ["3x4", "12x16", "24x32"]


def test_the_ablation_has_the_same_weights_and_a_relu_in_every_place():
    torch.manual_seed(0)
    leaky, relu = DeepCount(NARROW).eval(), build_model("deepcount-relu", NARROW).eval()
    relu.load_state_dict(leaky.state_dict())
    activations = [m for m in leaky.modules() if isinstance(m, nn.ReLU | nn.LeakyReLU)]
    assert sum(isinstance(m, nn.ReLU) for m in relu.modules()) == len(activations) == 10 + 25
    assert not any(isinstance(m, nn.LeakyReLU) for m in relu.modules())
    with torch.no_grad():
        assert not torch.equal(leaky(scenes()), relu(scenes()))
        relu.count_head.weight.neg_()
        assert relu.forward_train(scenes()).people.item() == 0
