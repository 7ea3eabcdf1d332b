"""The import graph: it flows one way, has no circle, keeps torch where it computes, and finds concrete kinds by name.

Every import counts, those inside functions too; only those for type checkers do not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Rooms from left to right: a module imports from its own room or from one further right. Rooms of one line are peers.
ORDER = (
    ("cli",),
    ("commands",),
    ("api",),
    ("report",),
    ("execute.worker",),
    ("execute",),
    ("search",),
    ("job",),
    ("plan",),
    ("steps",),
    ("training", "export", "runtime"),
    ("methods",),
    ("model.layerwise",),
    ("data",),
    ("model.source",),
    ("model.card",),
    ("model.architecture",),
    ("model.checkpoint",),
    ("contracts",),
    ("recipe",),
    ("progress",),
    ("system",),
    ("wording",),
    ("errors",),
    ("demo",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# Rooms that the planner's process lives in. Of the others it uses only modules that import nothing that computes.
LIGHT = (
    "cli", "commands", "api", "report", "execute", "search", "job", "plan", "contracts", "recipe", "progress",
    "wording", "errors", "model.source", "model.architecture",
)  # fmt: skip
HEAVY = ("torch", "transformers", "accelerate", "peft", "compressed_tensors", "datasets", "triton", "onnxruntime")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "runner").rglob("*.py"))
}


def imports(tree: ast.AST, inside_functions: bool = True) -> Iterator[str]:
    """Yield the modules that a file imports when it runs, at any depth, or only those that it imports when imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)
        else:
            yield from imports(node, inside_functions)


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
EDGES = {name: set(imports(tree)) - {name} for name, tree in TREES.items()}
AT_IMPORT = {name: set(imports(tree, inside_functions=False)) - {name} for name, tree in TREES.items()}


def room(module: str) -> str:
    """The innermost room that a module of this project is in: "plan", "execute.worker"; else its package's name.

    "" for `runner` and `runner.__main__`.
    """
    parts = module.split(".")[1:]
    if not parts or parts[0] == "__main__":
        return ""
    packages = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    return next((package for package in packages if package in LEVEL), parts[0])


def ours(module: str) -> set[str]:
    return {target for target in EDGES[module] if target in MODULES}


def is_concrete(module: str) -> bool:
    """`runner.steps.<family>.<method>`."""
    return re.fullmatch(r"runner\.steps\.\w+\.\w+", module) is not None


def test_it_found_the_project() -> None:
    assert {"runner.cli", "runner.errors", "runner.contracts.step_kind"} <= set(MODULES)
    assert "runner.plan.resolve" in EDGES["runner.api.recipes"]


@pytest.mark.parametrize("module", [name for name in MODULES if room(name)])
def test_every_module_is_in_a_known_room(module: str) -> None:
    assert room(module) in {*LEVEL, "model"}


def test_no_import_goes_left() -> None:
    back = [
        f"{module} imports {target}"
        for module in MODULES
        for target in sorted(ours(module))
        if room(module) in LEVEL and room(target) in LEVEL and LEVEL[room(target)] < LEVEL[room(module)]
    ]
    assert back == []


def test_no_concrete_kind_is_imported_by_name() -> None:
    named = [
        f"{module} imports {target}"
        for module in MODULES
        for target in sorted(ours(module))
        if is_concrete(target) and target.rpartition(".")[0] != module.rpartition(".")[0]
    ]
    assert named == []


@cache
def is_heavy(module: str) -> bool:
    """Whether importing a module, ours or a library's, imports what computes."""
    return module.split(".")[0] in HEAVY or any(is_heavy(target) for target in AT_IMPORT.get(module, ()))


def test_heavy_modules_are_found_through_others() -> None:
    assert is_heavy("torch.nn")
    assert is_heavy("runner.model.checkpoint.reader")
    assert is_heavy("runner.model.layerwise.engine")
    assert not is_heavy("runner.model.checkpoint.headers")


def test_light_rooms_import_nothing_that_computes() -> None:
    """Neither themselves nor through a module of another room, inside functions too."""
    found = {module: sorted(filter(is_heavy, EDGES[module])) for module in MODULES if room(module) in LIGHT}
    assert {module: targets for module, targets in found.items() if targets} == {}


def test_what_the_planner_finds_by_name_computes_inside_functions_alone() -> None:
    """Kinds of steps and formats: the planner imports every one of them and calls what needs no tensors."""
    plugins = [name for name in MODULES if is_concrete(name) or name.startswith("runner.model.checkpoint.formats.")]
    assert list(filter(is_heavy, plugins)) == []


def test_no_circle() -> None:
    done = set[str]()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(ours(module)):
            if circle := visit(target, [*path, module]):
                return circle
        done.add(module)
        return []

    for module in MODULES:
        assert visit(module, []) == []
