"""`python -m crowdrt.benchmarks.attempts`: everything that was tried, in one race."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.benchmarks.attempts.attempt import Attempt, Setting
from crowdrt.benchmarks.attempts.listed import ATTEMPTS
from crowdrt.benchmarks.attempts.records import read_trial, write_trial
from crowdrt.benchmarks.attempts.show import markdown, show
from crowdrt.benchmarks.attempts.trial import try_all
from crowdrt.benchmarks.timing.race import RaceConfig
from crowdrt.console import close_bars, say, tell
from crowdrt.contracts import Size, UInt8Image, parse_size
from crowdrt.data.synthetic.photographs import PX_PER_PERSON, crowd_photograph
from crowdrt.entry import run_app
from crowdrt.errors import BenchmarkError

SEED, FEWEST, MOST = 3, 100, 400  # the photograph of `crowdrt profile`

app = typer.Typer(add_completion=False)


@app.command()
def main(
    fp32: Annotated[Path | None, typer.Argument(help="The student's FP32 ONNX file.")] = None,
    int8: Annotated[Path | None, typer.Argument(help="Its INT8 file.")] = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "576x864",
    seconds: Annotated[float, typer.Option(min=0, help="At most, beyond three rounds.")] = 120.0,
    only: Annotated[list[str] | None, typer.Option(help="These attempts; repeatable.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new file for the record, JSON lines.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="0 takes every core.")] = 0,
    shown: Annotated[
        Path | None, typer.Option("--show", help="Print this record as Markdown; race nothing.")
    ] = None,
) -> None:
    """Race what was tried to be faster on a CPU, each attempt beside its prediction."""
    if shown is not None:
        print(markdown(read_trial(shown)))
        return
    if fp32 is None or int8 is None:
        raise BenchmarkError(
            "attempts need two files, the student in FP32 and in INT8",
            fix="python -m crowdrt.benchmarks.attempts student.onnx student.int8.onnx",
        )
    attempts = chosen(only)
    refuse_to_replace(output)
    image = photograph(parse_size(size))
    setting = Setting(files={"fp32": fp32, "int8": int8}, image=image, num_threads=threads)
    try:
        trial = try_all(setting, attempts, RaceConfig(budget_s=seconds))
    except KeyboardInterrupt:
        close_bars()
        say("stopped; a race is recorded when it has ended, so nothing was")
        raise typer.Exit(1) from None
    show(trial)
    if output is not None:
        write_trial(output, trial)
        tell(str(output))


def refuse_to_replace(output: Path | None) -> None:
    """Refuse a record that is there already, before anything is measured."""
    if output is not None and output.exists():
        raise BenchmarkError(
            f"{output} is there already, and no record is replaced",
            fix=f"name another file: -o {output.with_suffix('')}.2{output.suffix}",
        )


def chosen(names: list[str] | None) -> list[Attempt]:
    """Return the attempts of these names, in the list's order; all of them where none is named."""
    known = [attempt.name for attempt in ATTEMPTS]
    if unknown := [name for name in names or () if name not in known]:
        raise BenchmarkError(
            f"there is no attempt {', '.join(map(repr, unknown))}",
            fix=f"--only takes one of: {', '.join(known)}",
        )
    return [attempt for attempt in ATTEMPTS if not names or attempt.name in names]


def photograph(size: Size) -> UInt8Image:
    """Return the generated crowd that every engine counts, (3, H, W)."""
    room = size[0] * size[1] // PX_PER_PERSON
    image, _ = crowd_photograph(SEED, size=size, people_range=(min(FEWEST, room), min(MOST, room)))
    return image


if __name__ == "__main__":
    run_app(app)
