"""On-disk formats against their readers: compressed-tensors, transformers, and gptqmodel where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.model.checkpoint.formats import (
    GPTQ,
    PACK_QUANTIZED,
    Scheme,
    compressed_tensors,
    gptq_version,
    pack,
    parse,
    quantization_config,
    validate,
    validate_together,
)
from runner.model.checkpoint.formats.bit_packing import pack_rows, unpack_rows
from runner.model.checkpoint.formats.quantized import Quantized
from runner.model.checkpoint.formats.rules import served_by_vllm
from runner.model.checkpoint.reader import CheckpointReader
from tests.model.packed import linears, logits, make

has_gptqmodel = importlib.util.find_spec("gptqmodel") is not None
needs_gptqmodel = pytest.mark.skipif(not has_gptqmodel, reason="gptqmodel and optimum are not installed")


def random_weight(scheme: Scheme, rows: int = 24, columns: int = 96, dtype: torch.dtype = torch.bfloat16) -> Quantized:
    generator = torch.Generator().manual_seed(scheme.bits)
    shape = (1 if scheme.strategy == "tensor" else rows, scheme.groups(columns))
    top = 2**scheme.bits
    return Quantized(
        integers=torch.randint(0, top, (rows, columns), dtype=torch.uint8, generator=generator),
        scale=(torch.rand(shape, generator=generator) / 10).to(dtype),
        zero_point=None if scheme.symmetric else torch.randint(0, top, shape, dtype=torch.uint8, generator=generator),
        bits=scheme.bits,
        group_size=scheme.columns(columns),
        strategy=scheme.strategy,
    )


def naive_words(values: list[int], bits: int) -> list[int]:
    """The bit stream, one bit at a time."""
    stream = [(value >> bit) & 1 for value in values for bit in range(bits)]
    stream += [0] * (-len(stream) % 32)
    words = [sum(bit << i for i, bit in enumerate(stream[at : at + 32])) for at in range(0, len(stream), 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [32, 40, 1, 97])
def test_rows_are_one_stream_of_bits(bits: int, columns: int) -> None:
    values = torch.randint(0, 2**bits, (3, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack_rows(values, bits)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [naive_words(row, bits) for row in values.tolist()]
    assert torch.equal(unpack_rows(packed, bits, columns), values)


SCHEMES = [
    Scheme(bits, size, symmetric)
    for bits in range(2, 9)
    for size in (32, "channel", "tensor")
    for symmetric in (True, False)
]


def compressor(format: str) -> Any:
    """The class of the compressed-tensors package that writes and reads a format."""
    module = importlib.import_module("compressed_tensors.compressors")
    return module.BaseCompressor.get_value_from_registry(format)


def scheme_object(group: dict[str, Any]) -> Any:
    return importlib.import_module("compressed_tensors.quantization").QuantizationScheme(**group)


@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)
def test_compressed_tensors_decompresses_to_our_weights(scheme: Scheme) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        weight = random_weight(scheme, dtype=dtype)
        stored = pack(PACK_QUANTIZED, "m", weight)
        group = quantization_config(PACK_QUANTIZED, {"m": scheme})["config_groups"]["group_0"]
        local = {name.removeprefix("m."): tensor for name, tensor in stored.items()}
        read = compressor(PACK_QUANTIZED).decompress(local, scheme_object(group))["weight"]
        assert torch.equal(read, weight.dequantize(dtype))
        assert torch.equal(compressed_tensors.unpack("m", scheme, stored.__getitem__).dequantize(dtype), read)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, 32, True), Scheme(4, 32, False), Scheme(3, "channel", False), Scheme(2, 16, True),
        Scheme(8, "channel", True), Scheme(8, 32, False), Scheme(8, "tensor", False), Scheme(5, 32, True),
    ],
    ids=Scheme.describe,
)  # fmt: skip
def test_transformers_loads_what_we_pack(scheme: Scheme, tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", PACK_QUANTIZED, lambda _: scheme)
    assert torch.equal(logits(load(tmp_path / "packed")), logits(dense))
    assert_read_back(tmp_path / "packed", dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scales_follow_the_dtype_of_the_model(dtype: torch.dtype, tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", PACK_QUANTIZED, lambda _: Scheme(4, 32, True), dtype=dtype)
    loaded = load(tmp_path / "packed")
    assert next(loaded.parameters()).dtype == dtype
    assert torch.equal(logits(loaded), logits(dense))


@pytest.mark.parametrize("name", ["llama_tied", "opt", "gpt_neox"])
def test_tied_and_biased_models_and_linears_outside_the_layers(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"opt": {"word_embed_proj_dim": 32, "ffn_dim": 96}}.get(name, {})
    dense = make(tmp_path / "packed", PACK_QUANTIZED, lambda _: Scheme(4, 32, True), name, **changes)
    assert torch.equal(logits(load(tmp_path / "packed")), logits(dense))
    with CheckpointReader(tmp_path / "packed") as reader:
        assert not (name == "llama_tied" and reader.has("lm_head.weight"))


def mixed(module: str) -> Scheme | None:
    if module == "model.layers.1.mlp.up_proj":
        return None
    if module.endswith("down_proj"):
        return Scheme(8, "channel", True)
    return Scheme(3, 32, True) if module == "model.layers.0.self_attn.q_proj" else Scheme(4, 32, True)


def test_modules_of_different_schemes_and_modules_left_alone(tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", PACK_QUANTIZED, mixed)
    assert torch.equal(logits(load(tmp_path / "packed")), logits(dense))
    assert_read_back(tmp_path / "packed", dense)


def load(folder: Path, **options: Any) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, found = read
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    loaded: torch.nn.Module = model.eval()
    return loaded


def assert_read_back(folder: Path, dense: torch.nn.Module) -> None:
    """Our own reader gives the weights that the dense model has."""
    weights = dense.state_dict()
    with CheckpointReader(folder.with_name(f"{folder.name}-dense")) as source, CheckpointReader(folder) as reader:
        for name in linears(source):
            read = reader.read_weight(name)
            assert read.dtype == reader.dtype(name)
            assert torch.equal(read.to(weights[name].dtype), weights[name]), name


def test_int_quantized_weights_of_others_are_read(tmp_path: Path) -> None:
    """Written by the compressed-tensors package itself."""
    writer = compressor("int-quantized")
    for size, scale in (("channel", torch.rand(8, 1) / 100), ("tensor", torch.rand(1) / 100)):
        for symmetric in (True, False):
            args = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": size, "dynamic": False}
            group = {"targets": ["Linear"], "weights": args}
            scheme = scheme_object(group)
            state = {"weight": torch.randn(8, 32) / 10, "weight_scale": scale}
            if not symmetric:
                state["weight_zero_point"] = torch.full_like(scale, -7, dtype=torch.int8)
            stored = writer.compress(state, scheme)
            save_file({f"m.{n}": t.contiguous() for n, t in stored.items()}, tmp_path / "model.safetensors")
            config = {
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": {"group_0": group},
            }
            (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
            with CheckpointReader(tmp_path) as reader:
                assert reader.is_packed("m.weight")
                assert torch.equal(reader.read_weight("m.weight"), writer.decompress(stored, scheme)["weight"])


GPTQ_SCHEMES = [Scheme(bits, 32, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


@pytest.mark.parametrize(
    "scheme", [*GPTQ_SCHEMES, Scheme(4, "channel", False), Scheme(8, "tensor", False)], ids=Scheme.describe
)
def test_gptq_layout(scheme: Scheme) -> None:
    """Word by word against the description of the format."""
    weight = random_weight(scheme, rows=32, columns=64, dtype=torch.float16)
    version = gptq_version([scheme])
    stored = pack(GPTQ, "m", weight)
    assert stored["m.qweight"].T.tolist() == [naive_words(row, scheme.bits) for row in weight.integers.tolist()]
    zero = weight.zero_point if weight.zero_point is not None else torch.full_like(weight.scale, 2 ** (scheme.bits - 1))
    zeros = (zero.expand(32, -1).T.int() - (1 if version == 1 else 0)).tolist()
    assert stored["m.qzeros"].tolist() == [naive_words(row, scheme.bits) for row in zeros]
    assert torch.equal(stored["m.scales"], weight.scale.expand(32, -1).T)
    assert stored["m.g_idx"].tolist() == [column // weight.group_size for column in range(64)]
    assert version == (1 if scheme.symmetric else 2)


def test_symmetric_zero_points_of_four_bits_are_the_known_word() -> None:
    stored = pack(GPTQ, "m", random_weight(Scheme(4, 32, True), rows=32))
    assert set(stored["m.qzeros"].flatten().tolist()) == {0x77777777}


def test_asymmetric_weights_are_not_stored_as_version_1() -> None:
    with pytest.raises(ValueError, match="asymmetric weights are stored in version 2"):
        pack(GPTQ, "m", random_weight(Scheme(4, 32, False), rows=32), 1)


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
        (Scheme(4, 32, True), torch.bfloat16), (Scheme(4, 32, False), torch.float32),
        (Scheme(3, "channel", True), torch.bfloat16), (Scheme(8, "tensor", False), torch.float32),
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
    dense = make(tmp_path / "packed", GPTQ, lambda module: None if module.endswith(left) else Scheme(4, 32, True))
    close(logits(load(tmp_path / "packed", device_map="cpu")), logits(dense), torch.bfloat16)


def quiet_gptqmodel() -> None:
    """Bound its threads, and run its kernels as they are: compiling them takes longer than all tests."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    torch._dynamo.config.disable = True


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal weights, but the kernel multiplies in another order."""
    assert (found - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


LINEARS = ("mlp.down_proj", "mlp.up_proj", "self_attn.q_proj")
ALL = [f"model.layers.{i}.{name}" for i in range(3) for name in LINEARS]


def test_config_of_one_scheme() -> None:
    config = quantization_config(PACK_QUANTIZED, dict.fromkeys(ALL[1:], Scheme(4, 128, True)), ALL[:1], act_order=True)
    assert config == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128,
                    "dynamic": False, "actorder": "weight",
                },
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
        "ignore": ["lm_head", "model.layers.0.mlp.down_proj"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }  # fmt: skip


def test_config_of_several_schemes_names_modules_by_pattern() -> None:
    schemes = dict.fromkeys(ALL, Scheme(4, 128, True))
    schemes |= {m: Scheme(8, "channel", True) for m in ALL if m.endswith("down_proj")}
    schemes["model.layers.1.mlp.up_proj"] = Scheme(2, 64, True)
    groups = quantization_config(PACK_QUANTIZED, schemes)["config_groups"]
    assert {name: group["targets"] for name, group in groups.items()} == {
        "group_0": [
            r"re:^model\.layers\.0\.mlp\.up_proj$",
            r"re:^model\.layers\.2\.mlp\.up_proj$",
            r"re:^model\.layers\.\d+\.self_attn\.q_proj$",
        ],
        "group_1": [r"re:^model\.layers\.\d+\.mlp\.down_proj$"],
        "group_2": [r"re:^model\.layers\.1\.mlp\.up_proj$"],
    }


def test_config_does_not_depend_on_the_order_of_modules() -> None:
    schemes = {m: Scheme(4, 128, True) if i % 2 else Scheme(8, "channel", True) for i, m in enumerate(ALL[:8])}
    for format in (PACK_QUANTIZED, GPTQ):
        turned = dict(reversed(schemes.items()))
        assert quantization_config(format, schemes, ALL[8:]) == quantization_config(format, turned, ALL[8:])


def test_gptq_config() -> None:
    schemes = dict.fromkeys(ALL[1:], Scheme(4, 128, True))
    schemes |= {m: Scheme(8, "channel", False) for m in ALL if m.endswith("up_proj")}
    assert quantization_config(GPTQ, schemes, ALL[:1], producer="runner") == {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False, "lm_head": False,
        "checkpoint_format": "gptq_v2", "pack_dtype": "int32", "meta": {"quantizer": ["runner"]},
        "dynamic": {
            r"-:^model\.layers\.0\.mlp\.down_proj$": {},
            r"+:^model\.layers\.\d+\.mlp\.up_proj$": {"bits": 8, "group_size": -1, "sym": False},
        },
        "modules_in_block_to_quantize": [sorted(ALL[1:])],
    }  # fmt: skip
    uniform = quantization_config(
        GPTQ, {m: Scheme(4, 128, True) for m in ALL if "mlp" not in m}, [m for m in ALL if "mlp" in m]
    )
    assert uniform["modules_in_block_to_quantize"] == [["self_attn.q_proj"]]
    assert uniform["checkpoint_format"] == "gptq"


@pytest.mark.parametrize("format", [PACK_QUANTIZED, GPTQ])
def test_configs_are_read_back(format: str) -> None:
    schemes = {m: Scheme(4, 128, True) if i % 3 else Scheme(8, "channel", False) for i, m in enumerate(ALL)}
    packing = parse(quantization_config(format, schemes))
    assert packing is not None
    assert {module: packing.scheme(module) for module in ALL} == schemes


def test_configs_that_cannot_be_read() -> None:
    assert parse(None) is None
    for config, message in (
        ({"quant_method": "bitsandbytes"}, "checkpoints quantized with `bitsandbytes` cannot be read"),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"g": {}}},
            "the compressed-tensors format `nvfp4-pack-quantized` cannot be read",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{message}; a dense checkpoint is needed$"):
            parse(config)


@pytest.mark.parametrize(
    ("format", "scheme", "shape", "problem", "remedy"),
    [
        (PACK_QUANTIZED, Scheme(4, 128, True), (96, 64), "has 96 columns, which group_size 128 does not divide",
         "use group_size 16 or 32"),
        (PACK_QUANTIZED, Scheme(4, 128, True), (1408, 64), None, None),
        (GPTQ, Scheme(4, 128, True), (100, 64), "has 100 columns, which group_size 128 does not divide",
         'use group_size: "channel"'),
        (GPTQ, Scheme(5, 32, True), (96, 64), "has 5 bits, which `gptq` cannot store",
         "use 2, 3, 4 or 8 bits, or `format: pack-quantized`"),
        (GPTQ, Scheme(4, 48, True), (96, 64), "has group_size 48, which readers of `gptq` refuse",
         'use group_size 16, 32, 64, 128, 256, 512, 1024 or "channel", or `format: pack-quantized`'),
        (GPTQ, Scheme(3, 32, True), (96, 16), "has 16 rows; `gptq` at 3 bits packs them by 32",
         "use `format: pack-quantized` or add it to `ignore`"),
        (GPTQ, Scheme(4, "channel", True), (100, 64), "has 100 columns; `gptq` at 4 bits packs them by 8",
         "use `format: pack-quantized` or add it to `ignore`"),
        (GPTQ, Scheme(4, 32, True), (96, 16), None, None),
        ("awq", Scheme(4, 32, True), (96, 16), "asks for the unknown format `awq`", "use pack-quantized or gptq"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored(
    format: str, scheme: Scheme, shape: tuple[int, int], problem: str | None, remedy: str | None
) -> None:
    assert validate(format, scheme, *shape) == (None if problem is None else (problem, remedy))


def test_conv1d_modules_are_refused_where_readers_would_leave_them_random() -> None:
    assert validate(PACK_QUANTIZED, Scheme(4, 32, True), 96, 64, transposed=True) == (
        "is a Conv1D module, which compressed-tensors cannot load",
        "use `format: gptq`, which gptqmodel loads, or a kind that keeps weights dense",
    )
    assert validate(GPTQ, Scheme(4, 32, True), 96, 64, transposed=True) is None


def test_schemes_that_cannot_share_a_checkpoint() -> None:
    four, eight = Scheme(4, 128, True), Scheme(8, "channel", True)
    assert validate_together(PACK_QUANTIZED, [four, eight, four]) is None
    assert validate_together(PACK_QUANTIZED, [Scheme(4, 128, False)]) is None
    assert validate_together(PACK_QUANTIZED, [four, Scheme(4, 128, False)]) == (
        "transformers cannot load asymmetric weights beside weights of another scheme",
        "use `symmetric: true` everywhere, or one scheme for all modules",
    )
    assert validate_together(GPTQ, [four, Scheme(4, 128, False)]) is None
    assert validate_together(GPTQ, [four, eight]) == (
        "transformers reads `gptq` checkpoints with one scheme for all modules",
        "use `format: pack-quantized`, drop `overrides`, or load the result with gptqmodel or vLLM",
    )


def test_what_vllm_serves() -> None:
    assert served_by_vllm(PACK_QUANTIZED, Scheme(4, 128, True))
    assert not served_by_vllm(PACK_QUANTIZED, Scheme(3, 128, True))
    assert not served_by_vllm(PACK_QUANTIZED, Scheme(8, "tensor", True))
    assert served_by_vllm(GPTQ, Scheme(3, 128, True))


def test_the_planner_needs_no_torch() -> None:
    modules = "runner.model.checkpoint.formats, runner.model.checkpoint.writer, runner.model.card"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
