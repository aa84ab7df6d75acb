"""Ranges that a network learned travel to its INT8 file, whose counts are those of training."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from crowdrt import weights as shipped_weights
from crowdrt.calibration.trained import calibrate_trained
from crowdrt.contracts import IMAGENET, METADATA_KEY, CalibrationConfig, Sample
from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.data.preprocess import load_feed
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.rewrites.unsigned import unsigned_activations
from crowdrt.errors import CalibrationError, ExportError, RecipeError, WeightsError
from crowdrt.export.onnx_export import export_onnx
from crowdrt.int8 import TrainedInt8
from crowdrt.learning import Quantization, TrainingConfig
from crowdrt.manifest import read_manifest
from crowdrt.models import build_model
from crowdrt.models.network import Normalise
from crowdrt.models.weights import load_network, save_weights
from crowdrt.models.weights_info import describe_weights
from crowdrt.onnx_file import graph_info, set_info
from crowdrt.pipeline.networks import Origin
from crowdrt.pipeline.photographs import calibration_images
from crowdrt.pipeline.stages import calibrate_stage
from crowdrt.training.quantization.shaping import QuantizedShaping
from crowdrt.training.quantization.simulation import simulate
from crowdrt.verbs.precision import calibrate as verb

WIDTHS = {"csrnet": Fraction(1, 16), "mcnn": Fraction(1, 4)}
SAME = 1e-5  # sums of the float layers are in another order
STUDENT = shipped_weights.FOLDER / "csrnet-quarter.safetensors"
QAT = Quantization(method="qat", start="csrnet-quarter")


def picture(seed: int, size=(88, 120)) -> np.ndarray:
    """(H, W, 3) blobs of people-like size on a gradient."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def drawn(network: str, out: Path) -> Path:
    """Write weights that nobody trained, with biases."""
    torch.manual_seed(3)
    model = build_model(network, WIDTHS[network])
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias, std=0.1)
    save_weights(model, out, network=network, width=WIDTHS[network])
    return out


def shaped(
    start: Path,
    network: str,
    width: Fraction,
    images: Sequence[np.ndarray],
    options: Quantization,
    out: Path,
) -> Path:
    """Write weights as QAT or DoReFa ships them, ranges seen on `images`; nothing is learned."""
    config = TrainingConfig(batch_norm=False, precision="32-true", quantization=options)
    shaping = QuantizedShaping(config)
    model, *_ = load_network(start)
    normalise = Normalise(model.preprocessing)
    learning = shaping.begin(model).train()
    for image in images:
        with torch.no_grad():
            learning(normalise(torch.from_numpy(image)))
    shipped = shaping.ship(build_model(network, width), learning.state_dict())
    save_weights(shipped, out, network=network, width=width)
    return out


def learned(folder: Path, network: str, options: Quantization) -> Path:
    channels = build_model(network).preprocessing.num_channels
    images = [picture(seed).transpose(2, 0, 1)[np.newaxis, :channels].copy() for seed in range(4)]
    start = drawn(network, folder / "start.safetensors")
    return shaped(start, network, WIDTHS[network], images, options, folder / "shaped.safetensors")


