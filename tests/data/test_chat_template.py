"""Chat messages as transformers writes them out, and what is said about those that cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.data import special_tokens, windows
from runner.data.chat_template import Template, conversation
from runner.errors import RecipeError
from runner.recipe.types import DataSpec

TINY_LLAMA = Path(__file__).parents[2] / "runner" / "demo" / "models" / "tiny-llama"
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('unknown role ' + message['role']) }}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {{- '[assistant]' }}
        {%- generation %}
        {{- message['content'] | trim + eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- '[' + message['role'] + ']' + message['content'] + '\\n' }}
    {%- endif %}
    {%- if loop.index > 7 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}[assistant]{% endif %}
"""
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief & <exact>."},
    {"role": "user", "content": "What does `len` do?", "name": None},
    {"role": "assistant", "content": " It counts. "},
]
ROLES = 'a message has one of the roles "system", "developer", "user", "assistant", "tool"'
FORM = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded tokenizer with a chat template."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        shutil.copyfile(TINY_LLAMA / name, folder / name)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def lines(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def spec(**changes: Any) -> DataSpec:
    fields: dict[str, Any] = {"name": "chat", "source": "chat.jsonl", "split": None, "sequence_length": 8}
    return DataSpec(**(fields | {"field": "messages"} | changes))


def refused(path: Path, model: Path, **changes: Any) -> tuple[str, str, str | None]:
    with pytest.raises(RecipeError) as caught:
        windows.windows(spec(**changes), [path], model)
    [found] = caught.value.diagnostics
    return found.code, found.message, found.help


