"""What loads a checkpoint or an engine: servers × formats × schemes × devices, as one table with its sources.

`plan`, model cards and docs/serving.md read it. A row that is wrong is a fault: what nobody tried and no document
says is "unknown", not a guess. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from runner.model.checkpoint.quantization.cache_scheme import CacheScheme
from runner.model.checkpoint.quantization.scheme import Scheme

SERVERS = ("vllm", "transformers", "tensorrt-llm", "onnxruntime", "llama.cpp")
NATIVE, FALLBACK, UNKNOWN, REFUSED = HOW = ("native", "fallback", "unknown", "refused")  # from best to worst
DENSE = "dense"  # the format of a checkpoint that is not quantized
CPU = 0.0  # a device: the compute capability of an NVIDIA GPU, or this
GPUS = {
    "cpu": CPU, "t4": 7.5, "a100": 8.0, "a10": 8.6, "rtx3090": 8.6, "l4": 8.9, "l40s": 8.9, "rtx4090": 8.9, "h100": 9.0,
    "h200": 9.0, "b200": 10.0, "rtx5090": 12.0,
}  # fmt: skip

_COMPRESSED = ("pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
               "mxfp8-quantized")  # fmt: skip
_GPU, _EVERYWHERE = (7.5, 99.0), (CPU, 99.0)
_TRIED = "tried with vLLM 0.32's CPU build"
_AVX512 = "on processors with AVX-512; on others its first product fails"
_MAP = "vLLM 0.32's source: its table of kernels for GPTQ has (4, symmetric) and (8, symmetric)"
_HARDWARE = "https://docs.vllm.ai/en/v0.14.0/features/quantization/"
_FP8 = "https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/"
_MATRIX = "https://nvidia.github.io/TensorRT-LLM/features/quantization.html"
_NO_KERNEL = "vLLM has no kernels for this way of storing weights"


# The oldest versions that the rows are about.
OLDEST = {
    "vllm": (0, 14), "transformers": (5, 0), "tensorrt-llm": (1, 0), "onnxruntime": (1, 32), "llama.cpp": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a server makes of a format.

    device         the lowest and highest compute capability that the row is about; CPU is 0
    bits … rounded  of the schemes that it is about; None: any. `rounded`: whether inputs are rounded too
    models         types of config.json that it is about; None: any
    how            one of HOW
    why            a clause: by which fallback, or why not; "" where it simply loads
    source         who says so
    """

    server: str
    formats: Collection[str]
    device: tuple[float, float]
    how: str
    why: str
    source: str
    bits: Collection[int] | None = None
    symmetric: bool | None = None
    strategies: Collection[str] | None = None
    rounded: bool | None = None
    models: Collection[str] | None = None

    def matches(self, format: str, scheme: Scheme | None, device: float, model: str = "") -> bool:
        if format not in self.formats or not self.device[0] <= device <= self.device[1]:
            return False
        if self.models is not None and model not in self.models:
            return False
        if scheme is None:
            return True
        return (
            (self.bits is None or scheme.bits in self.bits)
            and self.symmetric in (None, scheme.symmetric)
            and (self.strategies is None or scheme.strategy in self.strategies)
            and self.rounded in (None, scheme.activations is not None)
        )


