"""Modules whose inputs compressed-tensors rounds all together: OPT joins the windows of a batch before its fc1."""

from __future__ import annotations

from pathlib import Path

import torch

from runner.contracts.step_kind import Inputs
from runner.model.architecture.inspect import facts
from runner.plan.resolve_inputs import described
from runner.recipe.schema.load import defaults
from runner.steps.quantize import rtn
from tests.host import Host
from tests.model.checkpoint.formats.checkpoints import load
from tests.tiny import save, tokens


def test_what_transformers_rounds_together_is_a_warning(tmp_path: Path) -> None:
    source = save(tmp_path / "dense", "opt")
    inputs = Inputs(described(facts(source, "m"), source), {}, {}, machine=None)  # type: ignore[arg-type]
    (found,) = rtn.check(defaults("quantize.rtn", {"scheme": "w8a8"}), inputs)
    assert (found.code, found.severity, found.help) == (
        "R613", "warning", "serve the result with vLLM, or `ignore` these modules",
    )  # fmt: skip
    assert found.message == (
        "transformers will round the inputs of some modules with one scale for all tokens of a batch, vLLM and "
        "evaluations here with one for each token, since the model joins the windows of a batch:\n"
        "    `model.decoder.layers.*.fc1` (3 layers)\n"
        "    `model.decoder.layers.*.fc2` (3 layers)"
    )
    quiet = {"scheme": "w8a8", "ignore": ["*fc1", "*fc2"]}
    assert rtn.check(defaults("quantize.rtn", quiet), inputs) == []
    assert rtn.check(defaults("quantize.rtn", {"bits": 8}), inputs) == []


def test_transformers_does_round_them_together(tmp_path: Path) -> None:
    """What it computes for a window depends on the windows beside it, which ends the day that is mended."""
    host = Host(tmp_path / "made", "quantize.rtn", save(tmp_path / "dense", "opt"), scheme="w8a8")
    rtn.run(host)
    model, ids = load(host.out_dir), tokens()
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits[:1], model(ids[:1]).logits, atol=1e-3)
