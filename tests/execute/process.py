"""Applies a plan in a process of its own: `python -m tests.execute.process JOBS STEPS.json`; events go to stdout.

It says on stderr, at the end, whether torch was imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from runner.errors import RunnerError
from runner.execute.application import apply
from runner.execute.settings import ApplySettings
from runner.progress.jsonl import JsonLines
from tests.job.plans import plan


def main() -> int:
    jobs, steps = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    try:
        settings = ApplySettings("runner apply demo.yaml", threads=1, wait="--no-wait" not in sys.argv)
        code = apply(plan(steps), None, settings, jobs_root=jobs, sinks=[JsonLines(sys.stdout)])
    except RunnerError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    print(f"torch imported: {'torch' in sys.modules}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
