"""The part of a model outside its decoder layers, run by the model's own forward around stand-ins for the layers.

So embeddings, norms, scalings, soft caps and heads are the model's own, whatever it is.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from runner.errors import Diagnostic, RecipeError
from runner.model.layerwise.layer_probes import RETURNS, Call, EndOfLayers, Injector, Recorder, replaced

# What the code of a model raises on layers that return something of another form than its own do.
_MISFITS = (ValueError, TypeError, AttributeError, IndexError, RuntimeError)


class OutsideLayers:
    """Runs what surrounds the decoder layers of `model`, the module list called `name`, whose modules are `layers`."""

    def __init__(self, model: Any, name: str, layers: list[nn.Module]) -> None:
        self.model, self.name, self.layers = model, name, layers
        self._returns = ""  # what the layers of this architecture return, a key of RETURNS; found by the first call

    def calls(
        self, ids: torch.Tensor, more: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, list[Call]]:
        """Embed `ids` [batch, length] and return the first layer's input [batch, length, hidden] and, for every layer,

        the positional and keyword arguments it gets after the hidden states. The forward takes `more`, images and the
        like, too. RecipeError (R405) for a model that does not call each layer once, in order, with what the one before
        it gave.
        """
        problem = ""
        for returns in [self._returns] if self._returns else RETURNS:
            recorders = self._recorders(returns)
            try:
                self._record(recorders, ids, more)
            except _MISFITS as error:
                reached = any(recorder.hidden is not None for recorder in recorders)
                where = (
                    f"fails around layers that return {returns}"
                    if reached
                    else f"cannot run on {'images' if more else 'text alone'}"
                )
                problem = problem or f"{where}: {type(error).__name__}: {error}"
                continue
            problem = _problem(recorders, ids)
            hidden = recorders[0].hidden
            if not problem and hidden is not None:
                self._returns = returns
                return hidden, [recorder.call for recorder in recorders]
        message = f"{type(self.model).__name__} cannot be run a layer at a time: it {problem}"
        raise RecipeError([Diagnostic("R405", message, "choose a model whose decoder layers follow one another")])

    def computed_between(self, ids: torch.Tensor) -> str:
        """Return what is computed of earlier layers for a later one, or for the head; "" for nothing.

        The layers are run around twice, with other hidden states. Needs `calls` before it.
        """
        plain, other = self._recorders(self._returns), self._recorders(self._returns)
        for recorder in other:
            recorder.change = _altered
        for recorders in (plain, other):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self._record(recorders, ids)
        for index, (one, two) in enumerate(zip(plain, other, strict=True)):
            before, after = _tensors(one.call), _tensors(two.call)
            if len(before) != len(after) or not all(map(_equal, before, after)):
                return f"computes more than hidden states of earlier layers for its decoder layer {index}"
        hidden = plain[-1].hidden
        if hidden is None or _equal(*(self._enters_head(hidden, number) for number in (0, 1))):
            return ""
        return "computes its logits from more than what its last decoder layer gives"

    def handed_on(self, ids: torch.Tensor) -> int | None:
        """Return the first layer that is given what an earlier one returns beside hidden states; None where none is."""
        recorders = self._recorders(self._returns)
        mark = torch.zeros(())
        for recorder in recorders:
            recorder.more = mark
        with contextlib.suppress(*_MISFITS):  # where it is computed with, the layer that comes next is not reached
            self._record(recorders, ids)
        reached = [recorder.hidden is not None for recorder in recorders]
        given = (any(each is mark for each in _tensors(recorder.call)) for recorder in recorders)
        return next((n for n, (yes, hands) in enumerate(zip(reached, given, strict=True)) if hands or not yes), None)

    def _enters_head(self, hidden: torch.Tensor, number: int) -> torch.Tensor:
        """The input of the output embedding where the last layer gives `hidden`; all before it depends on `number`."""
        head = self.model.get_output_embeddings()
        found = [hidden]

        def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.append(inputs[0])
            raise EndOfLayers

        if head is None:
            return hidden
        handle = head.register_forward_pre_hook(keep)
        given = [hidden * number] * (len(self.layers) - 1) + [hidden]
        stand_ins = [Injector(layer, each, self._returns) for layer, each in zip(self.layers, given, strict=True)]
        try:
            with self._replaced(list(stand_ins)), contextlib.suppress(EndOfLayers):
                unread = {key: value + number for key, value in self._unread_input(hidden).items()}
                self.model(**unread, use_cache=False)
        finally:
            handle.remove()
        return found[-1]

    def _recorders(self, returns: str) -> list[Recorder]:
        recorders: list[Recorder] = []
        for layer in self.layers:
            previous, last = (recorders[-1] if recorders else None), len(recorders) == len(self.layers) - 1
            recorders.append(Recorder(layer, returns, previous, last))
        return recorders

    def _record(
        self, recorders: list[Recorder], ids: torch.Tensor, more: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        with self._replaced(list(recorders)), contextlib.suppress(EndOfLayers):
            self.model(input_ids=ids, use_cache=False, **(more or {}))

    def logits(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The model's head on final hidden states [batch, length, hidden], at the positions `keep`: float32 logits."""
        stand_ins = [Injector(layer, hidden, self._returns or "hidden states") for layer in self.layers]
        with self._replaced(list(stand_ins)):
            out = self.model(**self._unread_input(hidden), use_cache=False, logits_to_keep=keep).logits
        if out.shape[1] != len(keep):  # some models compute the logits of all positions whatever they are asked for
            out = out[:, keep]
        logits: torch.Tensor = out.float()
        return logits

    def head_inputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the output embedding is multiplied with [batch, length, in] for final hidden states of that shape."""
        return self._enters_head(hidden, 0)

    def needs_embedding(self) -> bool:
        """Whether `logits` runs the embedding: models that take no embedded input, or embed ids in further tables."""
        return not self._takes_embedded() or self._embeds_further()

    def _takes_embedded(self) -> bool:
        return "inputs_embeds" in inspect.signature(self.model.forward).parameters

    def _embeds_further(self) -> bool:
        table = self.model.get_input_embeddings()
        return any(
            isinstance(module, nn.Embedding) and module is not table and "per_layer" in name
            for name, module in self.model.named_modules()
        )

    def _unread_input(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """An input of the right size, which nobody reads: the layers' stand-ins ignore what comes of it."""
        batch, length = hidden.shape[:2]
        if self.needs_embedding():
            return {"input_ids": torch.zeros(batch, length, dtype=torch.long, device=hidden.device)}
        width = self.model.get_input_embeddings().weight.shape[1]
        return {"inputs_embeds": torch.zeros(batch, length, width, dtype=hidden.dtype, device=hidden.device)}

    def _replaced(self, modules: list[nn.Module]) -> Any:
        return replaced(self.model, self.name, modules)


def _altered(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.flip(-1) * 1.5


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in the arguments of a layer, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for each in value.values() for tensor in _tensors(each)]
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, tuple | list) else []


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())


def _problem(recorders: list[Recorder], ids: torch.Tensor) -> str:
    """What keeps the layers from being run one after another; "" for nothing."""
    unreached = [index for index, recorder in enumerate(recorders) if recorder.hidden is None]
    if unreached:
        return f"does not call its decoder layer {unreached[0]}"
    changed = [index for index, recorder in enumerate(recorders) if not recorder.passed]
    if changed:
        return f"changes the hidden states between its decoder layers {changed[0] - 1} and {changed[0]}"
    hidden = recorders[0].hidden
    if hidden is None or hidden.ndim != 3 or hidden.shape[:2] != ids.shape:
        shape = None if hidden is None else list(hidden.shape)
        return f"hands its layers hidden states of the shape {shape} for tokens of {list(ids.shape)}"
    return ""
