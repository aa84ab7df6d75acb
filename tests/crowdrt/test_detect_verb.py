"""`crowdrt detect` with a small detector, a real ONNX file: it boxes bright cells of 8x8 px."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from crowdrt.contracts import IMAGENET, GraphInfo
from crowdrt.manifest import sha256_file
from crowdrt.onnx_file import graph_info, set_info

CELL, NUM_DETECTIONS = 8, 20
PIXELS = replace(IMAGENET, stride=16)


def detector(
    path, *, size=None, label=0, scale=1.0, num_scores=NUM_DETECTIONS, normalised=False, raw=False
):
    """Write a detector: a cell's score is its brightness, its box the cell itself.

    It lists the brightest cells, whatever their score; or answers every cell (`raw`).
    """
    height, width = size or ("h", "w")
    constants = {
        "corner": np.array([0, 0, CELL, CELL], np.float32),
        "pixels": np.array(CELL * scale, np.float32),
        "white": np.array(255, np.float32),
        "yx": np.array([3, 2, 3, 2]),
        "mean": np.array(PIXELS.mean, np.float32).reshape(1, 3, 1, 1),
        "std": np.array(PIXELS.std, np.float32).reshape(1, 3, 1, 1),
    }
    node, value = helper.make_node, helper.make_tensor_value_info
    levels = (
        [node("Mul", ["image", "std"], ["scaled"]), node("Add", ["scaled", "mean"], ["float"])]
        if normalised
        else [node("Cast", ["image"], ["float"], to=TensorProto.FLOAT)]
    )
    cells = [
        node("ReduceMean", ["float"], ["grey"], axes=[1]),
        node("AveragePool", ["grey"], ["cells"], kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        node("Div", ["cells", "white"], ["brightness"]),
        node("Add", ["brightness", "white"], ["not_zero"]),
        node("NonZero", ["not_zero"], ["where"]),
        node("Gather", ["where", "yx"], ["xyxy"], axis=0),
        node("Transpose", ["xyxy"], ["rows"], perm=[1, 0]),
        node("Cast", ["rows"], ["steps"], to=TensorProto.FLOAT),
        node("Mul", ["steps", "pixels"], ["left_top"]),
        node("Add", ["left_top", "corner"], ["every"]),
    ]
    answer, outputs, more = every_cell() if raw else brightest_cells(label, num_scores)
    kind = TensorProto.FLOAT if normalised else TensorProto.UINT8
    graph = helper.make_graph(
        [*levels, *cells, *answer],
        "detector",
        [value("image", kind, [1, 3, height, width])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in (constants | more).items()],
    )
    return save(
        graph, path, network="dsla", density_stride=8, output="boxes", normalised_input=normalised
    )


def brightest_cells(label, num_scores):
    """The nodes, outputs and constants of a detector that is decoded inside the graph."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Reshape", ["brightness", "flat"], ["all"]),
        node("TopK", ["all", "k"], ["best", "index"]),
        node("Slice", ["best", "zero", "last", "one"], ["scores"]),
        node("Gather", ["every", "index"], ["boxes"], axis=0),
        node("Mul", ["index", "zero"], ["none"]),
        node("Add", ["none", "label"], ["labels"]),
    ]
    outputs = [
        value("boxes", TensorProto.FLOAT, [1, NUM_DETECTIONS, 4]),
        value("scores", TensorProto.FLOAT, [1, num_scores]),
        value("labels", TensorProto.INT64, [1, NUM_DETECTIONS]),
    ]
    numbers = {"flat": [1, -1], "k": [NUM_DETECTIONS], "zero": [0], "one": [1]}
    numbers |= {"last": [num_scores], "label": [label]}
    return nodes, outputs, {name: np.array(each) for name, each in numbers.items()}


def every_cell():
    """The same of one that is decoded outside: a logit is ten times the brightness, less five."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Unsqueeze", ["every", "zero"], ["boxes"]),
        node("Reshape", ["brightness", "column"], ["by_cell"]),
        node("Mul", ["by_cell", "ten"], ["ten_times"]),
        node("Sub", ["ten_times", "five"], ["logits"]),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, [1, "cells", 1]),
        value("boxes", TensorProto.FLOAT, [1, "cells", 4]),
    ]
    ten, five = np.array(10, np.float32), np.array(5, np.float32)
    numbers = {"zero": np.array([0]), "column": np.array([1, -1, 1]), "ten": ten, "five": five}
    return nodes, outputs, numbers


def save(graph, path, **info):
    """Write a graph with what it says of itself."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    set_info(model, GraphInfo(width="1", preprocessing=PIXELS, **info))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def engine(tmp_path):
    return detector(tmp_path / "detector.onnx")


