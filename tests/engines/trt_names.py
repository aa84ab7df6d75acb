"""What TensorRT's Python bindings offer per generation, and a reader of source against it.

`tensorrt_names.json` holds public names alone, taken from the bindings' wheels: "" are those of the
module, the others those of a class.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

NAMES: dict[str, dict[str, set[str]]] = {
    generation: {owner: set(text.split()) for owner, text in owners.items()}
    for generation, owners in json.loads(
        (Path(__file__).parent / "tensorrt_names.json").read_text()
    ).items()
}
ALL = tuple(NAMES)

# The convention of engines/trt: a TensorRT object is held under one of these names.
HELD = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parse_error": "ParserError",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "other_cache": "ITimingCache",
    "layer": "ILayer",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
# What makes such an object: a method, or a class of the module.
MADE = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache",
    "get_layer": "ILayer",
    "get_output": "ITensor",
    "get_input": "ITensor",
    "get_error": "ParserError",
    "serialize": "IHostMemory",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_engine_inspector": "EngineInspector",
    "Builder": "Builder",
    "OnnxParser": "OnnxParser",
    "Runtime": "Runtime",
}
ENUMS_VALUES = {"name", "value"}


@dataclass
class Reader:
    """Walks a module; `claims` says which scopes speak to which generations."""

    claims: dict[str, tuple[str, ...]]
    seen: set[tuple[str, str]] = field(default_factory=set)  # (owner, name) that were looked up
    wrong: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)

    def read(self, node: ast.AST, generations: tuple[str, ...] = ALL) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            generations = self.claims.get(node.name, generations)
        if isinstance(node, ast.Attribute):
            self.check(node, generations)
        if isinstance(node, ast.Assign):
            self.check_assignment(node)
        for child in ast.iter_child_nodes(node):
            self.read(child, generations)

    def check(self, node: ast.Attribute, generations: tuple[str, ...]) -> None:
        owner = self.owner(node.value)
        if owner is None or node.attr.startswith("__"):
            return
        self.seen.add((owner, node.attr))
        for generation in generations:
            if node.attr not in NAMES[generation].get(owner, set()):
                shown = f"{owner or 'tensorrt'}.{node.attr}"
                self.wrong.append(f"line {node.lineno}: {generation} has no {shown}")

    def owner(self, node: ast.AST) -> str | None:
        """The class of what an expression gives; "" is the module, None what is not TensorRT's."""
        if isinstance(node, ast.Call):
            made = node.func
            if isinstance(made, ast.Attribute) and made.attr in MADE:
                return MADE[made.attr]
            return None
        name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
        name = name.lstrip("_")
        if name == "trt":
            return ""
        if isinstance(node, ast.Attribute) and self.owner(node.value) == "":
            return name  # trt.BuilderFlag
        return self.aliases.get(name) or HELD.get(name)

    def check_assignment(self, node: ast.Assign) -> None:
        """Whatever makes a TensorRT object must put it under the name that the convention has."""
        value, made = node.value, None
        if isinstance(value, ast.Call):
            made = self.owner(value)
        for target in node.targets:
            name = target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")
            if isinstance(value, ast.Attribute) and self.owner(value.value) == "":
                self.aliases[name] = value.attr  # kinds = trt.LayerType
            if made in HELD.values() and HELD.get(name.lstrip("_")) != made:
                self.wrong.append(f"line {node.lineno}: a {made} is held as {name!r}")


def read_source(text: str, claims: dict[str, tuple[str, ...]]) -> Reader:
    reader, tree = Reader(claims), ast.parse(text)
    if holds_tensorrt(tree):
        reader.read(tree)
    return reader


def holds_tensorrt(tree: ast.AST) -> bool:
    """Whether a module has TensorRT, or calls what makes its objects; others may use its words."""
    for node in ast.walk(tree):
        name = getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "attr", "")
        if name == "trt" or (isinstance(node, ast.Attribute) and name in MADE):
            return True
    return False


def sources(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.rglob("*.py"))
