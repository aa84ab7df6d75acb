"""What only training needs is found wherever it hides, and what was removed is named."""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from crowdrt.contracts import IMAGENET, GraphInfo
from crowdrt.data.images import read_image
from crowdrt.data.preprocess import pad_to_stride
from crowdrt.errors import ExportError, ParityError
from crowdrt.export.deploy import ShippedNetwork, deploy
from crowdrt.export.onnx_export import export_onnx, to_onnx
from crowdrt.export.strip import in_branch, prove_stripped
from crowdrt.manifest import read_manifest
from crowdrt.models import build_model
from crowdrt.models.network import Network
from crowdrt.onnx_graph import layer_macs, num_parameters


class Outputs(NamedTuple):
    density: Tensor
    mask: Tensor


class Masked(Network):
    """A density head that ships, and a mask head of two layers that only training needs."""

    preprocessing = IMAGENET
    density_stride = 4
    train_only: tuple[str, ...] = ("mask_head",)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 1, 1)
        self.mask_head = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def look(self, image: Tensor) -> Tensor:
        return nn.functional.max_pool2d(torch.relu(self.body(image)), 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.look(image))

    def forward_train(self, image: Tensor):
        features = self.look(image)
        return Outputs(self.head(features), self.mask_head(features).sigmoid())


@pytest.fixture
def masked() -> Network:
    torch.manual_seed(0)
    return Masked().eval()


@pytest.fixture
def exported(masked, info, pictures, tmp_path, no_simplifier) -> Callable:
    """Deploy and export a network; returns what `prove_stripped` takes."""

    def export(model: Network = masked):
        shipped = deploy(model, torch.randn(1, 3, 32, 48))
        path = tmp_path / "model.onnx"
        export_onnx(shipped, info, path, size=None)
        return model, shipped, path, pictures

    return export


def prove(model, shipped, path, pictures):
    return prove_stripped(model, shipped, path, pictures, size=None)


def change(path, *, nodes=(), **stored):
    """Put nodes and arrays into the file at `path`."""
    model = onnx.load(path)
    model.graph.node.extend(nodes)
    for name, array in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(array), name))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def used(path, name, array):
    """Put `array` into the file so that the count depends on it, though its value does not."""
    model = onnx.load(path)
    (maker,) = [node for node in model.graph.node if "count" in node.output]
    maker.output[0] = "count_before"
    onnx.save(model, path)
    nodes = [
        helper.make_node("ReduceSum", [name], ["all"], keepdims=0),
        helper.make_node("Mul", ["all", "nothing"], ["still_nothing"]),
        helper.make_node("Add", ["count_before", "still_nothing"], ["count"]),
    ]
    change(path, nodes=nodes, nothing=np.float32(0), **{name: array})


