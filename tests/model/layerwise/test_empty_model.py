"""A model built without memory: the same parameters, all of them on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from runner.model.layerwise.empty_model import build_empty

SIZES: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2
}  # fmt: skip
CONFIG = LlamaConfig(**SIZES)


def test_parameters_and_buffers_have_shapes_and_no_memory() -> None:
    empty = build_empty(CONFIG, dtype=torch.bfloat16)
    real = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
    for of in ("named_parameters", "named_buffers"):
        found = [(name, tensor.shape, tensor.dtype) for name, tensor in getattr(empty, of)()]
        assert found == [(name, tensor.shape, tensor.dtype) for name, tensor in getattr(real, of)()]
        assert {tensor.device.type for _, tensor in getattr(empty, of)()} == {"meta"}


def test_a_model_may_read_what_it_computes_while_it_is_built() -> None:
    """Drop-path rates of models that bring their own code are read with `.item()`, which meta tensors refuse."""

    class RatesConfig(LlamaConfig):
        model_type = "llama-with-rates"

    class WithRates(LlamaForCausalLM):
        config_class = RatesConfig

        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]

    AutoModelForCausalLM.register(RatesConfig, WithRates)
    model = build_empty(RatesConfig(**SIZES))
    assert model.rates == [0.0, 0.5, 1.0]
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