ROWS: tuple[Row, ...] = (  # the first that matches counts
    Row("vllm", (DENSE,), _EVERYWHERE, NATIVE, "", _TRIED),
    Row("vllm", ("pack-quantized",), _EVERYWHERE, REFUSED, _NO_KERNEL, _TRIED, strategies=("tensor",)),
    Row("vllm", ("pack-quantized", "gptq"), _EVERYWHERE, REFUSED, _NO_KERNEL, _TRIED, bits=(2, 3, 5, 6, 7)),
    Row("vllm", ("gptq",), _EVERYWHERE, REFUSED, _NO_KERNEL, _MAP, symmetric=False),
    Row("vllm", ("pack-quantized", "gptq"), (CPU, CPU), REFUSED, "its CPU build has no kernels for 8-bit weights",
        _TRIED, bits=(8,)),
    Row("vllm", ("pack-quantized",), (CPU, CPU), NATIVE, _AVX512, _TRIED, bits=(4,), rounded=False),
    Row("vllm", ("gptq",), (CPU, CPU), NATIVE, _AVX512, _TRIED, bits=(4,), symmetric=True),
    Row("vllm", ("awq",), (CPU, CPU), NATIVE, _AVX512, "vLLM 0.32's source: the kernel of its other 4-bit integers"),
    Row("vllm", ("pack-quantized",), _GPU, REFUSED, "vLLM has no kernels for asymmetric 8-bit weights",
        "vLLM's source", bits=(8,), symmetric=False),
    Row("vllm", ("pack-quantized", "gptq"), (8.0, 9.0), NATIVE, "", _HARDWARE, bits=(4, 8), rounded=False),
    Row("vllm", ("int-quantized",), _EVERYWHERE, REFUSED, _NO_KERNEL, "vLLM's source", rounded=False),
    Row("vllm", ("int-quantized",), _EVERYWHERE, REFUSED, _NO_KERNEL, "vLLM's source", symmetric=False),
    Row("vllm", ("int-quantized",), (CPU, CPU), NATIVE, "", _HARDWARE, rounded=True),
    Row("vllm", ("int-quantized",), (7.5, 9.0), NATIVE, "", _HARDWARE, rounded=True),
    Row("vllm", ("float-quantized",), (8.9, 99.0), NATIVE, "", _FP8),
    Row("vllm", ("float-quantized",), (7.5, 8.8), FALLBACK, "weights are unpacked to 16 bits in the products (Marlin)",
        _FP8),
    Row("vllm", ("float-quantized",), (CPU, CPU), NATIVE, "", _TRIED, strategies=("channel",)),
    Row("vllm", ("fp8",), (CPU, CPU), REFUSED, "it multiplies 8-bit floats on GPUs alone", _HARDWARE),
    Row("vllm", ("fp8",), (8.9, 99.0), NATIVE, "", _HARDWARE),
    Row("vllm", ("nvfp4-pack-quantized",), (10.0, 99.0), NATIVE, "", "vLLM's documentation of NVFP4"),
    Row("vllm", ("nvfp4-pack-quantized",), (8.0, 9.0), FALLBACK,
        "weights are unpacked to 16 bits in the products (Marlin)", "vLLM's documentation of NVFP4"),
    Row("vllm", ("nvfp4-pack-quantized",), (CPU, CPU), REFUSED, "its CPU build has no kernels for NVFP4", _TRIED),
    Row("vllm", ("mxfp4-pack-quantized",), (CPU, CPU), REFUSED, "its CPU build has no kernels for MXFP4", _TRIED,
        rounded=False),
    Row("vllm", ("mxfp8-quantized",), (CPU, CPU), REFUSED, "its CPU build has no kernels for MXFP8", _TRIED),
    Row("vllm", ("bitsandbytes",), _EVERYWHERE, REFUSED,
        "vLLM 0.32 knows no bitsandbytes (\"Unknown quantization method\")", _TRIED),
    Row("vllm", ("onnx", "gguf", "tensorrt", "aotinductor", "executorch"), _EVERYWHERE, REFUSED,
        "it loads checkpoints, not engines", "vLLM's documentation"),
    Row("transformers", (DENSE,), _EVERYWHERE, NATIVE, "", "tried with transformers 5.23"),
    Row("transformers", _COMPRESSED, _EVERYWHERE, FALLBACK,
        "weights are unpacked to 16 bits when they are loaded, which saves no memory",
        "tried with transformers 5.23 and compressed-tensors 0.20"),
    Row("transformers", ("fp8",), (CPU, 8.8), FALLBACK,
        "weights are unpacked when they are loaded, which saves no memory, and inputs are not rounded",
        "tried with transformers 5.23"),
    Row("transformers", ("fp8",), (8.9, 99.0), NATIVE, "", "transformers 5.23's source"),
    Row("transformers", ("gptq",), _EVERYWHERE, NATIVE, "with the packages gptqmodel and optimum",
        "tried with transformers 5.23 and gptqmodel 7.7"),
    Row("transformers", ("bitsandbytes",), _EVERYWHERE, NATIVE, "with the packages bitsandbytes and accelerate",
        "tried with transformers 5.23 and bitsandbytes 0.50"),
    Row("transformers", ("modelopt",), _EVERYWHERE, REFUSED, "it does not know ModelOpt's checkpoints",
        "tried with transformers 5.23"),
    Row("transformers", ("gguf",), _EVERYWHERE, FALLBACK, "weights are unpacked to 32 bits when they are loaded",
        "tried with transformers 5.23", models=("llama", "mistral", "qwen2", "phi3", "stablelm", "starcoder2")),
    Row("transformers", ("gguf",), _EVERYWHERE, REFUSED,
        "its reader of GGUF does not know this model, or takes it for another one", "tried with transformers 5.23"),
    Row("transformers", ("onnx", "tensorrt", "aotinductor", "executorch"), _EVERYWHERE, REFUSED,
        "it loads checkpoints, not engines",
        "tried with transformers 5.23"),
    Row("tensorrt-llm", (DENSE,), _GPU, NATIVE, "", "TensorRT-LLM's documentation"),
    Row("tensorrt-llm", ("modelopt",), (10.0, 99.0), NATIVE, "", _MATRIX, bits=(4,)),
    Row("tensorrt-llm", ("modelopt",), (7.5, 9.0), REFUSED, "it multiplies NVFP4 from Blackwell (10.0) on", _MATRIX,
        bits=(4,)),
    Row("tensorrt-llm", ("modelopt",), (9.0, 9.0), NATIVE, "", _MATRIX, bits=(8,)),
    Row("tensorrt-llm", ("modelopt",), _GPU, REFUSED, "it multiplies FP8 by rows on Hopper (9.0) alone",
        _MATRIX, bits=(8,)),
    Row("tensorrt-llm", ("onnx", "gguf", "tensorrt", "aotinductor", "executorch"), _EVERYWHERE, REFUSED,
        "it loads checkpoints, and engines that it has built itself", "TensorRT-LLM's documentation"),
    Row("onnxruntime", ("onnx",), _EVERYWHERE, NATIVE, "", "tried with onnxruntime 1.32"),
    Row("onnxruntime", (DENSE, *_COMPRESSED, "gptq", "awq", "bitsandbytes", "modelopt", "fp8", "gguf", "tensorrt",
                        "aotinductor", "executorch"), _EVERYWHERE, REFUSED, "it runs graphs of `build.onnx`",
        "onnxruntime 1.32"),
    Row("llama.cpp", ("gguf",), _EVERYWHERE, NATIVE, "", "tried with llama.cpp"),
    Row("llama.cpp", (DENSE, *_COMPRESSED, "gptq", "awq", "bitsandbytes", "modelopt", "fp8", "onnx", "tensorrt",
                      "aotinductor", "executorch"), _EVERYWHERE, REFUSED, "it runs files of `build.gguf`", "llama.cpp"),
)  # fmt: skip


