"""Foreign weights: what is understood, and that nothing in a file is ever run."""

import pickle
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crowdrt.errors import WeightsError
from crowdrt.models import build_model
from crowdrt.models.importers import import_checkpoint, import_mcnn
from crowdrt.models.mcnn import COLUMNS

EIGHTH = Fraction(1, 8)
SKT_STAGES = (2, 2, 3, 3)  # convolutions per stage of the front end
VGG16_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)


@pytest.fixture(scope="module")
def csrnet():
    torch.manual_seed(0)
    return build_model("csrnet", EIGHTH).eval()


def renamed(model, names):
    """Give the tensors the names of another code base; `names` maps module names."""
    state = model.state_dict()
    return {
        f"{names(key.rpartition('.')[0])}.{key.rpartition('.')[2]}": state[key] for key in state
    }


def csrnet_pytorch(name):
    for own, foreign in (("front_end", "frontend"), ("back_end", "backend")):
        name = name.replace(own, foreign)
    return name.replace("density_head", "output_layer")


def skt(name):
    stages = [f"conv{s}_{i}.0" for s, size in enumerate(SKT_STAGES) for i in range(size)]
    names = {f"front_end.{i}": stage for i, stage in zip(VGG16_CONVS, stages, strict=True)}
    names |= {f"back_end.{2 * i}": f"conv4_{i}.0" for i in range(6)}
    return names.get(name, "conv5_0")


def bayesian(name):
    name = name.replace("front_end", "features").replace("back_end", "reg_layer")
    return name.replace("density_head", "reg_layer.4")


def assert_same_network(path, network, model):
    image = torch.randn(1, 3, 64, 64)
    imported = import_checkpoint(path, network, EIGHTH)
    expected = model(image)
    assert expected.std() > 0
    assert not imported.training
    torch.testing.assert_close(imported(image), expected, rtol=0, atol=0)


def test_our_own_names_are_understood(csrnet, tmp_path):
    path = tmp_path / "plain.pth"
    torch.save(csrnet.state_dict(), path)
    assert_same_network(path, "csrnet", csrnet)


def test_csrnet_pytorch_is_understood(csrnet, tmp_path):
    path = tmp_path / "PartAmodel_best.pth.tar"
    state = renamed(csrnet, csrnet_pytorch)
    torch.save({"epoch": 3, "state_dict": state, "best_prec1": 66.4, "optimizer": {}}, path)
    assert "frontend.21.weight" in state
    assert_same_network(path, "csrnet", csrnet)


def test_an_old_format_is_understood(csrnet, tmp_path):
    path = tmp_path / "pytorch-0.4.pth"
    torch.save(csrnet.state_dict(), path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert_same_network(path, "csrnet", csrnet)


def test_skts_students_are_understood_and_their_adapters_left_out(csrnet, tmp_path):
    path = tmp_path / "student.pth"
    state = renamed(csrnet, skt) | {
        "transform0_0.0.weight": torch.zeros(64, 8, 1, 1),
        "transform4_3.0.bias": torch.zeros(256),
    }
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}}, path)
    assert "conv3_2.0.weight" in state
    assert_same_network(path, "csrnet", csrnet)


def test_bayesian_crowd_counting_is_understood(tmp_path):
    torch.manual_seed(0)
    model = build_model("bl", EIGHTH).eval()
    path = tmp_path / "best_model.pth"
    state = renamed(model, bayesian)
    torch.save({"model_state_dict": state}, path)
    assert {"features.34.weight", "reg_layer.2.weight", "reg_layer.4.bias"} <= set(state)
    assert_same_network(path, "bl", model)


