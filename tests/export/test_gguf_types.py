"""Types of tensors, beside those that llama-quantize of llama.cpp 0.5.0 chose for models of 16 layers."""

from __future__ import annotations

import pytest

from runner.export.gguf_types import MIXTURES, Model, fitting, head_type, layer_type, nbytes

# Name, query heads per head of keys, calibrated → of each layer the type of values and of the way down (its digit, q
# for iq4_nl), and that of the attention's output.
CHOSEN = {
    ("q2_k", 4, False): ("4" * 16, "3" * 16, "3"),
    ("q2_k", 2, False): ("3" * 16, "3" * 16, "3"),
    ("q2_k_s", 4, True): ("4" * 16, "44" + "2" * 14, "2"),
    ("q2_k_s", 2, True): ("2" * 16, "44" + "2" * 14, "2"),
    ("q3_k_s", 4, False): ("3" * 16, "3" * 16, "3"),
    ("q3_k_m", 4, False): ("55" + "4" * 14, "5" + "4" * 15, "4"),
    ("q3_k_l", 4, False): ("5" * 16, "5" * 16, "5"),
    ("q4_k_s", 4, False): ("5555" + "4" * 12, "55" + "4" * 14, "4"),
    ("q4_k_m", 2, False): ("6644644644644666", "6644644644644666", "4"),
    ("q5_k_s", 2, False): ("5" * 16, "5" * 16, "5"),
    ("q5_k_m", 2, True): ("6655655655655666", "6655655655655666", "5"),
    ("q6_k", 2, False): ("6" * 16, "6" * 16, "6"),
    ("iq4_nl", 4, False): ("5" * 16, "55" + "q" * 14, "q"),
    ("iq4_nl", 2, True): ("q" * 16, "q" * 16, "q"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CHOSEN), ids=str)
def test_the_mixtures_of_llama_cpp(case: tuple[str, int, bool]) -> None:
    dense, grouped, calibrated = case
    model = Model(16, grouped, 0, calibrated)
    rows = [[layer_type(dense, tensor, layer, model)[1] for layer in range(16)]
            for tensor in ("attn_v", "ffn_down", "attn_output")]  # fmt: skip
    values, down, output = CHOSEN[case]
    assert ("".join(rows[0]), "".join(rows[1]), "".join(rows[2])) == (values, down, output * 16)
    base = MIXTURES.get(dense, dense)
    others = ("attn_q", "attn_k", "ffn_up", "ffn_gate")
    assert {layer_type(dense, tensor, 3, model) for tensor in others} == {base}
    assert head_type(dense) == "q6_k"


def test_types_of_one_kind_but_for_the_first_layers_of_calibrated_ones() -> None:
    plain, calibrated = Model(16, 2), Model(16, 2, 0, calibrated=True)
    for dense, other in (("q4_0", "q4_1"), ("q5_0", "q5_1")):
        assert {layer_type(dense, "ffn_down", layer, plain) for layer in range(16)} == {dense}
        down = [layer_type(dense, "ffn_down", layer, calibrated) for layer in range(16)]
        assert down == [other] * 2 + [dense] * 14
    for dense in ("f16", "bf16", "f32", "q8_0"):
        assert {layer_type(dense, tensor, 0, plain) for tensor in ("attn_v", "ffn_down")} == {dense}
        assert head_type(dense) == dense


def test_mixtures_of_eight_experts_and_fused_matrices() -> None:
    eight = Model(32, 4, experts=8)
    assert [layer_type("q4_k_m", tensor, 9, eight) for tensor in ("attn_v", "attn_k", "attn_output")] == [
        "q8_0", "q8_0", "q5_k"
    ]  # fmt: skip
    assert layer_type("q4_k_m", "ffn_down_exps", 0, eight) == "q6_k"
    assert [layer_type(dense, "attn_qkv", 0, Model(32, 1)) for dense in ("q4_k_m", "q5_k_m", "q3_k_m", "q4_k_s")] == [
        "q5_k", "q6_k", "q4_k", "q4_k"
    ]  # fmt: skip


def test_columns_that_blocks_do_not_divide() -> None:
    assert {type: fitting(type, 576) for type in ("q4_k", "q5_k", "q6_k", "q3_k", "q2_k", "q4_0")} == {
        "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "q3_k": "q4_0", "q2_k": "q4_0", "q4_0": "q4_0"
    }  # fmt: skip
    assert [fitting(type, 48) for type in ("q4_k", "q8_0", "bf16")] == ["f16", "f16", "bf16"]
    assert nbytes("q4_k", 512) == 288
