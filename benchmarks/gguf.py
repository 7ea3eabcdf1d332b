"""Perplexity of `build.gguf`'s files beside llama.cpp's own quantizer with an importance matrix, all in llama.cpp.

    python -m benchmarks.gguf LIBRARIES MODEL WORK [TYPE …]

LIBRARIES is as for `benchmarks.readers.llama_cpp_library`, MODEL a checkpoint, WORK an empty folder. Both quantizers
are given the same importance, of 16 windows of 512 tokens of the embedded calibration text; perplexity is over 6
windows of its evaluation text. Prints a row for each file: bytes of the file, share of the bytes of the checkpoint.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import tokens
from benchmarks.readers.llama_cpp_library import Library, loss
from runner.export import gguf_architecture
from runner.export.gguf_file import write
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.headers import model_config
from runner.model.layerwise import input_energies
from runner.model.layerwise.stream_run import StreamInputs
from runner.steps import layer_stream
from tests.host import Host

TYPES = ("q4_k_m", "q5_k_m", "q4_0", "iq4_nl", "q3_k_m")


def main(libraries: str, model: str, work: str, *types: str) -> None:
    library, checkpoint, folder = Library(Path(libraries)), Path(model), Path(work)
    dense = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    evaluation = tokens.windows("evaluation", 6, 512, checkpoint)
    calibration = torch.from_numpy(tokens.windows("calibration", 16, 512, checkpoint))
    host = Host(folder / "energies", "build.gguf", checkpoint, calibration)
    known = facts(checkpoint, model)
    inputs = StreamInputs(checkpoint, known, "cpu", calibration)
    importance = input_energies.measure(inputs, [site.name for site in known.sites], layer_stream.stream_run(host))
    described = gguf_architecture.described(model_config(checkpoint))

    def built(name: str, **params: Any) -> Path:
        own = Host(folder / name, "build.gguf", checkpoint, calibration, **params)
        write(own, described, importance)
        return own.out_dir / "model.gguf"

    def shown(name: str, file: Path) -> None:
        score, size = math.exp(loss(library, file, evaluation)), file.stat().st_size
        print(f"{name:24} {size:12,} {size / dense:6.3f} {score:9.4f}", flush=True)

    exact = built("bf16", dense="bf16", embedding="bf16")
    shown("bf16", exact)
    layers = gguf_architecture.of(known.config).layers
    given = {
        f"blk.{layer}.{name}.weight": importance[f"model.layers.{layer}.{module}"].numpy()
        for layer in range(known.layer_count) for module, name in layers.items()
        if f"model.layers.{layer}.{module}" in importance
    }  # fmt: skip
    np.savez(folder / "importance.npz", **given)  # type: ignore[arg-type]
    full = built("f32", dense="f32", embedding="f32")
    for type in types or TYPES:
        shown(f"{type} ours", built(type, dense=type))
        theirs = folder / f"{type}.gguf"
        library.quantize(full, type, theirs, folder / "importance.npz")
        shown(f"{type} llama-quantize", theirs)


if __name__ == "__main__":
    main(*sys.argv[1:])
