"""A TensorRT engine of a checkpoint: `model.engine`, and all that is needed to run it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import (
    CHECKPOINT,
    ENGINE,
    QUANTIZED,
    Context,
    Cost,
    Inputs,
    MachineFacts,
    Params,
    Requirement,
    Result,
)
from runner.errors import Diagnostic, StepFailed
from runner.export import compressed, graph_layouts, preflight, supported, tensorrt, tensorrt_capabilities
from runner.export.tensorrt import ENTERPRISE, PORTABLE, RTX
from runner.model.checkpoint.writer import parse_size
from runner.model.layerwise import memory_budget

VERSION = 4
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = ENGINE
REQUIRES = (Requirement("tensorrt-rtx", "tensorrt"), Requirement("onnx", "tensorrt"),
            Requirement("onnxscript", "tensorrt"))  # fmt: skip
METRICS = ()

FILE = "model.engine"
_USUAL_LENGTH = 2048
_EXPORTER = 120 << 20  # torch's exporter and onnx imported, one layer traced (measured)
_LAYER = 6 << 20  # of a traced graph
_CODE = 2 << 20  # of an engine for each layer: kernels of two profiles (measured)
_OTHER_CODE = 4 << 20  # of embedding, head and what layers share
_SECONDS, _LAYER_SECONDS, _BUILDER_SECONDS = 15.0, 2.0, 3.0
_BUILD_RATE = 3e7  # bytes of weights a second (measured)


def requires(params: Params) -> tuple[Requirement, ...]:
    """Return the packages of the project's extras; `check` looks for that of `enterprise`, which no extra installs."""
    return REQUIRES if params["flavour"] == RTX else REQUIRES[1:]


def environment(params: Params, machine: MachineFacts) -> Mapping[str, str]:
    """Return, for `enterprise`, the GPU and the version of TensorRT, which an engine depends on."""
    if params["flavour"] == RTX:
        return {}
    try:
        version = importlib.metadata.version("tensorrt")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {"tensorrt": version, "gpu": str(machine.gpu_name)}


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Check that the architecture and every weight fit the graph, and that the GPUs and lengths are possible."""
    facts = inputs.checkpoint
    found = [replace(d, help=_remedy(d.help)) for d in preflight.refusals(facts, graph_layouts.TENSORRT)]
    if any(d.code == "R477" for d in found):
        return found
    found += _lengths(params, facts) + _graph(params, inputs)
    refused = any(d.code == "R478" for d in found)
    packed = {} if refused else preflight.schemes(facts)
    if params["flavour"] == RTX:
        found += tensorrt_capabilities.refuse(params.get("compute_capabilities"), packed)
    else:
        found += _enterprise(params, inputs)
    return found if refused else [*found, *(_wide(facts) or preflight.warn_of_tokens(facts))]


def _remedy(help: str | None) -> str | None:
    return help and help.replace("use `target: onnxruntime`", "use build.onnx, which keeps it for onnxruntime")


def _lengths(params: Params, facts: CheckpointFacts) -> list[Diagnostic]:
    positions, asked = supported.context(facts.config), params.get("max_sequence_length")
    if asked is None or asked <= positions:
        return []
    message = f"`max_sequence_length` is {asked:,}; the model has {positions:,} positions"
    return [Diagnostic("R495", message, f"lower it to {positions}, or leave it out", path=("max_sequence_length",))]


def _graph(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Check that the given graph is for TensorRT, of this checkpoint and in this precision."""
    graph = inputs.others.get("graph")
    if graph is None:
        return []
    engine, path, named = graph.engine or {}, ("graph",), f"`graph` names `{params['graph']}`"
    if engine.get("format") != "onnx" or engine.get("target") != graph_layouts.TENSORRT:
        what = f"an ONNX graph for {engine['target']}" if "target" in engine else f"a {engine.get('format')} engine"
        help = "let it name a step of `build.onnx` with `target: tensorrt`"
        return [Diagnostic("R495", f"{named}, which makes {what}", help, path=path)]
    if replace(graph, engine=None) != inputs.checkpoint:
        message = f"{named}, whose graph is of another checkpoint than this step's"
        return [Diagnostic("R495", message, "give both steps the same `from`", path=path)]
    if engine["precision"] != params["precision"]:
        message = f"{named}, whose graph computes in {engine['precision']}; `precision` is {params['precision']}"
        return [Diagnostic("R495", message, "give both steps the same `precision`", path=path)]
    return []


