"""A client of the OpenAI API on this machine, without proxies: completions, streams of them, and log-probabilities."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from runner.errors import StepFailed
from runner.runtime.serving.commands import ECHO, HOST, Server

_BIAS = 1000.0  # added to a logit, it makes a token the likeliest
_SHOWN = 500  # characters of an answer in a message
_SECONDS = 600  # of silence, after which a request has failed


class Unreachable(Exception):
    """Nothing answers at the server's port, or it closed the connection."""


class Refused(Exception):
    """The server answered a request with an error."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"it answered {status}: {words}")


@dataclass(frozen=True)
class Answer:
    """A completion: its text, and where the server gives them, the ids of its tokens and the length of the prompt."""

    text: str
    ids: tuple[int, ...] | None
    prompt_tokens: int | None


@dataclass(frozen=True)
class Piece:
    """A piece of a stream; `tokens` is how many the server counted in all, where it says so, mostly at the end."""

    text: str
    tokens: int | None


class Client:
    """Asks the server at a port for completions of `model`. Each call has a connection of its own."""

    def __init__(self, port: int, server: Server, model: str) -> None:
        self._port, self._server = port, server
        self.model = model  # "": the first that the server lists, as soon as it is asked for one

    def status(self, path: str) -> int:
        """Return the status that the server answers a GET of `path` with."""
        return self._get(path)[0]

    def models(self) -> list[str]:
        """Return the models that the server lists."""
        listed = _object(self._get("/v1/models")[1]).get("data")
        return [str(one["id"]) for one in listed] if isinstance(listed, list) else []

    def complete(self, prompt: str, count: int) -> Answer:
        """Return the greedy continuation of a prompt, `count` tokens or fewer."""
        body = self._body(prompt, count, self._server.exact)
        found = self._post(body)
        choice = found["choices"][0]
        usage = found.get("usage") or {}
        prompt_tokens = usage.get("prompt_tokens")
        return Answer(str(choice["text"]), _ids(choice), prompt_tokens if isinstance(prompt_tokens, int) else None)

    def stream(self, prompt: str, count: int) -> Iterator[Piece]:
        """Yield the pieces of a greedy continuation as they come."""
        usage = {} if self._server.scores is None else {"stream_options": {"include_usage": True}}
        body = self._body(prompt, count, {**self._server.endless, "stream": True, **usage})
        with closing(self._connection()) as connection:
            for data in _events(_sent(connection, body)):
                choices = data.get("choices") or [{}]
                tokens = (data.get("usage") or {}).get("completion_tokens")
                yield Piece(str(choices[0].get("text") or ""), tokens if isinstance(tokens, int) else None)

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Return ln p of each token but the first, given those before it. Refused where the server has no way to it."""
        if self._server.scores == ECHO:
            found = self._echoed(ids)
        else:
            found = [self._forced(ids[:place], ids[place]) for place in range(1, len(ids))]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in found):
            raise StepFailed("the server gave log-probabilities that are not numbers", "see the log of the step")
        return [float(value) for value in found]

    def _echoed(self, ids: Sequence[int]) -> list[float]:
        """Return the log-probabilities of an echoed prompt."""
        body = self._body(list(ids), self._server.scored, {"echo": True, "logprobs": 1})
        scores = (self._post(body)["choices"][0].get("logprobs") or {}).get("token_logprobs")
        if not isinstance(scores, list) or len(scores) != len(ids) + self._server.scored or scores[0] is not None:
            raise Refused(200, "an echo without the log-probabilities of the prompt")
        return scores[1 : len(ids)]

    def _forced(self, ids: Sequence[int], token: int) -> float:
        """Return the log-probability of a token that a bias makes the server choose."""
        body = self._body(list(ids), 1, {**self._server.exact, "logit_bias": [[token, _BIAS]]})
        choice = self._post(body)["choices"][0]
        content = (choice.get("logprobs") or {}).get("content") or [{}]
        if content[0].get("id") != token:
            raise Refused(200, f"the token {content[0].get('id')} where the token {token} was asked for")
        return float(content[0]["logprob"])

    def _body(self, prompt: Any, count: int, further: Mapping[str, Any]) -> dict[str, Any]:
        self.model = self.model or next(iter(self.models()), "default")
        return {"model": self.model, "prompt": prompt, "max_tokens": count, "temperature": 0.0, **further}

    def _get(self, path: str) -> tuple[int, bytes]:
        with closing(self._connection()) as connection:
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(str(error)) from error

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        with closing(self._connection()) as connection:
            try:
                found = _object(_sent(connection, body).read())
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(str(error)) from error
        if not isinstance(found.get("choices"), list) or not found["choices"]:
            raise Refused(200, "an answer without `choices`")
        return found

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self._port, timeout=_SECONDS)


def _sent(connection: http.client.HTTPConnection, body: Mapping[str, Any]) -> http.client.HTTPResponse:
    """Send a request for a completion and return the response, its body unread. Raises Refused, Unreachable."""
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status == 200:
            return answer
        words = answer.read().decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(error)) from error
    raise Refused(answer.status, " ".join(words.split())[:_SHOWN])


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of server-sent events. Raises Refused for an error among them."""
    try:
        for line in answer:
            name, _, data = line.decode("utf-8", errors="replace").strip().partition(":")
            if name != "data" or data.strip() == "[DONE]":
                continue
            found = _object(data.encode())
            if "error" in found:
                raise Refused(200, str(found["error"])[:_SHOWN])
            yield found
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(error)) from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(200, f"no JSON object: {data[:_SHOWN].decode('utf-8', errors='replace')}")
    return found


def _ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the ids of the tokens of a choice, as vLLM (`token_ids`) or llama.cpp (`logprobs`) gives them."""
    found = choice.get("token_ids")
    if not isinstance(found, list):
        content = (choice.get("logprobs") or {}).get("content")
        found = [entry.get("id") for entry in content] if isinstance(content, list) else None
    if found is None or not all(isinstance(token, int) for token in found):
        return None
    return tuple(found)
