"""Modules that vLLM multiplies as one: schemes that differ are refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.contracts.step_kind import Inputs
from runner.errors import Diagnostic
from runner.model.architecture.inspect import facts
from runner.recipe.schema.load import defaults
from runner.steps import layerwise
from tests.tiny import save

WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}
REMEDY = "give them one scheme, or `ignore` all of them"


def found(folder: Path, **params: Any) -> list[Diagnostic]:
    inputs = Inputs(facts(folder, "source"), {}, {}, machine=None)  # type: ignore[arg-type]
    return layerwise.check(defaults("quantize.rtn", params), inputs)


def test_fused_modules_with_different_schemes_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, num_hidden_layers=2)
    changes = {"q_proj": {"bits": 8}, "layers.1.mlp.up_proj": {"group_size": 16}}
    (split,) = found(folder, bits=4, group_size=32, overrides=changes)
    assert (split.code, split.severity, split.help, split.path) == ("R423", "error", REMEDY, ("overrides",))
    four, eight = "as 4-bit, symmetric, groups of 32", "as 8-bit, symmetric, groups of 32"
    assert split.message == (
        "vLLM multiplies modules as one that are to be stored in different ways:\n"
        f"    `model.layers.*.self_attn`: `k_proj`, `v_proj` {four} but `q_proj` {eight} (2 layers)\n"
        f"    `model.layers.1.mlp`: `gate_proj` {four} but `up_proj` as 4-bit, symmetric, groups of 16"
    )


def test_a_module_left_out_of_its_group_is_named(tmp_path: Path) -> None:
    (split,) = found(save(tmp_path, num_hidden_layers=1), scheme="w8a8", ignore=["lm_head", "gate_proj"])
    up = "as 8-bit, symmetric, per channel; inputs dynamically to 8-bit, symmetric, per token"
    assert (split.code, split.help, split.path) == ("R423", REMEDY, ("ignore",))
    assert split.message == (
        "vLLM multiplies modules as one that are to be stored in different ways:\n"
        f"    `model.layers.0.mlp`: `gate_proj` as it is but `up_proj` {up}"
    )


@pytest.mark.parametrize(
    "params",
    [
        {"bits": 4, "group_size": 32, "ignore": ["lm_head", "self_attn.*"]},
        {"bits": 4, "group_size": 32, "overrides": {"*.mlp.*": {"bits": 8}, "o_proj": {"group_size": 16}}},
        {"bits": 4, "group_size": 32, "overrides": {"q_proj": {"bits": 3}}},  # vLLM has no kernel for 3 bits anyway
    ],
)
def test_what_servers_can_fuse_or_do_not_load_is_no_complaint(params: dict[str, Any], tmp_path: Path) -> None:
    assert found(save(tmp_path, num_hidden_layers=1), **params) == []


def test_blocks_that_reach_into_the_next_matrix(tmp_path: Path) -> None:
    """Where fused matrices are joined, a block of 128 rows must not hold rows of two; the last may be short."""
    folder = save(tmp_path, num_hidden_layers=2, **WIDE | {"num_key_value_heads": 1})
    (short,) = found(folder, scheme="fp8_block")
    assert (short.code, short.help, short.path) == ("R423", "use `scheme: fp8`", ("scheme",))
    assert short.message == (
        "vLLM cannot join modules whose blocks would reach into the next one:\n"
        "    `model.layers.*.self_attn`: `k_proj` has 32 rows, which blocks of 128 do not divide (2 layers)"
    )
    assert found(folder, scheme="fp8") == []


def test_inputs_of_blocks_that_do_not_divide(tmp_path: Path) -> None:
    (uneven,) = found(save(tmp_path, num_hidden_layers=1, **WIDE | {"intermediate_size": 200}), scheme="fp8_block")
    assert uneven.code == "R411"
    assert uneven.message == (
        "1 module cannot be stored as asked; use `scheme: fp8` or add it to `ignore`:\n"
        "    `model.layers.0.mlp.down_proj` has 200 columns, which groups of 128 inputs do not divide"
    )
