"""The command line: every verb is one stage on files, and `crowdrt run` is all of them.

Results go to stdout, and with --json one JSON document and nothing else; progress and messages
go to stderr. Exit status: 0, 1 when the work failed (with the fix), 2 for wrong usage.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from crowdrt import __version__
from crowdrt.entry import Verbs, run_app
from crowdrt.verbs import engines, graph, machine, measure, networks, photographs, precision, whole
from crowdrt.verbs.compare import compare
from crowdrt.verbs.count import count
from crowdrt.verbs.detect import detect
from crowdrt.verbs.precisions import precisions
from crowdrt.verbs.sensitivity import sensitivity
from crowdrt.verbs.sweep import sweep
from crowdrt.verbs.triton import triton

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


VERBS: dict[str, Callable[..., None]] = {  # in the order of the help page
    "doctor": machine.doctor,
    "recipes": machine.recipes,
    "run": whole.run,
    "synthesize": photographs.synthesize,
    "import": networks.import_weights,
    "train": networks.train,
    "sweep": sweep,
    "compare": compare,
    "export": graph.export,
    "complexity": networks.complexity,
    "calibrate": precision.calibrate,
    "precisions": precisions,
    "sensitivity": sensitivity,
    "cast": precision.cast,
    "build": engines.build,
    "inspect": graph.inspect,
    "count": count,
    "detect": detect,
    "triton": triton,
    "profile": measure.profile,
    "table": measure.table,
    "diff": measure.diff,
    "report": whole.write_report,
}
for name, verb in VERBS.items():
    app.command(name=name)(verb)


if __name__ == "__main__":
    main()
