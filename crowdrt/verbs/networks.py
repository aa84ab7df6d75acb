"""The verbs on weights: `crowdrt import`, `crowdrt train` and `crowdrt complexity`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.console import out
from crowdrt.contracts import Size, parse_size, parse_width
from crowdrt.entry import emit, report
from crowdrt.errors import RecipeError
from crowdrt.verbs.options import AsJson, Data, Sizes


def import_weights(
    source: Annotated[Path, typer.Argument(help="A .npz of MCNN arrays, or a PyTorch checkpoint.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="The safetensors file to write.")],
    network: Annotated[str, typer.Option(help="Which network a checkpoint belongs to.")] = "mcnn",
    width: Annotated[str, typer.Option(help="1, 1/2, 1/4 ...")] = "1",
    as_json: AsJson = False,
) -> None:
    """Turn foreign weights into safetensors; a checkpoint's code is never run."""
    from crowdrt.pipeline.stages import import_stage

    report(import_stage(source, output, network=network, width=parse_width(width)), as_json)


def train(
    recipe: str,
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder for weights and state.")],
    data: Data = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    width: Annotated[str | None, typer.Option(help="Instead of the recipe's: 1/2, 1/8.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE of its training, may be repeated."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights that teach, where the recipe has a teacher.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Weights to begin with: those whose name and shape fit; to prune or quantize, all."
        ),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="They share every batch.")] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    test: Annotated[
        bool,
        typer.Option("--test", help="Judge it on the test splits of --data: OUT/record.jsonl"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's network; a killed run goes on where it stood."""
    from crowdrt.pipeline.learning import TrainOptions, train_stage, with_options
    from crowdrt.pipeline.trained import record_stage
    from crowdrt.recipes import recipe_named

    if test and data is None:
        raise RecipeError(
            "--test needs a published test split, and there is no --data",
            fix=f"name one: crowdrt train {recipe} --data DIR -o {output} --test",
        )

    options = TrainOptions(
        steps=steps,
        seed=seed,
        width=None if width is None else parse_width(width),
        settings=tuple(settings or ()),
        teacher=teacher,
        pretrained=init,
        devices=devices,
        accelerator=accelerator,
    )
    chosen = with_options(recipe_named(recipe), options)
    artifact = train_stage(chosen, data=data, out=output, options=options)
    if artifact is None:  # another process of this run speaks for all
        return
    if test:
        assert data is not None
        record_stage(chosen, artifact, data=data, teacher=teacher)
    report(artifact, as_json)


def complexity(
    network: Annotated[str | None, typer.Argument()] = None,
    size: Sizes = None,
    width: Annotated[str | None, typer.Option(help="1, 1/2, 1/4 ...; 1 if left out.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A safetensors file: what is in it, pruned or not.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count parameters, true MACs and the papers' FLOPs at any size."""
    from crowdrt.export.complexity import complexity as cost
    from crowdrt.export.complexity import complexity_of_weights

    if (network is None) == (weights is None) or (weights is not None and width is not None):
        raise RecipeError(
            "name a network, perhaps with its --width, or --weights alone, which say both",
            fix="crowdrt complexity csrnet --width 1/4, or: crowdrt complexity --weights FILE",
        )
    sizes: list[Size | None] = [parse_size(text) for text in size or []]
    if weights is not None:
        rows = [complexity_of_weights(weights, each) for each in sizes or [None]]
    else:
        assert network is not None
        rows = [cost(network, parse_width(width or "1"), each) for each in sizes or [None]]
    if as_json:
        emit([row.as_dict() for row in rows])
        return
    for row in rows:
        height, width_px = row.size
        out.print(
            f"{row.network} {row.width} at {height}x{width_px}: "
            f"{row.params / 1e6:.3f} M parameters, {row.macs / 1e9:.2f} G MACs, "
            f"{row.paper_flops / 1e9:.2f} G by the papers' accounting"
        )
