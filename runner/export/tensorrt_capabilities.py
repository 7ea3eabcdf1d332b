"""Which GPUs an engine can be for: compute capabilities by the numbers that a checkpoint stores. Imports no torch.

An engine has the types of its graph on every GPU that it is for: TensorRT for RTX refuses to build one for 8.0 and 8.6
with 8-bit floats, and for 8.9 with 4-bit ones (tried with tensorrt-rtx 1.7.1). It is the table of NVIDIA, too:
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from runner.contracts.sites import Site
from runner.errors import Diagnostic, MachineError
from runner.export import preflight
from runner.export.tensorrt import CAPABILITIES, RTX
from runner.model.checkpoint.quantization.scheme import Scheme

_PATH = "compute_capabilities"


class Need(NamedTuple):
    """The lowest compute capability that has the numbers of a checkpoint.

    numbers   how messages call them
    lowest    by flavour
    examples  values of `compute_capabilities` for `rtx`
    """

    numbers: str
    lowest: dict[str, str]
    examples: tuple[str, ...]


_NEEDS = {
    "float4_e2m1": Need("4-bit floats", {"rtx": "12.0", "enterprise": "10.0"}, ("12.0",)),
    "float8_e4m3": Need("8-bit floats", {"rtx": "8.9", "enterprise": "8.9"}, ("8.9", "12.0")),
}


Packed = Mapping[str, tuple[Site, Scheme]]  # of `preflight.schemes`


def need(packed: Packed) -> tuple[Need, list[str]] | None:
    """Return what packed weights need most, and the modules that do; None where every GPU has their numbers."""
    for element, found in _NEEDS.items():
        names = [name for name, (_, scheme) in packed.items() if scheme.weights.element == element]
        if names:
            return found, names
    return None


def refuse(asked: Sequence[str] | None, packed: Packed) -> list[Diagnostic]:
    """Return why no engine of TensorRT for RTX can be built for the GPUs asked for; None: for all that are usual."""
    needed, found = need(packed), []
    for index, capability in enumerate(asked or ()):
        place = (_PATH, index)
        if capability not in CAPABILITIES:
            known = ", ".join(CAPABILITIES)
            message = f"TensorRT-RTX builds no engines for compute capability {capability}; it knows {known}"
            help = "leave it out"
            if capability in ("9.0", "10.0", "10.3"):
                help = "build on that GPU with `flavour: enterprise`"
            found.append(Diagnostic("R495", message, help, path=place))
        elif needed is not None and is_below(capability, needed[0].lowest[RTX]):
            lacks = f"GPUs of compute capability {capability} have no {needed[0].numbers}"
            message = f"{lacks}, in which {preflight.listed(needed[1])} is stored"
            help = f"leave it out: those from {needed[0].lowest[RTX]} on have them"
            found.append(Diagnostic("R452", message, help, path=place))
        elif capability == "7.5" and packed:
            message = "GPUs of compute capability 7.5 have no way to multiply by quantized weights"
            found.append(Diagnostic("R495", message, "leave it out, or build it of a dense checkpoint", path=place))
    if asked is None and needed is not None:
        listed = ", ".join(f'"{each}"' for each in needed[0].examples)
        message = (
            f"{preflight.listed(needed[1])} is stored in {needed[0].numbers}, which not all GPUs of a portable engine "
            f"have: TensorRT-RTX builds it for those from {needed[0].lowest[RTX]} on alone"
        )
        found.append(Diagnostic("R452", message, f"name the GPUs: `{_PATH}: [{listed}]`", path=(_PATH,)))
    return found


def require(capability: str, flavour: str, packed: Packed) -> None:
    """Raise MachineError where the GPU of this machine, for which an engine is to be built, lacks the numbers."""
    needed = need(packed)
    if needed is not None and is_below(capability, needed[0].lowest[flavour]):
        lowest = needed[0].lowest[flavour]
        raise MachineError(
            f"the GPU of this machine has compute capability {capability} and no {needed[0].numbers}, in which "
            f"{preflight.listed(needed[1])} is stored",
            f"build on a GPU from {lowest} on, or quantize with `bits: 4`, which every GPU from 8.0 on multiplies by",
        )


def is_below(capability: str, lowest: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".")]

    return numbers(capability) < numbers(lowest)
