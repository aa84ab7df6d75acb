"""Pruning: which channels go together, how many a budget leaves, and which those are."""

import copy
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional

from crowdrt.errors import RecipeError, TrainingError
from crowdrt.models import build_model
from crowdrt.training.pruning import groups as grouping
from crowdrt.training.pruning import selection
from crowdrt.training.pruning.budget import fitting, macs_left, rounded
from crowdrt.training.pruning.costs import convolution_costs
from crowdrt.training.pruning.groups import groups_of, mask, remove
from crowdrt.training.pruning.norms import filter_norms, smallest_filters
from crowdrt.training.pruning.reconstruction import patches, rebuild_layers, summed
from crowdrt.training.pruning.selection import SETTLED, Sums, descend, lasso, rebuilt, select

EIGHTH = Fraction(1, 8)
PRUNABLE = ("csrnet", "bl", "mcnn", "can", "sanet")
WIDTHS = {"mcnn": Fraction(1, 2), "sanet": Fraction(1, 4)}  # narrower ones have single channels


def network(name="csrnet", width=None):
    """Build a network with biases and statistics as training leaves them: not 0 and 1."""
    torch.manual_seed(0)
    model = build_model(name, width or WIDTHS.get(name, EIGHTH)).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) / 10 + ("var" in key or "norm" in key))
    return model


def image_of(model, side=64):
    return torch.randn(2, model.preprocessing.num_channels, side, side)


@pytest.mark.parametrize("name", PRUNABLE)
def test_removed_channels_are_channels_at_zero(name):
    """The identity that all of this rests on, for every network that can be pruned."""
    model = network(name)
    groups = groups_of(model)
    closed = smallest_filters(model, groups, fitting(model, groups, 0.3))
    masked = copy.deepcopy(model)
    mask(masked, groups, closed)
    remove(model, groups, closed)
    image = image_of(model)
    with torch.no_grad():
        before, after = masked(image), model(image)
    assert before.std() > 1e-6
    torch.testing.assert_close(after, before, rtol=1e-4, atol=float(before.abs().max()) * 1e-5)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert left < 0.6 * sum(parameter.numel() for parameter in masked.parameters())
    assert model.pruned


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_budget_holds_and_what_was_promised_is_left(name):
    model = network(name)
    groups = groups_of(model)
    whole = sum(cost.macs for cost in convolution_costs(model).values())
    kept = fitting(model, groups, 0.5)
    promised = macs_left(convolution_costs(model), groups, kept)
    remove(model, groups, smallest_filters(model, groups, kept))
    left = sum(cost.macs for cost in convolution_costs(model).values())
    assert left == promised
    assert 0.3 * whole < left <= 0.5 * whole


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_image_and_the_answer_keep_their_channels(name):
    model = network(name)
    groups = groups_of(model)
    first = groups[0].root
    assert not any(layer.startswith("density_head") for g in groups for layer in g.writes)
    assert not any(first in group.reads for group in groups)
    closed = {group.root: list(range(group.channels - 1)) for group in groups}
    planes, answer = model.preprocessing.num_channels, model(image_of(model)).shape
    remove(model, groups, closed)
    assert model.get_submodule(first).in_channels == planes
    assert model(image_of(model)).shape == answer


def test_every_channel_belongs_to_one_group():
    for name in PRUNABLE:
        model = network(name)
        written, read = {}, {}
        for group in groups_of(model):
            for ends, found in ((group.writes, written), (group.reads, read)):
                for layer, places in ends.items():
                    found.setdefault(layer, []).extend(places.flatten().tolist())
        first, *_ = convolution_costs(model)
        for layer in convolution_costs(model):
            module = model.get_submodule(layer)
            if not layer.startswith("density_head"):
                assert sorted(written[layer]) == list(range(module.out_channels)), layer
            if module.in_channels != model.preprocessing.num_channels:
                assert sorted(read[layer]) == list(range(module.in_channels)), layer
        assert first not in read


