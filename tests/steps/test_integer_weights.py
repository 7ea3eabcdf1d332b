"""Steps that take integer weights alone refuse other schemes by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.model.architecture.inspect import facts
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.steps.integer_weights import refuse_others
from runner.steps.quantize import rtn
from tests.host import Host
from tests.model.packed import make
from tests.tiny import save


@pytest.mark.parametrize(
    ("scheme", "stored"),
    [
        ("fp8", "float8_e4m3, per channel; inputs dynamically to float8_e4m3, per token"),
        ("w8a8", "8-bit, symmetric, per channel; inputs dynamically to 8-bit, symmetric, per token"),
    ],
)
def test_other_schemes_are_named(scheme: str, stored: str, tmp_path: Path) -> None:
    host = Host(tmp_path / "made", "quantize.rtn", save(tmp_path / "dense"), scheme=scheme)
    rtn.run(host)
    (found,) = refuse_others(facts(host.out_dir, "made"), "recover.lora")
    assert (found.code, found.message, found.help) == (
        "R421",
        f"`recover.lora` takes integer weights with inputs as they are; the checkpoint stores {stored}",
        "put the step before the quantization, or use `bits` instead of `scheme`",
    )


def test_integers_and_dense_weights_are_taken(tmp_path: Path) -> None:
    scheme: Scheme = integers(4, 16, True)
    make(tmp_path / "packed", "pack-quantized", lambda _: scheme)
    assert refuse_others(facts(tmp_path / "packed", "packed"), "recover.lora") == []
    assert refuse_others(facts(save(tmp_path / "dense"), "dense"), "recover.lora") == []
