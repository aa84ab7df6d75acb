"""What a recipe says of learning: steps, optimiser, crops, losses and what is transferred.

Every field is part of a run's identity: a checkpoint of other settings is never gone on with.
Where and how fast a run takes place (devices, threads) is no part of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, Literal, get_args

from crowdrt.errors import RecipeError
from crowdrt.int8 import WEIGHT_MAX, WeightScales

CountLoss = Literal["blocks", "squared", "bayesian", "sanet"]
Crops = Literal["scaled", "fixed", "ratio"]
OptimizerName = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "constant", "drop"]
Initial = Literal["fan-in", "fan-out", "gaussian"]
FloatPrecision = Literal["bf16-mixed", "16-mixed", "32-true"]  # as Lightning Fabric names them

Intra = Literal["cosine", "l2"]
Inter = Literal["dense", "sparse"]
GroundTruth = Literal["hard", "soft", "both"]
PruningMethod = Literal["l1", "cp", "agp"]
QuantizationMethod = Literal["qat", "dorefa"]
Background = Literal["margin", "inverse"]
Taps = Literal["code", "paper"]
Method = Literal["fitnets", "dml", "nst", "at", "ab"]

BRANCH_SIZES = ("3x4", "6x8", "12x16", "24x32", "48x64")  # DeepCount's, coarsest first


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Structured knowledge transfer from a teacher (SKT, arXiv:2003.10120).

    The defaults are the paper's equations 4, 6, 7 and 8. Options name where the code that its
    authors published departs: `taps="code"`, `normalise=True`, `with_density=True`,
    `adapter_relu=True` and weights of 0.5.
    """

    teacher: str  # the recipe whose weights teach
    intra: Intra | None = "cosine"  # equation 4, or squared distances; None: no Intra-PT
    inter: Inter | None = "dense"  # equation 6: all pairs of features, or neighbours; None
    ground_truth: GroundTruth = "both"  # equation 7: annotation, teacher's map, or both
    taps: Taps = "paper"  # where CSRNet's features are taken; see models/taps.py
    adapter_relu: bool = False  # behind each 1x1 convolution
    normalise: bool = False  # instance-normalise features before equation 5
    with_density: bool = False  # the predicted map takes part in equation 6 as a feature
    mean: bool = False  # over locations and entries, where the equations have sums
    intra_weight: float = 1.0
    inter_weight: float = 1.0
    soft_weight: float = 1.0

    def __post_init__(self) -> None:
        check_choice("intra", self.intra, (*get_args(Intra), None))
        check_choice("inter", self.inter, (*get_args(Inter), None))
        check_choice("ground_truth", self.ground_truth, get_args(GroundTruth))
        check_choice("taps", self.taps, get_args(Taps))
        for name in ("intra_weight", "inter_weight", "soft_weight"):
            check_positive(name, getattr(self, name), zero=True)


