"""Which nodes of a Ray cluster can build for a target."""

from collections.abc import Mapping, Sequence
from typing import Any

from crowdrt.engines.store import KINDS
from crowdrt.errors import EngineError
from crowdrt.pipeline.fleet.targets import Target

INTERNAL = ("node:", "memory", "object_store_memory")  # Ray's resources that tell nothing


def needs_of(target: Target) -> dict[str, float]:
    """Return what a build takes of its node, by Ray's names."""
    on_gpu = {"GPU": 1.0} if KINDS[target.engine].on_gpu else {}
    return {"CPU": 1.0, target.resource: 1.0, **on_gpu}


def lacking(nodes: Sequence[Mapping[str, Any]], target: Target) -> EngineError | None:
    """Return why no node can ever build for a target, None where one can."""
    needs = needs_of(target)
    alive = [node for node in nodes if node["Alive"]]
    fitting = [node for node in alive if node["Resources"].get(target.resource, 0) >= 1]
    start = f"""ray start --address HOST:PORT --resources '{{"{target.resource}": 1}}'"""
    if not fitting:
        names = {name for node in alive for name in node["Resources"]}
        shown = sorted(name for name in names if not name.startswith(INTERNAL))
        return EngineError(
            f"no node has {target.resource}: nodes have {', '.join(shown) or 'nothing'}",
            fix=f"start one: {start}",
        )
    for node in fitting:
        short = [name for name in needs if node["Resources"].get(name, 0) < needs[name]]
        if not short:
            return None
    return EngineError(
        f"{node['NodeManagerHostname']} has {target.resource}, but not 1 {' and 1 '.join(short)}",
        fix=f"start it with them: {start} {' '.join(f'--num-{name.lower()}s 1' for name in short)}",
    )
