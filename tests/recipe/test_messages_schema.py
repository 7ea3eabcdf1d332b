"""What is wrong with single values (R2xx), as a user reads it."""

# ruff: noqa: E501 -- messages stand here as users see them

from __future__ import annotations

import pytest

from tests.recipe.cases import HEAD, Case, complaint_of, recipe

CASES = [
    Case(
        "missing keys",
        "version: 1\n",
        """
r.yaml:1:1: error[R202]: the recipe needs `name`
    1 | version: 1
      | ^
help: Name of the recipe; jobs are named after it. Lower case letters, digits, `.`, `_` and `-`.

r.yaml:1:1: error[R202]: the recipe needs `model`
    1 | version: 1
      | ^
help: write `model: {source: ...}` with a Hub id, a local folder or `demo:tiny-llama`

r.yaml:1:1: error[R202]: the recipe needs `steps`
    1 | version: 1
      | ^
help: write a list of steps, each of the form `- kind: {parameter: value}`
""",
    ),
    Case(
        "unknown key",
        recipe("- quantize.rtn: {}").replace("model:", "modle: {source: x}\nmodel:"),
        """
r.yaml:3:1: error[R205]: unknown key `modle` of the recipe; did you mean `model`?
    3 | modle: {source: x}
      | ^^^^^
help: it may have `version`, `name`, `description`, `extends`, `params`, `matrix`, `search`, `model`, `serve`, `seed`, `data`, `environments` and `steps`
""",
    ),
    Case(
        "wrong version",
        recipe("- quantize.rtn: {}").replace("version: 1", "version: 2"),
        """
r.yaml:1:10: error[R203]: `version` must be 1; got 2
    1 | version: 2
      |          ^
""",
    ),
    Case(
        "bad name",
        recipe("- quantize.rtn: {}").replace("name: a", "name: My Recipe"),
        """
r.yaml:2:7: error[R206]: `name` must be a name of lower case letters, digits, `.`, `_` and `-` (64 at most) that begins with a letter or digit; got "My Recipe"
    2 | name: My Recipe
      |       ^^^^^^^^^
""",
    ),
    Case(
        "model is text",
        recipe("- quantize.rtn: {}").replace("model: {source: m}", "model: m"),
        """
r.yaml:3:8: error[R201]: `model` must be a mapping; got "m"
    3 | model: m
      |        ^
help: write `model: {source: ...}` with a Hub id, a local folder or `demo:tiny-llama`
""",
    ),
    Case(
        "model without source",
        recipe("- quantize.rtn: {}").replace("model: {source: m}", "model: {revision: m}"),
        """
r.yaml:3:1: error[R202]: `model` needs `source`
    3 | model: {revision: m}
      | ^^^^^
help: A Hub id (`meta-llama/Llama-3.2-1B`), a local folder, or an embedded model (`demo:tiny-llama`).
""",
    ),
    Case(
        "seed below zero",
        recipe("- quantize.rtn: {}", also="seed: -1"),
        """
r.yaml:3:7: error[R204]: `seed` must be an integer from 0 to 4294967295; got -1
    3 | seed: -1
      |       ^^
""",
    ),
    Case(
        "no steps",
        HEAD + "steps: []\n",
        """
r.yaml:4:1: error[R207]: `steps` must have at least 1 entry; it has 0
    4 | steps: []
      | ^^^^^
help: write a list of steps, each of the form `- kind: {parameter: value}`
""",
    ),
    Case(
        "steps are a mapping",
        HEAD + "steps: {quantize.rtn: {}}\n",
        """
r.yaml:4:1: error[R201]: `steps` must be a list of mappings; got a mapping
    4 | steps: {quantize.rtn: {}}
      | ^^^^^
help: write a list of steps, each of the form `- kind: {parameter: value}`
""",
    ),
    Case(
        "a step is text",
        recipe("- quantize.rtn"),
        """
r.yaml:6:5: error[R201]: a step must be a mapping; got "quantize.rtn"
    6 |   - quantize.rtn
      |     ^^^^^^^^^^^^
help: a step is a mapping of one step kind to its parameters, such as `- quantize.rtn: {bits: 8}`
""",
    ),
    Case(
        "data without length",
        recipe("- quantize.rtn: {}").replace(", sequence_length: 8", ""),
        """
r.yaml:4:8: error[R202]: `data.text` needs `sequence_length`
    4 | data: {text: {source: t}}
      |        ^^^^
help: Tokens in a window. Perplexity depends on it: compare only results of one length.
""",
    ),
    Case(
        "data packing",
        recipe("- quantize.rtn: {}").replace("length: 8", "length: 8, packing: document"),
        """
r.yaml:4:55: error[R203]: `data.text.packing` must be one of "documents", "joined"; got "document"; did you mean "documents"?
    4 | data: {text: {source: t, sequence_length: 8, packing: document}}
      |                                                       ^^^^^^^^
""",
    ),
    Case(
        "data name",
        recipe("- quantize.rtn: {}").replace("text: {s", '"my text": {s'),
        """
r.yaml:4:8: error[R206]: "my text" cannot be a name in `data`: it must be a name of letters, digits, `_` and `-`
    4 | data: {"my text": {source: t, sequence_length: 8}}
      |        ^^^^^^^^^
""",
    ),
    Case(
        "param name",
        recipe("- quantize.rtn: {}", also="params: {my-bits: 4}"),
        """
r.yaml:3:10: error[R206]: "my-bits" cannot be a name in `params`: it must be a name of letters, digits and `_` that does not begin with a digit
    3 | params: {my-bits: 4}
      |          ^^^^^^^
""",
    ),
    Case(
        "param is a list",
        recipe("- quantize.rtn: {}", also="params: {bits: [4]}"),
        """
r.yaml:3:10: error[R201]: `params.bits` must be text, a number, or true or false: a param's default gives its type; got a list
    3 | params: {bits: [4]}
      |          ^^^^
""",
    ),
    Case(
        "unknown kind",
        recipe("- quantize.gtpq: {data: text}"),
        """
r.yaml:6:5: error[R210]: unknown step kind `quantize.gtpq`; did you mean `quantize.gptq`?
    6 |   - quantize.gtpq: {data: text}
      |     ^^^^^^^^^^^^^
help: `runner steps` lists every kind
""",
    ),
    Case(
        "two steps by the name of one: awq",
        recipe("- quantize.awq: {data: text}"),
        """
r.yaml:6:5: error[R210]: `quantize.awq` is two steps: `transform.awq` rewrites the weights without changing what the \
model computes, then a quantization rounds them
    6 |   - quantize.awq: {data: text}
      |     ^^^^^^^^^^^^
help: write `- transform.awq: {data: calibration, bits: 4, group_size: 128}`, then \
`- quantize.rtn: {data: calibration, bits: 4, group_size: 128, grid: weighted_mse}`
""",
    ),
    Case(
        "two steps by the name of one: smoothquant",
        recipe("- quantize.smoothquant: {data: text}"),
        """
r.yaml:6:5: error[R210]: `quantize.smoothquant` is two steps: `transform.smooth` rewrites the weights without \
changing what the model computes, then a quantization rounds them
    6 |   - quantize.smoothquant: {data: text}
      |     ^^^^^^^^^^^^^^^^^^^^
help: write `- transform.smooth: {data: calibration}`, then `- quantize.rtn: {scheme: w8a8}`
""",
    ),
    Case(
        "kind without family",
        recipe("- gptq: {data: text}"),
        """
r.yaml:6:5: error[R210]: unknown step kind `gptq`; did you mean `quantize.gptq`?
    6 |   - gptq: {data: text}
      |     ^^^^
help: `runner steps` lists every kind
""",
    ),
    Case(
        "no kind",
        recipe("- id: x"),
        """
r.yaml:6:5: error[R211]: the step names no kind
    6 |   - id: x
      |     ^
help: a step is a mapping of one step kind to its parameters, such as `- quantize.rtn: {bits: 8}`
""",
    ),
    Case(
        "two kinds",
        recipe("- quantize.rtn: {}", "  prune.magnitude: {}"),
        """
r.yaml:7:5: error[R212]: a step has exactly one kind; this one has `quantize.rtn` and `prune.magnitude`
    7 |     prune.magnitude: {}
      |     ^^^^^^^^^^^^^^^
help: begin each with `- ` to make it a step of its own
""",
    ),
    Case(
        "not one of",
        recipe("- quantize.gptq: {data: text, bits: 5}"),
        """
r.yaml:6:39: error[R203]: `bits` must be one of 2, 3, 4, 8, "auto"; got 5
    6 |   - quantize.gptq: {data: text, bits: 5}
      |                                       ^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "not one of, text",
        recipe("- quantize.gptq: {data: text, format: pack_quantized}"),
        """
r.yaml:6:41: error[R203]: `format` must be one of "pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "gptq", "awq", "bitsandbytes", "modelopt", "fp8"; got "pack_quantized"; did you mean "pack-quantized"?
    6 |   - quantize.gptq: {data: text, format: pack_quantized}
      |                                         ^^^^^^^^^^^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "wrong type",
        recipe('- quantize.gptq: {data: text, symmetric: "yes"}'),
        """
r.yaml:6:44: error[R201]: `symmetric` must be true or false; got "yes"; did you mean true?
    6 |   - quantize.gptq: {data: text, symmetric: "yes"}
      |                                            ^^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "yes is text",
        recipe("- quantize.gptq: {data: text, act_order: no}"),
        """
r.yaml:6:44: error[R201]: `act_order` must be true or false; got "no"; did you mean false?
    6 |   - quantize.gptq: {data: text, act_order: no}
      |                                            ^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "nothing where a value is wanted",
        recipe("- quantize.gptq:", "    data: text", "    bits:"),
        """
r.yaml:8:12: error[R203]: `bits` must be one of 2, 3, 4, 8, "auto"; got nothing
    8 |       bits:
      |            ^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "out of range",
        recipe("- prune.magnitude: {sparsity: 1.5}"),
        """
r.yaml:6:33: error[R204]: `sparsity` must be a number of at least 0 and below 1, or "auto"; got 1.5
    6 |   - prune.magnitude: {sparsity: 1.5}
      |                                 ^^^
help: `runner steps prune.magnitude` lists every parameter
""",
    ),
    Case(
        "either, out of range",
        recipe("- quantize.gptq: {data: text, group_size: 8}"),
        """
r.yaml:6:45: error[R204]: `group_size` must be an integer from 16 to 1048576, or "channel"; got 8
    6 |   - quantize.gptq: {data: text, group_size: 8}
      |                                             ^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "either, misspelt",
        recipe("- quantize.gptq: {data: text, group_size: chanel}"),
        """
r.yaml:6:45: error[R203]: `group_size` must be an integer from 16 to 1048576, or "channel"; got "chanel"; did you mean "channel"?
    6 |   - quantize.gptq: {data: text, group_size: chanel}
      |                                             ^^^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "either, wrong type",
        recipe("- quantize.gptq: {data: text, group_size: true}"),
        """
r.yaml:6:45: error[R201]: `group_size` must be an integer from 16 to 1048576, or "channel"; got true
    6 |   - quantize.gptq: {data: text, group_size: true}
      |                                             ^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "pattern",
        recipe("- quantize.gptq: {data: text, max_shard_size: 5 gigabytes}"),
        """
r.yaml:6:49: error[R206]: `max_shard_size` must be a size with its unit, such as "5GB" or "512MiB"; got "5 gigabytes"
    6 |   - quantize.gptq: {data: text, max_shard_size: 5 gigabytes}
      |                                                 ^^^^^^^^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "unknown parameter",
        recipe("- quantize.gptq: {data: text, bit: 4}"),
        """
r.yaml:6:33: error[R205]: unknown key `bit` of `quantize.gptq`; did you mean `bits`?
    6 |   - quantize.gptq: {data: text, bit: 4}
      |                                 ^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "parameter of other tools",
        recipe("- quantize.gptq: {data: text, desc_act: true}"),
        """
r.yaml:6:33: error[R205]: unknown key `desc_act` of `quantize.gptq`; did you mean `act_order`?
    6 |   - quantize.gptq: {data: text, desc_act: true}
      |                                 ^^^^^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "missing parameter",
        recipe("- quantize.gptq: {bits: 4}"),
        """
r.yaml:6:5: error[R202]: `quantize.gptq` needs `data`
    6 |   - quantize.gptq: {bits: 4}
      |     ^^^^^^^^^^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "missing parameter, nothing given",
        recipe("- quantize.gptq:"),
        """
r.yaml:6:5: error[R202]: `quantize.gptq` needs `data`
    6 |   - quantize.gptq:
      |     ^^^^^^^^^^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "parameters are a list",
        recipe("- quantize.rtn: [4]"),
        """
r.yaml:6:5: error[R201]: `quantize.rtn` must be a mapping; got a list
    6 |   - quantize.rtn: [4]
      |     ^^^^^^^^^^^^
help: `runner steps quantize.rtn` lists every parameter
""",
    ),
    Case(
        "id among parameters",
        recipe("- quantize.rtn: {id: a}"),
        """
r.yaml:6:20: error[R205]: unknown key `id` of `quantize.rtn`
    6 |   - quantize.rtn: {id: a}
      |                    ^^
help: `id` is a key of the step, not a parameter of `quantize.rtn`
""",
    ),
    Case(
        "parameter beside the kind",
        recipe("- quantize.rtn:", "  bits: 4"),
        """
r.yaml:7:5: error[R205]: `bits` is a parameter of `quantize.rtn`, and is not indented under it
    7 |     bits: 4
      |     ^^^^
help: indent it further than `quantize.rtn`, or move it into the braces
""",
    ),
    Case(
        "unknown key of a step",
        recipe("- quantize.rtn: {}", "  form: model"),
        """
r.yaml:7:5: error[R205]: unknown key `form` of a step; did you mean `from`?
    7 |     form: model
      |     ^^^^
help: besides its kind a step may have `id`, `from`, `when`, `resources`, `env`, `before`, `after` and `remove`
""",
    ),
    Case(
        "bad id",
        recipe("- quantize.rtn: {}", "  id: My Step"),
        """
r.yaml:7:9: error[R206]: `id` must be a name of lower case letters, digits, `_` and `-` (64 at most) that begins with a letter or digit; got "My Step"
    7 |     id: My Step
      |         ^^^^^^^
""",
    ),
    Case(
        "bad resources",
        recipe("- quantize.rtn: {}", "  resources: {processes: -1, disk: 5}"),
        """
r.yaml:7:28: error[R204]: `resources.processes` must be an integer from 1 to 64; got -1
    7 |     resources: {processes: -1, disk: 5}
      |                            ^^

r.yaml:7:32: error[R205]: unknown key `disk` of `resources`
    7 |     resources: {processes: -1, disk: 5}
      |                                ^^^^
help: it may have `processes`, `cpus`, `memory`, `processor`, `gpus` and `custom`
""",
    ),
    Case(
        "an environment that is not there",
        recipe("- quantize.rtn: {}", "  env: pers").replace(
            "steps:", "environments: {peers: {requirements: [a]}}\nsteps:"
        ),
        """
r.yaml:8:10: error[R710]: `env` names `pers`, which is no entry of `environments`; did you mean `peers`?
    8 |     env: pers
      |          ^^^^
help: `environments` has `peers`
""",
    ),
    Case(
        "an environment of a kind that takes none",
        recipe("- quantize.rtn: {}", "  env: peers").replace(
            "steps:", "environments: {peers: {requirements: [a]}}\nsteps:"
        ),
        """
r.yaml:8:10: error[R711]: `quantize.rtn` runs with runner's own packages; only foreign kinds take `env`
    8 |     env: peers
      |          ^^^^^
help: leave it out
""",
    ),
    Case(
        "resources that are no amounts",
        recipe("- quantize.rtn: {}", "  resources: {gpus: 0, cpus: many, memory: 4, custom: {ssd: -1}}"),
        """
r.yaml:7:23: error[R204]: `resources.gpus` must be a number above 0 and at most 64; got 0
    7 |     resources: {gpus: 0, cpus: many, memory: 4, custom: {ssd: -1}}
      |                       ^

r.yaml:7:32: error[R201]: `resources.cpus` must be an integer from 1 to 1024; got "many"
    7 |     resources: {gpus: 0, cpus: many, memory: 4, custom: {ssd: -1}}
      |                                ^^^^

r.yaml:7:46: error[R201]: `resources.memory` must be a size such as `24 GB` or `512 MiB`; got 4
    7 |     resources: {gpus: 0, cpus: many, memory: 4, custom: {ssd: -1}}
      |                                              ^

r.yaml:7:63: error[R204]: `resources.custom.ssd` must be a number above 0; got -1
    7 |     resources: {gpus: 0, cpus: many, memory: 4, custom: {ssd: -1}}
      |                                                               ^^
""",
    ),
    Case(
        "nested overrides",
        recipe('- quantize.gptq: {data: text, overrides: {"*.q_proj": {bits: 5, size: 3}}}'),
        """
r.yaml:6:64: error[R203]: `overrides."*.q_proj".bits` must be one of 2, 3, 4, 8; got 5
    6 |   - quantize.gptq: {data: text, overrides: {"*.q_proj": {bits: 5, size: 3}}}
      |                                                                ^
help: `runner steps quantize.gptq` lists every parameter

r.yaml:6:67: error[R205]: unknown key `size` of `overrides."*.q_proj"`
    6 |   - quantize.gptq: {data: text, overrides: {"*.q_proj": {bits: 5, size: 3}}}
      |                                                                   ^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "empty override",
        recipe('- quantize.gptq: {data: text, overrides: {"*.q_proj": {}}}'),
        """
r.yaml:6:45: error[R207]: `overrides."*.q_proj"` must have at least 1 entry; it has 0
    6 |   - quantize.gptq: {data: text, overrides: {"*.q_proj": {}}}
      |                                             ^^^^^^^^^^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "entry of a list",
        recipe("- quantize.gptq: {data: text, ignore: [lm_head, 3]}"),
        """
r.yaml:6:51: error[R201]: `ignore[1]` must be text that is not empty; got 3
    6 |   - quantize.gptq: {data: text, ignore: [lm_head, 3]}
      |                                                   ^
help: `runner steps quantize.gptq` lists every parameter
""",
    ),
    Case(
        "sparsity against pattern",
        recipe('- prune.magnitude: {sparsity: 0.3, pattern: "2:4"}'),
        """
r.yaml:6:33: error[R208]: `sparsity` must be 0.5 or left out when `pattern` is "2:4" or "4:8"; got 0.3
    6 |   - prune.magnitude: {sparsity: 0.3, pattern: "2:4"}
      |                                 ^^^
help: `runner steps prune.magnitude` lists every parameter
""",
    ),
    Case(
        "format that cannot hold the bits",
        recipe("- quantize.rtn: {bits: 5, format: gptq}"),
        """
r.yaml:6:26: error[R208]: `bits` must be one of 2, 3, 4, 8 when `format` is "gptq"; got 5
    6 |   - quantize.rtn: {bits: 5, format: gptq}
      |                          ^
help: `runner steps quantize.rtn` lists every parameter
""",
    ),
    Case(
        "gate without a limit",
        recipe("- evaluate.perplexity: {data: text, gates: {perplexity: {value: 2}}}"),
        """
r.yaml:6:47: error[R208]: `gates.perplexity` must be exactly one of `{max: x}`, `{min: x}`, `{max_ratio_to: id, value: x}` and `{min_ratio_to: id, value: x}`; got `value`
    6 |   - evaluate.perplexity: {data: text, gates: {perplexity: {value: 2}}}
      |                                               ^^^^^^^^^^
help: `runner steps evaluate.perplexity` lists every parameter
""",
    ),
    Case(
        "gate with two limits",
        recipe("- evaluate.perplexity: {data: text, gates: {perplexity: {max: 2, min: 1}}}"),
        """
r.yaml:6:47: error[R208]: `gates.perplexity` must be exactly one of `{max: x}`, `{min: x}`, `{max_ratio_to: id, value: x}` and `{min_ratio_to: id, value: x}`; got `max` and `min`
    6 |   - evaluate.perplexity: {data: text, gates: {perplexity: {max: 2, min: 1}}}
      |                                               ^^^^^^^^^^
help: `runner steps evaluate.perplexity` lists every parameter
""",
    ),
    Case(
        "gate with a misspelt limit",
        recipe("- evaluate.perplexity: {data: text, gates: {perplexity: {maximum: 2}}}"),
        """
r.yaml:6:60: error[R205]: unknown key `maximum` of `gates.perplexity`; did you mean `max`?
    6 |   - evaluate.perplexity: {data: text, gates: {perplexity: {maximum: 2}}}
      |                                                            ^^^^^^^
help: `runner steps evaluate.perplexity` lists every parameter
""",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_message(case: Case) -> None:
    assert complaint_of(case.text, case.sets) == case.message.strip("\n")
