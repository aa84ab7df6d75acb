"""TensorRT engines in the store: identity, refusal before loading, signatures, races, timings."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from stand_in_tensorrt import StandInDevice, installed

from crowdrt.engines import store as store_module
from crowdrt.engines.base import open_engine
from crowdrt.engines.cuda.device import driver_version, open_device, parse_driver
from crowdrt.engines.signing import SIGNATURE, VERIFY_KEY
from crowdrt.engines.store import KINDS, MANIFEST, TIMINGS, EngineStore, read_built
from crowdrt.engines.trt.building import timing_cache as timing_module
from crowdrt.engines.trt.building.options import PlanOptions, parse_shape
from crowdrt.engines.trt.building.timing_cache import TimingCache, read_timings
from crowdrt.errors import EngineError

PLAN = KINDS["tensorrt"].file
OPTIONS = PlanOptions(shape=parse_shape("40x64"))
MACHINE = {"gpu": "one", "tensorrt": "8.6.1"}


@pytest.fixture
def engines(tmp_path):
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def build(monkeypatch, engines, tiny_onnx):
    """Builds the small network; the stand-ins stay installed."""
    trt, device = installed(monkeypatch)

    def make(options=OPTIONS, **keywords):
        return engines.build(tiny_onnx, engine="tensorrt", plan=options, **keywords)

    make.trt, make.device = trt, device
    return make


def manifest(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text())


def loads(trt) -> int:
    return sum(entry[0] == "loaded" for entry in trt.my_log)


def test_a_plan_is_built_once_and_says_where_it_comes_from(build, engines, tiny_onnx):
    first, again = build(), build()
    assert (first.reused, again.reused) == (False, True)
    assert again.path == first.path == engines.root / f"{first.key}-tensorrt"
    document = manifest(first.path)
    assert document["identity"]["onnx_sha256"] == hashlib.sha256(tiny_onnx.read_bytes()).hexdigest()
    assert document["identity"]["machine"] == {
        "gpu": "Stand-in GPU",
        "compute_capability": "9.0",
        "num_sms": 132,
        "driver": driver_version(build.device),
    }
    assert document["identity"]["engine_version"] == "8.6.1"
    plan = (first.path / PLAN).read_bytes()
    assert document["sha256"] == hashlib.sha256(plan).hexdigest()
    assert plan.startswith(b"stand-in plan")  # the plan alone, with no header of ours
    layers = (first.path / "inspector.json").read_bytes()
    assert document["inspector_sha256"] == hashlib.sha256(layers).hexdigest()
    assert document["build"]["route"].startswith("8.6")


def test_the_engine_of_the_store_runs(build, pixels):
    engine = open_engine(build().path)
    assert engine.run({"image": pixels})["density"].std() > 0.01
    assert engine.info is not None


def test_the_key_follows_everything_that_decides_the_plan(build, tmp_path):
    pinned = tmp_path / "pinned"
    keys = [build().key]
    for change in (
        {"shape": parse_shape("64x64")},
        {"shape": parse_shape("32x32:40x64:64x64")},
        {"batch": 2},
        {"workspace_bytes": 1 << 30},
        {"level": 4},
        {"tf32": True},
        {"float_input": True},
        {"timing_cache": pin(build, pinned, b"Conv")},
    ):
        keys.append(build(dataclasses.replace(OPTIONS, **change)).key)
    pin(build, pinned, b"Conv Relu")  # the same name, other timings
    keys.append(build(dataclasses.replace(OPTIONS, timing_cache=pinned)).key)
    for change in ({"name": "Another"}, {"compute_capability": (8, 0)}, {"num_sms": 78}):
        for name, value in change.items():
            setattr(build.device, name, value)
        keys.append(build().key)
    build.device.cuda_version = 13000
    keys.append(build().key)
    build.trt.__version__ = "8.6.2"
    keys.append(build().key)
    assert len(set(keys)) == len(keys) == 15


def build_machine(build) -> dict:
    return {**store_module.KINDS["tensorrt"].machine(), "tensorrt": build.trt.__version__}


def pin(build, path: Path, timings: bytes) -> Path:
    """Write a file of timings that this machine could have left."""
    cache = TimingCache(path.parent / "pins", build_machine(build))
    cache.save(timings)
    cache.path.replace(path)
    return path


FOREIGN = {
    "gpu": lambda build: setattr(build.device, "name", "Another GPU"),
    "compute_capability": lambda build: setattr(build.device, "compute_capability", (8, 9)),
    "num_sms": lambda build: setattr(build.device, "num_sms", 114),
    "driver": lambda build: setattr(build.device, "cuda_version", 13000),
    "tensorrt": lambda build: setattr(build.trt, "__version__", "8.6.2"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_plan_is_refused_before_tensorrt_sees_it(build, what):
    built = build()
    before = loads(build.trt)
    FOREIGN[what](build)
    with pytest.raises(EngineError, match=f"built elsewhere: {what}") as caught:
        open_engine(built.path)
    assert "crowdrt build MODEL.onnx --engine tensorrt" in caught.value.fix
    assert loads(build.trt) == before


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / PLAN, 500),
    "one bit": lambda folder: flip(folder / PLAN),
    "no plan": lambda folder: (folder / PLAN).unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half a manifest": lambda folder: os.truncate(folder / MANIFEST, 200),
    "empty": lambda folder: (folder / PLAN).write_bytes(b""),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_altered_plan_is_refused_before_tensorrt_sees_it(build, pixels, damage):
    built = build()
    DAMAGES[damage](built.path)
    before = loads(build.trt)
    with pytest.raises(EngineError, match=built.path.name) as caught:
        open_engine(built.path)
    assert "crowdrt build MODEL.onnx" in caught.value.fix
    assert loads(build.trt) == before
    assert not build().reused
    assert open_engine(built.path).run({"image": pixels})


def test_a_machine_without_a_gpu_refuses_a_plan_and_says_why(build, monkeypatch):
    built = build()
    monkeypatch.undo()
    with pytest.raises(EngineError) as caught:
        read_built(built.path)
    assert "tensorrt" in caught.value.problem
    assert caught.value.fix


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a GPU")
def test_without_a_driver_that_is_said():
    with pytest.raises(EngineError, match="no CUDA device answers") as caught:
        open_device()
    assert "onnxruntime" in caught.value.fix


def test_a_build_that_fails_leaves_nothing(build, engines):
    build.trt.my_fails = True
    with pytest.raises(EngineError, match="no tactic"):
        build()
    assert not engines.root.exists()


def test_other_engines_take_no_options_of_tensorrt(engines, tiny_onnx, keys):
    with pytest.raises(EngineError, match="onnxruntime takes no options") as caught:
        engines.build(tiny_onnx, plan=OPTIONS)
    assert "--engine tensorrt" in caught.value.fix
    with pytest.raises(EngineError, match="a key to sign with"):
        engines.build(tiny_onnx, sign_key=keys[0])


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release",
            "570.86.10",
        ),
    ],
)
def test_the_driver_is_read_from_the_kernel(text, version):
    assert parse_driver(text) == version


def test_where_the_kernel_says_nothing_the_cuda_version_stands_in(monkeypatch, tmp_path):
    from crowdrt.engines.cuda import device as module

    monkeypatch.setattr(module, "DRIVER_FILE", tmp_path / "none")
    assert driver_version(StandInDevice()) == "CUDA 12.8"


# Signatures


def write_key(path: Path, private) -> Path:
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture
def keys(tmp_path):
    """Two private keys (PEM); the public ones lie beside them."""
    return [
        write_key(tmp_path / f"{name}.pem", ed25519.Ed25519PrivateKey.generate())
        for name in ("mine", "other")
    ]


def test_a_signed_engine_loads_where_signatures_are_asked_for(build, keys, monkeypatch, pixels):
    monkeypatch.setenv(VERIFY_KEY, str(keys[0].with_suffix(".pub")))
    built = build(sign_key=keys[0])
    assert open_engine(built.path).run({"image": pixels})
    assert build(sign_key=keys[0]).reused


def test_an_unsigned_engine_does_not(build, keys, monkeypatch):
    built = build()
    assert open_engine(built.path).inputs
    monkeypatch.setenv(VERIFY_KEY, str(keys[0].with_suffix(".pub")))
    before = loads(build.trt)
    with pytest.raises(EngineError, match="is not signed") as caught:
        open_engine(built.path)
    assert "--sign-key" in caught.value.fix
    assert loads(build.trt) == before


def test_none_is_built_that_would_not_load(build, keys, monkeypatch):
    monkeypatch.setenv(VERIFY_KEY, str(keys[0].with_suffix(".pub")))
    with pytest.raises(EngineError, match="asks for signed engines") as caught:
        build()
    assert "--sign-key" in caught.value.fix
    assert not build.trt.my_log
    signed = build(sign_key=keys[0])
    assert build().path == signed.path  # it is there, and signed


def test_a_wrong_key_to_verify_with_costs_no_engine(build, monkeypatch, tmp_path):
    built = build()
    monkeypatch.setenv(VERIFY_KEY, str(tmp_path / "none.pem"))
    with pytest.raises(EngineError, match="holds no public key"):
        build()
    monkeypatch.delenv(VERIFY_KEY)
    assert build().reused
    assert built.path.is_dir()


def test_a_plan_under_the_name_of_another_is_not_taken_for_it(build):
    one, two = build(), build(dataclasses.replace(OPTIONS, level=4))
    shutil.rmtree(two.path)
    shutil.copytree(one.path, two.path)
    assert not build(dataclasses.replace(OPTIONS, level=4)).reused
    assert read_built(two.path).key == two.key


def test_another_build_that_takes_hours_is_not_swept_away(build, engines):
    others = engines.root / ".0123456789abcdef-tensorrt.tmp-long"
    others.mkdir(parents=True)
    os.utime(others, (time.time() - 5 * 3600,) * 2)
    build()
    assert others.is_dir()
    os.utime(others, (time.time() - 30 * 3600,) * 2)
    build(dataclasses.replace(OPTIONS, level=4))
    assert not others.exists()


def test_neither_does_one_of_another_key(build, keys, monkeypatch):
    built = build(sign_key=keys[1])
    monkeypatch.setenv(VERIFY_KEY, str(keys[0].with_suffix(".pub")))
    with pytest.raises(EngineError, match="signed with another key"):
        open_engine(built.path)


def test_nor_one_whose_plan_and_manifest_were_both_exchanged(build, keys, monkeypatch):
    built = build(sign_key=keys[0])
    monkeypatch.setenv(VERIFY_KEY, str(keys[0].with_suffix(".pub")))
    flip(built.path / PLAN)
    document = manifest(built.path)
    document["sha256"] = hashlib.sha256((built.path / PLAN).read_bytes()).hexdigest()
    (built.path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(EngineError, match="was altered"):
        open_engine(built.path)


def test_what_lies_in_the_store_is_never_signed_as_it_is(build, keys):
    unsigned = build()
    flip_plan = (unsigned.path / PLAN).stat().st_mtime_ns
    signed = build(sign_key=keys[0])
    assert not signed.reused  # built again under this call, then signed
    assert (signed.path / PLAN).stat().st_mtime_ns != flip_plan
    assert (signed.path / SIGNATURE).is_file()


def test_an_unsigned_build_that_was_quicker_is_not_handed_out_as_signed(build, keys):
    def quicker():
        build.trt.my_meanwhile = lambda: None
        build()

    build.trt.my_meanwhile = quicker
    with pytest.raises(EngineError, match="is not signed"):
        build(sign_key=keys[0])
    assert not build(sign_key=keys[0]).reused


def test_a_file_that_is_no_key_is_refused_before_the_build(build, tmp_path, keys):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no key")
    curve = write_key(tmp_path / "curve.pem", ec.generate_private_key(ec.SECP256R1()))
    for path in (wrong, curve, keys[0].with_suffix(".pub"), tmp_path / "none.pem"):
        with pytest.raises(EngineError, match="holds no private key") as caught:
            build(sign_key=path)
        assert "openssl genpkey" in caught.value.fix
    assert not build.trt.my_log


def test_openssl_makes_keys_that_fit(build, tmp_path, monkeypatch, pixels):
    key, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    make = [
        ["genpkey", "-algorithm", "ed25519", "-out", key],
        ["pkey", "-in", key, "-pubout", "-out", public],
    ]
    try:
        for arguments in make:
            subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    monkeypatch.setenv(VERIFY_KEY, str(public))
    assert open_engine(build(sign_key=key).path).run({"image": pixels})


# Timings


def test_builds_share_what_they_measured(build, engines):
    facts = [manifest(build().path)["build"]["timings"]]
    facts.append(manifest(build(dataclasses.replace(OPTIONS, level=4)).path)["build"]["timings"])
    assert facts[0]["before_sha256"] is None
    assert facts[1]["before_sha256"] == facts[0]["after_sha256"]
    (cache,) = (engines.root / TIMINGS).glob("*.timings")
    assert b"Conv" in read_timings(cache, build_machine(build)).split()


def test_what_another_build_measured_meanwhile_is_kept(build, engines):
    cache = TimingCache(engines.root / TIMINGS, build_machine(build))

    def meanwhile():
        with cache.locked():
            cache.save(b"Theirs")

    build.trt.my_meanwhile = meanwhile
    build()
    assert set(cache.load().split()) >= {b"Theirs", b"Conv"}


def test_each_gpu_driver_and_version_has_timings_of_its_own(tmp_path):
    changes = [{}, {"gpu": "two"}, {"driver": "1"}, {"tensorrt": "10.1"}]
    assert len({TimingCache(tmp_path, MACHINE | change).path for change in changes}) == 4


BROKEN = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 3),
    "one bit": flip,
    "no header": lambda path: path.write_bytes(b"TensorRT's bytes alone"),
    "empty": lambda path: path.write_bytes(b""),
    "of another machine": lambda path: path.write_bytes(
        path.read_bytes().replace(b'"one"', b'"two"')
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_timings_are_set_aside(tmp_path, damage, capsys):
    cache = TimingCache(tmp_path, MACHINE)
    cache.save(b"Conv Relu Pool Sum Cast Sub Div")
    assert cache.load() == b"Conv Relu Pool Sum Cast Sub Div"
    BROKEN[damage](cache.path)
    assert cache.load() == b""
    assert not cache.path.exists()
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    assert "set aside" in capsys.readouterr().err


def test_damaged_timings_do_not_end_a_build(build, engines, capsys):
    build()
    (cache,) = (engines.root / TIMINGS).glob("*.timings")
    flip(cache)
    assert not build(dataclasses.replace(OPTIONS, level=4)).reused
    assert "set aside" in capsys.readouterr().err
    assert read_timings(cache, build_machine(build))


def test_timings_that_tensorrt_refuses_are_set_aside_too(build, engines, capsys):
    build()
    cache = TimingCache(engines.root / TIMINGS, build_machine(build))
    cache.save(b"refused")
    build(dataclasses.replace(OPTIONS, level=4))
    assert "TensorRT refuses it" in capsys.readouterr().err
    assert b"refused" not in cache.load()


def test_a_pinned_file_is_read_and_left_alone(build, tmp_path, engines):
    pinned = pin(build, tmp_path / "pinned", b"Measured")
    before = pinned.read_bytes()
    options = dataclasses.replace(OPTIONS, timing_cache=pinned)
    facts = manifest(build(options).path)["build"]["timings"]
    assert facts == {"pinned": True, "before_sha256": hashlib.sha256(b"Measured").hexdigest()}
    assert pinned.read_bytes() == before
    assert not list((engines.root / TIMINGS).glob("*"))
    _, config = build.trt.my_log[0]
    assert b"Measured" in config.my_cache.my_entries


def test_a_pinned_file_that_cannot_be_used_ends_the_build(build, tmp_path):
    pinned = pin(build, tmp_path / "pinned", b"refused")
    options = dataclasses.replace(OPTIONS, timing_cache=pinned)
    with pytest.raises(EngineError, match="TensorRT refuses the timing cache"):
        build(options)
    flip(pinned)
    with pytest.raises(EngineError, match="cannot be used"):
        build(options)
    pinned.unlink()
    with pytest.raises(EngineError, match="does not exist"):
        build(options)


HOLDER = """
import sys, time
from pathlib import Path
from crowdrt.engines.trt.building.timing_cache import TimingCache
cache = TimingCache(Path(sys.argv[1]), {"gpu": "one", "tensorrt": "8.6.1"})
with cache.locked():
    old = cache.load()
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    cache.save(b" ".join(filter(None, [old, sys.argv[3].encode()])))
"""


def holder(folder: Path, seconds: float, entry: str) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds), entry]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_merge_at_once_lose_nothing(tmp_path):
    workers = [holder(tmp_path, 0.2, f"entry{i}") for i in range(4)]
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 4
    entries = set(TimingCache(tmp_path, MACHINE).load().split())
    assert entries == {b"entry0", b"entry1", b"entry2", b"entry3"}


def test_a_process_that_dies_gives_its_lock_back(tmp_path):
    worker = holder(tmp_path, 60, "never")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "held\n"
    worker.kill()
    worker.wait()
    start = time.monotonic()
    with TimingCache(tmp_path, MACHINE).locked():
        assert time.monotonic() - start < 5


def test_a_lock_that_is_never_given_back_does_not_cost_the_plan(
    build, engines, monkeypatch, capsys
):
    monkeypatch.setattr(timing_module, "LOCK_S", 0.2)
    cache = TimingCache(engines.root / TIMINGS, build_machine(build))
    with cache.locked():
        assert open_engine(build().path).inputs
    assert "locked by another process" in capsys.readouterr().err


RACER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import stand_in_tensorrt as s
from crowdrt.engines.trt import run
from crowdrt.engines.trt.building import build
from crowdrt.engines.trt.building.options import PlanOptions, parse_shape
from crowdrt.engines.store import EngineStore
device = s.StandInDevice()
sys.modules["tensorrt"] = s.stand_in("10.16", device)
build.open_device = run.open_device = lambda: device
print("ready", flush=True)
sys.stdin.readline()
built = EngineStore(Path(sys.argv[2])).build(
    Path(sys.argv[3]), engine="tensorrt", plan=PlanOptions(shape=parse_shape("40x64"))
)
print(built.key, built.reused)
"""


def test_two_processes_that_build_the_same_plan_both_succeed(engines, tiny_onnx):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", RACER, here, str(engines.root), str(tiny_onnx)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    answers = [racer.communicate("go\n", timeout=60)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert answers[0][0] == answers[1][0]
    folders = [path.name for path in engines.root.iterdir() if path.name != TIMINGS]
    assert folders == [f"{answers[0][0]}-tensorrt"]
    onnx.load_from_string((engines.root / folders[0] / PLAN).read_bytes().split(b"\n", 2)[2])


def test_weights_in_another_file_are_part_of_a_plans_key(
    engines, tmp_path, graph_maker, monkeypatch
):
    installed(monkeypatch)
    path = tmp_path / "split.onnx"
    onnx.save(
        graph_maker(), path, save_as_external_data=True, location="split.data", size_threshold=100
    )
    first = engines.build(path, engine="tensorrt", plan=OPTIONS)
    flip(tmp_path / "split.data")
    assert engines.build(path, engine="tensorrt", plan=OPTIONS).key != first.key