def photograph(path, cells, *, size=(64, 96), level=255):
    """Write a dark photograph where people are bright cells; returns their boxes."""
    pixels = np.full((*size, 3), 10, np.uint8)
    for row, column in cells:
        pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return [box_of(row, column) for row, column in cells]


def box_of(row, column):
    return [CELL * column, CELL * row, CELL * (column + 1), CELL * (row + 1)]


def xywh(boxes):
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]


@pytest.fixture
def sets(tmp_path):
    """One photograph with two people in every layout, by the layout's name."""
    boxes = photograph(tmp_path / "s" / "img1" / "000001.png", [(1, 2), (4, 7)])
    (tmp_path / "s" / "seqinfo.ini").write_text("[Sequence]\nimDir=img1\n")
    (tmp_path / "s" / "gt").mkdir()
    rows = [f"1,1,{x + 1},{y + 1},{w},{h},1,1,1\n" for x, y, w, h in xywh(boxes)]
    (tmp_path / "s" / "gt" / "gt.txt").write_text("".join(rows))

    photograph(tmp_path / "Images" / "a.jpg", [(1, 2), (4, 7)])
    people = [{"tag": "person", "fbox": box} for box in xywh(boxes)]
    (tmp_path / "val.odgt").write_text(json.dumps({"ID": "a", "gtboxes": people}) + "\n")

    document = {
        "images": [{"id": 1, "file_name": "Images/a.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": b} for b in xywh(boxes)],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "people.json").write_text(json.dumps(document))
    return {"mot": tmp_path / "s", "odgt": tmp_path / "val.odgt", "coco": tmp_path / "people.json"}


def refusal(answer, *named):
    """The fix of a command that was refused for what is named."""
    assert (answer.code, answer.out) == (1, "")
    problem, fix = answer.err.split("error: ", 1)[1].split("\n  fix: ")
    for name in named:
        assert str(name) in problem
    return fix


def test_a_row_per_photograph(crowdrt, engine, tmp_path):
    folder = tmp_path / "photos"
    boxes = photograph(folder / "1.png", [(4, 7), (1, 2)])
    photograph(folder / "2.png", [])
    rows = crowdrt("detect", engine, folder, "--json").json()
    assert [list(row) for row in rows] == [["image", "boxes", "scores", "annotated"]] * 2
    assert rows[0]["image"] == str(folder / "1.png")
    assert sorted(rows[0]["boxes"]) == sorted(boxes)
    assert (rows[0]["scores"], rows[0]["annotated"]) == ([1.0, 1.0], None)
    assert (rows[1]["boxes"], rows[1]["scores"]) == ([], [])


@pytest.mark.parametrize("layout", ["mot", "odgt", "coco"])
def test_what_is_found_is_held_against_the_annotation(crowdrt, engine, sets, layout):
    (row,) = crowdrt("detect", engine, sets[layout], "--json").json()
    assert (len(row["boxes"]), row["annotated"]) == (2, 2)
    answer = crowdrt("detect", engine, sets[layout])
    assert answer.out.splitlines()[-1] == (
        "AP 100.0, AP@[.5:.95] 100.0, MR^-2 0.0, JI 100.0, Recall 100.0 % "
        "for 2 people on 1 annotated photographs, with every score; 0.00 duplicates per person "
        "found from score 0.3 on, and AP 100.0 % behind suppression"
    )


def test_the_measures_see_every_score_and_the_count_does_not(crowdrt, engine, sets, tmp_path):
    photograph(tmp_path / "Images" / "a.jpg", [(1, 2), (4, 7)], level=60)
    answer = crowdrt("detect", engine, sets["odgt"])
    assert answer.out.splitlines()[1].split() == ["a.jpg", "0", "2"]
    assert "AP 100.0" in answer.out
    (row,) = crowdrt("detect", engine, sets["odgt"], "--score", 0.2, "--json").json()
    assert len(row["boxes"]) == 2


def test_an_annotated_box_ends_where_the_photograph_does(crowdrt, engine, sets, tmp_path):
    photograph(tmp_path / "Images" / "a.jpg", [(1, 0)])
    line = {"ID": "a", "gtboxes": [{"tag": "person", "fbox": [-20, 8, 28, 8]}]}
    sets["odgt"].write_text(json.dumps(line))
    assert "AP 100.0, AP@[.5:.95] 100.0" in crowdrt("detect", engine, sets["odgt"]).out


def quantized(path, *, scale=1.0, calibrated_on=()):
    """The detector under the name of INT8; one whose boxes are of another scale finds less."""
    model = onnx.load(detector(path, scale=scale))
    info = replace(graph_info(model), precision="int8").with_calibration(calibrated_on or ["0"])
    set_info(model, info)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("scale", "held"), [(1.0, True), (1.5, False)])
