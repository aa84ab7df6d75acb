"""Which photographs a stage sees: to prove parity, to calibrate, to count."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from crowdrt.console import say
from crowdrt.contracts import GraphInfo, Preprocessing, Sample, Size, UInt8Image
from crowdrt.data.heads.datasets import open_samples, without_copies
from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.data.heads.splits import known_sets, open_split
from crowdrt.data.images import grey_of
from crowdrt.data.preprocess import pad_to_stride
from crowdrt.data.synthetic.photographs import crowd_photograph, generate
from crowdrt.errors import RecipeError
from crowdrt.manifest import sha256_file

# Where parity is proved: a small, a tall and an odd size, before padding to the stride.
PROOF_SIZES = ((256, 320), (448, 192), (577, 865))
RUN_SEED = 7  # of the generated photographs that `crowdrt run` counts
NUM_GENERATED = 40


def proof_photographs(
    preprocessing: Preprocessing, *, sizes: Sequence[Size] = PROOF_SIZES
) -> list[UInt8Image]:
    """Generated crowds at several sizes, odd ones included, padded to the stride: (1, C, H, W)."""
    images = []
    for seed, size in enumerate(sizes):
        pixels, _ = crowd_photograph(seed, size=size, people_range=(20, 60))
        if preprocessing.channels == "grey":
            pixels = grey_of(pixels)
        images.append(pad_to_stride(pixels, preprocessing)[None])
    return images


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """What a run calibrates on and what it counts; the two never share a picture, byte by byte."""

    source: str
    calibration: tuple[Sample, ...]
    test: tuple[Sample, ...]


@contextmanager
def samples_or_crowds(folder: Path | None, num_images: int) -> Iterator[list[Sample]]:
    """Yield the photographs of a folder or, without one, generated crowds for as long as it lasts.

    Args:
        folder: all of its photographs; None: none.
        num_images: how many crowds to generate.
    """
    if folder is not None:
        yield open_samples(folder)
        return
    with TemporaryDirectory(prefix="crowdrt-crowds-") as made:
        yield generate(Path(made), num_images=num_images, seed=RUN_SEED)


def photographs(data: Path | None, out: Path, *, num_test: int) -> Photographs:
    """Gather photographs from a data folder, or generate them into `out/photographs`.

    The splits of ShanghaiTech, or of the one other published set that the folder holds, are kept
    apart; any other folder, and UCF_CC_50, gives every third photograph to calibration and the
    rest to counting.
    """
    if data is None:
        made = generate(out / "photographs", num_images=NUM_GENERATED, seed=RUN_SEED)
        return split("generated crowds", made, num_test)
    if (data / "ShanghaiTech").is_dir() or (data / "part_A").is_dir():
        train = [*shanghaitech(data, "A", "train"), *shanghaitech(data, "B", "train")]
        test = [*shanghaitech(data, "A", "test"), *shanghaitech(data, "B", "test")]
        return Photographs(
            source="ShanghaiTech A and B, test split",
            calibration=tuple(without_copies(train, test)),
            test=tuple(evenly(test, num_test)),
        )
    match known_sets(data) if data.is_dir() else []:
        case [known] if known.name != "ucf-cc-50":
            return Photographs(
                source=f"{known.name}, test split",
                calibration=tuple(open_split(known.root, "train")),
                test=tuple(evenly(open_split(known.root, "test"), num_test)),
            )
    return split(data.resolve().name, open_samples(data), num_test)


def split(source: str, samples: Sequence[Sample], num_test: int) -> Photographs:
    """Give every third photograph to calibration and the rest to counting.

    Of a picture that lies there twice, the copies that would fall on both sides are counted only.
    """
    if len(samples) < 2:
        raise RecipeError(
            f"{source} holds {len(samples)} photograph; a run needs some to calibrate on and "
            "others to count",
            fix="use a folder of at least 2 photographs, or leave --data out to generate some",
        )
    third = list(samples[::3]) if len(samples) > 2 else [samples[0]]
    chosen = {sample.image for sample in third}
    test = [sample for sample in samples if sample.image not in chosen]
    calibration = without_copies(third, test)
    if not calibration:
        raise RecipeError(
            f"{source} holds the same pictures several times: none is left to calibrate on",
            fix="remove the copies, or leave --data out to generate photographs",
        )
    return Photographs(
        source=source, calibration=tuple(calibration), test=tuple(evenly(test, num_test))
    )


def calibration_images(
    images: Sequence[Path], files: Sequence[GraphInfo | None]
) -> frozenset[Path]:
    """Return the photographs by which one of these files was made, told byte by byte.

    They must not judge it: ranges that were taken from a photograph fit that photograph.
    """
    quantized = [info for info in files if info is not None and info.precision != "fp32"]
    if not all(info.calibrated_on or info.trained_int8 for info in quantized):
        say("the network does not say on which photographs it was calibrated: make it again")
    digests = {image: sha256_file(image) for image in images} if quantized else {}
    return frozenset(
        image
        for image, digest in digests.items()
        if any(info.was_calibrated_on(digest) for info in quantized)
    )


def region_of(sample: Sample) -> str:
    """Return what tells the region in which people are counted from others; nothing without one."""
    return "" if sample.roi is None else f":{hashlib.sha256(sample.roi.tobytes()).hexdigest()}"


def evenly(samples: Sequence[Sample], number: int) -> list[Sample]:
    """Return at most `number` samples, spread over the whole sequence."""
    if len(samples) <= number:
        return list(samples)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, number).round().astype(int)]
