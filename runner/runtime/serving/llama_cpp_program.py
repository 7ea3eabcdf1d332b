"""Serve a GGUF file by the llama.cpp of an environment: its `llama-server`, else the server in the package xllamacpp.

    python llama_cpp_program.py -m FILE --alias NAME --host HOST --port PORT --threads N --parallel N [OPTION …]

Run by the interpreter of the environment, in which nothing of runner is installed: standard library only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM, PACKAGE = "llama-server", "xllamacpp"


def main(arguments: Sequence[str]) -> None:
    program = shutil.which(PROGRAM, path=str(Path(sys.executable).parent))
    if program is not None:
        os.execv(program, [program, *arguments])
    if importlib.util.find_spec(PACKAGE) is None:
        sys.exit(f"the environment has neither a program {PROGRAM} nor the package {PACKAGE}: require one of them")
    serve(importlib.import_module(PACKAGE), options(arguments))


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read those options of llama-server that the package can be given."""
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} of {PACKAGE}", allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", "-t", type=int)
    parser.add_argument("--parallel", "-np", type=int, default=1)
    parser.add_argument("--ctx-size", "-c", type=int)
    parser.add_argument("--batch-size", "-b", type=int)
    parser.add_argument("--ubatch-size", "-ub", type=int)
    return parser.parse_args(arguments)


def serve(package: Any, given: argparse.Namespace) -> None:
    """Start the server in threads of this process, and wait until a signal ends it."""
    params = package.CommonParams()
    params.model.path, params.model_alias = given.model, {given.alias}
    params.hostnames, params.port, params.n_parallel = [given.host], given.port, given.parallel
    for name, value in (("n_ctx", given.ctx_size), ("n_batch", given.batch_size), ("n_ubatch", given.ubatch_size)):
        if value is not None:
            setattr(params, name, value)
    if given.threads is not None:
        params.cpuparams.n_threads = given.threads
    server = package.Server(params)
    print(f"listens on {server.listening_address}", flush=True)  # noqa: T201  a program's log
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
