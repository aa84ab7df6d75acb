import os
import signal
import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
from small_students import write_student

from crowdrt.benchmarks.attempts.agreement import TOLERANCE, Agreement, agreement, objection
from crowdrt.benchmarks.attempts.attempt import Attempt, Setting
from crowdrt.benchmarks.attempts.check import answer_to, compared_apart, entry_of
from crowdrt.benchmarks.attempts.listed import (
    ATTEMPTS,
    OPTIONS,
    ORT_FP32,
    ORT_INT8,
    OTHER_FORMATS,
    OV_FP32,
    PER_LAYER,
)
from crowdrt.benchmarks.attempts.openers import (
    ThroughputHint,
    TwoEngines,
    as_written,
    opened,
    prepared,
)
from crowdrt.benchmarks.attempts.per_layer import choice_of, faster_in_float
from crowdrt.benchmarks.attempts.rewrites import phases
from crowdrt.benchmarks.attempts.rewrites.float_layers import with_float_layers
from crowdrt.benchmarks.attempts.rewrites.phases import with_phases
from crowdrt.benchmarks.attempts.rewrites.stem import kernel_of_blocks, with_blocks
from crowdrt.benchmarks.attempts.trial import check_files, check_size
from crowdrt.benchmarks.layers.records import LayerProfile
from crowdrt.engines.layers.layer import EngineLayer
from crowdrt.engines.machine import cpu
from crowdrt.engines.store import installed_engines
from crowdrt.errors import BenchmarkError, EngineError

REWRITES = [each for each in ATTEMPTS if each.name.startswith(("phases", "blocks"))]
RUNTIMES = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    folder = tmp_path_factory.mktemp("students")
    files = {
        "fp32": write_student(folder / "student.onnx", int8=False),
        "int8": write_student(folder / "student.int8.onnx", int8=True),
    }
    image = np.random.default_rng(1).integers(0, 256, (3, 96, 128), dtype=np.uint8)
    return Setting(files=files, image=image, num_threads=1)


def skip_without(runtime: str) -> None:
    if runtime not in installed_engines():
        pytest.skip(f"needs {runtime}")


def answer(setting: Setting, baseline):
    skip_without(baseline.runtime)
    return answer_to(setting.opener(baseline)(), setting.image)


@pytest.mark.parametrize("attempt", REWRITES, ids=lambda attempt: attempt.name)
def test_a_rewrite_answers_what_its_baseline_does(attempt, setting):
    before = answer(setting, attempt.baseline)
    assert before["density"].std() > 0.01 * np.abs(before["density"]).max()
    entry = entry_of(setting, attempt, before)
    assert entry.result == ""
    assert entry.opener is not None
    limit = 1e-5 if attempt.baseline.form == "fp32" else 0.0  # sums of codes are exact
    assert entry.agreement.difference <= limit


