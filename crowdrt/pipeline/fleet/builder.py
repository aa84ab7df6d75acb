"""What runs on a node of the fleet: an engine is identified first, and built if it is wanted."""

import os
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crowdrt.engines.signing import VERIFY_KEY
from crowdrt.engines.store import EngineStore, engine_identity
from crowdrt.pipeline.fleet.shared import Files, names_of
from crowdrt.pipeline.fleet.targets import Target
from crowdrt.pipeline.scale.parcel import Parcel, check_version
from crowdrt.pipeline.stages import default_store


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a node is told."""

    target: Target
    model_sha256: str  # of the parcel
    timing_cache: Parcel | None  # that the target names on the machine that gives the command
    to_be_signed: bool  # on that machine, whose key stays there


@dataclass(frozen=True, kw_only=True)
class Started:
    """A node's answer once it belongs to a target."""

    host: str


@dataclass(frozen=True, kw_only=True)
class Identified:
    """A node's answer before it builds."""

    identity: dict[str, Any]  # of the engine that would be built


@dataclass(frozen=True, kw_only=True)
class Built:
    """A node's answer when it has built."""

    files: Files
    seconds: float
    reused: bool  # it was in the node's own store


class Builder:
    """One engine on one node, which belongs to it meanwhile."""

    def start(self, crowdrt: str) -> Started:
        """Say which node this is, if it has the crowdrt of the run."""
        check_version(crowdrt)
        return Started(host=socket.gethostname())

    def identify(self, order: Order, model: Parcel) -> Identified:
        """Unpack the network into this node's own store, and say what its engine will be."""
        self._order = order
        self._model = model.unpack(order.model_sha256)
        target = order.target
        self._plan = target.plan
        if target.plan is not None and (timings := order.timing_cache) is not None:
            self._plan = replace(target.plan, timing_cache=timings.unpack(timings.sha256))
        options = target.num_threads if self._plan is None else self._plan
        return Identified(identity=engine_identity(self._model, target.engine, options))

    def build(self) -> Built:
        """Build the engine that was identified; returns its folder."""
        if not self._order.to_be_signed:
            return self._build(default_store())
        # nothing is signed but what is built now: what lies in a store may be anybody's
        os.environ.pop(VERIFY_KEY, None)  # it is not signed yet
        with tempfile.TemporaryDirectory() as fresh:
            return self._build(Path(fresh))

    def _build(self, store: Path) -> Built:
        target = self._order.target
        built = EngineStore(store).build(
            self._model, engine=target.engine, num_threads=target.num_threads, plan=self._plan
        )
        there = [name for name in names_of(target.engine) if (built.path / name).is_file()]
        files = {name: (built.path / name).read_bytes() for name in there}
        return Built(files=files, seconds=built.seconds, reused=built.reused)
