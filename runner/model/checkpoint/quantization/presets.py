"""Schemes by the names that vLLM and llm-compressor give them. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from runner.model.checkpoint.quantization.scheme import Layout, Numbers, Scheme, integers

_FP8_TOKENS = Numbers("float8_e4m3", "token")
_INT8_TOKENS = Numbers("int8", "token")
_NVFP4 = Numbers("float4_e2m1", 16, "float8_e4m3")
_MXFP4 = Numbers("float4_e2m1", 32, "float8_e8m0")
_MXFP8 = Numbers("float8_e4m3", 32, "float8_e8m0")

PRESETS = {
    "w2a16": integers(2, 128, True),
    "w3a16": integers(3, 128, True),
    "w4a16": integers(4, 128, True),
    "w8a16": integers(8, "channel", True),
    "w8a8": Scheme(Numbers("int8", "channel"), _INT8_TOKENS),
    "w4a8": Scheme(Numbers("int4", 128), _INT8_TOKENS),
    "w4afp8": Scheme(Numbers("int4", 128), _FP8_TOKENS),
    "fp8": Scheme(Numbers("float8_e4m3", "channel"), _FP8_TOKENS),
    "fp8_block": Scheme(Numbers("float8_e4m3", (128, 128)), Numbers("float8_e4m3", 128)),
    "nvfp4": Scheme(_NVFP4, _NVFP4),
    "nvfp4a16": Scheme(_NVFP4),
    "mxfp4": Scheme(_MXFP4, _MXFP4),
    "mxfp4a16": Scheme(_MXFP4),
    "mxfp8": Scheme(_MXFP8, _MXFP8),
    "mxfp8a16": Scheme(_MXFP8),
    "nf4": Scheme(Numbers("nf4", 64)),
    "fp4": Scheme(Numbers("fp4", 64)),
    "log2": Scheme(Numbers("log2", 128)),
}

STATIC = ("fp8", "w8a8")  # those whose inputs may have a calibrated scale: what servers have kernels for


def resolve(name: str | None, bits: int, group_size: int | str, symmetric: bool, *, static: bool = False) -> Scheme:
    """The scheme of a name, whose integer weights may have other groups; without a name that of the short form.

    `static` gives its inputs one calibrated scale in place of one for each token. ValueError, with a phrase that
    follows the parameter's name, where the short form contradicts the name.
    """
    if name is None:
        if static:
            raise ValueError(f"`activations: static` needs a scheme that rounds inputs: {_ticked(STATIC)}")
        return integers(bits, group_size, symmetric)
    preset = PRESETS[name]
    if static:
        if name not in STATIC:
            raise ValueError(f"`activations: static` contradicts `scheme: {name}`; {_ticked(STATIC)} can have it")
        inputs = None if preset.activations is None else replace(preset.activations, layout="tensor")
        preset = replace(preset, activations=inputs, dynamic=False)
    if bits != preset.bits:
        raise ValueError(f"`bits: {bits}` contradicts `scheme: {name}`, which has {preset.bits}")
    if preset.weights.is_integer:
        return replace(preset, weights=replace(preset.weights, layout=group_size, symmetric=symmetric))
    if not symmetric:
        levels = "levels are fixed" if preset.weights.is_codebook else "weights are floats around zero"
        raise ValueError(f"`symmetric: false` contradicts `scheme: {name}`, whose {levels}")
    if preset.weights.stored.is_integer:
        return replace(preset, weights=replace(preset.weights, layout=group_size))
    if group_size != short_layout(preset.weights.layout):
        raise ValueError(f"`group_size: {group_size}` contradicts `scheme: {name}`, which has its own")
    return preset


def _ticked(names: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def short_layout(layout: Layout) -> int | str:
    """What `group_size` says of a layout: of a block, its columns."""
    return layout[1] if isinstance(layout, tuple) else layout
