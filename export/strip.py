"""Proof that nothing which only training needs is left in the file that ships.

Three independent looks at the ONNX file: a walk from its outputs, which must reach every node and
every stored tensor; the names, none of which may lie in a removed branch; and the numbers, none of
which may be those of a removed branch, since exporters rename and transpose what they store. What
the file answers is compared with the whole training network, branches and all.
"""

import copy
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from crowdrt.contracts import Size, UInt8Image
from crowdrt.errors import ExportError
from crowdrt.export.complexity import count_macs
from crowdrt.export.parity import prove_parity
from crowdrt.export.quiet import quiet
from crowdrt.models.network import Network
from crowdrt.onnx_graph import GraphSize, name_of, reads, stored_tensors, unneeded

COST_SIZE = (576, 864)  # where MACs are counted for a graph of any size: SKT's first
TRACE_SIZE = (96, 160)  # a multiple of every stride; the tracer only walks through it
NUM_COMPARED = 2  # photographs; the first two are small, and a whole training network is slow
SHOWN = 3  # offending names in a message; the rest is counted
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Stripping:
    """What the training graph had and the deployed one has not."""

    size: Size  # at which MACs were counted
    before: GraphSize  # `forward_train` of the training network, as PyTorch's tracer writes it
    after: GraphSize  # `forward` of the deployed one, before normalisation and count are added
    file_nodes: int  # of the file: simplified, and for any size if it is
    branches: tuple[str, ...]  # attributes of the network
    branch_params: int  # theirs; folding batch normalisation takes more
    parameters: tuple[str, ...]  # as PyTorch names them
    nodes: tuple[str, ...]  # of the training graph; they depend on a branch, or only lead to one
    alike: tuple[str, ...]  # removed tensors whose numbers are not theirs alone, as biases of 0
    max_rel: float | None  # answers of training network and file, relative to the largest value
    compared: str  # which function of the training network answered

    def to_facts(self) -> dict[str, Any]:
        """The manifest's form."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What there is to say of it; nothing where nothing was removed."""
        if not self.branches:
            return []
        names = ", ".join(self.branches)
        return [
            f"stripped {names} ({self.branch_params:,} parameters): "
            f"{self.before.change(self.after, self.size)}",
            "every node and stored tensor that is left serves an output, and none is a removed "
            f"one; {self.compared} of the training network and the file differ by "
            f"{self.max_rel:.1e} of the largest value",
        ]


def prove_stripped(
    training: Network,
    deployed: Network,
    path: Path,
    images: Sequence[UInt8Image],
    *,
    size: Size | None,
) -> Stripping:
    """Look in the file for what only training needs, and say what was removed.

    Args:
        training: the network as it was trained; it is left as it was.
        deployed: what `export.deploy` made of it.
        path: the FP32 export of `deployed`.
        images: (N, C, H, W) uint8, padded to the stride.
        size: (height, width) that the file is for, or None for any.

    Raises:
        ExportError: something is left that only training needs.
        ParityError: the file does not answer as the training network does.
    """
    model = onnx.load(path)
    trained = copy.deepcopy(training).eval()
    alike = refuse_leftovers(model.graph, trained, deployed)
    max_rel, compared = compare(trained, path, images[:NUM_COMPARED])
    found = describe(trained, deployed, model, size or trained.fixed_size or COST_SIZE)
    return replace(found, alike=alike, max_rel=max_rel, compared=compared)


def describe(trained: Network, deployed: Network, model: onnx.ModelProto, size: Size) -> Stripping:
    """Return the record of a stripping that nothing has been proved of; MACs are at `size`."""
    removed = branch_tensors(trained)
    learned = {name: p.numel() for name, p in trained.named_parameters() if name in removed}
    graph, before = measured(trained, size, model, by_losses=True)
    _, after = measured(deployed, size, model, by_losses=False)
    return Stripping(
        size=size,
        before=before,
        after=after,
        file_nodes=len(model.graph.node),
        branches=tuple(trained.train_only),
        branch_params=sum(learned.values()),
        parameters=tuple(learned),
        nodes=tuple(training_nodes(graph, removed, trained.train_only, children(deployed))),
        alike=(),
        max_rel=None,
        compared="",
    )


