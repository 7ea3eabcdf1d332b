"""Compare jobs: apart from runner.api.jobs, because showing one job needs none of it."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from runner.api.jobs import Job
from runner.errors import UsageError
from runner.report import compare as comparison
from runner.report.compare import Comparison


def compare(jobs: Sequence[Job], metric: str | None = None) -> Comparison:
    """Compare jobs: the params that differ, size, quality, speed, memory, and which of them no other dominates.

    `metric` is a metric of evaluations or `step.metric`; default: perplexity, else what most of them measured.

    Raises UsageError for a metric that none of them measured.
    """
    found = [job.report for job in jobs]
    known = comparison.metrics(found)
    if metric is not None and metric.rpartition(".")[2] not in known:
        listed = ", ".join(known) or "no metric"
        raise UsageError(f"none of these jobs measured `{metric}`", f"they measured {listed}")
    return comparison.compare([(one, yaml.safe_load(one.text) or {}) for one in found], metric)
