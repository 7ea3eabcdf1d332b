"""Writing a trained model: a checkpoint like another one, with the trained parameters in place of its own."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from runner.contracts.context import Context
from runner.contracts.facts import CheckpointFacts
from runner.errors import StepFailed
from runner.model import card
from runner.model.architecture.inspect import facts as read_facts
from runner.model.checkpoint.companions import copy_companions, write_json
from runner.model.checkpoint.reader import DTYPES, CheckpointReader, require_finite
from runner.model.checkpoint.writer import CheckpointWriter, parse_size
from runner.model.layerwise.streamed_model import StreamedModel


def checkpoint(ctx: Context, source: Path, trained: Path | Mapping[str, torch.Tensor]) -> None:
    """Write to `ctx.out_dir` the checkpoint in `source` with the parameters in `trained`, by their names in the model.

    Each is rounded once to the type it has in `source`; every other tensor keeps its bytes. One decoder layer is in
    memory at a time. StepFailed where `trained` holds a name the checkpoint has not, or a value that is not finite.
    """
    facts = read_facts(source, str(source))
    streamed = StreamedModel(source)
    with CheckpointReader(source) as reader, _opened(trained) as values:
        changed: dict[str, str] = {}  # stored name → name in the model
        for name in values.names:
            stored = streamed.stored_name(name)
            if stored is None:
                raise StepFailed(f"the trained parameter `{name}` is not in {source}")
            changed[stored] = name
            changed |= {also: name for tied in streamed.tied_to(name) if (also := streamed.stored_name(tied))}
        parts = CheckpointWriter(ctx.scratch_dir / "parts")
        for part, tensors in _parts(facts):
            new = [name for name in tensors if name in changed]
            parts.add(part, {name: values.read(changed[name], DTYPES[reader.header(name).dtype]) for name in new})
            parts.copy(f"{part}-kept", reader, [name for name in tensors if name not in changed])
        parts.finish(ctx.out_dir, parse_size(ctx.params["max_shard_size"]))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    finish_folder(ctx, source, config)


def finish_folder(ctx: Context, source: Path, config: Mapping[str, Any]) -> None:
    """What stands beside the weights in `ctx.out_dir`: config, tokenizer and the like from `source`, and the card."""
    write_json(ctx.out_dir / "config.json", config)
    copy_companions(source, ctx.out_dir)
    (ctx.out_dir / "README.md").write_text(card.render(ctx, config, []), encoding="utf-8")


def _parts(facts: CheckpointFacts) -> list[tuple[str, list[str]]]:
    """The tensors of a checkpoint by decoder layer, then the rest."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    layers = [facts.layer_tensors(index) for index in range(facts.layer_count)]
    owner = {name: f"layer-{index:05d}" for index, names in enumerate(layers) for name in names}
    for name in sorted(facts.tensors):
        groups[owner.get(name, "rest")].append(name)
    return sorted(groups.items())


class _Values:
    """Trained parameters by name, from a file or from memory."""

    def __init__(self, names: list[str], get: Any) -> None:
        self.names = names
        self._get = get

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        value: torch.Tensor = self._get(name)
        require_finite(value, name, "the trained weights")
        return value.to(dtype)


@contextmanager
def _opened(trained: Path | Mapping[str, torch.Tensor]) -> Iterator[_Values]:
    if isinstance(trained, Mapping):
        yield _Values(sorted(trained), trained.__getitem__)
        return
    with safe_open(trained, framework="pt") as file:
        yield _Values(sorted(file.keys()), file.get_tensor)
