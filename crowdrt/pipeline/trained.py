"""What a training was worth: its network's errors on the test splits, with the budget it had."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crowdrt.benchmarks.accuracy.detection import detection_quality
from crowdrt.console import say, track
from crowdrt.contracts import Artifact, Recipe, Sample
from crowdrt.data.boxes.datasets import open_box_samples
from crowdrt.data.heads.splits import KnownSet, SetName, known_sets, read_split
from crowdrt.engines.machine import machine_identity
from crowdrt.errors import DataError, TrainingError
from crowdrt.manifest import read_manifest, sha256_file
from crowdrt.training.metrics import read_objects, write_lines

if TYPE_CHECKING:
    from crowdrt.models.network import Network
    from crowdrt.training.counting.evaluate import CountErrors

Judge = Callable[["Network"], dict[str, Any]]

# as the papers' tables name their test sets; UCF_CC_50 has five folds and no test split
TESTS: Mapping[SetName, str] = {
    "shanghaitech-a": "ShanghaiTech part_A",
    "shanghaitech-b": "ShanghaiTech part_B",
    "ucf-qnrf": "UCF-QNRF",
    "worldexpo10": "WorldExpo'10",
    "mall": "Mall",
}
BOX_TESTS = {
    "CrowdHuman val": "annotation_val.odgt",
    "COCO val": "annotations/instances_val2017.json",
}
BOX_TRAINING = {
    "annotation_train.odgt": "CrowdHuman train",
    "instances_train2017.json": "COCO train",
}
QUALITIES = {"ap50": "AP@.5", "ap": "AP@[.5:.95]", "mr2": "MR^-2", "ji": "JI", "recall": "Recall"}


def record_stage(
    recipe: Recipe, artifact: Artifact, *, data: Path, teacher: Path | None
) -> list[dict[str, Any]]:
    """Judge the network on every test split in `data` and write one record each beside the weights.

    The records are lines of `record.jsonl`, as `crowdrt table` reads them. A split whose record
    of these weights is there is not judged again.

    Raises:
        DataError: no published test split is there.
        TrainingError: the weights' manifest, which knows the budget, is gone.
    """
    from crowdrt.models.weights import load_network
    from crowdrt.training.quantization.simulation import simulate

    path = artifact.path.with_name("record.jsonl")
    sha256 = sha256_file(artifact.path)
    detects = recipe.training.assignment is not None
    tests = detector_tests(recipe, data) if detects else counting_tests(data)
    if not tests:
        known = BOX_TESTS if detects else [f"{name} test" for name in TESTS.values()]
        raise DataError(f"{data} holds no published test split", fix=f"name {' or '.join(known)}")
    lines = read_objects(path)
    done = {line.get("test"): line for line in lines if line.get("weights_sha256") == sha256}
    model, *_ = load_network(artifact.path)
    simulate(model)  # one that learned in INT8 is counted so
    for test, judge in tests.items():
        if test not in done:
            done[test] = describe(recipe, artifact, teacher) | {"test": test, **judge(model)}
            write_lines(path, list(done.values()))
        say(f"{test}: {spoken(done[test])}")
    return list(done.values())


def counting_tests(data: Path) -> dict[str, Judge]:
    """Return the published test splits of photographs with heads, and what counts them."""

    def judge(split: KnownSet, test: str) -> Judge:
        return lambda model: asdict(errors_on(model, read_split(split, "test", 1), test))

    known = [(each, f"{TESTS[each.name]} test") for each in known_sets(data) if each.name in TESTS]
    return {test: judge(each, test) for each, test in known}


def detector_tests(recipe: Recipe, data: Path) -> dict[str, Judge]:
    """Return the published validation sets of photographs with boxes, on which papers test."""

    def judge(path: Path, test: str) -> Judge:
        return lambda model: quality_on(model, path, test, recipe.training.short_side_px)

    found = {test: data / name for test, name in BOX_TESTS.items()}
    return {test: judge(path, test) for test, path in found.items() if path.is_file()}


def spoken(record: Mapping[str, Any]) -> str:
    """Return a record's errors as people say them."""
    if "mae" in record:
        return f"MAE {record['mae']:.2f}, RMSE {record['rmse']:.2f}"
    return ", ".join(f"{title} {100 * record[name]:.1f} %" for name, title in QUALITIES.items())


def describe(recipe: Recipe, artifact: Artifact, teacher: Path | None) -> dict[str, Any]:
    """Return who was trained, and what it cost."""
    document = read_manifest(artifact.path)
    if document is None or "seconds" not in document.get("facts", {}):
        raise TrainingError(
            f"{artifact.path} has no manifest that knows its training",
            fix=f"train it here: crowdrt train {recipe.name} --data DIR -o DIR --test",
        )
    config, facts = recipe.training, document["facts"]
    return {
        "recipe": recipe.name,
        "network": recipe.network,
        "width": str(recipe.width),
        "train": trained_on(document["made_from"]),
        "seed": config.seed,
        "steps": config.steps,
        "crops": config.steps * config.batch_size,
        "crop_px": config.crop_px,
        "wall_s": round(facts["seconds"], 1),
        "num_threads": facts["threads"],
        "devices": facts["devices"],
        "teacher": teacher_name(recipe, teacher),
        "teacher_sha256": document["made_from"].get("teacher"),
        "machine": str(machine_identity().get("cpu", "unknown")),
        "weights_sha256": artifact.sha256,
        "versions": document.get("versions", {}),
    }


def trained_on(made_from: Mapping[str, Any]) -> str:
    """Return the sources of the photographs that were learned from."""
    groups = made_from.get("images", {}).get("groups", {})
    sources = [name.partition(" x")[0] for name in groups]
    published = {name: f"{title} train" for name, title in TESTS.items()} | BOX_TRAINING
    return " + ".join(published.get(source, source) for source in sources)


def teacher_name(recipe: Recipe, teacher: Path | None) -> str | None:
    """Return the teacher's recipe, or the name of the file that was given instead."""
    named = recipe.training.teacher
    return teacher.name if teacher and named else named


def errors_on(model: "Network", samples: list[Sample], description: str) -> "CountErrors":
    """Return the errors on whole photographs; a network of one size counts them by tiles."""
    from crowdrt.training.counting.evaluate import count_errors
    from crowdrt.training.divided.evaluate import divided_errors

    photographs = track(samples, description, total=len(samples))
    if model.fixed_size is not None:
        return divided_errors(model, photographs)
    return count_errors(model, photographs, model.preprocessing)


def quality_on(model: "Network", path: Path, test: str, short_side_px: int) -> dict[str, Any]:
    """Return how well a detector finds the people of an annotation file, every score counted."""
    from crowdrt.training.detection.evaluate import detect

    samples = open_box_samples(path)
    photographs = track(samples, test, total=len(samples))
    quality = detection_quality(detect(model, photographs, short_side_px=short_side_px))
    if quality is None:
        raise DataError(
            f"{path} shows nobody who is to be found", fix="check that the file is whole"
        )
    return asdict(quality)
