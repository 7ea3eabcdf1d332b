"""GPTQ checkpoints, as gptqmodel writes and reads them.

    qweight  int32 [in·bits/32, out], the integers packed along the inputs
    qzeros   int32 [G, out·bits/32], zero points packed along the outputs; "gptq" (v1) stores them less one
    scales   fp16 [G, out]
    g_idx    int32 [in], the group of each input

Symmetric weights are written as v1, which every reader knows. Asymmetric ones are written as v2: v1 cannot hold a zero
point of 0 (readers add the one back to whole words, so that 0 − 1 would carry into the neighbour).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint import servers
from runner.model.checkpoint.quantization import group_sizes
from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.module_patterns import block, by_scheme, patterns
from runner.model.checkpoint.quantization.scheme import Scheme, ceil_div, integers

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "gptq"
TAG = "gptq"
WEIGHT = "qweight"
SCALE = "scales"
FILES: tuple[str, ...] = ("quantize_config.json",)
BITS = (2, 3, 4, 8)
CPU_GROUP_SIZES = (32, 64, 128, 256)
_LOAD = 'from gptqmodel import GPTQModel\n\nmodel = GPTQModel.load("{folder}")'


def holds(tensors: Headers, module: str) -> bool:
    """Unlike AWQ's tensors of the same names, a word of its own holds values of one output."""
    weight, scale = tensors.get(f"{module}.{WEIGHT}"), tensors.get(f"{module}.{SCALE}")
    return weight is not None and (scale is None or scale.shape[-1] == weight.shape[-1])


def parse(config: Config) -> Rules | None:
    if config.get("quant_method") != NAME:
        return None
    matched: list[tuple[str, Scheme | None]] = []
    for pattern, override in (config.get("dynamic") or {}).items():
        skipped = pattern.startswith("-:")
        matched.append((pattern.removeprefix("-:").removeprefix("+:"), None if skipped else _scheme(override, config)))
    return Rules(matched=tuple(matched), default=_scheme(config, config))


def _scheme(values: Mapping[str, Any], base: Mapping[str, Any]) -> Scheme:
    size = int(values.get("group_size", base["group_size"]))
    return integers(
        int(values.get("bits", base["bits"])),
        "channel" if size == -1 else size,
        bool(values.get("sym", base.get("sym", True))),
    )


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    words, rows = tensors[f"{module}.{WEIGHT}"].shape
    groups = tensors.get(f"{module}.g_idx")
    return rows, groups.shape[0] if groups else words * 32 // scheme.bits


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    """Conv1D modules load with gptqmodel's own loader, not through transformers 5.23, whose initialization of GPT-2

    stumbles over any packed module.
    """
    if not scheme.is_integer:
        problem = f"is to be stored as {scheme.describe()}; `{NAME}` holds integers and leaves inputs alone"
        return Refusal(problem, "use a scheme of integers with inputs as they are")
    if uneven := group_sizes.refuse_uneven(scheme, matrix):
        return uneven
    if scheme.bits not in BITS:
        return Refusal(f"has {scheme.bits} bits, which `gptq` cannot store", "use 2, 3, 4 or 8 bits")
    group = scheme.group_size
    if isinstance(group, int) and group not in group_sizes.USUAL and group != matrix.columns:
        allowed = ", ".join(map(str, group_sizes.USUAL))
        problem = f"has group_size {group}, which readers of `gptq` refuse"
        return Refusal(problem, f'use group_size {allowed} or "channel"')
    # GPTQ packs the weight along its inputs and the zero points along its outputs, in whole 32-bit words.
    unit = 32 if scheme.bits == 3 else 32 // scheme.bits
    for size, what in ((matrix.columns, "columns"), (matrix.rows, "rows")):
        if size % unit:
            problem = f"has {size} {what}; `gptq` at {scheme.bits} bits packs them by {unit}"
            return Refusal(problem, "add it to `ignore`")
    return None


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    """transformers knows no per-module schemes there; gptqmodel's own loader and vLLM do."""
    if len({(scheme.bits, _group_size(scheme)) for scheme in schemes}) > 1:
        return Refusal(
            "transformers reads `gptq` checkpoints with one scheme for all modules",
            "use `format: pack-quantized`, drop `overrides`, or load the result with gptqmodel or vLLM",
        )
    return None


