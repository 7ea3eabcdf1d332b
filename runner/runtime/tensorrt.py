"""Run a TensorRT engine of `build.tensorrt` on an NVIDIA GPU. Buffers and cache are CUDA tensors of torch."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from runner.errors import MachineError, RunnerError, StepFailed
from runner.export import compressed
from runner.export.tensorrt import CAPABILITIES, MODULES, NAMES, RTX, complaints, is_memory, quoted
from runner.model.checkpoint.safetensors_writer import write_all, written
from runner.recipe.origins import cache
from runner.runtime import limits
from runner.runtime import open as find
from runner.runtime.protocol import Ids, Logits

_BUILD_AGAIN = "build it again"
_PREFILL, _DECODE = 0, 1  # optimization profiles
_TYPES = {"half": torch.float16, "float": torch.float32, "bf16": torch.bfloat16, "int64": torch.int64}


def open(folder: Path, device: str = "cuda", threads: int | None = None) -> TensorRT:
    """Return the runtime of the engine in `folder`, on the GPU for any `device`, as an engine runs only there.

    MachineError for a missing GPU, another compute capability or another TensorRT; StepFailed for an invalid folder.
    """
    described = find.engine(folder) or {}
    _refuse(described, folder)
    return TensorRT(folder, described)


def refuse_version(described: Mapping[str, Any], installed: str | None) -> None:
    """Raise MachineError unless the installed version is the one that built the engine."""
    flavour, wanted = str(described["flavour"]), str(described["version"])
    package = "tensorrt-rtx" if flavour == RTX else "tensorrt"
    name = NAMES[flavour]
    if installed is None:
        message = f"the engine was built by {name} {wanted}, which is not installed"
        raise MachineError(message, f"`pip install {package}=={wanted}`")
    if installed != wanted:
        raise MachineError(
            f"the engine was built by {name} {wanted}; {installed} is installed, and each runs only its own engines",
            f"`pip install {package}=={wanted}`, or build it again",
        )


def refuse_capability(described: Mapping[str, Any], found: tuple[int, int]) -> None:
    """Raise MachineError unless the engine is for a GPU of this compute capability; "12.0+" is for later ones too."""
    targets: Sequence[str] = described["compute_capabilities"]
    for target in targets:
        major, minor = (int(part) for part in target.removesuffix("+").split("."))
        if found == (major, minor) or (target.endswith("+") and found > (major, minor)):
            return
    wanted = ", ".join(target.replace("+", " and later") for target in targets)
    have = f"{found[0]}.{found[1]}"
    if described["flavour"] != RTX:
        help = "build it again on this GPU"
    elif have in CAPABILITIES:
        help = f'build it for this GPU: `compute_capabilities: ["{have}"]`'
    else:
        help = "build it on this GPU with `flavour: enterprise`, which rtx has no engines for"
    raise MachineError(f"the engine is for GPUs of compute capability {wanted}; this one has {have}", help)


def _refuse(described: Mapping[str, Any], folder: Path) -> None:
    """Raise the errors that engine.json and the machine show before the engine is read."""
    try:
        flavour = str(described["flavour"])
        targets = [str(target) for target in described["compute_capabilities"]]
        numbers = [
            int(described[key]) for key in ("context", "max_batch", "vocabulary", "layers", "kv_heads", "head_dim")
        ]
        path = folder / str(described["file"])
        str(described["source"]["digest"])
        sound = flavour in MODULES and bool(targets) and min(numbers) > 0 and bool(described["version"])
    except (KeyError, TypeError, ValueError) as error:
        message = f"`{folder / find.ENGINE_FILE}` does not describe a TensorRT engine: {error!r}"
        raise StepFailed(message, _BUILD_AGAIN) from None
    if not sound:
        raise StepFailed(f"`{folder / find.ENGINE_FILE}` does not describe a TensorRT engine", _BUILD_AGAIN)
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise StepFailed(f"`{path}` is missing", _BUILD_AGAIN)
    wanted = described.get("file_bytes", described.get("engine_bytes", size))
    if size != wanted:
        message = f"`{path}` is incomplete: it has {size:,} bytes, engine.json says {wanted:,}"
        raise StepFailed(message, f"copy it again, or {_BUILD_AGAIN}")
    refuse_version(described, _installed(flavour))
    if not torch.cuda.is_available():
        raise MachineError(
            "a TensorRT engine needs an NVIDIA GPU, and torch finds none here",
            "run it on a machine with a GPU; `build.onnx` and `build.compile` make what runs on a CPU",
        )
    refuse_capability(described, torch.cuda.get_device_capability())


def _installed(flavour: str) -> str | None:
    """Return the version of the package, from its metadata where possible, else by importing it."""
    if importlib.util.find_spec(MODULES[flavour]) is None:
        return None
    try:
        return importlib.metadata.version(MODULES[flavour])
    except importlib.metadata.PackageNotFoundError:  # installed under the name of a CUDA version: tensorrt-cu13
        return str(importlib.import_module(MODULES[flavour]).__version__)


class TensorRT:
    """The runtime of one engine with one execution context; `prefill` and `decode` have an optimization profile each.

    The cache is the engine's output of the previous step: tensors that grow by a token each step.
    """

    name = "tensorrt"

    def __init__(self, folder: Path, described: Mapping[str, Any]) -> None:
        self.vocabulary, self.context = int(described["vocabulary"]), int(described["context"])
        self.max_batch: int | None = int(described["max_batch"])
        self._layers = int(described["layers"])
        self._heads, self._width = int(described["kv_heads"]), int(described["head_dim"])
        self._rtx = described["flavour"] == RTX
        self._trt = importlib.import_module(MODULES[str(described["flavour"])])
        self._past: list[torch.Tensor] = []
        self._cached = 0
        path = folder / str(described["file"])
        self._label = f"{NAMES[str(described['flavour'])]} {self._trt.__version__}"
        self._log = complaints(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(compressed.read(path))
        if self._engine is None:
            raise self._failed(f"{self._label} cannot read `{path}`", _BUILD_AGAIN)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._types = {name: _TYPES[self._engine.get_tensor_dtype(name).name.lower()] for name in names}
        self._kernels = (
            cache.folder("tensorrt") / f"{described['source']['digest'][:16]}-{described['version']}.kernels"
        )
        self._context = self._execution_context()
        if self._context is None:
            raise self._failed(f"{self._label} cannot prepare the engine `{path}`", _BUILD_AGAIN)
        self._stream = torch.cuda.Stream()
        self._profile: int | None = None

    def _execution_context(self) -> Any:
        """Create the context; TensorRT-RTX compiles kernels at first use, and caches them in the user's folder."""
        if not self._rtx:
            self._kernel_cache = None
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        self._kernel_cache = config.create_runtime_cache()
        if self._kernels.is_file():
            self._kernel_cache.deserialize(self._kernels.read_bytes())
        config.set_runtime_cache(self._kernel_cache)
        return self._engine.create_execution_context(config)

    def _failed(self, what: str, help: str) -> RunnerError:
        """Return an error with TensorRT's messages."""
        messages = quoted(self._log.errors)
        if is_memory(messages):
            return MachineError(f"{what}: memory of the GPU ran out: {messages}", "free some, or use a larger GPU")
        return StepFailed(f"{what}: {messages}", help)

    def prefill(self, ids: Ids, *, last: bool = False) -> Logits:
        limits.check(ids, 0, self.context, self.max_batch, self.vocabulary)
        shape = (len(ids), self._heads, 0, self._width)
        self._past = [
            torch.empty(shape, dtype=self._types[name], device="cuda") for name in self._names("past_key_values")
        ]
        self._cached = 0
        logits = self._run(ids, _PREFILL)
        return (logits[:, -1:] if last else logits).cpu().numpy()

    def decode(self, ids: Ids) -> Logits:
        limits.check(ids, self._cached, self.context, self.max_batch, self.vocabulary)
        if ids.shape[1] != 1 or not self._cached:
            raise StepFailed(f"decoding goes on by one token after a prompt; got {ids.shape[1]} after {self._cached}")
        found: Logits = self._run(ids, _DECODE).cpu().numpy()
        return found

    def close(self) -> None:
        """Release memory; write compiled kernels to the cache."""
        if self._context is None:
            return
        if self._kernel_cache is not None:
            with suppress(OSError, RunnerError):  # without them only the next start takes longer
                self._kernels.parent.mkdir(parents=True, exist_ok=True)
                with written(self._kernels) as file:
                    write_all(file, memoryview(self._kernel_cache.serialize()))
        self._past = []
        self._kernel_cache = self._context = self._engine = self._runtime = None

    def _names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{part}" for layer in range(self._layers) for part in ("key", "value")]

    def _run(self, ids: Ids, profile: int) -> torch.Tensor:
        batch, new = ids.shape
        total = self._cached + new
        ones = torch.ones(batch, total, dtype=torch.int64, device="cuda")
        positions = torch.arange(self._cached, total, device="cuda").expand(batch, new).contiguous()
        given = {"input_ids": torch.from_numpy(ids).to("cuda").contiguous(), "attention_mask": ones}
        given |= {"position_ids": positions, **dict(zip(self._names("past_key_values"), self._past, strict=True))}
        made = {"logits": torch.empty(batch, new, self.vocabulary, dtype=self._types["logits"], device="cuda")}
        for name in self._names("present"):
            shape = (batch, self._heads, total, self._width)
            made[name] = torch.empty(shape, dtype=self._types[name], device="cuda")
        self._stream.wait_stream(torch.cuda.current_stream())
        handle = self._stream.cuda_stream
        if self._profile != profile:
            if not self._context.set_optimization_profile_async(profile, handle):
                raise self._failed(f"{self._label} has no optimization profile {profile} in the engine", _BUILD_AGAIN)
            self._profile = profile
        for name, tensor in given.items():
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                what = f"the engine does not take `{name}` of the shape {list(tensor.shape)}"
                raise self._failed(what, _BUILD_AGAIN)
        nowhere = torch.empty(16, dtype=torch.uint8, device="cuda")  # an empty tensor has no address
        for name, tensor in {**given, **made}.items():
            self._context.set_tensor_address(name, tensor.data_ptr() or nowhere.data_ptr())
        if not self._context.execute_async_v3(handle):
            raise self._failed(f"{self._label} could not run the engine", _BUILD_AGAIN)
        self._stream.synchronize()
        self._past = [made[name] for name in self._names("present")]
        self._cached = total
        return made["logits"].float()