def exported(weights: Path, network: str, width: Fraction | None = None) -> Path:
    origin = Origin(network=network, width=width or WIDTHS[network], weights=weights)
    model = origin.build()
    return export_onnx(
        model, origin.graph_info(model), weights.with_suffix(".onnx"), size=None
    ).path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights and their ONNX file, by network and method; each made once."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(network="csrnet", method="qat"):
        if (network, method) not in made:
            folder = tmp_path_factory.mktemp(f"{network}-{method}")
            weights = learned(folder, network, replace(QAT, method=method))
            made[network, method] = weights, exported(weights, network)
        return made[network, method]

    return make


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two pictures, the second with more contrast than any range was learned on."""
    folder = tmp_path_factory.mktemp("photographs")
    stark = np.where(picture(9) > 127, 255, 0).astype(np.uint8)
    for name, pixels in (("calm", picture(8)), ("stark", stark)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def simulated(weights: Path, image: np.ndarray, trained: TrainedInt8 | None = None) -> np.ndarray:
    """The map that training simulates, by other ranges than the file's where they are given."""
    model, *_ = load_network(weights)
    model.trained_int8 = trained or model.trained_int8
    simulate(model)
    with torch.no_grad():
        return model(Normalise(model.preprocessing)(torch.from_numpy(image))).numpy()


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two maps, of the largest value."""
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize(
    ("network", "method"), [("csrnet", "qat"), ("csrnet", "dorefa"), ("mcnn", "qat")]
)
def test_the_engine_computes_what_training_simulates(files, photographs, tmp_path, network, method):
    weights, float_path = files(network, method)
    made = calibrate_trained(float_path, tmp_path / "int8.onnx")
    int8, plain = OrtEngine(made.path, num_threads=1), OrtEngine(float_path, num_threads=1)
    model, *_ = load_network(weights)
    for path in photographs:
        image = load_feed(path, model.preprocessing)
        wanted, found = simulated(weights, image), int8.run({"image": image})
        assert wanted.std() > 0.05 * np.abs(wanted).max()
        assert apart(found["density"], wanted) < SAME
        assert found["count"] == pytest.approx(wanted.sum(), rel=1e-4)
        assert apart(plain.run({"image": image})["density"], wanted) > 100 * SAME


@pytest.mark.data
def test_the_shipped_student_in_int8_counts_what_was_simulated(data_root, smallest, tmp_path):
    """A thousand times closer than measured ranges bring the same weights to their float counts."""
    root = data_root / "ShanghaiTech"
    training, test = (smallest(shanghaitech(root, "A", part), 4) for part in ("train", "test"))
    pixels = [load_feed(each.image, IMAGENET) for each in training]
    weights = shaped(STUDENT, "csrnet", Fraction(1, 4), pixels, QAT, tmp_path / "s.safetensors")
    float_path = exported(weights, "csrnet", Fraction(1, 4))
    config = CalibrationConfig(weight_bits=8)
    stage = partial(calibrate_stage, float_path, training, config=config)
    paths = stage(tmp_path / "a.onnx").path, stage(tmp_path / "b.onnx", ignore_trained=True).path
    learned, measured, plain = (OrtEngine(path, num_threads=1) for path in (*paths, float_path))
    moved = []
    for each in test:
        image = load_feed(each.image, IMAGENET)
        wanted = simulated(weights, image).sum()
        counts = [float(e.run({"image": image})["count"][0]) for e in (learned, measured, plain)]
        moved.append((abs(counts[0] / wanted - 1), abs(counts[1] / counts[2] - 1)))
    ours, theirs = np.mean(moved, axis=0)
    print(f"INT8 against simulated: {ours:.1e}; measured ranges against float: {theirs:.1e}")
    assert ours < 1e-3 * theirs


def test_parity_notices_one_scale_that_is_two_percent_off(files, photographs, tmp_path):
    """Of every layer, the last and the first: no range is close enough to be taken for another."""
    weights, float_path = files()
    engine = OrtEngine(calibrate_trained(float_path, tmp_path / "int8.onnx").path, num_threads=1)
    trained = describe_weights(weights).trained_int8
    image = load_feed(photographs[0], load_network(weights)[0].preprocessing)
    found = engine.run({"image": image})["density"]
    for layer in trained.ranges:
        other = replace(trained, ranges=trained.ranges | {layer: 1.02 * trained.ranges[layer]})
        assert apart(found, simulated(weights, image, other)) > 100 * SAME, layer


def test_beyond_its_range_the_engine_stops_where_training_did(files, photographs, tmp_path):
    """ONNX Runtime's unsigned codes would go on to 255."""
    weights, float_path = files()
    made = calibrate_trained(float_path, tmp_path / "int8.onnx")
    told = onnx.load(made.path)
    image = load_feed(photographs[1], graph_info(told).preprocessing)
    wanted = simulated(weights, image)
    set_info(told, replace(graph_info(told), trained_int8=None))
    onnx.save(told, tmp_path / "untold.onnx")
    unclipped = OrtEngine(tmp_path / "untold.onnx", num_threads=1).run({"image": image})
    assert apart(unclipped["density"], wanted) > 100 * SAME


