"""Feature distillation: the Trainable of `distill.features`.

The student matches the teacher's hidden states and attention maps; the frozen teacher runs in every forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import inspect
from runner.model.checkpoint import adapter_config
from runner.model.checkpoint.headers import read_headers, read_shard
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.dtypes import compute_dtype, stored_dtype
from runner.model.layerwise.layer_list import find_layers
from runner.model.layerwise.streamed_model import StreamedModel
from runner.model.layerwise.whole_model import load_dense, load_streamed
from runner.training import losses
from runner.training.load_model import load
from runner.training.losses import Mix
from runner.training.task import Batch
from runner.training.zero_masks import Masks

PROJECTIONS = "distillation_projections"  # a module of the student during training; not written to the checkpoint


@dataclass(frozen=True)
class Weights:
    """The weights of the three parts of the loss: hidden states, attention maps, and the loss of `distill.logits`."""

    hidden: float
    attention: float
    logits: float


class Tap:
    """Records the outputs of some decoder layers of a model, by layer, [b, L, d] each, while `open`."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        self.seen: dict[int, torch.Tensor] = {}
        self._open = False
        found = find_layers(model, model.config)[1]
        for index in sorted(set(layers)):
            found[index].register_forward_hook(self._hook(index))

    def _hook(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._open:  # not when a checkpointed layer is computed again in the backward
                self.seen[index] = output[0] if isinstance(output, tuple) else output

        return hook

    @contextmanager
    def open(self) -> Iterator[dict[int, torch.Tensor]]:
        self.seen, self._open = {}, True
        try:
            yield self.seen
        finally:
            self.seen, self._open = {}, False


class Matching:
    """The loss w_h Σ hidden / pairs + w_a Σ attention / pairs + w_l (α L_hard + (1 − α) T² D).

    `pairs` are (student layer, teacher layer).
    """

    def __init__(
        self, model: Any, teacher: Any, pairs: Sequence[tuple[int, int]], weights: Weights, mix: Mix, masks: Masks
    ) -> None:
        self.model, self.teacher, self.pairs = model, teacher, pairs
        self.weights, self.mix, self.masks = weights, mix, masks
        self.ours = Tap(model, [student for student, _ in pairs])
        self.theirs = Tap(teacher, [teacher for _, teacher in pairs])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        maps = {"output_attentions": True} if self.weights.attention else {}
        with self.theirs.open() as wanted, torch.no_grad():
            teacher = self.teacher(input_ids=batch.ids, use_cache=False, **maps)
        with self.ours.open() as given:
            student = model(input_ids=batch.ids, use_cache=False, **maps)
        total = torch.zeros((), device=batch.ids.device)
        parts: dict[str, torch.Tensor] = {}
        if self.weights.hidden:
            distances = [losses.hidden_distance(self._projected(s, given[s]), wanted[t]) for s, t in self.pairs]
            parts["hidden"] = torch.stack(distances).mean()
            total = total + self.weights.hidden * parts["hidden"]
        if self.weights.attention:
            distances = [losses.attention_distance(student.attentions[s], teacher.attentions[t]) for s, t in self.pairs]
            parts["attention"] = torch.stack(distances).mean()
            total = total + self.weights.attention * parts["attention"]
        if self.weights.logits:
            mixed, parts["text"], parts["teacher"] = losses.mixed(
                student.logits, batch.ids, teacher.logits[:, :-1], self.mix
            )
            total = total + self.weights.logits * mixed
        return total, parts

    def _projected(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        projections = getattr(self.model, PROJECTIONS, None)
        projected: torch.Tensor = hidden if projections is None else projections[str(layer)](hidden)
        return projected

    def stepped(self, step: int) -> None:
        self.masks.apply()


def build(arguments: Mapping[str, Any], device: str) -> Matching:
    """Build the Trainable.

    `arguments`: student and teacher (folders), pairs, the three weights, alpha, temperature, divergence, seed.
    """
    model = load(Path(arguments["student"]), device, torch.float32)
    masks = Masks(model)
    teacher = _teacher(Path(arguments["teacher"]), device)
    pairs = [(int(student), int(teacher)) for student, teacher in arguments["pairs"]]
    weights = Weights(*(arguments[f"{name}_weight"] for name in ("hidden", "attention", "logits")))
    if weights.attention:
        for each in (model, teacher):
            each.set_attn_implementation("eager")  # the other implementations do not return attention probabilities
    widths = [each.config.get_text_config().hidden_size for each in (model, teacher)]
    if weights.hidden and widths[0] != widths[1]:
        added = projections(sorted({student for student, _ in pairs}), widths[0], widths[1], arguments["seed"])
        model.add_module(PROJECTIONS, added.to(device))
    mix = Mix(arguments["alpha"], arguments["temperature"], arguments["divergence"])
    return Matching(model, teacher, pairs, weights, mix, masks)


def projections(layers: Sequence[int], student: int, teacher: int, seed: int) -> nn.ModuleDict:
    """Return a linear map from the student's width to the teacher's for each layer, preserving expected mean squares.

    They are random with the generator `seed`, so that every process has the same.
    """
    generator = torch.Generator().manual_seed(seed)
    found = nn.ModuleDict()
    for layer in layers:
        found[str(layer)] = nn.Linear(student, teacher, bias=False)
        weight = torch.randn(teacher, student, generator=generator) / student**0.5
        found[str(layer)].weight = nn.Parameter(weight)
    return found


def without_projections(weights: Path, folder: Path) -> Path:
    """Return the file of trained weights, or a copy without the projections if it has any; bytes are copied."""
    headers = read_shard(weights.parent, weights.name)
    names = [name for name in headers if not name.startswith(f"{PROJECTIONS}.")]
    if len(names) == len(headers):
        return weights
    parts = CheckpointWriter(folder)
    with CheckpointReader(weights.parent, headers) as reader:
        parts.copy("trained", reader, names)
    return parts.path("trained")


def require_attention(folder: Path, name: str) -> None:
    """Raise RecipeError if a checkpoint's architecture returns no attention maps; tried on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own_code = inspect.needs_own_code(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", trust_remote_code=own_code
        ).eval()
        masks = [torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 4, dtype=torch.int64)]
        maps = [_attention(model, mask) for mask in masks]
    layers = config.get_text_config().num_hidden_layers
    if layers not in maps:
        message = f"the {name} (`{type(model).__name__}`) does not return its attention probabilities"
        raise RecipeError([Diagnostic("R493", message, "set `attention_weight` to 0", path=("attention_weight",))])


def _attention(model: Any, mask: torch.Tensor) -> int:
    """Return for how many layers a model on the meta device returns attention with this mask; 0 where it fails.

    Which form of mask works on the meta device differs between architectures.
    """
    ids = torch.zeros(1, 4, dtype=torch.int64)
    try:
        out = model(input_ids=ids, attention_mask=mask, output_attentions=True, use_cache=False)
    except (RuntimeError, TypeError, ValueError):
        return 0
    return sum(isinstance(each, torch.Tensor) for each in getattr(out, "attentions", None) or ())


def _teacher(folder: Path, device: str) -> Any:
    """Load the teacher in its stored type, or in float32 where the hardware is slow in that type.

    It computes what evaluations measure: with its adapter, and with inputs rounded as its schemes say. Its weights are
    in memory unpacked.
    """
    dtype = compute_dtype(stored_dtype(read_headers(folder)), torch.device(device))
    with CheckpointReader(folder) as reader:
        plain = reader.packing is None and adapter_config.adapter_config(folder) is None
    if plain:
        teacher = load_dense(folder, torch.device(device), dtype)
    else:
        teacher = load_streamed(StreamedModel(folder, device, dtype))
    teacher.config.use_cache = False
    teacher.requires_grad_(False)
    return teacher.eval()
