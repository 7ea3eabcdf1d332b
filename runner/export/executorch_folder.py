"""Write the folder of an ExecuTorch program: model.pte, tokenizer, engine.json, and a README on how to run it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from runner.contracts.context import Context, Result
from runner.export import companions, executorch_layouts, executorch_program, table_layouts
from runner.export.tables import Calibration
from runner.model.architecture import inspect
from runner.model.checkpoint.companions import write_json
from runner.runtime.executorch import FILE
from runner.runtime.text import Text

_CARD = """\
# {model} as an ExecuTorch program

`{file}` holds the model for ExecuTorch {version} and its XNNPACK backend: {stored}; the embedding and the head are
{embedding}. Inputs of these products are rounded to 8 bits token by token. Its cache has {context} positions, which
prompt and continuation share.

`forward(tokens [1, n] int64, input_pos [1] int64)` gives the logits [1, n, {vocabulary}] of n tokens, the first of
which is at `input_pos`; `get_max_context_len` and others give the sizes, as ExecuTorch's runners for language models
ask for them.

## On this machine

```sh
runner generate path/to/this/folder "..."
```

## On a phone

Android: add `org.pytorch:executorch-android:{version}` to the app, copy `{file}` and `tokenizer.json` to the phone
(`adb push {file} tokenizer.json /data/local/tmp/llm/`), and run them by its `LlmModule`:

```kotlin
val model = LlmModule("/data/local/tmp/llm/{file}", "/data/local/tmp/llm/tokenizer.json", 0.0f)
model.load()
model.generate("Once upon a time", 64, callback)
```

iOS: add the Swift package `executorch` with `executorch_llm`, `backend_xnnpack`, `kernels_quantized` and
`kernels_optimized`, put both files into the app, and run them by its `TextRunner`.

## Recipe

```yaml
{recipe}
```
"""


def write(ctx: Context, calibrated: Calibration | None = None) -> Result:
    """Write the program of `ctx`'s checkpoint to `ctx.out_dir`; `calibrated` is by what its head is rounded."""
    source, out, params = ctx.inputs["checkpoint"], ctx.out_dir, ctx.params
    ctx.emit("progress", phase="exporting", done=0, total=2, unit="stages")
    facts = inspect.facts(source.path, source.path.name)
    data = ctx.data_facts("data") if calibrated is not None else None
    engine = executorch_layouts.engine(facts, params, data)
    companions.copy(source.path, out)
    config = {name: value for name, value in facts.config.raw.items() if name != "quantization_config"}
    write_json(out / "config.json", config)
    tokenizer = (out / "tokenizer.json").is_file()
    ends = sorted(Text(out).ends()) if tokenizer else []
    metadata = {
        "get_max_seq_len": engine["context"], "get_max_context_len": engine["context"],
        "get_vocab_size": engine["vocabulary"], "get_n_layers": facts.layer_count, "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False, "enable_dynamic_shape": True, "get_eos_ids": ends,
    }  # fmt: skip
    bos = facts.config.raw.get("bos_token_id")
    metadata |= {"get_bos_id": bos} if isinstance(bos, int) else {}
    program = executorch_program.export(source.path, engine["context"], params["embedding"], metadata, calibrated)
    ctx.safe_point()
    ctx.emit("progress", phase="writing", done=1, total=2, unit="stages")
    (out / FILE).write_bytes(program)
    found = version("executorch")
    write_json(out / "engine.json", {
        **engine, "file": FILE, "versions": {"executorch": found}, "source": {"digest": source.digest},
    })  # fmt: skip
    stored = ", ".join(f"{count} linear modules {how}" for how, count in engine["stored"].items())
    card = _CARD.format(
        model=facts.config.model_type, file=FILE, version=found, stored=stored,
        embedding=engine["embedding"] + (f", where they multiply {table_layouts.text(engine)}" if calibrated else ""),
        context=engine["context"], vocabulary=engine["vocabulary"], recipe=ctx.recipe_text.rstrip(),
    )  # fmt: skip
    (out / "README.md").write_text(card, encoding="utf-8")
    ctx.emit("progress", phase="writing", done=2, total=2, unit="stages")
    details: dict[str, Any] = {key: engine[key] for key in ("stored", "tables", "context") if key in engine}
    return Result(metrics={"bytes": len(program)}, details=details)
