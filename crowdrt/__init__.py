"""crowdrt: crowd-analysis networks from training to deployed engines."""

__version__ = "0.1.0"
