"""Tiny packed and pruned checkpoints, and what transformers with peft computes on a folder."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from runner.steps.kinds import find
from tests.host import Host
from tests.tiny import save, tokens

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def quantized(
    tmp_path: Path, kind: str = "quantize.gptq", dtype: torch.dtype = torch.float32, **params: Any
) -> tuple[Path, Path]:
    """A dense checkpoint and what a quantizer makes of it. Streaming computes in float32 with float32 scales."""
    dense = save(tmp_path / "dense", "llama", dtype, **SIZES)
    params = {"bits": 3, "group_size": 32} | params
    host = Host(tmp_path / "quantize", kind, dense, tokens() if kind == "quantize.gptq" else None, **params)
    find(kind).run(host)
    return dense, host.out_dir


def plain(folder: Path, adapter: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """The folder's model as anyone loads it: plain transformers, peft for the adapter."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these packages say to one another is not ours
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return with_adapter(model, folder) if adapter else model.eval()


def with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder, subfolder="adapter").eval()


def perplexity(model: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    return math.exp(float(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())))


def streamed(tmp_path: Path, folder: Path, ids: torch.Tensor) -> float:
    result = find("evaluate.perplexity").run(Host(tmp_path, "evaluate.perplexity", folder, ids))
    return float(result.metrics["perplexity"])
