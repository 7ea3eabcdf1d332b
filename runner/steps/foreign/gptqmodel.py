"""GPTQ by GPTQModel, in an environment of its own.

The same method as `quantize.gptq`, by the tool that its users have: to compare, or to move over step by step.
"""

from __future__ import annotations

from runner.contracts.step_kind import CHECKPOINT, QUANTIZED
from runner.steps.foreign_tool import ForeignTool
from runner.steps.layer_method import ERRORS

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = ERRORS
ENVIRONMENT = ("GPTQModel==7.6.0",)

_tool = ForeignTool("foreign.gptqmodel", "gptqmodel")
check, changes, estimate, outcome, run = _tool.check, _tool.changes, _tool.estimate, _tool.outcome, _tool.run