def test_half_precision_becomes_single(csrnet, tmp_path):
    path = tmp_path / "half.pth"
    torch.save({name: t.half() for name, t in csrnet.state_dict().items()}, path)
    imported = import_checkpoint(path, "csrnet", EIGHTH)
    assert {t.dtype for t in imported.state_dict().values()} == {torch.float32}


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_code_in_a_checkpoint_is_refused_and_not_run(csrnet, tmp_path, zipped):
    path, target = tmp_path / "evil.pth", tmp_path / "touched"
    payload = {"state_dict": csrnet.state_dict(), "extra": Malicious(target)}
    torch.save(payload, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="was not run"):
        import_checkpoint(path, "csrnet", EIGHTH)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the file is a real threat: this is what it does
    assert target.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    path, target = tmp_path / "evil.pkl", tmp_path / "touched"
    path.write_bytes(pickle.dumps(Malicious(target), protocol=2))
    with pytest.raises(WeightsError, match="was not run"):
        import_checkpoint(path, "csrnet", EIGHTH)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, -200])
def test_a_truncated_checkpoint_is_refused(csrnet, tmp_path, keep):
    path = tmp_path / "cut.pth"
    torch.save(csrnet.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="damaged"):
        import_checkpoint(path, "csrnet", EIGHTH)


@pytest.mark.parametrize(
    "payload", [3, [torch.zeros(1)], {"epoch": 3}, {1: torch.zeros(1)}, {"state_dict": 3}], ids=str
)
def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path, payload):
    path = tmp_path / "other.pth"
    torch.save(payload, path)
    with pytest.raises(WeightsError, match="no state dict"):
        import_checkpoint(path, "csrnet", EIGHTH)


