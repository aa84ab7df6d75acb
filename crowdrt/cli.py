"""The command line: every verb is one stage on files, and `crowdrt run` is all of them.

Results go to stdout, and with --json one JSON document and nothing else; progress and messages
go to stderr. Exit status: 0, 1 when the work failed (with the fix), 2 for wrong usage.
"""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt import __version__
from crowdrt.cast import cast
from crowdrt.console import out, tell
from crowdrt.contracts import CalibrationConfig, Size, parse_size, parse_width
from crowdrt.count import count
from crowdrt.detect import detect
from crowdrt.entry import Verbs, emit, report, run_app
from crowdrt.graph_verbs import export, inspect
from crowdrt.options import AsJson, Data, Sizes, Store, Threads

app = typer.Typer(
    name="crowdrt",
    cls=Verbs,
    help="Crowd-analysis networks from training to deployed engines, with proof at every step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; every deliberate error becomes its message and status 1."""
    run_app(app)


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"crowdrt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print it and stop.")
    ] = False,
) -> None:
    """Say what holds for every verb."""


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing, and how to get it."""
    from crowdrt.pipeline.doctor import examine, show

    findings = examine()
    if as_json:
        emit(findings)
    else:
        show(findings)


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """List the named recipes."""
    from crowdrt.recipes import RECIPES

    rows = [
        {"name": (recipe := make()).name, "network": recipe.network, "width": str(recipe.width),
         "about": (make.__doc__ or "").splitlines()[0]}
        for make in RECIPES
    ]  # fmt: skip
    if as_json:
        emit(rows)
        return
    for row in rows:
        out.print(
            f"[bold]{row['name']}[/]  {row['network']} at width {row['width']}: {row['about']}"
        )


@app.command()
def run(
    recipe: str,
    data: Data = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder; default artifacts/RECIPE.")
    ] = None,
    num_images: Annotated[
        int, typer.Option("--images", min=1, help="How many photographs to count at most.")
    ] = 60,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Do every stage of a recipe; ends with the table and report.html."""
    from crowdrt.pipeline.run import run_recipe
    from crowdrt.recipes import recipe_named

    chosen = recipe_named(recipe)
    summary = run_recipe(
        chosen,
        data=data,
        out=output or Path("artifacts") / chosen.name,
        num_images=num_images,
        store=store,
        num_threads=threads,
    )
    if as_json:
        emit(summary.as_dict())
    else:
        summary.show()


@app.command()
def synthesize(
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder for the photographs.")],
    num_images: Annotated[int, typer.Option(help="How many.")] = 12,
    seed: Annotated[int, typer.Option(help="Another seed, other crowds.")] = 0,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "576x864",
    people: Annotated[str, typer.Option(help="Fewest-most in a photograph.")] = "50-900",
    as_json: AsJson = False,
) -> None:
    """Generate photographs of crowds with every head annotated."""
    from crowdrt.data.synthetic import generate, parse_people

    samples = generate(
        output,
        num_images=num_images,
        seed=seed,
        size=parse_size(size),
        people=parse_people(people),
    )
    rows = [{"image": str(s.image), "annotated": s.annotated} for s in samples]
    if as_json:
        emit(rows)
    else:
        total = sum(s.annotated or 0 for s in samples)
        tell(f"{len(rows)} photographs with {total} people in {output}")


@app.command(name="import")
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


