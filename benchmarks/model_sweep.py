"""Every model type of transformers' causal-LM mapping through the same steps: `python -m benchmarks.model_sweep`.

Writes docs/models.md. With names of types it tries those alone and keeps the other lines of the table.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers

from benchmarks.models_page import NO_MODEL, PAGE, Row, known_rows, known_vllm, page, tower_types
from runner.model.architecture import probe
from runner.model.architecture.supported import causal_models
from runner.model.layerwise.describe import describe
from tests import towers
from tests.sweep import PERPLEXITY, RIGHT, STEPS, Outcome, sweep


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    probe.answer_with(describe)
    text = PAGE.read_text("utf-8")
    rows, vllm = known_rows(text), known_vllm(text)
    for name in sys.argv[1:] or [*causal_models(), *tower_types()]:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            outcome = sweep(name, Path(folder), towers.TOWERS[name].changes if name in towers.TOWERS else None)
        print(name, asdict(outcome), flush=True)
        rows[name] = swept(rows.get(name, Row()), outcome)
        PAGE.write_text(page(rows, vllm), "utf-8")


def swept(row: Row, outcome: Outcome) -> Row:
    """A row with what a sweep of its type found; "wrong" in a cell is a fault of ours. What vLLM made of it stays."""
    cells = tuple(_cell(outcome.results.get(kind)) for kind in (PERPLEXITY, *STEPS))
    others = dict.fromkeys(value.splitlines()[0] for value in outcome.results.values() if value != RIGHT)
    why = outcome.no_model and f"{NO_MODEL}: {outcome.no_model}"
    return replace(row, cells=cells, otherwise=why or "; ".join(others))


def _cell(result: str | None) -> str:
    if result == RIGHT:
        return "yes"
    return "wrong" if result is not None and (result.startswith("wrong:") or "Traceback" in result) else "–"


if __name__ == "__main__":
    main()
