"""Importing what a step computes with: without the cycle collector, and of transformers only what models need.

torch and transformers make some millions of objects that live as long as the process. Collections that walk them again
and again are a third of the time of their import (measured: 4.4 s with, 3.0 s without).
"""

from __future__ import annotations

import gc
import importlib

from runner.execute import postponed
from runner.execute.messages import Request

# Kinds that run layers on tensors and nothing else: no library's code that could trace or ask for shapes.
LAYERS_ALONE = ("quantize.gptq", "quantize.rtn", "prune.magnitude", "prune.wanda", "evaluate.perplexity",
                "evaluate.divergence")  # fmt: skip


def imports(request: Request) -> None:
    """Import torch for a step that computes, transformers' models too for one that runs text through a model."""
    if request.kind in LAYERS_ALONE:
        postponed.postpone_shapes()
    names = []
    if "torch" in request.key_inputs.get("environment", {}):
        names = ["torch", "transformers.modeling_utils"] if request.data else ["torch"]
    gc.disable()
    try:
        for name in names:
            if name.startswith("transformers"):
                postponed.postpone()
            importlib.import_module(name)
        if names and request.kind not in LAYERS_ALONE:
            postponed.complete_shapes()  # an earlier step may have put them off
        gc.freeze()  # what was imported stays: later collections need not look at it
    finally:
        gc.enable()
