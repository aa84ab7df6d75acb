"""The verb `crowdrt build`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crowdrt.console import tell
from crowdrt.contracts import parse_size
from crowdrt.entry import emit
from crowdrt.errors import EngineError
from crowdrt.verbs.options import AsJson, Store, Threads

if TYPE_CHECKING:
    from crowdrt.engines.trt.building.options import PlanOptions


ShapeText = Annotated[
    str | None, typer.Option(help="TensorRT: HEIGHTxWIDTH, or MIN:OPT:MAX of such.")
]
Batch = Annotated[int | None, typer.Option(help="TensorRT: images at a time; 1.")]
Workspace = Annotated[
    str | None, typer.Option(help="TensorRT: what a layer may take at most; 4GiB.")
]
Level = Annotated[int | None, typer.Option(help="TensorRT: 0 builds fastest, 5 tries most; 3.")]
Tf32 = Annotated[bool, typer.Option("--tf32", help="TensorRT: FP32 layers may round their inputs.")]
FloatInput = Annotated[
    bool, typer.Option("--float-input", help="TensorRT: feed pixels as float32.")
]
AnyPrecision = Annotated[
    bool,
    typer.Option(
        "--any-precision", help="TensorRT: keep layers that run in more digits than the file asks."
    ),
]
TimingCache = Annotated[
    Path | None, typer.Option(help="TensorRT: measured before; read, never written.")
]
SignKey = Annotated[
    Path | None, typer.Option(help="TensorRT: sign with this Ed25519 private key (PEM).")
]

AUTO = "auto"
ChoiceImages = Annotated[
    Path | None, typer.Option("--images", help="auto: photographs to count; else generated crowds.")
]
Against = Annotated[
    Path | None, typer.Option(help="auto: the FP32 file that counts are held against.")
]
ChoiceSize = Annotated[
    str | None, typer.Option("--size", help="auto: HEIGHTxWIDTH to be fast at; 576x864.")
]
Seconds = Annotated[float | None, typer.Option(min=0, help="auto: measuring time; 20.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="auto: choose again.")]
FleetFile = Annotated[
    Path | None, typer.Option(help="Build for every target of this fleet.toml, on its nodes.")
]
Cluster = Annotated[
    str | None, typer.Option(help="--fleet: HOST:PORT of a Ray cluster, auto: the one here.")
]
BESIDE_FLEET = ("context", "model", "fleet", "cluster", "sign_key", "as_json")


def build(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    runtime: Annotated[
        str,
        typer.Option(
            "--engine",
            help="onnxruntime, openvino or tensorrt; auto: the fastest here that counts rightly.",
        ),
    ] = "onnxruntime",
    shape: ShapeText = None,
    batch: Batch = None,
    workspace: Workspace = None,
    level: Level = None,
    tf32: Tf32 = False,
    float_input: FloatInput = False,
    any_precision: AnyPrecision = False,
    timing_cache: TimingCache = None,
    sign_key: SignKey = None,
    images: ChoiceImages = None,
    against: Against = None,
    size: ChoiceSize = None,
    seconds: Seconds = None,
    fresh: Fresh = False,
    fleet: FleetFile = None,
    cluster: Cluster = None,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Build an engine for this machine, or a fleet, into the store; the second time is a hit."""
    from crowdrt.engines.store import EngineStore
    from crowdrt.pipeline.asked import plan_options
    from crowdrt.pipeline.stages import default_store

    if fleet is not None:
        refuse_beside_fleet(context, fleet)
        build_fleet(model, fleet, cluster, sign_key, as_json=as_json)
        return
    if cluster is not None:
        raise EngineError(
            f"--cluster {cluster} is for a fleet, and none is named",
            fix=f"name one: crowdrt build {model} --fleet fleet.toml --cluster {cluster}",
        )
    plan = plan_options(
        shape=shape,
        batch=batch,
        workspace_bytes=workspace,
        level=level,
        tf32=tf32 or None,
        float_input=float_input or None,
        any_precision=any_precision or None,
        timing_cache=timing_cache,
    )
    choice = {"images": images, "against": against, "size": size, "seconds": seconds}
    choice = {name: value for name, value in choice.items() if value is not None}
    if runtime == AUTO:
        refuse_for_auto(plan, sign_key)
        choose(model, store or default_store(), choice, threads, fresh=fresh, as_json=as_json)
        return
    if choice or fresh:
        raise EngineError(
            f"--engine {runtime} chooses nothing, so it takes no --{next(iter(choice), 'fresh')}",
            fix=f"leave it out, or let the machine choose: --engine {AUTO}",
        )
    engines = EngineStore(store or default_store())
    engine = engines.build(model, engine=runtime, num_threads=threads, plan=plan, sign_key=sign_key)
    if as_json:
        emit({"path": str(engine.path), "key": engine.key, "reused": engine.reused,
              "seconds": engine.seconds})  # fmt: skip
        return
    how = "was built before" if engine.reused else f"built in {engine.seconds:.1f} s"
    tell(f"{engine.path} ({how})")


def refuse_for_auto(plan: "PlanOptions | None", sign_key: Path | None) -> None:
    """Refuse what only TensorRT takes: auto chooses among CPU runtimes."""
    if plan is not None or sign_key is not None:
        raise EngineError(
            f"--engine {AUTO} chooses among CPU runtimes, which take no TensorRT options",
            fix="leave them out, or use --engine tensorrt",
        )


def refuse_beside_fleet(context: typer.Context, fleet: Path) -> None:
    """Refuse what the fleet's file says for each target."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in BESIDE_FLEET:
            raise EngineError(
                f"with --fleet, {parameter.opts[0]} is said in {fleet}",
                fix=f"leave {parameter.opts[0]} out, and write it there",
            )


def build_fleet(
    model: Path, fleet: Path, cluster: str | None, sign_key: Path | None, *, as_json: bool
) -> None:
    """Build for a fleet and print what was built where."""
    from crowdrt.pipeline.fleet.run import build_for_fleet
    from crowdrt.pipeline.fleet.summary import check_rows, show_rows
    from crowdrt.pipeline.fleet.targets import read_fleet

    wanted = read_fleet(fleet)
    rows = build_for_fleet(model, wanted, cluster=cluster, sign_key=sign_key)
    if as_json:
        emit({"store": wanted.store, "engines": [row.as_json() for row in rows]})
    else:
        show_rows(rows)
    check_rows(rows)


def choose(
    model: Path, store: Path, asked: dict[str, Any], threads: int, *, fresh: bool, as_json: bool
) -> None:
    """Choose a runtime, build for it and print both."""
    from crowdrt.pipeline.choosing import ChoiceOptions, choose_engine, show_choice
    from crowdrt.pipeline.choosing import as_json as choice_as_json

    if "size" in asked:
        asked["size"] = parse_size(asked["size"])
    options = ChoiceOptions(num_threads=threads, fresh=fresh, **asked)
    found = choose_engine(model, store, options)
    if as_json:
        emit(choice_as_json(found))
        return
    show_choice(found)