def test_half_of_a_csrnets_channels_are_the_narrower_csrnet():
    """With the cost of 1/16-CSRNet as the budget, L1Filter leaves its very layers."""
    model, narrow = network(), network(width=Fraction(1, 16))
    groups = groups_of(model)
    costs = [sum(c.macs for c in convolution_costs(each).values()) for each in (narrow, model)]
    remove(
        model, groups, smallest_filters(model, groups, fitting(model, groups, costs[0] / costs[1]))
    )
    assert [p.shape for p in model.parameters()] == [p.shape for p in narrow.parameters()]


def test_the_smallest_filters_go():
    model = network()
    with torch.no_grad():
        model.front_end[0].weight[[1, 6]] *= 1e-3
        model.front_end[0].bias += 100  # no part of a filter's norm
    groups = groups_of(model)
    kept = {group.root: group.channels - 2 for group in groups}
    assert smallest_filters(model, groups, kept)["front_end.0"] == [1, 6]
    expected = model.front_end[0].weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(filter_norms(model, groups[0]), expected)


def test_norms_of_one_channel_written_twice_are_added():
    model = network("can")
    shared = next(group for group in groups_of(model) if len(group.writes) > 2)
    writers = [model.get_submodule(layer).weight for layer in shared.writes]
    assert len(writers) == 6  # the front end, four scales and the contrast
    torch.testing.assert_close(
        filter_norms(model, shared), sum(weight.flatten(1).abs().sum(1) for weight in writers)
    )


def test_deep_layers_keep_more_where_that_is_asked():
    model = network("csrnet", Fraction(1, 4))
    groups = groups_of(model)
    kept = fitting(model, groups, 0.25, 1.5)
    shares = {group.root: kept[group.root] / group.channels for group in groups}
    assert shares["front_end.14"] < 0.5  # the third stage, at stride 4
    for deep in ("front_end.17", "back_end.0"):  # stride 8
        assert shares[deep] == pytest.approx(1.5 * shares["front_end.14"], abs=1 / 64)


@pytest.mark.parametrize(("multiple", "deep"), [(8, 1.0), (8, 1.5), (16, 1.5)])
def test_channels_are_kept_in_multiples(multiple, deep):
    model = network("csrnet", Fraction(1, 4))
    groups, costs = groups_of(model), convolution_costs(model)
    kept = fitting(model, groups, 0.3, deep, multiple)
    assert {number % multiple for number in kept.values()} == {0}
    assert len(set(kept.values())) > 2
    whole = sum(cost.macs for cost in costs.values())
    assert 0.2 * whole < macs_left(costs, groups, kept) <= 0.3 * whole


def test_where_a_layer_has_fewer_it_keeps_all_or_the_nearest():
    assert [rounded(4, share, 8) for share in (0.01, 0.5, 1.0)] == [4, 4, 4]
    assert [rounded(20, share, 8) for share in (0.01, 0.5, 0.9, 1.0)] == [8, 8, 16, 20]
    assert [rounded(20, share, 1) for share in (0.01, 0.5, 0.9, 1.2)] == [1, 10, 18, 20]
    for number in (10, 11):
        assert [rounded(number, share, 8) for share in (0.99, 1.0, 1.5)] == [8, number, number]


def test_a_budget_below_one_channel_per_layer_is_refused():
    model = network()
    with pytest.raises(RecipeError, match=r"pruning.macs=1e-05"):
        fitting(model, groups_of(model), 1e-5)


def test_a_network_that_cannot_be_followed_is_refused():
    with pytest.raises(TrainingError, match="DSSINet cannot be pruned"):
        groups_of(build_model("dssinet", EIGHTH))


@pytest.mark.parametrize("answer", ["varies", "constant"])
def test_groups_that_miss_a_reader_are_caught(answer):
    """A dependency that was overlooked would remove other channels than it closes."""
    model = network()
    if answer == "constant":  # as after many channels were closed at once
        torch.nn.init.zeros_(model.density_head.weight)
    groups = groups_of(model)
    wrong = grouping.ChannelGroup(
        groups[1].root,
        groups[1].channels,
        groups[1].writes,
        {layer: places.flip(0) for layer, places in groups[1].reads.items()},
    )
    with pytest.raises(TrainingError, match="does not answer"):
        remove(model, [wrong], {wrong.root: [0, 1, 2]})
    assert not model.pruned
    assert model.get_submodule(wrong.root).out_channels == wrong.channels


