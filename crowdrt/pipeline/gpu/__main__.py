"""`python -m crowdrt.pipeline.gpu`: prepare anywhere, run on the GPU host."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from crowdrt.console import say
from crowdrt.entry import Verbs, run_app

app = typer.Typer(cls=Verbs, add_completion=False, no_args_is_help=True)


@app.command()
def prepare(
    folder: Path,
    network: Annotated[list[str] | None, typer.Option(help="csrnet, bl, sanet; all.")] = None,
    large_counts: Annotated[
        bool, typer.Option("--large-counts", help="Full networks at 2032x2912, too: minutes.")
    ] = False,
) -> None:
    """Write the folder that travels: dried ONNX files, photographs, counts."""
    from crowdrt.pipeline.gpu import prepare as stage

    stage.prepare(folder, networks=tuple(network or ()), large_counts=large_counts)


@app.command()
def run(
    folder: Path,
    trt_python: Annotated[str, typer.Option(help="The Python that has TensorRT.")],
    torch_python: Annotated[
        str, typer.Option(help="The Python that has PyTorch.")
    ] = sys.executable,
    work: Annotated[Path, typer.Option(help="Stays on the host.")] = Path("artifacts/gpu"),
    out: Annotated[Path, typer.Option(help="What is brought home.")] = Path("artifacts/gpu-out"),
    heat: Annotated[list[str] | None, typer.Option(help="csrnet@576x864 ...; all.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds that all of it may take.")] = 540.0,
    race_seconds: Annotated[float, typer.Option(help="Seconds of timing per heat.")] = 60.0,
    torch: Annotated[bool, typer.Option(help="Time PyTorch's forms, too.")] = True,
    timings: Annotated[
        Path | None, typer.Option(help="timings.tar.gz of an earlier call on such a GPU.")
    ] = None,
) -> None:
    """Build, check and time what fits the budget; give it again for the rest."""
    from crowdrt.pipeline.gpu.campaign import Campaign, run_campaign
    from crowdrt.pipeline.gpu.processes import Pythons

    pythons = Pythons(tensorrt=trt_python, torch=torch_python)
    measured = run_campaign(
        Campaign(
            folder=folder, work=work, out=out, pythons=pythons, budget_s=budget,
            race_s=race_seconds, chosen=tuple(heat or ()), torch=torch, timings=timings,
        )
    )  # fmt: skip
    say(f"{measured} rows measured; records, facts and sidecars are in {out}")
    raise typer.Exit(0 if measured else 1)


@app.command(hidden=True)
def worker(order: str) -> None:
    """One process of a campaign."""
    from crowdrt.pipeline.gpu.worker import main

    main(order)


if __name__ == "__main__":
    run_app(app)
