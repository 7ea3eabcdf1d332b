"""Every model type of transformers' causal-LM mapping through the same steps: `python -m benchmarks.model_sweep`.

Writes docs/models.md. With names of types it tries those alone and keeps the other lines of the table.
"""

from __future__ import annotations

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
    rows = known_rows(PAGE.read_text("utf-8"))
    names = sys.argv[1:] or list(causal_models())
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            outcome = sweep(name, Path(folder))
        print(name, asdict(outcome), flush=True)
        rows[name] = row(name, outcome)
        PAGE.write_text(page({name: rows[name] for name in causal_models() if name in rows}), "utf-8")


def known_rows(text: str) -> dict[str, str]:
    """Type → its line in the table of a page."""
    return {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}


def row(name: str, outcome: Outcome) -> str:
    """The line of a type: what is right, and what was said otherwise; "wrong" in a cell is a fault of ours."""
    cells = [_cell(outcome.results.get(kind)) for kind in (PERPLEXITY, *STEPS)]
    others = dict.fromkeys(value.splitlines()[0] for value in outcome.results.values() if value != RIGHT)
    why = outcome.no_model and f"no tiny model: {outcome.no_model}"
    return f"| `{name}` | {' | '.join(cells)} | {(why or '; '.join(others)).replace('|', chr(92) + '|')} |"


def _cell(result: str | None) -> str:
    if result == RIGHT:
        return "yes"
    return "wrong" if result is not None and (result.startswith("wrong:") or "Traceback" in result) else "–"


def page(rows: dict[str, str]) -> str:
    """The page of the lines of all types."""
    cells = {name: [cell.strip() for cell in line.split(" | ")][1:5] for name, line in rows.items()}
    right = [sum(each[column] == "yes" for each in cells.values()) for column in range(4)]
    failed = [name for name, each in cells.items() if "wrong" in each]
    text = HEAD.format(
        version=transformers.__version__, all=len(rows), measured=right[0], quantized=min(right[1], right[2]),
        pruned=right[3], none=sum("| no tiny model" in line for line in rows.values()),
        failed=f" Wrong are {', '.join(f'`{name}`' for name in failed)}." if failed else "",
    )  # fmt: skip
    return text + "".join(f"{rows[name]}\n" for name in sorted(rows)) + TAIL


if __name__ == "__main__":
    main()