def _enterprise(params: Params, inputs: Inputs) -> list[Diagnostic]:
    found = []
    if inputs.machine.device != "cuda":
        message = "`flavour: enterprise` builds on the GPU that is to run the engine; this step runs on the CPU"
        help = "use `flavour: rtx`, which builds without one, or a machine with a GPU"
        found.append(Diagnostic("R504", message, help, path=("flavour",)))
    if importlib.util.find_spec(tensorrt.MODULES[ENTERPRISE]) is None:
        message = "`flavour: enterprise` needs the package tensorrt, which is not installed"
        found.append(Diagnostic("R503", message, "`pip install tensorrt`", path=("flavour",)))
    if params.get("compute_capabilities"):
        message = "`flavour: enterprise` builds for the GPU of this machine alone"
        found.append(Diagnostic("R495", message, "leave it out, or use `flavour: rtx`", path=("compute_capabilities",)))
    return found


def _wide(facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a complaint about wider integers in groups, which TensorRT unpacks or fails on (measured)."""
    names = [
        name for name, (_, scheme) in preflight.schemes(facts).items() if scheme.bits > 4 and scheme.strategy == "group"
    ]
    if not names:
        return []
    first = preflight.schemes(facts)[names[0]][1]
    more = f" (as {len(names) - 1:,} more)" if len(names) > 1 else ""
    message = (
        f"`{names[0]}`{more} has {first.bits} bits in groups of {first.group_size}; TensorRT has groups at 4 bits only"
    )
    return [Diagnostic("R478", message, 'quantize with `group_size: "channel"`, or to 4 bits')]


def length(params: Params, config: ModelConfig) -> int:
    """Return the tokens of prompt and continuation that the engine takes."""
    asked = params.get("max_sequence_length")
    return int(asked) if asked is not None else min(_USUAL_LENGTH, supported.context(config))


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost; the builder holds all weights about four times.

    Where no graph is given, the exporter's memory and one weight at a time come first.
    """
    facts = inputs.checkpoint
    graph = preflight.nbytes(facts, graph_layouts.TENSORRT, str(params["precision"]))
    tensors = preflight.largest(facts) * (4 + 2 * preflight.FLOAT_BYTES[str(params["precision"])])
    given = "graph" in inputs.others
    exporter = memory_budget.RUNTIME + _EXPORTER + _LAYER * facts.layer_count
    builder = tensorrt.BUILDER_BYTES + tensorrt.BUILDER_LAYER * facts.layer_count + tensorrt.BUILDER_FACTOR * graph
    seconds = graph / _BUILD_RATE + graph / max(1.0, inputs.machine.disk_bytes_per_second)
    written = 2 * graph + _CODE * facts.layer_count + _OTHER_CODE
    if params["compress"]:
        seconds += written / compressed.BYTES_PER_SECOND
    if given:
        return Cost(memory_budget.RUNTIME + builder, written, 0, _BUILDER_SECONDS + seconds)
    seconds += _SECONDS + _LAYER_SECONDS * facts.layer_count
    seconds += (facts.nbytes + graph) / max(1.0, inputs.machine.disk_bytes_per_second)
    return Cost(exporter + max(tensors, builder), written, graph, seconds)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    facts = inputs.checkpoint
    known = preflight.engine(facts, graph_layouts.TENSORRT, str(params["precision"]))
    rtx = params["flavour"] == RTX
    engine = {
        **{key: known[key] for key in ("precision", "vocabulary", "layers", "stored")},
        "format": "tensorrt",
        "flavour": params["flavour"],
        "context": length(params, facts.config),
        "max_batch": params["max_batch_size"],
        "compute_capabilities": _capabilities(params) or list(PORTABLE) if rtx else None,
    }
    return replace(facts, engine=engine)


def _capabilities(params: Params) -> list[str] | None:
    """Return the compute capabilities sorted by version, so that their order in the recipe changes no byte."""
    asked: Sequence[str] | None = params.get("compute_capabilities")
    return sorted(asked, key=lambda text: [int(part) for part in text.split(".")]) if asked else None


def run(ctx: Context) -> Result:
    from runner.export import graph, tensorrt_folder
    from runner.model.architecture import inspect
    from runner.model.checkpoint import headers

    params, source = ctx.params, ctx.inputs["checkpoint"]
    config = headers.model_config(source.path)
    if params["flavour"] == ENTERPRISE and ctx.device == "cuda":
        packed = preflight.schemes(inspect.facts(source.path, source.path.name))
        tensorrt_capabilities.require(_capability(), ENTERPRISE, packed)
    work = ctx.scratch_dir / "graph"
    work.mkdir(parents=True, exist_ok=True)
    ctx.safe_point()
    if "graph" in ctx.inputs:
        folder = ctx.inputs["graph"].path.absolute()
        facts = tensorrt_folder.graph_facts(folder, source.digest)
    else:
        folder, facts = work, _exported(ctx, work)
    ctx.safe_point()
    shape = tensorrt.Shape(facts["layers"], facts["kv_heads"], facts["head_dim"])
    order = tensorrt.Order(
        graph=str(folder / graph.FILE),
        engine=FILE,
        flavour=str(params["flavour"]),
        capabilities=_capabilities(params),
        workspace=parse_size(str(params["workspace"])),
        profiles=tensorrt.profiles(shape, params["max_batch_size"], length(params, config)),
        timing_cache=tensorrt.timing_cache(str(params["flavour"]), _gpu_name(ctx), ctx.cache_dir),
    )
    ctx.emit("progress", phase="TensorRT", done=0, total=1, unit="engine")
    built = tensorrt.build(ctx, order, work)
    ctx.emit("progress", phase="TensorRT", done=1, total=1, unit="engine")
    weights = tensorrt_folder.weights(folder / graph.FILE)
    _check_packed(built, weights, len(order.profiles), _CODE * facts["layers"])
    described = tensorrt_folder.write(ctx, order, built, facts, work)
    metrics: dict[str, float] = {
        "engine_bytes": built.engine_bytes,
        **({"file_bytes": described["file_bytes"]} if params["compress"] else {}),
        **({} if built.weights_bytes is None else {"weights_bytes": built.weights_bytes}),
        "graph_bytes": weights.total,
        "packed_bytes": weights.packed,
        "unpacked_bytes": weights.unpacked,
    }
    details = {
        "builder_seconds": built.seconds,
        "builder_memory": built.memory,
        **{key: described[key] for key in ("flavour", "version", "compute_capabilities", "stored", "carried", "graph")},
    }
    return Result(metrics=metrics, details=details)


def _exported(ctx: Context, folder: Path) -> Mapping[str, Any]:
    """Write the graph of the step's checkpoint into `folder`; return its description."""
    from runner.export import graph

    exported = graph.export(
        ctx.inputs["checkpoint"].path,
        folder,
        target=graph_layouts.TENSORRT,
        precision=str(ctx.params["precision"]),
        progress=lambda done, total: ctx.emit("progress", phase="weights", done=done, total=total, unit="modules"),
    )
    return graph.describe(exported)


def _gpu_name(ctx: Context) -> str:
    import torch

    return torch.cuda.get_device_name() if ctx.device == "cuda" else "none"


def _capability() -> str:
    import torch

    return "{}.{}".format(*torch.cuda.get_device_capability())


def _check_packed(built: tensorrt.Built, weights: Any, profiles: int, code: int) -> None:
    """Raise StepFailed where the builder has unpacked quantized weights.

    An engine may hold every weight once for each profile, whose kernels may need it in another order; 4-bit weights
    unpacked to 16 bits would take more. Where the builder does not report the bytes of weights, they are the engine
    without the usual bytes of code.
    """
    held = built.weights_bytes if built.weights_bytes is not None else built.engine_bytes - code
    if (
        weights.packed
        and held > profiles * weights.total + (1 << 20)
        and held >= weights.total - weights.packed + weights.unpacked
    ):
        raise StepFailed(
            f"TensorRT unpacked quantized weights: the engine holds {held:,} bytes of weights, the "
            f"graph {weights.total:,}, of which {weights.packed:,} are quantized: {weights.unpacked:,} at 16 bits",
            'quantize symmetrically to 4 bits with `group_size: 128`, or to 8 bits with `group_size: "channel"`',
        )
