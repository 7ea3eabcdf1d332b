"""Sizes and perplexities of a random model with a vocabulary like Gemma 3's, whose tables are most of its weights.

    python -m benchmarks.vocabulary WORK/smollm2 --work WORK

262,144 × 640 in the layers of Gemma 3 270M, tied, with the tokenizer of the given folder, whose ids are the first ones.
Layers in 4 bits become a GGUF file and an ONNX graph, each with tables in 16 or 32 bits and with those of the default,
and a program of ExecuTorch with --executorch, a Python that has it and this project's other packages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import environment, run

ROWS, WIDTH = 262_144, 640
ENGINES: dict[str, dict[str, Any]] = {
    "GGUF, tables f16": {"build.gguf": {"embedding": "f16"}},
    "GGUF": {"build.gguf": {}},
    "ONNX, tables fp32": {"build.onnx": {"embedding": "dense"}},
    "ONNX": {"build.onnx": {}},
    "ExecuTorch": {"build.executorch": {"context": 256}},
}


def write(folder: Path, tokenizer: Path, layers: int) -> int:
    """Write the model in bfloat16, once; return the bytes of its weights."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    if not folder.is_dir():
        torch.manual_seed(0)
        names = json.loads((tokenizer / "config.json").read_text())
        config = Gemma3TextConfig(
            vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=2048, num_hidden_layers=layers, head_dim=256,
            num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=2048, sliding_window=512,
            query_pre_attn_scalar=256, tie_word_embeddings=True, bos_token_id=names["bos_token_id"],
            eos_token_id=names["eos_token_id"], pad_token_id=names.get("pad_token_id"),
        )  # fmt: skip
        model: Any = Gemma3ForCausalLM(config)
        with torch.no_grad():  # logits that differ: the deviation of the default makes all tokens as likely
            model.get_input_embeddings().weight.normal_(std=0.1)
        model.to(torch.bfloat16).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, folder / name)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--executorch")
    args = parser.parse_args(argv)
    work: Path = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    dense = write(work / f"vocabulary-{args.layers}", args.tokenizer, args.layers)
    chosen = {name: step for name, step in ENGINES.items() if args.executorch or name != "ExecuTorch"}
    steps: list[dict[str, Any]] = [{"id": "int4", "quantize.rtn": {"bits": 4, "group_size": 32}}]
    steps.append({"id": "int4-quality", "evaluate.perplexity": {"data": "evaluation"}})
    for index, step in enumerate(chosen.values()):
        steps.append({"id": f"e{index}", "from": "int4", **step})
        steps.append({"id": f"e{index}-quality", "from": f"e{index}", "evaluate.perplexity": {"data": "evaluation"}})
    data = {"source": "demo:stdlib", "split": "evaluation", "samples": 4, "sequence_length": 128}
    document = {
        "version": 1, "name": "vocabulary", "model": {"source": str(work / f"vocabulary-{args.layers}")},
        "data": {"evaluation": data}, "steps": steps,
    }  # fmt: skip
    (work / "vocabulary.yaml").write_text(json.dumps(document, indent=1))
    command = [args.executorch or sys.executable, "-m", "runner", "apply", "vocabulary.yaml", "--jobs", "jobs"]
    run([*command, "--progress", "plain"], cwd=work, log=work / "vocabulary.log", cores=[0, 1], env=environment(2))
    job = max((work / "jobs").glob("vocabulary-*"), key=lambda path: path.stat().st_mtime)
    print(f"{dense / 1e6:.1f} MB in bfloat16; INT4 checkpoint: {_perplexity(job, 'int4')}\n")
    print("| engine | MB | of bfloat16 | perplexity |\n|---|---|---|---|")
    for index, name in enumerate(chosen):
        folder = next((job / "steps").glob(f"[0-9]*-e{index}")) / "out"
        files = [path for pattern in ("*.gguf", "*.onnx*", "*.pte") for path in folder.rglob(pattern)]
        size = sum(path.stat().st_size for path in files)
        print(f"| {name} | {size / 1e6:.1f} | {size / dense:.3f} | {_perplexity(job, f'e{index}')} |")
    return 0


def _perplexity(job: Path, step: str) -> str:
    (record,) = (job / "steps").glob(f"[0-9]*-{step}-quality/record.json")
    return f"{json.loads(record.read_text())['metrics']['perplexity']:,.1f}"


if __name__ == "__main__":
    sys.exit(main())
