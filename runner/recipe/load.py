"""Loads a Recipe from its text: syntax, params and schema, then the checks across steps, each stage complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner import wording
from runner.errors import Diagnostic, RecipeError, UsageError
from runner.recipe import step_graph, usage
from runner.recipe.compose import extends, matrix, params, search, when
from runner.recipe.origins.locate import Pins
from runner.recipe.origins.place import FilePlace, Place
from runner.recipe.schema import load as schema
from runner.recipe.schema import step_entries, validate
from runner.recipe.syntax import nodes
from runner.recipe.syntax.nodes import Node
from runner.recipe.types import DataSpec, ModelSpec, Path, Recipe, Step

_NOT_OF_A_JOB = ("extends", "matrix", "search", "steps")
_NOT_PLAIN = ("params", *_NOT_OF_A_JOB)


def load(path: str | os.PathLike[str], sets: Sequence[str] = (), pins: Pins | None = None) -> Recipe:
    """Return the recipe in a file, or of a pack (`pack:NAME/RECIPE`); `sets` are "name=value" of params.

    Raises RecipeError with all complaints of a stage, and UsageError for a recipe whose `matrix` has several
    combinations; `load_all` returns them all.
    """
    recipes = load_all(path, sets, pins)
    if len(recipes) > 1:
        names = ", ".join(recipes[0].matrix)
        help = f"fix params of its matrix with `--set`: {names}"
        raise UsageError(f"{os.fspath(path)} has {len(recipes)} combinations, and this takes one", help)
    return recipes[0]


def load_all(path: str | os.PathLike[str], sets: Sequence[str] = (), pins: Pins | None = None) -> tuple[Recipe, ...]:
    """Return one recipe for each combination of `matrix`, in order; one recipe where it has none.

    Arguments are those of `load`; `pins` are the commits and digests that a lock gives the recipes that it extends.
    """
    file = os.fspath(path)
    place, content = extends.read(file)
    recipes = loads_all(content, file, sets, pins, place)
    pin = place.pin(content)
    return tuple(replace(recipe, parents=(pin, *recipe.parents)) for recipe in recipes) if pin else recipes


def loads(text: str, file: str, sets: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a text; `file` is its name in complaints, and `extends` is relative to it.

    Where `matrix` has several combinations, it is the first.
    """
    return loads_all(text, file, sets)[0]


def loads_all(
    text: str, file: str, sets: Sequence[str] = (), pins: Pins | None = None, place: Place | None = None
) -> tuple[Recipe, ...]:
    """Return the recipes of all combinations in a text; `place` is its origin, where that is not a file."""
    merged_recipe = extends.merge_place(text, place or FilePlace(file), pins or Pins())
    root = merged_recipe.root
    expansion, complaints = matrix.expand(root, sets)
    if "search" in root.entries and "matrix" in root.entries:
        message = "a recipe has `matrix` or `search`, not both: each decides which jobs there are"
        complaints.append(Diagnostic("R831", message, "keep one of them", root.keys.get("search")))
    _raise(complaints)
    recipes: list[Recipe] = []
    failed: list[tuple[matrix.Combination, Sequence[Diagnostic]]] = []
    for combination in expansion.combinations:
        try:
            recipe, root = _loaded(merged_recipe, file, sets, combination, expansion.names)
            used = usage.used_params(merged_recipe.root)
            searched, complaints = search.read(root, recipe, sets, used)
            _raise(complaints)
            recipes.append(replace(recipe, search=searched))
        except RecipeError as error:
            failed.append((combination, error.diagnostics))
    _raise(matrix.merge_complaints(failed, len(expansion.combinations)))
    matrix.check_distinct(recipes)
    return tuple(recipes)


def _loaded(
    merged_recipe: extends.MergedRecipe,
    file: str,
    sets: Sequence[str],
    combination: matrix.Combination,
    names: Sequence[str],
) -> tuple[Recipe, Node]:
    """Return the recipe of one combination, and its tree with references replaced.

    `names` are the params that any combination sets.
    """
    root = merged_recipe.root
    values, complaints = params.resolve(root, sets, combination)
    complaints += [] if complaints else usage.unused_sets(root, sets)
    unused = usage.warnings(root, file)
    root = params.substitute(root, values, _not_substituted, complaints.append)
    params.check_size(root, complaints.append)
    left_out = _left_out(root, values, complaints)
    complaints = [*_undefined(root, complaints), *validate.check(root, left_out)]
    _raise(complaints)
    active, gone = _without_left_out(root, left_out)
    recipe = _recipe(active, file, values.values, {name: values.values[name] for name in names})
    recipe = replace(recipe, parents=merged_recipe.parents)
    found = step_graph.check(recipe, gone, merged_recipe.removed)
    _raise([complaint for complaint in found if complaint.severity == "error"])
    return replace(recipe, warnings=(*unused, *found)), root


def trials(
    path: str | os.PathLike[str], sets: Sequence[str] = (), pins: Pins | None = None
) -> Callable[[Mapping[str, params.Value]], Recipe]:
    """Return a function from the values of a trial to its recipe: that of the file, which has a `search`, without it.

    Arguments are those of `load`. The function raises RecipeError for values that the recipe cannot have.
    """
    file = os.fspath(path)
    place, content = extends.read(file)
    merged_recipe = extends.merge_place(content, place, pins or Pins())
    pin = place.pin(content)

    def recipe(values: Mapping[str, params.Value]) -> Recipe:
        found, _ = _loaded(merged_recipe, file, sets, dict(values), tuple(values))
        return replace(found, parents=(pin, *found.parents)) if pin else found

    return recipe


