import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_graphs import FLOAT, INFO, from_text, network, picture, run, with_outputs

from crowdrt.calibration.layerwise import LayerwiseGraph, cut, free_sizes
from crowdrt.errors import CalibrationError


@pytest.mark.parametrize(
    ("kind", "watched"),
    [
        ("vgg", ["normal", "p1", "r2", "p2", "r3", "density"]),
        ("columns", ["normal", "pa", "pb", "both", "fused"]),
        ("normed", ["y1", "r1", "y2", "up"]),
    ],
)
def test_pieces_give_what_the_whole_graph_gives(kind, watched):
    model = network(kind)
    image = picture()
    whole = run(with_outputs(model, dict.fromkeys(watched, FLOAT)), {"image": image})

    seen = []
    for name, array in LayerwiseGraph(model, watched).run({"image": image}):
        assert array.std() > 1e-3, "a constant would agree with anything"
        np.testing.assert_allclose(array, whole[name], atol=1e-5 * np.abs(whole[name]).max())
        seen.append(name)
    assert sorted(seen) == sorted(watched)


def test_only_what_leads_to_a_watched_tensor_runs():
    pieces = cut(network("vgg"), ["p1"])
    ops = [node.op_type for piece in pieces for node in piece.model.graph.node]
    assert ops == ["Cast", "Sub", "Div", "Conv", "Relu", "MaxPool"]


def test_each_node_runs_in_one_piece():
    model = network("columns")
    pieces = cut(model, ["normal", "pa", "pb", "both", "fused"])
    ran = [node.name for piece in pieces for node in piece.model.graph.node]
    assert len(ran) == len(set(ran)) == 12
    assert pieces[1].inputs == pieces[2].inputs == ("normal",)


def test_a_watched_input_is_handed_out():
    model = network(info=replace(INFO, normalised_input=True))
    image = picture()
    name, array = next(LayerwiseGraph(model, ["image", "p1"]).run({"image": image}))
    assert name == "image"
    assert array is image


def test_a_graph_for_one_size_takes_images_of_any():
    graph = LayerwiseGraph(network(size=(32, 32)), ["p1"])
    for height, width in ((32, 32), (40, 64), (24, 48)):
        [(_, array)] = graph.run({"image": picture(height, width)})
        assert array.shape == (1, 8, height // 2, width // 2)


def test_freeing_sizes_leaves_the_model_alone():
    model = network(size=(32, 32))
    before = model.SerializeToString()
    freed = free_sizes(model)
    assert model.SerializeToString() == before
    assert [a.dim_param for a in freed.graph.input[0].type.tensor_type.shape.dim][2:] != ["", ""]


BAKED = """
    pixels = Cast <to = 1> (image)
    flat = Reshape (pixels, fixed_sizes)
    density = Conv (flat, w1, b1)
    count = ReduceSum <keepdims = 0> (density, axes)
"""


def test_a_size_inside_the_graph_is_reported():
    model = from_text(BAKED, {"w1": (1, 3, 1, 1)}, size=(8, 8))
    graph = LayerwiseGraph(model, ["flat"])
    with pytest.raises(CalibrationError, match=r"(?s)flat.*--size dynamic"):
        list(graph.run({"image": picture(16, 16)}))


LARGE = """
import resource, sys
import numpy as np
sys.path.insert(0, {folder!r})
from small_graphs import NORMALISE, from_text
from crowdrt.calibration.layerwise import LayerwiseGraph

layers = 24
text = NORMALISE + "r0 = Conv (normal, w0, b0)"
shapes = {{"w0": (16, 3, 1, 1)}}
for i in range(layers):
    text += f" y{{i}} = Conv (r{{i}}, v{{i}}) r{{i + 1}} = Relu (y{{i}})"
    shapes[f"v{{i}}"] = (16, 16, 1, 1)
text += f" density = Conv (r{{layers}}, w9) count = ReduceSum <keepdims = 0> (density, axes)"
model = from_text(text, shapes | {{"w9": (1, 16, 1, 1)}})
watched = [f"r{{i}}" for i in range(layers + 1)]

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

graph = LayerwiseGraph(model, watched, num_threads=1)
list(1 for _ in graph.run({{"image": np.zeros((1, 3, 32, 32), np.uint8)}}))
before = peak_mib()
image = np.random.default_rng(0).integers(0, 256, (1, 3, 512, 1024), dtype=np.uint8)
tensor_mib = 0
for _, array in graph.run({{"image": image}}):
    tensor_mib = array.nbytes / 2**20
print(tensor_mib * len(watched), peak_mib() - before)
"""


def test_memory_holds_the_live_tensors_only():
    code = LARGE.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    all_at_once, used = map(float, done.stdout.split())
    assert all_at_once == 800  # MiB: 25 tensors of 32
    assert used < 250
