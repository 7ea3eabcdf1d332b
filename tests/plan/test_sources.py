"""Sources that are no dense checkpoint: weights in low precision, and GGUF files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.errors import RecipeError
from runner.model.checkpoint import adapter_config, adapter_writer
from runner.model.source import gguf
from runner.plan import preview, resolve
from runner.plan.types import UNPACKED, Plan
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host
from tests.model.checkpoint.unpacking import low_precision
from tests.plan.recipes import HEAD, FakeStore, recipe

DEMO = Path(__file__).parents[2] / "runner" / "demo" / "models" / "tiny-llama"
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "vocab_size": 4096, "head_dim": 32, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def model(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    tiny.save(folder, "llama", dtype, **SIZES)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / file, folder)
    return folder


def planned(source: Path, steps: str) -> Plan:
    return resolve.resolve(recipe(steps, HEAD.replace("demo:tiny-llama", str(source))), device="cpu")


def refused(source: Path, steps: str) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(source, steps)
    return caught.value.render()


def perplexity(folder: Path, work: Path) -> Any:
    host = Host(work, "evaluate.perplexity", folder, tiny.tokens(4, 24, 4096))
    return find("evaluate.perplexity").run(host).metrics["perplexity"]


STEPS = """\
steps:
  - evaluate.perplexity: {data: evaluation}
  - prune.magnitude: {sparsity: 0.5, ignore: ["*.mlp.*"]}
