"""The attempts, each with what was expected of it before it was measured here.

A prediction is never edited once a record of it exists: a new idea is a new attempt. `earlier` says
of those that follow measurements elsewhere, or by hand, which these were.
"""

from functools import partial

from crowdrt.benchmarks.attempts.attempt import Attempt, Baseline, Prediction, Runtime
from crowdrt.benchmarks.attempts.openers import (
    ThroughputHint,
    float_layers,
    open_bf16,
    open_blocks,
    open_float_layers,
    open_phases,
    open_two,
    open_with_options,
)
from crowdrt.benchmarks.attempts.per_layer import faster_in_float
from crowdrt.engines.ort import EXACT_INT8

ORT_FP32 = Baseline(runtime="onnxruntime", form="fp32")
ORT_INT8 = Baseline(runtime="onnxruntime", form="int8")
OV_FP32 = Baseline(runtime="openvino", form="fp32")
OV_INT8 = Baseline(runtime="openvino", form="int8")

PROTOTYPE = "after measurements of a prototype on two Zen 3 cores, without VNNI"
BY_HAND = "made before a trial by hand on this kind of machine, whose outcome was known by now"
PER_IMAGE = "throughput, not latency: the time of a run over the two images that it counts"


def phases(baseline: Baseline, prediction: Prediction) -> Attempt:
    """Return the attempt with dilated layers on phase images."""
    return Attempt(
        name=f"phases-{baseline.runtime}-{baseline.form}",
        changed="dilated layers run with dilation 1 on their four phase images, as a batch of four",
        baseline=baseline,
        prediction=prediction,
        open=partial(open_phases, runtime=baseline.runtime),
        cells=2,
    )


PHASES = (
    phases(
        ORT_FP32,
        Prediction(
            low=1.0,
            high=1.05,
            reason="its kernels for blocked layouts convolve directly, as fast with dilation as "
            "without, and have no Winograd: there a dilated layer took 13.9 ms and 14.8 as phases",
            earlier=PROTOTYPE,
        ),
    ),
    phases(
        OV_FP32,
        Prediction(
            low=0.93,
            high=1.0,
            reason="no gain to a small one: layers of 34.5 and 32.6 ms took 35.6 and 32.9 there, "
            "one of 34.8 took 23.6",
            earlier=PROTOTYPE,
        ),
    ),
    phases(
        ORT_INT8,
        Prediction(
            low=1.0,
            high=1.08,
            reason="it gathers the window of every pixel whatever the dilation is, so only the "
            "moving into phases and out of them, with a change of layout each, is added",
        ),
    ),
    phases(
        OV_INT8,
        Prediction(
            low=0.97,
            high=1.05,
            reason="for its kernels dilation is a step between addresses; images of a quarter fill "
            "fewer rows of a matrix tile, and neighbours lie closer: neither is much",
        ),
    ),
)

ON_BLOCKS = (
    "layers in front of the first pool run on blocks of 2x2 pixels, with four times the channels "
    "at half the resolution"
)
TO_PIXELS = f"{ON_BLOCKS}; blocks become pixels again to be pooled"
LARGEST = f"{ON_BLOCKS}; the pool is the largest of the four parts of a block's channels"
FOUR_TIMES = "16 channels fill a quarter of a matrix tile's depth, 64 all of it"
BLOCKS = (
    Attempt(
        name="blocks-openvino-int8",
        changed=TO_PIXELS,
        baseline=OV_INT8,
        prediction=Prediction(low=0.75, high=0.75, reason=FOUR_TIMES, earlier=BY_HAND),
        open=partial(open_blocks, runtime="openvino", pool="apart"),
    ),
    Attempt(
        name="blocks-max-openvino-int8",
        changed=LARGEST,
        baseline=OV_INT8,
        prediction=Prediction(low=0.75, high=0.75, reason=FOUR_TIMES, earlier=BY_HAND),
        open=partial(open_blocks, runtime="openvino", pool="max"),
    ),
    Attempt(
        name="blocks-onnxruntime-int8",
        changed=TO_PIXELS,
        baseline=ORT_INT8,
        prediction=None,
        open=partial(open_blocks, runtime="onnxruntime", pool="apart"),
        about="tried by hand before, without a prediction",
    ),
    Attempt(
        name="blocks-max-onnxruntime-int8",
        changed=LARGEST,
        baseline=ORT_INT8,
        prediction=None,
        open=partial(open_blocks, runtime="onnxruntime", pool="max"),
        about="tried by hand before, without a prediction",
    ),
)


