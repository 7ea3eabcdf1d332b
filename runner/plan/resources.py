"""The resources that a step asks for, and those that an executor offers."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from runner import wording
from runner.contracts.step_kind import MachineFacts
from runner.errors import MachineError
from runner.plan import machine
from runner.plan.types import Forecast, Plan, PlannedStep
from runner.recipe.types import Step
from runner.steps import kinds
from runner.system import cpu

_ACCELERATOR = "accelerator_type:"  # before the name of a GPU among the resources of a Ray node
_UNKNOWN_GPU = "a GPU of the cluster"
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Demand:
    """What a step takes while it runs. `memory` is in bytes of main memory, `gpus` may be a part of one.

    `cpus` None: the step computes with the threads of the apply and reserves no processor. `alone`: the step measures
    the machine, so that nothing else may run there meanwhile. `processor`: the class of processors that it runs on.
    """

    cpus: int | None = None
    memory: int = 0
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    alone: bool = False
    processor: str | None = None


@dataclass(frozen=True)
class Processor:
    """A processor as it was measured where it is: the kernel's name of its model, and its instruction sets.

    `classes` are names that an administrator gave it, such as features of a Slurm node.
    """

    model: str
    instructions: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def is_a(self, name: str) -> bool:
        """Return whether `name` is a part of its model's name, one of its instruction sets or of its classes."""
        return name.lower() in self.model.lower() or name in self.instructions or name in self.classes


@dataclass(frozen=True)
class Node:
    """The resources of one machine; `custom` are those that its administrator named.

    `processor` is None where nothing was measured there. `id` is the executor's own name of the machine.
    """

    cpus: int
    memory: int
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    processor: Processor | None = None
    id: str = ""

    def has_processor(self, name: str | None) -> bool:
        """Return whether `resources: {processor: name}` allows this machine."""
        return name is None or (self.processor is not None and self.processor.is_a(name))

    def holds(self, demand: Demand) -> bool:
        """Return whether a step with this demand could run here, if nothing else did."""
        if not self.has_processor(demand.processor):
            return False
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
        processor=asked.get("processor"),
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
    here = Processor(cpu.model() or platform.processor(), facts.instructions)
    return Offer("this machine", (Node(facts.cpus, facts.memory, len(machine.gpu_names()), processor=here),))


def device_of(offer: Offer | None, device: str) -> str:
    """Return "cpu" or "cuda" for "auto": what the machines of an offer have, where steps do not run on this one.

    Raises MachineError for a GPU that is not there.
    """
    if offer is None or device == "cpu":
        return machine.resolve_device(device)
    without = machine.no_cuda()
    if not any(node.gpus for node in offer.nodes):
        without = f"{offer.name} has no GPU", "use `--device cpu`"
    if without is None:
        return "cuda"
    if device == "auto":
        return "cpu"
    raise MachineError(f"the device `{device}` was asked for, but {without[0]}", without[1])


def machine_of(offer: Offer | None, device: str) -> MachineFacts:
    """Return the facts of the machine that will compute: this one, or the most that machines of an offer have."""
    if offer is None or not offer.nodes:
        return machine.machine_facts(device)
    facts = machine.machine_facts("cpu")
    memory = max(node.memory for node in offer.nodes)
    facts = replace(facts, cpus=max(node.cpus for node in offer.nodes), memory=memory, memory_available=memory)
    if device != "cuda":
        return facts
    names = sorted(n.removeprefix(_ACCELERATOR) for node in offer.nodes for n in node.custom if _ACCELERATOR in n)
    name = names[0] if names else _UNKNOWN_GPU
    return replace(facts, device=device, gpu_name=name, flops=machine.gpu_flops(name))


def candidates(step: Step, facts: MachineFacts, offer: Offer | None) -> list[tuple[str, MachineFacts]]:
    """Return the different machines that may run a step, each by the name of its processor.

    Machines on which nothing was measured count as this one.
    """
    name = step.resources.get("processor")
    nodes = offer.nodes if offer is not None else ()
    asked = [node.processor for node in nodes if node.processor is not None and node.has_processor(name)]
    found = {processor.instructions: processor.model for processor in asked if processor.instructions}
    if not found:
        return [("this machine's", facts)]
    return [(model, replace(facts, instructions=sets)) for sets, model in sorted(found.items())]


def lacking(demand: Demand, offer: Offer) -> tuple[tuple[str, ...], str] | None:
    """Return what no machine of the offer has for a step: the path in `resources`, and a clause; None where one has.

    The clause: "asks for 8 GPUs; this machine has no GPU".
    """
    if any(node.holds(demand) for node in offer.nodes):
        return None
    if not any(node.has_processor(demand.processor) for node in offer.nodes):
        known = sorted({node.processor.model for node in offer.nodes if node.processor is not None})
        return ("processor",), f"asks for a processor `{demand.processor}`; {offer.name} has {_listed(known)}"
    if demand.processor is not None:
        nodes = tuple(node for node in offer.nodes if node.has_processor(demand.processor))
        offer = Offer(f"{offer.name}, where a processor is `{demand.processor}`,", nodes)
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


def _listed(models: list[str]) -> str:
    return wording.ticked(models) if models else "none that was measured"


def _count(count: float, word: str) -> str:
    return f"no {word}" if not count else f"{count:g} {word}{'' if count <= 1 else 's'}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.2f} GB"
