"""Blocks of GGUF: read by the gguf package, and the errors of llama.cpp's own quantizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runner.export.gguf_layouts import FORMATS, pack
from runner.export.gguf_types import SIZES
from runner.methods.block_quantization import BlockFormat, Rounded, dequantize, quantize

gguf = pytest.importorskip("gguf")

# What `ggml_quantize_chunk` of ggml 0.25.1 makes of `example`: Σ w (x − x̂)² / Σ w x² with w = 1 and no importance, and
# with w = importance.
LLAMA_CPP = {
    "q4_0": (1.057e-02, 8.350e-03), "q4_1": (6.977e-03, 3.738e-03), "q5_0": (2.569e-03, 2.072e-03),
    "q5_1": (1.622e-03, 8.970e-04), "q8_0": (4.063e-05, 4.255e-05), "iq4_nl": (7.196e-03, 5.561e-03),
    "q2_k": (9.595e-02, 4.742e-02), "q3_k": (2.737e-02, 1.879e-02), "q4_k": (5.944e-03, 4.004e-03),
    "q5_k": (1.510e-03, 1.122e-03), "q6_k": (4.134e-04, 3.172e-04),
}  # fmt: skip


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight with a few outliers, and the importance of its columns."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(64, 512, generator=generator)
    weight[torch.rand(64, 512, generator=generator) < 0.003] *= 6
    return weight, torch.exp(1.5 * torch.randn(512, generator=generator))


def read(found: Rounded, type: str) -> np.ndarray:
    weights: np.ndarray = gguf.dequantize(pack(found, type), gguf.GGMLQuantizationType[type.upper()])
    return weights


def error(made: torch.Tensor, weight: torch.Tensor, importance: torch.Tensor) -> float:
    return float(((made - weight).double().square() * importance).sum() / (weight.double().square() * importance).sum())


@pytest.mark.parametrize("type", list(FORMATS))
def test_the_gguf_package_reads_what_was_meant_at_less_error_than_llama_cpp(type: str) -> None:
    weight, importance = example()
    for weights, limit in zip((None, importance), LLAMA_CPP[type], strict=True):
        found = quantize(weight, FORMATS[type], weights)
        made = dequantize(found, FORMATS[type])
        assert np.array_equal(read(found, type), made.numpy())
        assert error(made, weight, torch.ones(512) if weights is None else weights) < limit


@pytest.mark.parametrize("type", list(FORMATS))
def test_blocks_that_are_constant_or_nearly_empty(type: str) -> None:
    weight = torch.zeros(8, 256)
    weight[1], weight[2] = 0.25, -0.25
    weight[3, 7], weight[4, 9] = 1.0, -1e-3
    weight[5], weight[6] = torch.linspace(0.5, 1, 256), torch.linspace(-1, -0.5, 256)
    weight[7, 0] = 1e-9  # below the smallest float16
    found = quantize(weight, FORMATS[type])
    made = dequantize(found, FORMATS[type])
    assert np.array_equal(read(found, type), made.numpy())
    assert torch.equal(made[0], weight[0])
    size = weight.abs().amax(1)[1:7]
    loose = {"q2_k": 0.35, "q3_k": 0.27, "q4_0": 0.13, "iq4_nl": 0.11}.get(type, 0.1)
    assert float(((made - weight).abs().amax(1)[1:7] / size).max()) < loose
    assert float(made[7].abs().max()) < 1e-6


def test_types_are_as_large_as_the_package_says() -> None:
    for type, (block, size) in SIZES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type.upper()]] == (block, size)
    assert all(SIZES[type][0] == format.size for type, format in FORMATS.items())


def test_a_scale_beyond_float16() -> None:
    with pytest.raises(OverflowError) as caught:
        quantize(torch.full((1, 32), 1e7), BlockFormat(32, -8, 7))
    assert str(caught.value) == "a scale is beyond what float16 holds (65504)"
