"""A tiny network in every form, made once, and the command line called in this process."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from crowdrt.contracts import CalibrationConfig, Gate, Recipe, Sample
from crowdrt.learning import TrainingConfig

sys.path.insert(0, str(Path(__file__).parent))  # for swept

WIDTH = Fraction(1, 16)
PHOTO_SIZE = (112, 136)
PEOPLE = (5, 20)
ANYTHING = Gate(mae_increase=99, bias_shift=99, psnr_db=None)  # random weights lose much in INT8
PROOF_SIZES = ((112, 128), (136, 113))  # small: the many sizes are export's own tests


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit status, stdout and stderr."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one document on stdout."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass(frozen=True)
class TinyFiles:
    """One network at width 1/16 and photographs that fit it."""

    root: Path

    weights = property(lambda self: self.root / "tiny.safetensors")
    onnx = property(lambda self: self.root / "tiny.onnx")
    int8 = property(lambda self: self.root / "tiny.int8.onnx")
    photos = property(lambda self: self.root / "photos")
    store = property(lambda self: self.root / "store")


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, hidden ones too, with the files' hashes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def tree() -> Callable[[Path], dict[str, str]]:
    return contents


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fills the user's cache."""
    monkeypatch.setenv("CROWDRT_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(autouse=True)
def quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crowdrt.pipeline.photographs.PROOF_SIZES", PROOF_SIZES)


@pytest.fixture
def crowdrt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """Call `crowdrt ARGS` as a shell does, without the seconds that a process costs."""
    from crowdrt.cli import main

    def call(*args: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["crowdrt", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Answer(int(ended.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyFiles]:
    """The files, made once; whoever changes one fails at the end."""
    files = TinyFiles(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crowdrt.pipeline.photographs.PROOF_SIZES", PROOF_SIZES)
        make(files)
    before = contents(files.root)
    yield files
    assert contents(files.root) == before


def make(files: TinyFiles) -> None:
    import torch

    from crowdrt.data.synthetic.photographs import generate
    from crowdrt.models import build_model
    from crowdrt.models.weights import save_weights
    from crowdrt.pipeline.networks import Origin
    from crowdrt.pipeline.stages import build_stage, calibrate_stage, export_stage

    samples: list[Sample] = generate(
        files.photos, num_images=4, seed=3, size=PHOTO_SIZE, people=PEOPLE
    )
    torch.manual_seed(1)
    save_weights(build_model("csrnet", WIDTH), files.weights, network="csrnet", width=WIDTH)
    export_stage(Origin(network="csrnet", width=WIDTH, weights=files.weights), files.onnx)
    calibrate_stage(files.onnx, samples, files.int8, CalibrationConfig(num_images=2))
    for onnx in (files.onnx, files.int8):
        build_stage(onnx, files.store)


@pytest.fixture(scope="session")
def student_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped student, exported once for all tests of it."""
    from crowdrt.pipeline.networks import origin_of_recipe
    from crowdrt.pipeline.stages import export_stage
    from crowdrt.recipes import recipe_named

    path = tmp_path_factory.mktemp("student") / "student.onnx"
    export_stage(origin_of_recipe(recipe_named("csrnet-quarter")), path)
    return path


@pytest.fixture
def tiny_recipe(tiny: TinyFiles, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of the tiny network, known to every verb as `tiny`."""
    recipe = Recipe(
        name="tiny",
        network="csrnet",
        width=WIDTH,
        sizes=((96, 128),),
        weights=str(tiny.weights),
        calibration=CalibrationConfig(num_images=2),
        training=TrainingConfig(steps=4, batch_size=2, crop_px=64),
        gates={"fp16": ANYTHING, "int8": ANYTHING},
    )
    for module in ("recipes", "pipeline.networks", "pipeline.measuring"):
        monkeypatch.setattr(f"crowdrt.{module}.RECIPES", (recipe,))
    return recipe


@pytest.fixture
def quick_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Races of a second, for what surrounds them; the figures mean nothing."""
    from crowdrt.benchmarks.layers.peaks import PeakConfig
    from crowdrt.benchmarks.layers.worker import RunConfig
    from crowdrt.benchmarks.timing import race
    from crowdrt.benchmarks.timing.worker import WarmUp

    def quick(**fields: Any) -> race.RaceConfig:
        quickly = {"min_rounds": 1, "max_rounds": 2, "visit_s": 0.01, "settle_s": 0.01}
        return race.RaceConfig(**fields | quickly, warm_up=WarmUp(runs=3, seconds=0.0))

    for module in ("run", "measuring"):
        monkeypatch.setattr(f"crowdrt.pipeline.{module}.RaceConfig", quick)
    profiling = "crowdrt.pipeline.profiling"
    runs = RunConfig(min_runs=2, max_runs=2, visit_s=0.0)
    monkeypatch.setattr(f"{profiling}.RunConfig", lambda **_: runs)
    peaks = PeakConfig(sides=(64,), seconds=0.0, copy_bytes=2**20)
    monkeypatch.setattr(f"{profiling}.PeakConfig", lambda: peaks)
