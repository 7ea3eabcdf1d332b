"""Models of transformers without memory for their weights."""

from __future__ import annotations

from typing import Any


def build_empty(config: Any, **how: Any) -> Any:
    """Build the model of a configuration with every parameter and buffer on the meta device.

    What the model computes while it is built (rotary tables, drop-path rates) is computed for real, because its code
    may read it, and dropped afterwards.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with init_empty_weights(), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, **how)
    return model.to("meta")
