"""A float16 file run with every float16 tensor rounded, as a GPU does that accumulates in FP32.

ONNX Runtime on an x86 CPU computes such a file in FP32; see `measure`.
"""

from pathlib import Path

from crowdrt.calibration.fp16.measure import float16_tensors
from crowdrt.calibration.layerwise import LayerwiseGraph
from crowdrt.contracts import Feeds
from crowdrt.engines.ort import OrtEngine
from crowdrt.onnx_file import read_onnx


class RoundedEngine:
    """Counts like the file on a GPU; slower than any other engine, and never to be timed."""

    def __init__(self, path: Path, *, num_threads: int = 0) -> None:
        """Load the file, cut behind every float16 tensor.

        Args:
            path: a file that `cast` wrote.
            num_threads: 0 uses every core.
        """
        model = read_onnx(path)
        whole = OrtEngine(path, num_threads=num_threads)  # for what it takes and answers
        self.inputs, self.outputs, self.info = whole.inputs, whole.outputs, whole.info
        self._answers = frozenset(output.name for output in self.outputs)
        watched = {*float16_tensors(model), *self._answers}
        self._graph = LayerwiseGraph(model, watched, num_threads=num_threads)

    def run(self, feeds: Feeds) -> Feeds:
        """Map named inputs to named outputs; see `Engine.run`."""
        return {name: values for name, values in self._graph.run(feeds) if name in self._answers}
