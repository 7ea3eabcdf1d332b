"""Renders chat messages as text, by the tokenizer's chat template, as transformers does. Imports no torch.

Templates are untrusted code: they run in jinja's immutable sandbox. The date that they see is always DAY, so that
equal data gives equal tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data import special_tokens
from runner.errors import Diagnostic, RecipeError
from runner.wording import listed, nearest, show

if TYPE_CHECKING:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

DAY = date(2024, 7, 26)  # the default date of Llama 3's template
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Roles that templates render, most of them as `message.role`; and their names in other forms of chat data.
_ROLES = ("system", "developer", "user", "assistant", "tool")
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
# Errors that a template's code raises, besides jinja's own.
_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
_FORM = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


@dataclass(frozen=True)
class Conversation:
    """A document of chat messages; `where` is its place in the data, for complaints."""

    messages: tuple[Mapping[str, Any], ...]
    where: str


def conversation(value: list[Any], where: str) -> Conversation:
    """Return the messages of a field that holds a list; `where` names file, line and field.

    A message that calls tools may have no content. Other keys without a value are left out: tables of messages have
    every key in every row, and templates test whether a key is there. Raises RecipeError where the value is not a list
    of messages.
    """
    messages = []
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise _error("R468", f"{where}[{index}] must be a message; it is {show(message)}", _FORM)
        for key in ("role", "content"):
            calls = key == "content" and message.get("tool_calls")
            if not isinstance(message.get(key), str) and not (calls and message.get(key) is None):
                held = f"is {show(message[key])}" if key in message else f"is not there; it has {_keys(message)}"
                raise _error("R468", f"{where}[{index}]: `{key}` must be text; it {held}", _FORM)
        present = {name: part for name, part in message.items() if part is not None}
        messages.append({"content": None, **present})
    return Conversation(tuple(messages), where)


def _keys(message: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}`" for key in message) or "nothing"


class Template:
    """The chat template of a tokenizer's folder, or `source`, with the special tokens that it may write."""

    def __init__(self, folder: Path, source: str | None = None) -> None:
        import jinja2  # here, because reading plain text needs no jinja

        found = source or special_tokens.chat_template(folder)
        if found is None:
            raise _error(
                "R467",
                f"the data holds chat messages, and the tokenizer in `{folder}` has no chat template: neither "
                f"`{special_tokens.TEMPLATE}` nor `chat_template` in tokenizer_config.json is there",
                "use the model's chat version, or data whose field holds plain text",
            )
        self._folder, self._source = folder, found
        declared = special_tokens.declared(folder)
        self._tokens = {key: token for key in _SPECIAL if (token := special_tokens.content(declared.get(key)))}
        try:
            self._template = _environment().from_string(found)
        except jinja2.TemplateError as error:
            raise _error("R467", f"the chat template in `{folder}` cannot be compiled: {error}") from None

    def render(self, chat: Conversation, *, answer: bool = False) -> str:
        """Return the conversation as the model reads it, with its special tokens.

        With `answer` it ends where the assistant begins to answer. Raises RecipeError where the template refuses.
        """
        import jinja2

        self._check(chat)
        values = {**self._tokens, "add_generation_prompt": answer, "tools": None, "documents": None}
        try:
            return self._template.render(messages=[dict(message) for message in chat.messages], **values)
        except (*_FAILURES, jinja2.TemplateError) as error:
            message = f"{chat.where}: the chat template in `{self._folder}` refuses these messages: {error}"
            raise _error("R468", message, "bring them into the form that the model was trained on") from None

    def _check(self, chat: Conversation) -> None:
        """Raise RecipeError for messages that the template would silently leave out or render differently."""
        for index, message in enumerate(chat.messages):
            where, role = f"{chat.where}[{index}]", str(message["role"])
            if role not in _ROLES and not any(f"{quote}{role}{quote}" in self._source for quote in "'\""):
                meant = _OTHER_NAMES.get(role.lower()) or nearest(role, _ROLES)
                hint = f"; did you mean {show(meant)}?" if meant else ""
                text = f"{where}: the role {show(role)} is none that the chat template in `{self._folder}` names{hint}"
                raise _error("R468", text, f"a message has one of the roles {listed(_ROLES)}")
            if message.get("tool_calls") and "tool_calls" not in self._source:
                text = f"{where} calls tools, which the chat template in `{self._folder}` would leave out"
                raise _error("R468", text, "use a model whose template writes tool calls, or leave these rows out")


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` … `{% endgeneration %}` mark the assistant's part; they do not change the text."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = DAY.strftime
    return made


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    """Return JSON without the HTML escapes of jinja's own filter, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _error(code: str, message: str, help: str | None = None) -> RecipeError:
    return RecipeError([Diagnostic(code, message, help)])
