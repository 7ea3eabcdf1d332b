"""The common part of steps that learn from a teacher. Imported by the planner: no torch at the top."""

from __future__ import annotations

from pathlib import Path

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Context, Inputs, Params
from runner.errors import Diagnostic
from runner.model.layerwise import memory_budget
from runner.model.source import locate
from runner.training.task import Task

LOGIT_BYTES = 12  # per logit while a student is trained: the value, its gradient, and the scaled gradient
TOP_K_COPIES = (
    4  # of a chunk of logits while the loss against the teacher's top k and its gradient are computed (measured)
)


def forward_tokens(params: Params, inputs: Inputs) -> int:
    """Return the tokens of one forward of one process."""
    forwards = int(params["gradient_accumulation"]) * inputs.processes
    return max(1, int(params["batch_size"]) // forwards) * inputs.data["data"].sequence_length


def chunk_bytes(params: Params, inputs: Inputs, student: CheckpointFacts) -> int:
    """Return the bytes of the float32 logits that a loss against a teacher works on at once."""
    return min(memory_budget.LOGIT_BYTES, 4 * forward_tokens(params, inputs) * student.config.vocabulary_size)


def located(facts: CheckpointFacts) -> Path | None:
    """Return the folder of a checkpoint's tokenizer on this machine; None where it is not here.

    Steps copy the tokenizer of their source unchanged.
    """
    if facts.source.startswith(locate.DEMO):
        return locate.demo_path("models", facts.source.removeprefix(locate.DEMO))
    folder = Path(facts.source).expanduser()
    return folder if folder.is_dir() else None


def context_complaints(name: str, facts: CheckpointFacts, inputs: Inputs) -> list[Diagnostic]:
    """Return a complaint where windows are longer than the context of the model in the parameter `name`."""
    data = inputs.data["data"]
    key, limit = facts.config.context_key, facts.config.context
    if not 0 < limit < data.sequence_length:
        return []
    message = (
        f"data `{data.name}` has `sequence_length` {data.sequence_length}; the {name}'s context is {limit} tokens "
        f"(`{key}` in config.json)"
    )
    return [Diagnostic("R465", message, f"lower `sequence_length` to {limit} or less", path=(name,))]


def cache_teacher_outputs(ctx: Context, task: Task, student: Path, cache: Path, *, before: int = 0) -> None:
    """Run the teacher over the windows that `task` will see, and store its top predictions in `cache`. Repeatable.

    `student` is the checkpoint that is trained; `before` counts the layers that the step ran already, for events.
    """
    import torch

    from runner.model.checkpoint.headers import model_config
    from runner.steps.layer_stream import hooks
    from runner.training import teacher_cache
    from runner.training.sampler import order

    ids, theirs = ctx.data("data"), ctx.inputs["teacher"].path
    seen = task.settings.steps * task.settings.batch_size
    teacher = teacher_cache.Teacher(
        checkpoint=theirs,
        device=ctx.device,
        top_k=ctx.params["top_k"],
        temperature=ctx.params["temperature"],
        vocabulary=min(model_config(model).vocabulary_size for model in (theirs, student)),
    )
    rows = torch.unique(order(len(ids), seen, task.seed))
    teacher_cache.cache(teacher, ids, rows, cache, hooks(ctx), before).close()
