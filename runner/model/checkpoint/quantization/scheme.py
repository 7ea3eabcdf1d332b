"""Schemes: how the numbers of a weight, and of the inputs that it is multiplied with, are stored. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from runner.model.checkpoint.quantization.codebooks import CODEBOOKS

ELEMENTS = {  # name → bits
    **{f"int{bits}": bits for bits in range(2, 9)}, "float8_e4m3": 8, "float4_e2m1": 4, **dict.fromkeys(CODEBOOKS, 4),
}  # fmt: skip
AS_WEIGHTS = "weights"  # a scale stored in the floating type of the weights that were quantized
SCALES = (AS_WEIGHTS, "float8_e4m3", "float8_e8m0")
SHARED = ("tensor", "channel", "token")  # layouts by name; others are a group size or the sides of a block

Layout = int | str | tuple[int, int]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Numbers:
    """Numbers that share scales: w ≈ scale · (q − zero point), q of the type `element`.

    element    a name of ELEMENTS
    layout     what shares a scale: N columns of a row, a block (rows, columns), the "channel" (a row of a weight), the
               "token" (a row of an input), or the whole "tensor"
    scale      the type in which scales are stored: a name of SCALES. Scales of groups in float8_e4m3 have a second
               level, one float32 scale of the whole tensor (NVFP4)
    symmetric  the zero point is the middle of the element's range
    """

    element: str
    layout: Layout
    scale: str = AS_WEIGHTS
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS:
            raise ValueError(f"element must be one of {', '.join(ELEMENTS)}; got {self.element!r}")
        if isinstance(self.layout, str) and self.layout not in SHARED:
            raise ValueError(f"layout must be a number, a pair or one of {', '.join(SHARED)}; got {self.layout!r}")
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}; got {self.scale!r}")

    @property
    def bits(self) -> int:
        return ELEMENTS[self.element]

    @property
    def is_integer(self) -> bool:
        return self.element.startswith("int")

    @property
    def is_codebook(self) -> bool:
        return self.element in CODEBOOKS

    @property
    def stored(self) -> Numbers:
        """How they lie on disk: powers of two among integers of 8 bits, since no format has them in 4."""
        return replace(self, element="int8") if self.element == "log2" else self

    @property
    def two_level(self) -> bool:
        """Whether scales of groups are scaled in turn by one float32 number of the whole tensor."""
        return self.scale == "float8_e4m3" and isinstance(self.layout, int)

    @property
    def strategy(self) -> str:
        """What shares a scale, in a word: "group", "block", "channel", "token" or "tensor"."""
        if isinstance(self.layout, str):
            return self.layout
        return "group" if isinstance(self.layout, int) else "block"

    def columns(self, in_features: int) -> int:
        """Columns that share a scale."""
        if isinstance(self.layout, str):
            return in_features
        return self.layout if isinstance(self.layout, int) else self.layout[1]

    def groups(self, in_features: int) -> int:
        return ceil_div(in_features, self.columns(in_features))

    def scale_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """The shape of the scales of a weight [out, in]; [1, 1] for a whole tensor."""
        rows = 1 if self.layout == "tensor" else out_features
        if isinstance(self.layout, tuple):
            rows = ceil_div(out_features, self.layout[0])
        return rows, self.groups(in_features)

    def describe(self) -> str:
        """ "4-bit, symmetric, groups of 128", "float8_e4m3, blocks of 128 × 128"; for model cards and messages."""
        if isinstance(self.layout, tuple):
            shared = f"blocks of {self.layout[0]} × {self.layout[1]}"
        else:
            shared = f"per {self.layout}" if isinstance(self.layout, str) else f"groups of {self.layout}"
        if not self.is_integer:
            scales = "" if self.scale == AS_WEIGHTS else f", scales in {self.scale}"
            return f"{self.element}, {shared}{scales}"
        return f"{self.bits}-bit, {'symmetric' if self.symmetric else 'asymmetric'}, {shared}"


@dataclass(frozen=True)
class Scheme:
    """How one linear layer is stored and computed.

    weights      the numbers of the weight
    activations  the numbers to which its inputs are rounded before the product; None: they stay as they are
    dynamic      the scales of the activations come from the inputs themselves, not from calibration; of two levels,
                 the scales of groups do, and that of the tensor is calibrated
    """

    weights: Numbers
    activations: Numbers | None = None
    dynamic: bool = True

    @property
    def stored(self) -> Scheme:
        """The scheme of a checkpoint with these weights: `Numbers.stored`."""
        return replace(self, weights=self.weights.stored)

    @property
    def calibrated(self) -> bool:
        """Whether rounding its inputs takes a number that only calibration data gives."""
        return self.activations is not None and (not self.dynamic or self.activations.two_level)

    @property
    def bits(self) -> int:
        return self.weights.bits

    @property
    def group_size(self) -> Layout:
        """Columns of a row that share a scale; or "channel", "tensor", or the sides of a block."""
        return self.weights.layout

    @property
    def symmetric(self) -> bool:
        return self.weights.symmetric

    @property
    def strategy(self) -> str:
        return self.weights.strategy

    @property
    def is_integer(self) -> bool:
        """Whether it stores integer weights and leaves activations alone: what `bits` and `group_size` can say."""
        return self.weights.is_integer and self.activations is None

    def columns(self, in_features: int) -> int:
        return self.weights.columns(in_features)

    def groups(self, in_features: int) -> int:
        return self.weights.groups(in_features)

    def describe(self) -> str:
        """That of the weights, and of the activations where they are rounded."""
        text = self.weights.describe()
        if self.activations is None:
            return text
        how = "with calibrated scales" if not self.dynamic else "dynamically"
        return f"{text}; inputs {how} to {self.activations.describe()}"

    def order(self) -> tuple[int, str, bool, str]:
        """A key that sorts schemes, always the same way."""
        return self.bits, str(self.group_size), self.symmetric, self.describe()


def integers(bits: int, group_size: int | str, symmetric: bool) -> Scheme:
    """The scheme that `bits`, `group_size` and `symmetric` are short for: integer weights, activations as they are."""
    return Scheme(Numbers(f"int{bits}", group_size, AS_WEIGHTS, symmetric))
