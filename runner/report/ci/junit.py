"""JUnit XML, as Jenkins and GitLab read it: a suite for each job, a case for each step and each gate.

A step that failed is an error, a missed gate a failure, a step that was not reached is skipped. A cached step passes;
its system-out says that it was cached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from runner.job import files
from runner.progress import board, units
from runner.recipe import secrets
from runner.report import findings, report_json
from runner.report.job_report import JobReport, StepReport

_CODES = {1: "failed", 2: "recipe", 3: "gate", 4: "machine", 75: "interrupted", 130: "interrupted"}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Refused:
    """A recipe without a job; `text` is the complaint, `exit_code` None where it was not started."""

    name: str
    text: str
    exit_code: int | None


@dataclass
class _Counts:
    tests: int = 0
    failures: int = 0
    errors: int = 0
    skipped: int = 0
    time: float = 0.0


def write(path: Path, jobs: Sequence[JobReport | Refused]) -> None:
    """Replace the file. OSError where it cannot be written."""
    files.write_atomic(path, text(jobs), durable=False)


def text(jobs: Sequence[JobReport | Refused]) -> str:
    """Return the XML document."""
    root = ElementTree.Element("testsuites", name="runner")
    total = _Counts()
    for job in jobs:
        suite, counts = _job(report_json.public(job)) if isinstance(job, JobReport) else _refused(job)
        root.append(suite)
        for name, value in vars(counts).items():
            setattr(total, name, getattr(total, name) + value)
    _counted(root, total)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _job(job: JobReport) -> tuple[ElementTree.Element, _Counts]:
    name = findings.title(job)
    suite = _element("testsuite", name=name)
    if job.started:
        suite.set("timestamp", job.started.removesuffix("Z"))
    counts = _Counts(time=job.seconds or 0.0)
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"job": job.id, "status": job.status, "model": job.model, "key": job.key}
    for key, value in facts.items():
        properties.append(_element("property", name=key, value=value))
    for step in job.steps:
        suite.append(_step(name, step, counts))
        for gate in step.gates:
            rule = str(gate.get("rule") or units.number(gate.get("limit"))).replace("`", "")
            case = _case(name + ".gates", f"{step.id}: {gate['metric']} {rule}", 0.0, counts)
            if board.is_missed(gate):
                counts.failures += 1
                message = findings.gate_sentence(gate)
                case.append(_element("failure", message, message=message, type="gate"))
            suite.append(case)
    return _counted(suite, counts), counts


def _step(suite: str, step: StepReport, counts: _Counts) -> ElementTree.Element:
    seconds = step.seconds if step.state in ("done", "failed") and step.seconds is not None else 0.0
    case = _case(suite, f"{step.id} ({step.kind})", seconds, counts)
    if step.failure is not None:
        counts.errors += 1
        lines = board.failure_lines(step.failure)
        kind = _CODES.get(int(step.failure.get("exit_code") or 1), "failed")
        case.append(_element("error", "\n".join(lines), message=lines[0].partition("\n")[0], type=kind))
    elif step.state in ("pending", "stopped", "waiting", "running"):
        counts.skipped += 1
        why = "not reached" if step.state != "stopped" else "stopped; the same command continues from there"
        case.append(_element("skipped", message=why))
    output = [f"{step.state}{', nothing was computed' if step.state == 'cached' else ''}"]
    output += [units.metric(metric, value) for metric, value in step.metrics.items()]
    case.append(_element("system-out", "\n".join([*output, *step.messages])))
    return case


def _refused(job: Refused) -> tuple[ElementTree.Element, _Counts]:
    counts = _Counts()
    suite = _element("testsuite", name=job.name)
    text = secrets.hide_in_text(job.text, job.text)  # a complaint quotes the line of the recipe
    case = _case(job.name, "recipe", 0.0, counts)
    if job.exit_code is None:
        counts.skipped += 1
        case.append(_element("skipped", message=text or "not started"))
    else:
        counts.errors += 1
        first = text.partition("\n")[0]
        case.append(_element("error", text, message=first, type=_CODES.get(job.exit_code, "failed")))
    suite.append(case)
    return _counted(suite, counts), counts


def _case(suite: str, name: str, seconds: float, counts: _Counts) -> ElementTree.Element:
    counts.tests += 1
    return _element("testcase", classname=suite, name=name, time=f"{seconds:.3f}")


def _counted(element: ElementTree.Element, counts: _Counts) -> ElementTree.Element:
    for name in ("tests", "failures", "errors", "skipped"):
        element.set(name, str(getattr(counts, name)))
    element.set("time", f"{counts.time:.3f}")
    return element


def _element(tag: str, content: str = "", /, **attributes: str) -> ElementTree.Element:
    element = ElementTree.Element(tag, {key: _xml(value) for key, value in attributes.items()})
    element.text = _xml(content) or None
    return element


def _xml(text: str) -> str:
    """Replace the characters that XML does not allow."""
    return _NOT_XML.sub("\ufffd", text)
