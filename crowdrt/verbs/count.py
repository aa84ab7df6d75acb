"""`crowdrt count`: how many people, and where."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from crowdrt.console import tell
from crowdrt.entry import emit
from crowdrt.errors import RecipeError
from crowdrt.verbs.options import AsJson, Store, Threads

Out = Annotated[
    Path | None,
    typer.Option(
        "-o", "--out", help="Count any number into this folder, as Parquet; a rerun goes on."
    ),
]
OnCluster = Annotated[
    str | None, typer.Option(help="With -o: on a Ray cluster, auto or HOST:PORT.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With -o: processes; default one per core. An engine on a GPU: one here, on a "
        "cluster one per GPU.",
    ),
]
Batch = Annotated[
    int | None, typer.Option(min=1, help="With -o: photographs of one size at once; default 1.")
]
Timeout = Annotated[
    float | None,
    typer.Option(help="With -o: seconds that one photograph may take; default 600."),
]
Strips = Annotated[
    int | None,
    typer.Option(min=1, help="With -o: strips of equal height that are counted; default 8."),
]


def count(
    engine: Annotated[
        Path,
        typer.Argument(
            help="A built engine, an ONNX file, or weights.safetensors (eager PyTorch)."
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Photographs, or folders of them. With -o at any depth, and LIST.txt, "
            "LIST.parquet, s3://..."
        ),
    ],
    overlay: Annotated[Path | None, typer.Option(help="Folder for density overlays.")] = None,
    tiles: Annotated[
        str | None,
        typer.Option(help="For networks of one size: resize (as the papers do) or pad."),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="What this process may take, such as 1GiB: larger photographs are counted in "
            "tiles, with the same answer. Needs the ONNX file."
        ),
    ] = None,
    tile_rows: Annotated[
        int | None, typer.Option(help="The same, in strips of so many pixels.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="A reference, such as the FP32 ONNX file: errors of both in total and per crowd, "
            "and how far counts and maps differ."
        ),
    ] = None,
    out: Out = None,
    cluster: OnCluster = None,
    workers: Workers = None,
    batch: Batch = None,
    strips: Strips = None,
    timeout: Timeout = None,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Count the people on photographs; with --overlay, show where they were seen."""
    from crowdrt.pipeline.counting import count_photographs, show_counts
    from crowdrt.pipeline.tiling import Limits

    limits = Limits.parse(max_memory=max_memory, tile_rows=tile_rows)
    scale = Scale(
        out=out, cluster=cluster, workers=workers, batch=batch, strips=strips, timeout=timeout
    )
    scale.check(alone={"--overlay": overlay, "--against": against})
    if out is not None:
        common = {"store": store, "tiles": tiles, "limits": limits, "num_threads": threads}
        count_into(out, engine, images, scale, common, as_json=as_json)
        return
    counted = count_photographs(
        engine,
        [Path(image) for image in images],
        overlay=overlay,
        store=store,
        num_threads=threads,
        tiles=tiles,
        limits=limits,
        against=against,
    )
    if as_json:
        emit(counted.as_json())
    else:
        show_counts(counted)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The options of counting into a folder."""

    out: Path | None
    cluster: str | None
    workers: int | None
    batch: int | None
    strips: int | None
    timeout: float | None

    def check(self, *, alone: Mapping[str, object]) -> None:
        """Refuse these options without a folder, and those that go `alone` with one.

        Raises:
            RecipeError: names one of them.
        """
        needing = {f"--{name}": value for name, value in asdict(self).items() if name != "out"}
        wrong = needing if self.out is None else alone
        given = next((name for name, value in wrong.items() if value is not None), None)
        if given is None:
            return
        if self.out is None:
            raise RecipeError(
                f"{given} is for counting into a folder, and there is none",
                fix=f"name one: crowdrt count ENGINE PHOTOS {given} ... -o OUT",
            )
        raise RecipeError(
            f"{given} is for photographs that people look at, -o {self.out} for any number",
            fix=f"leave out -o {self.out}, or {given}",
        )


def count_into(
    out: Path,
    engine: Path,
    images: list[str],
    scale: Scale,
    common: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Count into a folder; `common` are the settings of every way to count."""
    from crowdrt.data.tiles import check_mode
    from crowdrt.pipeline.scale.counting import NUM_STRIPS, TIMEOUT_S, Settings
    from crowdrt.pipeline.scale.run import check_tally, count_at_scale

    tiles = common.pop("tiles")
    common["num_threads"] = common["num_threads"] or 1
    settings = Settings(
        engine=engine,
        batch=scale.batch or 1,
        num_strips=scale.strips or NUM_STRIPS,
        timeout_s=TIMEOUT_S if scale.timeout is None else scale.timeout,
        tiles=None if tiles is None else check_mode(tiles),
        **common,
    )
    tally = count_at_scale(images, out, settings, cluster=scale.cluster, workers=scale.workers or 0)
    if as_json:
        emit(tally.as_json())
    else:
        tell(str(tally))
    check_tally(tally)
