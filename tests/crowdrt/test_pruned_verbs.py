"""The verbs on a pruned network: they work, and say that it is not what its width alone says."""

import json
import shutil
from fractions import Fraction

import pytest
import torch

from crowdrt.contracts import Measurement
from crowdrt.models import build_model
from crowdrt.models.weights import load_network, save_weights
from crowdrt.onnx_file import graph_info
from crowdrt.pipeline.measuring import operations_of
from crowdrt.training.pruning.groups import groups_of, remove

WIDTH = Fraction(1, 8)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Weights of 1/8-CSRNet without every second channel of its first convolution."""
    torch.manual_seed(1)
    model = build_model("csrnet", WIDTH)
    remove(model, groups_of(model), {"front_end.0": [0, 2, 4, 6]})
    path = tmp_path_factory.mktemp("pruned") / "pruned.safetensors"
    save_weights(model, path, network="csrnet", width=WIDTH)
    return path


def test_complexity_counts_what_is_in_the_file(crowdrt, pruned):
    answer = crowdrt("complexity", "--weights", pruned, "--size", "96x128", "--json")
    [row] = json.loads(answer.out)
    whole = json.loads(crowdrt("complexity", "csrnet", "--width", "1/8", "--json").out)[0]
    params = sum(each.numel() for each in load_network(pruned)[0].parameters())
    assert (row["network"], row["width"], row["params"]) == ("csrnet", "pruned 1/8", params)
    assert row["params"] == whole["params"] - 4 * (27 + 1) - 8 * 4 * 9
    assert (
        "csrnet pruned 1/8 at 96x128"
        in crowdrt("complexity", "--weights", pruned, "--size", "96x128").out
    )


@pytest.mark.parametrize(
    "args", [(), ("csrnet", "--weights", "F"), ("--weights", "F", "--width", "1/8")], ids=str
)
def test_complexity_wants_a_network_or_a_file(crowdrt, args):
    answer = crowdrt("complexity", *args)
    assert answer.code == 1
    assert "crowdrt complexity --weights FILE" in answer.err


def test_export_and_count_say_the_same(crowdrt, pruned, tiny, tmp_path):
    onnx = tmp_path / "pruned.onnx"
    answer = crowdrt("export", "csrnet", "--weights", pruned, "-o", onnx)
    assert answer.code == 0, answer.err
    assert graph_info(onnx).width == "pruned 1/8"
    assert "pruned 1/8" in crowdrt("inspect", onnx).out
    photos = tmp_path / "photos"
    shutil.copytree(tiny.photos, photos)
    counts = []
    for engine in (pruned, onnx):
        answer = crowdrt("count", engine, photos, "--json")
        assert answer.code == 0, answer.err
        counts.append([each["count"] for each in json.loads(answer.out)])
    assert len(set(counts[0])) > 1
    assert counts[0] == pytest.approx(counts[1], rel=1e-3)


def test_tables_give_a_pruned_row_no_cost_of_the_whole_network():
    def row(width):
        return Measurement(
            name=width,
            network="csrnet",
            width=width,
            engine="onnxruntime",
            engine_version="1",
            precision="fp32",
            size=(96, 128),
            num_threads=1,
            samples_ms=(1.0,),
            peak_mib=1.0,
            machine={},
            verdict="valid",
        )

    found = operations_of([row("pruned 1/8"), row("1/8")])
    assert list(found) == [("csrnet", "1/8", (96, 128))]


def test_a_recipe_whose_start_is_not_shipped_says_how_to_get_it(crowdrt, tmp_path):
    answer = crowdrt("train", "skt-5-l1filter", "--data", tmp_path, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "crowdrt train csrnet-published" in answer.err
    assert "--init START/weights.safetensors" in answer.err
