"""A real server of the result: whether it loads, agrees with the checkpoint, how well, how fast and how large it is.

The server is started here, listens on this machine alone, and ends with the step, whatever ends that. What is expected
of it is computed before it starts: the greedy tokens of the checkpoint in float32, by transformers' model code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.contracts import metric_ranges
from runner.contracts.context import ForeignContext
from runner.contracts.step_kind import (
    CHECKPOINT,
    ENGINE,
    METRICS_ONLY,
    QUANTIZED,
    Cost,
    Inputs,
    MachineFacts,
    Params,
    Result,
)
from runner.errors import Diagnostic, MachineError, StepFailed
from runner.model.checkpoint import adapter_config, adapter_loading, loading, servers
from runner.model.layerwise import memory_budget
from runner.runtime.serving import adapters, commands
from runner.runtime.serving.client import Client
from runner.runtime.serving.process import ServerProcess, free_port

VERSION = 2
CONSUMES = (CHECKPOINT, QUANTIZED, ENGINE)
PRODUCES = METRICS_ONLY
REQUIRES = ()
ALONE = True  # what runs at the same time would slow it down
ENVIRONMENT = ()  # only that which a recipe names: a server may be on the PATH
METRICS = {
    "loads": metric_ranges.SHARE, "load_seconds": metric_ranges.AMOUNT, "memory": metric_ranges.AMOUNT,
    "greedy_agreement": metric_ranges.SHARE, "agreement_but_ties": metric_ranges.SHARE,
    "first_difference": metric_ranges.AMOUNT, "largest_gap": metric_ranges.AMOUNT,
    "tokenized_alike": metric_ranges.SHARE, "prompts": metric_ranges.COUNT,
    "perplexity": metric_ranges.PERPLEXITY, "tokens": metric_ranges.COUNT,
    "time_to_first_token/<concurrency>": metric_ranges.AMOUNT,
    "tokens_per_second/<concurrency>": metric_ranges.AMOUNT,
}  # fmt: skip
_SERVER = 2_500_000_000  # bytes of a process that has loaded vLLM's CPU build, without a model


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Check that the server is here and loads the artifact, and that prompts and windows fit."""
    return [*_check_server(params, inputs), *_check_lengths(params, inputs)]


def _check_server(params: Params, inputs: Inputs) -> list[Diagnostic]:
    server, name, found = commands.find(params), params["server"], []
    if name == commands.OTHER and not server.program:
        help = "name it, and give its `arguments`: [--model, '{model}', --port, '{port}']"
        found.append(Diagnostic("R861", "`server: other` names no `program`", help, path=("server",)))
    elif name == commands.OTHER and "port" not in commands.fields(server.arguments):
        message = "no argument of the server has `{port}`: it would not serve where it is asked"
        found.append(Diagnostic("R861", message, "add the option that names its port", path=("arguments",)))
    if unknown := commands.unknown_fields(params["arguments"]):
        allowed = ", ".join(f"`{{{field}}}`" for field in commands.FIELDS)
        message = f"`{unknown[0]}` in `arguments` is nothing that a step fills in"
        found.append(Diagnostic("R861", message, f"these are: {allowed}; a brace itself is doubled",
                                path=("arguments",)))  # fmt: skip
    # The graphs of engines hold the adapter of their checkpoint.
    adapter = inputs.checkpoint.adapter if inputs.checkpoint.engine is None else None
    if why := adapters.refusal(name, params["arguments"], adapter):
        message = f"what is served would be the weights without the adapter that they carry: {why}"
        found.append(Diagnostic("R868", message, adapter_loading.REMEDY, path=("server",)))
    elif adapter is None and "adapter" in commands.fields(params["arguments"]):
        message = "`{adapter}` in `arguments` is the folder of an adapter, and what is served has none beside it"
        found.append(Diagnostic("R861", message, "leave that argument out", path=("arguments",)))
    if server.program and not inputs.has_environment and commands.program(server, None) is None:
        message = f"there is no program `{server.program}` on the PATH, and the step has no `env`"
        help = f"install {name if name != commands.OTHER else 'it'}, name `program`, or give the step an environment"
        found.append(Diagnostic("R862", message, help, path=("server",)))
    if name != commands.OTHER:
        device = servers.CPU if inputs.machine.device == "cpu" else None
        verdict = loading.verdict(name, replace(inputs.checkpoint, adapter=None), device)  # R868 is about that
        if verdict.how == servers.REFUSED:
            help = "choose another scheme, format or server: docs/serving.md has the table"
            found.append(Diagnostic("R863", f"{verdict.describe()}", help, path=("server",)))
    return found