def test_codes_are_clipped_before_anything_reads_them(files, tmp_path):
    _, float_path = files()
    model = onnx.load(calibrate_trained(float_path, tmp_path / "int8.onnx").path)
    clipped = unsigned_activations(model)
    set_info(model, replace(graph_info(model), trained_int8=None))
    assert not any(node.op_type == "Clip" for node in unsigned_activations(model).graph.node)
    onnx.checker.check_model(clipped, full_check=True)
    zero = {node.output[0]: node.input[2] for node in clipped.graph.node
            if node.op_type == "QuantizeLinear"}  # fmt: skip
    for node in clipped.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in zero:
            assert zero[node.input[0]] != "crowdrt_uint8_0"


def test_ranges_travel(files, tmp_path):
    """Weights name layers, ONNX nodes; the manifest says where the scales are from."""
    weights, float_path = files()
    trained = describe_weights(weights).trained_int8
    told = graph_info(float_path).trained_int8
    assert list(told.ranges.values()) == list(trained.ranges.values())
    assert told.ranges["/network/back_end/back_end.10/Conv"] == trained.ranges["back_end.10"]
    made = calibrate_trained(float_path, tmp_path / "int8.onnx")
    info = graph_info(made.path)
    assert (info.precision, info.weight_bits, info.calibrated_on) == ("int8", 8, ())
    facts = read_manifest(made.path)["facts"]
    assert (facts["method"], facts["int8_macs"] > 0.99) == ("trained", True)
    scales = {node.output[0]: node.input[1] for node in onnx.load(made.path).graph.node
              if node.op_type == "QuantizeLinear"}  # fmt: skip
    assert len(scales) > len(trained.ranges)
    assert calibrate_trained(float_path, made.path).reused
    assert not calibrate_trained(float_path, made.path, list(told.ranges)[-1:]).reused


def test_the_float_network_is_not_written_over_by_its_trained_form(files):
    _, float_path = files()
    before = float_path.read_bytes()
    with pytest.raises(CalibrationError, match="network itself") as caught:
        calibrate_trained(float_path, float_path)
    assert float_path.with_suffix(".int8.onnx").name in caught.value.fix
    assert float_path.read_bytes() == before


def test_calibrating_anew_forgets_what_was_learned(files, photographs, tmp_path, capsys):
    _, float_path = files()
    samples = [Sample(image=path, heads=None) for path in photographs]
    config = CalibrationConfig(num_images=2)
    learned_form = calibrate_stage(float_path, samples, tmp_path / "a.onnx", config)
    assert "trained ranges and scales are used; no photograph is looked" in capsys.readouterr().err
    out = tmp_path / "b.onnx"
    measured = calibrate_stage(float_path, samples, out, config, ignore_trained=True)
    assert learned_form.sha256 != measured.sha256
    info = graph_info(measured.path)
    assert (info.trained_int8, info.weight_bits, len(info.calibrated_on)) == (None, 7, 2)


def test_the_verb_needs_photographs_where_nothing_was_learned(files, tmp_path):
    _, float_path = files()
    verb(float_path, tmp_path / "int8.onnx")
    assert graph_info(tmp_path / "int8.onnx").precision == "int8"
    with pytest.raises(RecipeError, match="nothing says how far") as caught:
        verb(float_path, tmp_path / "measured.onnx", ignore_trained=True)
    assert "--images DIR" in caught.value.fix


def test_no_photograph_is_missed_where_none_was_needed(files, tmp_path, capsys):
    made = calibrate_trained(files()[1], tmp_path / "int8.onnx")
    assert calibration_images([], [graph_info(made.path)]) == frozenset()
    assert capsys.readouterr().err == ""