def test_what_is_removed_is_counted_and_named(exported):
    found = prove(*exported())
    params, per_cell = 6 * 5 * 9 + 5 + 5 + 1, 6 * 5 * 9 + 5
    assert found.branches == ("mask_head",)
    assert found.branch_params == params == found.before.params - found.after.params
    assert found.parameters == tuple(
        f"mask_head.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")
    )
    assert [name.rsplit("/", 1)[-1] for name in found.nodes] == ["Conv", "Relu", "Conv", "Sigmoid"]
    assert found.before.nodes - 4 == found.after.nodes
    assert found.before.macs - found.after.macs == (576 // 4) * (864 // 4) * per_cell
    assert found.size == (576, 864)
    assert found.compared == "forward_train"
    assert found.max_rel < 1e-5
    assert found.alike == ("mask_head.2.bias",)  # a single number


def test_parameters_and_macs_are_those_of_the_file(exported):
    found = prove(*(arguments := exported()))
    file = onnx.load(arguments[2])
    assert num_parameters(file.graph) == found.after.params
    assert sum(layer_macs(file, found.size).values()) == found.after.macs
    assert found.file_nodes == len(file.graph.node)


def test_a_graph_without_weights_has_the_nodes_of_one_with_them(exported):
    model, shipped, path, pictures = exported()
    graph, _ = to_onnx(ShippedNetwork(shipped, IMAGENET), (96, 160), 17)
    inside = sum(node.name.startswith("/network/") for node in graph.graph.node)
    assert 0 < inside < len(graph.graph.node) - 3  # normalisation and count stand outside
    assert prove(model, shipped, path, pictures).after.nodes == inside


def test_the_training_network_is_left_alone(exported):
    model, *others = exported()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    prove(model, *others)
    assert model.training
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_network_without_branches_has_nothing_to_say(exported):
    torch.manual_seed(0)
    model = build_model("csrnet", Fraction(1, 16)).eval()
    found = prove(*exported(model))
    assert (found.branches, found.parameters, found.nodes, found.alike) == ((),) * 4
    assert found.before == found.after
    assert found.max_rel is None
    assert found.lines() == []


def test_a_stored_tensor_that_nothing_needs_is_found(exported):
    model, shipped, path, pictures = exported()
    change(path, forgotten=model.mask_head[0].weight.detach().numpy())
    with pytest.raises(ExportError, match="initializer forgotten"):
        prove(model, shipped, path, pictures)


def test_a_node_that_nothing_needs_is_found(exported):
    model, shipped, path, pictures = exported()
    change(path, nodes=[helper.make_node("Relu", ["density"], ["mask"], name="forgotten")])
    with pytest.raises(ExportError, match="node forgotten"):
        prove(model, shipped, path, pictures)


ORDERS = {
    "as it was": lambda weight: weight,
    "transposed": lambda weight: weight.transpose(3, 2, 0, 1),
    "flat and backwards": lambda weight: weight.ravel()[::-1],
}


@pytest.mark.parametrize("order", ORDERS)
def test_numbers_of_a_branch_are_found_under_another_name(exported, order):
    model, shipped, path, pictures = exported()
    weight = model.mask_head[0].weight.detach().numpy()
    used(path, "onnx::Conv_99", ORDERS[order](weight))
    with pytest.raises(ExportError, match=r"mask_head\.0\.weight.* as onnx::Conv_99") as caught:
        prove(model, shipped, path, pictures)
    assert "train_only" in caught.value.fix


def test_other_numbers_are_not_mistaken_for_a_branchs(exported):
    model, shipped, path, pictures = exported()
    weight = model.mask_head[0].weight.detach().numpy().copy()
    weight.flat[7] = np.nextafter(weight.flat[7], np.float32(9))
    used(path, "onnx::Conv_99", weight)
    assert prove(model, shipped, path, pictures).branches == ("mask_head",)


def test_numbers_that_say_nothing_are_said_to(exported, masked):
    with torch.no_grad():
        masked.mask_head[0].bias.zero_()
        masked.mask_head[2].bias.copy_(masked.head.bias)
    model, shipped, path, pictures = exported(masked)
    used(path, "onnx::Conv_99", np.zeros(5, np.float32))
    assert prove(model, shipped, path, pictures).alike == ("mask_head.0.bias", "mask_head.2.bias")


def test_a_name_of_a_branch_is_found_whatever_it_holds(exported, masked):
    with torch.no_grad():
        masked.mask_head[0].bias.zero_()
    model, shipped, path, pictures = exported(masked)
    used(path, "network.mask_head.0.bias", np.zeros(5, np.float32))
    with pytest.raises(ExportError, match=r"still holds network\.mask_head\.0\.bias"):
        prove(model, shipped, path, pictures)


class Leaking(Masked):
    """Its shipped answer goes through the branch, which a list hides from `delattr`."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [self.mask_head]

    def forward(self, image: Tensor) -> Tensor:
        features = self.look(image)
        return self.head(features) + self.hidden[0](features)


def test_a_branch_that_ships_is_found_and_nothing_is_written(info, tmp_path, no_simplifier):
    torch.manual_seed(0)
    model = Leaking().eval()
    shipped = deploy(model, torch.randn(1, 3, 32, 48))
    assert not hasattr(shipped, "mask_head")
    export_onnx(shipped, info, tmp_path / "unproven.onnx", size=None)
    with pytest.raises(ExportError, match=r"mask_head"):
        export_onnx(shipped, info, tmp_path / "model.onnx", size=None, training=model)
    assert {each.name for each in tmp_path.iterdir()} == {"unproven.onnx", "unproven.onnx.json"}


def test_another_answer_than_the_training_networks_is_found(exported):
    model, shipped, path, pictures = exported()
    with torch.no_grad():
        model.head.bias.add_(0.1)
    with pytest.raises(ParityError, match="density"):
        prove(model, shipped, path, pictures)


class Unnamed(Masked):
    """What its losses see has names of its own."""

    def forward_train(self, image: Tensor):
        density, mask = super().forward_train(image)
        return {"raw": -density, "masks": [mask]}


class Named(Masked):
    """A mapping that has the output's name, and a wrong answer under it."""

    def forward_train(self, image: Tensor):
        density, mask = super().forward_train(image)
        return {"mask": mask, "density": density + 0.1}


def test_what_is_compared(exported):
    torch.manual_seed(0)
    assert prove(*exported(Unnamed().eval())).compared == "forward"
    with pytest.raises(ParityError, match="density"):
        prove(*exported(Named().eval()))


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("/network/head/Conv", True),
        ("/network/head.0/Conv", True),
        ("/network/head_1/Conv", True),  # called again
        ("/head/head.1/Relu", True),
        ("network.head.weight", True),
        ("head.0.weight", True),
        ("/network/head_2/Conv", False),  # one that ships
        ("/network/header/Conv", False),
        ("/network/body/head/Conv", False),
        ("onnx::Conv_12", False),
        ("head", False),
    ],
)
def test_where_a_name_lies(name, inside):
    assert in_branch(name, ("head",), {"head_2", "body"}) is inside


