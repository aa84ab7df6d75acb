"""People on photographs: boxed, shown, and held against the boxes that people drew."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.accuracy.boxes import (
    BoxPrediction,
    at_least,
    detect_people,
    detector_info,
    evaluated,
)
from crowdrt.benchmarks.accuracy.detection import DetectionQuality, detection_quality
from crowdrt.benchmarks.accuracy.gates import Verdict, judge_detections
from crowdrt.benchmarks.overlays.boxes import draw_boxes
from crowdrt.benchmarks.overlays.density import save_overlay
from crowdrt.console import show_table, tell, track
from crowdrt.contracts import BoxSample, Detections, default_gates
from crowdrt.data.boxes.coco import PERSON
from crowdrt.data.boxes.datasets import BoxOptions, open_box_samples
from crowdrt.data.boxes.matching import SURE
from crowdrt.data.images import read_image
from crowdrt.engines.base import Engine
from crowdrt.pipeline.counting import distinct
from crowdrt.pipeline.photographs import calibration_images
from crowdrt.pipeline.precision.comparing import describe_verdict
from crowdrt.pipeline.stages import open_any

PIXEL_DIGITS, SCORE_DIGITS = 2, 4  # behind the point, in JSON


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `crowdrt detect` is asked for, beside the engine and the photographs."""

    min_score: float = SURE  # from which on a detection counts as a person
    short_side_px: int | None = None  # None leaves photographs as they are
    overlay: Path | None = None
    against: Path | None = None  # a reference detector, such as the FP32 file
    image_folder: Path | None = None  # of CrowdHuman and COCO
    box: str = "full"  # CrowdHuman
    category: str = PERSON  # COCO
    min_visibility: float = 0.0  # MOT

    @property
    def reading(self) -> BoxOptions:
        """What of the annotations is read."""
        return BoxOptions(
            images=self.image_folder,
            box=self.box,  # type: ignore[arg-type]
            category=self.category,
            min_visibility=self.min_visibility,
        )


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What the photographs hold, by an engine."""

    rows: list[dict[str, Any]]  # image, boxes, scores, annotated (None where unknown)
    quality: DetectionQuality | None  # over the annotated photographs and every score
    left_out: int = 0  # annotated photographs that the network was calibrated on
    against: bool = False  # whether there is a reference
    reference: DetectionQuality | None = None  # of the reference, over the same photographs
    verdict: Verdict | None = None  # of the default gate; None: FP32, or no reference

    def as_json(self) -> Any:
        """Return one mapping per photograph; beside a reference, both qualities with them."""
        if not self.against:
            return self.rows
        return {
            "photographs": self.rows,
            "quality": None if self.quality is None else asdict(self.quality),
            "reference": None if self.reference is None else asdict(self.reference),
            "gate": None if self.verdict is None else self.verdict.as_dict(),
        }


def detect_photographs(
    engine_path: Path,
    images: Sequence[Path],
    request: Request,
    *,
    store: Path | None,
    num_threads: int,
) -> Detected:
    """Box the people on every photograph named, in a folder or in an annotated set.

    Nothing is drawn before every photograph was seen: one that cannot be read leaves no half of
    the overlays behind.
    """
    samples = [sample for path in images for sample in open_box_samples(path, request.reading)]
    engine = open_any(engine_path, store, num_threads=num_threads)
    reference = None
    if request.against is not None:
        reference = open_any(request.against, store, num_threads=num_threads)
    predictions = detect_all(engine, samples, request)
    people = [at_least(each.detections, request.min_score) for each in predictions]
    expected = [] if reference is None else detect_all(reference, samples, request)
    if request.overlay is not None:
        draw_all(engine, samples, people, request.overlay)
    annotated = [sample.image for sample in samples if sample.boxes is not None]
    made_by = calibration_images(annotated, [each.info for each in (engine, reference) if each])
    quality = quality_of(samples, predictions, made_by, request.min_score)
    before = None
    if expected:
        before = quality_of(samples, expected, made_by, request.min_score)
    return Detected(
        rows=[as_row(sample, each) for sample, each in zip(samples, people, strict=True)],
        quality=quality,
        left_out=len([image for image in annotated if image in made_by]),
        against=reference is not None,
        reference=before,
        verdict=None if reference is None else gate_of(engine, quality, before),
    )


def detect_all(
    engine: Engine, samples: Sequence[BoxSample], request: Request
) -> list[BoxPrediction]:
    """Return what a detector finds on every photograph, whatever the score."""
    detector_info(engine)
    return [
        detect_people(engine, sample.image, short_side_px=request.short_side_px)
        for sample in track(samples, "detecting", total=len(samples))
    ]


def gate_of(
    engine: Engine, quality: DetectionQuality | None, reference: DetectionQuality | None
) -> Verdict | None:
    """Return what the default gate of the engine's precision says; None for FP32."""
    gate = default_gates().get(engine.info.precision) if engine.info else None
    return None if gate is None else judge_detections(gate, quality, reference)


