"""Second moments of a linear's inputs, accumulated batch by batch. Pure functions on tensors.

    Gram          G += Xᵀ X                      [K, K] float32   (GPTQ's H = 2/n · G)
    cross moment  C += (X_full − X_quant)ᵀ X_quant   [K, K] float32   (GPTAQ's ΔX Xᵀ)
    square sums   s += Σ_t X_tj²                 [K]    float64 where the device has it   (Wanda's ‖X_j‖₂²)

X is [tokens, K]. Only the upper block triangle of a Gram is computed, which takes little more than half of the whole
product; `finish_gram` mirrors it. Where the CPU multiplies bf16 faster, bf16 inputs are multiplied as such: each
chunk's product is accumulated in float32 inside the product, rounded to bf16 once, and chunks are summed in float32.
That perturbs an entry by at most 2⁻⁹ of itself, randomly, hence by 2⁻⁹/√chunks after many chunks; the diagonal, which
the dampening and the order of columns are taken from, is summed in float32 and exact to its last digits. An NVIDIA GPU
multiplies halves of either kind and leaves the sums in float32, which loses nothing.

With a fixed number of threads the same inputs in the same batches give the same bits.
"""

from __future__ import annotations

import torch

from runner.system.cpu import fast_bf16

WIDE = 1 << 20  # elements that are float32 at once for the diagonal: fresh pages for more cost more than the sum
CHUNK = 2048  # tokens of one product: the float32 sum over chunks costs a tenth of the product


def largest(x: torch.Tensor) -> torch.Tensor:
    """The largest |x|, float32; NaN where there is one."""
    low, high = torch.aminmax(x)
    return torch.maximum(-low.float(), high.float())


def new_gram(columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.zeros(columns, columns, dtype=torch.float32, device=device)


def new_square_sums(columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    wide = torch.device(device).type != "mps"  # has no float64
    return torch.zeros(columns, dtype=torch.float64 if wide else torch.float32, device=device)


def add_gram(gram: torch.Tensor, x: torch.Tensor) -> None:
    """gram += xᵀ x on the upper block triangle; what lies below stays zero. x is [tokens, K]."""
    if _half_on_gpu(x):
        _add_half(gram, x)
        return
    narrow = _narrow(x)
    for chunk in x.split(CHUNK):
        if narrow:
            _add_narrow(gram, chunk)
        else:
            _add_wide(gram, chunk.float())


def finish_gram(gram: torch.Tensor, tokens: int) -> torch.Tensor:
    """H = 2/tokens · G, whole and symmetric, made in place of `gram`."""
    gram.mul_(2.0 / tokens)
    block = _block(gram.shape[0])
    for begin in range(0, gram.shape[0], block):
        end = begin + block
        corner = gram[begin:end, begin:end]
        corner.copy_(corner.triu() + corner.triu(1).T)
        gram[end:, begin:end] = gram[begin:end, end:].T
    return gram


def add_cross(cross: torch.Tensor, full: torch.Tensor, quantized: torch.Tensor) -> None:
    """cross += (full − quantized)ᵀ quantized; both [tokens, K], the same tokens before and after quantization."""
    if _half_on_gpu(full) and full.dtype is quantized.dtype:
        cross.add_(torch.mm((full - quantized).T, quantized, out_dtype=torch.float32))
        return
    narrow = _narrow(full) and _narrow(quantized)
    for whole, part in zip(full.split(CHUNK), quantized.split(CHUNK), strict=True):
        if narrow:
            cross.add_(torch.mm((whole - part).T, part))
        else:
            wide = part.float()
            cross.addmm_((whole.float() - wide).T, wide)


def finish_cross(cross: torch.Tensor, tokens: int) -> torch.Tensor:
    """The cross moment on the scale of `finish_gram`, in place."""
    return cross.mul_(2.0 / tokens)


def add_square_sums(sums: torch.Tensor, x: torch.Tensor) -> None:
    """sums += Σ_t x_tj²."""
    for chunk in x.split(CHUNK):
        sums.add_(chunk.float().square().sum(0, dtype=sums.dtype))  # not in place: float32 inputs flow on


def input_norms(sums: torch.Tensor) -> torch.Tensor:
    """‖X_j‖₂ [K], float32."""
    return sums.sqrt().float()


def _block(columns: int) -> int:
    """Columns of one block row of the triangle: smaller wastes less, larger multiplies faster (measured)."""
    return max(128, columns // 16)


def _narrow(x: torch.Tensor) -> bool:
    return x.dtype is torch.bfloat16 and x.device.type == "cpu" and fast_bf16()


def _half_on_gpu(x: torch.Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def _add_half(gram: torch.Tensor, x: torch.Tensor) -> None:
    block = max(1024, gram.shape[0] // 4)
    for begin in range(0, gram.shape[0], block):
        gram[begin : begin + block, begin:].add_(
            torch.mm(x[:, begin : begin + block].T, x[:, begin:], out_dtype=torch.float32)
        )


def _add_wide(gram: torch.Tensor, x: torch.Tensor) -> None:
    block = _block(gram.shape[0])
    for begin in range(0, gram.shape[0], block):
        gram[begin : begin + block, begin:].addmm_(x[:, begin : begin + block].T, x[:, begin:])


def _add_narrow(gram: torch.Tensor, x: torch.Tensor) -> None:
    diagonal = gram.diagonal()
    exact = diagonal.clone()
    for part in x.split(max(1, WIDE // x.shape[1])):
        exact += part.float().square_().sum(0)  # in place of the copy: these inputs are bf16
    block = _block(gram.shape[0])
    for begin in range(0, gram.shape[0], block):
        gram[begin : begin + block, begin:].add_(torch.mm(x[:, begin : begin + block].T, x[:, begin:]))
    diagonal.copy_(exact)
