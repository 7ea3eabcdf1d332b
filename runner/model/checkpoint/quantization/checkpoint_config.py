"""The `quantization_config` of a whole checkpoint: what is packed, and everything else that readers must leave alone.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contracts.facts import TensorHeader
from runner.contracts.model_description import Linears
from runner.model.checkpoint.quantization import compressed_tensors_config
from runner.model.checkpoint.quantization.format import Format, Refusal
from runner.model.checkpoint.quantization.module_patterns import unpacked_modules
from runner.model.checkpoint.quantization.scheme import Scheme


def write(
    format: Format,
    schemes: Mapping[str, Scheme],
    tensors: Mapping[str, TensorHeader],
    linears: Linears | None,
    *,
    act_order: bool = False,
) -> dict[str, Any]:
    """The configuration of a checkpoint of which the modules in `schemes` are packed.

    `tensors` are those of the dense checkpoint. Readers take every linear module of the model for packed unless the
    configuration names it, also those that no tensor is stored for (tied heads): `linears` has them.
    """
    known = linears or Linears()
    untouched = sorted({*unpacked_modules(tensors, schemes), *known.unpacked(schemes)})
    config = format.config(schemes, untouched, act_order=act_order)
    if known.needed and config["quant_method"] == compressed_tensors_config.METHOD:
        return {**config, "dequantize": True}
    return config


def refuse(format: Format, schemes: Mapping[str, Scheme], linears: Linears) -> Refusal | None:
    """Why transformers cannot load a model of these linear modules packed; None: it can, or unpacks it first."""
    if not linears.needed or not schemes:
        return None
    problem = (
        "transformers' code of this model reads the weights of linear modules while it loads them; it can only load "
    )
    config = format.config(schemes)
    if config["quant_method"] != compressed_tensors_config.METHOD:
        return Refusal(problem + "packed ones that it unpacks, and those of this format it does not unpack",
                       "use `format: pack-quantized`")  # fmt: skip
    if not compressed_tensors_config.can_dequantize_on_load(config):
        return Refusal(problem + "packed ones that it unpacks, which it does for one scheme alone", "drop `overrides`")
    if any(scheme.activations is not None for scheme in schemes.values()):
        return Refusal(problem + "packed ones that it unpacks, and then it does not round their inputs",
                       "choose a scheme of weights alone, such as `w4a16`")  # fmt: skip
    return None
