"""Run the worker: `python -m runner.execute.worker`."""

from __future__ import annotations

from runner.execute.worker.server import main

main()
