"""Every model type of transformers' causal-LM mapping through the same steps: `python -m benchmarks.model_sweep`.

Writes docs/models.md. With names of types it tries those alone and keeps the other lines of the table.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from runner.model.architecture import probe
from runner.model.architecture.supported import causal_models
from runner.model.layerwise.describe import describe
from tests.sweep import PERPLEXITY, RIGHT, STEPS, Outcome, sweep

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HEAD = """# Models

What works on each model type of the causal-LM mapping of transformers {version}, tried on a random model of four
layers (`python -m benchmarks.model_sweep`; `pytest -m nightly tests/test_model_types.py` tries it again). *Measured*:
the streamed perplexity is that of transformers. *Quantized* by rounding (`quantize.rtn`) and by GPTQ, *pruned* with
Wanda: transformers loads the result and has the perplexity that is measured here. Otherwise the refusal by the plan.

Of {all} types {measured} are measured, {quantized} quantized and {pruned} pruned right.{failed} Of {none} no such tiny
model can be made (they want images, other sizes or further packages); of those nothing is known.

| type | measured | rounded | GPTQ | pruned | otherwise |
|---|---|---|---|---|---|
"""
TAIL = """
## Towers

In models that wrap a language model in a tower for images, of the types `gemma3`, `llava`, `mistral3` and
`qwen2_5_vl`, the language model is measured, rounded, quantized and pruned on text. The tower and what joins it to the
language model keep their bytes, and transformers loads the result as the entire model. `tests/steps/test_towers.py`
asks each a question about an image: its greedy tokens are those of the dense model with the dequantized weights. Other
types with a `text_config` are refused (R443).
"""


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    probe.answer_with(describe)
    saved = Path(os.environ.get("SWEEP_RESULTS") or tempfile.mkdtemp()) / "sweep.json"
    known = json.loads(saved.read_text("utf-8")) if saved.is_file() else {}
    for name in sys.argv[1:] or [each for each in causal_models() if each not in known]:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            known[name] = asdict(sweep(name, Path(folder)))
        print(name, known[name], flush=True)
        saved.write_text(json.dumps(known), "utf-8")
    PAGE.write_text(page({name: Outcome(**known[name]) for name in causal_models() if name in known}), "utf-8")


def page(outcomes: dict[str, Outcome]) -> str:
    """The page of what became of every type."""
    kinds = [PERPLEXITY, *STEPS]
    right = {kind: sum(each.results.get(kind) == RIGHT for each in outcomes.values()) for kind in kinds}
    failed = [name for name, each in outcomes.items() if each.wrong]
    text = HEAD.format(
        version=transformers.__version__, all=len(outcomes), measured=right[PERPLEXITY],
        quantized=min(right["quantize.rtn"], right["quantize.gptq"]), pruned=right["prune.wanda"],
        none=sum(bool(each.no_model) for each in outcomes.values()),
        failed=f" Wrong are {', '.join(f'`{name}`' for name in failed)}." if failed else "",
    )  # fmt: skip
    for name, each in sorted(outcomes.items()):
        cells = ["yes" if each.results.get(kind) == RIGHT else "–" for kind in kinds]
        others = dict.fromkeys(value.splitlines()[0] for value in each.results.values() if value != RIGHT)
        why = each.no_model and f"no tiny model: {each.no_model}"
        text += f"| `{name}` | {' | '.join(cells)} | {(why or '; '.join(others)).replace('|', chr(92) + '|')} |\n"
    return text + TAIL


if __name__ == "__main__":
    main()
