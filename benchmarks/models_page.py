"""The page docs/models.md: a row for each model type, which two commands fill.

`benchmarks.model_sweep` tries the types in transformers, `benchmarks.vllm_models` in vLLM. Each keeps what the other
wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers

from runner.model.architecture.supported import causal_models, image_text_models, multimodal_models
from tests import towers

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
NO_MODEL = "no tiny model"
HEAD = """# Models

What works on each model type of the causal-LM mapping of transformers {version}, tried on a random model of four
layers (`python -m benchmarks.model_sweep`; `pytest -m nightly tests/test_model_types.py` tries it again). *Measured*:
the streamed perplexity is that of transformers. *Quantized* by rounding (`quantize.rtn`) and by GPTQ, *pruned* with
Wanda: transformers loads the result and has the perplexity that is measured here. Otherwise the refusal by the plan.

Of {all} types {measured} are measured, {quantized} quantized and {pruned} pruned right.{failed} Of {none} no such tiny
model can be made (they want images, other sizes or further packages); of those nothing is known.

*vLLM*: the CPU build of {vllm} loads a wider model of the type, rounded to 4 bits in groups of 32, and its
log-probabilities are those that are measured here (`python -m benchmarks.vllm_models`). "–": it does not, and the last
column says why; "dense too" means that it is so of the model that is not compressed: by the CPU build, or for a key
that the random model's configuration lacks. "none": vLLM has no code of its own for the architecture. Empty: not tried.
Of {served} types that were tried in vLLM {right} are right.{misread}
Packed experts have kernels for GPUs and processors with AMX alone, and were tried on neither.

| type | measured | rounded | GPTQ | pruned | vLLM | otherwise |
|---|---|---|---|---|---|---|
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
_SAYS = "vLLM: "


@dataclass(frozen=True)
class Row:
    """What is known of a type.

    cells      "yes", "–" or "wrong" under each step, in the order of the table; no cells where it was not tried
    otherwise  why some are not "yes"
    vllm       "yes", "–", "wrong" or "none"; empty where it was not tried in vLLM
    vllm_says  why it is not "yes" there
    """

    cells: tuple[str, ...] = ()
    otherwise: str = ""
    vllm: str = ""
    vllm_says: str = ""


def known_rows(text: str) -> dict[str, Row]:
    """Type → its row in the tables of a page, whether or not they have the column of vLLM."""
    return {line.split("`")[1]: _row(line) for line in text.splitlines() if line.startswith("| `")}


def known_vllm(text: str) -> str:
    """The version of vLLM that a page names; "vLLM" where it names none."""
    found = re.search(r"CPU build of (vLLM \S+)", text)
    return found[1] if found else "vLLM"


def _row(line: str) -> Row:
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[2:-1]]
    vllm = cells[4] if len(cells) == 6 else ""
    otherwise, _, says = cells[-1].replace("\\|", "|").partition(_SAYS)
    return Row(tuple(cells[:4]), otherwise.removesuffix("; "), vllm, says)


def page(rows: Mapping[str, Row], vllm: str) -> str:
    """The page of the rows of all types: causal models, then those with towers; `vllm`: with which version."""
    causal, towered = ({n: rows[n] for n in sorted(names) if n in rows} for names in (causal_models(), tower_types()))
    return _table(HEAD, causal, True, vllm) + _table(TOWERS, towered, False, vllm) + NOTE


def tower_types() -> list[str]:
    """The types that wrap a language model in others and are in no mapping of causal models."""
    return sorted({*image_text_models(), *multimodal_models()} - causal_models().keys())


def _table(head: str, rows: Mapping[str, Row], served: bool, vllm: str) -> str:
    """The head of a table and its lines, with the column of vLLM if `served`."""
    right = [sum(row.cells[column : column + 1] == ("yes",) for row in rows.values()) for column in range(4)]
    tried = [row.vllm for row in rows.values() if row.vllm not in ("", "none")]
    text = head.format(
        version=transformers.__version__, all=len(rows), measured=right[0], quantized=min(right[1], right[2]),
        pruned=right[3], none=sum(row.otherwise.startswith(NO_MODEL) for row in rows.values()),
        asked=len(towers.TOWERS), failed=_wrong(name for name, row in rows.items() if "wrong" in row.cells),
        vllm=vllm, served=len(tried), right=tried.count("yes"),
        misread=_wrong(name for name, row in rows.items() if row.vllm == "wrong"),
    )  # fmt: skip
    return text + "".join(f"{_line(name, row, served)}\n" for name, row in rows.items())


def _wrong(names: Iterable[str]) -> str:
    found = ", ".join(f"`{name}`" for name in names)
    return f" Wrong are {found}." if found else ""


def _line(name: str, row: Row, served: bool) -> str:
    said = "; ".join(filter(None, (row.otherwise, row.vllm_says and _SAYS + row.vllm_says))).replace("|", "\\|")
    return f"| {' | '.join((f'`{name}`', *(row.cells or ('',) * 4), *([row.vllm] if served else []), said))} |"
