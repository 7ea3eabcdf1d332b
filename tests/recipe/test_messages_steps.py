"""What is wrong across steps (R3xx), as a user reads it."""

from __future__ import annotations

import pytest

from runner.recipe.load import loads
from tests.recipe.cases import HEAD, Case, complaint_of, recipe

CASES = [
    Case(
        "two equal ids",
        recipe("- quantize.rtn: {}", "  id: x", "- evaluate.perplexity: {data: text}", "  id: x"),
        """
r.yaml:9:9: error[R301]: the id `x` is used twice; first at line 6
    9 |     id: x
      |         ^
help: change one of them
""",
    ),
    Case(
        "reserved id",
        recipe("- quantize.rtn: {}", "  id: model"),
        """
r.yaml:7:9: error[R302]: the id `model` is reserved: it names the recipe's model
    7 |     id: model
      |         ^^^^^
help: give the step another id
""",
    ),
    Case(
        "from an unknown step",
        recipe("- prune.magnitude: {}", "- quantize.rtn: {}", "  from: magnitud"),
        """
r.yaml:8:11: error[R303]: `from` names `magnitud`, which is no step; did you mean `magnitude`?
    8 |     from: magnitud
      |           ^^^^^^^^
help: it may name `model` or `magnitude`
""",
    ),
    Case(
        "from a later step",
        recipe("- prune.magnitude: {}", "  from: rtn", "- quantize.rtn: {}"),
        """
r.yaml:7:11: error[R304]: `from` names `rtn`, which comes later
    7 |     from: rtn
      |           ^^^
help: it may name `model`
""",
    ),
    Case(
        "from itself",
        recipe("- prune.magnitude: {}", "  from: magnitude"),
        """
r.yaml:7:11: error[R304]: `from` names `magnitude`, which is this step itself
    7 |     from: magnitude
      |           ^^^^^^^^^
help: it may name `model`
""",
    ),
    Case(
        "from a step that makes no checkpoint",
        recipe("- evaluate.perplexity: {data: text}", "- quantize.rtn: {}", "  from: perplexity"),
        """
r.yaml:8:11: error[R307]: `from` names `perplexity`, and `evaluate.perplexity` makes no checkpoint
    8 |     from: perplexity
      |           ^^^^^^^^^^
help: it may name `model`
""",
    ),
    Case(
        "a measurement of a step that measures no sensitivity",
        recipe(
            "- evaluate.perplexity: {data: text}",
            "- quantize.rtn: {bits: auto, sensitivity: perplexity, budget: {average_bits: 3}}",
        ),
        """
r.yaml:7:45: error[R817]: `sensitivity` names `perplexity`, and `evaluate.perplexity` measures no sensitivity
    7 |   - quantize.rtn: {bits: auto, sensitivity: perplexity, budget: {average_bits: 3}}
      |                                             ^^^^^^^^^^
help: put a step of `analyze.sensitivity` before it
""",
    ),
    Case(
        "a graph of a step that makes no engine",
        recipe("- quantize.rtn: {}", "- build.onnx: {target: tensorrt}", "- build.tensorrt: {graph: rtn}"),
        """
r.yaml:8:29: error[R307]: `graph` names `rtn`, and `quantize.rtn` makes no engine
    8 |   - build.tensorrt: {graph: rtn}
      |                             ^^^
help: it may name `onnx`
""",
    ),
    Case(
        "a graph of no step",
        recipe("- quantize.rtn: {}", "- build.tensorrt: {graph: onnx}"),
        """
r.yaml:7:29: error[R303]: `graph` names `onnx`, which is no step
    7 |   - build.tensorrt: {graph: onnx}
      |                             ^^^^
help: put a `build.` step before it
""",
    ),
    Case(
        "from a step left out",
        recipe(
            "- prune.magnitude: {}",
            "  when: prune",
            "- quantize.rtn: {}",
            "  from: magnitude",
            also="params: {prune: false}",
        ),
        """
r.yaml:10:11: error[R305]: `from` names `magnitude`, which `when: prune` leaves out
   10 |     from: magnitude
      |           ^^^^^^^^^
help: give this step the same `when`, or name another
""",
    ),
    Case(
        "every step left out",
        recipe("- prune.magnitude: {}", "  when: false"),
        """
r.yaml:5:1: error[R310]: `when` leaves out every step
    5 | steps:
      | ^^^^^
help: change the params, or a `when`
""",
    ),
    Case(
        "quantized twice",
        recipe("- quantize.rtn: {}", "- quantize.gptq: {data: text}"),
        """
r.yaml:7:5: error[R308]: `quantize.gptq` takes an unquantized checkpoint; `rtn` makes a quantized checkpoint
    7 |   - quantize.gptq: {data: text}
      |     ^^^^^^^^^^^^^
help: `from` may name `model`
""",
    ),
    Case(
        "quantized twice, by from",
        recipe("- quantize.rtn: {}", "- prune.magnitude: {}", "  from: rtn"),
        """
r.yaml:8:11: error[R308]: `prune.magnitude` takes an unquantized checkpoint; `rtn` makes a quantized checkpoint
    8 |     from: rtn
      |           ^^^
help: `from` may name `model`
""",
    ),
    Case(
        "undefined data",
        recipe("- evaluate.perplexity: {data: txt}"),
        """
r.yaml:6:33: error[R306]: `data` names `txt`, which is no entry of `data`; did you mean `text`?
    6 |   - evaluate.perplexity: {data: txt}
      |                                 ^^^
help: `data` has `text`
""",
    ),
    Case(
        "no data",
        recipe("- evaluate.perplexity: {data: text}", head=HEAD),
        """
r.yaml:5:33: error[R306]: `data` names `text`, which is no entry of `data`
    5 |   - evaluate.perplexity: {data: text}
      |                                 ^^^^
help: the recipe has no `data`
""",
    ),
    Case(
        "against an unknown step",
        recipe("- prune.magnitude: {}", "- evaluate.divergence: {data: text, against: magnitde}"),
        """
r.yaml:7:48: error[R303]: `against` names `magnitde`, which is no step; did you mean `magnitude`?
    7 |   - evaluate.divergence: {data: text, against: magnitde}
      |                                                ^^^^^^^^
help: it may name `model` or `magnitude`
""",
    ),
    Case(
        "against a step without a checkpoint",
        recipe("- evaluate.perplexity: {data: text}", "- evaluate.divergence: {data: text, against: perplexity}"),
        """
r.yaml:7:48: error[R307]: `against` names `perplexity`, and `evaluate.perplexity` makes no checkpoint
    7 |   - evaluate.divergence: {data: text, against: perplexity}
      |                                                ^^^^^^^^^^
help: it may name `model`
""",
    ),
    Case(
        "gate on an unknown metric",
        recipe("- evaluate.perplexity: {data: text, gates: {perplexty: {max: 20}}}"),
        """
r.yaml:6:47: error[R309]: `evaluate.perplexity` does not measure `perplexty`; did you mean `perplexity`?
    6 |   - evaluate.perplexity: {data: text, gates: {perplexty: {max: 20}}}
      |                                               ^^^^^^^^^
help: it measures `perplexity`, `loss`, `tokens` and `windows`
""",
    ),
    Case(
        "gate against an unknown step",
        recipe(
            "- evaluate.perplexity: {data: text}",
            "  id: baseline",
            "- evaluate.perplexity: {data: text, gates: {perplexity: {max_ratio_to: base, value: 1.1}}}",
        ),
        """
r.yaml:8:74: error[R303]: `max_ratio_to` names `base`, which is no step; did you mean `baseline`?
    8 |   - evaluate.perplexity: {data: text, gates: {perplexity: {max_ratio_to: base, value: 1.1}}}
      |                                                                          ^^^^
help: `perplexity` is measured by `baseline`
""",
    ),
    Case(
        "gate against a later step",
        recipe(
            "- evaluate.perplexity: {data: text, gates: {perplexity: {max_ratio_to: late, value: 1.1}}}",
            "- evaluate.perplexity: {data: text}",
            "  id: late",
        ),
        """
r.yaml:6:74: error[R304]: `max_ratio_to` names `late`, which comes later
    6 |   - evaluate.perplexity: {data: text, gates: {perplexity: {max_ratio_to: late, value: 1.1}}}
      |                                                                          ^^^^
help: no earlier step measures `perplexity`
""",
    ),
    Case(
        "gate against a step without the metric",
        recipe(
            "- evaluate.perplexity: {data: text}",
            "- evaluate.divergence: {data: text, gates: {kl: {max_ratio_to: perplexity, value: 1.1}}}",
        ),
        """
r.yaml:7:66: error[R309]: `max_ratio_to` names `perplexity`, and `evaluate.perplexity` does not measure `kl`
    7 |   - evaluate.divergence: {data: text, gates: {kl: {max_ratio_to: perplexity, value: 1.1}}}
      |                                                                  ^^^^^^^^^^
help: no earlier step measures `kl`
""",
    ),
    Case(
        "gates that no value passes",
        recipe(
            "- evaluate.divergence: {data: text, gates: {top1_agreement: {min: 1.5}, kl: {max: -1}}}",
            "- evaluate.perplexity: {data: text, gates: {perplexity: {max: 0.9}}}",
        ),
        """
r.yaml:6:69: error[R312]: `gates.top1_agreement` can never pass: `top1_agreement` is from 0 to 1, and `min` is 1.5
    6 |   - evaluate.divergence: {data: text, gates: {top1_agreement: {min: 1.5}, kl: {max: -1}}}
      |                                                                     ^^^
help: set `min` to 1 or less

r.yaml:6:85: error[R312]: `gates.kl` can never pass: `kl` is at least 0, and `max` is -1
    6 |   - evaluate.divergence: {data: text, gates: {top1_agreement: {min: 1.5}, kl: {max: -1}}}
      |                                                                                     ^^
help: set `max` to 0 or more

r.yaml:7:65: error[R312]: `gates.perplexity` can never pass: `perplexity` is at least 1, and `max` is 0.9
    7 |   - evaluate.perplexity: {data: text, gates: {perplexity: {max: 0.9}}}
      |                                                                 ^^^
help: set `max` to 1 or more
""",
    ),
    Case(
        "an engine's comparison without an engine",
        recipe("- quantize.rtn: {}", "- evaluate.parity: {data: text}"),
        """
r.yaml:7:5: error[R308]: `evaluate.parity` takes an engine; `model` is none
    7 |   - evaluate.parity: {data: text}
      |     ^^^^^^^^^^^^^^^
help: put a step before it that makes one
""",
    ),
    Case(
        "several processes for a kind that runs in one",
        recipe("- quantize.rtn: {bits: 4}", "  resources: {processes: 2}"),
        """
r.yaml:7:28: error[R311]: `quantize.rtn` runs in one process; `resources` asks for 2
    7 |     resources: {processes: 2}
      |                            ^
help: leave `processes` out: training uses several, and `quantize.gptq`, `prune.wanda`, `prune.sparsegpt` and \
`evaluate.perplexity`
""",
    ),
]


