"""Continue prompts by vLLM: `FOLDER PROMPTS COUNT OUT`, or `CASES`, JSON of [{folder, prompts, count, out}].

With CASES each checkpoint has a process of its own. Stands alone, in an environment that has vLLM. `out` gets
{"tokens": [...]}, those of each prompt, or what vLLM says, as {"problem": "..."}. The package is imported once:
that takes longer than loading a small model. With `-` in place of CASES each line of the standard input is a case; one
with {windows, types} in place of {prompts, count} gets {"losses": [...]}, those of each token.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # an engine in this process, which was forked
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB

import vllm
from vllm import LLM, ModelRegistry, SamplingParams

_LONGEST = 900  # seconds that one answer may take


def continued(case: dict[str, Any]) -> list[list[int]]:
    """Return the greedy tokens of each prompt."""
    prompts, count = case["prompts"], int(case["count"])
    longest = max(map(len, prompts)) + count + 1
    model = LLM(case["folder"], max_model_len=longest, max_num_seqs=4, max_num_batched_tokens=256, enforce_eager=True)
    how = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    made = model.generate([{"prompt_token_ids": ids} for ids in prompts], how, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in made]


def losses(case: dict[str, Any]) -> list[list[float]]:
    """Return minus the log-probability of each token of the windows but their first.

    The first of `types`, names of torch's, in which vLLM runs the model counts; the last one's error is raised.
    """
    *others, dtype = case["types"]
    if others:
        found: dict[str, Any] = _in_child(losses, case | {"types": others}, "losses")
        if "losses" in found:
            return list(found["losses"])
    windows = case["windows"]
    model = LLM(
        case["folder"], dtype=dtype, max_model_len=64, max_num_seqs=4, max_num_batched_tokens=64, enforce_eager=True,
        skip_tokenizer_init=True, enable_prefix_caching=False,
    )  # fmt: skip
    wanted = SamplingParams(temperature=0, max_tokens=1, detokenize=False, prompt_logprobs=0)
    made = model.generate([{"prompt_token_ids": ids} for ids in windows], wanted, use_tqdm=False)
    return [_losses(ids, each) for ids, each in zip(windows, made, strict=True)]


def _losses(ids: list[int], made: Any) -> list[float]:
    """Return minus the log-probability of each token but the first, by what vLLM made of them as a prompt."""
    return [-given[token].logprob for token, given in zip(ids[1:], made.prompt_logprobs[1:], strict=True)]


def answers(folder: str, prompts: str, count: int, out: str) -> None:
    """Write the ids of each prompt with its greedy tokens up to an end of text, and the mean loss of the windows."""
    asked = json.loads(Path(prompts).read_text())
    longest = max([*(len(ids) + count for _, ids in asked["prompts"]), *map(len, asked["windows"])]) + 1
    model = LLM(folder, max_model_len=longest, max_num_seqs=4, enforce_eager=True, enable_prefix_caching=False)
    tokenizer = model.get_tokenizer()

    def made(given: list[list[int]], **how: Any) -> list[Any]:
        wanted = SamplingParams(temperature=0, detokenize=False, **how)
        return list(model.generate([{"prompt_token_ids": ids} for ids in given], wanted, use_tqdm=False))

    continued = made([ids for _, ids in asked["prompts"]], max_tokens=count)
    found = [
        (tokenizer(text)["input_ids"], list(each.outputs[0].token_ids))
        for (text, _), each in zip(asked["prompts"], continued, strict=True)
    ]
    losses = []
    for ids, each in zip(asked["windows"], made(asked["windows"], max_tokens=1, prompt_logprobs=0), strict=True):
        found_losses = _losses(ids, each)
        losses.append(sum(found_losses) / len(found_losses))
    Path(out).write_text(json.dumps({"found": found, "loss": sum(losses) / len(losses) if losses else None}))


def problem(error: BaseException) -> str:
    """Return what the first error of a chain says, in one line."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return f"{type(error).__name__}: {re.sub(r'0x[0-9a-f]+', '0x…', ' '.join(str(error).split()))[:400]}"


def main(path: str) -> None:
    cases: Iterable[dict[str, Any]] = map(json.loads, sys.stdin) if path == "-" else json.loads(Path(path).read_text())
    if path == "-":
        print(json.dumps([vllm.__version__, sorted(ModelRegistry.get_supported_archs())]), flush=True)
    for case in cases:
        asked: tuple[Callable[..., Any], str] = (losses, "losses") if "windows" in case else (continued, "tokens")
        found = _in_child(asked[0], case, asked[1])
        Path(case["out"]).write_text(json.dumps(found))
        print(case["folder"], json.dumps(found)[:200], flush=True)


def _in_child(ask: Callable[[dict[str, Any]], Any], case: dict[str, Any], name: str) -> dict[str, Any]:
    """Ask in a process of its own: {name: what it returns}, or {"problem": what was said, "loading": while loading}."""
    out = Path(case["out"]).with_suffix(f".{os.getpid()}")
    child = os.fork()
    if child == 0:
        signal.alarm(_LONGEST)
        try:
            found: dict[str, Any] = {name: ask(case)}
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            traceback.print_exc()
            calls = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
            found = {"problem": problem(error), "loading": bool(calls & {"load_model", "create_engine_config"})}
        out.write_text(json.dumps(found))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not out.exists():
        return {"problem": f"its process ended with {os.waitstatus_to_exitcode(status)}"}
    made: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return made


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        answers(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