def _undefined(root: Node, complaints: list[Diagnostic]) -> list[Diagnostic]:
    """Return one complaint in place of those about every reference, where `params` are missing or misnamed."""
    undefined = [complaint for complaint in complaints if complaint.code == "R220"]
    if len(undefined) < 2 or ("params" in root.entries and root.entries["params"].entries):
        return complaints
    rest = [complaint for complaint in complaints if complaint.code != "R220"]
    if any(wording.nearest(key, ["params"]) for key in root.entries if key != "params"):
        return rest  # the schema stage suggests the right key
    message = f"{len(undefined)} references name params, and the recipe has no `params`; the first is this"
    return [*rest, replace(undefined[0], message=message, help="define them under `params:`, each with its default")]


def _raise(complaints: list[Diagnostic]) -> None:
    if complaints:
        raise RecipeError(sorted(complaints, key=validate.position))


def _not_substituted(path: Path) -> bool:
    return path in (("params",), ("matrix",), ("version",), ("extends",), ("search", "space")) or (
        len(path) == 3 and path[0] == "steps" and path[2] == "when"
    )


def _left_out(root: Node, values: params.Params, complaints: list[Diagnostic]) -> dict[int, str]:
    """Return the steps that `when` leaves out: index → the expression."""
    left_out: dict[int, str] = {}
    listed = root.entries.get("steps")
    for index, step in enumerate(listed.items if listed is not None else ()):
        node = step.entries.get("when")
        if node is None or not isinstance(node.value, bool | str):
            continue
        try:
            taken = node.value if isinstance(node.value, bool) else when.evaluate(node.value, values.values)
        except when.WhenError as error:
            complaints += _when_complaint(error, node, values)
            continue
        if not taken:
            left_out[index] = params.as_text(node.value)
    return left_out


def _when_complaint(error: when.WhenError, node: Node, values: params.Params) -> list[Diagnostic]:
    if error.name in values.names:
        return []  # a param without a value, reported where it is defined
    if error.name is not None:
        message = f"{error}{wording.did_you_mean(error.name, values.names)}"
        return [Diagnostic("R220", message, params.known(values.names), params.inside(node.span, error.name))]
    help = 'write a comparison of params, such as `bits < 8 and not dense` or `method == "gptq"`'
    return [Diagnostic("R226", f"`when: {node.value}` cannot be evaluated: {error}", help, node.span)]


def _without_left_out(root: Node, left_out: Mapping[int, str]) -> tuple[Node, dict[str, str]]:
    """Return the tree without the steps that `when` leaves out, and the ids of those with their `when`."""
    listed = root.entries["steps"]
    gone = {step_entries.id_of(listed.items[index]) or "": expression for index, expression in left_out.items()}
    active = tuple(step for index, step in enumerate(listed.items) if index not in left_out)
    return replace(root, value={**root.entries, "steps": replace(listed, value=active)}), gone


def _recipe(root: Node, file: str, values: Mapping[str, Any], chosen: Mapping[str, Any]) -> Recipe:
    written = {key: value for key, value in nodes.plain(root).items() if key not in _NOT_OF_A_JOB}
    filled = schema.fill(schema.recipe_schema(), written)
    filled["params"] = dict(values)
    entries = [_step(nodes.plain(step), index) for index, step in enumerate(root.entries["steps"].items)]
    document = {key: value for key, value in filled.items() if value not in ("", {})}
    if chosen:
        document["matrix"] = {name: [value] for name, value in chosen.items()}  # this combination alone
    document["steps"] = [_entry(step) for step in entries]
    return Recipe(
        file=file,
        name=filled["name"],
        description=filled["description"],
        params=filled["params"],
        model=ModelSpec(**filled["model"]),
        seed=filled["seed"],
        data={name: _data(name, entry) for name, entry in filled["data"].items()},
        steps=tuple(entries),
        document=params.escaped(document),
        spans=nodes.places(root),
        matrix=dict(chosen),
        written=params.escaped(_plain(root)),
        environments=filled["environments"],
        serve=filled.get("serve") or {},
        references={path: node.reference for path, node in nodes.walk(root) if node.reference is not None},
    )


def _plain(root: Node) -> dict[str, Any]:
    """Return what a tree with references replaced says, of one job: steps without the `when` that was true."""
    said = nodes.plain(root)
    steps = [{key: value for key, value in step.items() if key != "when"} for step in said["steps"]]
    return {**{key: value for key, value in said.items() if key not in _NOT_PLAIN}, "steps": steps}


def _data(name: str, entry: Mapping[str, Any]) -> DataSpec:
    return DataSpec(name=name, **{"split": None, **entry})


def _step(entry: Mapping[str, Any], index: int) -> Step:
    siblings = step_entries.sibling_keys()
    kind = next(key for key in entry if key not in siblings)
    return Step(
        id=entry["id"],
        kind=kind,
        params=schema.defaults(kind, entry[kind] or {}),
        source=entry.get("from"),
        resources=schema.fill(schema.step_schema()["properties"]["resources"], entry.get("resources", {})),
        path=("steps", index),
        env=entry.get("env"),
    )


def _entry(step: Step) -> dict[str, Any]:
    """Return a step as the standalone recipe writes it."""
    siblings = {"id": step.id, "from": step.source, "env": step.env, "resources": dict(step.resources)}
    return {step.kind: dict(step.params), **{key: value for key, value in siblings.items() if value}}
