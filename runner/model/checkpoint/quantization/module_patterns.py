"""Regular expressions over the names of modules, for configurations that say which modules are quantized how."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from runner.contracts.facts import TensorHeader
from runner.model.checkpoint.quantization.scheme import Scheme

_INDEXED = re.compile(r"^(.*?\.)?(\d+)\.(.+)$")


def by_scheme(schemes: Mapping[str, Scheme]) -> list[tuple[Scheme, list[str]]]:
    """(scheme, its modules): the most common scheme first, ties in a stable order. ValueError where there is none."""
    if not schemes:
        raise ValueError("no module is quantized")
    ranked = sorted(Counter(schemes.values()).items(), key=lambda pair: (-pair[1], pair[0].order()))
    return [(scheme, [m for m in schemes if schemes[m] == scheme]) for scheme, _ in ranked]


def block(module: str) -> tuple[str, str]:
    """("model.layers.", "mlp.up_proj") of "model.layers.3.mlp.up_proj"; ("", name) outside numbered blocks."""
    found = _INDEXED.match(module)
    return (found.group(1) or "", found.group(3)) if found else ("", module)


def patterns(modules: Iterable[str], schemes: Iterable[str], rest: Iterable[str]) -> list[str]:
    """Regular expressions that match exactly `modules` among all of `schemes`, which are quantized, and `rest`.

    One for all layers where every module of that name is meant, else one per module.
    """
    wanted = set(modules)
    others = {block(module) for module in {*schemes, *rest} - wanted}
    found = set()
    for module in wanted:
        prefix, suffix = block(module)
        if not prefix or (prefix, suffix) in others:
            found.add(f"^{re.escape(module)}$")
        else:
            found.add(rf"^{re.escape(prefix)}\d+\.{re.escape(suffix)}$")
    return sorted(found)


def unpacked_modules(tensors: Mapping[str, TensorHeader], packed: Iterable[str]) -> list[str]:
    """Modules with a weight matrix that are not packed, by the headers of the dense checkpoint: `untouched`, complete.

    Embeddings are among them: naming them costs nothing, missing a linear module (OPT's project_in) would make readers
    expect packed tensors there.
    """
    matrices = (name for name, tensor in tensors.items() if name.endswith(".weight") and len(tensor.shape) == 2)
    return sorted({name.removesuffix(".weight") for name in matrices} - set(packed))
