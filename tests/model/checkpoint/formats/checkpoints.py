"""What the tests of the formats share: random weights, packed models as readers load them, other libraries' codecs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch

from runner.model.checkpoint.headers import read_headers
from runner.model.checkpoint.quantization.format import Format
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.dtypes import compute_dtype, stored_dtype
from tests.model.packed import linears


def random_weight(scheme: Scheme, rows: int = 24, columns: int = 96, dtype: torch.dtype = torch.bfloat16) -> Quantized:
    generator = torch.Generator().manual_seed(scheme.bits)
    shape = (1 if scheme.strategy == "tensor" else rows, scheme.groups(columns))
    top = 2**scheme.bits
    return Quantized(
        codes=torch.randint(0, top, (rows, columns), dtype=torch.uint8, generator=generator),
        scale=(torch.rand(shape, generator=generator) / 10).to(dtype),
        zero_point=None if scheme.symmetric else torch.randint(0, top, shape, dtype=torch.uint8, generator=generator),
        numbers=scheme.weights,
    )


def naive_words(values: list[int], bits: int) -> list[int]:
    """The bit stream, one bit at a time."""
    stream = [(value >> bit) & 1 for value in values for bit in range(bits)]
    stream += [0] * (-len(stream) % 32)
    words = [sum(bit << i for i, bit in enumerate(stream[at : at + 32])) for at in range(0, len(stream), 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def compressor(format: str) -> Any:
    """The class of the compressed-tensors package that writes and reads a format."""
    module = importlib.import_module("compressed_tensors.compressors")
    return module.BaseCompressor.get_value_from_registry(format)


def scheme_object(group: dict[str, Any]) -> Any:
    return importlib.import_module("compressed_tensors.quantization").QuantizationScheme(**group)


def mixed(module: str) -> Scheme | None:
    if module == "model.layers.1.mlp.up_proj":
        return None
    if module.endswith("down_proj"):
        return integers(8, "channel", True)
    return integers(3, 32, True) if module == "model.layers.0.self_attn.q_proj" else integers(4, 32, True)


def load(folder: Path, **options: Any) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, found = read
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    loaded: torch.nn.Module = model.eval()
    return loaded


def load_as_computed(folder: Path, ids: torch.Tensor) -> torch.nn.Module:
    """The model by transformers, to compute in the type in which the stream does: float32 where halves are slow.

    It is loaded in the type that it is stored in, in which weights are unpacked; what it computes of its configuration
    is made anew.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    model: Any = load(folder)
    with torch.no_grad():
        model(ids[:1])  # unpacks the weights
        dtype = compute_dtype(stored_dtype(read_headers(folder)), torch.device("cpu"))
        config = AutoConfig.from_pretrained(folder)
        config.__dict__.pop("quantization_config", None)
        made = dict(AutoModelForCausalLM.from_config(config, dtype=dtype).named_buffers())
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in (torch.bfloat16, torch.float16):  # global scales of NVFP4 are float32 and stay so
                tensor.data = tensor.data.to(dtype)
        for name in set(made) & {name for name, _ in model.named_buffers()}:
            module, _, leaf = name.rpartition(".")
            delattr(model.get_submodule(module), leaf)  # compressed-tensors copies what is assigned, in the old type
            model.get_submodule(module).register_buffer(leaf, made[name], persistent=False)
    computing: torch.nn.Module = model
    return computing


def assert_read_back(folder: Path, dense: torch.nn.Module) -> None:
    """Our own reader gives the weights that the dense model has."""
    weights = dense.state_dict()
    with CheckpointReader(folder.with_name(f"{folder.name}-dense")) as source, CheckpointReader(folder) as reader:
        for name in linears(source):
            read = reader.read_weight(name)
            assert read.dtype == reader.dtype(name)
            assert torch.equal(read.to(weights[name].dtype), weights[name]), name


LINEARS = ("mlp.down_proj", "mlp.up_proj", "self_attn.q_proj")
ALL = [f"model.layers.{i}.{name}" for i in range(3) for name in LINEARS]


def departures(module: object) -> list[str]:
    """What a module lacks of the protocol of formats, or names otherwise."""
    found = [f"lacks {name}" for name in Format.__annotations__ if not hasattr(module, name)]
    for name, wanted in inspect.getmembers(Format, inspect.isfunction):
        if name.startswith("_"):
            continue
        own = getattr(module, name, None)
        parameters = list(inspect.signature(wanted).parameters)[1:]
        if own is None or list(inspect.signature(own).parameters) != parameters:
            found.append(f"has no {name}({', '.join(parameters)})")
    return found
