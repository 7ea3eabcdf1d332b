"""GPTQ by AutoGPTQ 0.7.1; run by the interpreter of its environment: `python run_autogptq.py REQUEST.json`.

Stands alone: it imports nothing of runner. See runner.steps.foreign_tool for what it reads and writes. AutoGPTQ
computes on an NVIDIA GPU only.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any


def say(phase: str, done: int) -> None:
    event = {"phase": phase, "done": done, "total": 3, "unit": "phases"}
    print(f"@runner {json.dumps(event)}", flush=True)  # noqa: T201


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    params = asked["params"]

    import numpy as np
    import torch
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    torch.set_num_threads(asked["threads"])
    torch.manual_seed(asked["seed"] % 2**32)
    say("loading", 0)
    out = Path(asked["out"])
    model_folder = as_transformers_4(Path(asked["model"]), out.parent / "tool-model")
    ids = torch.from_numpy(np.load(asked["ids"]))
    group = params["group_size"]
    config = BaseQuantizeConfig(
        bits=params["bits"], group_size=-1 if group == "channel" else group, sym=True, desc_act=False,
        damp_percent=params["dampening_fraction"],
    )  # fmt: skip
    stored = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))["torch_dtype"]
    model = AutoGPTQForCausalLM.from_pretrained(str(model_folder), config, torch_dtype=getattr(torch, stored))
    unread = unread_tensors(model_folder, model.model.state_dict())
    if unread:
        sys.exit(f"transformers of this environment leaves `{unread[0]}` unread: it does not know this model")
    say("quantizing", 1)
    windows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    model.quantize(windows, batch_size=1)
    say("saving", 2)
    model.save_quantized(str(out), use_safetensors=True)
    (weights,) = out.glob("*.safetensors")
    weights.rename(out / "model.safetensors")
    shutil.rmtree(model_folder)


def as_transformers_4(source: Path, folder: Path) -> Path:
    """Link a checkpoint into `folder`, with the names that transformers 4.41 has for what version 5 writes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rope: dict[str, Any] = config.pop("rope_parameters", None) or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "dynamic"):
        config["rope_scaling"] = {"type": kind, "factor": rope["factor"]}
    elif kind != "default" or (rope and "rope_theta" not in rope):
        sys.exit(f"transformers of this environment does not know these rotary positions: {json.dumps(rope)}")
    config["torch_dtype"] = config.pop("dtype", None) or config.get("torch_dtype") or "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def unread_tensors(folder: Path, known: Any) -> list[str]:
    """Return the stored tensors that a model does not have."""
    from safetensors import safe_open

    stored: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="np") as file:
            stored += file.keys()
    return [name for name in stored if name not in known and not name.endswith("inv_freq")]


if __name__ == "__main__":
    main()
