"""Experts whose converter turns whatever does not have the shape of the parameter: which way they are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import towers
from tests.model.layerwise.test_describe import described

HIDDEN = 32


def stored_turned(folder: Path, intermediate: int, turn: bool) -> dict[str, bool]:
    """Role → whether experts are said to be stored as [columns, rows]; `turn` stores them so."""
    model = towers.save(folder, "qwen3_vl_moe", text_config={"moe_intermediate_size": intermediate})
    file = model / "model.safetensors"
    if turn:
        tensors = load_file(file)
        turned = {name: t.mT.contiguous() if ".experts." in name else t for name, t in tensors.items()}
        save_file(turned, file, {"format": "pt"})
    return {each.role: each.transposed for mixture in described(model).linears.mixtures for each in mixture.matrices}


@pytest.mark.parametrize("turn", [False, True])
def test_the_stored_shape_says_it(turn: bool, tmp_path: Path) -> None:
    assert stored_turned(tmp_path, 24, turn) == dict.fromkeys(("expert_gate", "expert_up", "expert_down"), turn)


def test_square_matrices_are_as_they_are(tmp_path: Path) -> None:
    found = stored_turned(tmp_path, HIDDEN // 2, False)
    assert found == dict.fromkeys(("expert_gate", "expert_up", "expert_down"), False)