@app.command()
def train(
    recipe: str,
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder for weights and state.")],
    data: Data = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's network; a killed run goes on where it stood."""
    from crowdrt.pipeline.stages import train_stage
    from crowdrt.recipes import recipe_named

    report(train_stage(recipe_named(recipe), data=data, out=output, steps=steps), as_json)


app.command()(export)


@app.command()
def complexity(
    network: str,
    size: Sizes = None,
    width: Annotated[str, typer.Option(help="1, 1/2, 1/4 ...")] = "1",
    as_json: AsJson = False,
) -> None:
    """Count parameters, true MACs and the papers' FLOPs at any size."""
    from crowdrt.export.complexity import complexity as cost

    sizes: list[Size | None] = [parse_size(text) for text in size or []]
    rows = [cost(network, parse_width(width), each) for each in sizes or [None]]
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


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="A float ONNX file that crowdrt exported.")],
    images: Annotated[Path, typer.Option(help="Folder of photographs like those to come.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="The INT8 ONNX file to write.")],
    method: Annotated[str, typer.Option(help="minmax or percentile.")] = "percentile",
    percentile: Annotated[float, typer.Option(help="Of |activation|.")] = 99.99,
    num_images: Annotated[int, typer.Option(help="At most this many, evenly spaced.")] = 32,
    weight_bits: Annotated[int, typer.Option(help="7 is right on every CPU; 8 needs VNNI.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Quantize to INT8: ranges from photographs, then explicit Q/DQ."""
    from crowdrt.data.datasets import open_samples
    from crowdrt.pipeline.stages import calibrate_stage

    config = CalibrationConfig(
        method=method,  # type: ignore[arg-type]
        percentile=percentile,
        num_images=num_images,
        weight_bits=weight_bits,  # type: ignore[arg-type]
    )
    report(calibrate_stage(model, open_samples(images), output, config), as_json)


app.command()(cast)


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    runtime: Annotated[
        str, typer.Option("--engine", help="onnxruntime or openvino.")
    ] = "onnxruntime",
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Build an engine for this machine into the store; the second time is a hit."""
    from crowdrt.engines.store import EngineStore
    from crowdrt.pipeline.stages import default_store

    engines = EngineStore(store or default_store())
    engine = engines.build(model, engine=runtime, num_threads=threads)
    if as_json:
        emit({"path": str(engine.path), "key": engine.key, "reused": engine.reused,
              "seconds": engine.seconds})  # fmt: skip
        return
    how = "was built before" if engine.reused else f"built in {engine.seconds:.1f} s"
    tell(f"{engine.path} ({how})")


app.command()(inspect)
app.command()(count)
app.command()(detect)


@app.command()
def profile(
    engines: Annotated[list[Path], typer.Argument(help="Built engines, or ONNX files.")],
    size: Sizes = None,
    seconds: Annotated[float, typer.Option(min=0, help="Measuring time per size.")] = 30.0,
    records: Annotated[Path | None, typer.Option("-o", help="Append the raw samples here.")] = None,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Measure latency: engines interleaved in one run, each in its own process."""
    from crowdrt.pipeline.measuring import as_row, profile_engines, show_measurements

    rows = profile_engines(
        engines, sizes_of(size), seconds=seconds, records=records, store=store, num_threads=threads
    )
    if as_json:
        emit([as_row(row) for row in rows])
    else:
        show_measurements(rows)


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="skt-1, skt-2, skt-8")],
    costs: Annotated[
        bool, typer.Option("--costs", help="skt-8 without its race: every size, nothing timed.")
    ] = False,
    size: Sizes = None,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks.")] = None,
    records: Annotated[
        Path | None, typer.Option(help="Read these records instead of measuring.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for networks and records.")
    ] = Path("artifacts/table-skt-8"),
    seconds: Annotated[float, typer.Option(min=0, help="Per network and size.")] = 60.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown on stdout.")] = False,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Show a paper's table, the printed column beside ours; skt-8 races its networks."""
    from crowdrt.pipeline.measuring import paper_table, show_paper_table
    from crowdrt.pipeline.tables import complexity_table, show_cells

    if costs or name != "skt-8":
        cells = complexity_table(name)
        if as_json:
            emit([cell.as_dict() for cell in cells])
        else:
            show_cells(cells, markdown=markdown)
        return
    rows = paper_table(
        name,
        sizes_of(size),
        networks=network,
        records=records,
        folder=output,
        seconds=seconds,
        fresh=fresh,
        store=store,
        num_threads=threads,
    )
    if as_json:
        emit([row.as_dict() for row in rows])
    else:
        show_paper_table(rows, markdown=markdown)


@app.command(name="report")
def write_report(
    folder: Annotated[Path, typer.Argument(help="What `crowdrt run` left.")],
    as_json: AsJson = False,
) -> None:
    """Write report.html and its plots again from a run's files."""
    from crowdrt.pipeline.reporting import write_run_report

    path = write_run_report(folder)
    emit({"path": str(path)}) if as_json else tell(str(path))


def sizes_of(texts: list[str] | None) -> list[Size]:
    """Return the sizes asked for; 576x864 where none is."""
    return [parse_size(text) for text in texts or ["576x864"]]


if __name__ == "__main__":
    main()
