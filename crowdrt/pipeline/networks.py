"""Which network the user means, with which weights, and its eager PyTorch form."""

import functools
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crowdrt import weights
from crowdrt.contracts import PRUNED, GraphInfo, Recipe
from crowdrt.engines.base import Engine
from crowdrt.errors import RecipeError
from crowdrt.manifest import sha256_file
from crowdrt.models import BUILDABLE, NETWORKS
from crowdrt.recipes import RECIPES

if TYPE_CHECKING:
    from crowdrt.engines.torch_eager import Form
    from crowdrt.models.network import Network


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which network is meant, and where its weights come from."""

    network: str
    width: Fraction
    weights: Path | None  # None: freshly initialised
    output: str | None = None  # what ships, of what the network offers; None: its first

    def describe(self) -> dict[str, Any]:
        """What decides the exported file, for its manifest."""
        return {
            "network": self.network,
            "width": str(self.width),
            "weights_sha256": sha256_file(self.weights) if self.weights else None,
        } | ({"output": self.output} if self.output else {})

    def build(self) -> "Network":
        """Return the network with its weights, in evaluation mode."""
        import torch

        from crowdrt.models import build_model
        from crowdrt.models.weights import load_into

        torch.manual_seed(0)
        model = build_model(self.network, self.width)
        if self.weights is not None:
            load_into(model, self.weights, network=self.network, width=self.width)
        if self.output is not None:
            model.keep(self.output)
        return model.eval()

    def graph_info(self, model: "Network") -> GraphInfo:
        """Return what a graph of the network says of itself."""
        return GraphInfo(
            network=self.network,
            width=PRUNED * model.pruned + str(self.width),
            preprocessing=model.preprocessing,
            density_stride=model.density_stride,
            output=self.output or model.offers[0],
            fixed_size=model.fixed_size,
        )


def shipped_weights(recipe: Recipe) -> Path | None:
    """Return the weights that the project ships for a recipe, if it does."""
    path = weights.FOLDER / recipe.weights if recipe.weights else None
    return path if path is not None and path.is_file() else None


def origin_of_recipe(recipe: Recipe) -> Origin:
    """Return the network of a recipe with the weights that the project ships for it."""
    path = shipped_weights(recipe)
    if path is None:
        raise RecipeError(
            f"recipe {recipe.name!r} has no shipped weights",
            fix=f"train them: crowdrt train {recipe.name} --data DIR --out DIR",
        )
    return Origin(network=recipe.network, width=recipe.width, weights=path)


def origin_named(name: str, *, width: Fraction | None, path: Path | None, random: bool) -> Origin:
    """Return the network that the command line describes, by a recipe's name or its own."""
    if path is not None and random:
        raise RecipeError(
            f"--weights {path} and --random exclude each other", fix="leave out one of them"
        )
    recipe = next((recipe for recipe in RECIPES if recipe.name == name), None)
    if recipe is None:
        return origin_of_network(name, width=width, path=path, random=random)
    if path is not None or random:
        width = width or recipe.width
        return origin_of_network(recipe.network, width=width, path=path, random=random)
    if width not in (None, recipe.width):
        raise RecipeError(
            f"the weights of recipe {name!r} are of width {recipe.width}, not {width}",
            fix="leave out --width, or add --weights FILE.safetensors of that width",
        )
    return origin_of_recipe(recipe)


def origin_of_network(
    network: str, *, width: Fraction | None, path: Path | None, random: bool
) -> Origin:
    """Return a network by its own name.

    A file knows its width, so `--width` may be left out beside it. Without weights the network
    has to be asked for as random: an engine that guesses must not come by accident.
    """
    if network not in BUILDABLE:
        raise RecipeError(
            f"{network!r} is neither a recipe nor a network",
            fix=f"choose a network from {', '.join(NETWORKS)}, or see: crowdrt recipes",
        )
    if path is not None:
        from crowdrt.models.weights_info import describe_weights

        found = describe_weights(path)
        return Origin(network=network, width=width or found.width, weights=path)
    if not random:
        raise RecipeError(
            f"{network} has no weights to export",
            fix=f"add --weights FILE.safetensors, or --random for timing alone: "
            f"crowdrt export {network} --random -o {network}.onnx",
        )
    return Origin(network=network, width=width or Fraction(1), weights=None)


def open_eager(
    network: str,
    width: Fraction,
    weights_path: Path | None,
    num_threads: int,
    *,
    form: "Form" = "eager",
) -> Engine:
    """Open a network in PyTorch FP32; a race calls this in its own process."""
    from crowdrt.engines.torch_eager import TorchEngine
    from crowdrt.export.deploy import ShippedNetwork

    origin = Origin(network=network, width=width, weights=weights_path)
    model = origin.build()
    info = origin.graph_info(model)
    shipped = ShippedNetwork(model, model.preprocessing)
    names = shipped.output_names
    return TorchEngine(shipped, info, output_names=names, num_threads=num_threads, form=form)


def eager_opener(
    origin: Origin, num_threads: int, form: "Form" = "eager"
) -> "functools.partial[Engine]":
    """Return a picklable opener of a network in PyTorch FP32."""
    about = (origin.network, origin.width, origin.weights, num_threads)
    return functools.partial(open_eager, *about, form=form)
