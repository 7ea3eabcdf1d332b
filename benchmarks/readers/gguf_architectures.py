"""Compare the logits of transformers and of llama.cpp for tiny random models of every architecture of `build.gguf`.

    python -m benchmarks.readers.gguf_architectures LIBRARIES [NAME …]

LIBRARIES is as for `benchmarks.readers.llama_cpp_library`. Prints the largest difference of a logit, relative to the
largest logit: llama.cpp takes GELU from a table of float16, hence 1e-3 there, and 1e-5 elsewhere.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.readers.llama_cpp_library import Library
from tests.steps.build import gguf_models
from tests.steps.build.gguf_models import EXACT, built


def main(libraries: str, *names: str) -> None:
    library = Library(Path(libraries))
    ids = np.random.default_rng(1).integers(3, 4096, (2, 24))
    for name in names or gguf_models.CASES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = gguf_models.case(Path(folder) / "model", name)
            made, _ = built(Path(folder), checkpoint, **EXACT)
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
            with torch.inference_mode():
                wanted = model(torch.from_numpy(ids)).logits.numpy()
            found = np.stack(list(library.logits(made / "model.gguf", ids)))
            print(f"{name:24} {np.abs(found - wanted).max() / np.abs(wanted).max():.1e}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
