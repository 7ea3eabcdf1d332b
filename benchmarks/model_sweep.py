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
from runner.model.architecture.supported import causal_models, image_text_models, multimodal_models
from runner.model.layerwise.describe import describe
from tests import towers
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
TOWERS = """
## Towers

Models that wrap a language model in others for images or sound, of the types that transformers has beside those above.
The language model, found by its configuration, is measured, rounded, quantized and pruned on text; GPTQ, rounding and
Wanda calibrate [on images](recipe.md#data) too (tried with gemma3 and qwen2_5_vl). All other tensors
keep their bytes, and transformers loads the result as the entire model. Of {all} types {measured} are measured,
{quantized} quantized and {pruned} pruned right; of {none} no tiny model can be made.{failed} Those that are refused
cannot run on text alone, or a layer at a time. `tests/steps/test_towers.py` asks {asked} types a question about an
image or a sound: the greedy tokens are those of the dense model with the dequantized weights.

| type | measured | rounded | GPTQ | pruned | otherwise |
|---|---|---|---|---|---|
"""
NOTE = """
`generate` of transformers 5.23 fails on packed models of the type `llava_next`: compressed-tensors 0.20 turns what
holds the features of an image into a plain dict. Their forward is right.
"""


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    probe.answer_with(describe)
    rows = known_rows(PAGE.read_text("utf-8"))
    for name in sys.argv[1:] or [*causal_models(), *tower_types()]:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            outcome = sweep(name, Path(folder), towers.TOWERS[name].changes if name in towers.TOWERS else None)
        print(name, asdict(outcome), flush=True)
        rows[name] = row(name, outcome)
        PAGE.write_text(page(rows), "utf-8")


def tower_types() -> list[str]:
    """The types that wrap a language model in others and are in no mapping of causal models."""
    return sorted({*image_text_models(), *multimodal_models()} - causal_models().keys())


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
    """The page of the lines of all types: causal models, then those with towers."""
    parts = ((HEAD, causal_models()), (TOWERS, tower_types()))
    return "".join(_table(head, {n: rows[n] for n in sorted(names) if n in rows}) for head, names in parts) + NOTE


def _table(head: str, rows: dict[str, str]) -> str:
    cells = {name: [cell.strip() for cell in line.split(" | ")][1:5] for name, line in rows.items()}
    right = [sum(each[column] == "yes" for each in cells.values()) for column in range(4)]
    failed = [name for name, each in cells.items() if "wrong" in each]
    text = head.format(
        version=transformers.__version__, all=len(rows), measured=right[0], quantized=min(right[1], right[2]),
        pruned=right[3], none=sum("| no tiny model" in line for line in rows.values()), asked=len(towers.TOWERS),
        failed=f" Wrong are {', '.join(f'`{name}`' for name in failed)}." if failed else "",
    )  # fmt: skip
    return text + "".join(f"{line}\n" for line in rows.values())


if __name__ == "__main__":
    main()