@pytest.mark.parametrize("pool", ["apart", "max"])
@pytest.mark.parametrize("width", [128, 136], ids=["even cells", "odd cells"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_blocks_of_floats_are_exact_at_any_size_of_the_network(runtime, width, pool, setting):
    skip_without(runtime)
    image = np.random.default_rng(2).integers(0, 256, (3, 104, width), dtype=np.uint8)
    graph = prepared(setting.files["fp32"], runtime)
    before = answer_to(opened(graph, runtime, 1), image)
    after = answer_to(opened(with_blocks(graph, pool=pool), runtime, 1), image)
    assert agreement(before, after, "fp32").difference < 1e-5


def kinds(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_phases_leave_no_dilation_and_split_codes_where_there_are_any(form, setting):
    graph = with_phases(prepared(setting.files[form], "onnxruntime"))
    onnx.checker.check_model(graph)
    dilations = [
        list(a.ints) for n in graph.graph.node for a in n.attribute if a.name == "dilations"
    ]
    assert dilations
    assert all(each == [1, 1] for each in dilations)
    makers = {name: node.op_type for node in graph.graph.node for name in node.output}
    split = next(node for node in graph.graph.node if node.op_type == "SpaceToDepth")
    assert makers[split.input[0]] == ("QuantizeLinear" if form == "int8" else "Relu")
    # behind the last layer, of one channel
    assert kinds(graph)[-3:] == ["Reshape", "DepthToSpace", "ReduceSum"]


def test_blocks_leave_as_many_nodes_between_codes(setting):
    graph = prepared(setting.files["int8"], "openvino")
    before, after = kinds(graph), kinds(with_blocks(graph, pool="max"))
    assert before.count("QuantizeLinear") == after.count("QuantizeLinear")
    assert before.count("MaxPool") == after.count("MaxPool") + 1


def test_a_size_without_whole_phases_is_refused_and_blocks_take_it(setting):
    odd = replace(setting, image=np.zeros((3, 96, 136), np.uint8))
    info = check_files(odd)["fp32"]
    with pytest.raises(BenchmarkError, match="multiples of 16") as error:
        check_size(odd, REWRITES, info)
    assert "--size 96x144" in error.value.fix
    check_size(odd, [each for each in REWRITES if each.name.startswith("blocks")], info)


def shifted(path, *, num_threads):
    """Phases whose merge is one cell off."""
    graph = with_phases(prepared(path, "onnxruntime"))
    merge = next(
        node
        for node in graph.graph.node
        if node.op_type == "Reshape" and node.input[1] == phases.FROM
    )
    where = list(graph.graph.node).index(merge)
    result, merge.output[0] = merge.output[0], "in_place"
    stored = [("order", np.array([1, 2, 3, 0])), ("one", np.array(1))]
    graph.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in stored)
    roll = onnx.helper.make_node("Gather", ["in_place", "order"], [result], axis=1)
    graph.graph.node.insert(where + 1, roll)
    return opened(graph, "onnxruntime", num_threads)


@pytest.mark.parametrize("baseline", [ORT_FP32, ORT_INT8], ids=["fp32", "int8"])
def test_a_form_whose_cells_are_one_off_is_refused(baseline, setting):
    broken = Attempt(
        name="broken",
        changed="nothing that is right",
        baseline=baseline,
        prediction=None,
        open=shifted,
    )
    entry = entry_of(setting, broken, answer(setting, baseline))
    assert entry.result.startswith("refused: its density differs by")
    assert entry.opener is None
    # another number format is only told of
    told = entry_of(setting, replace(broken, exact=False), answer(setting, baseline))
    assert told.opener is not None
    assert told.agreement.difference > TOLERANCE[baseline.form]


def test_a_kernel_that_reads_the_wrong_neighbour_is_refused(setting, monkeypatch):
    def mirrored(pixels):
        return kernel_of_blocks(pixels[..., ::-1])

    monkeypatch.setattr("crowdrt.benchmarks.attempts.rewrites.stem.kernel_of_blocks", mirrored)
    attempt = next(each for each in REWRITES if each.name == "blocks-onnxruntime-int8")
    entry = entry_of(setting, attempt, answer(setting, ORT_INT8))
    assert entry.result.startswith("refused")


def raises(path, *, num_threads):
    raise RuntimeError("no such hint")


def asserts(path, *, num_threads):
    raise AssertionError("never so")


def crashes(path, *, num_threads):
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("opens", "reason"),
    [
        (raises, "RuntimeError: no such hint"),
        (asserts, "AssertionError: never so"),
        (crashes, "its process was ended by SIGSEGV"),
    ],
)
def test_what_breaks_in_the_check_is_a_row_with_its_reason(opens, reason, setting):
    attempt = replace(REWRITES[0], open=opens)
    entry = entry_of(setting, attempt, {}, compare=compared_apart)
    assert entry.result == f"refused: {reason}"
    assert entry.opener is None


def test_a_choice_that_breaks_is_a_row_with_its_reason(setting):
    attempt = replace(PER_LAYER[0], choose=lambda *_: {}["layers"])
    assert entry_of(setting, attempt, {}).result == "refused: KeyError: 'layers'"


def test_codes_without_a_zero_point_are_put_on_blocks(setting):
    graph = prepared(setting.files["int8"], "onnxruntime")
    before = answer_to(as_written(with_blocks(graph, pool="apart"), 1), setting.image)
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and "weight" in node.input[1]:
            del node.input[2]
    after = answer_to(as_written(with_blocks(graph, pool="apart"), 1), setting.image)
    assert [len(node.input) for node in graph.graph.node].count(2) > 5
    assert np.array_equal(before["density"], after["density"])


def test_two_images_in_flight_need_two_threads(setting):
    for name in ("two-in-flight-onnxruntime-int8", "throughput-hint-openvino-int8"):
        attempt = next(each for each in ATTEMPTS if each.name == name)
        with pytest.raises(EngineError, match="need 2 threads, not 1"):
            attempt.opener(setting)()


def test_a_network_without_such_layers_is_refused_with_what_it_lacks(setting):
    graph = with_phases(prepared(setting.files["fp32"], "onnxruntime"))
    with pytest.raises(EngineError, match="dilation 2"):
        with_phases(graph)
    for node in graph.graph.node:
        if node.op_type == "MaxPool":
            node.op_type = "AveragePool"
    with pytest.raises(EngineError, match="no 2x2 pool"):
        with_blocks(graph, pool="max")


def test_an_answer_that_is_no_number_or_constant_proves_nothing():
    found = Agreement(
        largest=1.0, difference=float("nan"), count=1.0, count_difference=0.0, tolerance=1e-4
    )
    assert objection(found)
    assert not objection(replace(found, difference=1e-5))
    still = {"density": np.zeros((1, 1, 4, 4), np.float32), "count": np.zeros(1, np.float32)}
    with pytest.raises(BenchmarkError, match="everywhere"):
        agreement(still, still, "fp32")


def layers_of(graph: onnx.ModelProto) -> tuple[str, ...]:
    return tuple(node.name for node in graph.graph.node if node.op_type == "Conv")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_in_float_say_what_their_codes_said(runtime, setting):
    skip_without(runtime)
    graph = prepared(setting.files["int8"], runtime)
    first, second = layers_of(graph)[:2]
    changed = with_float_layers(graph, (first, second))
    before, after = (answer_to(as_written(each, 1), setting.image) for each in (graph, changed))
    assert np.array_equal(before["density"], after["density"])
    assert kinds(changed).count("DequantizeLinear") == kinds(graph).count("DequantizeLinear") - 2
    opened(changed, runtime, 1)
    with pytest.raises(EngineError, match="stored codes"):
        with_float_layers(graph, layers_of(graph)[-1:])


def test_layers_in_float_are_judged_as_they_are_written(setting):
    attempt = replace(PER_LAYER[0], choose=lambda *_: choice_of(profiles(int8_ms=9.0)))
    before = answer(setting, ORT_INT8)
    entry = entry_of(setting, attempt, before)
    assert entry.result.startswith("refused")  # there is no such layer
    named = layers_of(prepared(setting.files["int8"], "onnxruntime"))[0]
    chosen = replace(choice_of(profiles(int8_ms=9.0)), options={"layers": (named,)})
    entry = entry_of(setting, replace(attempt, choose=lambda *_: chosen), before)
    assert entry.opener is not None
    assert entry.written.difference == 0
    assert entry.found["said"] == "first"


def profiles(int8_ms: float) -> dict[str, LayerProfile]:
    def layer(precision: str, ms: float) -> EngineLayer:
        return EngineLayer(
            name="first", kind="Conv", kernel=None, nodes=(), precision=precision,
            input_shape=None, output_shape=None, macs=1, num_bytes=1, samples_ms=(ms,),
        )  # fmt: skip

    def profile(precision: str, ms: float) -> LayerProfile:
        return LayerProfile(
            name=precision, network="csrnet", width="1/4", engine="onnxruntime",
            engine_version="1", precision=precision, size=(96, 128), num_threads=1, sha256="",
            when="", machine={}, peaks={}, whole_ms=(ms,), profiled_ms=(ms,), verdict="valid",
            layers=(layer(precision, ms),),
        )  # fmt: skip

    return {"fp32": profile("fp32", 3.0), "int8": profile("int8", int8_ms)}


def test_layers_that_are_slower_in_int8_are_chosen_and_none_is_said_with_its_numbers():
    assert choice_of(profiles(int8_ms=4.0)).options == {"layers": ("first",)}
    assert choice_of(profiles(int8_ms=3.4)).options == {"layers": ("first",)}
    assert choice_of(profiles(int8_ms=3.2)).options is None  # within what a machine drifts
    none = choice_of(profiles(int8_ms=2.0))
    assert none.options is None
    assert none.said == (
        "none of its 1 layers of codes is slower than in FP32 by 10%; the closest, first: "
        "2.00 ms, 3.00 in FP32"
    )
    assert none.found["layers"] == {"first": {"fp32_ms": 3.0, "int8_ms": 2.0}}


@pytest.mark.parametrize("int8_ms", [2.0, 4.0])
def test_a_choice_by_profiles_in_doubt_says_so(int8_ms):
    clear = profiles(int8_ms)
    doubtful = {**clear, "int8": replace(clear["int8"], verdict="unstable: spread 40%")}
    said = choice_of(doubtful).said
    assert said.endswith(" (profiles in doubt: int8 unstable: spread 40%)")
    assert choice_of(doubtful).found["verdicts"]["int8"] == "unstable: spread 40%"
    assert "doubt" not in choice_of(clear).said


def test_each_file_is_profiled_as_itself(setting, monkeypatch):
    opened_files = []

    def profiled(peaks, engines, image, **rest):
        opened_files.extend((about.precision, about.open.args[0]) for about, _, _ in engines)
        return list(profiles(int8_ms=2.0).values())

    monkeypatch.setattr("crowdrt.benchmarks.attempts.per_layer.profiles_beside", profiled)
    assert faster_in_float(setting, ORT_INT8).options is None
    assert opened_files == [("fp32", setting.files["fp32"]), ("int8", setting.files["int8"])]


def test_options_of_onnx_runtime_reach_it(setting):
    seen = {}
    for attempt in OPTIONS:
        engine = attempt.opener(setting)()
        options = engine._session.get_session_options()
        kept = (options.enable_mem_pattern, options.enable_cpu_mem_arena)
        seen[attempt.name.split("-onnx")[0]] = (*kept, engine.config)
    own = setting.opener(ORT_FP32)().config
    spinning = {**own, "session.intra_op.allow_spinning": "0"}
    assert own != spinning
    assert seen == {
        "no-spinning": (True, True, spinning),
        "no-memory-pattern": (False, True, own),
        "no-arena": (True, False, own),
        "unsigned-weights": (True, True, {**own, "session.x64quantprecision": "1"}),
    }


def test_bfloat16_is_what_openvino_computes_in_where_it_is_asked(setting):
    skip_without("openvino")
    exact = setting.opener(OV_FP32)().compiled.get_property("INFERENCE_PRECISION_HINT")
    free = OTHER_FORMATS[0].opener(setting)().compiled.get_property("INFERENCE_PRECISION_HINT")
    assert exact.to_string() == "f32"
    assert free.to_string() in ("bf16", "f32")  # a CPU without bfloat16 keeps floats
    if "amx_bf16" in cpu()[1]:
        assert free.to_string() == "bf16"


class Meeting:
    """An engine that ends only when another one runs at the same time."""

    inputs = outputs = ()
    info = None
    together = threading.Barrier(2, timeout=10)

    def run(self, feeds):
        self.together.wait()
        return {"count": feeds["image"].sum(keepdims=True)}


def test_two_engines_run_at_once():
    answer = TwoEngines(Meeting).run({"image": np.ones(3)})
    assert answer["count"].tolist() == [3.0, 3.0]


def test_two_requests_answer_for_both_images(setting):
    skip_without("openvino")
    engine = ThroughputHint(setting.files["int8"], num_threads=2)
    answer = answer_to(engine, setting.image)
    assert answer["density"].shape == (2, 1, 12, 16)
    assert np.array_equal(answer["density"][0], answer["density"][1])
    assert len(set(map(id, engine._requests))) == 2


def test_every_attempt_has_a_name_of_its_own_and_a_prediction_or_a_reason():
    names = [attempt.name for attempt in ATTEMPTS]
    assert len(set(names)) == len(names)
    for attempt in ATTEMPTS:
        if attempt.prediction is None:
            assert "without a prediction" in attempt.about
        else:
            assert 0 < attempt.prediction.low <= attempt.prediction.high
            assert attempt.prediction.reason
