"""Writes docs/steps.md from the schemas of the built-in kinds, docs/api.md from the docstrings of the Python API,

and docs/serving.md from the table of servers.

python docs/generate.py            renew them
python docs/generate.py --check    exit 1 where one is out of step
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import runner
from runner.api.jobs import Gate
from runner.contracts.step_kind import Cost
from runner.job.listing import JobSummary
from runner.job.records import Record
from runner.job.verification import Check
from runner.model.checkpoint import servers
from runner.plan.types import Forecast
from runner.recipe.schema import kinds as discovery
from runner.recipe.schema import load
from runner.report.compare import Comparison, Row
from runner.report.job_report import JobReport, StepReport
from runner.report.step_kinds import allowed, example, inline
from runner.search.trial import Trial
from runner.steps import kinds

FAMILIES = {
    "prune": "Pruning",
    "transform": "Rewriting without changing what the model computes",
    "quantize": "Quantization",
    "evaluate": "Evaluation",
}
STEPS_HEAD = """\
# Kinds of steps

<!-- Made by docs/generate.py from schemas/steps/: change those. -->

`runner steps` lists the kinds of this installation, those of installed packages too; `runner steps KIND` describes one
as this page does.

## Which when

| you want | take |
|---|---|
| half the size at next to no loss, with no data | `quantize.rtn` at 8 bits |
| a quarter of the size | `quantize.gptq` at 4 bits; at 3 for a fifth of it, at more loss |
| less loss from the same bits | `transform.awq`, `.smooth` or `.rotate` before it ([Rewrites](transforms.md)) |
| the zeros that GPUs skip | `prune.wanda` with `pattern: "2:4"`, and `recover.lora` after it |
| fewer layers, neurons or heads | `prune.depth`, `prune.width`, then `distill.logits` ([how](structured-pruning.md)) |
| back what was lost | see [Getting quality back](training.md) |
| one figure for what was lost | `evaluate.perplexity` before and after, with a gate |
| a finer one, that sees what perplexity averages away | `evaluate.divergence` |
| what users would notice | `evaluate.tasks` |
| to run it on a CPU, on NVIDIA, in llama.cpp | `build.onnx`, `build.tensorrt`, `build.gguf` ([Engines](engines.md)) |

Each takes the result of the one before it. The usual order is distil, prune, transform, quantize, recover, evaluate,
build; what each costs and loses on the embedded model stands in [recipes/](../recipes/README.md).
"""


FUNCTIONS = ("load", "load_all", "validate", "plan", "apply", "search", "jobs", "compare")
CLASSES = ("Job", "JobPlan", "Search", "Validation")
RETURNED = (Forecast, Cost, StepReport, JobReport, Gate, Record, JobSummary, Check, Comparison, Row, Trial)
API_HEAD = """\
# Reference of the Python API

<!-- Made by docs/generate.py from the docstrings: change those. -->

[The Python API](python-api.md) shows it at work. Names stand for `runner.NAME`.

