"""Whether the code that a model brings may run: never, unless `--trust-remote-code` was given.

No recipe can ask for it. It runs only where it must: a model of a type that transformers knows is run by transformers'
own code, whatever its config.json says. Code in another repository, which nothing pins, never runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

FLAG = "--trust-remote-code"
CODE = "*.py"
_VARIABLE = "RUNNER_TRUST_REMOTE_CODE"  # from the command to its workers; the flag alone sets it
_CLASSES = ("AutoConfig", "AutoModelForCausalLM")


def allow(given: bool) -> None:
    """Note for this process and those it starts whether the flag was given."""
    if given:
        os.environ[_VARIABLE] = "1"
    else:
        os.environ.pop(_VARIABLE, None)


def is_allowed() -> bool:
    return os.environ.get(_VARIABLE) == "1"


def brings_code(config: Mapping[str, Any]) -> bool:
    return bool(config.get("auto_map"))


def may_run(config: Mapping[str, Any]) -> bool:
    """Whether the flag was given, and the code is the model's own: a language model and its config, in its folder."""
    names = config.get("auto_map")
    own = isinstance(names, Mapping) and all(isinstance(names.get(c), str) and "--" not in names[c] for c in _CLASSES)
    return is_allowed() and own


def remedy(config: Mapping[str, Any]) -> str:
    """What to do about a model that is not known without its own code."""
    converted = "use a checkpoint converted to an architecture of transformers"
    if is_allowed():
        return f"its code is in another repository, or has no {' and '.join(_CLASSES)}, so it is not run; {converted}"
    names = config.get("auto_map")
    values = names.values() if isinstance(names, Mapping) else ()
    modules = sorted({value.split("--")[-1].split(".")[0] for value in values if isinstance(value, str)})
    files = f" ({', '.join(f'{module}.py' for module in modules)})" if modules else ""
    return f"the model brings its own code{files}, which is not run: read it, then give `{FLAG}`; or {converted}"
