"""`extends`: merges a recipe's text with all recipes that it extends, wherever they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.errors import Diagnostic, RecipeError, Span
from runner.recipe.compose import merge
from runner.recipe.origins import locate as parents
from runner.recipe.origins import packs
from runner.recipe.origins.locate import Pins
from runner.recipe.origins.place import FilePlace, Place, PlaceError
from runner.recipe.schema import step_entries
from runner.recipe.syntax import yaml_text
from runner.recipe.syntax.nodes import Node
from runner.recipe.types import Parent

DEEPEST = 16  # recipes in a chain of `extends`: a server could make it endless


@dataclass(frozen=True)
class MergedRecipe:
    """The merged tree, the parents from elsewhere in the order of reading, and the removed steps."""

    root: Node
    parents: tuple[Parent, ...] = ()
    removed: Mapping[str, Span] = field(default_factory=dict)


@dataclass(frozen=True)
class _Link:
    """A recipe that is being read, and the place of the `extends` that names it."""

    place: Place
    span: Span | None


def read(named: str) -> tuple[Place, str]:
    """Return the place that the command line names (a file or a recipe of a pack) and its text.

    Raises RecipeError.
    """
    try:
        place: Place = packs.place(named) if named.startswith(packs.SCHEME) else FilePlace(named, "R101")
        return place, place.read()
    except PlaceError as error:
        raise _complaint(_suggest_own(error, named), None) from None


def _suggest_own(error: PlaceError, named: str) -> PlaceError:
    """Return the error, with the address of a recipe of that name that comes with runner as its remedy."""
    name = os.path.splitext(os.path.basename(named))[0]
    if error.code != "R101" or os.path.exists(named) or name not in packs.own().recipes():
        return error
    return PlaceError(error.code, error.message, f"the one that comes with runner is `{packs.own().address(name)}`")


def merge_text(content: str, file: str) -> Node:
    """Return the tree of a recipe merged with all that it extends.

    Raises RecipeError with every complaint of syntax.
    """
    return merge_place(content, FilePlace(file)).root


def merge_place(content: str, place: Place, pins: Pins = Pins()) -> MergedRecipe:  # noqa: B008  # it is frozen
    """Return the same for the text at a place; git parents are read at the commits of `pins`."""
    found: list[Parent] = []
    removed: dict[str, Span] = {}
    root = _merge_chain(content, (_Link(place, None),), pins, found, removed)
    return MergedRecipe(root, tuple(found), removed)


def _merge_chain(
    content: str, chain: tuple[_Link, ...], pins: Pins, found: list[Parent], removed: dict[str, Span]
) -> Node:
    at = chain[-1].place
    root = step_entries.with_default_ids(yaml_text.parse(content, at.name))
    named = root.entries.get("extends")
    if named is None:
        if complaints := merge.unplaced(root):
            raise RecipeError(complaints)
        return root
    try:
        place = parents.locate(named.value, at, pins)
        _refuse_circle(place, chain, named.span)
        above = place.read()
    except PlaceError as error:
        raise _complaint(error, named.span) from None
    pin = place.pin(above)
    if pin is not None:
        found.append(pin)
    parent = _merge_chain(above, (*chain, _Link(place, named.span)), pins, found, removed)
    return merge.merged(parent, root, removed)


def _refuse_circle(place: Place, chain: Sequence[_Link], span: Span) -> None:
    links = [*(link.span for link in chain if link.span is not None), span]
    if place.identity in [link.place.identity for link in chain]:
        circle = " → ".join(merge.where(link) for link in links)
        message = f"recipes extend one another in a circle: {circle} → {place.name}"
        raise PlaceError("R121", message, "remove one `extends`")
    if len(chain) >= DEEPEST:
        message = f"more than {DEEPEST} recipes extend one another, from {merge.where(links[0])} on"
        raise PlaceError("R129", message, "extend a recipe nearer to what is wanted")


def _complaint(error: PlaceError, span: Span | None) -> RecipeError:
    return RecipeError([Diagnostic(error.code, error.message, error.help, span)])