## Functions
"""


def steps_page() -> str:
    """Return the text of docs/steps.md."""
    families: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for kind in discovery.builtin():
        families.setdefault(kind.split(".")[0], []).append(kind)
    parts = [STEPS_HEAD]
    for family, members in families.items():
        parts.append(f"## {FAMILIES.get(family, family.capitalize())}\n")
        parts += [section(kind) for kind in members]
    return "\n".join(parts)


def section(kind: str) -> str:
    """One kind: what it does, takes and makes, an example, its parameters."""
    rules = load.kind_schema(kind)
    module = kinds.find(kind)
    lines = [f"### `{kind}`", "", rules["description"], ""]
    lines.append(f"Takes {listed(module.CONSUMES, ' or ')}, makes {listed((module.PRODUCES,))}.")
    if module.METRICS:
        lines.append(f"Metrics for gates: {listed(tuple(module.METRICS))}.")
    lines += [f"Needs {need.package}: `pip install 'runner[{need.extra}]'`." for need in module.REQUIRES]
    lines += ["", "```yaml", *example(kind, rules), "```", "", "| parameter | value | default | |", "|---|---|---|---|"]
    required = rules.get("required", ())
    for name, part in sorted(rules["properties"].items(), key=lambda item: item[0] not in required):
        lines.append(row(name, part, name in required))
    return "\n".join([*lines, ""])


def row(name: str, part: Mapping[str, Any], required: bool) -> str:
    default = "required" if required else f"`{inline(part['default'])}`" if "default" in part else ""
    cells = (f"`{name}`", allowed(part), default, part.get("description", ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def listed(names: tuple[str, ...], joint: str = ", ") -> str:
    return joint.join(f"`{name}`" for name in names)


def api_page() -> str:
    """Return the text of docs/api.md."""
    parts = [API_HEAD, *(callable_of(name, getattr(runner, name)) for name in FUNCTIONS)]
    parts += ["## Classes\n", *(class_of(name, getattr(runner, name)) for name in CLASSES)]
    parts += ["## What they return\n", *(record_of(kind) for kind in RETURNED)]
    parts += ["## Errors\n", errors()]
    return "\n".join(parts)


def callable_of(name: str, function: Any, level: str = "###") -> str:
    """Describe a function or a method: its signature, then its docstring."""
    return f"{level} `{name}{signature(function)}`\n\n{text(function)}\n"


def signature(function: Any) -> str:
    """Write the parameters without `self`, and the type that is returned."""
    found = inspect.signature(function)
    parameters = [parameter for name, parameter in found.parameters.items() if name != "self"]
    shown = str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    returned = "" if found.return_annotation in ("None", inspect.Signature.empty) else f" -> {found.return_annotation}"
    return re.sub(r"(: )'([^']*)'", r"\1\2", shown) + returned.replace("'", "")


def class_of(name: str, kind: Any) -> str:
    """Describe a class: how it is made, its properties, its methods."""
    made = signature(kind.__init__) if not dataclasses.is_dataclass(kind) else ""
    parts = [f"### `{name}{made}`\n\n{text(kind)}\n"]
    if dataclasses.is_dataclass(kind):
        parts.append(fields(kind))
    members = [(key, member) for key, member in vars(kind).items() if not key.startswith("_")]
    rows = [
        f"| `{key}` | `{cell(str(inspect.signature(member.fget).return_annotation))}` | {cell(text(member))} |"
        for key, member in members
        if isinstance(member, property) and member.fget is not None
    ]
    parts += ["\n".join(["| property | type | |", "|---|---|---|", *rows, ""])] if rows else []
    parts += [callable_of(f"{name}.{key}", member, "####") for key, member in members if inspect.isfunction(member)]
    return "\n".join(parts)


def record_of(kind: Any) -> str:
    """Describe a dataclass that something returns."""
    return f"### `{kind.__name__}`\n\n{text(kind)}\n\n{fields(kind)}"


def fields(kind: Any) -> str:
    """List the fields of a dataclass with their types."""
    rows = [f"| `{field.name}` | `{cell(str(field.type))}` |" for field in dataclasses.fields(kind)]
    return "\n".join(["| field | type |", "|---|---|", *rows, ""])


def errors() -> str:
    """Describe every error with its exit code."""
    kinds = [getattr(runner, name) for name in runner.__all__ if name.endswith(("Error", "Failed", "Interrupted"))]
    rows = [f"| `{kind.__name__}` | {kind.exit_code} | {cell(text(kind))} |" for kind in kinds]
    return "\n".join(["| error | exit code | |", "|---|---|---|", *rows, ""])


def text(documented: Any) -> str:
    """Return a docstring as Markdown."""
    found = inspect.getdoc(documented)
    if not found:
        raise ValueError(f"{documented} has no docstring")
    return found


def cell(content: str) -> str:
    """Put text into one cell of a table."""
    return " ".join(content.split()).replace("|", "\\|")


SERVING_HEAD = """\
# What loads it