def compare(trained: Network, path: Path, images: Sequence[UInt8Image]) -> tuple[float | None, str]:
    """Hold the file against the whole training network, unless that is what was deployed.

    Returns:
        The largest difference relative to the largest value, and what answered in training.
    """
    answers = WholeNetwork(trained)
    if not trained.train_only:
        return None, answers.compared
    return prove_parity(answers, path, images).max_rel, answers.compared


class WholeNetwork(Network):
    """The training network, branches and all, answering with what ships.

    That is what `forward_train` calls by the names of the outputs, and where it does not have all
    of them, as for decoded boxes, what `forward` returns beside the branches.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = network.preprocessing
        self.output_names = network.output_names
        self.compared = "forward"

    def forward(self, image: Tensor) -> Any:
        """(B, C, H, W) normalised image -> one tensor per output name."""
        if has_training_form(self.network):
            seen = self.network.forward_train(image)
            named = seen._asdict() if hasattr(seen, "_asdict") else seen
            if isinstance(named, Mapping) and all(
                isinstance(named.get(name), Tensor) for name in self.output_names
            ):
                self.compared = "forward_train"
                answers = tuple(named[name] for name in self.output_names)
                return answers if len(answers) > 1 else answers[0]
        return self.network(image)


class Seen(nn.Module):
    """A network, and all that its losses see or all that ships as a flat tuple."""

    def __init__(self, network: Network, *, by_losses: bool) -> None:
        super().__init__()
        self.network = network
        self.by_losses = by_losses
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) normalised image -> the tensors of `forward_train` or of `forward`."""
        network = self.network
        return tuple(tensors(network.forward_train(image) if self.by_losses else network(image)))


def has_training_form(network: Network) -> bool:
    """Say whether a network's `forward_train` is its own."""
    return type(network).forward_train is not Network.forward_train


def tensors(answer: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):
        yield from tensors(list(answer.values()))
    elif isinstance(answer, list | tuple):
        for each in answer:
            yield from tensors(each)


def branch_tensors(network: Network) -> Arrays:
    """Return the parameters and buffers that only training needs, by name."""
    state = network.state_dict()
    branches = network.train_only
    return arrays({name: state[name] for name in state if name.split(".")[0] in branches})


def arrays(state: Mapping[str, Tensor]) -> Arrays:
    """Return a state dict's floating-point tensors as arrays."""
    return {name: t.numpy(force=True) for name, t in state.items() if t.is_floating_point()}


def children(network: nn.Module) -> set[str]:
    """Return the names of the parts that a network holds directly."""
    return {name for name, _ in network.named_children()}


def measured(
    network: Network, size: Size, like: onnx.ModelProto, *, by_losses: bool
) -> tuple[onnx.GraphProto, GraphSize]:
    """Return a network's graph without its weights, and how large the network is.

    Args:
        network: a training network, or a deployed one.
        size: (height, width) at which MACs are counted, on the meta device.
        like: its opset is used.
        by_losses: measure `forward_train`, not `forward`.
    """
    channels = network.preprocessing.num_channels
    small = torch.zeros(1, channels, *(network.fixed_size or TRACE_SIZE))
    graph = traced(Seen(network, by_losses=by_losses), small, like)
    on_meta = Seen(copy.deepcopy(network).to("meta"), by_losses=by_losses)
    image = torch.empty(1, channels, *size, device="meta")
    params = sum(parameter.numel() for parameter in network.parameters())
    return graph, GraphSize(len(graph.node), params, count_macs(on_meta, image))


def traced(module: nn.Module, image: Tensor, like: onnx.ModelProto) -> onnx.GraphProto:
    """Return the graph of `module` at the opset of `like`, without its weights.

    They become inputs under PyTorch's names: the graph of 58 M parameters is 46 kB.
    """
    opset = next(entry.version for entry in like.opset_import if entry.domain in ("", "ai.onnx"))
    try:
        with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            torch.onnx.export(
                module,
                (image,),
                Path(folder) / "traced.onnx",
                dynamo=False,
                opset_version=opset,
                input_names=["image"],
                export_params=False,
            )
            graph = onnx.load(Path(folder) / "traced.onnx").graph
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"the training graph cannot be traced: {(str(error) or repr(error)).splitlines()[0]}",
            fix="use operators that PyTorch's tracer knows in forward_train, or another --opset",
        ) from error
    inline_copies(graph)
    return graph