def test_a_detector_beside_its_reference(crowdrt, engine, sets, tmp_path, scale, held):
    int8 = quantized(tmp_path / "int8.onnx", scale=scale)
    command = ("detect", int8, sets["odgt"], "--against", engine)
    found = crowdrt(*command, "--json").json()
    assert found["reference"]["ap50"] == 1
    assert (found["quality"]["ap50"] == 1) is held
    assert found["gate"]["held"] is held
    said = crowdrt(*command).out
    assert "reference: AP 100.0" in said
    assert ("the default gate of this precision: held" in said) is held
    assert ("at least 99.00% is tolerated (FP32 100.00%)" in said) is not held


def test_a_photograph_that_made_the_detector_is_in_no_measure(crowdrt, engine, sets, tmp_path):
    digest = sha256_file(tmp_path / "Images" / "a.jpg")
    int8 = quantized(tmp_path / "int8.onnx", calibrated_on=[digest])
    answer = crowdrt("detect", int8, sets["odgt"])
    assert "AP" not in answer.out
    assert answer.out.splitlines()[-1] == ("left out: 1 that the network was calibrated on")
    assert "AP 100.0" in crowdrt("detect", engine, sets["odgt"]).out


@pytest.mark.data
def test_on_real_streets(crowdrt, engine, data_root):
    folder = data_root / "MOT17-mini" / "train" / "MOT17-05-FRCNN"
    rows = crowdrt("detect", engine, folder, "--json").json()
    assert [row["annotated"] for row in rows] == [6, 6, 7, 8, 9, 9]
    assert all(0 < len(row["boxes"]) <= NUM_DETECTIONS for row in rows)
    assert np.max(next(row["boxes"] for row in rows if row["boxes"])) <= 640
    shown = crowdrt("detect", engine, folder).out
    assert "for 45 people on 6 annotated photographs" in shown


def test_people_for_people(crowdrt, engine, sets, tmp_path):
    photograph(tmp_path / "[red]:cat:.png", [(0, 0)])
    answer = crowdrt("detect", engine, tmp_path / "[red]:cat:.png", sets["mot"])
    assert [line.split() for line in answer.out.splitlines()[:3]] == [
        ["photograph", "people", "annotated"],
        ["[red]:cat:.png", "1"],
        ["000001.png", "2", "2"],
    ]
    assert "2 people on 1 annotated" in answer.out
    plain = crowdrt("detect", engine, tmp_path / "[red]:cat:.png")
    assert "AP" not in plain.out


def test_the_padding_holds_nobody(crowdrt, engine, tmp_path):
    # 52x70 is padded to 64x80 with a grey that is brighter than the score asks for
    boxes = photograph(tmp_path / "odd.png", [(6, 8), (2, 3)], size=(52, 70))
    (row,) = crowdrt("detect", engine, tmp_path / "odd.png", "--score", 0.35, "--json").json()
    edge = [[64, 48, 70, 52], boxes[1]]
    assert all(box in row["boxes"] for box in edge[1:])
    assert np.array(row["boxes"]).max(axis=0).tolist() <= [70, 52, 70, 52]
    assert edge[0] in row["boxes"]
    assert all(x1 < 70 and y1 < 52 for x1, y1, *_ in row["boxes"])


def test_an_engine_of_one_size_pads_and_says_how_to_shrink(crowdrt, tmp_path):
    engine = detector(tmp_path / "fixed.onnx", size=(64, 96))
    boxes = photograph(tmp_path / "small.png", [(1, 2)], size=(48, 64))
    (row,) = crowdrt("detect", engine, tmp_path / "small.png", "--score", 0.9, "--json").json()
    assert row["boxes"] == boxes

    photograph(tmp_path / "large.png", [(2, 4), (2, 5), (3, 4), (3, 5)], size=(120, 180))
    answer = crowdrt("detect", engine, tmp_path / "large.png", "--json")
    fix = refusal(answer, "large.png is 120x180 px", "at most 64x96")
    short = next(word for word in fix.replace(",", "").split() if word.isdecimal())
    command = ("detect", engine, tmp_path / "large.png", "--short-side", short, "--score", 0.6)
    (row,) = crowdrt(*command, "--json").json()
    # bright from 32, 16 to 48, 32: one cell of the photograph at 64/120 of its size
    assert row["boxes"][0] == pytest.approx([30, 15, 45, 30], abs=0.01)


def test_a_short_side_may_enlarge(crowdrt, engine, tmp_path):
    photograph(tmp_path / "a.png", [(1, 2)], size=(64, 96))
    command = ("detect", engine, tmp_path / "a.png", "--score", 0.8, "--json")
    (row,) = crowdrt(*command, "--short-side", 128).json()
    assert row["boxes"]
    for x1, y1, x2, y2 in row["boxes"]:  # cells of 4 px inside the bright one
        assert 16 <= x1 < x2 <= 24
        assert 8 <= y1 < y2 <= 16
        assert x2 - x1 == 4


