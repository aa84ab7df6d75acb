"""How the network that learns differs from the one that ships, and how it becomes that one."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from crowdrt.learning import TrainingConfig
from crowdrt.models.network import Network, fold_blocks
from crowdrt.training.batch_norm import AddedNorm, add_batch_norm

Crops = Callable[[int], Sequence[Tensor]]  # so many normalised training crops, or a few more


class Shaping:
    """What is done to a network before it learns, between its steps, and before it ships.

    As it stands: the batch normalisation that the recipe asks for is added, and folded.

    Args:
        config: the recipe's.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config

    def begin(self, model: Network) -> Network:
        """Return the network that learns, made of the one that was built, in place or not."""
        if self.config.batch_norm:
            add_batch_norm(model)
        return model

    def before_step(self, model: nn.Module, step: int) -> None:
        """Change what learns as the step asks, from 0; a function of the step and of its state."""

    def ship(self, model: Network, state: Mapping[str, Tensor]) -> Network:
        """Return what ships.

        Args:
            model: as `build_model` makes it; the state's channels may be fewer than its.
            state: of what `begin` returned.
        """
        if self.config.batch_norm:
            add_batch_norm(model)
        model.load_state_dict(state)
        return fold_blocks(model, only=AddedNorm)  # type: ignore[return-value]
