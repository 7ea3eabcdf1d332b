"""How a server loads the adapter that a checkpoint carries beside its weights: what plan, cards and steps say of it.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.model.checkpoint.adapter_config import vllm_rank, vllm_refusal
from runner.model.checkpoint.servers import NATIVE, REFUSED, UNKNOWN, Verdict

VLLM = "vllm"
REMEDY = "let `recover.lora` merge it, with `merge: requantize` into quantized weights"
_PEFT_HELPER = "vLLM's source: vllm/lora/peft_helper.py"


def verdict(server: str, adapter: Mapping[str, Any]) -> Verdict:
    """Return how `server` loads an adapter by its adapter_config.json; transformers does with peft."""
    if server == "transformers":
        return Verdict(server, NATIVE, "", "tried with peft 0.21")
    if server == VLLM and adapter.get("target_parameters"):
        return Verdict(server, UNKNOWN, "whether vLLM takes an adapter of experts has not been tried")
    if server == VLLM:
        why = vllm_refusal(adapter)
        return Verdict(server, NATIVE if why is None else REFUSED, why or "", _PEFT_HELPER)
    if server == "tensorrt-llm":
        return Verdict(server, UNKNOWN, "whether it takes an adapter beside weights has not been tried")
    return Verdict(server, REFUSED, f"{server} loads no adapter from the folder of a checkpoint")


def vllm_arguments(adapter: Mapping[str, Any], name: str, folder: str) -> tuple[str, ...]:
    """Return the arguments by which vLLM serves the adapter in `folder` as the model `name`, one that it takes."""
    return ("--enable-lora", "--max-lora-rank", str(vllm_rank(adapter)), "--lora-modules", f"{name}={folder}")
