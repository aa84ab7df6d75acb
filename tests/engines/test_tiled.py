"""Tiles against the whole image: the same answer, or a refusal that says why."""

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from crowdrt.contracts import GraphInfo
from crowdrt.engines.base import check_feeds
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.tiling import engine as tiling
from crowdrt.engines.tiling.engine import ByMemory, ByRows, TiledEngine, open_tiled, tileable
from crowdrt.engines.tiling.grid import Footprint, least_bytes
from crowdrt.engines.tiling.receptive import halo
from crowdrt.engines.torch_eager import TorchEngine
from crowdrt.errors import EngineError
from crowdrt.export.deploy import ShippedNetwork
from crowdrt.export.onnx_export import describe, to_onnx
from crowdrt.models import build_model
from crowdrt.onnx_file import graph_info, set_info

MIB = 2**20
NETWORKS = {"csrnet": 8, "mcnn": 8, "bl": 16, "can": 16, "dssinet": 16}  # and 1 / width


def network(name: str, width: Fraction) -> tuple[ShippedNetwork, GraphInfo]:
    torch.manual_seed(3)
    model = build_model(name, width)
    info = GraphInfo(
        network=name,
        width=str(width),
        preprocessing=model.preprocessing,
        density_stride=model.density_stride,
    )
    return ShippedNetwork(model, model.preprocessing), info


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Networks as ONNX files, each made once."""
    folder = tmp_path_factory.mktemp("exported")

    def path_of(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            shipped, info = network(name, Fraction(1, NETWORKS.get(name, 16)))
            proto, _ = to_onnx(shipped, None, 17)
            onnx.save(describe(proto, info), path)
        return path

    return path_of


def photograph(channels: int, height: int, width: int) -> np.ndarray:
    """(1, C, H, W) uint8 with structure at every scale."""
    rng = np.random.default_rng(height * width)
    pixels = rng.integers(-40, 40, (1, channels, height, width)).astype(float)
    for side in (8, 64):
        blocks = rng.integers(0, 108, (1, channels, -(-height // side), -(-width // side)))
        pixels += np.kron(blocks, np.ones((side, side)))[..., :height, :width]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def by_rows(path: Path, rows: int, columns: int | None = None) -> TiledEngine:
    engine = open_tiled(path, tile_rows=rows, num_threads=1)
    if columns is not None:
        engine._divide = ByRows(engine._field, rows, columns)
    return engine


def assert_same(tiled, whole) -> None:
    assert tiled.keys() == whole.keys()
    density = whole["density"]
    assert density.std() > 0.01 * np.abs(density).max() > 0
    atol = 1e-5 * np.abs(density).max()
    np.testing.assert_allclose(tiled["density"], density, rtol=0, atol=atol)
    np.testing.assert_allclose(tiled["count"], whole["count"], rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_of_any_size_give_the_answer_of_the_whole(exported, name):
    """An odd number of cells; strips of one cell, a tiny last one, all in one, and columns too."""
    path = exported(name)
    whole = OrtEngine(path, num_threads=1)
    assert whole.info is not None
    unit = max(whole.info.preprocessing.stride, 8)
    height, width = (59 * unit, 7 * unit) if name != "dssinet" else (29 * unit, 3 * unit)
    image = photograph(whole.info.preprocessing.num_channels, height, width)
    answer = whole.run({"image": image})

    engine = by_rows(path, unit)
    for rows, columns in ((2, None), (9, 2), (20, 3)):
        engine._divide = ByRows(
            engine._field, rows * unit, None if columns is None else columns * unit
        )
        assert_same(engine.run({"image": image}), answer)


def test_every_strip_height_gives_the_same_map(exported):
    path = exported("csrnet")
    image = photograph(3, 61 * 8, 48)
    whole = OrtEngine(path, num_threads=1).run({"image": image})
    engine = by_rows(path, 8)
    numbers = []
    for cells in (1, 3, 4, 7, 12, 13, 20, 24, 25, 60):
        engine._divide = ByRows(engine._field, cells * 8)
        tiled = engine.run({"image": image})
        assert np.array_equal(tiled["density"], whole["density"]), cells
        numbers.append(len(engine._divide(image).rows))
    assert numbers == [25, 9, 7, 4, 3, 2, 2, 2, 1, 1]


def test_two_images_at_once(exported):
    path = exported("mcnn")
    image = np.concatenate([photograph(1, 96, 64), photograph(1, 96, 64)[..., ::-1]])
    whole = OrtEngine(path, num_threads=1).run({"image": image})
    assert_same(by_rows(path, 32, 32).run({"image": image}), whole)


def test_a_cut_is_no_border(exported):
    """On white, padding shows: it is grey, black or normalised zero, but never white."""
    path = exported("csrnet")
    image = np.full((1, 3, 640, 40), 255, np.uint8)
    engine = OrtEngine(path, num_threads=1)
    whole = engine.run({"image": image})["density"][0, 0]
    middle = whole[20:60]
    assert np.ptp(middle, axis=0).max() == 0  # the borders are far
    assert np.ptp(whole, axis=0).max() > 0.1 * np.abs(middle).max()

    tiled = by_rows(path, 160).run({"image": image})["density"][0, 0]
    naive = [engine.run({"image": image[:, :, top : top + 160]}) for top in range(0, 640, 160)]
    assert np.array_equal(tiled, whole)
    assert not np.allclose(np.concatenate([part["density"][0, 0] for part in naive]), whole)


def test_any_engine_that_gives_the_map_can_be_wrapped(exported):
    shipped, info = network("csrnet", Fraction(1, NETWORKS["csrnet"]))
    eager = TorchEngine(shipped, info)
    model = onnx.load(exported("csrnet"))
    field = tileable(model, source="csrnet")
    engine = TiledEngine(model, field, eager, ByRows(field, 64))
    image = photograph(3, 200, 64)
    assert_same(engine.run({"image": image}), eager.run({"image": image}))


def test_it_looks_like_the_engine_of_the_whole(exported):
    path = exported("bl")
    tiled, whole = by_rows(path, 64), OrtEngine(path, num_threads=1)
    assert [(s.name, s.dtype, len(s.shape)) for s in tiled.inputs] == [
        (s.name, s.dtype, len(s.shape)) for s in whole.inputs
    ]
    assert [s.name for s in tiled.outputs] == [s.name for s in whole.outputs]
    assert tiled.info == whole.info
    check_feeds({"image": photograph(3, 64, 64)}, tiled.inputs, tiled.info)
    with pytest.raises(EngineError, match="no multiple of 16"):
        tiled.run({"image": photograph(3, 72, 64)})


def test_a_graph_for_one_size_is_tiled_too(exported, tmp_path):
    shipped, info = network("can", Fraction(1, 16))
    proto, _ = to_onnx(shipped, (96, 64), 17)
    onnx.save(describe(proto, info), tmp_path / "can.onnx")
    whole = OrtEngine(tmp_path / "can.onnx", num_threads=1)
    tiled = by_rows(tmp_path / "can.onnx", 32)
    image = photograph(3, 96, 64)
    assert tiled.inputs[0].shape == (1, 3, 96, 64)
    assert str(tiled._field.obstacles[0]).startswith("MatMul (")
    assert_same(tiled.run({"image": image}), whole.run({"image": image}))


# ------------------------------------------------------------------------------- refused


def test_a_network_that_needs_the_whole_image_names_the_operator(exported):
    with pytest.raises(EngineError) as caught:
        open_tiled(exported("sanet"))
    assert re.search(r"InstanceNormalization \(\S+\) takes its statistics", caught.value.problem)
    assert "% of its memory" in caught.value.problem


def squeezed(side: int, factor: str) -> onnx.ModelProto:
    """Convolution, pool by 8 before or after attention from the whole image's mean."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 0.3, (16, 3, 3, 3)).astype(np.float32),
        "v": rng.normal(0, 0.3, (1, 16, 1, 1)).astype(np.float32),
        "axes": np.array([1, 2, 3]),
    }
    pool = {"kernel_shape": [side, side], "strides": [side, side]}
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["a"], ["b"], **pool),
        helper.make_node("GlobalAveragePool", ["b"], ["mean"], name="squeeze"),
        helper.make_node(factor, ["b", "mean"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["density"]),
        helper.make_node("ReduceSum", ["density", "axes"], ["count"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "squeezed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3, "h", "w"])],
        [
            helper.make_tensor_value_info("density", TensorProto.FLOAT, ["n", 1, "a", "b"]),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, ["n"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_only_what_saves_memory_is_tiled(tmp_path):
    path = tmp_path / "squeezed.onnx"
    onnx.save(squeezed(1, "Mul"), path)
    with pytest.raises(EngineError, match=r"GlobalAveragePool \(squeeze\) takes the mean"):
        open_tiled(path)

    onnx.save(squeezed(8, "Mul"), path)
    image = photograph(3, 200, 64)
    whole = OrtEngine(path, num_threads=1).run({"image": image})
    assert_same(by_rows(path, 40).run({"image": image}), whole)


def test_a_network_of_one_size_is_refused(graph_maker, tmp_path):
    model = graph_maker()
    info = replace(graph_info(model), network="deepcount", fixed_size=(384, 512))
    set_info(model, info)
    onnx.save(model, tmp_path / "deepcount.onnx")
    with pytest.raises(EngineError, match="deepcount takes 384x512 px and no other"):
        open_tiled(tmp_path / "deepcount.onnx")


def test_an_optimised_graph_is_refused(graph_maker, tmp_path):
    model = graph_maker()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    next(node for node in model.graph.node if node.op_type == "Conv").domain = "com.microsoft"
    with pytest.raises(
        EngineError, match=r"operators of com.microsoft, which say nothing .*: Conv \(first\)"
    ):
        tileable(model, source="optimised")


def test_what_is_wrapped_has_to_give_the_cuts_of_any_size(exported, graph_maker):
    model = onnx.load(exported("bl"))
    field = tileable(model, source="bl")
    with pytest.raises(EngineError, match="does not give"):
        TiledEngine(model, field, OrtEngine(exported("bl")), ByRows(field, 64))

    fixed = OrtEngine(graph_maker((64, 64)).SerializeToString())
    model = graph_maker()
    field = tileable(model, source="tiny")
    with pytest.raises(EngineError, match="only, tiles need any size"):
        TiledEngine(model, field, fixed, ByRows(field, 32))


def test_an_engine_of_another_network_is_noticed(exported, graph_maker):
    model = graph_maker()
    field = tileable(model, source="tiny")
    other = graph_maker()
    pool = next(node for node in other.graph.node if node.op_type == "AveragePool")
    for attribute in pool.attribute:
        attribute.ints[:] = [4, 4]
    engine = TiledEngine(model, field, OrtEngine(other.SerializeToString()), ByRows(field, 32))
    with pytest.raises(EngineError, match="another network"):
        engine.run({"image": photograph(3, 64, 64)})


@pytest.mark.parametrize("rows", [12, 0, -8])
def test_strips_that_do_not_fit_the_strides_are_refused(tiny_onnx, rows):
    with pytest.raises(EngineError, match="a multiple of 8") as caught:
        open_tiled(tiny_onnx, tile_rows=rows)
    assert caught.value.fix == "use --tile-rows 8"


def test_a_strip_larger_than_the_image_is_refused(tiny_onnx, pixels):
    with pytest.raises(EngineError, match="tiles of 48 px are larger than the image, 40x64"):
        open_tiled(tiny_onnx, tile_rows=48).run({"image": pixels})
    open_tiled(tiny_onnx, tile_rows=40).run({"image": pixels})


# ------------------------------------------------------------------------------- by memory


@pytest.fixture
def resident(monkeypatch):
    """The process takes 100 MiB, whatever else the tests loaded."""
    monkeypatch.setattr(tiling, "resident_bytes", lambda: 100 * MIB)


def grid_of(footprint: Footprint, max_memory: int, image: np.ndarray):
    return ByMemory(footprint, max_memory)(image)


def test_tiles_shrink_with_the_memory(resident, exported):
    model = onnx.load(exported("csrnet"))
    footprint = Footprint(model, tileable(model, source="csrnet"))
    image = np.zeros((1, 3, 2048, 1024), np.uint8)
    needs = []
    for memory in (2000, 600, 300, 200, 180):
        grid = grid_of(footprint, memory * MIB, image)
        need = 100 * MIB + footprint.total((2048, 1024), grid.tile)
        assert need <= memory * MIB
        assert f"at most {need / MIB:.0f} MiB in all" in str(grid)
        needs.append(need)
    assert "in one piece; at most" in str(grid_of(footprint, 2000 * MIB, image))
    assert needs == sorted(needs, reverse=True)


def test_a_memory_that_is_too_little_names_one_that_does(resident, exported):
    model = onnx.load(exported("csrnet"))
    footprint = Footprint(model, tileable(model, source="csrnet"))
    image = np.zeros((1, 3, 2048, 1024), np.uint8)
    with pytest.raises(EngineError, match="is too little for 2048x1024 px") as caught:
        grid_of(footprint, 110 * MIB, image)
    enough = re.search(r"--max-memory (\d+)MiB", caught.value.fix)
    assert enough is not None
    assert len(grid_of(footprint, int(enough[1]) * MIB, image).rows) > 5


def test_a_head_that_does_not_fit_is_too_little_too(resident, exported):
    model = onnx.load(exported("can"))
    footprint = Footprint(model, tileable(model, source="can"))
    size = (4096, 4096)
    held, head = footprint.whole(size)
    assert head > held > 0
    image = np.zeros((1, 3, *size), np.uint8)
    least = least_bytes(footprint, size)
    assert least >= head
    with pytest.raises(EngineError, match="too little"):
        grid_of(footprint, 100 * MIB + head - 1, image)
    assert len(grid_of(footprint, 100 * MIB + least, image).rows) > 1


def test_memory_is_given_back_before_the_head_and_the_next_photograph(exported, monkeypatch):
    released = []
    run = OrtEngine.run

    def noted(self, feeds, *, release=False):
        released.append(release)
        return run(self, feeds, release=release)

    monkeypatch.setattr(OrtEngine, "run", noted)
    by_rows(exported("mcnn"), 32).run({"image": photograph(1, 160, 64)})
    assert released == [False, False, True, True]  # three strips, and the sum of the map


def test_the_process_is_measured_at_each_photograph(monkeypatch, exported):
    model = onnx.load(exported("csrnet"))
    footprint = Footprint(model, tileable(model, source="csrnet"))
    taken = iter([100 * MIB, 150 * MIB])
    monkeypatch.setattr(tiling, "resident_bytes", lambda: next(taken))
    divide = ByMemory(footprint, 300 * MIB)
    image = np.zeros((1, 3, 1024, 1024), np.uint8)
    first, second = divide(image).tile, divide(image).tile
    assert first[0] * first[1] > second[0] * second[1]


def test_the_halo_is_the_networks(exported):
    """138 px of 1/8-CSRNet reach into the next tile on each side: 144, with whole cells."""
    field = tileable(onnx.load(exported("csrnet")), source="csrnet")
    assert (field.alignment(0), halo(field, 0), halo(field, 1)) == (8, (144, 144), (144, 144))


def test_how_an_image_is_divided_is_said_once(exported, capsys):
    engine = by_rows(exported("mcnn"), 32)
    for _ in range(2):
        engine.run({"image": photograph(1, 160, 64)})
    said = capsys.readouterr().err
    assert said.count("in 3 strips of 104x64 px, overlaps included") == 1


def test_resident_memory_is_that_of_this_process():
    before = tiling.resident_bytes()
    block = np.ones(64 * MIB, np.uint8)
    assert 48 * MIB < tiling.resident_bytes() - before < 80 * MIB
    assert block[0]


def test_resident_memory_is_assumed_where_it_is_not_told(monkeypatch, tmp_path):
    monkeypatch.setattr(tiling, "STATUS", tmp_path / "statm")
    assert tiling.resident_bytes() == tiling.ASSUMED_RESIDENT
