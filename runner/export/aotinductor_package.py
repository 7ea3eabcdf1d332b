"""Write the package of `build.compile`. Compiled code differs from run to run, and so does the package."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.contracts.context import Context, Result
from runner.errors import StepFailed
from runner.export import companions
from runner.export.decoder import Decoder, Shape, own_attention, shape_of
from runner.model.checkpoint import headers
from runner.model.checkpoint.companions import write_json
from runner.runtime.aotinductor import FILE, PRECISIONS, target
from runner.runtime.transformers import load
from runner.system import cpu

_CARD = """\
# {model} compiled by AOTInductor

`{file}` holds the model in {precision}, compiled for {device} ({capability}) by torch {torch}. It takes `input_ids`,
`attention_mask`, `position_ids` and the cache of keys and values of {layers} layers (key, value, key, value …), each
[batch, {heads}, tokens so far, {width}], and gives the logits and the cache with the new tokens.

```python
import torch

package = torch._inductor.aoti_load_package("{file}")
ids = torch.tensor([[1, 2, 3]])  # of the tokenizer beside it
past = [torch.zeros(1, {heads}, 0, {width}, dtype=torch.{dtype}) for _ in range({tensors})]
logits, *past = package(ids, torch.ones_like(ids), torch.arange(3)[None], past)
```

For the next token give it alone, a mask as long as all tokens so far, its position, and `past`.

`runner generate path/to/this/folder "..."` writes text with it.

## Recipe

```yaml
{recipe}
```
"""


def write(ctx: Context, described: Mapping[str, Any]) -> Result:
    """Write the package of `ctx`'s checkpoint; `described` is the part of engine.json that the plan knows."""
    source, out = ctx.inputs["checkpoint"], ctx.out_dir
    precision = ctx.params["precision"]
    config = headers.model_config(source.path)
    ctx.emit("progress", phase="loading", done=0, total=3, unit="stages")
    streamed = load(source.path, ctx.device, PRECISIONS[precision], exact=True)
    ctx.safe_point()
    shape = shape_of(streamed.config)
    ctx.emit("progress", phase="exporting", done=1, total=3, unit="stages")
    program = _export(streamed.model, shape, streamed.device, streamed.dtype)
    ctx.safe_point()
    ctx.emit("progress", phase="compiling", done=2, total=3, unit="stages")
    _compile(program, out / FILE, ctx.scratch_dir / "inductor")
    ctx.emit("progress", phase="compiling", done=3, total=3, unit="stages")
    engine = {
        **described, **target(streamed.device), "file": FILE, "layers": shape.layers,
        "instructions": cpu.instructions() if ctx.device == "cpu" else [], "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "source": {"digest": source.digest},
    }  # fmt: skip
    write_json(out / "engine.json", engine)
    write_json(out / "config.json", {k: v for k, v in config.raw.items() if k != "quantization_config"})
    companions.copy(source.path, out)
    card = _CARD.format(
        model=config.model_type, file=FILE, precision=precision, device=engine["device"],
        capability=engine["capability"], torch=engine["torch"], layers=shape.layers, heads=shape.kv_heads,
        width=shape.head_dim, dtype=str(PRECISIONS[precision]).removeprefix("torch."), tensors=2 * shape.layers,
        recipe=ctx.recipe_text.rstrip(),
    )  # fmt: skip
    (out / "README.md").write_text(card, encoding="utf-8")
    return Result(metrics={"bytes": (out / FILE).stat().st_size})


def _export(model: Any, shape: Shape, device: torch.device, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """Export the graph, with dynamic batch, new tokens and cached tokens."""
    own_attention(model)
    batch, new, past = 2, 3, 5  # example sizes: all different, and none 0 or 1
    ids, positions = (torch.ones(batch, new, dtype=torch.int64, device=device) for _ in range(2))
    mask = torch.ones(batch, past + new, dtype=torch.int64, device=device)
    cache = [
        torch.zeros(batch, shape.kv_heads, past, shape.head_dim, dtype=dtype, device=device) for _ in shape.past
    ]  # fmt: skip
    any_ = torch.export.Dim.DYNAMIC
    sizes = ({0: any_, 1: any_}, {0: any_, 1: any_}, {0: any_, 1: any_}, [{0: any_, 2: any_} for _ in shape.past])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        return torch.export.export(Decoder(model), (ids, mask, positions, cache), dynamic_shapes=sizes, strict=False)


def _compile(program: torch.export.ExportedProgram, file: Path, cache: Path) -> None:
    """Compile a graph into the package `file`; the compiler's temporary files are in `cache`."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError
    from torch._inductor.utils import fresh_cache

    cache.mkdir(parents=True, exist_ok=True)
    settings = {
        "compile_threads": 1,  # a worker must not fork
        "cpp.dynamic_threads": True,  # as many as the machine that runs it has
    }
    try:
        with warnings.catch_warnings(), fresh_cache(dir=str(cache)):
            warnings.simplefilter("ignore")
            aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)
    except CppCompileError as error:
        last = str(error).strip().splitlines()[-1]
        raise StepFailed(f"the C++ compiler failed: {last}", "`g++ --version`: 9 or later is needed") from error
