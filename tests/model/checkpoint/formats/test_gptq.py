"""`gptq` word by word, and against transformers with gptqmodel where that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.model.checkpoint.formats import gptq
from runner.model.checkpoint.quantization.bit_packing import unpack_rows
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.model.checkpoint.reader import CheckpointReader
from tests.model.checkpoint.formats.checkpoints import (
    ALL,
    assert_read_back,
    load,
    mixed,
    naive_words,
    random_weight,
)
from tests.model.packed import GPTQ, logits, make

"""On-disk formats against their readers: compressed-tensors, transformers, and gptqmodel where it is installed."""

has_gptqmodel = importlib.util.find_spec("gptqmodel") is not None
needs_gptqmodel = pytest.mark.skipif(not has_gptqmodel, reason="gptqmodel and optimum are not installed")


GPTQ_SCHEMES = [integers(bits, 32, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


@pytest.mark.parametrize(
    "scheme", [*GPTQ_SCHEMES, integers(4, "channel", False), integers(8, "tensor", False)], ids=Scheme.describe
)
def test_gptq_layout(scheme: Scheme) -> None:
    """Word by word against the description of the format."""
    weight = random_weight(scheme, rows=32, columns=64, dtype=torch.float16)
    config = gptq.config({"m": scheme})
    version = 1 if scheme.symmetric else 2
    assert config["checkpoint_format"] == ("gptq" if version == 1 else "gptq_v2")
    stored = gptq.pack("m", weight, config)
    assert stored["m.qweight"].T.tolist() == [naive_words(row, scheme.bits) for row in weight.integers.tolist()]
    zero = weight.zero_point if weight.zero_point is not None else torch.full_like(weight.scale, 2 ** (scheme.bits - 1))
    zeros = (zero.expand(32, -1).T.int() - (1 if version == 1 else 0)).tolist()
    assert stored["m.qzeros"].tolist() == [naive_words(row, scheme.bits) for row in zeros]
    assert torch.equal(stored["m.scales"], weight.scale.expand(32, -1).T)
    assert stored["m.g_idx"].tolist() == [column // weight.group_size for column in range(64)]
    if scheme.strategy != "tensor":
        back = gptq.unpack("m", scheme, config, stored.__getitem__)
        assert torch.equal(back.codes, weight.codes)
        assert back.groups is None
        assert back.numbers == scheme.weights


def test_symmetric_zero_points_of_four_bits_are_the_known_word() -> None:
    stored = gptq.pack("m", random_weight(integers(4, 32, True), rows=32), {})
    assert set(stored["m.qzeros"].flatten().tolist()) == {0x77777777}


def test_asymmetric_weights_are_not_stored_as_version_1() -> None:
    with pytest.raises(ValueError, match="asymmetric weights are stored in version 2"):
        gptq.pack("m", random_weight(integers(4, 32, False), rows=32), {"checkpoint_format": "gptq"})


@pytest.mark.parametrize("scheme", GPTQ_SCHEMES, ids=Scheme.describe)
def test_our_reader_reads_gptq(scheme: Scheme, tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", GPTQ, lambda _: scheme, dtype=torch.float16)
    assert_read_back(tmp_path / "packed", dense)


def test_our_reader_follows_dynamic_schemes_and_the_order_of_groups(tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", GPTQ, mixed, dtype=torch.float16)
    assert_read_back(tmp_path / "packed", dense)
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj"
    tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"].flip(0)
    save_file(tensors, tmp_path / "packed" / "model.safetensors")
    with CheckpointReader(tmp_path / "packed") as reader:
        flipped = reader.read_module_weight(name)
        scale = tensors[f"{name}.scales"].T.repeat_interleave(32, 1).flip(1)
        codes = unpack_rows(tensors[f"{name}.qweight"].T, 4, 64).to(torch.float16)
        assert torch.equal(flipped, scale * (codes - 8))


@needs_gptqmodel
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        *((scheme, torch.float16) for scheme in GPTQ_SCHEMES),
        (integers(4, 32, True), torch.bfloat16), (integers(4, 32, False), torch.float32),
        (integers(3, "channel", True), torch.bfloat16), (integers(8, "tensor", False), torch.float32),
    ],
)  # fmt: skip
def test_transformers_with_gptqmodel_loads_what_we_pack(scheme: Scheme, dtype: torch.dtype, tmp_path: Path) -> None:
    quiet_gptqmodel()
    dense = make(tmp_path / "packed", GPTQ, lambda _: scheme, dtype=dtype)
    close(logits(load(tmp_path / "packed", device_map="cpu")), logits(dense), dtype)


@needs_gptqmodel
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("left", ["down_proj", "layers.0.mlp.down_proj"])
def test_transformers_with_gptqmodel_leaves_ignored_modules_alone(left: str, tmp_path: Path) -> None:
    quiet_gptqmodel()
    dense = make(tmp_path / "packed", GPTQ, lambda module: None if module.endswith(left) else integers(4, 32, True))
    close(logits(load(tmp_path / "packed", device_map="cpu")), logits(dense), torch.bfloat16)


def quiet_gptqmodel() -> None:
    """Bound its threads, and run its kernels as they are: compiling them takes longer than all tests."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    torch._dynamo.config.disable = True


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal weights, but the kernel multiplies in another order."""
    assert (found - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_gptq_config() -> None:
    schemes = dict.fromkeys(ALL[1:], integers(4, 128, True))
    schemes |= {m: integers(8, "channel", False) for m in ALL if m.endswith("up_proj")}
    assert gptq.config(schemes, ALL[:1]) == {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False, "lm_head": False,
        "checkpoint_format": "gptq_v2", "pack_dtype": "int32", "meta": {"quantizer": ["runner"]},
        "dynamic": {
            r"-:^model\.layers\.0\.mlp\.down_proj$": {},
            r"+:^model\.layers\.\d+\.mlp\.up_proj$": {"bits": 8, "group_size": -1, "sym": False},
        },
        "modules_in_block_to_quantize": [sorted(ALL[1:])],
    }  # fmt: skip
    uniform = gptq.config({m: integers(4, 128, True) for m in ALL if "mlp" not in m}, [m for m in ALL if "mlp" in m])
    assert uniform["modules_in_block_to_quantize"] == [["self_attn.q_proj"]]
    assert uniform["checkpoint_format"] == "gptq"
