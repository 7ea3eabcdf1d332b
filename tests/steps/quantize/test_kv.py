"""Scales for caches of keys and values: transformers with compressed-tensors computes the same, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from runner.contracts.account import COPIED
from runner.errors import Interrupted, RecipeError
from runner.model.architecture.inspect import facts as read_facts
from runner.plan.resolve import resolve
from runner.recipe.load import loads
from runner.runtime.transformers import Transformers
from runner.steps.evaluate import perplexity
from runner.steps.quantize import kv, rtn
from tests import tiny
from tests.host import Host

TINY_LLAMA = Path(__file__).parents[3] / "runner" / "demo" / "models" / "tiny-llama"
IDS = tiny.tokens(4, 24)
_DENSE = "start from the model as it was before it was quantized"


def apply(folder: Path, model: Path, **params: Any) -> Path:
    host = Host(folder, "quantize.kv", model, None if params.pop("ones", False) else IDS, **params)
    kv.run(host)
    return host.out_dir


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("llama", {}),
        ("qwen3", {"per": "head"}),
        ("gemma2", {"scheme": "int8"}),
        ("phi3", {"per": "head", "scheme": "int8"}),
        ("mistral", {"per": "head", "ones": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_evaluations_round_as_transformers_does(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", name, torch.bfloat16)
    folder = apply(tmp_path, model, **params)
    theirs, mine, plain = reference(folder), *(Transformers(each, dtype=torch.float32) for each in (folder, model))
    ids = tiny.tokens(2, 20)
    logits = mine.prefill(ids.numpy())
    assert torch.equal(torch.from_numpy(logits), theirs(ids).logits)
    assert abs(logits - plain.prefill(ids.numpy())).max() > 0.01
    # Token by token, from a cache.
    generated = theirs.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    tokens = mine.prefill(ids.numpy(), last=True).argmax(-1)
    for _ in range(3):
        tokens = torch.from_numpy(tokens) if not isinstance(tokens, torch.Tensor) else tokens
        step = mine.decode(tokens[:, -1:].numpy()).argmax(-1)
        tokens = torch.cat([tokens, torch.from_numpy(step)], 1)
    assert torch.equal(tokens, generated[:, ids.shape[1] :])


def test_perplexity_on_top_of_quantized_weights_is_that_of_transformers(tmp_path: Path) -> None:
    dense = tiny.save(tmp_path / "model")
    weights = Host(tmp_path / "weights", "quantize.rtn", dense, bits=4, group_size=32)
    rtn.run(weights)
    folder = apply(tmp_path / "kv", weights.out_dir)
    ids = tiny.tokens(3, 16)
    measured = perplexity.run(Host(tmp_path / "measured", "evaluate.perplexity", folder, ids)).metrics["loss"]
    logits = reference(folder)(ids).logits[:, :-1]
    assert measured == pytest.approx(float(cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())), rel=1e-5)
    before = perplexity.run(Host(tmp_path / "before", "evaluate.perplexity", weights.out_dir, ids)).metrics["loss"]
    assert abs(measured - before) > 1e-4
    assert (folder / "compression.json").read_bytes() == (weights.out_dir / "compression.json").read_bytes()
    text = (folder / "README.md").read_text()
    assert "- Keys and values of its cache, rounded while it is served: float8_e4m3, per tensor.\n" in text
    assert "Its cache is in fp8 with `--kv-cache-dtype fp8`.\n" in text


@pytest.mark.parametrize(("scheme", "top"), [("fp8", 448.0), ("int8", 127.5)])
def test_a_scale_reaches_the_largest_key_and_value(scheme: str, top: float, tmp_path: Path) -> None:
    """The ranges are those of transformers' own cache, which holds what its attention put there."""
    model = tiny.save(tmp_path / "model")
    folder = apply(tmp_path, model, scheme=scheme, per="head")
    cache = reference(model)(IDS, use_cache=True).past_key_values
    stored = load_file(folder / "model.safetensors")
    for index in range(3):
        for key, states in (("k", cache.layers[index].keys), ("v", cache.layers[index].values)):
            expected = states.double().abs().amax((0, 2, 3)) / top
            scale = stored[f"model.layers.{index}.self_attn.{key}_scale"]
            assert (scale.dtype, scale.shape) == (torch.float32, (2, 1, 1))
            torch.testing.assert_close(scale.flatten().double(), expected, rtol=1e-5, atol=0)


def test_weights_keep_their_bytes_and_the_account_names_the_scales(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", "llama", torch.bfloat16)
    host = Host(tmp_path, "quantize.kv", model)
    result = kv.run(host)
    before, after = load_file(model / "model.safetensors"), load_file(host.out_dir / "model.safetensors")
    scales = {f"model.layers.{i}.self_attn.{key}_scale" for i in range(3) for key in "kv"}
    assert set(after) == set(before) | scales
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(after[name], torch.ones(1, dtype=torch.bfloat16)) for name in scales)
    assert result.account is not None
    assert {fate.fate for fate in result.account.fates.values()} == {COPIED}
    assert result.account.added == dict.fromkeys(sorted(scales), "scale of the cache")
    assert json.loads((host.out_dir / "config.json").read_text())["quantization_config"] == {
        "quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed",
        "config_groups": {}, "ignore": [], "global_compression_ratio": None,
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False,
                            "group_size": None},
    }  # fmt: skip


