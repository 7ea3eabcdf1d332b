"""report.json: the report of a job, as schemas/job/report.schema.json describes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import yaml

from runner.recipe import secrets
from runner.report import findings, loading
from runner.report.job_report import JobReport

_FOLDER = "path/to/this/folder"  # the placeholder for their own folder in model cards
_FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A paragraph of the model card, or, where `code` is not None, a piece of code in that language."""

    text: str
    code: str | None = None


def document(job: JobReport) -> dict[str, Any]:
    """Return report.json, without secrets; NaN and infinity become text."""
    job = public(job)
    all_series = findings.series(job)
    verdict = findings.verdict(job)
    steps = []
    for step in job.steps:
        facts = asdict(step)
        facts["quality"] = [asdict(change) for change in findings.changes(all_series, step)]
        steps.append({name: value for name, value in facts.items() if name not in ("measures", "way")})
    fields = {
        **asdict(job),
        "path": str(job.path),
        "output": str(job.output) if job.output else None,
        "steps": steps,
        "verdict": asdict(verdict),
        "quality": [{**asdict(one), "higher_is_better": one.higher_is_better} for one in all_series],
        "load": loading.line(job.output) if job.output else None,
        "usage": [asdict(block) for block in usage(job.output)],
    }
    return cast(dict[str, Any], {"schema": 1, **_finite(fields)})


def public(job: JobReport) -> JobReport:
    """Return the job without the secrets of its recipe."""
    known = secrets.values(_recipe(job.text))

    def text(value: str) -> str:
        return str(secrets.hide(value, known))

    steps = tuple(
        replace(
            step,
            gates=tuple(secrets.hide(gate, known) for gate in step.gates),
            failure=secrets.hide(step.failure, known),
            messages=tuple(map(text, step.messages)),
        )
        for step in job.steps
    )
    return replace(
        job,
        model=text(job.model),
        text=text(job.text),
        lock=secrets.hide(job.lock, known),
        matrix=secrets.hide(job.matrix, known),
        resume=text(job.resume) if job.resume else job.resume,
        messages=tuple(map(text, job.messages)),
        steps=steps,
    )


def usage(output: Path | None) -> tuple[Block, ...]:
    """Return the section of the model card on loading and serving, with the result's path; () without a card."""
    if output is None:
        return ()
    try:
        card = (output / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    section = card.partition("\n## Use it\n")[2].partition("\n## ")[0].replace(_FOLDER, str(output))
    blocks: list[Block] = []
    end = 0
    for fence in _FENCE.finditer(section):
        blocks += _paragraphs(section[end : fence.start()])
        blocks.append(Block(fence[3].rstrip("\n"), fence[2]))
        end = fence.end()
    return (*blocks, *_paragraphs(section[end:]))


def _paragraphs(text: str) -> list[Block]:
    return [Block(" ".join(part.split())) for part in text.split("\n\n") if part.strip()]


def _recipe(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