"""


def test_a_source_that_is_only_read_is_planned_with_as_dense(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = model(tmp_path / "model")
    low_precision.make(folder, "fp8")
    steps = STEPS
    plan = planned(folder, steps)
    assert (plan.model.stored, plan.model.path) == ("fp8", folder)
    assert [dict(step.inputs) for step in plan.steps] == [{"checkpoint": "model"}] * 2
    account = plan.steps[1].account
    assert account is not None
    assert account.reasons() == {
        "changed": {"its values change": 12, "stored as fp8 in the model, dense in the result": 9},
        "kept": {"the step does not concern it": 9},
    }
    notes = preview.preview(plan, FakeStore(tmp_path)).notes
    at = tmp_path / "cache" / "runner" / "sources"
    assert f"`{folder}` is stored as fp8; it is unpacked once, to 0.00 GB of bfloat16 in {at}" in notes
    here = resolve.with_model(plan)
    made = here.model.path
    assert made is not None
    assert made.parent == at
    unused = "the data entry `calibration` is not used (line 6)"
    assert preview.preview(here, FakeStore(tmp_path)).notes == (unused,)
    assert planned(folder, steps).key == plan.key == here.key
    assert resolve.with_model(here).model.path == made
    reference: Any = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    ids = tiny.tokens(4, 24, 4096)
    loss = reference(input_ids=ids, labels=ids).loss
    assert perplexity(made, tmp_path / "e") == pytest.approx(float(loss.detach().exp()), rel=5e-3)


def test_the_adapter_of_a_source_is_kept_with_its_dense_weights(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    low_precision.make(folder, "fp8")
    bare = resolve.with_model(planned(folder, "steps:\n  - evaluate.perplexity: {data: evaluation}\n")).model
    name = "model.layers.1.self_attn.q_proj"
    a, b = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0)).unbind()
    b = b.new_ones(128, 4)
    config = adapter_config.config(4, 8.0, [name])
    adapter_writer.write(folder, config, {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})
    plan = planned(folder, "steps:\n  - evaluate.perplexity: {data: evaluation}\n")
    assert plan.model.facts.adapter == config
    adapted = resolve.with_model(plan).model
    assert bare.path is not None
    assert adapted.path is not None
    assert adapted.path != bare.path
    assert perplexity(adapted.path, tmp_path / "a") > 1.01 * perplexity(bare.path, tmp_path / "b")
    message = refused(folder, STEPS)
    assert "error[R471]: the checkpoint carries an adapter in `adapter/`, which fits its present weights" in message


def test_packed_weights_are_unpacked_for_the_steps_that_need_it(tmp_path: Path) -> None:
    """What others packed: as it is where it can be measured so, dense where it is changed."""
    folder = model(tmp_path / "model")
    host = Host(tmp_path / "rtn", "quantize.rtn", folder, bits=4, group_size=32)
    find("quantize.rtn").run(host)
    steps = """\
    steps:
      - evaluate.perplexity: {data: evaluation}
      - quantize.rtn: {bits: 8, group_size: 32}
      - evaluate.perplexity: {data: evaluation}
    """
    message = refused(host.out_dir, steps)
    assert "error[R449]: `quantize.rtn` takes an unquantized checkpoint" in message
    (host.out_dir / "compression.json").unlink()
    plan = planned(host.out_dir, steps)
    assert [dict(step.inputs) for step in plan.steps] == [
        {"checkpoint": "model"}, {"checkpoint": "model/unpacked"}, {"checkpoint": "rtn"},
    ]  # fmt: skip
    assert (plan.model.stored, plan.models[UNPACKED].stored) == ("", "compressed-tensors")
    here = resolve.with_model(plan)
    made = here.models[UNPACKED].path
    assert here.model.path == host.out_dir
    assert made is not None
    packed = perplexity(host.out_dir, tmp_path / "a")
    assert perplexity(made, tmp_path / "b") == pytest.approx(packed, rel=1e-6)
    only = planned(host.out_dir, "steps:\n  - evaluate.perplexity: {data: evaluation}\n")
    assert only.models == {}


@pytest.mark.nightly
def test_a_gguf_file_is_a_source(tmp_path: Path) -> None:
    """The checkpoint that is made of it has the numbers that the GGUF reader of transformers gives."""
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    folder = model(tmp_path / "model", torch.float32)
    host = Host(tmp_path / "gguf", "build.gguf", folder)
    find("build.gguf").run(host)
    [file] = host.out_dir.glob("*.gguf")
    steps = """\
    steps:
      - evaluate.perplexity: {data: evaluation}
      - quantize.rtn: {bits: 4, group_size: 128}
    """
    message = refused(file, steps)
    assert "group_size 128" in message
    assert "error[R411]" in message
    plan = planned(file, steps.replace("128", "32"))
    made = plan.model.path
    assert made is not None
    assert made.parent == tmp_path / "cache" / "runner" / "sources"
    assert (plan.model.source, plan.model.stored) == (str(file), "")
    reference: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    found = load_file(made / "model.safetensors")
    wanted = reference.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(tensor, wanted[name].to(tensor.dtype)) for name, tensor in found.items())
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert planned(file, steps.replace("128", "32")).key == plan.key
    assert (made / "model.safetensors").stat().st_mtime_ns == before


def test_gguf_files_that_cannot_be_read(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    steps = "steps:\n  - evaluate.perplexity: {data: evaluation}\n"
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF")
    message = refused(torn, steps)
    assert f"error[R641]: `{torn}` is not a sound GGUF file: " in message
    assert "help: download it again" in message
    strange = tmp_path / "strange.gguf"
    writer = package.GGUFWriter(strange, "rwkv7")
    writer.add_tensor("token_embd.weight", torch.zeros(4, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refused(strange, steps)
    assert (
        f"error[R641]: `{strange}` holds a model (`rwkv7`) that transformers cannot read: GGUF model with architecture "
        "rwkv7 is not supported yet."
    ) in message
    assert "help: start from the checkpoint of transformers that the file was made from" in message
    assert not [*(tmp_path / "cache" / "runner" / "sources").iterdir()]


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    assert (f"error[R430]: there is no file `{tmp_path}/none.gguf`\n") in refused(
        tmp_path / "none.gguf", "steps:\n  - evaluate.perplexity: {data: evaluation}\n"
    )
    assert gguf.is_gguf(Path("A.GGUF"))
