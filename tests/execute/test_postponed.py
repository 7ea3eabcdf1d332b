"""The shorter import of transformers: short, and in the end the same. Each case is an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ["torch._dynamo.convert_frame", "torch.distributed.tensor", "sympy"]
BODY = """
import json, sys
import torch
{first}
import transformers.modeling_utils
before = [name for name in {heavy} if name in sys.modules]
{then}
"""
SHORT = "from runner.execute import postponed; postponed.postpone()"


def told(then: str, first: str = SHORT) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", BODY.format(first=first, heavy=HEAVY, then=then)], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_heavy_modules_are_left_out_even_when_a_model_runs() -> None:
    run = f"""
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
with torch.no_grad():
    logits = LlamaForCausalLM(LlamaConfig(**sizes)).eval()(torch.zeros(1, 4, dtype=torch.long)).logits
after = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(dict(before=before, after=after, shape=list(logits.shape))))
"""
    assert told(run) == {"before": [], "after": [], "shape": [1, 4, 16]}
    assert told(run, first="")["before"] == HEAVY  # what there is to save


@pytest.mark.parametrize(
    "look",
    [
        "torch._dynamo.config.cache_size_limit",
        "from torch._dynamo.eval_frame import OptimizedModule",
        "import torch._dynamo.utils",
        "torch._dynamo.reset()",
        "torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2))",
    ],
)
def test_a_look_into_the_compiler_runs_its_body(look: str) -> None:
    then = f"""
import types
{look}
import torch._dynamo
module = sys.modules["torch._dynamo"]
print(json.dumps(dict(before=before, loaded="torch._dynamo.convert_frame" in sys.modules,
                      plain=type(module) is types.ModuleType, same=torch._dynamo is module)))
"""
    assert told(then) == {"before": [], "loaded": True, "plain": True, "same": True}


def test_a_look_at_tensors_over_processes_imports_them() -> None:
    then = """
from torch import distributed
found = [hasattr(distributed, name) for name in ("nothing_of_that_name", "fsdp")]
found.append(isinstance(1, distributed.tensor.DTensor))
print(json.dumps(dict(before=before, found=found, loaded="torch.distributed.tensor" in sys.modules)))
"""
    assert told(then) == {"before": [], "found": [False, True, False], "loaded": True}


def test_decorators_take_effect_once_the_compiler_is_there() -> None:
    then = """
@torch.compiler.disable
def left_alone(x):
    seen.append(torch.compiler.is_compiling())
    return x + 1

@torch._dynamo.allow_in_graph
def allowed(x):
    return x

@torch._dynamo.assume_constant_result
def constant():
    return 3

seen = []
early = left_alone(torch.ones(1)).item()
idle = "torch._dynamo.convert_frame" not in sys.modules
from torch._dynamo import trace_rules
late = torch.compile(lambda x: left_alone(x * 2), backend="eager")(torch.ones(1)).item()
print(json.dumps(dict(early=early, idle=idle, late=late, seen=seen, constant=constant._dynamo_marked_constant,
                      allowed=trace_rules.is_callable_allowed(allowed))))
"""
    assert told(then) == {
        "early": 2.0, "idle": True, "late": 3.0, "seen": [False, False], "constant": True, "allowed": True,
    }  # fmt: skip


def test_transformers_offers_the_same_names() -> None:
    then = """
import transformers, transformers.models
print(json.dumps(dict(top=sorted(dir(transformers)), models=sorted(dir(transformers.models)))))
"""
    assert told(then) == told(then, first="")
