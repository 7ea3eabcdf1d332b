"""Building the graph of a checkpoint in this process, and tiny packed checkpoints to build it of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.model.checkpoint.quantization.scheme import Scheme
from runner.runtime.onnxruntime import OnnxRuntime
from runner.runtime.protocol import Ids
from runner.runtime.transformers import Transformers
from runner.steps.build import onnx
from tests.host import Host
from tests.model.packed import PACK_QUANTIZED, make

VOCABULARY = 96
MODEL = Path(__file__).parents[2] / "runner" / "demo" / "models" / "tiny-llama"
LONG: dict[str, Any] = {"max_position_embeddings": 128}


def build(folder: Path, checkpoint: Path, **params: Any) -> Path:
    """Run `build.onnx`, with exact tables where nothing else is asked for; the engine's folder."""
    host = Host(folder, "build.onnx", checkpoint, **{"embedding": "dense", **params})
    onnx.run(host)
    return host.out_dir


def packed(folder: Path, scheme: Scheme, name: str = "llama", format: str = PACK_QUANTIZED, **changes: Any) -> Path:
    make(folder, format, lambda module: scheme, name, **changes)
    return folder


def prompts(batch: int, length: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(3, VOCABULARY, (batch, length))


def pair(engine: Path, checkpoint: Path) -> tuple[OnnxRuntime, Transformers]:
    """The engine with one thread, and its checkpoint in float32 with its integers dequantized without rounding."""
    return OnnxRuntime(engine, threads=1), Transformers(checkpoint, dtype=torch.float32, exact=True)