def test_an_export_records_and_says_it(masked, info, tmp_path, no_simplifier, capsys):
    shipped = deploy(masked, torch.randn(1, 3, 32, 48))
    path = tmp_path / "model.onnx"
    export_onnx(shipped, info, path, size=(40, 64), training=masked)
    facts = read_manifest(path)["facts"]["stripped"]
    assert facts["size"] == [40, 64]
    assert facts["branches"] == ["mask_head"]
    assert facts["before"]["params"] - facts["after"]["params"] == facts["branch_params"] == 281
    said = capsys.readouterr()
    assert said.out == ""
    assert "stripped mask_head (281 parameters): " in said.err
    assert " MACs at 40x64" in said.err
    assert "forward_train of the training network and the file differ by" in said.err


def test_skts_adapters(info, tmp_path, no_simplifier, pictures):
    torch.manual_seed(0)
    model = build_model("skt", Fraction(1, 4)).eval()
    shipped = deploy(model, torch.randn(1, 3, 32, 48))
    path = tmp_path / "model.onnx"
    export_onnx(shipped, info, path, size=None)
    found = prove(model, shipped, path, pictures)
    assert (found.before.params, found.after.params) == (1_123_409, 1_017_681)
    assert found.branch_params == 105_728
    assert (found.before.nodes, found.after.nodes) == (48, 36)  # the copies of equal biases aside
    assert found.after.macs == 13_007_070_720
    channels = ((16, 64), (16, 64), (32, 128), (64, 256), (128, 512), (64, 256))
    cells = [576 * 864 // stride**2 for stride in (1, 2, 4, 8, 8, 8)]
    added = sum(i * o * area for (i, o), area in zip(channels, cells, strict=True))
    assert found.before.macs - found.after.macs == added
    convs = [name for name in found.nodes if name.endswith("Conv")]
    assert len(convs) == 6
    assert all("adapters" in name for name in convs)
    assert found.alike == tuple(name for name in found.parameters if "bias" in name)  # all 0


def test_deepcounts_branches_but_the_kept_one(tmp_path, no_simplifier):
    output = "density:12x16"
    torch.manual_seed(0)
    model = build_model("deepcount", Fraction(1, 16)).eval()
    model.keep(output)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 384, 512)).astype(np.uint8)
    shipped = deploy(model, torch.from_numpy(image) / 60 - 2)
    info = GraphInfo(
        network="deepcount", width="1/16", preprocessing=IMAGENET, density_stride=8,
        output=output, fixed_size=(384, 512),
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    export_onnx(shipped, info, path, size=None)
    found = prove(model, shipped, path, [image])
    assert found.branches == ("branch_5", "branch_4", "branch_2", "branch_1")
    assert found.before.params - found.branch_params == found.after.params
    assert {name.split(".")[0] for name in found.parameters} == set(found.branches)
    assert found.compared == "forward"  # the losses see the count before its ReLU
    assert found.after.macs < found.before.macs
    assert not any(name.startswith("/front_end") for name in found.nodes)


class Untraceable(Masked):
    """Its losses see an orthogonal basis of the map, for which ONNX has no operator."""

    def forward_train(self, image: Tensor):
        return Outputs(super().forward(image), torch.linalg.qr(self.look(image))[0])


def test_a_training_graph_that_cannot_be_traced(exported):
    torch.manual_seed(0)
    with pytest.raises(ExportError, match=r"cannot be traced: .*qr"):
        prove(*exported(Untraceable().eval()))


@pytest.mark.data
def test_on_real_photographs(info, tmp_path, no_simplifier, data_root):
    torch.manual_seed(0)
    model = build_model("skt", Fraction(1, 16)).eval()
    files = sorted((data_root / "ShanghaiTech").rglob("part_A/test_data/images/*.jpg"))[:2]
    pictures = [pad_to_stride(read_image(file, "rgb"), IMAGENET)[None] for file in files]
    assert len(pictures) == 2
    path = tmp_path / "model.onnx"
    shipped = deploy(model, torch.randn(1, 3, 32, 48))
    export_onnx(shipped, info, path, size=None, images=pictures, training=model)
    facts = read_manifest(path)["facts"]["stripped"]
    assert facts["compared"] == "forward_train"
    assert 0 < facts["max_rel"] < 1e-5