def inline_copies(graph: onnx.GraphProto) -> None:
    """Let whoever reads a copy of a weight read the weight.

    The exporter keeps equal tensors once and copies them with Identity; fresh biases are all
    equal, and a graph of fresh weights should be no larger than one of trained weights.
    """
    weights = {value.name for value in graph.input} - {"image"}
    copies = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in weights
    }
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        node.input[:] = [copies.get(name, name) for name in node.input]
        if node.output[0] in copies:
            del graph.node[i]


def training_nodes(
    graph: onnx.GraphProto, removed: Arrays, branches: Collection[str], kept: Collection[str]
) -> list[str]:
    """Return the nodes that depend on a branch, and those that only lead to such nodes."""
    nodes = list(graph.node)
    made = {f"network.{name}" for name in removed}
    found: set[int] = set()
    for i, node in enumerate(nodes):
        if reads(node) & made or in_branch(node.name, branches, kept):
            made |= set(node.output)
            found.add(i)
    wanted = {value.name for value in graph.output} - made
    for i, node in reversed(list(enumerate(nodes))):
        if i not in found and set(node.output) & wanted:
            wanted |= reads(node)
        else:
            found.add(i)
    return [name_of(nodes[i]) for i in sorted(found)]


def in_branch(name: str, branches: Collection[str], kept: Collection[str]) -> bool:
    """Say whether PyTorch's name of a node or a tensor lies in a branch.

    The exporters write `/network/head/Conv`, `/head/Conv` or `network.head.weight`, and
    `head_1` when the branch is called again, unless the network has a `head_1` that ships.
    """
    inside = re.match(r"/?(?:network[./])?([^./]+)[./]", name)
    part = inside[1] if inside else ""
    return part not in kept and (part in branches or re.sub(r"_\d+$", "", part) in branches)


def refuse_leftovers(
    graph: onnx.GraphProto, trained: Network, deployed: Network
) -> tuple[str, ...]:
    """Refuse a graph in which anything is left that only training needs; see `refuse_numbers`."""
    refuse_unneeded(graph)
    refuse_names(graph, trained.train_only, children(deployed))
    return refuse_numbers(graph, branch_tensors(trained), arrays(deployed.state_dict()))


def refuse_unneeded(graph: onnx.GraphProto) -> None:
    """Refuse a graph in which something leads to no output."""
    found = [f"{kind[:-1]} {name}" for kind, names in unneeded(graph).items() for name in names]
    if found:
        raise ExportError(
            f"the exported graph holds what none of its outputs needs: {shortened(found)}",
            fix="export with another --opset, or for a fixed --size",
        )


def refuse_names(graph: onnx.GraphProto, branches: Collection[str], kept: Collection[str]) -> None:
    """Refuse a graph with a node or a stored tensor that PyTorch named after a branch."""
    names = [*map(name_of, graph.node), *stored_tensors(graph)]
    if found := [name for name in names if in_branch(name, branches, kept)]:
        raise leftover(f"{shortened(found)}, which only training needs")


def refuse_numbers(graph: onnx.GraphProto, removed: Arrays, kept: Arrays) -> tuple[str, ...]:
    """Refuse a graph that stores the numbers of a removed tensor, in whatever order.

    Returns:
        The removed tensors of which this cannot be said: all their numbers are equal, or they
        are also those of a tensor that ships.
    """
    stored = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in stored_tensors(graph).items()
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    alike = []
    for name, numbers in removed.items():
        if numbers.min() == numbers.max() or named_alike(numbers, kept) is not None:
            alike.append(name)
        elif (found := named_alike(numbers, stored)) is not None:
            raise leftover(f"the numbers of {name}, which only training needs, as {found}")
    return tuple(alike)


def named_alike(numbers: npt.NDArray[Any], others: Arrays) -> str | None:
    """Return the name of an array that holds the same numbers, in whatever order and shape."""
    for name, other in others.items():
        if other.size != numbers.size or other.min() != numbers.min():
            continue
        if np.array_equal(np.sort(other, axis=None), np.sort(numbers, axis=None)):
            return name
    return None


def leftover(what: str) -> ExportError:
    """Return the error for a branch that shipped."""
    return ExportError(
        f"the exported graph still holds {what}",
        fix="let the network's forward do without the branch, or take it out of train_only",
    )


def shortened(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
