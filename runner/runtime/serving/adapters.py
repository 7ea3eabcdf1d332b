"""How a server loads the adapter that a checkpoint carries, or why it cannot. Imported by the planner: no torch.

A server that is given the folder of a checkpoint alone loads its weights without the adapter, and says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner.model.checkpoint.adapter_config import FOLDER, vllm_rank, vllm_refusal
from runner.runtime.serving.commands import OTHER, Server, fields

VLLM = "vllm"
_NAME = "{name}-adapted"


def refusal(server: str, arguments: Sequence[str], adapter: Mapping[str, Any] | None) -> str | None:
    """Return why what a server answers would be the weights without their adapter; None where it would not."""
    if adapter is None:
        return None
    if server == VLLM:
        if adapter.get("target_parameters"):
            return "nobody has tried whether vLLM loads an adapter of experts"
        return vllm_refusal(adapter)
    if server == OTHER:
        if "adapter" in fields(arguments):
            return None
        return "no argument of the server has `{adapter}`, the folder of the adapter"
    return f"{server} loads no adapter from the folder of a checkpoint"


def with_adapter(server: Server, name: str, adapter: Mapping[str, Any] | None) -> Server:
    """Return the server with the arguments by which vLLM loads the adapter too, and answers as the adapted model."""
    if adapter is None or name != VLLM:
        return server
    own = ("--enable-lora", "--max-lora-rank", str(vllm_rank(adapter)), "--lora-modules", f"{_NAME}={{adapter}}")
    return replace(server, arguments=(*server.arguments, *own), model=_NAME)


def folder(model: str) -> str:
    """Return the folder of the adapter of a checkpoint in the folder `model`."""
    return f"{model}/{FOLDER}"
