"""One command builds a network for a fleet: what is checked first, and the rows at the end."""

from pathlib import Path

from crowdrt.console import say
from crowdrt.engines.signing import check_key
from crowdrt.engines.store import KINDS
from crowdrt.errors import EngineError
from crowdrt.onnx_file import read_onnx
from crowdrt.pipeline.fleet.shared import place_of
from crowdrt.pipeline.fleet.summary import Row
from crowdrt.pipeline.fleet.targets import Fleet, Target
from crowdrt.pipeline.fleet.yard import Yard
from crowdrt.pipeline.scale.cluster import connected
from crowdrt.pipeline.scale.parcel import Parcel, parcel_of


def build_for_fleet(
    model: Path, fleet: Fleet, *, cluster: str | None = None, sign_key: Path | None = None
) -> list[Row]:
    """Build a network for every target that has no finished engine in the store.

    Args:
        model: an ONNX file.
        fleet: the targets and the store.
        cluster: address of a Ray cluster, or `auto`; None takes the fleet's.
        sign_key: an Ed25519 private key (PEM) to sign TensorRT engines with, on this machine.

    Returns:
        A row per target, in their order.

    Raises:
        CrowdRTError: nothing can be built: no usable network, no cluster, no key.
    """
    read_onnx(model)
    if sign_key is not None:
        check_signing(fleet, sign_key)
    place = place_of(fleet.store)
    timing_caches = {each.name: timing_cache_of(each) for each in fleet.targets}
    rows = {}
    with connected(cluster or fleet.cluster) as ray:
        yard = Yard(ray, parcel_of(model), place, sign_key, timing_caches)
        for row in yard.rows(fleet.targets):
            say(str(row))
            rows[row.target.name] = row
    return [rows[target.name] for target in fleet.targets]


def check_signing(fleet: Fleet, key: Path) -> None:
    """Refuse a key that cannot sign, or has nothing to sign.

    Raises:
        EngineError: says which.
    """
    if not any(KINDS[target.engine].on_gpu for target in fleet.targets):
        raise EngineError(
            "no target is for TensorRT, and nothing else is signed", fix="leave out --sign-key"
        )
    check_key(key)


def timing_cache_of(target: Target) -> Parcel | None:
    """Return the timing cache that a target names, to be sent."""
    if target.plan is None or target.plan.timing_cache is None:
        return None
    path = target.plan.timing_cache
    return Parcel(name=path.name, files={path.name: path.read_bytes()})
