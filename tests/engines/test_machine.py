import json

import pytest

from crowdrt.engines.machine import machine_identity, may_saturate, num_cores, parse_cpuinfo

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu sse4_1 avx2 avx512f avx512_vnni

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd0c
"""


def test_cpuinfo_of_intel_and_arm():
    name, flags = parse_cpuinfo(INTEL)
    assert name == "Intel(R) Xeon(R) Processor"
    assert "avx512_vnni" in flags
    name, flags = parse_cpuinfo(ARM)
    assert name == "0x41 0xd0c"
    assert "i8mm" in flags


@pytest.mark.parametrize(
    ("arch", "flags", "expected"),
    [
        ("x86_64", {"avx2"}, True),
        ("x86_64", {"avx512f", "avx512bw"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512_vnni"}, False),
        ("AMD64", set(), True),  # unknown flags: assume the worst
        ("aarch64", set(), False),
    ],
)
def test_saturation_needs_x86_without_vnni(arch, flags, expected):
    assert may_saturate(arch, frozenset(flags)) == expected


def test_identity_is_stable_and_survives_json():
    identity = machine_identity()
    assert json.loads(json.dumps(identity)) == identity == machine_identity()
    assert identity["num_cores"] == num_cores() >= 1
    assert "fpu" not in identity["flags"]
