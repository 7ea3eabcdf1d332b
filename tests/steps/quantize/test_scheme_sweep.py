"""Every scheme × format × solver that the schemas admit: refused by the plan, or computed alike by transformers.

Random models this small are easily hurt, which makes small mistakes large. The layouts of GPTQ, AutoAWQ and ModelOpt,
which transformers cannot load by itself, are compared with those of compressed-tensors in test_schemes.py; that of
bitsandbytes, which needs its package, with the library there and in test_bitsandbytes.py.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import Diagnostic
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.recipe.schema.load import defaults
from runner.steps.quantize import gptq, rtn, signround
from tests.host import Host
from tests.model.checkpoint.formats.checkpoints import load_as_computed
from tests.steps.quantize.test_schemes import IDS, SIZES, SMALL_FLOATS, inputs, measured
from tests.tiny import save

KINDS: Mapping[str, Any] = {"quantize.rtn": rtn, "quantize.gptq": gptq, "quantize.signround": signround}
INTEGERS = ("awq", "gptq", "modelopt")
FOREIGN = (*INTEGERS, "bitsandbytes")
Params = Mapping[str, Any]


def source(folder: Path, name: str, dtype: torch.dtype) -> Path:
    """A model whose modules blocks of 128 × 128 and groups of 128 fit."""
    width = {} if name == "llama" else {"head_dim": 32}
    return save(folder, name, dtype, **SIZES | {"num_key_value_heads": 4} | width)


def completed(kind: str, params: Params) -> dict[str, Any]:
    """Params with defaults, and calibration data where the kind wants some."""
    method = KINDS[kind].method
    found = defaults(kind, params)
    wants = method.wants(found) != "none" or method.block is not None
    return defaults(kind, {**params, "data": "calibration"}) if wants else found


def refusals(kind: str, folder: Path, params: Params) -> list[Diagnostic]:
    found: list[Diagnostic] = KINDS[kind].check(completed(kind, params), inputs(folder))
    return [each for each in found if each.severity == "error"]


def reference(folder: Path) -> float:
    """The perplexity by transformers, which multiplies in float32 where the stream does."""
    with torch.no_grad():
        logits = load_as_computed(folder, IDS)(IDS).logits.float()
    return math.exp(float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())))


def wrong(kind: str, folder: Path, params: Params, scratch: Path, dense: float) -> str:
    """What is wrong with what a kind makes of a model, or with why it is refused; "" where nothing is."""
    if found := refusals(kind, folder, params):
        return "; ".join(filter(None, (_misleading(kind, folder, params, each) for each in found)))
    try:
        ids = IDS if "data" in completed(kind, params) else None
        host = Host(scratch, kind, folder, ids, **params)
        KINDS[kind].run(host)
        ours = measured(host.out_dir, scratch / "measured")
        if completed(kind, params)["format"] in FOREIGN:
            return "" if math.isfinite(ours) else "not finite"
        theirs = reference(host.out_dir)
        if not abs(ours / theirs - 1) < 2e-3:
            return f"{ours:.4f}, transformers has {theirs:.4f}"
        return "" if abs(ours - dense) > 1e-7 else "unchanged"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _misleading(kind: str, folder: Path, params: Params, refusal: Diagnostic) -> str:
    """What is wrong with a refusal: it does not say what to do, or the format that it names is refused as well."""
    if not (refusal.message and refusal.help):
        return f"{refusal.code} has no remedy"
    for name in re.findall(r"`format: ([\w-]+)`", refusal.help if refusal.code == "R411" else ""):
        if any(each.code == "R411" for each in refusals(kind, folder, {**params, "format": name})):
            return f"{refusal.code} names `format: {name}`, which is refused too"
    return ""


def by_name(every_format: bool) -> Iterator[dict[str, Any]]:
    for scheme in PRESETS:
        for format in formats.all_formats() if every_format else ():
            yield {"scheme": scheme, "format": format.NAME}
        for changed in (
            {"symmetric": False}, {"group_size": 32}, {"group_size": "channel"}, {"grid": "mse"}, {"grid": "minmax"},
            {"activations": "static"}, {"activations": "static", "symmetric": False},
        ):  # fmt: skip
            yield {"scheme": scheme, **changed}


def by_bits(kind: str) -> Iterator[dict[str, Any]]:
    rounds = kind == "quantize.rtn"
    for bits in range(2, 9) if rounds else (2, 3, 4, 8):
        for group_size in (16, 128, "channel", *(("tensor",) if rounds else ())):
            for symmetric in (True, False):
                for format in ("pack-quantized", "int-quantized", "float-quantized", *INTEGERS):
                    yield {"bits": bits, "group_size": group_size, "symmetric": symmetric, "format": format}


def swept(kind: str, name: str, dtype: torch.dtype, cases: Iterator[dict[str, Any]], tmp_path: Path) -> list[str]:
    folder = source(tmp_path / "dense", name, dtype)
    dense = measured(folder, tmp_path / "scratch")
    found = []
    for params in cases:
        own = {**params, "steps": 2} if kind == "quantize.signround" else params
        if problem := wrong(kind, folder, own, tmp_path / "made", dense):
            found.append(f"{params}: {problem}")
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_schemes_by_name(name: str, kind: str, tmp_path: Path) -> None:
    cases = list(by_name(True))
    small = [params for params in cases if params["scheme"].startswith(SMALL_FLOATS)]
    others = [params for params in cases if params not in small]
    assert swept(kind, name, torch.bfloat16, iter(small), tmp_path / "small") == []
    assert swept(kind, name, torch.float32, iter(others), tmp_path / "others") == []


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_schemes_by_name_in_other_types(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    assert swept(kind, "llama", dtype, by_name(False), tmp_path) == []


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_schemes_by_bits(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    assert swept(kind, "llama", dtype, by_bits(kind), tmp_path) == []


@pytest.mark.nightly
@pytest.mark.parametrize("inner", sorted(PRESETS))
def test_pairs_of_schemes(inner: str, tmp_path: Path) -> None:
    cases = ({"scheme": outer, "overrides": {"mlp.down_proj": {"scheme": inner}}} for outer in PRESETS)
    assert swept("quantize.rtn", "llama", torch.bfloat16, cases, tmp_path) == []


def test_some_of_them(tmp_path: Path) -> None:
    """One of each kind of layout that no other test has; every refusal names a format that holds the scheme."""
    folder = source(tmp_path / "dense", "llama", torch.float16)
    dense = measured(folder, tmp_path / "scratch")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("quantize.rtn", {"bits": 5, "group_size": 16, "symmetric": False}),
        ("quantize.rtn", {"bits": 7, "group_size": "tensor"}),
        ("quantize.rtn", {"scheme": "w8a8", "symmetric": False}),
        ("quantize.rtn", {"scheme": "w8a8", "format": "pack-quantized"}),
        ("quantize.gptq", {"scheme": "w4afp8", "group_size": "channel"}),
        ("quantize.signround", {"scheme": "fp8", "activations": "static", "steps": 2}),
    ]
    for kind, params in cases:
        assert refusals(kind, folder, params) == []
        assert wrong(kind, folder, params, tmp_path / "made", dense) == ""
    for kind in KINDS:
        refused = [params for params in (*by_name(True), *by_bits(kind)) if refusals(kind, folder, params)]
        assert refused
        problems = (wrong(kind, folder, params, tmp_path / "made", dense) for params in refused)
        assert [each for each in problems if each] == []
