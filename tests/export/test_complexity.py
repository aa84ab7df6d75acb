"""Costs: every cell that SKT prints, and counters that never lose an operator."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from crowdrt.benchmarks.tables.printed import SKT_TABLE_1, SKT_TABLE_8
from crowdrt.contracts import IMAGENET
from crowdrt.errors import ExportError, RecipeError
from crowdrt.export.complexity import MAC_OPERATORS, complexity, count, count_macs, matmul_macs
from crowdrt.export.paper_accounting import count_paper_flops
from crowdrt.models import DENSITY_NETWORKS, NETWORKS, build_model
from crowdrt.models.can import GridAverage
from crowdrt.models.mcnn import MCNN
from crowdrt.models.network import Network, fold_blocks

FULL, QUARTER = Fraction(1), Fraction(1, 4)
SIZES = ((576, 864), (768, 1024), (576, 720), (2032, 2912))

TABLE_8 = {  # SKT, Table 8: parameters in M, then FLOPs in G at the four sizes
    ("dssinet", FULL): ("8.86", "729.20", "1152.31", "607.66", "8670.09"),
    ("can", FULL): ("18.10", "218.20", "344.80", "181.83", "2594.18"),
    ("csrnet", FULL): ("16.26", "205.88", "325.34", "171.57", "2447.91"),
    ("bl", FULL): ("21.50", "205.32", "324.46", "171.10", "2441.23"),
    ("sanet", FULL): ("0.91", "33.55", "52.96", "27.97", "397.50"),
    ("csrnet", QUARTER): ("1.02", "13.09", "20.69", "10.91", "155.69"),
    ("bl", QUARTER): ("1.35", "13.06", "20.64", "10.88", "155.30"),
    ("sanet", QUARTER): ("0.058", "2.52", "3.98", "2.10", "29.92"),
}
TABLE_1 = {  # SKT, Table 1: parameters in M and FLOPs in G at 2032x2912
    ("dssinet", FULL): ("8.86", "8670.09"),
    ("can", FULL): ("18.10", "2594.18"),
    ("csrnet", FULL): ("16.26", "2447.91"),
    ("bl", FULL): ("21.50", "2441.23"),
    ("bl", QUARTER): ("1.35", "155.30"),
}
TABLE_2 = {  # SKT, Table 2: CSRNet of width 1/n, parameters in M and FLOPs in G at 576x864
    1: ("16.26", "205.88"),
    2: ("4.07", "51.77"),
    3: ("1.81", "23.11"),
    4: ("1.02", "13.09"),
    5: ("0.64", "8.45"),
}


def like(printed: str, value: int, unit: int) -> str:
    """Round `value` half up to the digits of a printed cell."""
    return str((Decimal(value) / unit).quantize(Decimal(printed), ROUND_HALF_UP))


@pytest.mark.parametrize(("network", "width"), TABLE_8, ids=str)
def test_table_8(network, width):
    params, *flops = TABLE_8[network, width]
    for size, printed in zip(SIZES, flops, strict=True):
        # Its row matches only with height and width swapped: the paper's slip, not a rule.
        counted = size[::-1] if (network, width) == ("sanet", QUARTER) else size
        row = complexity(network, width, counted)
        assert like(params, row.params, 10**6) == params
        assert like(printed, row.paper_flops, 10**9) == printed, size


def test_table_8_quarter_sanet_is_a_slip_in_one_cell():
    """Un-swapped, three of the four cells still match, and 2032x2912 is 29.89, not 29.92."""
    _, *flops = TABLE_8["sanet", QUARTER]
    rows = [complexity("sanet", QUARTER, size) for size in SIZES]
    ours = [like(cell, row.paper_flops, 10**9) for cell, row in zip(flops, rows, strict=True)]
    assert ours == ["2.52", "3.98", "2.10", "29.89"]


def test_the_tables_that_are_shown_are_the_ones_counted_here():
    """Typed twice, counted once: Table 1 repeats cells of Table 8."""
    shown = {
        (row.network, Fraction(row.width)): (
            f"{row.params_m:.{row.params_decimals}f}",
            *(f"{row.costs[size].flops_g:.2f}" for size in SIZES),
        )
        for row in SKT_TABLE_8
    }
    assert shown == TABLE_8
    at_qnrf = {(row.network, Fraction(row.width)) for row in SKT_TABLE_1}
    assert {key: (TABLE_8[key][0], TABLE_8[key][-1]) for key in at_qnrf} == TABLE_1


@pytest.mark.parametrize("n", TABLE_2)
def test_table_2(n):
    params, flops = TABLE_2[n]
    row = complexity("csrnet", Fraction(1, n), (576, 864))
    assert like(flops, row.paper_flops, 10**9) == flops
    if n == 5:  # printed 0.64: cut off, where every other cell is rounded
        assert row.params == 647_489
        assert like(params, row.params, 10**6) == "0.65"
        return
    assert like(params, row.params, 10**6) == params


def test_true_macs_are_smaller_than_the_papers_count():
    row = complexity("csrnet", FULL, (576, 864))
    assert like("0.001", row.macs, 10**9) == "205.532"
    assert like("0.001", row.paper_flops, 10**9) == "205.881"


def test_the_papers_did_not_see_an_eighth_of_dssinet():
    row = complexity("dssinet", FULL, (576, 864))
    assert like("0.001", row.macs, 10**9) == "828.938"
    assert like("0.001", row.paper_flops, 10**9) == "729.197"
    with torch.device("meta"):
        model = build_model("dssinet")
    image = torch.empty(1, 3, 576, 864, device="meta")
    assert count_paper_flops(model, image) > row.macs  # nothing is lost but what is named
    assert count_paper_flops(model, image, unseen=model.unseen) == row.paper_flops


def test_can_without_batch_norm_would_not_be_the_printed_one():
    with torch.device("meta"):
        model = build_model("can")
    params, _, paper_flops = count(fold_blocks(model), (576, 864))
    assert like("18.0001", params, 10**6) == "18.0995"
    assert like("218.20", paper_flops, 10**9) == "218.16"


def test_one_row_as_json():
    row = complexity("csrnet", QUARTER, (576, 864))
    assert json.loads(json.dumps(row.as_dict())) == {
        "network": "csrnet",
        "width": "1/4",
        "size": [576, 864],
        "params": 1_017_681,
        "macs": 13_007_070_720,
        "paper_flops": 13_094_418_528,
    }
    with pytest.raises(FrozenInstanceError):
        row.params = 0  # type: ignore[misc]


@pytest.mark.parametrize("network", NETWORKS)
def test_macs_agree_with_two_other_counters(network):
    """PyTorch's own counter, and fvcore on the CPU without the detour to the meta device."""
    model = build_model(network, Fraction(1, 8)).eval()
    height, width = model.fixed_size or (64, 96)
    image = torch.randn(1, model.preprocessing.num_channels, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    on_cpu = FlopCountAnalysis(model, image).set_op_handle("aten::matmul", matmul_macs)
    by_operator = on_cpu.unsupported_ops_warnings(False).by_operator()

    macs = complexity(network, Fraction(1, 8), (height, width)).macs

    assert macs > 10**6
    assert macs == counter.get_total_flops() / 2
    assert macs == sum(by_operator[name] for name in MAC_OPERATORS)


def test_building_for_shapes_alone_does_not_load_pytorchs_compiler():
    """It costs a second. CSRNet runs without it too; where tensors meet or are resized, not."""
    code = (
        "import sys, torch; from fractions import Fraction\n"
        "from crowdrt.export.complexity import complexity\n"
        "from crowdrt.models import NETWORKS, build_model\n"
        "with torch.device('meta'): [build_model(name, Fraction(1, 8)) for name in NETWORKS]\n"
        "complexity('csrnet', Fraction(1, 8), (64, 96))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_macs_grow_with_the_area():
    small = complexity("csrnet", QUARTER, (64, 96)).macs
    assert complexity("csrnet", QUARTER, (128, 192)).macs == 4 * small


def test_rgb_mcnn_can_be_counted():
    with torch.device("meta"):
        model = MCNN(channels="rgb")
    params, macs, paper_flops = count(model, (576, 864))
    assert params == 133_705
    assert paper_flops > macs > complexity("mcnn", FULL, (576, 864)).macs


def test_counting_takes_no_memory_and_leaves_no_weights():
    row = complexity("csrnet", FULL, (100_000, 100_000))  # 120 GB as a tensor
    assert row.macs > 10**15


def test_training_only_branches_do_not_count():
    class Student(Network):
        preprocessing = IMAGENET
        density_stride = 1
        train_only = ("adapter",)

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 1, 1)
            self.adapter = nn.Conv2d(1, 64, 1)

        def forward(self, image):
            return self.head(image)

    assert count(Student().to("meta"), (8, 8)) == (4, 3 * 64, 4 * 64)


@pytest.mark.parametrize(
    ("module", "channels", "expected"),
    [
        (nn.Conv2d(3, 8, 3), 3, (9 * 3 + 1) * 8 * 4 * 6),
        (nn.Conv2d(3, 8, 3, bias=False), 3, 9 * 3 * 8 * 4 * 6),
        (nn.Conv2d(4, 8, (1, 3), groups=2), 4, (3 * 2 + 1) * 8 * 6 * 6),
        (
            nn.ConvTranspose2d(3, 2, 3, stride=2),
            3,
            9 * 3 * 2 * 6 * 8 + 2 * 13 * 13,
        ),  # height squared
        (nn.ConvTranspose2d(3, 2, 3, stride=2, bias=False), 3, 9 * 3 * 2 * 6 * 8),
        (nn.ReLU(), 3, 3 * 6 * 8),
        (nn.PReLU(), 3, 3 * 6 * 8),
        (nn.LeakyReLU(0.2), 3, 3 * 6 * 8),
        (nn.MaxPool2d(2), 3, 3 * 6 * 8),  # input elements
        (nn.AvgPool2d(2), 3, 3 * 6 * 8),
        (nn.AdaptiveAvgPool2d(1), 3, 3 * 6 * 8),
        (nn.AdaptiveMaxPool2d(1), 3, 3 * 6 * 8),
        (nn.BatchNorm2d(3), 3, 2 * 3 * 6 * 8),
        (nn.BatchNorm2d(3, affine=False), 3, 3 * 6 * 8),
        (nn.GroupNorm(1, 3), 3, 2 * 3 * 6 * 8),
        (nn.InstanceNorm2d(3, affine=True), 3, 0),
        (nn.Upsample(scale_factor=2), 3, 3 * 12 * 16),
        (nn.Linear(8, 5), 3, (8 + 1) * 5 * 3 * 6),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), 3, 2 * 3 * 6 * 8),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_papers_rules(module, channels, expected):
    assert count_paper_flops(module.eval(), torch.zeros(1, channels, 6, 8)) == expected


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), 4),
        (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=2, groups=2), 4),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.AvgPool2d(2)), 3),
        (GridAverage(3), 3),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5)), 3),
        (nn.Sequential(nn.LeakyReLU(0.2), nn.GroupNorm(1, 3), nn.Conv2d(3, 2, 3), nn.Sigmoid()), 3),
    ],
    ids=["transposed", "strided", "batch norm", "shared matrix", "linear", "group norm"],
)
def test_macs_of_what_other_networks_use(module, channels):
    module.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, channels, 20, 24))
    expected = counter.get_total_flops() / 2
    assert expected > 0
    meta = module.to("meta")
    assert count_macs(meta, torch.empty(1, channels, 20, 24, device="meta")) == expected