def test_a_detector_that_is_fed_normalised_images(crowdrt, engine, sets, tmp_path):
    other = detector(tmp_path / "float.onnx", normalised=True)
    assert (
        crowdrt("detect", other, sets["mot"], "--json").json()
        == crowdrt("detect", engine, sets["mot"], "--json").json()
    )


def test_cells_are_decoded_beside_the_graph(crowdrt, engine, sets, tmp_path):
    raw = detector(tmp_path / "raw.onnx", raw=True)
    (row,) = crowdrt("detect", raw, sets["mot"], "--score", 0.9, "--json").json()
    (decoded,) = crowdrt("detect", engine, sets["mot"], "--score", 0.9, "--json").json()
    assert row["boxes"] == decoded["boxes"]
    assert row["scores"] == pytest.approx([1 / (1 + np.exp(-5))] * 2, abs=1e-4)


def test_only_people_are_boxed(crowdrt, sets, tmp_path):
    engine = detector(tmp_path / "cars.onnx", label=2)
    (row,) = crowdrt("detect", engine, sets["mot"], "--json").json()
    assert row["boxes"] == []


def test_overlays(crowdrt, engine, sets, tmp_path):
    overlays = tmp_path / "new" / "overlays"
    photograph(tmp_path / "b" / "000001.png", [(0, 0)])
    crowdrt("detect", engine, sets["mot"], tmp_path / "b", "--overlay", overlays, "--json").json()
    names = sorted(path.name for path in overlays.iterdir())
    assert names == ["000001-2.boxes.jpg", "000001.boxes.jpg"]
    with Image.open(overlays / names[0]) as one, Image.open(overlays / names[1]) as other:
        assert one.size == other.size == (800, round(800 * 64 / 96) + 65)
        assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": float("nan")}, "boxes that are no finite numbers"),
        ({"num_scores": NUM_DETECTIONS - 1}, "'scores': (1, 19)"),
    ],
)
def test_a_detector_that_answers_nonsense(crowdrt, sets, tmp_path, options, said):
    engine = detector(tmp_path / "bad.onnx", **options)
    refusal(crowdrt("detect", engine, sets["mot"], "--json"), "000001.png", said)


def counter(path):
    """Write a network with a density map and its sum."""
    value, node = helper.make_tensor_value_info, helper.make_node
    graph = helper.make_graph(
        [
            node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            node("ReduceMean", ["float"], ["density"], axes=[1]),
            node("ReduceSum", ["density", "axes"], ["count"], keepdims=0),
        ],
        "counter",
        [value("image", TensorProto.UINT8, [1, 3, "h", "w"])],
        [
            value("density", TensorProto.FLOAT, [1, 1, "h", "w"]),
            value("count", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.array([1, 2, 3]), "axes")],
    )
    return save(graph, path, network="csrnet", density_stride=1)


def test_engines_that_do_something_else(crowdrt, engine, sets, tmp_path):
    answer = crowdrt("detect", counter(tmp_path / "counter.onnx"), sets["mot"], "--json")
    assert "crowdrt count" in refusal(answer, "density, count")
    answer = crowdrt("count", engine, sets["mot"] / "img1", "--json")
    assert "crowdrt detect" in refusal(answer, "boxes")


def test_annotations_that_cannot_be_used(crowdrt, engine, sets, tmp_path, tree):
    before = tree(tmp_path)

    def refused(layout, *options):
        command = ("detect", engine, sets[layout], "--overlay", tmp_path / "o", *options)
        return crowdrt(*command, "--json")

    assert "person" in refusal(refused("coco", "--category", "zebra"), "zebra")
    assert "head" in refusal(refused("odgt", "--box", "body"), "body")
    assert "--images" in refusal(refused("odgt", "--images", tmp_path / "x"), "line 1", "a.jpg")
    refusal(crowdrt("detect", engine, tmp_path / "s", tmp_path / "no", "--json"), "does not exist")
    assert tree(tmp_path) == before
    line = {"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, -3, 4]}]}
    sets["odgt"].write_text(json.dumps(line) + "\n")
    refusal(refused("odgt"), "line 1, box 1", "-3 px wide")
    sets["odgt"].write_text("{}\nfbox\n")
    refusal(refused("odgt"), "line 1")


def test_wrong_usage_is_status_2(crowdrt, engine, sets):
    for options in (("--score", 2), ("--short-side", 0), ("--min-visibility", -1)):
        assert crowdrt("detect", engine, sets["mot"], *options).code == 2
