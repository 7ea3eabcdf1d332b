"""The shorter imports of torch and transformers: short, and in the end the same. Each case in its own interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from runner.execute.imports import LAYERS_ALONE
from runner.steps.kinds import names

HEAVY = ["torch._decomp", "torch._dynamo.convert_frame", "torch.distributed.tensor", "sympy"]
BODY = """
import json, sys
{first}
import torch
{second}
import transformers.modeling_utils
before = [name for name in {heavy} if name in sys.modules]
{then}
"""
FIRST = "from runner.execute import postponed; postponed.postpone_shapes()"
SHORT = "from runner.execute import postponed; postponed.postpone()"


def told(then: str, first: str = FIRST, second: str = SHORT) -> dict[str, object]:
    body = BODY.format(first=first, second=second, heavy=HEAVY, then=then)
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True)
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
    assert told(run, "", "")["before"] == HEAVY  # what there is to save


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
    assert told(then) == told(then, "", "")


@pytest.mark.parametrize(
    "look",
    [
        "import torch._decomp",
        "import torch._refs",
        "torch._meta_registrations.meta_index_Tensor",
        "torch.compile(lambda x: x + 1, backend='aot_eager')(torch.ones(2))",
        "with torch._subclasses.FakeTensorMode(): torch.ones(2).erfinv().cumsum(0)",
        "import torch._prims, torch._prims_common.wrappers",
        "import torch.utils._content_store",
    ],
)
def test_shapes_of_operations_are_known_once_anything_asks_for_them(look: str) -> None:
    """As many operations as where nothing was put off, and one that only torch's Python knows."""
    then = f"""
{look}
import torch._decomp, torch._refs
image, grid = (torch.empty(1, *sizes, device="meta") for sizes in ((1, 4, 4), (2, 2, 2)))
shape = torch.nn.functional.grid_sample(image, grid, align_corners=False).shape
print(json.dumps(dict(known=len(torch._decomp.meta_table), decomposed=len(torch._decomp.decomposition_table),
                      shape=list(shape), file=torch._refs.__spec__.origin)))
"""
    assert told(then) == told(then, "", "")


def test_a_model_is_built_empty_also_with_an_operation_whose_shapes_were_put_off() -> None:
    then = """
from transformers import LlamaConfig, LlamaForCausalLM
from runner.model.empty import build_empty

made = LlamaForCausalLM.__init__

def init(self, config):
    made(self, config)
    torch.nn.functional.grid_sample(torch.empty(1, 1, 4, 4), torch.empty(1, 2, 2, 2), align_corners=False)

LlamaForCausalLM.__init__ = init
sizes = dict(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
model = build_empty(LlamaConfig(**sizes))
print(json.dumps(dict(before=before, devices=sorted({p.device.type for p in model.parameters()}),
                      loaded="torch._decomp" in sys.modules)))
"""
    assert told(then) == {"before": [], "devices": ["meta"], "loaded": True}


def test_kinds_that_ask_for_no_shapes_are_kinds() -> None:
    assert set(LAYERS_ALONE) <= set(names())
