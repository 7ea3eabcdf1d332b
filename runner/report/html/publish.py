"""Write a job's report.json and report.html from its records. They are part of no digest."""

from __future__ import annotations

from pathlib import Path

from runner.job import files
from runner.report import report_json
from runner.report.html import page
from runner.report.job_report import JobReport

JSON, HTML = "report.json", "report.html"


def write(job: JobReport) -> None:
    """Replace both files in the job's folder. OSError where they cannot be written."""
    files.write_atomic(job.path / JSON, files.pretty(report_json.document(job)), durable=False)
    files.write_atomic(job.path / HTML, page.html(job), durable=False)


def html(job: JobReport, to: Path) -> None:
    """Write the page to the file `to`."""
    files.write_atomic(to, page.html(job), durable=False)
