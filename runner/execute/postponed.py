"""A shorter import of transformers, for a worker: one process, which compiles no model unless a step asks for it.

More than half of that import makes what a worker hardly ever uses (measured: 0.85 of 1.5 s, and 60 MB of memory):

    torch._dynamo            for three decorators of functions that are never called here. Its body is put off until
                             anything else in it is looked at; the decorators are then applied for real.
    torch.distributed.tensor for models spread over processes. transformers is told that torch.distributed is not
                             available; trainings on several processes run in interpreters of their own. peft counts
                             on its being imported by others: a look at a module of torch.distributed imports it.
    the list of its models   read from its own sources, file by file, twice. Read once.

All of it goes by names in torch and transformers. Where a release has others, its import takes as long as ever.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

DYNAMO = "torch._dynamo"
NEEDED_OF_DYNAMO = "torch._dynamo._trace_wrapped_higher_order_op"  # by transformers.masking_utils; needs no more of it
DISTRIBUTED = "torch.distributed"
IMPORT_UTILS = "transformers.utils.import_utils"


def postpone() -> None:
    """Make the import of transformers short; torch is imported already, transformers not. Once in a process."""
    if DYNAMO not in sys.modules and (spec := importlib.util.find_spec(DYNAMO)) is not None:
        _Unexecuted.install(spec)
    if IMPORT_UTILS not in sys.modules:
        sys.meta_path.insert(0, _Shortened())
        distributed = importlib.import_module(DISTRIBUTED)
        distributed.__dict__.setdefault("__getattr__", _submodule)


def _submodule(name: str) -> ModuleType:
    """What torch.distributed lacks as an attribute: one of its modules, until it is imported."""
    missing = AttributeError(f"module {DISTRIBUTED!r} has no attribute {name!r}")
    if name.startswith("_"):
        raise missing
    try:
        return importlib.import_module(f"{DISTRIBUTED}.{name}")
    except ModuleNotFoundError:
        raise missing from None


class _Unexecuted(ModuleType):
    """torch._dynamo before its body has run, which the first look at anything but the decorators makes it do."""

    @classmethod
    def install(cls, spec: ModuleSpec) -> None:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = cls
        marks: list[tuple[str, Any]] = []

        def marked_by(decorator: str) -> Callable[[Any], Any]:
            def decorate(function: Any) -> Any:
                marks.append((decorator, function))
                return function

            return decorate

        def disable(fn: Any = None, recursive: bool = True, **how: Any) -> Any:
            return partial(disable, recursive=recursive, **how) if fn is None else _disabled(fn, recursive, how)

        decorators = {name: marked_by(name) for name in ("allow_in_graph", "assume_constant_result")}
        decorators["disable"] = disable
        module.__dict__.update(decorators, _marks=marks, _decorators=list(decorators))
        sys.modules[DYNAMO] = module
        importlib.import_module(NEEDED_OF_DYNAMO)
        module.__dict__["_path"] = module.__dict__.pop("__path__")  # the next submodule needs the body

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        own = self.__dict__
        marks = own.pop("_marks")
        for decorator in own.pop("_decorators"):
            del own[decorator]
        own["__path__"] = own.pop("_path")
        self.__class__ = ModuleType  # type: ignore[assignment]
        loader = self.__spec__.loader if self.__spec__ else None
        if loader is None:
            raise ImportError(f"{self.__name__} has no loader", name=self.__name__)
        try:
            loader.exec_module(self)
        except BaseException:
            sys.modules.pop(DYNAMO, None)  # as a failed import leaves it
            raise
        for decorator, function in marks:
            getattr(self, decorator)(function)
        return getattr(self, name)


def _disabled(function: Any, recursive: bool, how: dict[str, Any]) -> Any:
    """`function`, which the compiler is to leave alone: as long as its body has not run there is no compiler."""

    @cache
    def disabled() -> Any:
        return sys.modules[DYNAMO].disable(function, recursive, **how)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        compiles = not isinstance(sys.modules[DYNAMO], _Unexecuted)
        return (disabled() if compiles else function)(*args, **kwargs)

    return call


class _Shortened(MetaPathFinder):
    """Changes two functions of transformers' module of import helpers, right after its body has run."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != IMPORT_UTILS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_change(module: ModuleType) -> None:
                execute(module)
                _change(module)

            spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def _change(module: Any) -> None:
    if hasattr(module, "is_torch_distributed_available"):
        module.is_torch_distributed_available = cache(lambda: False)
    if hasattr(module, "create_import_structure_from_path"):
        read = cache(module.create_import_structure_from_path)

        def once(path: Any) -> Any:
            path = os.fspath(path)
            return read(os.path.dirname(path) if os.path.isfile(path) else path)

        module.create_import_structure_from_path = once