# which settings a method has beside its teacher; `crowdrt.training.distillation` says what they do
METHOD_SETTINGS: dict[Method, tuple[str, ...]] = {
    "fitnets": ("taps", "weight", "mean", "first_stage", "hint", "soft_weight", "soft_last"),
    "dml": ("soft_weight",),
    "nst": ("taps", "weight"),
    "at": ("taps", "weight", "mean"),
    "ab": ("taps", "weight", "mean", "first_stage", "margin"),
}


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Another paper's way to learn from a teacher, or from a peer, to hold beside SKT.

    Methods: FitNets (arXiv:1412.6550), DML (arXiv:1706.00384), NST (arXiv:1707.01219), AT
    (arXiv:1612.03928), AB (arXiv:1811.03233). A setting that the method has no use for keeps its
    default; `METHOD_SETTINGS` says which it has.
    """

    method: Method
    teacher: str | None = None  # the recipe whose weights teach; None for "dml", which has none
    taps: Taps = "paper"  # where CSRNet's features are taken; see models/taps.py
    weight: float = 1.0  # of the distance between features
    mean: bool = False  # over locations, where the equations have sums
    first_stage: float = 0.25  # of the steps learn the teacher's features alone
    hint: int = 3  # which tap, from 0, is FitNets' hint and guided layer
    soft_weight: float = 1.0  # of the error against the teacher's or the peer's map ...
    soft_last: float | None = None  # ... at the last step, linear between; None: the same
    margin: float = 1.0  # of AB's hinge

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        check_choice("taps", self.taps, get_args(Taps))
        if (self.teacher is None) != (self.method == "dml"):
            raise RecipeError(
                f"distillation.method={self.method!r} with teacher={self.teacher!r}",
                fix='name the recipe that teaches: teacher="csrnet-quarter"; or None for "dml"',
            )
        for name in ("weight", "soft_weight", "margin"):
            check_positive(name, getattr(self, name), zero=name != "margin")
        if self.soft_last is not None:
            check_positive("soft_last", self.soft_last, zero=True)
        if not 0 < self.first_stage < 1:
            raise RecipeError(
                f"first_stage={self.first_stage} leaves no step to one of two stages",
                fix="use a share of the steps between 0 and 1, such as 0.25",
            )
        check_used(self, METHOD_SETTINGS)


@dataclass(frozen=True, kw_only=True)
class GradientFusion:
    """What the backbone of a count learns from (DeepCount, arXiv:1908.03314, equations 4 to 6).

    The defaults are the paper's. Where its published code departs, options say so: it leaves out
    the 1/2 of equation 6 (`half=False`) and turns a tenth of what it learns from grey
    (`grey=0.1`). Both take sigma from `TrainingConfig.sigma_px`: 5 in the paper, 10 in the code.
    """

    branches: tuple[str, ...] = BRANCH_SIZES  # whose maps take part; the others are not computed
    count_weight: float = 16.0  # beta: of the count's error beside the maps'
    scale: float = 0.01  # omega: of all errors
    half: bool = True  # the 1/2 before equation 6's sum
    num_crops: int = 30  # cut at random from each photograph and pass, beside its tiles
    grey: float = 0.0  # of the tiles and crops

    def __post_init__(self) -> None:
        for each in self.branches:
            check_choice("branches", each, BRANCH_SIZES)
        for name in ("count_weight", "scale"):
            check_positive(name, getattr(self, name))
        if self.num_crops < 0 or not 0 <= self.grey <= 1:
            raise RecipeError(
                f"num_crops={self.num_crops}, grey={self.grey} cannot be drawn",
                fix="use num_crops of 0 or more, and grey in [0, 1]",
            )


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which cells of a detector learn which person (DSLA, equations 2 to 6).

    Feature Shuffle is no part of it: `dsla` has it, `onenet` is the same network without.
    """

    soft: bool = True  # the SLA branch; without it, OneNet's one-to-one labels alone
    num_soft: int = 6  # K: soft anchors a person has on the SLA branch, beside the certain one
    soft_max: float = 0.6  # T at the first step ...
    soft_min: float = 0.4  # ... and at the last, linear between
    scheduled: bool = True  # targets are T times equation 3; False: as it is printed, without T
    soft_weight: float = 1.0  # of the SLA branch's loss beside the one-to-one branch's
    num_certain: int = 1  # cells a person has on the branch that ships; more need suppression

    def __post_init__(self) -> None:
        for name in ("num_soft", "num_certain"):
            if (number := getattr(self, name)) < 1:
                raise RecipeError(f"{name}={number} assigns nothing", fix="use at least 1")
        check_positive("soft_weight", self.soft_weight, zero=True)
        for name in ("soft_max", "soft_min"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise RecipeError(f"{name}={value} is no target", fix="use a value in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Learning in simulated INT8: `crowdrt calibrate` then takes the ranges that were learned.

    Methods: "qat" (Jacob et al., arXiv:1712.05877), "dorefa" (Zhou et al., arXiv:1606.06160);
    `crowdrt.training.quantization` says what they do and where they depart from the papers.
    """

    method: QuantizationMethod
    start: str  # the recipe whose shipped weights it begins with; --init FILE instead
    weight_bits: int = 8  # 7 for CPUs without VNNI, as `crowdrt calibrate --weight-bits`
    range_decay: float = 0.99  # of the moving average of each tensor's largest |x|
    moving: float = 0.8  # of the steps, after which ranges stay as they are

    def __post_init__(self) -> None:
        check_choice("quantization.method", self.method, get_args(QuantizationMethod))
        check_choice("weight_bits", self.weight_bits, tuple(WEIGHT_MAX))
        if not 0 <= self.range_decay <= 1:
            raise RecipeError(
                f"range_decay={self.range_decay} is no share", fix="use a value in [0, 1]"
            )
        if not 0 < self.moving <= 1:
            raise RecipeError(
                f"moving={self.moving} is no share of the steps in which ranges are observed",
                fix="use a value in (0, 1]",
            )

    @property
    def weight_scales(self) -> WeightScales:
        """What of a layer's weights has one scale."""
        return "channel" if self.method == "qat" else "layer"


# which settings a method has beside its start and its budget
PRUNING_SETTINGS: dict[PruningMethod, tuple[str, ...]] = {
    "l1": ("multiple",),
    "cp": ("multiple", "deep", "crops", "points"),
    "agp": ("multiple", "over", "every"),
}


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Which channels a trained network loses, and how many; what is left learns on.

    Methods: "l1", L1Filter (arXiv:1608.08710); "cp", channel pruning (arXiv:1707.06168); "agp",
    gradual pruning (arXiv:1710.01878). `crowdrt.training.pruning` says what they do. A setting
    that the method has no use for keeps its default; `PRUNING_SETTINGS` says which it has.
    """

    method: PruningMethod
    start: str  # the recipe whose shipped weights are pruned; --init FILE instead
    macs: float  # share of the start's multiply-accumulates that remains, at most
    multiple: int = 8  # the channels that a layer keeps are one of: kernels work on so many at once
    deep: float = 1.5  # cp: what stride 8 and deeper keep of their channels, shallower layers 1
    crops: int = 64  # cp: of training photographs, ...
    points: int = 100  # cp: ... and places of each, that layers are rebuilt by
    over: float = 0.5  # agp: of the steps, after which all is closed that will be
    every: int = 10  # agp: steps between closings

    def __post_init__(self) -> None:
        check_choice("pruning.method", self.method, get_args(PruningMethod))
        for name in ("macs", "over"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise RecipeError(
                    f"pruning.{name}={value} is no share", fix="use a value in (0, 1]"
                )
        for name in ("multiple", "deep", "crops", "points", "every"):
            check_positive(f"pruning.{name}", getattr(self, name))
        check_used(self, PRUNING_SETTINGS)


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """How the people of a crop share its cells in the Bayesian loss (arXiv:1908.03684).

    The defaults are those of SKT's teachers. The published code has had two backgrounds: "margin"
    with a ratio of 1, the paper's dummy point, and later "inverse" with 0.15.
    """

    sigma_px: float = 8.0  # of a head's likelihood
    background: Background | None = "margin"  # None: BL without the plus, every cell is somebody's
    background_ratio: float = 1.0  # d, of the photograph's shorter side

    def __post_init__(self) -> None:
        check_choice("background", self.background, (*get_args(Background), None))
        check_positive("posterior.sigma_px", self.sigma_px)
        check_positive("background_ratio", self.background_ratio)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the training loop needs to know; every field is part of the recipe's identity."""

    steps: int = 20_000
    batch_size: int = 8  # of one optimisation step, over all devices and accumulated parts
    accumulate: int = 1  # parts a device takes its share of a batch in
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    backbone_rate: float = 1.0  # times learning_rate, for a front end that is finer tuned
    momentum: float = 0.9  # of sgd
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    drop_at: float = 2 / 3  # of the steps, where "drop" divides the rate by ten
    warm_up_steps: int = 200
    clip_norm: float = 10.0  # of the gradient; 0: not clipped
    average: float = 0.998  # of the weights, exponential; 0: the last weights
    precision: FloatPrecision = "bf16-mixed"
    initial: Initial = "fan-in"  # how convolutions begin; see training/initial.py
    seed: int = 0

    loss: CountLoss = "blocks"
    posterior: Posterior = field(default_factory=Posterior)  # of "bayesian"
    crops: Crops = "scaled"
    crop_px: int = 256
    crop_ratio: tuple[float, float] = (0.5, 1.0)  # of each side, between which "ratio" draws
    short_side_px: int = 0  # detectors see photographs of this short side; 0: as they are
    flip: float = 0.5  # of the crops are mirrored
    colours: bool = True  # are varied
    sigma_px: float = 0.0  # 0: geometry-adaptive
    nearest_sigma_px: float = 0.0  # more: the nearest head's distance, at most this (SKT, UCF-QNRF)
    batch_norm: bool = True  # learned beside every convolution, folded before shipping
    num_synthetic: int = 0  # generated photographs added to the training set
    transfer: Transfer | None = None
    distillation: Distillation | None = None
    fusion: GradientFusion | None = None
    assignment: Assignment | None = None
    pruning: Pruning | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "crop_px"):
            if (value := getattr(self, name)) < 1:
                raise RecipeError(f"{name}={value} trains nothing", fix="use at least 1")
        check_positive("learning_rate", self.learning_rate)
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_choice("initial", self.initial, get_args(Initial))
        check_choice("precision", self.precision, get_args(FloatPrecision))
        check_choice("loss", self.loss, get_args(CountLoss))
        check_choice("crops", self.crops, get_args(Crops))
        if self.transfer is not None and self.distillation is not None:
            raise RecipeError(
                "transfer and distillation are two ways to learn from a teacher",
                fix="keep one of them, and make the other None",
            )
        if self.quantization is not None and (self.batch_norm or self.precision != "32-true"):
            raise RecipeError(
                f"quantization with batch_norm={self.batch_norm} and precision={self.precision}: "
                "the engine would not compute what training simulates",
                fix='use batch_norm=False and precision="32-true"',
            )
        if self.pruning is not None and self.batch_norm:
            raise RecipeError(
                "pruning with batch_norm=True: normalisation that is added to a trained network "
                "undoes what it has learned",
                fix="use batch_norm=False",
            )
        if self.pruning is not None and self.quantization is not None:
            raise RecipeError(
                "pruning and quantization are two trainings, one after the other",
                fix="prune first, then: crowdrt train skt-5-qat-cpu --init PRUNED.safetensors "
                "--data DIR -o OUT",
            )
        low, high = self.crop_ratio
        if not 0 < low <= high <= 1:
            raise RecipeError(
                f"crop_ratio={self.crop_ratio} is no part of a photograph's sides",
                fix="use two numbers in (0, 1], the smaller first; SKT's are (0.5, 1.0)",
            )
        if not 0 <= self.average < 1:
            raise RecipeError(
                f"average={self.average} is no decay of an average of weights",
                fix="use a value in [0, 1); 0.998 is a good start, 0 takes the last weights",
            )

    @property
    def start(self) -> str | None:
        """The recipe whose weights are gone on with, if any are."""
        going_on = self.pruning or self.quantization
        return going_on.start if going_on else None

    @property
    def taps(self) -> Taps:
        """Where a student is compared with whom it learns from."""
        learning_from = self.transfer or self.distillation
        assert learning_from is not None
        return learning_from.taps

    @property
    def teacher(self) -> str | None:
        """The recipe whose weights teach, if any do."""
        learning_from = self.transfer or self.distillation
        return learning_from.teacher if learning_from else None


def check_used(part: Distillation | Pruning, settings: Mapping[Any, tuple[str, ...]]) -> None:
    """Refuse a setting that a part's method would not look at.

    Args:
        part: with a `method`.
        settings: those of each method; a field that is in none of them belongs to all methods.
    """
    known, all_of_them = settings[part.method], {*chain(*settings.values())}
    for each in fields(part):
        unused = each.name in all_of_them and each.name not in known
        if unused and getattr(part, each.name) != each.default:
            raise RecipeError(
                f"method {part.method!r} has no {each.name}",
                fix=f"leave it out; it has {', '.join(known)}",
            )


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse what is not one of `choices`."""
    if value not in choices:
        raise RecipeError(
            f"{name}={value!r} is unknown", fix=f"use one of {', '.join(map(str, choices))}"
        )


def check_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse what is not a positive, finite number."""
    if not (0 < value < float("inf") or (zero and value == 0)):
        raise RecipeError(
            f"{name}={value} is no positive number",
            fix=f"use {name}={'0 or more' if zero else 'more than 0'}",
        )
