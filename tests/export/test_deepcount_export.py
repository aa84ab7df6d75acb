"""DeepCount as ONNX: nothing of a dropped branch is left, and both outputs are PyTorch's."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from crowdrt.contracts import GraphInfo, UInt8Image
from crowdrt.data.images import list_images, read_image
from crowdrt.data.tiles import tiles_of, tiling_of
from crowdrt.engines.ort import OrtEngine
from crowdrt.export.deploy import ShippedNetwork, deploy
from crowdrt.export.onnx_export import export_onnx
from crowdrt.export.parity import probe_images, prove_parity
from crowdrt.models.deepcount import DeepCount
from crowdrt.onnx_file import graph_info

WIDTH, TILE = Fraction(1, 16), (384, 512)
OUTPUTS = ("count", "density:12x16")
PLAIN = {"Cast", "Sub", "Div", "Conv", "ConvTranspose", "Relu", "LeakyRelu", "MaxPool", "Concat"}


@dataclass
class Exported:
    """A deployed network and its file."""

    network: DeepCount
    path: Path
    graph: onnx.GraphProto


@pytest.fixture(scope="module", params=OUTPUTS)
def exported(request, tmp_path_factory) -> Exported:
    torch.manual_seed(3)
    model = DeepCount(WIDTH).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # no two biases alike, so that none is stored once for several
            torch.nn.init.normal_(parameter, std=0.01)
    model.keep(request.param)
    path = tmp_path_factory.mktemp("deepcount") / "model.onnx"
    info = GraphInfo(
        network="deepcount",
        width=str(WIDTH),
        preprocessing=model.preprocessing,
        density_stride=model.density_stride,
        output=request.param,
        fixed_size=model.fixed_size,
    )
    network = deploy(model, torch.randn(1, 3, *TILE))
    export_onnx(network, info, path, size=None)
    assert isinstance(network, DeepCount)
    return Exported(network, path, onnx.load(path).graph)


def names_in(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
    for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        yield value.name


def test_only_what_ships_is_in_the_file(exported):
    kept = {"branch_3"} if exported.network.kept else set()
    parts = {part for name in names_in(exported.graph) for part in re.split("[/.]", name)}
    assert {part for part in parts if part.startswith("branch")} == kept
    stored = sum(
        int(np.prod(value.dims))
        for value in exported.graph.initializer
        if value.data_type == onnx.TensorProto.FLOAT
    )
    shipped = sum(parameter.numel() for parameter in exported.network.parameters())
    assert stored == shipped + 6  # mean and std


def test_the_graph_is_plain_and_says_what_it_takes(exported):
    assert {node.op_type for node in exported.graph.node} <= PLAIN | {"Squeeze", "ReduceSum"}
    info = graph_info(exported.path)
    assert info.fixed_size == TILE
    assert info.density_stride == exported.network.density_stride
    engine = OrtEngine(exported.path, num_threads=1)
    assert engine.inputs[0].shape == (1, 3, *TILE)
    shapes = {output.name: output.shape for output in engine.outputs}
    cells = {"density": (1, 1, 12, 16)} if exported.network.kept else {}
    assert shapes == cells | {"count": (1,)}


def answers_agree(exported: Exported, tiles: list[UInt8Image]) -> None:
    """Every output, tile by tile, beside a reference that is not the same everywhere."""
    shipped = ShippedNetwork(exported.network, exported.network.preprocessing)
    engine = OrtEngine(exported.path, num_threads=1)
    people = []
    for tile in tiles:
        with torch.inference_mode():
            expected = dict(zip(shipped.output_names, shipped(torch.from_numpy(tile)), strict=True))
        got = engine.run({"image": tile})
        for name, values in expected.items():
            scale = float(values.abs().max())
            np.testing.assert_allclose(got[name], values.numpy(), rtol=0, atol=1e-4 * scale)
        if "density" in expected:
            assert expected["density"].std() > 0.05 * expected["density"].mean()
        people.append(float(expected["count"]))
    assert np.std(people) > 0.01 * np.mean(people) > 0
    assert prove_parity(exported.network, exported.path, tiles).max_rel < 1e-4


def test_both_outputs_are_pytorchs(exported):
    answers_agree(exported, probe_images(exported.network.preprocessing, [TILE, TILE]))


@pytest.mark.data
def test_both_outputs_are_pytorchs_on_tiles_of_photographs(exported, data_root):
    tiles: list[UInt8Image] = []
    for path in list_images(data_root / "ShanghaiTech/part_A/test_data/images")[:2]:
        photograph = read_image(path, "rgb")
        tiling = tiling_of(photograph.shape[1:], TILE)
        tiles += tiles_of(photograph, tiling, exported.network.preprocessing)
    answers_agree(exported, tiles)
