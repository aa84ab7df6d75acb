"""The shipped student on real photographs: one layer harms counts, and the repair finds it."""

from dataclasses import replace

import onnx
import pytest
from PIL import Image

from crowdrt import weights
from crowdrt.calibration.sensitivity.rank import rank
from crowdrt.calibration.sensitivity.repair import repair, write_repaired
from crowdrt.calibration.sensitivity.search import Search, SensitivityConfig
from crowdrt.contracts import CalibrationConfig, GraphInfo
from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.manifest import read_manifest
from crowdrt.onnx_graph import int8_convs

STUDENT = weights.FOLDER / "csrnet-quarter.safetensors"
LAST = "/network/back_end/back_end.10/Conv"


@pytest.fixture
def samples(data_root):
    def num_pixels(sample):
        with Image.open(sample.image) as image:
            return image.width * image.height

    found = sorted(shanghaitech(data_root / "ShanghaiTech", "A", "train"), key=num_pixels)[:8]
    # in the MAE of four photographs changes cancel by chance
    return [replace(sample, heads=None) for sample in found]


@pytest.mark.data
def test_the_repaired_student_counts_as_in_float(samples, tmp_path):
    from crowdrt.export.onnx_export import export_onnx
    from crowdrt.models.weights import load_network

    model, network, width = load_network(STUDENT)
    info = GraphInfo(
        network=network,
        width=str(width),
        preprocessing=model.preprocessing,
        density_stride=model.density_stride,
    )
    export_onnx(model.eval(), info, tmp_path / "student.onnx", size=None)
    config = SensitivityConfig(
        calibration=CalibrationConfig(num_images=4), num_judged=4, tolerance=0.015
    )
    search = Search(tmp_path / "student.onnx", samples, config, num_threads=1)
    layers = rank(search)
    assert layers[0].name == LAST
    found = repair(search, layers)
    assert LAST in found.kept
    assert found.unrepaired.change > 0.02 > 0.015 >= found.error.change > 0

    out = tmp_path / "mixed.onnx"
    write_repaired(search, found, out)
    facts = read_manifest(out)["facts"]
    assert facts["int8_macs"] == found.int8_macs >= 0.9
    assert "of the MACs" in facts["float"][LAST]
    written = onnx.load(out)
    assert set(int8_convs(written.graph)) == set(found.int8)
    assert search.judge.verdict(written) == search.trial(found.int8)
