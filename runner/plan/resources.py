"""The resources that a step asks for, and those that an executor offers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from runner import wording
from runner.contracts.step_kind import MachineFacts
from runner.plan import machine
from runner.plan.types import Forecast, Plan, PlannedStep
from runner.steps import kinds

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Demand:
    """What a step takes while it runs. `memory` is in bytes of main memory, `gpus` may be a part of one.

    `cpus` None: the step computes with the threads of the apply and reserves no processor. `alone`: the step measures
    the machine, so that nothing else may run there meanwhile.
    """

    cpus: int | None = None
    memory: int = 0
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Node:
    """The resources of one machine; `custom` are those that its administrator named."""

    cpus: int
    memory: int
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)

    def holds(self, demand: Demand) -> bool:
        """Return whether a step with this demand could run here, if nothing else did."""
        enough = (demand.cpus or 0) <= self.cpus and demand.memory <= self.memory and demand.gpus <= self.gpus
        return enough and all(self.custom.get(name, 0.0) >= count for name, count in demand.custom.items())


@dataclass(frozen=True)
class Offer:
    """The machines of an executor; `name` begins sentences in messages: "this machine has ..."."""

    name: str
    nodes: tuple[Node, ...]

    def text(self) -> str:
        """Return the machines as text: `2 machines: 4 processors, 16 GB of memory, no GPU; ...`."""
        shown = list(dict.fromkeys(_node_text(node) for node in self.nodes))
        return "; ".join(shown) or "no machine"


def size_of(text: str) -> int:
    """Return the bytes of a size as recipes write it: `24 GB`, `512MiB`. The schema allows no other form."""
    number, unit = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text).groups()  # type: ignore[union-attr]
    return round(float(number) * _UNITS[unit])


def demand_of(step: PlannedStep, device: str, forecast: int = 0) -> Demand:
    """Return what a step takes: its `resources`, and what follows from its device and from the `forecast` of memory.

    A step on a GPU takes one for each of its processes, unless it asks for another number.
    """
    asked = step.resources
    gpus = float(asked.get("gpus", step.processes if device == "cuda" else 0))
    memory = size_of(asked["memory"]) if "memory" in asked else 0
    cpus = asked.get("cpus")
    return Demand(
        cpus=int(cpus) if cpus is not None else None,
        memory=max(memory, forecast),
        gpus=gpus,
        custom={name: float(count) for name, count in asked.get("custom", {}).items()},
        alone=kinds.is_alone(step.kind),
    )


def demands(plan: Plan, forecasts: Mapping[int, Forecast]) -> dict[str, Demand]:
    """Return the demand of every step by its id; `forecasts` are by index."""
    memory = {index: forecast.cost.memory for index, forecast in forecasts.items()}
    return {step.id: demand_of(step, plan.device, memory.get(step.index, 0)) for step in plan.steps}


def threads_of(step: PlannedStep, default: int) -> int:
    """Return the threads that a step computes with: its `cpus` where it asks for them."""
    return int(step.resources.get("cpus", default))


def of_this_machine(facts: MachineFacts) -> Offer:
    """Return what this machine offers to one step."""
    return Offer("this machine", (Node(facts.cpus, facts.memory, len(machine.gpu_names())),))


def machine_of(offer: Offer | None, device: str) -> MachineFacts:
    """Return the facts of the machine that will compute: this one, with the processors and memory that an offer has.

    Which device computes is decided here, on the machine that plans.
    """
    facts = machine.machine_facts(device)
    if offer is None or not offer.nodes:
        return facts
    memory = max(node.memory for node in offer.nodes)
    return replace(facts, cpus=max(node.cpus for node in offer.nodes), memory=memory, memory_available=memory)


def lacking(demand: Demand, offer: Offer) -> tuple[tuple[str, ...], str] | None:
    """Return what no machine of the offer has for a step: the path in `resources`, and a clause; None where one has.

    The clause: "asks for 8 GPUs; this machine has no GPU".
    """
    if any(node.holds(demand) for node in offer.nodes):
        return None
    for name, count in demand.custom.items():
        most = max((node.custom.get(name, 0.0) for node in offer.nodes), default=0.0)
        if count > most:
            known = sorted({other for node in offer.nodes for other in node.custom})
            has = f"has {most:g}" if most else f"has no such resource ({_known(known)})"
            return ("custom", name), f"asks for {count:g} `{name}`; {offer.name} {has}"
    parts: list[tuple[str, float, str, str]] = [
        ("cpus", demand.cpus or 0, "processor", "cpus"), ("gpus", demand.gpus, "GPU", "gpus"),
    ]  # fmt: skip
    for name, count, word, attribute in parts:
        most = max((getattr(node, attribute) for node in offer.nodes), default=0)
        if count > most:
            return (name,), f"asks for {_count(count, word)}; {offer.name} has {_count(most, word)}"
    largest = max((node.memory for node in offer.nodes), default=0)
    if demand.memory > largest:
        return ("memory",), f"asks for {_bytes(demand.memory)} of memory; {offer.name} has {_bytes(largest)}"
    return (), f"asks for {_node_text(_as_node(demand))} on one machine; {offer.name} has {offer.text()}"


def _as_node(demand: Demand) -> Node:
    return Node(demand.cpus or 0, demand.memory, demand.gpus, demand.custom)


def _node_text(node: Node) -> str:
    parts = [_count(node.cpus, "processor"), f"{_bytes(node.memory)} of memory", _count(node.gpus, "GPU")]
    return ", ".join([*parts, *(f"{count:g} `{name}`" for name, count in sorted(node.custom.items()))])


def _known(names: list[str]) -> str:
    return f"it has {wording.ticked(names)}" if names else "it names none"


def _count(count: float, word: str) -> str:
    return f"no {word}" if not count else f"{count:g} {word}{'' if count <= 1 else 's'}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.2f} GB"
