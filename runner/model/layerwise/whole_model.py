"""A checkpoint in memory as a whole: a dense one loaded by transformers itself, any other by the layer stream."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from runner.errors import StepFailed
from runner.model.architecture import inspect
from runner.model.layerwise.empty_model import auto_class
from runner.model.layerwise.streamed_model import StreamedModel
from runner.model.layerwise.tensor_names import tied_by_configuration, untie_distinct


def load_dense(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The model of a checkpoint without packed weights or adapter, in `dtype`.

    StepFailed where it lacks a tensor, which transformers would fill with random numbers.
    """
    from transformers import AutoConfig

    own_code = inspect.needs_own_code(folder)
    kind = auto_class(AutoConfig.from_pretrained(folder, trust_remote_code=own_code))
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        loaded: Any = kind.from_pretrained(folder, dtype=dtype, trust_remote_code=own_code, output_loading_info=True)
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise StepFailed(f"`{folder}` lacks the tensor `{missing[0]}`{more}", "download the checkpoint again")
    untie_distinct(model, _shared(model))
    return model.to(device)


def load_streamed(streamed: StreamedModel) -> Any:
    """Load all weights of a streamed model, dense, close its files, and return the model of transformers.

    Its adapter is active, and what rounds inputs stays attached.
    """
    streamed.load_rest()
    for index in range(len(streamed)):
        streamed.load(index)
    streamed.reader.close()
    if streamed.adapter is not None:
        streamed.adapter.reader.close()
    streamed.model.tie_weights()
    return streamed.model


def _shared(model: Any) -> dict[str, str]:
    """The pairs of tied parameters that transformers did tie."""
    ties = tied_by_configuration(model).items()
    return {one: other for one, other in ties if model.get_parameter(one) is model.get_parameter(other)}