def test_an_interrupted_calibration_goes_on(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    expected = (apply(tmp_path / "whole", model) / "model.safetensors").read_bytes()
    host = Host(tmp_path / "stopped", "quantize.kv", model, IDS, stop_after=2)
    with pytest.raises(Interrupted):
        kv.run(host)
    host.stop_after = None
    kv.run(host)
    assert host.layers() == [1, 2, 3]
    assert (host.out_dir / "model.safetensors").read_bytes() == expected


def planned(model: Path, steps: str) -> Any:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_LLAMA / name, model / name)
    return resolve(loads(f"version: 1\nname: cached\nmodel: {{source: {model}}}\nsteps:\n{steps}", "cached.yaml"))


def complaint(model: Path, steps: str) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(model, steps)
    (found,) = caught.value.diagnostics
    return f"{found.code}: {found.message}; {found.help}"


def test_the_plan_accounts_for_the_scales(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", vocab_size=4096)
    step = planned(model, "  - quantize.kv: {per: head}\n").steps[0]
    document = step.account.document()
    assert document["reasons"]["added"] == {"scale of the cache": 6}
    assert document["roles"]["other"]["added"] == {"tensors": 6, "bytes": 48}
    assert step.account.written["model.layers.2.self_attn.v_scale"] == (2, 1, 1)


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("llama", "  - quantize.kv: {scheme: int8}\n",
         ("R654: `scheme: int8` without `data` would round every key and value to a whole number; "
         "name a calibration text, or use `scheme: fp8`")),
        ("gpt2", "  - quantize.kv: {}\n",
         ("R651: readers find no cache in `MODEL` (`gpt2`): no attention module has a `k_proj`, `v_proj` or "
         "`qkv_proj`; leave the cache as it is")),
        ("opt", "  - quantize.kv: {}\n",
         ("R651: readers find the heads of a cache in `num_key_value_heads`, which `MODEL` (`opt`) does not set; "
         "leave the cache as it is")),
        ("llama", "  - quantize.kv: {}\n  - quantize.kv: {}\n    id: again\n",
         "R653: `MODEL` has scales for its cache already; leave one of the two out"),
        ("llama", "  - quantize.rtn: {bits: 4, group_size: 32, format: gptq}\n  - quantize.kv: {}\n",
         ("R653: the configuration of `gptq` checkpoints cannot say how a cache is rounded; "
         "quantize with `format: pack-quantized`, int- or float-quantized")),
        ("llama", "  - quantize.kv: {}\n  - build.onnx: {}\n",
         ("R652: `build.onnx` takes no checkpoint with scales for its cache of keys and values; "
         "put `quantize.kv` after it")),
    ],
    ids=["ones", "gpt2", "opt", "twice", "gptq", "engine"],
)  # fmt: skip
def test_what_cannot_be(name: str, steps: str, expected: str, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", name, vocab_size=4096)
    assert complaint(model, steps) == expected.replace("MODEL", str(model))


def edited(model: Path, change: Any) -> Path:
    """Change the tensors and the `kv_cache_scheme` of a checkpoint with a rounded cache."""
    tensors, path = load_file(model / "model.safetensors"), model / "config.json"
    config = json.loads(path.read_text())
    change(tensors, config["quantization_config"])
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    path.write_text(json.dumps(config))
    return model


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors, config: config.pop("kv_cache_scheme"),
         "R409: `MODEL`: checkpoints quantized with `compressed-tensors` cannot be read; a dense checkpoint is needed"),
        (lambda tensors, config: config["kv_cache_scheme"].update(dynamic=True),
         ("R409: `MODEL`: its `kv_cache_scheme` rounds keys and values in a way that cannot be computed; symmetric "
         "8-bit numbers with fixed scales for a tensor or a head can")),
        (lambda tensors, config: [tensors.pop(n) for n in list(tensors) if n.endswith("_scale")],
         "R409: config.json of `MODEL` rounds its cache of keys and values, and no tensor has the scales"),
        (lambda tensors, config: tensors.pop("model.layers.1.self_attn.v_scale"),
         "R406: tensor `model.layers.1.self_attn.v_scale` is missing from `MODEL`"),
        (lambda tensors, config: tensors.update({"model.layers.1.self_attn.v_scale": torch.ones(2, 1, 1)}),
         "R407: `model.layers.1.self_attn.v_scale` is [2, 1, 1] in model.safetensors, its scheme wants [1]"),
    ],
    ids=["no-scheme", "dynamic", "no-scales", "one-missing", "shape"],
)  # fmt: skip
def test_checkpoints_whose_cache_cannot_be_rounded(change: Any, expected: str, tmp_path: Path) -> None:
    model = edited(apply(tmp_path, tiny.save(tmp_path / "model", vocab_size=4096), ones=True), change)
    found = complaint(model, "  - quantize.rtn: {bits: 4, group_size: 32}\n")
    damaged = expected.startswith(("R406", "R407"))
    help = "the checkpoint is incomplete or was edited; download it again" if damaged else _DENSE
    assert found == f"{expected}; {help}".replace("MODEL", str(model))


def test_scales_without_a_scheme(tmp_path: Path) -> None:
    def change(tensors: Any, config: dict[str, Any]) -> None:
        config.update(kv_cache_scheme=None)

    weights = Host(tmp_path / "weights", "quantize.rtn", tiny.save(tmp_path / "model"), bits=4, group_size=32)
    rtn.run(weights)
    model = edited(apply(tmp_path / "kv", weights.out_dir), change)
    with pytest.raises(RecipeError) as caught:
        read_facts(model, "made")
    assert caught.value.diagnostics[0].message == (
        "`model.layers.0.self_attn.k_scale` of `made` scales its cache of keys and values, and nothing in config.json "
        "says how"
    )
