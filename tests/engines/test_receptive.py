"""What a graph is said to read, against what it reads when its pixels are moved."""

import random

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from crowdrt.engines.tiling.receptive import (
    ReceptiveField,
    band_of,
    bands_of,
    halo,
    inside,
    receptive_field,
)
from crowdrt.errors import EngineError

CHANNELS = 2
SEEDS = range(24)


class Drawing:
    """A random graph of local operators with positive weights: no pixel can hide."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, np.ndarray] = {}

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def store(self, array: np.ndarray) -> str:
        name = f"c{len(self.stored)}"
        self.stored[name] = array
        return name

    def conv(self, x: str) -> str:
        kernel, dilation = [self.pick.choice((1, 2, 3, 5)) for _ in "hw"], self.pick.choice((1, 2))
        weights = self.rng.uniform(0.2, 1, (CHANNELS, CHANNELS, *kernel)).astype(np.float32)
        return self.add(
            "Conv",
            x,
            self.store(weights / weights.sum()),
            dilations=[dilation, 1],
            strides=[self.pick.choice((1, 1, 2)), self.pick.choice((1, 2))],
            pads=[self.pick.randint(0, side - 1) for side in (*kernel, *kernel)],
        )

    def pool(self, x: str) -> str:
        kernel = self.pick.choice((2, 3))
        return self.add(
            self.pick.choice(("MaxPool", "AveragePool")),
            x,
            kernel_shape=[kernel, kernel],
            strides=[self.pick.choice((1, 2)), 2],
            pads=[self.pick.randint(0, 1) for _ in range(4)],
            ceil_mode=self.pick.choice((0, 1)),
        )

    def up(self, x: str) -> str:
        kernel = self.pick.choice((2, 3, 4))
        weights = self.rng.uniform(0.2, 1, (CHANNELS, CHANNELS, kernel, kernel))
        crop, stride = self.pick.randint(0, 1), self.pick.choice((1, 2, 3))
        return self.add(
            "ConvTranspose",
            x,
            self.store(weights.astype(np.float32)),
            strides=[stride, stride],
            pads=[crop, 0, self.pick.randint(0, 1), crop],
            output_padding=[self.pick.randint(0, stride - 1), 0],
        )

    def resize(self, x: str) -> str:
        scales = np.array([1, 1, self.pick.choice((0.5, 2)), self.pick.choice((0.5, 2))])
        mode, place = self.pick.choice(
            (("linear", "half_pixel"), ("linear", "asymmetric"), ("nearest", "asymmetric"))
        )
        return self.add(
            "Resize",
            x,
            "",
            self.store(scales.astype(np.float32)),
            mode=mode,
            coordinate_transformation_mode=place,
            nearest_mode=self.pick.choice(("floor", "round_prefer_ceil")),
        )

    def branches(self, x: str) -> str:
        ways = []
        for kernel in (3, 5):
            weights = self.rng.uniform(0.2, 1, (1, CHANNELS, kernel, kernel)).astype(np.float32)
            pads = [kernel // 2] * 4
            ways.append(self.add("Conv", x, self.store(weights), pads=pads))
        return self.add("Concat", *ways, axis=1)

    def model(self) -> onnx.ModelProto:
        x = "image"
        kinds = [self.conv, self.pool, self.up, self.resize, self.branches]
        for make in self.pick.choices(kinds, weights=[5, 2, 1, 2, 1], k=5):
            x = make(self.add("Relu", x))
        self.nodes[-1].output[0] = "density"
        graph = helper.make_graph(
            self.nodes,
            "drawn",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, CHANNELS, "h", "w"])],
            [helper.make_tensor_value_info("density", TensorProto.FLOAT, [None] * 4)],
            [numpy_helper.from_array(array, name) for name, array in self.stored.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def runner(model: onnx.ModelProto):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda image: session.run(["density"], {"image": image})[0]


def moved(run, image: np.ndarray, axis: int) -> np.ndarray:
    """(rows of the image, rows of the map): which rows move when a row of the image does."""
    before = run(image)
    hits = []
    for row in range(image.shape[2 + axis]):
        bumped = image.copy()
        np.moveaxis(bumped, 2 + axis, 0)[row] += 1e4
        change = np.abs(run(bumped) - before)
        hits.append(np.moveaxis(change, 2 + axis, 0).reshape(before.shape[2 + axis], -1).max(1) > 0)
    return np.array(hits)


def at_the_border(field, axis: int, side: int, row: int) -> bool:
    """Whether a row of the map reads otherwise than it would far inside a larger image."""
    shift = 64 * field.alignment(axis)
    moved_row = row + int(shift * field.scales(axis)["density"])
    inner = field.needed(axis, side + 2 * shift, {"density": (moved_row, moved_row + 1)})["image"]
    here = field.needed(axis, side, {"density": (row, row + 1)})["image"]
    return (inner[0] - shift, inner[1] - shift) != here


@pytest.mark.parametrize("seed", SEEDS[:8])
def test_rows_and_columns_read_are_those_that_move_the_map(seed):
    model = Drawing(seed).model()
    field, run = receptive_field(model), runner(model)
    image = np.random.default_rng(seed).uniform(0, 1, (1, CHANNELS, 61, 90)).astype(np.float32)
    exact = 0

    for axis, side in enumerate(image.shape[2:]):
        hits = moved(run, image, axis)
        assert field.lengths(axis, side)["density"] == hits.shape[1]
        for row in range(hits.shape[1]):
            readers = np.flatnonzero(hits[:, row])
            first, last = field.needed(axis, side, {"density": (row, row + 1)})["image"]
            assert all(first <= reader < last for reader in readers), (axis, row)
            # at a border the row that would be first may lie in the padding
            if len(readers) and not at_the_border(field, axis, side, row):
                assert (first, last) == (readers[0], readers[-1] + 1), (axis, row)
                exact += 1

    assert exact > 10


def test_one_pixel_moves_no_more_than_its_rows_and_columns():
    model = Drawing(0).model()
    field, run = receptive_field(model), runner(model)
    image = np.random.default_rng(1).uniform(0, 1, (1, CHANNELS, 61, 90)).astype(np.float32)
    before = run(image)
    for pixel in ((0, 0), (30, 40), (60, 89), (17, 3)):
        bumped = image.copy()
        bumped[..., pixel[0], pixel[1]] += 1e4
        rows, columns = np.nonzero((run(bumped) != before).any(axis=(0, 1)))
        assert len(rows)
        for axis, cells in enumerate((rows, columns)):
            for cell in set(cells.tolist()):
                side = image.shape[2 + axis]
                first, last = field.needed(axis, side, {"density": (cell, cell + 1)})["image"]
                assert first <= pixel[axis] < last


def put_together(run, axis: int, image: np.ndarray, bands, whole: np.ndarray) -> np.ndarray:
    """The map from bands along one axis, each run on its own."""
    found = np.full_like(whole, np.nan)
    for band in bands:
        there = [slice(None)] * 4
        there[2 + axis] = slice(*band.feed)
        given = run(np.ascontiguousarray(image[tuple(there)]))
        assert given.shape[2 + axis] == band.given["density"]
        there[2 + axis] = slice(*band.own["density"])
        part = given[tuple(there)]
        there[2 + axis] = slice(*band.keep["density"])
        assert np.isnan(found[tuple(there)]).all()
        found[tuple(there)] = part
    return found


def parts_of(field, axis: int, side: int, step: int):
    """Bands that are fed no more than they need."""
    parts = [(start, min(start + step, side)) for start in range(0, side, step)]
    bands = [band_of(field, axis, side, part) for part in parts]
    return [band for band in bands if band is not None]


@pytest.mark.parametrize("seed", SEEDS)
def test_bands_put_together_are_the_map(seed):
    model = Drawing(seed).model()
    field, run = receptive_field(model), runner(model)
    image = np.random.default_rng(seed).uniform(0, 1, (1, CHANNELS, 53, 47)).astype(np.float32)
    whole = run(image)
    for axis in (0, 1):
        unit = field.alignment(axis)
        for step in (unit, 3 * unit, -(-128 // unit) * unit):
            for bands in (
                parts_of(field, axis, image.shape[2 + axis], step),
                bands_of(field, axis, image.shape[2 + axis], step),
            ):
                found = put_together(run, axis, image, bands, whole)
                np.testing.assert_allclose(found, whole, rtol=1e-5)


@pytest.mark.parametrize("side", [200, 203, 96, 8])
def test_all_bands_are_fed_alike(side):
    line = "density = Conv <strides = [4, 4], pads = [3, 3, 3, 3]> (image, w)"
    field = receptive_field(graph(line, w=np.ones((1, 2, 9, 9), F)))
    assert halo(field, 0) == (4, 4)
    for step in (4, 12, 40, 200):
        bands = bands_of(field, 0, side, step)
        fed = {band.feed[1] - band.feed[0] for band in bands}
        assert fed <= ({side} if len(bands) == 1 else {step + 8, step + 8 + side % 4})
        assert [band.keep["density"][0] for band in bands[1:]] == [
            band.keep["density"][1] for band in bands[:-1]
        ]
    assert len(bands_of(field, 0, 200, 40)) == 5


@pytest.mark.parametrize("smaller", [(1, 0), (0, 1)], ids=["above", "below"])
def test_a_halo_one_row_smaller_is_wrong(monkeypatch, smaller):
    weights = np.random.default_rng(0).uniform(0.2, 1, (1, 2, 5, 5)).astype(F)
    model = graph("density = Conv <pads = [2, 2, 2, 2], dilations = [1, 1]> (image, w)", w=weights)
    field, run = receptive_field(model), runner(model)
    image = np.random.default_rng(0).uniform(0, 1, (1, 2, 30, 20)).astype(F)
    whole = run(image)
    assert np.array_equal(put_together(run, 0, image, parts_of(field, 0, 30, 10), whole), whole)

    needed = ReceptiveField.needed

    def too_few(self, axis, side, wanted):
        spans = needed(self, axis, side, wanted)
        first, last = spans["image"]
        first, last = first + (first > 0) * smaller[0], last - (last < side) * smaller[1]
        return spans | {"image": (first, last)}

    monkeypatch.setattr(ReceptiveField, "needed", too_few)
    wrong = put_together(run, 0, image, parts_of(field, 0, 30, 10), whole) != whole
    assert sorted(set(np.nonzero(wrong)[2])) == ([10, 20] if smaller[0] else [9, 19])


def test_most_graphs_are_drawn_with_strides_and_answer_differently_everywhere():
    fields = [receptive_field(Drawing(seed).model()) for seed in SEEDS]
    assert sum(field.alignment(0) > 1 for field in fields) > len(fields) / 2
    image = np.random.default_rng(0).uniform(0, 1, (1, CHANNELS, 53, 47)).astype(np.float32)
    assert all(runner(Drawing(seed).model())(image).std() > 1e-4 for seed in SEEDS)


@pytest.mark.parametrize("scale", [0.5, 2])
def test_cubic_resizing_reads_four_rows(scale):
    model = graph('density = Resize <mode = "cubic"> (image, , scale)',
                  scale=np.array([1, 1, scale, scale], F))  # fmt: skip
    image = np.random.default_rng(0).uniform(0, 1, (1, 2, 32, 32)).astype(F)
    hits = moved(runner(model), image, 0)
    row = hits.shape[1] // 2
    assert hits[:, row].sum() == 4
    first, last = receptive_field(model).needed(0, 32, {"density": (row, row + 1)})["image"]
    assert (first, last) == (np.flatnonzero(hits[:, row])[0], np.flatnonzero(hits[:, row])[-1] + 1)


@pytest.mark.parametrize(
    ("span", "part"),
    [((-3, 2), (0, 2)), ((8, 14), (8, 10)), ((-5, -2), (0, 1)), ((12, 15), (9, 10))],
)
def test_what_lies_in_the_padding_reads_the_row_at_the_edge(span, part):
    assert inside(span, 10) == part


def graph(*lines: str, **stored: np.ndarray) -> onnx.ModelProto:
    body = "\n".join(lines)
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2, H, W] image) => (float[N, C, h, w] density) {{ {body} }}"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in stored.items())
    for node in model.graph.node:
        node.name = f"the_{node.op_type}"
    return model


F = np.float32
OBSTACLES = {
    "InstanceNormalization": ["density = InstanceNormalization (x, one, one)"],
    "GlobalAveragePool": ["density = GlobalAveragePool (x)"],
    "ReduceMean": ["density = ReduceMean <axes = [2, 3]> (x)"],
    "MatMul": ["density = MatMul (x, square)"],
    "Reshape": ["density = Reshape (x, shape)"],
    "Softmax": ["density = Softmax <axis = 3> (x)"],
    "Add": ["density = Add (x, map)"],
    "Concat": ["density = Concat <axis = 1> (x, map)"],
    "Resize": ['density = Resize <mode = "linear", coordinate_transformation_mode = '
               '"align_corners"> (x, , twice)'],
    "Pad": ['density = Pad <mode = "reflect"> (x, pads)'],
}  # fmt: skip
STORED = {
    "one": np.ones(2, F),
    "square": np.ones((8, 8), F),
    "shape": np.array([0, 4, 4, -1]),
    "map": np.ones((1, 2, 8, 8), F),
    "twice": np.array([1, 1, 2, 2], F),
    "thrice": np.array([1, 1, 3, 3], F),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "channel": np.ones((2, 1, 1), F),
}


@pytest.mark.parametrize("operator", OBSTACLES)
def test_what_needs_the_whole_image_is_named(operator):
    field = receptive_field(graph("x = Relu (image)", *OBSTACLES[operator], **STORED))
    assert [(o.operator, o.node) for o in field.obstacles] == [(operator, f"the_{operator}")]
    assert field.cuts == ("x",)
    assert str(field.obstacles[0]).startswith(f"{operator} (the_{operator}) ")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('density = Resize <mode = "linear"> (x, , thrice)', "by 3, which is no power of two"),
        ('density = Resize <mode = "nearest"> (x, , , sizes)', "to a size"),
        ('density = MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)',
         "auto_pad=SAME_UPPER"),
        ("density, places = MaxPool <kernel_shape = [3, 3]> (x)", "positions"),
        ("density = Conv (x, x)", "weights"),
        ("density = Mystery (x)", "not known"),
    ],
)  # fmt: skip
def test_the_reason_is_given(line, why):
    field = receptive_field(graph("x = Relu (image)", line, **STORED))
    assert why in field.obstacles[0].why


@pytest.mark.parametrize(
    "line",
    [
        "density = Mul (x, channel)",
        "density = Softmax <axis = 1> (x)",
        "density = ReduceMax <axes = [1]> (x)",
        "density = BatchNormalization (x, one, one, one, one)",
        'density = Pad <mode = "edge"> (x, pads)',
    ],
)
def test_what_works_on_each_pixel_alone_is_local(line):
    field = receptive_field(graph("x = Relu (image)", line, **STORED))
    assert field.cuts == ("density",)
    assert not field.obstacles


def test_an_operator_of_another_domain_is_not_taken_for_onnxs_own():
    model = graph("density = Conv (image, map)", **STORED)
    model.graph.node[0].domain = "com.example"
    with pytest.raises(EngineError, match=r"No opset import for domain com\.example"):
        receptive_field(model)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert "com.example" in receptive_field(model).obstacles[0].why


def test_what_goes_by_the_size_is_named_and_not_the_size_itself():
    lines = ("s = Shape (x)", "t = Cast <to = 1> (s)", "density = MatMul (x, t)")
    field = receptive_field(graph("x = Relu (image)", *lines))
    assert [str(o) for o in field.obstacles] == [
        "MatMul (the_MatMul) mixes all places of the image"
    ]
    assert field.cuts == ("x",)
    lines = ("s = Shape (x)", "density = Slice (x, zero, s, channels)")
    stored = {"zero": np.zeros(1, np.int64), "channels": np.ones(1, np.int64)}
    field = receptive_field(graph("x = Relu (image)", *lines, **stored))
    assert "goes by the size of the whole image" in field.obstacles[0].why


def test_of_an_int8_map_the_codes_are_handed_over():
    lines = ("xq = QuantizeLinear (image, s, z)", "x = DequantizeLinear (xq, s, z)",
             *OBSTACLES["Resize"])  # fmt: skip
    model = graph(*lines, **STORED, s=F(0.1), z=np.uint8(0))
    assert receptive_field(model).cuts == ("xq",)


def test_maps_of_different_strides_are_not_added():
    field = receptive_field(
        graph("x = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)",
              "density = Add (x, image)")
    )  # fmt: skip
    assert "different strides" in field.obstacles[0].why


def test_a_graph_that_reads_no_image_is_refused():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2] numbers) => (float[N, 2] density) { density = Relu (numbers) }"""
    )
    with pytest.raises(EngineError, match="numbers"):
        receptive_field(model)
