"""Random single changes of config.json and of a tokenizer's files end in a complaint with a code, or in a right result.

A right result is the perplexity that transformers gives on the tokens that its own tokenizer makes. 20 changes here,
300 of each kind nightly.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.data.windows import windows
from runner.errors import MachineError, RecipeError
from runner.plan import resolve
from runner.recipe.types import DataSpec
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host
from tests.plan.recipes import recipe

DEMO = Path(__file__).parents[2] / "runner" / "demo" / "models" / "tiny-llama"
TEXTS = ["def add(a, b):\n    return a + b\n", "import os\nprint(os.getcwd())\n", "class Tree:\n    leaves = []\n"] * 4
HEAD = """\
version: 1
name: small
model: {{source: "{model}"}}
data:
  evaluation: {{source: "{text}", samples: 4, sequence_length: 16}}
"""
STEPS = """\
steps:
  - quantize.rtn: {bits: 8, group_size: 16}
  - evaluate.perplexity: {data: evaluation}
"""
GONE = object()
VALUES: list[Any] = [
    GONE, GONE, None, "", "x", "nan", "0", "llama", 0, -1, 1, 2, 3, 7, 4096, 10**12, -(10**12), 0.5, -0.5, 1e30, 1e-30,
    True, False, [], [1], ["x"], [None], {}, {"a": 1}, {"rope_type": "linear", "factor": 2.0}, [[]],
]  # fmt: skip
EXTRA = (
    "torch_dtype", "sliding_window", "rope_scaling", "rope_theta", "layer_types", "quantization_config", "text_config",
    "num_experts", "auto_map", "is_encoder_decoder", "pruned_heads", "tokenizer_class", "attn_implementation",
    "_attn_implementation", "sep_token_id", "chunk_size_feed_forward", "output_attentions", "return_dict", "id2label",
)  # fmt: skip
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
TOKENIZER_EXTRA = (
    "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "chat_template", "add_bos_token",
    "add_prefix_space", "model_max_length", "padding_side", "truncation", "normalizer", "tokenizer_class", "cls_token",
    "eos_token_id", "temperature", "do_sample", "max_length",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder, vocab_size=4096, pad_token_id=3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": {"content": "<pad>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def places(value: Any, depth: int, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of the entries of nested objects and lists, of long ones the first few."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value))[:24]
    for key, inner in entries:
        yield (*path, key)
        if depth > 1 and isinstance(inner, dict | list):
            yield from places(inner, depth - 1, (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    result = copy.deepcopy(document)
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    if value is not GONE:
        holder[path[-1]] = value
    elif isinstance(holder, list) or path[-1] in holder:
        del holder[path[-1]]
    return result


def change_config(model: Path, folder: Path, draw: random.Random) -> str:
    document = json.loads((model / "config.json").read_text())
    path = draw.choice([*places(document, 2), *((name,) for name in EXTRA)])
    value = draw.choice(VALUES)
    (folder / "config.json").write_text(json.dumps(changed(document, path, value)))
    return f"config.json {path} = {'(removed)' if value is GONE else value!r}"


def change_tokenizer(model: Path, folder: Path, draw: random.Random) -> str:
    name = draw.choice(TOKENIZER)
    text = (model / name).read_text()
    if draw.random() < 0.1:
        at = draw.randrange(len(text))
        (folder / name).write_text(text[:at] if draw.random() < 0.5 else text[:at] + "\x00" + text[at + 1 :])
        return f"{name} broken at {at}"
    document = json.loads(text)
    extra = [(key,) for key in TOKENIZER_EXTRA]
    path = draw.choice([*places(document, 3), *(extra if name != "tokenizer.json" else [])])
    value = draw.choice(VALUES)
    (folder / name).write_text(json.dumps(changed(document, path, value)))
    return f"{name} {path} = {'(removed)' if value is GONE else value!r}"


def reference(folder: Path) -> tuple[torch.Tensor, float]:
    """Tokens [4, 16] and perplexity, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos, eos = ([] if id is None else [id] for id in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    ids: list[int] = []
    for text in TEXTS:
        ids += [*bos, *tokenizer(text, add_special_tokens=False)["input_ids"], *eos]
    windows = torch.tensor(ids[:64]).view(4, 16)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = loaded(windows).logits.float()
    targets = windows[:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets)
    return windows, float(loss.exp())


def outcome(folder: Path, work: Path) -> str:
    """ "refused" with a code, "right", or what went wrong."""
    text = folder / "data.jsonl"
    try:
        resolve.resolve(recipe(STEPS, HEAD.format(model=folder, text=text)), device="cpu")
    except (RecipeError, MachineError) as error:
        coded = isinstance(error, MachineError) or all(each.code for each in error.diagnostics)
        return "refused" if coded else f"a complaint without a code: {error}"
    except Exception as error:  # noqa: BLE001  that is what must not happen
        return f"the plan ended in {type(error).__name__}: {error}"
    try:
        ids = torch.from_numpy(windows(DataSpec("evaluation", str(text), None, 16, samples=4), [text], folder))
        find("quantize.rtn").run(Host(work / "rtn", "quantize.rtn", folder, bits=8, group_size=16))
        ours = find("evaluate.perplexity").run(Host(work / "p", "evaluate.perplexity", folder, ids)).metrics
    except Exception as error:  # noqa: BLE001  as above
        return f"the run ended in {type(error).__name__}: {error}"
    try:
        wanted, perplexity = reference(folder)
    except Exception as error:  # noqa: BLE001  as above
        return f"it ran, and transformers ends in {type(error).__name__}: {error}"
    if not torch.equal(ids, wanted):
        return "the tokens are not those of transformers"
    if not abs(ours["perplexity"] / perplexity - 1) < 1e-3:
        return f"perplexity {ours['perplexity']}, that of transformers is {perplexity}"
    return "right"


Change = Callable[[Path, Path, random.Random], str]


def faults(model: Path, tmp_path: Path, change: Change, seeds: range) -> list[str]:
    found = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        for path in model.iterdir():
            os.link(path, folder / path.name) if path.suffix == ".safetensors" else shutil.copyfile(
                path, folder / path.name
            )
        what = change(model, folder, random.Random(seed))
        result = outcome(folder, folder / "work")
        if result not in ("refused", "right"):
            found.append(f"{seed}: {what}: {result}")
        shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("change", [change_config, change_tokenizer])
@pytest.mark.filterwarnings("ignore")  # of transformers, about the values
def test_a_sample(model: Path, tmp_path: Path, change: Change) -> None:
    assert faults(model, tmp_path, change, range(10)) == []


@pytest.mark.nightly
@pytest.mark.parametrize("change", [change_config, change_tokenizer])
@pytest.mark.parametrize("part", range(10))
@pytest.mark.filterwarnings("ignore")
def test_300_changes_of_each(model: Path, tmp_path: Path, change: Change, part: int) -> None:
    assert faults(model, tmp_path, change, range(100 + 30 * part, 130 + 30 * part)) == []