@pytest.mark.parametrize("name", PRUNABLE)
def test_one_exchanged_channel_is_caught(name):
    """Of the widest group, in one of the layers that read it."""
    model = network(name)
    group = max(groups_of(model), key=lambda each: each.channels)
    layer, places = next(iter(group.reads.items()))
    order = torch.tensor([1, 0, *range(2, group.channels)])
    wrong = replace(group, reads={**group.reads, layer: places[order]})
    with pytest.raises(TrainingError, match="does not answer"):
        remove(model, [wrong], {group.root: [0]})


def test_answers_that_never_vary_prove_nothing(monkeypatch):
    model = network()
    groups = groups_of(model)
    monkeypatch.setattr(type(model), "forward", lambda _model, _image: torch.ones(1, 1, 8, 8))
    with pytest.raises(TrainingError, match="does not answer"):
        remove(model, groups, {groups[0].root: [0]})


def test_an_answer_that_cancels_is_no_reason_to_refuse():
    """What is left of it is how sums were rounded, which fewer channels change."""
    model = network()
    last, head = model.back_end[-2], model.density_head
    with torch.no_grad():
        for tensor in (last.weight, last.bias):
            tensor[1::2] = tensor[0::2]
        head.weight[:, 1::2] = -head.weight[:, 0::2]
        head.bias.zero_()
        assert model(image_of(model)).abs().max() < 1e-6
    groups = groups_of(model)
    remove(model, groups, {groups[0].root: [0]})
    assert model.pruned


def summed_by_hand(reads, wanted):
    return Sums(reads.T @ reads, reads.T @ wanted, float((wanted**2).sum()))


@pytest.fixture
def layer_by_hand():
    """A layer of 8 channels of 4 places that writes 5 and needs three of its channels."""
    rng = np.random.default_rng(0)
    reads = rng.normal(size=(400, 32))
    weight = rng.normal(size=(5, 32)) * 0.01
    for channel in (1, 4, 6):
        weight[:, channel * 4 : channel * 4 + 4] *= 100
    return reads, weight, reads @ weight.T


def test_lasso_keeps_the_channels_that_matter(layer_by_hand):
    reads, weight, wanted = layer_by_hand
    sums = summed_by_hand(reads, wanted)
    assert select(sums, weight, np.arange(8), 3, area=4) == [1, 4, 6]
    assert select(sums, weight, np.array([4, 0, 6, 2]), 2, area=4) == [0, 2]  # of these, 4 and 6


def test_lasso_keeps_one_of_two_equal_channels():
    """What filters' norms cannot see: the second says nothing that the first does not."""
    rng = np.random.default_rng(1)
    reads = rng.normal(size=(300, 3))
    reads[:, 1] = reads[:, 0]
    weight = np.array([[2.0, 2.0, 1.0]])
    chosen = select(summed_by_hand(reads, reads @ weight.T), weight, np.arange(3), 2, area=1)
    assert 2 in chosen


@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
def test_lasso_is_the_least_penalised_error(share):
    """Where it ends no coefficient can lower the error by more than the penalty takes for it."""
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(50, 6))
    basis[:, 1:] += basis[:, :1]  # channels that have much in common
    shared, asked = basis.T @ basis, basis.T @ rng.normal(size=50)
    penalty, found = share * np.abs(asked).max(), np.zeros(6)
    descend(shared, asked, found, penalty)
    left, is_open = asked - shared @ found, found != 0
    tolerance = SETTLED * np.abs(shared).sum(1).max()
    assert tolerance < 0.1 * penalty or share == 0.01
    assert is_open.any()
    assert is_open.all() == (share == 0.01)
    assert (np.abs(left[~is_open]) <= penalty + tolerance).all()
    np.testing.assert_allclose(left[is_open], penalty * np.sign(found[is_open]), atol=tolerance)


def test_the_strongest_channel_enters_first():
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(50, 4))
    shared, asked = basis.T @ basis, basis.T @ rng.normal(size=50)
    assert lasso(shared, asked, 1) == [int(np.abs(asked).argmax())]


