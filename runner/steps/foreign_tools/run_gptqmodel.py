"""GPTQ by GPTQModel; run by the interpreter of its environment: `python run_gptqmodel.py REQUEST.json`.

Stands alone: it imports nothing of runner. See runner.steps.foreign_tool for what it reads and writes.
"""

from __future__ import annotations

import json
import os
import sys


def say(phase: str, done: int) -> None:
    event = {"phase": phase, "done": done, "total": 3, "unit": "phases"}
    print(f"@runner {json.dumps(event)}", flush=True)  # noqa: T201


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    params = asked["params"]
    # By default it does not start on machines of few cores.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, asked["threads"])))

    import numpy as np
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    torch.set_num_threads(asked["threads"])
    torch.manual_seed(asked["seed"] % 2**32)
    say("loading", 0)
    ids = torch.from_numpy(np.load(asked["ids"]))
    group = params["group_size"]
    config = QuantizeConfig(
        bits=params["bits"], group_size=-1 if group == "channel" else group, sym=params["symmetric"], desc_act=False,
        damp_percent=params["dampening_fraction"], device=asked["device"], offload_to_disk=False,
    )  # fmt: skip
    model = GPTQModel.load(asked["model"], config)
    say("quantizing", 1)
    windows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    model.quantize(windows, batch_size=1)
    say("saving", 2)
    model.save(asked["out"])


if __name__ == "__main__":
    main()
