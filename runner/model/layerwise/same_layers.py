"""Whether layers of a model are the same in another model that has fewer of them, without their weights.

What a layer is may follow from its number: the kind of its attention, whether it has experts, a scale. Both models are
built by transformers from their configurations, and the modules of each layer compared with those of its counterpart.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from runner.model.architecture import inspect
from runner.model.layerwise.empty_model import build_empty
from runner.model.layerwise.layer_list import find_layers

_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "training")


def difference(folder: Path, config: Mapping[str, Any], keep: Sequence[int]) -> str | None:
    """Return what differs between the layers `keep` of the checkpoint in `folder` and those of `config`; None: nothing.

    `config` is config.json of a model of these layers alone.
    """
    from transformers import AutoConfig

    own_code = inspect.needs_own_code(folder)
    before = AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
    with tempfile.TemporaryDirectory() as written:
        (Path(written) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for code in folder.glob("*.py") if own_code else ():
            (Path(written) / code.name).write_bytes(code.read_bytes())
        after = AutoConfig.from_pretrained(written, trust_remote_code=own_code)
    old, new = (_layers(each, own_code) for each in (before, after))
    if len(new) != len(keep):
        return f"the model has {len(new)} layers"
    pairs = zip(keep, new, strict=True)
    return next((found for number, layer in pairs if (found := _differs(number, old[number], layer))), None)


def _layers(config: Any, own_code: bool) -> list[nn.Module]:
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return list(find_layers(build_empty(config, trust_remote_code=own_code), config)[1])


def _differs(number: int, old: nn.Module, new: nn.Module) -> str | None:
    """Return what differs in a layer, by the names and classes of its modules, its tensors and plain attributes."""
    ours, theirs = dict(new.named_modules()), dict(old.named_modules())
    for name in sorted({*ours, *theirs}):
        where = f"`{name}` of layer {number}" if name else f"layer {number}"
        one, other = theirs.get(name), ours.get(name)
        if one is None or other is None or type(one) is not type(other):
            return f"{where} would be {'absent' if other is None else f'a {type(other).__name__}'}"
        before, after = _attributes(one), _attributes(other)
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                return f"`{key}` of {where} would be {after.get(key)!r}, not {before.get(key)!r}"
    return None


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module and the shapes of its tensors, but for the number of its layer."""
    found = {key: value for key, value in vars(module).items() if _is_plain(value) and not key.endswith(_NUMBERS)}
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return found | {key: tuple(tensor.shape) for key, tensor in tensors}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)