def _group_size(scheme: Scheme) -> int:
    """The group size as GPTQ configurations write it: −1 for a whole row."""
    return scheme.group_size if isinstance(scheme.group_size, int) else -1


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    """gptqmodel keeps scales in fp16 buffers."""
    return "F16"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    rows, columns, groups = matrix.rows, matrix.columns, scheme.groups(matrix.columns)
    return {
        f"{module}.g_idx": ("I32", (columns,)),
        f"{module}.qweight": ("I32", (ceil_div(columns * scheme.bits, 32), rows)),
        f"{module}.qzeros": ("I32", (groups, ceil_div(rows * scheme.bits, 32))),
        f"{module}.scales": ("F16", (groups, rows)),
    }


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    """Version 1 ("gptq") where every weight is symmetric, else 2 ("gptq_v2"): one checkpoint has one version."""
    rest = sorted({*untouched, "lm_head"} - set(schemes))
    groups = by_scheme(schemes)
    default = groups[0][0]
    config: dict[str, Any] = {
        "quant_method": NAME,
        "bits": default.bits,
        "group_size": _group_size(default),
        "sym": default.symmetric,
        "desc_act": False,
        "lm_head": "lm_head" in schemes,
        "checkpoint_format": "gptq" if all(scheme.symmetric for scheme in schemes.values()) else "gptq_v2",
        "pack_dtype": "int32",
        "meta": {"quantizer": ["runner"]},
    }
    blocks = {block(module)[0] for module in schemes}
    inside = [module for module in rest if block(module)[0] in blocks]
    dynamic: dict[str, Any] = {f"-:{pattern}": {} for pattern in patterns(inside, {}, [*schemes, *rest])}
    for scheme, modules in groups[1:]:
        override = {"bits": scheme.bits, "group_size": _group_size(scheme), "sym": scheme.symmetric}
        dynamic |= {f"+:{pattern}": override for pattern in patterns(modules, schemes, rest)}
    if dynamic:
        config["dynamic"] = dynamic
    if inside:  # the reader in transformers knows no `dynamic`: it matches the ends of names against this list
        suffixes = {block(module)[1] for module in schemes}
        mixed = suffixes & {block(module)[1] for module in inside}
        config["modules_in_block_to_quantize"] = [sorted(schemes) if mixed else sorted(suffixes)]
    return config


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    found = list(schemes)
    unserved = servers.limit("vllm", NAME, found)
    if transposed:
        unserved = "vLLM has no kernels for this way of storing weights."
    limit = "transformers' own loader cannot read it." if transposed or refuse_together(found) else ""
    kernel = any(scheme.bits == 4 and scheme.group_size not in CPU_GROUP_SIZES for scheme in found)
    note = (
        'On a CPU, pass `quantization_config=GPTQConfig(bits=4, backend="torch")`: the kernel that gptqmodel picks '
        f"there takes only groups of {', '.join(map(str, CPU_GROUP_SIZES))}."
    )
    return (
        Reader("transformers", "gptqmodel optimum", "transformers 5.23", limit, note=note if kernel else ""),
        Reader("gptqmodel", "gptqmodel", "gptqmodel 7.7", load=_LOAD, note=note if kernel else ""),
        Reader("vLLM", tried="0.32", limit=unserved, fuses=True),
    )


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    import torch

    from runner.model.checkpoint.quantization.bit_packing import pack_rows

    scale, zero = store_scale(weight), weight.zero_point
    if zero is None:
        zero = torch.full(scale.t().shape, 2 ** (weight.bits - 1), dtype=torch.uint8)
    elif weight.strategy == "tensor":
        zero = zero.expand(weight.out_features, 1)
    if not _is_v2(config):
        if not weight.symmetric:
            raise ValueError("asymmetric weights are stored in version 2")
        zero = zero - 1
    columns = torch.arange(weight.in_features, dtype=torch.int32)
    return {
        f"{module}.g_idx": columns // weight.group_size,
        f"{module}.qweight": pack_rows(weight.codes, weight.bits).t().contiguous(),
        f"{module}.qzeros": pack_rows(zero.t().contiguous(), weight.bits),
        f"{module}.scales": scale,
    }


def store_scale(weight: Quantized) -> torch.Tensor:
    """fp16 [G, out]; GPTQ knows no scale of a whole tensor: every row gets it."""
    import torch

    scale = weight.scale.expand(weight.out_features, 1) if weight.strategy == "tensor" else weight.scale
    return scale.t().to(torch.float16).contiguous()


def _is_v2(config: Config) -> bool:
    return bool(config.get("checkpoint_format", config.get("format")) == "gptq_v2")


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    """Any order of groups (`g_idx`) is read. Zero points count as they are, whatever the configuration says of them."""
    from dataclasses import replace

    import torch

    from runner.model.checkpoint.quantization.bit_packing import unpack_rows
    from runner.model.checkpoint.quantization.quantized import Quantized

    bits = scheme.bits
    scale = read(f"{module}.scales").t().contiguous()
    groups = read(f"{module}.g_idx").long()
    columns = len(groups)
    zeros = unpack_rows(read(f"{module}.qzeros"), bits, scale.shape[0])
    if not _is_v2(config):
        zeros = (zeros + 1) & (2**bits - 1)
    zero: torch.Tensor | None = zeros.t().contiguous()
    symmetric = scheme.symmetric and bool((zeros == 2 ** (bits - 1)).all())
    packed = read(f"{module}.qweight")
    codes = unpack_rows(packed.t(), bits, packed.shape[0] * 32 // bits)[:, :columns].contiguous()
    in_order = torch.equal(groups, torch.arange(columns) // scheme.columns(columns))
    numbers = replace(scheme.weights, symmetric=symmetric)
    return Quantized(codes, scale, None if symmetric else zero, numbers, groups=None if in_order else groups)
