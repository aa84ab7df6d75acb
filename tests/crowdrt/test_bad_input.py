"""Bad input to every verb: status 1, the offending thing, a fix, and nothing left behind."""

import json
import pickle
import shutil
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image


class Refusals:
    """Calls a command that must be refused, and checks what every refusal owes the user."""

    def __init__(self, crowdrt, tree, root):
        self.crowdrt, self.tree, self.root = crowdrt, tree, root

    def __call__(self, *arguments, naming):
        before = self.tree(self.root)
        answer = self.crowdrt(*arguments, "--json")
        assert (answer.code, answer.out) == (1, "")
        problem, fix = answer.err.split("error: ", 1)[1].split("\n  fix: ")
        for name in naming if isinstance(naming, tuple) else (naming,):
            assert str(name) in problem
        assert fix.strip()
        assert self.tree(self.root) == before
        return fix.strip()


@pytest.fixture
def refused(crowdrt, tree, tmp_path, monkeypatch):
    """Everything is written below `tmp_path`, the engine store too."""
    monkeypatch.setenv("CROWDRT_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Refusals(crowdrt, tree, tmp_path)


@pytest.fixture
def photos(tiny, tmp_path):
    """A folder of two good photographs, for a bad one beside them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in (0, 1):
        shutil.copy(tiny.photos / f"crowd_000{k}.jpg", folder)
    return folder


def text(path):
    path.write_text("this is no photograph\n")


def truncated(path):
    Image.fromarray(noise(200, 300)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:4000])


def one_pixel(path):
    Image.fromarray(noise(1, 1)).save(path, "PNG")


def strip(path):
    Image.fromarray(noise(3, 20000)).save(path, "JPEG")


def empty(path):
    path.touch()


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def counting(tiny, tmp_path, refused, crowdrt):
    """An engine in the store, so that a refusal has nothing to build."""
    assert crowdrt("build", tiny.onnx).code == 0
    return tiny.onnx


VERBS = {
    "count": lambda tiny, folder: ("count", tiny.onnx, folder, "--overlay", "overlays"),
    "calibrate": lambda tiny, folder: (
        *("calibrate", tiny.onnx, "--images", folder, "-o", "out/tiny.int8.onnx"),
        *("--num-images", "9"),
    ),
    "cast": lambda tiny, folder: (
        *("cast", tiny.onnx, "--fp16", "--images", folder, "-o", "out/tiny.fp16.onnx"),
    ),
}


@pytest.mark.parametrize("spoil", [text, truncated, one_pixel, strip, empty])
@pytest.mark.parametrize("verb", VERBS)
def test_a_photograph_that_cannot_be_used(verb, spoil, tiny, photos, counting, refused):
    spoil(photos / "crowd_0002.jpg")
    refused(*VERBS[verb](tiny, photos), naming=photos / "crowd_0002.jpg")


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_is_missing_or_empty(verb, tiny, tmp_path, counting, refused):
    (tmp_path / "empty").mkdir()
    refused(*VERBS[verb](tiny, "missing"), naming="missing does not exist")
    refused(*VERBS[verb](tiny, "empty"), naming="empty holds no images")


def test_a_run_on_photographs_that_cannot_be_used(tiny_recipe, tmp_path, refused, photos):
    (tmp_path / "empty").mkdir()
    refused("run", "tiny", "--data", "missing", naming="missing does not exist")
    refused("run", "tiny", "--data", "empty", naming="empty holds no images")
    fix = refused("run", "tiny", "--data", photos / "crowd_0000.jpg", naming="crowd_0000.jpg")
    assert "2 photographs" in fix


def test_training_on_photographs_that_cannot_be_used(tiny_recipe, tmp_path, refused, photos):
    (tmp_path / "empty").mkdir()
    refused("train", "tiny", "-o", "out", "--data", "missing", naming="missing does not exist")
    refused("train", "tiny", "-o", "out", "--data", "empty", naming="empty holds no images")
    refused("train", "tiny", "-o", "out", "--data", photos, naming=photos)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(200), b"\x00" * 128])
def test_an_annotation_that_is_no_mat_file(content, tiny, tmp_path, counting, refused):
    split = tmp_path / "part_A" / "test_data"
    (split / "images").mkdir(parents=True)
    (split / "ground-truth").mkdir()
    shutil.copy(tiny.photos / "crowd_0000.jpg", split / "images" / "IMG_1.jpg")
    refused("count", tiny.onnx, split, naming="GT_IMG_1.mat")
    (split / "ground-truth" / "GT_IMG_1.mat").write_bytes(content)
    refused("count", tiny.onnx, split, naming="GT_IMG_1.mat")


@pytest.mark.parametrize("content", ["", "{}", '{"heads": 3}', '{"heads": [[1, 2, 3]]}', "[1]"])
def test_an_annotation_that_holds_no_heads(content, tiny, photos, counting, refused):
    (photos / "crowd_0001.jpg.heads.json").write_text(content)
    refused("count", tiny.onnx, photos, naming="crowd_0001.jpg.heads.json")


def foreign(path):
    """A network of another tool: valid, and silent about how a photograph enters it."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["density"])],
        "foreign",
        [value("image", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [value("density", TensorProto.FLOAT, [1, 3, "h", "w"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)


NETWORKS = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": text,
    "cut short": cut_short,
    "damaged": flipped,
    "foreign": foreign,
}


@pytest.mark.parametrize("spoil", NETWORKS)
def test_a_network_that_cannot_be_used(spoil, tiny, tmp_path, photos, refused):
    bad = tmp_path / "bad.onnx"
    shutil.copy(tiny.onnx, bad)
    NETWORKS[spoil](bad)
    refused("count", bad, photos, naming=bad)
    refused("calibrate", bad, "--images", photos, "-o", "out/int8.onnx", naming=bad)
    refused("profile", bad, "--size", "96x128", "-o", "records.jsonl", naming=bad)
    if spoil != "foreign":  # which can be built, though nobody can count with it
        refused("build", bad, naming=bad)


def test_a_foreign_engine_does_not_count(crowdrt, tmp_path, photos, refused):
    foreign(tmp_path / "foreign.onnx")
    engine = crowdrt("build", tmp_path / "foreign.onnx", "--json").json()["path"]
    fix = refused("count", engine, photos, naming=engine)
    assert "crowdrt export" in fix


def test_a_folder_that_is_no_engine(tmp_path, photos, refused):
    refused("count", photos, photos, naming=(photos, "no engine folder"))


def test_a_damaged_engine(crowdrt, tiny, tmp_path, photos, refused):
    built = crowdrt("build", tiny.onnx, "--json").json()["path"]
    path = tmp_path / built / "engine.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    refused("count", built, photos, naming=(path, "altered or cut short"))
    assert crowdrt("count", tiny.onnx, photos).code == 0  # from the ONNX file it is built again


def test_weights_that_do_not_count(weights, photos, refused):
    refused("count", "missing.safetensors", photos, naming="missing.safetensors")
    (weights / "short").rename(weights / "short.safetensors")
    refused("count", "short.safetensors", photos, naming="short.safetensors")


def test_int8_of_int8(tiny, photos, refused):
    refused("calibrate", tiny.int8, "--images", photos, "-o", "o.onnx", naming=tiny.int8)


@pytest.fixture
def weights(tiny, tmp_path):
    """Files that are no weights of csrnet at width 1/16, by what is wrong with them."""
    import torch

    from crowdrt.models import build_model
    from crowdrt.models.weights import save_weights

    eighth = Fraction(1, 8)
    save_weights(build_model("csrnet", eighth), tmp_path / "width", network="csrnet", width=eighth)
    small = Fraction(1, 16)
    save_weights(build_model("bl", small), tmp_path / "network", network="bl", width=small)
    shutil.copy(tiny.weights, tmp_path / "short")
    cut_short(tmp_path / "short")
    text(tmp_path / "text")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickle")
    return tmp_path


@pytest.mark.parametrize("kind", ["missing", "width", "network", "short", "text", "pickle"])
def test_weights_that_do_not_fit(kind, weights, refused):
    command = ("export", "csrnet", "--width", "1/16", "--weights", weights / kind)
    fix = refused(*command, "-o", "out/model.onnx", naming=weights / kind)
    if kind in ("width", "network"):  # what the file does hold can be exported
        assert "crowdrt export" in fix


class Code:
    """Runs when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (type(self.victim).touch, (self.victim,))


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_a_pickle_with_code_in_it_is_not_run(suffix, tmp_path, refused):
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(pickle.dumps({"weight": Code(tmp_path / "ran")}))
    command = ("import", bad, "-o", "out/new.safetensors")
    refused(*command, *(("--network", "csrnet") if suffix == ".pth" else ()), naming=bad)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bad.read_bytes())
    assert (tmp_path / "ran").exists()  # so the file was a dangerous one


def test_imports_that_do_not_fit(tmp_path, refused):
    import torch

    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    bad = tmp_path / "foreign.pth"
    refused("import", bad, "-o", "w.safetensors", "--network", "csrnet", naming=bad)
    refused("import", "no.npz", "-o", "w.safetensors", naming="no.npz")
    refused("import", "no.npz", "-o", "w", "--width", "1/2", naming=("mcnn", "1/2", ".npz"))
    refused("import", "no.pth", "-o", "w", "--network", "resnet", naming="'resnet'")


@pytest.mark.parametrize("size", ["577x864", "576x865"])
def test_a_size_that_is_no_multiple_of_the_stride(size, tiny, refused):
    command = ("export", "csrnet", "--weights", tiny.weights, "-o", "o/model.onnx")
    fix = refused(*command, "--size", size, naming=(size, "multiple of 8"))
    assert "--size" in fix
    fix = refused("profile", tiny.onnx, "--size", size, naming=(size, "multiple of 8"))
    assert "--size 584x864" in fix or "--size 576x872" in fix


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("run", "csrnet_quarter"), "'csrnet_quarter'"),
        (("train", "nothing", "-o", "out"), "'nothing'"),
        (("export", "nothing", "-o", "out.onnx"), "'nothing'"),
        (("export", "csrnet", "-o", "out.onnx"), "csrnet has no weights"),
        (("export", "csrnet", "-o", "o", "--random", "--weights", "w"), "--weights w and --random"),
        (("export", "csrnet", "-o", "o", "--random", "--input", "int8"), "'int8'"),
        (("export", "csrnet", "-o", "o", "--random", "--opset", "9"), "opset 9"),
        (("export", "csrnet", "-o", "o", "--random", "--width", "2"), "'2'"),
        (("export", "csrnet", "-o", "o", "--random", "--size", "8x8"), "8x8"),
        (("export", "csrnet", "-o", "o", "--random", "--size", "large"), "'large'"),
        (("complexity", "resnet"), "'resnet'"),
        (("complexity", "csrnet", "--size", "0x8"), "'0x8'"),
        (("complexity", "csrnet", "--size", "1x1"), "1x1"),
        (("complexity", "csrnet", "--width", "0"), "'0'"),
        (("synthesize", "-o", "p", "--num-images", "0"), "num_images=0"),
        (("synthesize", "-o", "p", "--seed", "-1"), "seed=-1"),
        (("synthesize", "-o", "p", "--size", "8x8"), "8x8"),
        (("synthesize", "-o", "p", "--people", "many"), "people 'many'"),
        (("synthesize", "-o", "p", "--people", "9-"), "people '9-'"),
        (("synthesize", "-o", "p", "--people", "90-20"), "(90, 20)"),
        (("table", "skt-99"), "'skt-99'"),
        (("table", "skt-8", "--size", "8x8"), "8x8"),
        (("table", "skt-8", "--network", "mcnn"), "'mcnn'"),
        (("table", "skt-8", "--records", "missing.jsonl"), "missing.jsonl"),
        (("report", "missing"), "missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense(arguments, naming, refused):
    refused(*arguments, naming=naming)


def test_a_recipe_without_weights_makes_nothing_first(tiny_recipe, refused, monkeypatch):
    monkeypatch.setattr("crowdrt.pipeline.networks.shipped_weights", lambda _: None)
    fix = refused("run", "tiny", naming="'tiny' has no shipped weights")
    assert "crowdrt train tiny" in fix
    refused("export", "tiny", "-o", "o.onnx", naming="'tiny' has no shipped weights")


def test_a_recipe_of_another_width(tiny_recipe, refused):
    refused("export", "tiny", "--width", "1/8", "-o", "o.onnx", naming=("'tiny'", "1/16", "1/8"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--method", "median"),
        ("--percentile", "10"),
        ("--num-images", "0"),
        ("--weight-bits", "4"),
    ],
)
def test_calibration_options_that_make_no_sense(option, value, tiny, photos, refused):
    command = ("calibrate", tiny.onnx, "--images", photos, "-o", "o.onnx")
    refused(*command, option, value, naming=value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda _: "[]",
        lambda run: json.dumps({**run, "recipe": {}}),
        lambda run: json.dumps({**run, "stages": [{"name": "export"}]}),
        lambda run: json.dumps({**run, "stages": 3}),
        lambda run: json.dumps({**run, "overlays": [{"path": "overlays/missing.jpg"}]}),
        lambda run: json.dumps({key: run[key] for key in list(run)[1:]}),
    ],
)
def test_a_damaged_run_has_no_report(damage, tmp_path, refused):
    run = {
        "recipe": {"name": "tiny", "network": "csrnet", "width": "1/16"}, "source": "photos",
        "stages": [], "files": [], "overlays": [], "gate": "", "precisions": [],
    }  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(damage(run))
    (tmp_path / "run" / "records.jsonl").write_text("")
    fix = refused("report", "run", naming="run holds no finished run")
    assert "crowdrt run" in fix


def test_outputs_that_cannot_be_written(tiny, photos, tmp_path, counting, refused):
    (tmp_path / "taken").write_text("mine")
    taken = "taken/out"
    for command in (
        ("synthesize", "--num-images", "1", "--size", "320x320", "-o", taken),
        ("export", "csrnet", "--weights", tiny.weights, "-o", taken),
        ("calibrate", tiny.onnx, "--images", photos, "--num-images", "1", "-o", taken),
        ("build", tiny.onnx, "--store", taken),
        ("count", tiny.onnx, photos, "--store", taken),
        ("count", tiny.onnx, photos, "--overlay", taken),
    ):
        fix = refused(*command, naming=(taken, "taken is a file, not a folder"))
        assert "ls -la" in fix
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_run_that_cannot_be_written(tiny, tiny_recipe, photos, tmp_path, refused):
    (tmp_path / "taken").write_text("mine")
    refused("run", "tiny", "--data", photos, "--out", "taken/run", naming="taken is a file")
    refused("run", "tiny", "--out", "taken/run", naming="taken is a file")
    refused("train", "tiny", "--data", tiny.photos, "--out", "taken/run", naming="taken")