def test_other_networks_files_stay_as_they_were(tmp_path):
    """Neither file mentions what these networks never learned."""
    model = build_model("csrnet", WIDTHS["csrnet"])
    weights = tmp_path / "plain.safetensors"
    save_weights(model, weights, network="csrnet", width=WIDTHS["csrnet"])
    with safe_open(weights, framework="pt") as file:
        told = json.loads(file.metadata()[METADATA_KEY])
    assert told.keys() == {"format", "network", "width", "facts"}
    origin = Origin(network="csrnet", width=WIDTHS["csrnet"], weights=weights)
    assert "trained_int8" not in origin.graph_info(origin.build()).to_json()


HOSTILE = {
    "NaN": {"front_end.0": float("nan")},
    "infinity": {"front_end.0": float("inf")},
    "negative": {"front_end.0": -1.0},
    "huge": {"front_end.0": 1e30},
    "a huge integer": {"front_end.0": 10**400},
    "text": {"front_end.0": "2.0"},
    "truth": {"front_end.0": True},
    "nothing": {},
    "a list": [1.0],
    "too many": {f"layer{number}": 1.0 for number in range(2000)},
}


def rewritten(weights: Path, out: Path, document: object) -> Path:
    with safe_open(weights, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = json.loads(file.metadata()[METADATA_KEY])
    told["trained_int8"] = document
    save_file(tensors, out, metadata={METADATA_KEY: json.dumps(told)})
    return out


@pytest.mark.parametrize("ranges", HOSTILE.values(), ids=HOSTILE)
def test_hostile_ranges_are_refused_in_weights_and_in_graphs(files, tmp_path, ranges):
    weights, float_path = files()
    document = {"ranges": ranges, "weight_scales": "channel", "weight_bits": 8}
    with pytest.raises(WeightsError, match="trained range") as caught:
        load_network(rewritten(weights, tmp_path / "bad.safetensors", document))
    assert len(caught.value.problem) < 500
    model = onnx.load(float_path)
    (entry,) = [each for each in model.metadata_props if each.key == METADATA_KEY]
    entry.value = json.dumps(json.loads(entry.value) | {"trained_int8": document})
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(ExportError, match="trained range"):
        calibrate_stage(tmp_path / "bad.onnx", [], tmp_path / "o.onnx", CalibrationConfig())


@pytest.mark.parametrize(
    "wrong", [{"weight_bits": 4}, {"weight_bits": True}, {"weight_scales": "x"}, {"more": 1}]
)
def test_other_things_that_training_never_says_are_refused(files, tmp_path, wrong):
    weights, _ = files()
    document = asdict(describe_weights(weights).trained_int8) | wrong
    with pytest.raises(WeightsError, match=r"weight_bits|weight_scales|trained ranges say"):
        load_network(rewritten(weights, tmp_path / "bad.safetensors", document))


def test_an_unknown_layer_is_refused(files, tmp_path):
    weights, float_path = files()
    document = asdict(describe_weights(weights).trained_int8)
    document["ranges"] = {"front_end.1": 1.0}  # a ReLU
    with pytest.raises(WeightsError, match=r"'front_end.1', no convolution of csrnet"):
        load_network(rewritten(weights, tmp_path / "bad.safetensors", document))
    model = onnx.load(float_path)
    info = graph_info(model)
    for change, problem in (({"no such node": 1.0}, "no layer"), (None, "has no trained range")):
        ranges = dict(info.trained_int8.ranges) | (change or {})
        if change is None:
            del ranges["/network/back_end/back_end.10/Conv"]
        set_info(model, replace(info, trained_int8=replace(info.trained_int8, ranges=ranges)))
        onnx.save(model, tmp_path / "bad.onnx")
        with pytest.raises(CalibrationError, match=problem) as caught:
            calibrate_trained(tmp_path / "bad.onnx", tmp_path / "o.onnx")
        assert "--ignore-trained" in caught.value.fix
