"""Write the folder of an ONNX engine: graph, engine.json, config.json, tokenizer, and a README on how to run it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from runner.contracts.context import Context
from runner.contracts.model_config import ModelConfig
from runner.export import companions, genai, graph, graph_layouts, preflight, supported, table_layouts, web
from runner.export.tables import Calibration
from runner.model.architecture import inspect
from runner.model.checkpoint import headers
from runner.model.checkpoint.companions import write_json

ENGINE = "engine.json"
OPSET = 21
# transformers.js chooses a file by its name for a type: "fp32" is the one without a suffix, which all graphs have but
# those for browsers, whatever they compute in.
_JAVASCRIPT = "transformers.js_config"
_NAMES = {"onnxruntime": "onnxruntime", "tensorrt": "TensorRT", "web": "browsers"}
_PACKAGES = ("onnx", "onnxscript", "torch", "transformers")


def write(ctx: Context, calibrated: Calibration | None = None) -> dict[str, Any]:
    """Export `ctx.inputs["checkpoint"]` with `ctx.params` to `ctx.out_dir`; return engine.json, and `bytes`.

    `calibrated` is by what the table of integers that multiplies is rounded.
    """
    source, out = ctx.inputs["checkpoint"], ctx.out_dir
    config = headers.model_config(source.path)
    target, browser = ctx.params["target"], ctx.params["target"] == graph_layouts.WEB
    facts = inspect.facts(source.path, source.path.name)
    kind = web.dtype(facts, ctx.params["precision"]) if browser else "fp32"
    embedding, operators = preflight.embedding(facts, ctx.params), preflight.operators(ctx.params)
    exported = graph.export(
        source.path,
        out,
        target=target,
        precision=ctx.params["precision"],
        opset=OPSET,
        accuracy_level=ctx.params["accuracy_level"],
        embedding=embedding,
        calibrated=calibrated,
        operators=operators,
        file=web.file(kind),
        piece=web.PIECE if browser else None,
        progress=lambda done, total: ctx.emit("progress", phase="weights", done=done, total=total, unit="modules"),
    )
    engine = {
        "format": "onnx",
        "target": target,
        "precision": ctx.params["precision"],
        "embedding": embedding,
        **table_layouts.described(ctx.data_facts("data") if calibrated is not None else None),
        "operators": operators,
        "past_present_share_buffer": operators == preflight.FUSED,
        "file": exported.file,
        "opset": exported.opset,
        "versions": {name: version(name) for name in _PACKAGES},
        "source": {"digest": source.digest},
        "context": supported.context(config),
        "vocabulary": config.vocabulary_size,
        "max_batch": None,
        **graph.describe(exported),
    }
    companions.copy(source.path, out)
    javascript = {"dtype": kind, "use_external_data_format": len(exported.data)}
    write_json(out / "config.json", {**config.raw, _JAVASCRIPT: javascript})
    write_json(out / ENGINE, engine)
    if target != graph_layouts.TENSORRT:
        in_place = engine["past_present_share_buffer"]
        described = genai.config(out, config, exported.shape, exported.file, engine["context"], in_place=in_place)
        if described is not None:
            write_json(out / genai.FILE, described)
    (out / "README.md").write_text(_card(engine, config, exported), encoding="utf-8")
    return engine | {"bytes": exported.nbytes}


def _card(engine: dict[str, Any], config: ModelConfig, exported: graph.Exported) -> str:
    """Return README.md: what the folder holds, and how to run it."""
    shape = exported.shape
    lines = [f"- {count} linear module{'' if count == 1 else 's'}: {text}." for text, count in exported.stored.items()]
    lines += [f"- Of these, {count}: {text}, the same values." for text, count in exported.widened.items()]
    if "tables" in engine:
        how = table_layouts.text(engine)
        lines.append(f"- Token embedding and head: {engine['embedding']}, where they multiply {how}.")
    if engine["target"] != graph_layouts.TENSORRT:
        cache = {"layers": shape.layers, "heads": shape.kv_heads, "width": shape.head_dim}
        run = _RUN.format(file=exported.file, dtype=exported.inputs[-1][1], **cache)
        run += _IN_PLACE if engine["past_present_share_buffer"] else ""
        run += _INTEGER_PRODUCTS if any("; inputs " in text for text in exported.stored) else ""
    else:
        run = "Build an engine of it with `build.tensorrt`, or with TensorRT's own tools; "
        run += "onnxruntime has no 4-bit floats." if preflight.holds_nvfp4(engine) else "onnxruntime runs it too."
    title = f"# {config.model_type} as an ONNX graph for {_NAMES[engine['target']]}"
    words = {key: engine[key] for key in ("file", "opset", "precision", "layers")}
    about = _ABOUT.format(data="`, `".join(f"onnx/{name}" for name in exported.data), **words)
    end = "`engine.json` lists inputs, outputs and the checkpoint that this was made from."
    return "\n\n".join([title, about, "\n".join(lines), "## Run it", run, end]) + "\n"


_ABOUT = """\
`{file}` (opset {opset}, {precision}) takes `input_ids`, `attention_mask`, `position_ids` and the cache
`past_key_values.N.key` and `.value` of {layers} layers, and gives `logits` and the cache with the new tokens,
`present.N.key` and `.value`. It is one graph for a prompt, whose cache is empty, and for its continuation. Its weights
are in `{data}`: keep them together."""
_RUN = """\
```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{file}")
ids = np.array([[1, 2, 3]])  # of the tokenizer beside it
past = {{f"past_key_values.{{i}}.{{p}}": np.zeros((1, {heads}, 0, {width}), "{dtype}")
        for i in range({layers}) for p in ("key", "value")}}
logits, *present = session.run(None, {{
    "input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None], **past}})
```

For the next token give it alone, a mask as long as all tokens so far, its position, and `present` as the cache.

Other runtimes take this folder as it is:

- optimum: `ORTModelForCausalLM.from_pretrained("path/to/this/folder")`
- transformers.js, in Node and in browsers: `await pipeline("text-generation", "this-folder")`
- onnxruntime-genai: `onnxruntime_genai.Model("path/to/this/folder")`, by `genai_config.json`"""
_IN_PLACE = """

The cache can have room for more positions than it holds: bind the same value as `past_key_values.N.key` and
`present.N.key`, and new keys are written into it, which is faster than a longer copy. onnxruntime-genai does so with
room for `max_length` positions, a search option."""
_INTEGER_PRODUCTS = """

Its products are those of 8-bit integers. On x86 processors without VNNI give the session the option
`session.x64quantprecision` with the value `1` (`SessionOptions.add_session_config_entry`): sums saturate without it."""
