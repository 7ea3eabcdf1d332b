"""Writes docs/steps.md from the schemas of the built-in kinds.

python docs/generate.py            renew it
python docs/generate.py --check    exit 1 where it is out of step
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.recipe.schema import kinds as discovery
from runner.recipe.schema import load
from runner.report.step_kinds import allowed, example, inline
from runner.steps import kinds

PAGE = Path(__file__).parent / "steps.md"
FAMILIES = {"prune": "Pruning", "quantize": "Quantization", "evaluate": "Evaluation"}
HEAD = """\
# Kinds of steps

<!-- Made by docs/generate.py from schemas/steps/: change those. -->

`runner steps` lists the kinds of this installation, those of installed packages too; `runner steps KIND` describes one
as this page does.

## Which when

| you want | take |
|---|---|
| half the size at next to no loss, with no data | `quantize.rtn` at 8 bits |
| a quarter of the size | `quantize.gptq` at 4 bits; at 3 for a fifth of it, at more loss |
| the zeros that GPUs skip | `prune.wanda` with `pattern: "2:4"`, and `recover.lora` after it |
| fewer layers | `distill.logits` with `student: {drop: N}` |
| back what was lost | see [Getting quality back](training.md) |
| one figure for what was lost | `evaluate.perplexity` before and after, with a gate |
| a finer one, that sees what perplexity averages away | `evaluate.divergence` |
| what users would notice | `evaluate.tasks` |
| to run it on a CPU, on NVIDIA, in llama.cpp | `build.onnx`, `build.tensorrt`, `build.gguf` ([Engines](engines.md)) |

Each takes the result of the one before it. The usual order is distil, prune, quantize, recover, evaluate, build; what
each costs and loses on the embedded model stands in [recipes/](../recipes/README.md).
"""


def page() -> str:
    """The text of docs/steps.md."""
    families: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for kind in discovery.builtin():
        families.setdefault(kind.split(".")[0], []).append(kind)
    parts = [HEAD]
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
        lines.append(f"Metrics for gates: {listed(module.METRICS)}.")
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


def main(arguments: list[str]) -> int:
    text = page()
    if arguments == ["--check"]:
        if PAGE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PAGE} is out of step with the schemas: run python docs/generate.py", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
