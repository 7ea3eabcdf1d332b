"""GPTQ by AutoGPTQ 0.7.1, its last version, in an environment of its own: to compare, or to move over.

AutoGPTQ computes on NVIDIA GPUs only, and with the transformers of its time.
"""

from __future__ import annotations

from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, Inputs, Params
from runner.errors import Diagnostic
from runner.steps.foreign_tool import ForeignTool
from runner.steps.layer_method import ERRORS

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = ERRORS
ENVIRONMENT = (
    "auto-gptq==0.7.1", "torch==2.2.2", "transformers==4.41.2", "accelerate==0.30.1", "peft==0.11.1",
    "datasets==2.19.2", "pyarrow==16.1.0", "numpy==1.26.4",
)  # fmt: skip
TYPES = ("llama", "mistral", "qwen2")  # whose configurations of today can be written as those of transformers 4.41

_tool = ForeignTool("foreign.autogptq", "autogptq")
changes, estimate, outcome, run = _tool.changes, _tool.estimate, _tool.outcome, _tool.run


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    found = _tool.check(params, inputs)
    if inputs.machine.device != "cuda":
        message = "AutoGPTQ computes on an NVIDIA GPU, and this step would run on the CPU"
        found.append(Diagnostic("R504", message, "run it on a machine with one, or use `foreign.gptqmodel`"))
    model_type = inputs.checkpoint.config.model_type
    if model_type not in TYPES:
        message = f"AutoGPTQ 0.7.1 is not run on models of type `{model_type}`"
        listed = ", ".join(f"`{name}`" for name in TYPES)
        found.append(Diagnostic("R715", message, f"use `foreign.gptqmodel`; this kind takes {listed}"))
    return found
