"""A shorter import of torch and transformers, for a worker: one process, which compiles no model unless a step asks it.

Of that import of 2.4 s, one makes what a worker hardly ever uses (measured; and 75 MB of memory):

    torch._meta_registrations  what operations in Python say of the shapes of meta tensors, for tracing and compiling;
                             with it torch's reference implementations and decompositions. Its body is put off until
                             anything in it is looked at or one of those, which traces go through, is imported.
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
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SHAPES = "torch._meta_registrations"
WITH_SHAPES = (
    "torch._decomp",
    "torch._prims",
    "torch._prims_common.wrappers",
    "torch._refs",
    "torch.utils._content_store",
)
DYNAMO = "torch._dynamo"
NEEDED_OF_DYNAMO = "torch._dynamo._trace_wrapped_higher_order_op"  # by transformers.masking_utils; needs no more
DISTRIBUTED = "torch.distributed"
IMPORT_UTILS = "transformers.utils.import_utils"


def postpone_shapes() -> None:
    """Make the import of torch short, which is not imported yet. Once in a process."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _Shapeless())


def complete_shapes() -> None:
    """What `postpone_shapes` has put off, now; the import of torch as it is, where nothing was."""
    importlib.import_module(WITH_SHAPES[0])


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


class _Shapeless(MetaPathFinder):
    """Finds torch._meta_registrations without running its body, and runs it before any of WITH_SHAPES is imported."""

    def __init__(self) -> None:
        self._body: Callable[[], None] | None = None

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname == SHAPES:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = partial(self._put_off, spec.loader.exec_module)  # type: ignore[method-assign]
            return spec
        if fullname in WITH_SHAPES and self._body is not None:
            self._complete()  # imports that module too, in the order that torch's circular imports need
            if fullname in sys.modules:
                return _Present.spec(sys.modules[fullname])
        return None

    def _put_off(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self._body = partial(execute, module)
        vars(module)["__getattr__"] = partial(self._looked_at, module)

    def _looked_at(self, module: ModuleType, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {SHAPES!r} has no attribute {name!r}")
        self._complete()
        return getattr(module, name)

    def _complete(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            sys.meta_path.remove(self)
            vars(sys.modules[SHAPES]).pop("__getattr__")
            body()


class _Present(Loader):
    """Gives a module that came to be there while it was looked for: importlib would run its body again."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    @classmethod
    def spec(cls, module: ModuleType) -> ModuleSpec:
        """The spec to find `module` by; the module has it until it is "loaded", because importlib looks there."""
        module.__spec__ = ModuleSpec(module.__name__, cls(module))
        return module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__, module.__loader__ = self._spec, self._spec.loader if self._spec else None


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
