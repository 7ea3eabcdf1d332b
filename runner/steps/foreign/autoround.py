"""SignRound by AutoRound (Cheng et al. 2024), in an environment of its own."""

from __future__ import annotations

from runner.contracts.step_kind import CHECKPOINT, QUANTIZED
from runner.steps.foreign_tool import ForeignTool
from runner.steps.layer_method import ERRORS

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = ERRORS
ENVIRONMENT = ("auto-round==0.16.1", "compressed-tensors==0.20.0")  # the second packs what it saves

_tool = ForeignTool("foreign.autoround", "autoround")
check, changes, estimate, outcome, run = _tool.check, _tool.changes, _tool.estimate, _tool.outcome, _tool.run
