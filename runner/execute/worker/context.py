"""The Context that the worker hands to a step (runner.contracts.step_kind.Context)."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contracts.context import Samples
from runner.contracts.step_kind import Artifact, DataFacts
from runner.data.windows import too_short, windows
from runner.errors import Interrupted, RecipeError
from runner.execute.messages import Request
from runner.job import built_environments
from runner.job.entries import Stage
from runner.plan import environments
from runner.progress.events import Event, make
from runner.recipe.types import DataSpec
from runner.system import peak_memory

if TYPE_CHECKING:
    import torch


class StepContext:
    """One step's context; `send` takes its events, `stop` is set when the job is to stop."""

    def __init__(self, request: Request, stage: Stage, send: Callable[[Event], None], stop: threading.Event) -> None:
        self.params = request.params
        self.step = request.step
        self.inputs = {
            name: Artifact(Path(r.path), r.type, r.digest, r.lineage, r.sites, r.linears)
            for name, r in request.inputs.items()
        }
        self.out_dir = stage.out
        self.scratch_dir = stage.scratch
        self.cache_dir = Path(request.store) / ".cache"
        self.seed = request.seed
        self.device = request.device
        self.threads = request.threads
        self.processes = request.processes
        self.limits = request.limits
        self.recipe_text = request.recipe_text
        self._request = request
        self._send = send
        self._stop = stop

    def data(self, parameter: str) -> torch.Tensor:
        """Return token ids [samples, sequence_length], int64. RecipeError when the text is shorter than asked."""
        import torch

        ref = self._request.data[parameter]
        spec = DataSpec(**ref.spec)
        if spec.images is not None:
            raise ValueError(f"`{spec.name}` has images: a step that reads them calls `images`")
        ids = windows(spec, [Path(file) for file in ref.files], Path(self._request.tokenizer))
        if spec.samples is not None and len(ids) != spec.samples:
            raise RecipeError([too_short(spec, ids.size)])
        return torch.from_numpy(ids)

    def images(self, parameter: str) -> Samples | None:
        """Return the samples of an entry with images; None of any other. RecipeError where one cannot be processed."""
        ref = self._request.data[parameter]
        spec = DataSpec(**ref.spec)
        if spec.images is None:
            return None
        from runner.data.image_records import image_records
        from runner.data.processed_images import ImageSamples

        records = image_records(spec, [Path(file) for file in ref.files])
        if spec.samples is not None and len(records) != spec.samples:
            raise RecipeError([too_short(spec, len(records) * spec.sequence_length)])
        return ImageSamples(Path(self._request.tokenizer), records, spec.sequence_length)

    def data_facts(self, parameter: str) -> DataFacts:
        ref = self._request.data[parameter]
        spec = ref.spec
        return DataFacts(
            spec["name"], spec["samples"], spec["sequence_length"], ref.bytes, ref.digest, spec["images"] is not None
        )

    def files(self, parameter: str) -> Mapping[str, Path]:
        """Return the entries of a parameter of task names that are local files or folders, with their paths."""
        return {entry: Path(path) for entry, path in self._request.tasks.get(parameter, {}).items()}

    @property
    def has_environment(self) -> bool:
        return self._request.environment is not None

    def python(self) -> Path:
        """Return the interpreter of the step's environment, which is built where it is missing."""
        if self._request.environment is None:
            raise ValueError(f"`{self._request.kind}` has no environment of its own")
        wanted = environments.from_document(self._request.environment)

        def report(text: str) -> None:
            self.emit("message", level="info", text=text)

        return built_environments.ensure(wanted, report)

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event of this step; `layer` events get the peak memory so far."""
        if event == "layer":
            fields.setdefault("memory", peak_memory.peak())
        self._send(make(event, **{"step": self._request.index, **fields}))

    def safe_point(self) -> None:
        if self._stop.is_set():
            raise Interrupted("stopped at a safe point")


def seed_everything(request: Request) -> None:
    """Seed every random generator that a step may use, and limit its threads.

    torch is loaded only for a step whose key names its version: a step that does not compute starts without it.
    """
    random.seed(request.seed)
    if "torch" in request.key_inputs.get("environment", {}) or "torch" in sys.modules:
        import numpy as np
        import torch

        np.random.seed(request.seed % 2**32)
        torch.manual_seed(request.seed)
        torch.set_num_threads(request.threads)