def test_another_width_or_network_is_refused(csrnet, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(csrnet.state_dict(), path)
    with pytest.raises(WeightsError, match=r"front_end.0.weight is \(8, 3, 3, 3\) instead of"):
        import_checkpoint(path, "csrnet", Fraction(1, 4))
    with pytest.raises(WeightsError, match="does not fit the network"):
        import_checkpoint(path, "bl", EIGHTH)


def test_two_tensors_of_one_name_are_refused(csrnet, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(csrnet.state_dict() | renamed(csrnet, csrnet_pytorch), path)
    with pytest.raises(WeightsError, match="twice"):
        import_checkpoint(path, "csrnet", EIGHTH)


def test_a_missing_checkpoint_is_refused(tmp_path):
    for load in (import_mcnn, lambda path: import_checkpoint(path, "csrnet", EIGHTH)):
        with pytest.raises(WeightsError, match="does not exist"):
            load(tmp_path / "none")


def foreign_mcnn(seed=0):
    """Arrays as the published ones: TensorFlow's layout, columns from the smallest kernels."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for column, (kernels, channels) in enumerate(reversed(COLUMNS), start=1):
        inputs = (1, *channels[:-1])
        for layer, (k, i, o) in enumerate(zip(kernels, inputs, channels, strict=True), start=1):
            scale = (2 / (k * k * i)) ** 0.5
            arrays[f"w_conv{layer}_{column}"] = rng.normal(0, scale, (k, k, i, o))
            arrays[f"b_conv{layer}_{column}"] = rng.normal(0, 0.1, o)
    arrays["w_conv5"] = rng.normal(0, 0.3, (1, 1, 30, 1))
    arrays["b_conv5"] = rng.normal(0, 0.1, 1)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def convolve(image, kernel, bias):
    """(H, W, in) -> (H, W, out), "same"; plain sums over the kernel in TensorFlow's layout."""
    size = kernel.shape[0]
    padded = np.pad(image, ((size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    height, width = image.shape[:2]
    total = np.zeros((height, width, kernel.shape[3])) + bias
    for y in range(size):
        for x in range(size):
            total += padded[y : y + height, x : x + width] @ kernel[y, x]
    return total


def reference_density(arrays, image):
    """MCNN in numpy, from the arrays as they are; (H, W) normalised grey -> (H/4, W/4)."""
    columns = []
    for column in (1, 2, 3):
        features = image[:, :, None]
        for layer in (1, 2, 3, 4):
            name = f"conv{layer}_{column}"
            features = np.maximum(convolve(features, arrays[f"w_{name}"], arrays[f"b_{name}"]), 0)
            if layer < 3:
                height, width, channels = features.shape
                blocks = features.reshape(height // 2, 2, width // 2, 2, channels)
                features = blocks.max(axis=(1, 3))
        columns.append(features)
    return convolve(np.concatenate(columns, 2), arrays["w_conv5"], arrays["b_conv5"])[:, :, 0]


def test_imported_arrays_compute_what_the_arrays_say(tmp_path):
    arrays = foreign_mcnn()
    np.savez(tmp_path / "mcnn.npz", **arrays)
    image = np.random.default_rng(1).normal(size=(24, 32))
    expected = reference_density(arrays, image)

    model = import_mcnn(tmp_path / "mcnn.npz")
    with torch.no_grad():
        density = model(torch.from_numpy(image).float()[None, None])[0, 0]

    assert expected.std() > 0.05
    assert not model.training
    np.testing.assert_allclose(density, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("w_conv2_2"), "w_conv2_2 is missing"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "more is not part"),
        (lambda arrays: arrays.update(b_conv5=np.zeros(2)), r"b_conv5 is \(2,\) instead"),
        (lambda arrays: arrays.update(b_conv5=np.array([np.nan])), "NaN or infinity"),
        (lambda arrays: arrays.update(b_conv5=np.array([{}])), "more than arrays"),
        (lambda arrays: arrays.update(b_conv5=np.array(["a"])), "more than arrays"),
        (lambda arrays: arrays.update(w_conv5=np.zeros((2**22, 1))), "far too large"),
    ],
    ids=["missing", "more", "shape", "nan", "object", "text", "bomb"],
)
def test_other_arrays_are_refused(tmp_path, change, message):
    arrays = foreign_mcnn()
    change(arrays)
    np.savez_compressed(tmp_path / "mcnn.npz", **arrays)
    with pytest.raises(WeightsError, match=message):
        import_mcnn(tmp_path / "mcnn.npz")


def test_pickled_objects_in_arrays_are_not_run(tmp_path):
    target = tmp_path / "touched"
    arrays = foreign_mcnn() | {"b_conv5": np.array([Malicious(target)])}
    np.savez(tmp_path / "mcnn.npz", **arrays)
    with pytest.raises(WeightsError, match="more than arrays"):
        import_mcnn(tmp_path / "mcnn.npz")
    assert not target.exists()


def test_an_array_that_claims_terabytes_is_refused(tmp_path):
    path = tmp_path / "mcnn.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000,), }"
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        archive.writestr("b_conv5.npy", content)
    with pytest.raises(WeightsError, match="damaged"):
        import_mcnn(path)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\x03\x04 no zip"], ids=["empty", "text", "zip"]
)
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "mcnn.npz"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        import_mcnn(path)


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(WeightsError):
        import_mcnn(tmp_path / "one.npy")


@pytest.mark.data
@pytest.mark.parametrize(("part", "numbers"), [("A", (2, 3, 5)), ("B", (2, 3, 8))])
def test_the_trained_mcnn_counts_people(data_root, part, numbers):
    """Three photographs on which the network is right within 30 %; a wrong column is far off."""
    scipy_io = pytest.importorskip("scipy.io")
    model = import_mcnn(data_root / "mcnn" / f"mcnn_tf_{part}.npz")
    folder = data_root / "ShanghaiTech" / f"part_{part}" / "test_data"
    for number in numbers:
        info = scipy_io.loadmat(folder / "ground-truth" / f"GT_IMG_{number}.mat")["image_info"]
        annotated = len(info[0, 0][0, 0][0])
        pixels = np.asarray(Image.open(folder / "images" / f"IMG_{number}.jpg").convert("L"))
        with torch.no_grad():  # their sides are multiples of 4
            density = model(torch.from_numpy((pixels[None, None] - np.float32(127.5)) / 128))
        assert density.sum().item() == pytest.approx(annotated, rel=0.3)