@dataclass(frozen=True)
class Unpacked:
    """Modules of some models that a server cannot load packed, though it loads others of that format and scheme.

    models    types of config.json that it is about
    modules   patterns of their names, as in `ignore`
    formats   in which it cannot; None: in any
    why       what it does, of modules: "holds ... unpacked"
    source    who says so
    """

    server: str
    models: Collection[str]
    modules: Collection[str]
    formats: Collection[str] | None
    why: str
    source: str

    def matches(self, server: str, model: str, format: str) -> bool:
        return server == self.server and model in self.models and (self.formats is None or format in self.formats)


_MIXER = "tried with vLLM 0.32's CPU build (jamba, mamba); its mixer of Mamba passes on no scheme"
_PLAIN = "holds {} unpacked whatever a checkpoint says"
UNPACKED: tuple[Unpacked, ...] = (
    Unpacked("vllm", ("jamba",), ("*.mamba.*",), None, _PLAIN, _MIXER),
    Unpacked("vllm", ("mamba", "falcon_mamba"), ("*.mixer.*",), None, _PLAIN, _MIXER),
    Unpacked("vllm", ("deepseek_v32", "glm_moe_dsa"), ("*.indexer.wk", "*.indexer.weights_proj"), None, _PLAIN,
             "vLLM 0.32's source: it joins both, and its wk_weights_proj has no scheme"),
    Unpacked("vllm", ("bloom",), ("*.query_key_value",), ("pack-quantized", "gptq", "awq"),
             "orders the rows of {} anew as if they were not packed",
             "tried with vLLM 0.32's CPU build, which fails on weight_shape; GPTQ and AWQ: its source"),
)  # fmt: skip
_SILENT = Row("", (), _EVERYWHERE, UNKNOWN, "nobody has tried it, and no document says", "")


