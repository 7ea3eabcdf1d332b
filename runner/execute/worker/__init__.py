"""The process that runs steps: `python -m runner.execute.worker` (see runner.execute.messages)."""