def test_rebuilding_is_least_squares(layer_by_hand, monkeypatch):
    monkeypatch.setattr(selection, "RIDGE", 1e-9)
    reads, weight, wanted = layer_by_hand
    left = np.array([1, 4, 5])
    columns = (left[:, None] * 4 + np.arange(4)).ravel()
    found = rebuilt(summed_by_hand(reads, wanted), weight, left, area=4)
    expected, *_ = np.linalg.lstsq(reads[:, columns], wanted, rcond=None)
    np.testing.assert_allclose(found[:, columns], expected.T, atol=1e-6)
    assert not found[:, np.setdiff1d(np.arange(32), columns)].any()


@pytest.mark.parametrize("num_samples", [400, 20], ids=["many", "fewer than weights"])
def test_rebuilding_is_never_worse_than_leaving_out(layer_by_hand, num_samples):
    reads, weight, wanted = (each[:num_samples] for each in layer_by_hand)
    weight = layer_by_hand[1]
    sums = summed_by_hand(reads, wanted)
    left = np.array([1, 4, 5])
    plain = np.zeros_like(weight)
    columns = (left[:, None] * 4 + np.arange(4)).ravel()
    plain[:, columns] = weight[:, columns]
    by_hand = float(((wanted - reads @ plain.T) ** 2).sum())
    assert sums.error(plain) == pytest.approx(by_hand)
    assert sums.error(rebuilt(sums, weight, left, area=4)) < 0.97 * by_hand


def test_a_layer_is_seen_as_its_convolution_sees_it():
    """Sampled patches times the weight are the convolution's own answer at these places."""
    layer = torch.nn.Conv2d(3, 4, 3, padding=2, dilation=2)
    read = torch.randn(2, 3, 9, 7)
    places = torch.tensor([[[0, 0], [8, 6], [4, 3]], [[1, 5], [0, 6], [8, 0]]])
    seen = patches(read, layer, places) @ layer.weight.detach().double().flatten(1).T
    whole = functional.conv2d(read, layer.weight, padding=2, dilation=2).permute(0, 2, 3, 1)
    expected = whole[torch.arange(2)[:, None], places[..., 0], places[..., 1]].flatten(0, 1)
    torch.testing.assert_close(seen.float(), expected, rtol=1e-4, atol=1e-5)


def test_channel_pruning_rebuilds_what_selection_alone_would_lose():
    """Where the last layer reads, and in the map of an image that nothing was rebuilt by."""
    model = network(width=Fraction(1, 16))
    groups, crops = groups_of(model), [image_of(model, 128) for _ in range(4)]
    kept = fitting(model, groups, 0.3, 1.5)
    learned = copy.deepcopy(model)
    closed = rebuild_layers(learned, groups, kept, crops, points=300)
    plain = copy.deepcopy(model)
    mask(plain, groups, closed)
    assert {root: len(gone) for root, gone in closed.items()} == {
        group.root: group.channels - kept[group.root] for group in groups
    }
    image = image_of(model, 128)
    lost = []
    for pruned in (learned, plain):
        sums = summed(pruned, model, "density_head", crops, 300)
        weight = pruned.density_head.weight.detach().double().flatten(1).numpy()
        with torch.no_grad():
            off = (pruned(image) - model(image)).norm()
        lost.append((sums.error(weight) / sums.energy, float(off)))
    assert lost[0][0] < 0.5 * lost[1][0]
    assert lost[0][1] < lost[1][1]


def test_what_channel_pruning_removes_was_at_zero():
    model = network("mcnn")
    groups = groups_of(model)
    kept = fitting(model, groups, 0.5, 1.5)
    closed = rebuild_layers(model, groups, kept, [image_of(model)], points=300)
    before = model(image_of(model).fill_(0.5))
    remove(model, groups, closed)
    assert before.std() > 1e-6
    torch.testing.assert_close(model(image_of(model).fill_(0.5)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["can", "sanet"])
def test_channel_pruning_refuses_channels_that_several_layers_read(name):
    model = network(name)
    groups = groups_of(model)
    with pytest.raises(TrainingError, match="read by") as caught:
        rebuild_layers(model, groups, fitting(model, groups, 0.5), [image_of(model)], points=5)
    assert "pruning.method=l1" in caught.value.fix