def test_the_text_is_that_of_transformers(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ours = Template(model).render(conversation(MESSAGES, "here"))
    assert ours == tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert ours == "<s>[system]Be brief & <exact>.\n[user]What does `len` do?\n[assistant]It counts.</s>"


def test_the_tokens_are_those_of_transformers(model: Path, tmp_path: Path) -> None:
    """One conversation after another, each with the template's special tokens once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    other: list[Any] = [{"role": "user", "content": "And `max`? " * 4}]
    wanted = [id for chat in (MESSAGES, other) for id in tokenizer.apply_chat_template(chat, return_dict=False)]
    found = windows.windows(spec(), [lines(tmp_path, MESSAGES, other)], model)
    assert np.array_equal(found.reshape(-1), wanted[: found.size])
    assert len(wanted) - found.size < 8
    assert wanted.count(tokenizer.bos_token_id) == 2


def test_the_template_in_tokenizer_config(model: Path) -> None:
    text = Template(model).render(conversation(MESSAGES, "here"))
    (model / "chat_template.jinja").unlink()
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    assert Template(model).render(conversation(MESSAGES, "here")) == text
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    path.write_text(json.dumps(config | {"chat_template": several}))
    assert Template(model).render(conversation(MESSAGES, "here")) == text


def test_template_files_replace_those_of_tokenizer_config(model: Path) -> None:
    """As transformers reads the folder: a folder of named templates without a default leaves none."""
    from transformers import AutoTokenizer

    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "in config"}))
    found = []
    for file, text in (
        ("", ""), ("additional_chat_templates/rag.jinja", "rag"), ("chat_template.jinja", "own file"),
        ("additional_chat_templates/default.jinja", "named"),
    ):  # fmt: skip
        (model / "additional_chat_templates").mkdir(exist_ok=True)
        if file:
            (model / file).write_text(text)
        else:
            (model / "chat_template.jinja").unlink(missing_ok=True)
        theirs = AutoTokenizer.from_pretrained(model).chat_template
        theirs = theirs.get("default") if isinstance(theirs, dict) else theirs
        found.append((special_tokens.chat_template(model), theirs))
    assert found == [("in config", "in config"), (None, None), ("own file", "own file"), ("named", "named")]


def test_the_day_never_changes_the_tokens(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    assert Template(model).render(conversation(MESSAGES, "here")) == "26 Jul 2024"


def test_a_template_cannot_reach_python(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    message = refused(lines(tmp_path, MESSAGES), model)[1]
    assert message.endswith("refuses these messages: access to attribute '__class__' of 'list' object is unsafe.")


def test_a_tokenizer_without_a_template(tmp_path: Path) -> None:
    assert refused(lines(tmp_path, MESSAGES), TINY_LLAMA) == (
        "R467",
        (
            f"the data holds chat messages, and the tokenizer in `{TINY_LLAMA}` has no chat template: neither "
            "`chat_template.jinja` nor `chat_template` in tokenizer_config.json is there"
        ),
        "use the model's chat version, or data whose field holds plain text",
    )


def test_a_template_that_is_none(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for %}")
    message = f"the chat template in `{model}` cannot be compiled: "
    assert refused(lines(tmp_path, MESSAGES), model)[1].startswith(message)


def test_messages_that_the_template_refuses(model: Path, tmp_path: Path) -> None:
    path = lines(tmp_path, MESSAGES, [{"role": "tool", "content": "3"}])
    assert refused(path, model) == (
        "R468",
        f"`{path}` line 2: `messages`: the chat template in `{model}` refuses these messages: unknown role tool",
        "bring them into the form that the model was trained on",
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([{"role": "user", "content": None}], "`messages`[0]: `content` must be text; it is nothing"),
        ([{"role": "assistant", "content": None, "tool_calls": []}],
         "`messages`[0]: `content` must be text; it is nothing"),
        ([{"role": "assistant", "content": 3, "tool_calls": [{"name": "f"}]}],
         "`messages`[0]: `content` must be text; it is 3"),
        ([{"role": None, "content": "a"}], "`messages`[0]: `role` must be text; it is nothing"),
        ([MESSAGES[0], "hello"], '`messages`[1] must be a message; it is "hello"'),
        ([MESSAGES[0], {"role": "user"}], "`messages`[1]: `content` must be text; it is not there; it has `role`"),
        ([{"from": "human", "value": "a"}],
         "`messages`[0]: `role` must be text; it is not there; it has `from`, `value`"),
        ([{"role": "user", "content": ["a"]}], "`messages`[0]: `content` must be text; it is a list"),
    ],
)  # fmt: skip
def test_malformed_messages(row: Any, message: str, model: Path, tmp_path: Path) -> None:
    path = lines(tmp_path, row)
    assert refused(path, model) == ("R468", f"`{path}` line 1: {message}", FORM)


CALLS: list[Any] = [
    {"role": "user", "content": "2 + 1"},
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]},
    {"role": "tool", "content": "3", "name": None},
]
CALLING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is not none %}{{ m.content }}{% endif %}"
    "{% if m.name is defined %}{{ m.name }}{% endif %}"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% endif %}{% endfor %}"
)


def test_a_tool_call_needs_no_content(model: Path, tmp_path: Path) -> None:
    """Written as transformers writes it; with the content left out as well as null."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (model / "chat_template.jinja").write_text(CALLING)
    chat = [CALLS[0], CALLS[1], {"role": "tool", "content": "3"}]
    rendered: Any = render_jinja_template([chat], chat_template=CALLING)
    expected: str = rendered[0][0]
    assert expected == "<user>2 + 1<assistant>add<tool>3"
    absent = {key: value for key, value in CALLS[1].items() if key != "content"}
    for rows in (CALLS, [CALLS[0], absent, CALLS[2]]):
        assert Template(model).render(conversation(rows, "here")) == expected


@pytest.mark.parametrize(
    ("row", "message", "help"),
    [
        (CALLS, "`messages`[1] calls tools, which the chat template in `{}` would leave out",
         "use a model whose template writes tool calls, or leave these rows out"),
        ([{"role": "human", "content": "a"}],
         '`messages`[0]: the role "human" is none that the chat template in `{}` names; did you mean "user"?', ROLES),
        ([MESSAGES[0], {"role": "Assistant", "content": "a"}],
         '`messages`[1]: the role "Assistant" is none that the chat template in `{}` names; did you mean "assistant"?',
         ROLES),
        ([{"role": "x", "content": "a"}], '`messages`[0]: the role "x" is none that the chat template in `{}` names',
         ROLES),
    ],
)  # fmt: skip
def test_messages_that_a_template_would_write_otherwise(
    row: Any, message: str, help: str, model: Path, tmp_path: Path
) -> None:
    (model / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    assert refused(lines(tmp_path, row), model) == (
        "R468",
        f"`{lines(tmp_path, row)}` line 1: {message.format(model)}",
        help,
    )


def test_a_role_of_the_template_is_taken(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'critic' %}!{% endif %}{{ m.content }}{% endfor %}"
    )
    assert Template(model).render(conversation([{"role": "critic", "content": "no"}], "here")) == "!no"


@pytest.mark.parametrize(
    "template", ["{{ 1 // 0 }}", "{{ messages[0].content.x.y }}", "{% for i in range(10**9) %}{% endfor %}"]
)
def test_code_of_a_template_that_fails(template: str, model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(template)
    found = refused(lines(tmp_path, MESSAGES), model)
    assert found[0] == "R468"
    assert found[1].startswith(
        f"`{lines(tmp_path, MESSAGES)}` line 1: `messages`: the chat template in `{model}` refuses"
    )


def test_messages_are_not_joined(model: Path, tmp_path: Path) -> None:
    assert refused(lines(tmp_path, MESSAGES), model, packing="joined") == (
        "R468",
        "data `chat` holds chat messages, which `packing: joined` would run together",
        "leave `packing` out",
    )


def test_neither_torch_nor_transformers_is_needed(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from runner.data import windows; from runner.recipe.types import DataSpec\n"
        "spec = DataSpec('chat', 'chat.jsonl', None, 8, field='messages')\n"
        "before = 'jinja2' in sys.modules\n"
        "windows.windows(spec, [Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "print(before, sorted({'torch', 'transformers', 'jinja2'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", code, str(lines(tmp_path, MESSAGES)), str(model)]
    found = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert found.stdout == "False ['jinja2']\n"
