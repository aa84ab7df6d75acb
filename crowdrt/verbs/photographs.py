"""The verb `crowdrt synthesize`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.console import tell
from crowdrt.contracts import parse_size
from crowdrt.entry import emit
from crowdrt.verbs.options import AsJson


def synthesize(
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder for the photographs.")],
    num_images: Annotated[int, typer.Option(help="How many.")] = 12,
    seed: Annotated[int, typer.Option(help="Another seed, other crowds.")] = 0,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "576x864",
    people: Annotated[str, typer.Option(help="Fewest-most in a photograph.")] = "50-900",
    as_json: AsJson = False,
) -> None:
    """Generate photographs of crowds with every head annotated."""
    from crowdrt.data.synthetic.photographs import generate, parse_people

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