def quality_of(
    samples: Sequence[BoxSample],
    predictions: Sequence[BoxPrediction],
    left_out: Collection[Path],
    min_score: float,
) -> DetectionQuality | None:
    """Return the measures over the annotated photographs, if there are any with people."""
    pairs = zip(predictions, samples, strict=True)
    judged = [(p, s) for p, s in pairs if s.boxes is not None and s.image not in left_out]
    return detection_quality([evaluated(p, s) for p, s in judged], min_score=min_score)


def draw_all(
    engine: Engine, samples: Sequence[BoxSample], people: Sequence[Detections], folder: Path
) -> None:
    """Draw what `engine` saw on each photograph into `folder`."""
    paths = [folder / f"{name}.boxes.jpg" for name in distinct([s.image.stem for s in samples])]
    label = engine.info.precision.upper() if engine.info else ""
    for k in track(range(len(samples)), "drawing", total=len(samples)):
        photograph = read_image(samples[k].image, "rgb")
        save_overlay(draw_boxes(photograph, people[k], samples[k], label=label), paths[k])


def as_row(sample: BoxSample, people: Detections) -> dict[str, Any]:
    """Return one photograph as `--json` prints it: boxes to a hundredth of a pixel."""
    return {
        "image": str(sample.image),
        "boxes": np.round(people.boxes.astype(np.float64), PIXEL_DIGITS).tolist(),
        "scores": np.round(people.scores.astype(np.float64), SCORE_DIGITS).tolist(),
        "annotated": sample.annotated,
    }


def show_detections(detected: Detected) -> None:
    """Print one line per photograph, and the measures where annotations are known."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("photograph")
    table.add_column("people", justify="right")
    table.add_column("annotated", justify="right")
    for row in detected.rows:
        known = "" if row["annotated"] is None else str(row["annotated"])
        table.add_row(Text(Path(row["image"]).name), str(len(row["boxes"])), known)
    show_table(table)
    if detected.quality is not None:
        tell(describe_quality(detected.quality))
    if detected.reference is not None:
        tell(f"reference: {describe_quality(detected.reference)}")
    if detected.verdict is not None:
        tell(describe_verdict("the default gate of this precision", detected.verdict))
    if detected.left_out:
        tell(f"left out: {detected.left_out} that the network was calibrated on")


def describe_quality(quality: DetectionQuality) -> str:
    """Return the measures in one line, in percent as the papers print them."""
    figures = [
        ("AP", quality.ap50),
        ("AP@[.5:.95]", quality.ap),
        ("MR^-2", quality.mr2),
        ("JI", quality.ji),
        ("Recall", quality.recall),
    ]
    shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in figures)
    again = "none" if quality.duplicates is None else f"{quality.duplicates:.2f}"
    return (
        f"{shown} % for {quality.num_people} people "
        f"on {quality.num_images} annotated photographs, with every score; "
        f"{again} duplicates per person found from score {quality.min_score:g} on, "
        f"and AP {100 * quality.ap50_nms:.1f} % behind suppression"
    )