<!-- Made by docs/generate.py from runner/model/checkpoint/servers.py: change that. -->

`serve:` in a recipe names the servers that are to load the result, and the GPU:

```yaml
serve: {vllm: ">=0.30", gpu: h100}
```

`runner plan` then says of every artifact whether each of them loads it natively, by which fallback, or not. A server
that cannot load the result is an error (R655); of one that the table does not know, the plan warns (R656). A version is
`any`, exact (`"0.32"`), or the lowest (`">=0.30"`). Without `gpu` any NVIDIA GPU counts; `gpu: cpu` is a processor.
Changing `serve` computes nothing again.

The result, for vLLM, transformers and TensorRT-LLM, is the last checkpoint; for onnxruntime the last graph of
`build.onnx`, for llama.cpp the last file of `build.gguf`. Model cards follow the same table.

An adapter that a checkpoint carries in `adapter/` counts too: transformers loads it with peft; vLLM has no DoRA, and
leaves out `rank_pattern` and `alpha_pattern`. What has not been tried (TensorRT-LLM, adapters of experts in vLLM) is
unknown.

"""
UNPACKED_HEAD = """
## Modules that stay unpacked

Some modules of some models a server cannot load packed, in any format or in those named here, though it loads others of
the same scheme. Name them in `ignore`. A plan with `serve` refuses them by name (R655).

| server | model type | modules | formats | what it does | source |
|---|---|---|---|---|---|"""


def serving_page() -> str:
    """Return the text of docs/serving.md."""
    lines = ["| server | format | schemes | device | loads | source |", "|---|---|---|---|---|---|"]
    for row in servers.ROWS:
        how = row.how if not row.why else f"{row.how}: {row.why}"
        cells = [row.server, ", ".join(row.formats), _schemes(row), _device(row), how, row.source]
        lines.append(f"| {' | '.join(cells)} |")
    oldest = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in servers.OLDEST.items())
    known = ", ".join(
        f"`{name}` ({capability:g})" if capability else f"`{name}`" for name, capability in servers.GPUS.items()
    )
    ends = ["The first row that matches counts; what no row matches is unknown.",
            f"The rows are about these versions and later ones: {oldest}.",
            f"Names of `gpu`, with their compute capability: {known}."]  # fmt: skip
    return SERVING_HEAD + "\n".join(lines) + "\n\n" + "\n".join(ends) + "\n" + _unpacked()


def _unpacked() -> str:
    """Return the table of modules that servers hold unpacked."""
    lines = [UNPACKED_HEAD]
    for each in servers.UNPACKED:
        modules = ", ".join(f"`{pattern}`" for pattern in each.modules)
        cells = [each.server, ", ".join(each.models), modules, ", ".join(each.formats or ("all",)),
                 each.why.format("them"), each.source]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _schemes(row: servers.Row) -> str:
    parts = [f"{', '.join(map(str, row.bits))} bits"] if row.bits else []
    parts += [] if row.symmetric is None else ["symmetric" if row.symmetric else "asymmetric"]
    parts += [f"per {', '.join(row.strategies)}"] if row.strategies else []
    parts += [] if row.rounded is None else ["inputs rounded" if row.rounded else "inputs as they are"]
    parts += [f"models {', '.join(row.models)}"] if row.models else []
    return "; ".join(parts) or "all"


def _device(row: servers.Row) -> str:
    low, high = row.device
    if high == servers.CPU:
        return "CPU"
    if low == servers.CPU:
        return "all"
    return f"{low:g} and later" if high > 50 else f"{low:g} to {high:g}"


PAGES = {"steps.md": steps_page, "api.md": api_page, "serving.md": serving_page}


def main(arguments: list[str]) -> int:
    code = 0
    for name, page in PAGES.items():
        path, content = Path(__file__).parent / name, page()
        if arguments != ["--check"]:
            path.write_text(content, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != content:
            print(f"{path} is out of step with the code: run python docs/generate.py", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