CONFIDENT = [
    Case("confidence-of-a-count", recipe(
        "- evaluate.perplexity: {data: text, gates: {tokens: {max: 9, confidence: 0.9}}}"), """
r.yaml:6:76: error[R832]: `confidence` cannot be given for `tokens`: how far `evaluate.perplexity` knows it is not known
    6 |   - evaluate.perplexity: {data: text, gates: {tokens: {max: 9, confidence: 0.9}}}
      |                                                                            ^^^
help: it is for `perplexity` and `loss`"""),
    Case("confidence-with-a-job", recipe(
        "- evaluate.divergence: {data: text, gates: {kl: {max_ratio_to: accepted, value: 1, confidence: 0.9}}}"), """
r.yaml:6:98: error[R833]: `confidence` compares window by window, and of `accepted` only metrics are known
    6 |   - evaluate.divergence: {data: text, gates: {kl: {max_ratio_to: accepted, value: 1, confidence: 0.9}}}
      |                                                                                                  ^^^
help: compare with a step of this recipe"""),
    Case("confidence-with-other-data", recipe(
        "- evaluate.perplexity: {data: text}", "  id: first", "- evaluate.perplexity:", "    data: other",
        "    gates: {loss: {max_ratio_to: first, value: 1, confidence: 0.9}}",
        head=HEAD + "data: {text: {source: t, sequence_length: 8}, other: {source: o, sequence_length: 8}}\n"), """
r.yaml:10:65: error[R834]: `confidence` compares window by window, and `first` does not measure as this step does
   10 |       gates: {loss: {max_ratio_to: first, value: 1, confidence: 0.9}}
      |                                                                 ^^^
help: give both the same parameters"""),
    Case("mended-by-nothing", recipe("- evaluate.perplexity: {data: text, gates: {loss: {max: 9, mended_by: more}}}",
        "- recover.lora: {data: text, steps: 1}"), """
r.yaml:6:73: error[R835]: `mended_by` names `more`, which is no later step
    6 |   - evaluate.perplexity: {data: text, gates: {loss: {max: 9, mended_by: more}}}
      |                                                                         ^^^^
help: it may name `lora`"""),
    Case("mended-and-continued", recipe(
        "- evaluate.perplexity: {data: text, gates: {loss: {max: 9, on_miss: warn, mended_by: lora}}}",
        "- recover.lora: {data: text, steps: 1}"), """
r.yaml:6:88: error[R835]: `mended_by` is for `on_miss: stop`; with `warn` other steps run anyway
    6 |   - evaluate.perplexity: {data: text, gates: {loss: {max: 9, on_miss: warn, mended_by: lora}}}
      |                                                                                        ^^^^
help: leave one of them out"""),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *CONFIDENT], ids=lambda case: case.name)
def test_whole_message(case: Case) -> None:
    assert complaint_of(case.text, case.sets) == case.message.strip("\n")


