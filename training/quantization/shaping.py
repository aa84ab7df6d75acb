"""A network that learns in simulated INT8 and ships as rounded weights with its ranges."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from crowdrt.errors import TrainingError
from crowdrt.int8 import TrainedInt8
from crowdrt.learning import TrainingConfig
from crowdrt.models.csrnet import CSRNet
from crowdrt.models.mcnn import MCNN
from crowdrt.models.narrowing import resize
from crowdrt.models.network import Network
from crowdrt.models.tensors import shapes
from crowdrt.training.quantization.convolution import QuantizedConv, plain_conv, quantize_conv
from crowdrt.training.quantization.simulation import simulate
from crowdrt.training.shaping import Shaping

FLOAT = "density_head"  # makes the answer, and stays float in the INT8 file


class QuantizedShaping(Shaping):
    """Rounds, between two layers, what the INT8 file will have in INT8.

    Args:
        config: the recipe's, with a `quantization`.
    """

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        assert config.quantization is not None
        self.options = config.quantization

    def begin(self, model: Network) -> Network:
        """Make every convolution but the last learn in simulated INT8, in place.

        Raises:
            TrainingError: its INT8 file has more in INT8 than what convolutions read.
        """
        if not isinstance(model, CSRNet | MCNN):
            raise TrainingError(
                f"training of {type(model).__name__} cannot simulate its INT8 file, in which "
                "resizes, sums or norms have scales of their own",
                fix="quantize csrnet or mcnn, or calibrate the float network: crowdrt calibrate",
            )
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Conv2d) and name != FLOAT:
                quantize_conv(module, self.options)
        return model

    def before_step(self, model: nn.Module, step: int) -> None:
        """Let ranges move until their share of the steps is over."""
        for _, conv in quantized_convs(model):
            conv.observing = step < self.options.moving * self.config.steps

    def ship(self, model: Network, state: Mapping[str, Tensor]) -> Network:
        """Return the rounded weights with their ranges, as the INT8 file counts with them."""
        left = {name: tuple(state[name].shape) for name in shapes(model)}
        if left != shapes(model):  # what it began with was pruned
            resize(model, left)
        self.begin(model).load_state_dict(state)
        convs = list(quantized_convs(model))
        ranges = {name: float(conv.input_range) for name, conv in convs}
        for _, conv in convs:
            plain_conv(conv)
        model.trained_int8 = TrainedInt8(
            ranges=ranges,
            weight_scales=self.options.weight_scales,
            weight_bits=self.options.weight_bits,
        )
        return simulate(model.eval())


def quantized_convs(model: nn.Module) -> Iterator[tuple[str, QuantizedConv]]:
    """Yield the convolutions that learn in simulated INT8, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedConv):
            yield name, module
