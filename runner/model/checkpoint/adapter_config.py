"""The files of a low-rank adapter stored in a checkpoint's folder `adapter/`, as peft reads and writes them.

    adapter_config.json            r, lora_alpha, use_rslora, use_dora, target_modules, ...
    adapter_model.safetensors      base_model.model.<module>.lora_A.weight  [r, in]
                                   base_model.model.<module>.lora_B.weight  [out, r]
                                   base_model.model.<module>.lora_magnitude_vector  [out], DoRA only

Experts are parameters of one module (`target_parameters`). peft wraps them one around another, so that the last one has
the name of the module, and the one before it <module>.base_layer; A is [experts · r, in], expert by expert, and B
[out, r · experts], column by column of each expert's.

`PeftModel.from_pretrained(model, folder, subfolder="adapter")` loads it on the model of the same folder. Modules have
the names of transformers' model. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import Diagnostic, RecipeError
from runner.model.checkpoint.quantization.compressed_tensors_config import can_dequantize_on_load

FOLDER = "adapter"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank takes

# Types of models of which peft takes modules for experts: those that transformers loads by the table of qwen2_moe.
RENAMED_TYPES = frozenset({
    "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
    "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe",
    "longcat_flash", "mellum", "olmoe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text",
    "qwen3_omni_moe_thinker", "solar_open",
})  # fmt: skip

# Settings of peft that change the formula of an adapter; each must be absent or empty.
_UNSUPPORTED = ("modules_to_save", "lora_bias", "alora_invocation_tokens", "layer_replication",
              "trainable_token_indices", "use_bdlora", "velora_config", "monteclora_config", "kasa_config",
              "arrow_config", "use_qalora")  # fmt: skip


def vllm_rank(adapter: Mapping[str, Any]) -> int | None:
    """Return the least rank to give vLLM for an adapter; None where it takes none so large."""
    return next((size for size in VLLM_RANKS if size >= adapter["r"]), None)


def vllm_refusal(adapter: Mapping[str, Any]) -> str | None:
    """Return why vLLM would not load an adapter, or not as it is; None where nothing is known to be in the way.

    Of adapter_config.json it reads one rank and one α for all modules (vllm/lora/peft_helper.py).
    """
    if adapter.get("use_dora"):
        return "vLLM has no DoRA"
    for key in ("rank_pattern", "alpha_pattern"):
        if adapter.get(key):
            return f"vLLM leaves out `{key}`, by which modules have factors of their own"
    return None if vllm_rank(adapter) else f"vLLM takes adapters up to rank {VLLM_RANKS[-1]}"


def adapter_config(folder: Path) -> Mapping[str, Any] | None:
    """Return adapter_config.json of the adapter in the checkpoint's folder; None where it has none.

    Raises RecipeError where it cannot be read, or the adapter cannot be applied: LoRA, rsLoRA and DoRA can.
    """
    path = folder / FOLDER / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unusable_adapter(f"`{path}` cannot be read as JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        held = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise unusable_adapter(f"`{path}` holds an adapter of the type `{held}`; LoRA, rsLoRA and DoRA can be applied")
    used = [key for key in _UNSUPPORTED if config.get(key)]
    if used or config.get("bias", "none") != "none":
        key = used[0] if used else "bias"
        raise unusable_adapter(f"`{path}` sets `{key}`: {json.dumps(config[key])}, which cannot be applied")
    return config


def unusable_adapter(message: str) -> RecipeError:
    return RecipeError([Diagnostic("R470", message, "merge the adapter into its model, or remove that folder")])


def adapter_conflicts(config: Mapping[str, Any] | None, step: str) -> list[Diagnostic]:
    """Return the complaint of a step that rewrites weights about a checkpoint with an adapter.

    `step` says what the step would do to the weights.
    """
    if config is None:
        return []
    return [
        Diagnostic(
            "R471",
            f"the checkpoint carries an adapter in `{FOLDER}/`, which fits its present weights; {step}",
            "merge it first (`merge: requantize`, on a dense checkpoint `merge: auto`, in `recover.lora`), or do this "
            "before the step that makes the adapter",
        )
    ]


def config(
    rank: int,
    alpha: float,
    targets: Sequence[str],
    *,
    rslora: bool = False,
    dora: bool = False,
    dropout: float = 0.0,
    transposed: bool = False,
    parameters: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the adapter_config.json of an adapter on the modules `targets`: ends of names, or full names.

    `transposed` says that they are Conv1D; `parameters` are those of experts that get an adapter too, by their full
    names.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "use_dora": dora,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": sorted(targets),
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        **({"target_parameters": list(parameters)} if parameters else {}),
    }


def renamed(model_type: str, modules: Iterable[str]) -> list[str]:
    """Return those of some linear modules whose names in a kept adapter peft (0.21) would take for others.

    For RENAMED_TYPES it reads the last part of a name in `target_modules` as that of an expert's matrix as transformers
    4 had them, and leaves the module that has this name without its adapter. Of laguna it renames what it loads twice.
    """
    if model_type == "laguna":
        return [name for name in modules if ".shared_experts." in name]
    if model_type not in RENAMED_TYPES:
        return []
    return [name for name in modules if name.rpartition(".")[2] in ("gate_proj", "up_proj", "down_proj", "gate")]


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return s in W + s·B·A for a module: α / `rank`, or α / √`rank` for rsLoRA (Kalajdzievski 2023)."""
    alpha = _own(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """Return the rank of the adapter of a linear module; 0 where `target_modules` does not name it.

    As in peft these are full names or ends of them, or one regular expression, or all linear modules.
    """
    named = config.get("target_modules") or ()
    if isinstance(named, str):
        found = named == "all-linear" or re.fullmatch(named, module) is not None
    else:
        found = any(f".{module}".endswith(f".{name}") for name in named)
    return int(_own(config.get("rank_pattern"), module, config["r"])) if found else 0


def _own(patterns: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """Return the value of the first pattern that a module's name ends with, as peft matches them; else `usual`."""
    matching = (own for pattern, own in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(matching, usual)


def targets(chosen: Sequence[str], linears: Sequence[str]) -> list[str]:
    """Return the shortest `target_modules` that name exactly `chosen` among all `linears` of a model.

    They are the last parts of names where those suffice, else full names.
    """
    tails = {name.rpartition(".")[2] for name in chosen}
    exact = {name for name in linears if name.rpartition(".")[2] in tails} == set(chosen)
    return sorted(tails if exact else chosen)


def loadable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json of a checkpoint with an adapter, changed to unpack weights on loading where possible.

    peft wraps modules that have a weight; transformers leaves those of compressed-tensors packed until the first
    forward unless `dequantize` is set. That works for one scheme alone: 5.23 would read several as the first.
    """
    quantization = config.get("quantization_config") or {}
    if not can_dequantize_on_load(quantization):
        return dict(config)
    return {**config, "quantization_config": {**quantization, "dequantize": True}}