def warned(text: str) -> str:
    return "\n".join(warning.render() for warning in loads(text, "r.yaml").warnings)


def test_gates_that_no_value_misses() -> None:
    step = "- evaluate.divergence: {data: text, gates: {top1_agreement: {min: 0}, kl: {min: -0.5}}}"
    assert warned(recipe(step, "  id: x", "- evaluate.perplexity: {data: text, gates: {tokens: {min: 1}}}")) == (
        "r.yaml:6:69: warning[R313]: `gates.top1_agreement` can never be missed: `top1_agreement` is from 0 to 1, "
        "and `min` is 0\n"
        f"    6 |   {step}\n"
        "      |                                                                     ^\n"
        "help: set a limit that can be missed\n"
        "r.yaml:6:83: warning[R313]: `gates.kl` can never be missed: `kl` is at least 0, and `min` is -0.5\n"
        f"    6 |   {step}\n"
        "      |                                                                                   ^^^^\n"
        "help: set a limit that can be missed\n"
        "r.yaml:8:61: warning[R313]: `gates.tokens` can never be missed: `tokens` is at least 1, and `min` is 1\n"
        "    8 |   - evaluate.perplexity: {data: text, gates: {tokens: {min: 1}}}\n"
        "      |                                                             ^\n"
        "help: set a limit that can be missed"
    )


