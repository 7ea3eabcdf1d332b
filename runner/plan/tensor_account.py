"""The planned account of tensors: a step's input and its outcome, compared tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.planned_account import ADDED, CHANGED, DROPPED, KEPT, PASSED, TIED, Entry, PlannedAccount
from runner.errors import Diagnostic
from runner.model.architecture.sites import role
from runner.model.checkpoint.quantization import packed_names

_SHOWN = 5


def account(
    before: CheckpointFacts,
    after: CheckpointFacts,
    changes: Collection[str] | None,
    adds: Mapping[str, str] | None = None,
) -> tuple[PlannedAccount, list[Diagnostic]]:
    """Return the account of a step, and a complaint about tensors that nothing explains.

    `changes` are the tensors of `before` whose values the step may change; None for all that belong to the model.
    `adds` are tensors of `after` that come from none of `before`, each with the reason.
    """
    passed = frozenset(before.description.ignored if before.description else ())
    added = {name: reason for name, reason in sorted((adds or {}).items()) if name in after.tensors}
    packed = _new_by_module({**before.tensors, **{name: after.tensors[name] for name in added}}, after.tensors)
    held: dict[str, list[str]] = {}  # a tensor that holds several experts → their sites
    roles = {site.tensor: site.role for site in before.sites}
    for site in before.sites:
        if site.index is not None:
            held.setdefault(site.tensor, []).append(site.name)
    fewer = _fewer_experts(before, after)
    entries: list[Entry] = []
    lost: list[str] = []
    used: set[str] = set()
    for name, header in before.tensors.items():
        module = name.rpartition(".")[0]
        own = [each for each in held.get(name, (module,)) if each in packed]
        changed = name in changes if changes is not None else name not in passed
        if changed and own and after.tensors.get(name) != header:  # some formats keep the weight's name
            used.update(own)
            new = (new for each in own for new in packed[each])
            written = {packed_names.split(n)[1] for n in (*new, name) if n in after.tensors}
            fate, reason = CHANGED, f"stored as {', '.join(sorted(written))}"
        elif name in after.tensors:
            fate, reason = (CHANGED, "its values change") if changed else (KEPT, "the step does not concern it")
            if changed and after.tensors[name].shape != header.shape:
                reason = "it has fewer rows or columns"
            if not changed and name in before.unpacked:
                fate, reason = CHANGED, f"stored as {before.unpacked[name]} in the model, dense in the result"
            if name in passed:
                fate, reason = PASSED, "the architecture leaves it unread"
        elif _layer(before, name) >= after.layer_count:
            fate, reason = DROPPED, f"{after.layer_count} of {before.layer_count} decoder layers stay"
        elif fewer and changed and name not in after.tensors:
            fate, reason = DROPPED, fewer
        else:
            fate, reason = DROPPED, ""
            lost.append(name)
        entries.append(Entry(name, roles.get(name) or role(module), fate, reason, header.nbytes))
    for name, source in ((before.description.ties or {}) if before.description else {}).items():
        if name not in added:
            entries.append(Entry(name, role(name.rpartition(".")[0]), TIED, f"shares `{source}`", 0))
    for name, reason in added.items():
        entries.append(Entry(name, role(name.rpartition(".")[0]), ADDED, reason, after.tensors[name].nbytes))
    strange = [name for module in sorted(set(packed) - used) for name in packed[module]]
    shapes = {name: tuple(header.shape) for name, header in after.tensors.items()}
    return PlannedAccount(tuple(entries), shapes), _unexplained(lost, strange)


def _new_by_module(before: Mapping[str, TensorHeader], after: Mapping[str, TensorHeader]) -> dict[str, list[str]]:
    """Return module → its tensors that the input does not have."""
    found: dict[str, list[str]] = {}
    for name in after:
        if name not in before:
            found.setdefault(packed_names.split(name)[0], []).append(name)
    return found


def _fewer_experts(before: CheckpointFacts, after: CheckpointFacts) -> str:
    """Return why tensors of experts are dropped; "" where all experts stay."""
    had, has = (max((each.experts for each in facts.linears.mixtures), default=0) for facts in (before, after))
    return f"{has} of {had} experts stay" if has < had else ""


def _layer(facts: CheckpointFacts, name: str) -> int:
    """Return the number of the decoder layer of a tensor; -1 outside of them."""
    index = name.removeprefix(facts.layers_prefix).partition(".")[0] if facts.layers_prefix else ""
    return int(index) if name.startswith(facts.layers_prefix) and index.isdigit() else -1


def _unexplained(lost: list[str], strange: list[str]) -> list[Diagnostic]:
    return [
        Diagnostic(
            "R417",
            f"nothing explains why {_names(names)} {what}",
            "this is a fault of the step's kind: its `outcome` and its `changes` must account for every tensor",
        )
        for names, what in ((lost, "would not be written"), (strange, "would be written"))
        if names
    ]


def _names(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
