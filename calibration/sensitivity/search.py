"""Trials: some convolutions of a network in INT8, the rest in float, and what that does to counts.

Ranges and means are those of one pass over the calibration photographs, whatever is in INT8. The
photographs that judge are others.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import onnx

from crowdrt.calibration.calibrate import (
    COST_SIZE,
    collect_kept,
    float_info,
    hash_of,
    identity,
    pick,
    quantize,
    statistics_key,
)
from crowdrt.calibration.cost import conv_macs, int8_share
from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.calibration.ranges import Statistics
from crowdrt.calibration.ranges.cache import StatisticsCache
from crowdrt.calibration.sensitivity.journal import Journal
from crowdrt.calibration.sensitivity.judge import CountError, Judge, Verdict, count_error
from crowdrt.contracts import CalibrationConfig, Sample
from crowdrt.errors import RecipeError
from crowdrt.manifest import fingerprint, versions
from crowdrt.onnx_file import read_onnx, set_info

FORM = 1  # of a trial; a new number makes old ones stale


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig:
    """How layers are ranked, and what a repaired network has to hold."""

    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    num_judged: int = 16  # photographs that judge, none of which calibrates
    by: Literal["count", "sqnr"] = "count"
    tolerance: float = 0.01  # change of the MAE where people counted, else change of the count
    least_int8: float = 0.9  # share of the MACs that has to stay in INT8

    def __post_init__(self) -> None:
        if self.num_judged < 1:
            raise RecipeError(
                f"num_judged={self.num_judged} leaves nothing to judge by",
                fix="use at least 2; 16 photographs are a good start",
            )
        if self.by not in ("count", "sqnr"):
            raise RecipeError(f"layers cannot be ranked by {self.by!r}", fix="use count or sqnr")
        if not 0 < self.tolerance <= 1:
            raise RecipeError(
                f"tolerance={self.tolerance} is no share of an error",
                fix="use a value over 0 and up to 1; 0.01 is 1 %",
            )
        if not 0 <= self.least_int8 <= 1:
            raise RecipeError(
                f"least_int8={self.least_int8} is no share", fix="use a value from 0 to 1"
            )


class Search:
    """One network, the photographs, and every trial that was made of it."""

    def __init__(
        self,
        onnx_path: Path,
        samples: Sequence[Sample],
        config: SensitivityConfig,
        *,
        records: Path | None = None,
        num_threads: int = 0,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            onnx_path: a float network that crowdrt exported.
            samples: photographs like those to come; some calibrate, others judge.
            config: how many of each, and how ranges are found.
            records: where finished trials are kept; beside the network by default.
            num_threads: 0 uses every core.
        """
        self.onnx_path, self.config, self.num_threads = onnx_path, config, num_threads
        self.model = read_onnx(onnx_path)
        self.info = float_info(self.model, source=str(onnx_path))
        self.plan = plan_int8(self.model)
        self.macs = conv_macs(self.model, self.info.fixed_size or COST_SIZE)
        calibrating, judging = split(samples, config)
        self.calibrating = [sample.image for sample in calibrating]
        self.judge = Judge(
            self.model, self.info, [each.image for each in judging], num_threads=num_threads
        )
        # The judge adds up whole maps: people in a region are no measure of that.
        counted = [each.annotated if each.roi is None else None for each in judging]
        self.annotated = None if None in counted else [int(each or 0) for each in counted]
        records = records or onnx_path.with_suffix(".sensitivity.jsonl")
        self.journal = Journal(records, fingerprint(self.made_from()))

    def made_from(self) -> dict[str, Any]:
        """Return everything that decides a trial but its layers."""
        return {
            **identity(self.onnx_path, self.calibration_files(), self.config.calibration, ()),
            "judged": [hash_of(path) for path in self.judge.photographs],
            "onnxruntime": versions().get("onnxruntime"),
            "trial": FORM,
        }

    def calibration_files(self) -> list[dict[str, str]]:
        """Return name and SHA-256 of the photographs that calibrate."""
        return [{"name": path.name, "sha256": hash_of(path)} for path in self.calibrating]

    def error(self, int8: Collection[str]) -> CountError:
        """Return how far counts move with these convolutions in INT8 and the rest in float."""
        return count_error(self.trial(()).counts, self.trial(int8).counts, self.annotated)

    def trial(self, int8: Collection[str]) -> Verdict:
        """Return what the network answers with these convolutions in INT8, trying it at most once.

        None of them: the float network.
        """
        found = self.journal.find(int8)
        if found is None:
            start = time.perf_counter()
            found = self.judge.verdict(self.form(int8))
            self.journal.add(int8, found, time.perf_counter() - start)
        return found

    def form(self, int8: Collection[str]) -> onnx.ModelProto:
        """Return the network with these convolutions in INT8."""
        if not int8:
            return self.model
        config = self.config.calibration
        plan = plan_int8(self.model, set(self.plan.convs) - set(int8))
        mixed = quantize(self.model, plan, self.seen, config)
        set_info(mixed, replace(self.info, precision="int8", weight_bits=config.weight_bits))
        return mixed

    def collect(self) -> None:
        """Run the calibration photographs now, and not within the first trial."""
        assert self.seen is not None

    @cached_property
    def seen(self) -> dict[str, Statistics]:
        """What calibration saw of every tensor that any choice of layers puts in INT8.

        Kept beside the trials, for a search that goes on and for one by another method.
        """
        hashes = [file["sha256"] for file in self.calibration_files()]
        key = statistics_key(self.made_from(), hashes, self.info, self.plan.group_of)
        file = self.journal.path.with_suffix(".calibration.json")
        return collect_kept(
            self.model,
            self.info,
            list(zip(self.calibrating, hashes, strict=True)),
            StatisticsCache(file, key, strict=False),
            num_threads=self.num_threads,
        )

    def share(self, convs: Collection[str]) -> float:
        """Return the share of the convolutions' MACs that these take; 0 where none is known."""
        return int8_share(self.macs, tuple(convs)) or 0.0

    def facts(self) -> dict[str, object]:
        """Return what a manifest says of the search."""
        return {
            **asdict(self.config),
            "num_calibrating": len(self.calibrating),
            "num_judged": len(self.judge.photographs),
            "annotated": self.annotated is not None,
        }


def split(
    samples: Sequence[Sample], config: SensitivityConfig
) -> tuple[list[Sample], list[Sample]]:
    """Return the photographs that calibrate and those that judge, each at even distances.

    At most half of them judge. Of a single photograph there is no other half: it does both.
    """
    by_path = {sample.image: sample for sample in samples}
    judged = pick([*by_path], min(config.num_judged, max(1, len(by_path) // 2)))
    rest = [path for path in by_path if path not in judged] or judged
    calibrating = pick(rest, config.calibration.num_images)
    return [by_path[path] for path in calibrating], [by_path[path] for path in judged]
