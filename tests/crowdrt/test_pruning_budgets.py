"""The pruned recipes write down what `crowdrt complexity` counts, so that they need no torch."""

from fractions import Fraction

import pytest

from crowdrt.export.complexity import complexity
from crowdrt.recipes import pruning


@pytest.mark.parametrize(
    ("width", "macs"),
    [
        (Fraction(1), pruning.WHOLE),
        (Fraction(1, 4), pruning.QUARTER),
        (Fraction(1, 8), pruning.EIGHTH),
    ],
)
def test_they_are_the_uniform_networks(width, macs):
    assert complexity("csrnet", width, (576, 864)).macs == macs
