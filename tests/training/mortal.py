"""A worker that dies by SIGKILL at places that a file names: `python -m tests.training.mortal`.

DEATHS is a file of JSON [[id of a step, place], …]; the first of them is waited for, and taken out when it is reached.
Places: "layer N" and "train N", right after that event was sent; "result", when a training is over and its result is
about to count; "writing", when the weights are in the step's folder and its model card is about to be.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

DEATHS = "RUNNER_TEST_DEATHS"


def main() -> None:
    from runner.execute.worker import server
    from runner.execute.worker.context import StepContext

    deaths = Path(os.environ[DEATHS])
    emit, replace, write_text = StepContext.emit, Path.replace, Path.write_text

    def reached(step: str, place: str) -> None:
        left = json.loads(deaths.read_text())
        if left and left[0] == [step, place]:
            deaths.write_text(json.dumps(left[1:]))
            os.kill(os.getpid(), signal.SIGKILL)

    class Mortal(StepContext):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            id = self._request.id

            def replacing(path: Path, target: Any) -> Path:
                if Path(target).name == "fitted.json":
                    reached(id, "result")
                return replace(path, target)

            def writing(path: Path, *args: Any, **kwargs: Any) -> int:
                if path.name == "README.md":
                    reached(id, "writing")
                return write_text(path, *args, **kwargs)

            Path.replace, Path.write_text = replacing, writing  # type: ignore[method-assign,assignment]

        def emit(self, event: str, **fields: Any) -> None:
            emit(self, event, **fields)
            reached(self._request.id, f"{event} {fields.get('at', fields.get('layer'))}")

    vars(server)["StepContext"] = Mortal
    server.main()


if __name__ == "__main__":
    main()
