"""The import graph: it flows one way, has no cycle, and concrete kinds are found by name, never imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "cli",
    "commands",
    "report",
    "execute",
    "job",
    "progress",
    "plan",
    "steps",
    "training",
    "runtime",
    "export",
    "model",
    "recipe",
    "demo",
    "errors",
)
LEAVES = {"runner", "runner.errors"}  # anyone may import these
# Kinds say what happens, and everything may know the words for it.
ALSO = {(package, "runner.progress.events") for package in ("steps", "training", "model")}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "runner").rglob("*.py"))
}


def imports(tree: ast.AST, package: str, deferred: bool) -> Iterator[str]:
    """The modules of this project that a file imports when it runs; with `deferred` those inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not deferred:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "runner")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module and node.module.split(".")[0] == "runner":
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield name if name in MODULES else node.module
        else:
            yield from imports(node, package, deferred)


def edges(deferred: bool) -> dict[str, set[str]]:
    return {
        name: set(imports(ast.parse(path.read_text(encoding="utf-8")), name, deferred)) - {name}
        for name, path in MODULES.items()
    }


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def is_concrete(module: str) -> bool:
    """`runner.steps.<family>.<method>`."""
    return re.fullmatch(r"runner\.steps\.\w+\.\w+", module) is not None


def test_it_found_the_project() -> None:
    assert {"runner.cli", "runner.errors", "runner.contracts.step_kind"} <= set(MODULES)
    assert "runner.plan.resolve" in edges(deferred=True)["runner.commands.validate"]


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name and name != "runner.__main__"])
def test_every_module_is_in_a_known_package(module: str) -> None:
    assert package(module) in PACKAGES


def test_no_import_goes_back() -> None:
    back = [
        f"{module} imports {target}"
        for module, targets in edges(deferred=True).items()
        for target in sorted(targets - LEAVES)
        if module not in ("runner", "runner.__main__")
        and PACKAGES.index(package(target)) < PACKAGES.index(package(module))
        and (package(module), target) not in ALSO
    ]
    assert back == []


def test_no_concrete_kind_is_imported_by_name() -> None:
    named = [
        f"{module} imports {target}"
        for module, targets in edges(deferred=True).items()
        for target in sorted(targets)
        if is_concrete(target) and target.rpartition(".")[0] != module.rpartition(".")[0]
    ]
    assert named == []


def test_no_cycle() -> None:
    graph, done = edges(deferred=False), set[str]()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if cycle := visit(target, [*path, module]):
                return cycle
        done.add(module)
        return []

    for module in graph:
        assert visit(module, []) == []