@pytest.mark.parametrize(
    "gates",
    [
        "{top1_agreement: {min: 1}}",
        "{kl: {max: 0}}",
        "{top1_agreement: {max_ratio_to: first, value: 9}}",
        "{kl: {max: 9e9}}",
    ],
)
def test_gates_that_decide(gates: str) -> None:
    steps = [
        "- evaluate.divergence: {data: text}",
        "  id: first",
        f"- evaluate.divergence: {{data: text, gates: {gates}}}",
    ]
    assert warned(recipe(*steps)) == ""


def test_metrics_of_tasks_have_no_known_range() -> None:
    assert warned(recipe("- evaluate.tasks: {tasks: [a], gates: {a/ppl: {max: -1}}}", head=HEAD)) == ""


def test_what_is_defined_and_not_used() -> None:
    also = "params: {bits: 4, dense: true, width: 8, rest: 1}"
    text = recipe('- quantize.rtn: {bits: "${bits}"}', "  when: dense or width > 4", also=also)
    assert warned(text) == (
        "r.yaml:3:42: warning[R229]: the param `rest` is not used\n"
        f"    3 | {also}\n"
        "      |                                          ^^^^\n"
        "help: leave it out"
    )
    assert warned(recipe("- quantize.rtn: {}")) == (
        "r.yaml:4:8: warning[R229]: the data entry `text` is not used\n"
        "    4 | data: {text: {source: t, sequence_length: 8}}\n"
        "      |        ^^^^\n"
        "help: leave it out"
    )
    assert warned(recipe('- evaluate.perplexity: {data: "${name}"}', also="params: {name: text}")) == ""