@dataclass(frozen=True)
class Verdict:
    """How a server loads a result: `how` is one of HOW, `why` a clause, `source` who says so."""

    server: str
    how: str
    why: str = ""
    source: str = ""

    def describe(self) -> str:
        """ "vllm loads it natively", "vllm cannot load it: ..."."""
        said = {
            NATIVE: "loads it natively", FALLBACK: "loads it by a fallback", UNKNOWN: "may load it",
            REFUSED: "cannot load it",
        }[self.how]  # fmt: skip
        return f"{self.server} {said}" + (f": {self.why}" if self.why else "")


def verdict(
    server: str,
    format: str,
    schemes: Iterable[Scheme],
    device: float | None = None,
    cache: CacheScheme | None = None,
    model: str = "",
) -> Verdict:
    """How `server` loads what is stored in `format`: the worst over its schemes. `model` is the type in config.json.

    `device` is a compute capability, or CPU; None: the best of all NVIDIA GPUs, and of a CPU for what runs there alone.
    """
    if device is None:
        candidates = sorted(set(GPUS.values()) - {CPU}) if server in ("vllm", "tensorrt-llm") else [CPU]
        schemes = list(schemes)
        found = [verdict(server, format, schemes, each, cache, model) for each in candidates]
        return min(found, key=lambda each: HOW.index(each.how))
    if server == "vllm" and cache is not None and cache.element != "float8_e4m3":
        return Verdict(server, REFUSED, "it would take the scales of an int8 cache for those of fp8", "vLLM's source")
    stored: list[Scheme | None] = [*schemes]
    rows = [_row(server, format, scheme, device, model) for scheme in stored or [None]]
    worst = max(rows, key=lambda row: HOW.index(row.how))
    return Verdict(server, worst.how, worst.why, worst.source)


def _row(server: str, format: str, scheme: Scheme | None, device: float, model: str) -> Row:
    found = (row for row in ROWS if row.server == server and row.matches(format, scheme, device, model))
    return next(found, _SILENT)


def held_unpacked(server: str, model: str, format: str, modules: Iterable[str]) -> Verdict | None:
    """Refuse modules packed in `format` that a server cannot load so in this type of model; None: there are none."""
    modules = list(modules)
    for each in UNPACKED:
        found = [pattern for pattern in each.modules for module in modules if fnmatchcase(module, pattern)]
        if found and each.matches(server, model, format):
            named = ", ".join(f"`{pattern}`" for pattern in dict.fromkeys(found))
            why = f"it {each.why.format(f'{named} of {model}')}; name them in `ignore`"
            return Verdict(server, REFUSED, why, each.source)
    return None


def is_covered(server: str, version: str) -> bool:
    """Whether the rows are about every version that `version` allows: "any", "0.32" or ">=0.30"."""
    numbers = tuple(int(part) for part in version.removeprefix(">=").split(".")) if version != "any" else None
    return numbers is None or numbers >= OLDEST[server]


def limit(server: str, format: str, schemes: Iterable[Scheme]) -> str:
    """Why a server loads a checkpoint on no device, as a sentence for model cards; "" where it does on some."""
    schemes = list(schemes)
    found = [verdict(server, format, schemes, device) for device in sorted(set(GPUS.values()))]
    return f"{found[-1].why}." if all(each.how == REFUSED for each in found) else ""
