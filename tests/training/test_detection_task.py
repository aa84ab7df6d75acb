"""A detector learns, goes on where it was killed, and ships without its training branches."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from crowdrt.contracts import BoxSample
from crowdrt.data.boxes.matching import average_precision
from crowdrt.data.synthetic.pedestrians import generate_pedestrians
from crowdrt.errors import DataError, TrainingError
from crowdrt.export.deploy import deploy
from crowdrt.learning import Assignment, TrainingConfig
from crowdrt.models.weights import load_network
from crowdrt.training.detection.crops import BoxGroup
from crowdrt.training.detection.evaluate import detect, detection_errors
from crowdrt.training.detection.sets import DetectionSet, detection_set
from crowdrt.training.detection.task import DetectionTask
from crowdrt.training.loop import train
from crowdrt.training.metrics import read_lines
from crowdrt.training.run import Run

NARROW = Fraction(1, 32)
TINY = TrainingConfig(
    steps=3,
    batch_size=2,
    crop_px=64,
    short_side_px=64,
    warm_up_steps=2,
    precision="32-true",
    batch_norm=False,
    assignment=Assignment(),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DetectionSet:
    folder = tmp_path_factory.mktemp("pedestrians")
    samples = generate_pedestrians(folder, num_images=3, seed=2, size=(96, 112), people=(2, 5))
    return DetectionSet((BoxGroup("made", tuple(samples[1:])),), (samples[0],))


def tiny_task(data: DetectionSet, config=TINY, *, network="dsla") -> DetectionTask:
    return DetectionTask(network, NARROW, config, data)


def test_thirty_steps_learn(data):
    """On the same crops before and after, on either branch."""
    run = Run(tiny_task(data, replace(TINY, learning_rate=3e-3, steps=30)))
    batches = run.batches(0)
    before = losses_of(run, batches)
    for _ in range(30):
        run.learn(batches)
    after = losses_of(run, batches)
    for branch in (["class", "l1", "giou"], ["soft:certain", "soft:soft", "soft:giou"]):
        assert sum(after[term] for term in branch) < 0.6 * sum(before[term] for term in branch)


def losses_of(run: Run, batches) -> dict[str, float]:
    run.model.train()
    with torch.no_grad():
        found = run.task.losses(run.model, batches[0], device=torch.device("cpu"))
    return {name: term.item() for name, term in found.items()}


def test_heads_without_a_loss_stay_as_they_are(data):
    run = Run(tiny_task(data, replace(TINY, assignment=Assignment(soft=False))))
    before = {name: p.detach().clone() for name, p in run.module.named_parameters()}
    for _ in range(3):
        run.learn(run.batches(run.step))
    same = {n.split(".")[0] for n, p in run.module.named_parameters() if torch.equal(p, before[n])}
    moved = {n.split(".")[0] for n, p in before.items() if not torch.equal(p, run_state(run)[n])}
    assert {"sla_head", "centerness_head"} <= same
    assert not {"sla_head", "centerness_head"} & moved
    assert {"class_head", "box_head", "backbone", "pyramid", "scales"} <= moved


def run_state(run: Run) -> dict[str, torch.Tensor]:
    return dict(run.module.named_parameters())


def test_a_killed_run_ends_like_one_that_was_not(data, tmp_path, monkeypatch):
    whole = train(tiny_task(data), tmp_path / "whole", save_every=1, validate_every=3)
    learn = Run.learn

    def stopping(run, batches):
        if run.step == 2:
            raise KeyboardInterrupt
        return learn(run, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "learn", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_task(data), tmp_path / "killed", save_every=1, validate_every=3)
    resumed = train(tiny_task(data), tmp_path / "killed", save_every=1, validate_every=3)
    for one, other in zip(
        *(read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")),
        strict=True,
    ):
        assert one["loss"] == other["loss"]
        assert one["missed_ap50"] == other["missed_ap50"]
    model, network, width = load_network(resumed.path)
    assert (network, width) == ("dsla", NARROW)
    for name, tensor in load_network(whole.path)[0].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_what_ships_has_no_training_branch(data):
    task = tiny_task(data)
    torch.manual_seed(0)
    shipped = deploy(task.shipped(task.build().state_dict()), torch.randn(1, 3, 64, 96))
    assert not {name.split(".")[0] for name in shipped.state_dict()} & {
        "sla_head",
        "centerness_head",
    }


def test_equal_seeds_see_and_begin_alike(data):
    one, other = Run(tiny_task(data)), Run(tiny_task(data))
    assert one.learn(one.batches(0)) == other.learn(other.batches(0))
    third = Run(tiny_task(data, replace(TINY, seed=1)))
    assert third.learn(third.batches(0)) != one.learn(one.batches(1))


class Oracle(torch.nn.Module):
    """Answers fixed boxes, whatever it sees."""

    def __init__(self, task: DetectionTask, boxes, scores) -> None:
        super().__init__()
        self.preprocessing = task.shipped(task.build().state_dict()).preprocessing
        self.boxes, self.scores = torch.tensor(boxes)[None], torch.tensor(scores)[None]
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image):
        self.sizes.append(tuple(image.shape))
        return self.boxes, self.scores, torch.zeros(self.scores.shape, dtype=torch.int64)


def test_errors_of_known_answers(data):
    truth = data.validation[0]
    people = truth.boxes[~truth.ignore]
    inside = np.clip(people, 0, [112, 96, 112, 96]).astype(np.float32)
    twice = np.concatenate([people, inside[:1], [[0, 0, 0, 0]]]).astype(np.float32)
    scores = np.array([*np.linspace(0.9, 0.5, len(people)), 0.4, 0.0], np.float32)
    found = detection_errors(Oracle(tiny_task(data), twice, scores), data.validation)
    assert found["ap50"] == pytest.approx(1, abs=0.02)
    assert found["missed_ap50"] == pytest.approx(1 - found["ap50"])
    assert found["recall"] == 1
    assert found["duplicates"] == pytest.approx(1 / len(people))
    assert found["num_images"] == 1


def test_photographs_are_resized_with_their_boxes(data):
    truth = data.validation[0]
    half = (truth.boxes[~truth.ignore] / 2).astype(np.float32)
    oracle = Oracle(tiny_task(data), half, np.full(len(half), 0.9, np.float32))
    pairs = detect(oracle, data.validation, short_side_px=48)
    assert oracle.sizes == [(1, 3, 64, 64)]  # 48x56 px, padded to 32
    assert average_precision(pairs) == pytest.approx(1, abs=0.02)


def test_boxes_in_the_padding_are_gone(data):
    beyond = np.array([[56, 0, 64, 40], [0, 0, 60, 60]], np.float32)
    oracle = Oracle(tiny_task(data), beyond, np.array([0.9, 0.8], np.float32))
    ((found, _),) = detect(oracle, data.validation, short_side_px=48)
    assert found.boxes.tolist() == [[0, 0, 56, 48]]


@pytest.mark.parametrize(
    ("changes", "network", "problem"),
    [
        ({"crop_px": 100}, "dsla", "crop_px=100"),
        ({"crops": "ratio"}, "dsla", "ratio"),
        ({"batch_norm": True}, "dsla", "normalised as it is"),
        ({"assignment": None}, "dsla", "does not learn from boxes"),
        ({}, "csrnet", "does not learn from boxes"),
    ],
)
def test_what_a_detector_cannot_learn_by_is_refused(data, changes, network, problem):
    with pytest.raises(TrainingError, match=problem):
        tiny_task(data, replace(TINY, **changes), network=network)


def test_nobody_cannot_choose_the_best_detector(data):
    empty = BoxSample(image=Path("a.png"), boxes=np.zeros((0, 4), np.float32))
    with pytest.raises(TrainingError, match="nobody who is"):
        tiny_task(replace(data, validation=(empty,)))


def test_a_changed_box_is_another_run(data):
    group = data.groups[0]
    moved = replace(group.samples[0], boxes=group.samples[0].boxes + 1)
    changed = replace(data, groups=(replace(group, samples=(moved, *group.samples[1:])),))
    assert tiny_task(data).made_from() == tiny_task(data).made_from()
    assert tiny_task(data).made_from() != tiny_task(changed).made_from()


def sequence(folder: Path, name: str, *, frames: int = 2) -> None:
    """Write a MOT sequence of grey frames with one person each, the last hardly visible."""
    from PIL import Image

    images = folder / name / "img1"
    images.mkdir(parents=True)
    (folder / name / "gt").mkdir()
    (folder / name / "seqinfo.ini").write_text("[Sequence]\nimDir=img1\n")
    rows = []
    for k in range(1, frames + 1):
        Image.new("RGB", (64, 48), (9 * k,) * 3).save(images / f"{k:06d}.png")
        rows.append(f"{k},1,10,10,12,30,1,1,{0.1 if k == frames else 0.9}")
    (folder / name / "gt" / "gt.txt").write_text("\n".join(rows) + "\n")


def test_scenes_that_validate_are_not_learned_from(tmp_path):
    """MOT17 holds every scene three times; of six scenes the first and the fifth validate."""
    for scene in ("02", "04", "05", "09", "10", "11"):
        for detector in ("DPM", "FRCNN"):
            sequence(tmp_path / "mot", f"MOT17-{scene}-{detector}")
    found = detection_set(tmp_path / "mot", num_synthetic=0, synthetic=tmp_path)
    assert [group.name for group in found.groups] == [
        f"MOT17-{n}" for n in ("04", "05", "09", "11")
    ]
    assert {s.image.parent.parent.name[:8] for s in found.validation} == {"MOT17-02", "MOT17-10"}
    assert [sample.annotated for sample in found.validation] == [1, 0, 1, 0]  # by visibility


@pytest.mark.data
def test_mot17_is_divided_by_scenes(data_root, tmp_path):
    scenes = data_root / "MOT17-mini" / "train"
    found = detection_set(scenes, num_synthetic=0, synthetic=tmp_path)
    assert len(found.groups) == 5
    assert sum(group.share for group in found.groups) == pytest.approx(1)
    assert {s.image.parent.parent.name[:8] for s in found.validation} == {"MOT17-02", "MOT17-10"}
    batch = DetectionTask("dsla", NARROW, TINY, found).batch(0, range(4))
    learned = [boxes[~ignore] for boxes, ignore in zip(batch.boxes, batch.ignore, strict=True)]
    assert sum(map(len, learned)) > 4
    tall = np.concatenate(learned)
    assert (tall[:, 3] - tall[:, 1] > tall[:, 2] - tall[:, 0]).mean() > 0.8  # people stand


def test_a_single_source_validates_by_every_15th(tmp_path):
    sequence(tmp_path, "MOT17-02", frames=17)
    found = detection_set(tmp_path / "MOT17-02", num_synthetic=0, synthetic=tmp_path)
    assert [int(sample.image.stem) for sample in found.validation] == [1, 16]
    assert len(found.groups[0].samples) == 15


def test_too_little_to_learn_from_is_refused(tmp_path):
    with pytest.raises(DataError, match="0 annotated photographs"):
        detection_set(None, num_synthetic=0, synthetic=tmp_path)
    sequence(tmp_path / "mot", "MOT17-02")
    with pytest.raises(DataError, match="at least two scenes"):
        detection_set(tmp_path / "mot", num_synthetic=0, synthetic=tmp_path)
