"""The GPU as the driver alone tells of it, on a stand-in for the driver's library."""

import ctypes

import pytest

from crowdrt.engines.cuda.driver import driver_gpu, generations_for
from crowdrt.pipeline import doctor

H200 = {16: 132, 75: 9, 76: 0}  # attributes of an H200


class Driver:
    """Answers as libcuda does: a status, and the value where the pointer leads."""

    def __init__(self, failing=""):
        self.failing = failing

    def __getattr__(self, name):
        return lambda *arguments: 100 if name == self.failing else self.answer(name, arguments)

    def answer(self, name, arguments):
        match name:
            case "cuDeviceGet":
                self.set(arguments[0], 0)
            case "cuDriverGetVersion":
                self.set(arguments[0], 13000)
            case "cuDeviceGetName":
                arguments[0].value = b"NVIDIA H200"
            case "cuDeviceTotalMem_v2":
                self.set(arguments[0], 143771 * 2**20)
            case "cuDeviceGetAttribute":
                self.set(arguments[0], H200[arguments[1]])
        return 0

    @staticmethod
    def set(pointer, value):
        pointer._obj.value = value


def test_what_the_driver_says():
    assert driver_gpu(Driver()) == {
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "num_sms": 132,
        "memory_mib": 143771,
        "cuda": "13.0",
    }


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_a_driver_without_a_device_tells_nothing(failing):
    assert driver_gpu(Driver(failing)) is None


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert driver_gpu() is None


@pytest.mark.parametrize(
    ("capability", "generations"),
    [("7.0", ["8.6"]), ("7.5", ["8.6", "10", "11"]), ("9.0", ["8.6", "10", "11"]),
     ("10.0", ["10", "11"]), ("12.0", ["10", "11"])],
)  # fmt: skip
def test_which_generation_drives_which_gpu(capability, generations):
    assert generations_for(capability) == generations


def test_doctor_names_a_gpu_that_no_library_reaches(monkeypatch):
    monkeypatch.setattr(doctor, "driver_gpu", lambda: driver_gpu(Driver()))
    found = doctor.gpu()
    assert found["ready"] is False
    assert found["generations"] == ["8.6", "10", "11"]
    assert found["reason"].startswith(
        "NVIDIA H200, compute capability 9.0 for TensorRT 8.6, 10, 11, but "
    )
    assert "fix" in found


def test_doctor_has_one_line_for_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "driver_gpu", lambda: None)
    found = doctor.gpu()
    assert found["reason"].startswith("none: no CUDA device")
    assert "fix" not in found