def test_macs_of_functions_and_of_a_shared_convolution_count_each_time():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, image):
            again = functional.conv2d(self.conv(self.conv(image)), self.conv.weight, padding=1)
            resized = functional.interpolate(again, scale_factor=2, mode="bilinear")
            return (resized + 1) / resized.abs()

    macs = count_macs(Twice().to("meta"), torch.empty(1, 3, 4, 4, device="meta"))
    assert macs == 3 * 9 * 3 * 3 * 16


def test_an_operator_that_nobody_vouched_for_is_an_error():
    class Odd(nn.Module):
        def forward(self, image):
            return torch.erfinv(image) + torch.cumsum(image, 1)

    with pytest.raises(ExportError, match="aten::cumsum, aten::erfinv"):
        count_macs(Odd(), torch.zeros(1, 3, 4, 4))


def test_a_module_without_a_rule_is_an_error():
    class OwnConvolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 3, 1, 1))
            self.act = nn.ReLU()

        def forward(self, image):
            return self.act(functional.conv2d(image, self.weight))

    with pytest.raises(ExportError, match="no rule for the module OwnConvolution"):
        count_paper_flops(OwnConvolution(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ExportError, match="no rule for the module Softplus"):
        count_paper_flops(nn.Softplus(), torch.zeros(1, 3, 4, 4))


def test_hooks_are_gone_afterwards():
    module = nn.Conv2d(3, 1, 1)
    for image in (torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 4, 4)):
        try:
            count_paper_flops(module, image)
        except RuntimeError:
            assert image.shape[1] == 5
    assert not module._forward_hooks


@pytest.mark.parametrize("network", DENSITY_NETWORKS)
def test_an_image_too_small_is_refused_with_the_fix(network):
    with pytest.raises(ExportError, match=r"cannot run at 1x2") as caught:
        complexity(network, FULL, (1, 2))
    assert "--size 576x864" in caught.value.fix


def test_an_image_too_small_for_instance_norm_is_refused():
    with pytest.raises(ExportError, match="SANet cannot run at 8x8"):
        complexity("sanet", FULL, (8, 8))


def test_an_unknown_network_or_width_is_refused():
    with pytest.raises(RecipeError, match="choose from"):
        complexity("vgg", FULL, (64, 64))
    with pytest.raises(RecipeError, match="width"):
        complexity("csrnet", Fraction(3, 2), (64, 64))


def test_without_a_size_it_is_the_networks_own_or_the_usual_one():
    assert complexity("deepcount", Fraction(1, 8)).size == (384, 512)
    assert complexity("csrnet", QUARTER).size == (576, 864)
