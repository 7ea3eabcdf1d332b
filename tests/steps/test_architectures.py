"""Kinds that do not work on an architecture are refused by what transformers says of the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import LinearModule, Linears, ModelDescription
from runner.contracts.sites import Site
from runner.steps import architectures

DENSE = CheckpointFacts(
    "m", ModelConfig.of({"model_type": "llama"}), {}, "model.layers.", 1, (), description=ModelDescription()
)
KEYS = "model.layers.0.k.weight"
EXPERT = "model.layers.0.mlp.experts.gate_up_proj"
MIXTURE = replace(DENSE, config=ModelConfig.of({"model_type": "mixtral"}), description=ModelDescription(experts=EXPERT))
BUILT = replace(
    DENSE, description=ModelDescription(built=(KEYS,)), sites=(Site(KEYS[:-7], KEYS, None, False, 4, 4, 0),)
)
A_LOG = "model.layers.0.mixer.A_log"
MODULE = LinearModule("model.layers.0.mixer.in_proj", "model.layers.0.mixer.in_proj", True)
STATES = replace(
    DENSE,
    config=ModelConfig.of({"model_type": "mamba2"}),
    tensors={A_LOG: TensorHeader(A_LOG, "F32", (8,), "s", 0, 32)},
    description=ModelDescription(linears=Linears((MODULE,))),
)
UNKNOWN = replace(STATES, description=ModelDescription(linears=Linears((replace(MODULE, called=None),))))
HOLDS = f"`m` (`mamba2`) has state-space layers: it holds `{A_LOG}`"


@pytest.mark.parametrize(("facts", "kind"), [
    (DENSE, "recover.lora"), (MIXTURE, "evaluate.perplexity"), (STATES, "quantize.gptq"),
    (UNKNOWN, "evaluate.divergence"),
    (replace(MIXTURE, description=None), "quantize.rtn"),
])  # fmt: skip
def test_what_works_is_not_refused(facts: CheckpointFacts, kind: str) -> None:
    assert architectures.refuse(kind, facts) is None


@pytest.mark.parametrize(("facts", "kind", "expected"), [
    (MIXTURE, "recover.scales", (
        "R441",
        f"`m` (`mixtral`) is a mixture of experts: it holds `{EXPERT}`; `recover.scales` cannot change mixtures yet",
        (
            "kinds that can are `analyze.sensitivity`, `evaluate.divergence`, `evaluate.perplexity`, `prune.depth`, "
            "`prune.experts`, `prune.magnitude`, `prune.sparsegpt`, `prune.wanda`, `quantize.gptq`, `quantize.rtn`, "
            "`recover.eora` and `recover.lora`"
        ),
    )),
    (replace(DENSE, description=ModelDescription(hands_state=True)), "quantize.signround", (
        "R632",
        "`m` (`llama`) has layers that hand one another keys and values: they cannot be learned one at a time",
        "use `quantize.gptq`",
    )),
    (MIXTURE, "quantize.rtn", (
        "R601",
        (
            f"`m` (`mixtral`) is a mixture of experts: it holds `{EXPERT}`, which can be measured, not changed: they "
            "are in no module of a decoder layer that is known to hold experts"
        ),
        "choose another model",
    )),
    (BUILT, "quantize.rtn", (
        "R408",
        (
            "`m` (`llama`) can be measured, not changed: it holds `model.layers.0.k.weight`, which transformers "
            "makes other tensors of on loading"
        ),
        "choose a model that is stored as transformers runs it",
    )),
    (STATES, "recover.lora", (
        "R447",
        f"{HOLDS}; they have not been tried with `recover.lora`",
        (
            "kinds that work are `analyze.sensitivity`, `evaluate.divergence`, `evaluate.perplexity`, "
            "`prune.experts`, `prune.magnitude`, `prune.wanda`, `quantize.gptq` and `quantize.rtn`"
        ),
    )),
    (UNKNOWN, "quantize.rtn", (
        "R447",
        f"{HOLDS}; which linear modules its forward calls depends on values, so no plan can tell",
        "choose a model whose decoder layers are attention and feed-forward blocks",
    )),
])  # fmt: skip
def test_refusals(facts: CheckpointFacts, kind: str, expected: tuple[str, str, str]) -> None:
    found = architectures.refuse(kind, facts)
    assert found is not None
    assert (found.code, found.message, found.help) == expected


def test_layers_that_share_weights_are_measured_alone() -> None:
    name = "model.layers.{}.shared.up_proj.weight"
    ties = {name.format(3): name.format(1), "lm_head.weight": "model.embed_tokens.weight"}
    description = ModelDescription(layers="model.layers", layer_count=4, ties=ties)
    found = replace(DENSE, config=ModelConfig.of({"model_type": "zamba"}), description=description)
    assert architectures.refuse("evaluate.perplexity", found) is None
    refusal = architectures.refuse("quantize.rtn", found)
    assert refusal is not None
    assert (refusal.code, refusal.message, refusal.help) == (
        "R643",
        "`m` (`zamba`) can be measured, not changed: its decoder layers share `model.layers.1.shared.up_proj.weight`",
        "choose a model whose layers have weights of their own",
    )
    within = ModelDescription(layers="model.layers", ties={name.format(1): "model.layers.1.own.weight"})
    assert architectures.refuse("quantize.rtn", replace(found, description=within)) is None
