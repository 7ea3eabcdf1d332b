"""The graph of steps: their inputs, the data they read, and the checks across steps (R3xx)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner import wording
from runner.errors import Diagnostic, Span
from runner.recipe import gate_rules, kind_types, references
from runner.recipe.kind_types import CHECKPOINT, CHECKPOINTS, ENGINE, MEASURING, SAME, SENSITIVITY
from runner.recipe.schema import kinds, load
from runner.recipe.types import ModelSpec, Path, Recipe, Step

MODEL = "model"
_RESERVED = {MODEL: "the recipe's model", references.ACCEPTED: "the last accepted job, in gates"}
_SEVERAL = (
    "leave `processes` out: training uses several, and `quantize.gptq`, `prune.wanda`, `prune.sparsegpt` and "
    "`evaluate.perplexity`"
)
SOURCE = "source"  # the checkpoint that the engine a step takes was made from
_TYPES = {
    CHECKPOINT: "an unquantized checkpoint", "quantized-checkpoint": "a quantized checkpoint", ENGINE: "an engine",
}  # fmt: skip


def source_of(id: str, main: str | None, inputs: Mapping[str, Mapping[str, str]]) -> str:
    """Return `id`, or where that is "source" and no step's id, the main input of the step `main`.

    `inputs` are those of earlier steps.
    """
    if id != SOURCE or SOURCE in inputs:
        return id
    return inputs.get(main or "", {}).get(CHECKPOINT, MODEL)


def nearest(kind: str, before: Iterable[Step]) -> str:
    """Return the default input of a step of this kind: the nearest earlier result that it takes, or the model.

    Kinds that take only checkpoints skip engines, and the reverse; so do kinds that take an engine by name alone.
    """
    wanted = kind_types.taken_unnamed(kind)
    found = [step.id for step in before if kind_types.serves(step.kind, wanted)]
    return found[-1] if found else MODEL


def models_of(step: Step) -> dict[str, ModelSpec]:
    """Return parameter → the further model that it names by `source`."""
    found = {name: step.params.get(name) for name, to in load.references(step.kind).items() if to == CHECKPOINT}
    return {
        name: ModelSpec(str(value["source"]), value.get("revision"))
        for name, value in found.items()
        if isinstance(value, Mapping) and "source" in value
    }


def _gate_parameters(step: Step) -> list[str]:
    return [name for name, to in load.references(step.kind).items() if to == "gates"]


def _named(step: Step, what: str) -> dict[str, str]:
    found = {name: step.params.get(name) for name, to in load.references(step.kind).items() if to == what}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def check(recipe: Recipe, left_out: Mapping[str, str], removed: Mapping[str, Span] | None = None) -> list[Diagnostic]:
    """Return every complaint and warning across steps.

    `left_out`: id → `when` of the steps that are left out. `removed`: id → place where a recipe removes a step of the
    one that it extends.
    """
    if not recipe.steps:
        span = recipe.span(("steps",))
        return [Diagnostic("R310", "`when` leaves out every step", "change the params, or a `when`", span)]
    complaints: list[Diagnostic] = []
    first: dict[str, Step] = {}
    for index, step in enumerate(recipe.steps):
        span = recipe.span((*step.path, "id"))
        if step.id in _RESERVED:
            message = f"the id `{step.id}` is reserved: it names {_RESERVED[step.id]}"
            complaints.append(Diagnostic("R302", message, "give the step another id", span))
        elif step.id in first:
            before = recipe.step_span(first[step.id])
            where = f"; first at {_line(before, span)}" if before is not None else ""
            message = f"the id `{step.id}` is used twice{where}"
            complaints.append(Diagnostic("R301", message, "change one of them", span))
        first.setdefault(step.id, step)
        complaints += _Checker(recipe, index, left_out, removed or {}).all()
    return complaints


def _line(place: Span, here: Span | None) -> str:
    same = here is None or here.file == place.file
    return f"line {place.line}" if same else f"{place.file}:{place.line}:{place.column}"


class _Checker:
    """The checks of one step against earlier ones."""

    def __init__(self, recipe: Recipe, index: int, left_out: Mapping[str, str], removed: Mapping[str, Span]) -> None:
        self.recipe = recipe
        self.removed = removed
        self.step = recipe.steps[index]
        self.left_out = left_out
        self.before = {step.id: step for step in recipe.steps[:index]}
        self.later = {step.id for step in recipe.steps[index:]}
        self.complaints: list[Diagnostic] = []

    def all(self) -> list[Diagnostic]:
        self._main_input()
        processes = self.step.resources.get("processes", 1)
        own = kinds.module(self.step.kind)
        if processes > 1 and not (getattr(own, "DISTRIBUTED", False) or getattr(own, "DIVISIBLE", False)):
            message = f"`{self.step.kind}` runs in one process; `resources` asks for {processes}"
            self._complain("R311", message, _SEVERAL, ("resources", "processes"))
        self._environment()
        for name, value in _named(self.step, "checkpoint").items():
            self._checkpoint(name, value, (self.step.kind, name))
        for name, value in _named(self.step, ENGINE).items():
            self._engine(name, value, (self.step.kind, name))
        for name, value in _named(self.step, SENSITIVITY).items():
            self._measurement(name, value, (self.step.kind, name))
        for name, value in _named(self.step, "data").items():
            self._data(name, value)
        for name in _gate_parameters(self.step):
            for metric, rule in self.step.params.get(name, {}).items():
                self._gate(metric, rule, (self.step.kind, name, metric))
        return self.complaints

    def _complain(self, code: str, message: str, help: str | None, path: Path) -> None:
        self.complaints.append(Diagnostic(code, message, help, self.recipe.span((*self.step.path, *path))))

    def _warn(self, code: str, message: str, help: str, path: Path) -> None:
        self._complain(code, message, help, path)
        self.complaints[-1] = replace(self.complaints[-1], severity="warning")

    def _checkpoints(self, *, engines: bool = False) -> list[str]:
        made = (
            id
            for id, step in self.before.items()
            if kind_types.makes_checkpoint(step.kind) or (engines and kind_types.produces(step.kind) == ENGINE)
        )
        return [MODEL, *made]

    def _type(self, id: str) -> str | None:
        """Return the type of the checkpoint that a step makes; None where it depends on the model's config."""
        seen: set[str] = set()
        while id in self.before and id not in seen:
            seen.add(id)
            step = self.before[id]
            made = kind_types.produces(step.kind)
            if made != SAME:
                return made
            id = step.source or nearest(step.kind, list(self.before.values())[: list(self.before).index(id)])
        return None

    def _fits(self, id: str, wanted: Sequence[str]) -> bool:
        made = self._type(id)
        return made in wanted if made is not None else any(type in wanted for type in CHECKPOINTS)

    def _takes_an_engine(self) -> bool:
        taken = self.step.source or nearest(self.step.kind, self.before.values())
        return self._type(taken) == ENGINE

    def _main_input(self) -> None:
        step = self.step
        wanted = kind_types.consumes(step.kind)
        source = step.source
        if not wanted:
            if source is not None:
                self._complain("R308", f"`{step.kind}` takes no checkpoint", "leave `from` out", ("from",))
            return
        engines = ENGINE in wanted
        if source is not None and not self._checkpoint("from", source, ("from",), engines=engines):
            return
        source = source or nearest(step.kind, self.before.values())
        if self._fits(source, wanted):
            return
        made = self._type(source)
        takes = " or ".join(_TYPES.get(name, name) for name in wanted)
        makes = f"`{source}` makes {_TYPES.get(made, made)}" if made else f"`{source}` is none"
        message = f"`{step.kind}` takes {takes}; {makes}"
        fitting = [id for id in self._checkpoints(engines=engines) if self._fits(id, wanted)]
        help = f"`from` may name {wording.ticked(fitting, 'or')}" if fitting else "put a step before it that makes one"
        self._complain("R308", message, help, ("from",) if step.source is not None else (step.kind,))

    def _checkpoint(self, label: str, name: str, path: Path, *, engines: bool = False) -> bool:
        if name == SOURCE and (*self.step.path, *path) not in self.recipe.spans:
            return True  # a default: a step that does not take an engine is reported at its main input
        if name == MODEL or (name == SOURCE and SOURCE not in self.before and self._takes_an_engine()):
            return True
        known = self._checkpoints(engines=engines)
        help = f"it may name {wording.ticked(known, 'or')}"
        if not self._earlier(label, name, path, known, help):
            return False
        kind = self.before[name].kind
        if kind_types.makes_checkpoint(kind) or (engines and kind_types.produces(kind) == ENGINE):
            return True
        self._complain("R307", f"`{label}` names `{name}`, and `{kind}` makes no checkpoint", help, path)
        return False

    def _engine(self, label: str, name: str, path: Path) -> None:
        known = [id for id, step in self.before.items() if kind_types.produces(step.kind) == ENGINE]
        help = f"it may name {wording.ticked(known, 'or')}" if known else "put a `build.` step before it"
        if self._earlier(label, name, path, known, help) and name not in known:
            message = f"`{label}` names `{name}`, and `{self.before[name].kind}` makes no engine"
            self._complain("R307", message, help, path)

    def _measurement(self, label: str, name: str, path: Path) -> None:
        known = [id for id, step in self.before.items() if step.kind == MEASURING]
        help = f"it may name {wording.ticked(known, 'or')}" if known else f"put a step of `{MEASURING}` before it"
        if self._earlier(label, name, path, known, help) and name not in known:
            message = f"`{label}` names `{name}`, and `{self.before[name].kind}` measures no sensitivity"
            self._complain("R817", message, help, path)

    def _earlier(self, label: str, name: str, path: Path, known: Sequence[str], help: str | None) -> bool:
        if name in self.before:
            return True
        if name == self.step.id:
            self._complain("R304", f"`{label}` names `{name}`, which is this step itself", help, path)
        elif name in self.later:
            self._complain("R304", f"`{label}` names `{name}`, which comes later", help, path)
        elif name in self.left_out:
            message = f"`{label}` names `{name}`, which `when: {self.left_out[name]}` leaves out"
            self._complain("R305", message, "give this step the same `when`, or name another", path)
        elif name in self.removed:
            at = self.removed[name]
            message = f"`{label}` names `{name}`, which is removed at {at.file}:{at.line}:{at.column}"
            self._complain("R303", message, help, path)
        else:
            message = f"`{label}` names `{name}`, which is no step{wording.did_you_mean(name, known)}"
            self._complain("R303", message, help, path)
        return False

    def _environment(self) -> None:
        name, entries = self.step.env, self.recipe.environments
        if name is None:
            return
        if name not in entries:
            help = f"`environments` has {wording.ticked(entries)}" if entries else "the recipe has no `environments`"
            message = f"`env` names `{name}`, which is no entry of `environments`{wording.did_you_mean(name, entries)}"
            self._complain("R710", message, help, ("env",))
        elif not hasattr(kinds.module(self.step.kind), "ENVIRONMENT"):
            message = f"`{self.step.kind}` runs with runner's own packages; only foreign kinds take `env`"
            self._complain("R711", message, "leave it out", ("env",))

    def _data(self, label: str, name: str) -> None:
        entries = self.recipe.data
        if name in entries:
            return
        help = f"`data` has {wording.ticked(entries)}" if entries else "the recipe has no `data`"
        message = f"`{label}` names `{name}`, which is no entry of `data`{wording.did_you_mean(name, entries)}"
        self._complain("R306", message, help, (self.step.kind, label))

    def _gate(self, metric: str, rule: Mapping[str, Any], path: Path) -> None:
        known = kind_types.metrics(self.step.kind)
        if not kind_types.measures(self.step.kind, metric):
            message = f"`{self.step.kind}` does not measure `{metric}`{wording.did_you_mean(metric, known)}"
            self._complain("R309", message, f"it measures {wording.ticked(known)}" if known else None, path)
            return
        self._bounds(metric, rule, path)
        for code, message, help, key in gate_rules.complaints(self.step, metric, rule, self.before, self.later):
            self._complain(code, message, help, (*path, key))
        for key in references.KEYS:
            name = rule.get(key)
            if name is None or references.parse(name).job is not None:
                continue
            fitting = [id for id, step in self.before.items() if kind_types.measures(step.kind, metric)]
            help = _measured_by(metric, fitting)
            if self._earlier(key, name, (*path, key), fitting, help) and name not in fitting:
                message = f"`{key}` names `{name}`, and `{self.before[name].kind}` does not measure `{metric}`"
                self._complain("R309", message, help, (*path, key))

    def _bounds(self, metric: str, rule: Mapping[str, Any], path: Path) -> None:
        """Complain about a gate that no value can pass, and warn about one that no value can miss."""
        declared = kinds.module(self.step.kind).METRICS
        name = kind_types.declared(self.step.kind, metric)
        if not isinstance(declared, Mapping) or name is None:
            return
        values = declared[name]
        for key, limit in (("max", rule.get("max")), ("min", rule.get("min"))):
            if limit is None:
                continue
            at_most = key == "max"
            place, where = (*path, key), f"`{wording.label(path[1:])}`"
            why = f"`{metric}` is {values}, and `{key}` is {limit:g}"
            if (limit < values.low) if at_most else (limit > values.high):
                bound, side = (values.low, "more") if at_most else (values.high, "less")
                self._complain("R312", f"{where} can never pass: {why}", f"set `{key}` to {bound:g} or {side}", place)
            elif (limit >= values.high) if at_most else (limit <= values.low):
                self._warn("R313", f"{where} can never be missed: {why}", "set a limit that can be missed", place)


def _measured_by(metric: str, ids: Iterable[str]) -> str:
    names = list(ids)
    return f"`{metric}` is measured by {wording.ticked(names)}" if names else f"no earlier step measures `{metric}`"