def two_engines(baseline: Baseline, prediction: Prediction) -> Attempt:
    """Return the attempt with an engine of half of the threads for each of two images."""
    return Attempt(
        name=f"two-in-flight-{baseline.runtime}-{baseline.form}",
        changed="two engines in one process, each with half of the threads, count an image each",
        baseline=baseline,
        prediction=prediction,
        open=partial(open_two, runtime=baseline.runtime),
        images_per_run=2,
        about=PER_IMAGE,
    )


TWO_IN_FLIGHT = (
    two_engines(
        ORT_INT8,
        Prediction(
            low=0.85,
            high=0.97,
            reason="threads that share an image wait for each other after every layer, and what "
            "one of them does alone (changes of layout, the first nodes) leaves the other idle",
        ),
    ),
    two_engines(
        OV_INT8,
        Prediction(
            low=0.8,
            high=0.95,
            reason="as with ONNX Runtime, in layers that are shorter, so that waiting is more of "
            "them: 84 to 91 ms per image instead of 98 to 101 there",
            earlier=PROTOTYPE,
        ),
    ),
    Attempt(
        name="throughput-hint-openvino-int8",
        changed="OpenVINO's hint is throughput instead of latency, and two requests are in flight",
        baseline=OV_INT8,
        prediction=Prediction(
            low=0.8,
            high=0.95,
            reason="its streams are what two engines of half of the threads are",
            earlier=PROTOTYPE,
        ),
        open=ThroughputHint,
        images_per_run=2,
        about=PER_IMAGE,
    ),
)

NOTHING = Prediction(
    low=0.97, high=1.03, reason="all within noise there, 165 to 172 ms of 170", earlier=PROTOTYPE
)
OPTIONS = (
    Attempt(
        name="no-spinning-onnxruntime-fp32",
        changed="threads sleep between layers instead of spinning",
        baseline=ORT_FP32,
        prediction=NOTHING,
        open=partial(open_with_options, config={"session.intra_op.allow_spinning": "0"}),
    ),
    Attempt(
        name="no-memory-pattern-onnxruntime-fp32",
        changed="the memory of a run is not planned from that of the run before",
        baseline=ORT_FP32,
        prediction=NOTHING,
        open=partial(open_with_options, lean=True),
    ),
    Attempt(
        name="no-arena-onnxruntime-fp32",
        changed="every tensor's memory is asked of the system and given back",
        baseline=ORT_FP32,
        prediction=Prediction(
            low=1.1, high=1.3, reason="208 ms instead of 170 there", earlier=PROTOTYPE
        ),
        open=partial(open_with_options, arena=False),
    ),
    Attempt(
        name="unsigned-weights-onnxruntime-int8",
        changed="8-bit weights are shifted to unsigned, as CPUs without VNNI need it",
        baseline=ORT_INT8,
        prediction=Prediction(
            low=0.98,
            high=1.15,
            reason="AMX multiplies unsigned by unsigned as fast; what is added are corrections by "
            "the sums of rows",
        ),
        open=partial(open_with_options, config=EXACT_INT8),
    ),
)


def per_layer(runtime: Runtime, prediction: Prediction) -> Attempt:
    """Return the attempt that leaves in float what is faster there."""
    return Attempt(
        name=f"fastest-layers-{runtime}-int8",
        changed="layers of the INT8 file that are faster in FP32, by their measured times, compute "
        "in float",
        baseline=Baseline(runtime=runtime, form="int8"),
        prediction=prediction,
        open=partial(open_float_layers, runtime=runtime),
        choose=faster_in_float,
        written=partial(float_layers, runtime=runtime),
    )


PER_LAYER = (
    per_layer(
        "onnxruntime",
        Prediction(
            low=0.95,
            high=1.0,
            reason="at most the first layer, of 3 channels, which has to be gathered in INT8; to "
            "quantize its result is added to its time in float",
        ),
    ),
    per_layer(
        "openvino",
        Prediction(
            low=1.0,
            high=1.0,
            reason="AMX multiplies codes many times as fast as floats: no layer to be chosen",
        ),
    ),
)

OTHER_FORMATS = (
    Attempt(
        name="bf16-openvino-fp32",
        changed="OpenVINO may compute in bfloat16, another number format: never a default",
        baseline=OV_FP32,
        prediction=Prediction(
            low=0.28,
            high=0.45,
            reason="AMX takes bfloat16 at half of its rate of codes, and tensors are half as long "
            "as floats",
        ),
        open=open_bf16,
        exact=False,
        about="not exact: 8 bits of mantissa instead of 24",
    ),
)

ATTEMPTS: tuple[Attempt, ...] = (
    *PHASES,
    *BLOCKS,
    *TWO_IN_FLIGHT,
    *OPTIONS,
    *PER_LAYER,
    *OTHER_FORMATS,
)