def _check_lengths(params: Params, inputs: Inputs) -> list[Diagnostic]:
    found = []
    length, context = inputs.data["data"].sequence_length, inputs.checkpoint.config.context
    if params["prompt_tokens"] > length:
        message = f"`prompt_tokens` is {params['prompt_tokens']}; the windows of the data have {length} tokens"
        found.append(Diagnostic("R476", message, f"lower it to {length}", path=("prompt_tokens",)))
    if context and (total := params["prompt_tokens"] + params["new_tokens"]) > context:
        message = f"`prompt_tokens` and `new_tokens` are {total} together; the model has {context} positions"
        found.append(Diagnostic("R476", message, "lower one of them", path=("new_tokens",)))
    if inputs.others and (ours := inputs.others["against"].config.vocabulary_size) != (
        theirs := inputs.checkpoint.config.vocabulary_size
    ):
        message = f"`against` has a vocabulary of {ours} tokens, what is served one of {theirs}"
        found.append(Diagnostic("R420", message, "compare with the checkpoint that it was made from",
                                path=("against",)))  # fmt: skip
    return found


def environment(params: Params, machine: MachineFacts) -> dict[str, str]:
    """Return the identity of the program on the PATH, which decides the result where the step has no environment."""
    found = commands.program(commands.find(params), None)
    if found is None:
        return {}
    status = os.stat(found)
    return {"program": f"{found} {status.st_size} {status.st_mtime_ns}"}


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost: first the checkpoint in float32 is in memory, then the server."""
    facts, machine = inputs.checkpoint, inputs.machine
    weights = sum(site.size for site in facts.sites)
    resident = weights * 4 + memory_budget.rest_bytes(facts, 4)
    tokens = params["prompts"] * (params["prompt_tokens"] + 4 * params["new_tokens"]) * 2
    tokens += len(params["concurrency"]) * params["requests"] * (params["prompt_tokens"] + params["new_tokens"])
    tokens += params["windows"] * inputs.data["data"].sequence_length
    seconds = 60 + 4 * tokens * weights / machine.flops
    return Cost(memory_budget.RUNTIME + max(resident, _SERVER + resident // 2), 0, 0, seconds)


def run(ctx: ForeignContext) -> Result:
    from runner.steps.served_measurements import Measurements, expected

    ids = ctx.data("data").numpy()
    wanted = expected(ctx, ids)
    server = commands.find(ctx.params, in_environment=ctx.has_environment)
    python = ctx.python() if ctx.has_environment else None
    program = commands.program(server, python)
    if program is None:
        where = "in the environment of the step" if python is not None else "on the PATH"
        help = "add its package to the `requirements` of the environment" if python is not None else "install it"
        raise MachineError(f"there is no program `{server.program}` {where}", help)
    port, served = free_port(ctx.params.get("port")), _model(ctx)
    server = adapters.with_adapter(server, ctx.params["server"], _adapter(ctx))
    values = {
        "model": served, "adapter": adapters.folder(served), "host": commands.HOST, "port": str(port),
        "name": f"runner-{os.getpid()}-{port}", "threads": str(ctx.threads),
        "parallel": str(max(ctx.params["concurrency"])),
    }  # fmt: skip
    arguments = [text.format(**values) for text in server.arguments]
    model = server.model.format(**values) if server.model is not None else ""
    client = Client(port, server, model)
    process = ServerProcess(
        [program, *arguments], commands.environment(server, python, ctx.device, ctx.threads),
        ctx.scratch_dir / "server.log",
    )  # fmt: skip
    details = {"server": ctx.params["server"], "command": [Path(program).name, *server.arguments]}
    try:
        try:
            seconds = process.wait_until_ready(client, server.ready, ctx.params["start_timeout"], ctx.safe_point)
        except StepFailed as error:
            if ctx.params["required"]:
                raise
            return Result(metrics={"loads": 0}, details={**details, "why": error.message})
        result = Measurements(ctx, process, client, server).all(ids, wanted)
        process.check()
        metrics = {"loads": 1, "load_seconds": seconds, **result.metrics}
        return Result(metrics=metrics, details={**details, **result.details})
    finally:
        process.stop()
        print(process.text())  # noqa: T201  into the log of the step


def _adapter(ctx: ForeignContext) -> Mapping[str, Any] | None:
    """Return the adapter_config.json of the adapter that is served with the weights; None where there is none."""
    from runner.runtime import open

    folder = ctx.inputs["checkpoint"].path
    return adapter_config.adapter_config(folder) if open.engine(folder) is None else None


def _model(ctx: ForeignContext) -> str:
    """Return what the server loads: the folder of a checkpoint, or the file of a GGUF engine as each names it."""
    from runner.runtime import open

    folder = ctx.inputs["checkpoint"].path.absolute()
    engine = open.engine(folder) or {}
    if engine.get("format") != "gguf":
        return str(folder)
    between = ":" if ctx.params["server"] == "transformers" else os.sep
    return f"{folder}{between}{engine['file']}"
