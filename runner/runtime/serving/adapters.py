"""How a server loads the adapter that a checkpoint carries, or why it cannot. Imported by the planner: no torch.

A server that is given the folder of a checkpoint alone loads its weights without the adapter, and says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner.model.checkpoint import adapter_loading
from runner.model.checkpoint.adapter_config import FOLDER
from runner.model.checkpoint.adapter_loading import VLLM
from runner.model.checkpoint.servers import NATIVE
from runner.runtime.serving.commands import OTHER, Server, fields

_NAME = "{name}-adapted"


def refusal(server: str, arguments: Sequence[str], adapter: Mapping[str, Any] | None) -> str | None:
    """Return why what a server answers would be the weights without their adapter; None where it would not."""
    if adapter is None:
        return None
    if server == OTHER:
        if "adapter" in fields(arguments):
            return None
        return "no argument of the server has `{adapter}`, the folder of the adapter"
    if server == "transformers":  # whose server, unlike the library, does not ask peft
        return "`transformers serve` loads no adapter from the folder of a checkpoint"
    found = adapter_loading.verdict(server, adapter)
    return None if found.how == NATIVE else found.why


def with_adapter(server: Server, name: str, adapter: Mapping[str, Any] | None) -> Server:
    """Return the server with the arguments by which vLLM loads the adapter too, and answers as the adapted model."""
    if adapter is None or name != VLLM:
        return server
    own = adapter_loading.vllm_arguments(adapter, _NAME, "{adapter}")
    return replace(server, arguments=(*server.arguments, *own), model=_NAME)


def folder(model: str) -> str:
    """Return the folder of the adapter of a checkpoint in the folder `model`."""
    return f"{model}/{FOLDER}"
