"""What dropping experts costs: a small mixture trained on the embedded text, cut by every criterion.

    python -m benchmarks.experts --work WORK

The mixture is a Mixtral with the embeddings, attention and norms of `demo:tiny-llama` and 16 experts in each of its 6
layers, 4 of them for each token: each starts as every 16th neuron of the dense feed-forward block, so that no two are
alike, with a random router; all of it is trained. It is kept in WORK/mixture.
Perplexity is that of the first windows of the evaluation split, which the training did not see. `random` is run with
several seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import tokens
from benchmarks.measure import applied

EXPERTS, ACTIVE, WIDTH = 16, 4, 48
RATIOS = (0.25, 0.5)
CRITERIA = ("reap", "energy", "frequency", "norm", "reap, merged", "energy, merged", "frequency, merged")


def train(
    folder: Path, steps: int, balance: float, batch: int = 4, length: int = 256, learning_rate: float = 1e-3
) -> None:
    """Train the mixture in float32 with AdamW and a cosine schedule, and save it; print the loss on the way.

    `balance` weighs the loss that evens out the load of the experts of each layer. `uneven`, printed over its least
    value, is 1 where all get the same number of tokens.
    """
    import shutil

    import torch
    import transformers
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    torch.manual_seed(0)
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    start = load(tokens.TINY_LLAMA, dtype=torch.float32)
    base = start.config
    config = transformers.MixtralConfig(
        vocab_size=base.vocab_size, hidden_size=base.hidden_size, intermediate_size=WIDTH,
        num_hidden_layers=base.num_hidden_layers, num_attention_heads=base.num_attention_heads,
        num_key_value_heads=base.num_key_value_heads, head_dim=base.head_dim, rms_norm_eps=base.rms_norm_eps,
        max_position_embeddings=base.max_position_embeddings, rope_parameters=dict(base.rope_parameters),
        num_local_experts=EXPERTS, num_experts_per_tok=ACTIVE, tie_word_embeddings=True, sliding_window=None,
        output_router_logits=True, bos_token_id=base.bos_token_id,
        eos_token_id=base.eos_token_id, pad_token_id=base.pad_token_id, dtype="bfloat16",
    )  # fmt: skip
    model: Any = transformers.MixtralForCausalLM(config)
    model.load_state_dict({k: v for k, v in start.state_dict().items() if ".mlp." not in k}, strict=False)
    own_layers = model.model.layers
    for layer, own in zip(start.model.layers, own_layers, strict=True):
        for expert in range(EXPERTS):
            gate, up = (each.weight[expert::EXPERTS].detach() for each in (layer.mlp.gate_proj, layer.mlp.up_proj))
            own.mlp.experts.gate_up_proj.data[expert] = torch.cat([gate, up])
            # Of the sum over all experts a token gets the mean over some: half of what would make up for it.
            own.mlp.experts.down_proj.data[expert] = EXPERTS / 2 * layer.mlp.down_proj.weight[:, expert::EXPERTS]
    ids = torch.from_numpy(tokens.windows("train", None, length))
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    for step in range(steps):
        chosen = order[torch.arange(step * batch, (step + 1) * batch) % len(order)]
        out = model.model(input_ids=ids[chosen], output_router_logits=True)
        loss = model.loss_function(model.lm_head(out.last_hidden_state), ids[chosen], config.vocab_size)
        # Layer by layer: over all layers at once, as in transformers, an expert that one layer overloads makes up for
        # its namesake in another.
        uneven = sum(load_balancing_loss_func((each,), EXPERTS, ACTIVE) for each in out.router_logits) / len(own_layers)
        (loss + balance * uneven).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 24:
            said = f"loss {loss.item():.3f}, uneven {float(uneven) / ACTIVE:.3f}, {time.perf_counter() - began:.0f} s"
            print(f"step {step + 1}: {said}", file=sys.stderr)
    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokens.TINY_LLAMA / name, folder / name)


def step_id(criterion: str, ratio: float) -> str:
    return f"{criterion.replace(', ', '-')}-{round(100 * ratio)}"


def recipe(model: Path, criteria: tuple[str, ...], seed: int, windows: int) -> dict[str, Any]:
    """One recipe with a branch for each criterion and ratio."""
    steps: list[dict[str, Any]] = [{"evaluate.perplexity": {"data": "evaluation"}, "id": "dense-quality"}]
    for ratio in RATIOS:
        for criterion in criteria:
            name = step_id(criterion, ratio)
            by, _, merged = criterion.partition(", ")
            given = {"data": "calibration", "ratio": ratio, "criterion": by, "merge": bool(merged)}
            steps.append({"prune.experts": given, "id": name, "from": "model"})
            steps.append({"evaluate.perplexity": {"data": "evaluation"}, "id": f"{name}-quality", "from": name})
    source = {"source": "demo:stdlib", "sequence_length": 512}
    return {
        "version": 1, "name": f"experts-{criteria[0]}-{seed}", "model": {"source": str(model)}, "seed": seed,
        "data": {
            "calibration": {**source, "split": "calibration", "samples": 32},
            "evaluation": {**source, "split": "evaluation", "samples": windows},
        },
        "steps": steps,
    }  # fmt: skip


def measured(work: Path, document: Mapping[str, Any], cores: list[int]) -> dict[str, Mapping[str, float]]:
    """Apply a recipe; return the metrics of its steps by id."""
    return {id: record["metrics"] for id, record in applied(document, work, cores).items()}


def table(dense: float, rows: list[tuple[str, list[tuple[float, float, float]]]]) -> str:
    """Markdown: a row for each criterion, and for each ratio the perplexity and what is lost of tokens and energy."""
    heads = [f"{round(100 * ratio)} % dropped: perplexity | tokens lost | energy lost" for ratio in RATIOS]
    lines = [f"| dense: {dense:.3f} | {' | '.join(heads)} |", "|---|" + "---|" * (3 * len(RATIOS))]
    for name, values in rows:
        cells = " | ".join(f"{p:.3f} | {100 * t:.1f} % | {100 * e:.1f} %" for p, t, e in values)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def row(metrics: Mapping[str, Mapping[str, float]], criterion: str) -> list[tuple[float, float, float]]:
    found = []
    for ratio in RATIOS:
        name = step_id(criterion, ratio)
        perplexity, lost = metrics[f"{name}-quality"]["perplexity"], metrics[name]
        found.append((perplexity, lost["tokens_lost"], lost["energy_lost"]))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the model and the jobs; made if missing")
    parser.add_argument("--steps", type=int, default=400, help="training steps of 4 × 256 tokens; default: 400")
    parser.add_argument("--balance", type=float, default=0.02, help="weight of the loss of balance; default: 0.02")
    parser.add_argument("--windows", type=int, default=100, help="windows of 512 tokens that judge; default: 100")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of `random`; default: 3")
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args(argv)
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    model = work / "mixture"
    if not (model / "config.json").is_file():
        train(model, args.steps, args.balance)
    metrics = measured(work, recipe(model, CRITERIA, 0, args.windows), args.cores)
    rows = [(criterion, row(metrics, criterion)) for criterion in CRITERIA]
    for seed in range(args.seeds):
        found = measured(work, recipe(model, ("random",), seed, args.windows), args.cores)
        rows += [(f"random, seed {seed}", row(found, "random"))]
    print(table(metrics["dense-quality"]["perplexity"], rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
