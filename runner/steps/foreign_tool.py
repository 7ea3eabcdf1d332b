"""The common part of foreign kinds: another tool quantizes in its own environment, and its integers are taken over.

The tool is a script of runner.steps.foreign_tools, run by the interpreter of the step's environment: it reads a
checkpoint and token ids, and writes a checkpoint of its own. Every packed weight is then read from that and stored by
the layer stream, so that the result has the files, the account of tensors and the card of any other step. What the tool
changed beside those weights is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contracts.context import ForeignContext, Params, Result
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Cost, Inputs
from runner.errors import Diagnostic, Interrupted, StepFailed
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import layerwise, targets
from runner.steps.layer_method import LayerMethod

if TYPE_CHECKING:
    from runner.model.checkpoint.reader import CheckpointReader

_EVENT = "@runner "  # begins a line of progress in a tool's output
_DONE = "tool.json"
_RUNTIME = 1_500_000_000  # bytes of a process that has loaded a tool
_REPORT = "this is a fault of the step's kind or of its tool: report it; nothing of this step was kept"


@dataclass(frozen=True)
class ForeignTool:
    """The functions of a kind whose tool is run by the module run_<script> of runner.steps.foreign_tools."""

    kind: str
    script: str

    def check(self, params: Params, inputs: Inputs) -> list[Diagnostic]:
        return layerwise.check(params, inputs)

    def changes(self, params: Params, inputs: Inputs) -> set[str]:
        return targets.changes(params, inputs.checkpoint)

    def outcome(self, params: Params, inputs: Inputs) -> CheckpointFacts:
        return layerwise.outcome(params, inputs)

    def estimate(self, params: Params, inputs: Inputs) -> Cost:
        """Forecast roughly: tools hold the model in memory, with one layer in float32, and run it a few times."""
        facts, data = inputs.checkpoint, inputs.data["data"]
        disk = sum(tensor.nbytes for tensor in self.outcome(params, inputs).tensors.values())
        passes = 3 + int(params.get("iters", 0)) * int(params.get("batch_size", 1)) * 3 // max(1, data.samples or 1)
        seconds = 40 + 2 * (data.tokens or 0) * facts.parameters * passes / inputs.machine.flops
        return Cost(_RUNTIME + 3 * facts.nbytes, disk, disk + facts.nbytes, seconds)

    def run(self, ctx: ForeignContext) -> Result:
        from runner.model.checkpoint.reader import CheckpointReader
        from runner.steps import layer_stream as stream

        checkpoint = ctx.inputs["checkpoint"]
        made = _made(self.script, ctx)
        with CheckpointReader(checkpoint.path) as source, CheckpointReader(made) as tool:
            _check_rest(source, tool)
            how = stream.Compression(self.kind, LayerMethod(partial(_take, tool)), ctx.params, None, None)
            return stream.compress(checkpoint, how, stream.stream_run(ctx), ctx)


def _made(script: str, ctx: ForeignContext) -> Path:
    """Run the tool, unless an interrupted run of this step did, and return the folder of its checkpoint."""
    import numpy as np

    folder = ctx.scratch_dir / "tool"
    if (folder / _DONE).is_file():
        return folder
    ids = ctx.scratch_dir / "ids.npy"
    np.save(ids, ctx.data("data").numpy())
    folder.mkdir(exist_ok=True)
    asked = {
        "model": str(ctx.inputs["checkpoint"].path), "ids": str(ids), "out": str(folder), "params": dict(ctx.params),
        "seed": ctx.seed, "threads": ctx.threads, "device": ctx.device,
    }  # fmt: skip
    request = ctx.scratch_dir / "tool-request.json"
    request.write_text(json.dumps(asked), encoding="utf-8")
    program = Path(__file__).parent / "foreign_tools" / f"run_{script}.py"  # another name than the tool's

    hidden = {"CUDA_VISIBLE_DEVICES": ""} if ctx.device == "cpu" else {}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {**hidden, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
    last = ""
    with subprocess.Popen(
        [ctx.python(), program, request], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", cwd=ctx.scratch_dir,  # some leave logs where they are
    ) as process:  # fmt: skip
        try:
            for line in process.stdout or ():
                if line.startswith(_EVENT):
                    ctx.emit("progress", **json.loads(line.removeprefix(_EVENT)))
                else:
                    print(line, end="")  # noqa: T201  into the log of the step
                    last = line.strip() or last
                ctx.safe_point()
        except Interrupted:
            process.kill()
            raise
        code = process.wait()
    if code:
        raise StepFailed(f"the tool ended with status {code}: {last}", "the log of the step has all of its words")
    (folder / _DONE).write_text("{}\n", encoding="utf-8")
    return folder


def _take(tool: CheckpointReader, linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Return the weight that the tool stored for a module, in the scheme that the step was planned with."""
    from runner.model.checkpoint import formats
    from runner.model.checkpoint.reader import DTYPE_NAMES, DTYPES

    (name,) = linear.names
    wanted = targets.stored_scheme(params)
    found = tool.packing.scheme(name) if tool.packing is not None and tool.format(name) is not None else None
    if found != wanted:
        how = found.describe() if found is not None else "dense"
        raise StepFailed(f"the tool stored `{name}` as {how}; the plan has {wanted.describe()}", _REPORT)
    quantized = tool.read_quantized(name)
    if quantized.groups is not None:
        raise StepFailed(f"the tool stored the columns of `{name}` in groups that are no neighbours", _REPORT)
    stored = DTYPES[formats.find(params["format"]).scale_dtype(wanted, DTYPE_NAMES[linear.dtype])]
    if not bool((quantized.scale.to(stored).double() == quantized.scale.double()).all()):
        raise StepFailed(f"the scales of `{name}` do not fit {stored}, the type that they are to be stored in", _REPORT)
    error = quantized.dequantize(linear.dtype).float() - linear.weight
    total = linear.weight.square().sum().clamp_min(1e-30)
    return Transformed(quantized=quantized, metrics={"weight_error": float(error.square().sum() / total)})


def _check_rest(source: CheckpointReader, tool: CheckpointReader) -> None:
    """Raise StepFailed where the tool changed a tensor that it was to leave."""
    import torch

    changed = [
        name for name in sorted(set(source.headers) & set(tool.headers))
        if not torch.equal(source.read(name).double(), tool.read(name).double())
    ]  # fmt: skip
    if changed:
        raise StepFailed(f"the tool changed `{changed[0]}` too, which no packed weight replaces", _REPORT)
