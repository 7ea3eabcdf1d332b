"""A causal language model of transformers whose weights come and go: built on the meta device, a layer real at a time.

Nothing here knows an architecture. The decoder layers are found as the module list that holds them, buffers that no
checkpoint carries (rotary tables, masks) are those that the model's own code made, and a probing forward with
pass-through layers records the arguments that each layer is called with.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from runner.contracts.mixtures import Mixture
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import inspect, tied_weights
from runner.model.architecture.sites import of_mixtures
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import adapter, mixtures, served_rounding, tensor_names
from runner.model.layerwise import towers as wrapping
from runner.model.layerwise.conversions import Conversions
from runner.model.layerwise.dtypes import compute_dtype, stored_dtype
from runner.model.layerwise.empty_model import build_with_buffers
from runner.model.layerwise.expert_stream import ExpertLane, ExpertsStandIn
from runner.model.layerwise.layer_list import find_layers
from runner.model.layerwise.layer_probes import Call
from runner.model.layerwise.linear import is_conv1d, is_linear
from runner.model.layerwise.outside_layers import OutsideLayers
from runner.model.layerwise.tensor_names import NameMap


class StreamedModel:
    """A checkpoint opened for streaming. `layers[i]` is on the meta device except between `load` and `free`.

    An adapter that the checkpoint carries acts on its linears from `load` to `free`, and inputs, keys and values are
    rounded as the schemes of a quantized checkpoint say. `dtype` is what the forward runs in; by default the type that
    `compute_dtype` finds fastest.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        from transformers import AutoConfig

        self.folder = folder
        self.device = torch.device(device)
        self.reader = CheckpointReader(folder)
        own_code = inspect.needs_own_code(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # packed weights are read as dense ones, by the reader
        self.config = config
        self.dtype = dtype or compute_dtype(stored_dtype(self.reader.headers), self.device)
        self.model, self._built = build_with_buffers(config, dtype=self.dtype, trust_remote_code=own_code)
        self.model.eval().requires_grad_(False)
        self.layers_name, layers = find_layers(self.model, config)
        self.layers: list[nn.Module] = list(layers)
        self.towers = wrapping.towers(self.model)
        self.names = self._name_map()
        shapes = {name: tuple(header.shape) for name, header in self.reader.headers.items()}
        packed = (name for group in self.names.converted for name, _ in group.sources if name not in shapes)
        shapes |= {name: self.reader.weight_shape(name.removesuffix(".weight")) for name in packed}
        self._conversions = Conversions(self.model, self.names.converted, shapes)
        self.mixtures = mixtures.find(self.model, self.layers_name, self.names, self._conversions)
        tensor_names.untie_distinct(self.model, self.names.ties)
        self.outside = OutsideLayers(self.model, self.layers_name, self.layers)
        self._rounding: dict[int, list[served_rounding.Handle]] = {}
        self._separated: dict[int, list[tuple[Mixture, nn.Module]]] = {}
        self._check()
        self.adapter = adapter.opened(folder)
        if self.adapter is not None:
            self.adapter.check({n: m for n, m in self.model.named_modules() if n.startswith(self.layers_name + ".")})

    @property
    def hidden_size(self) -> int:
        """The columns of hidden states, as transformers reads config.json."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """The number of logits, as transformers reads config.json."""
        return int(self.config.get_text_config().vocab_size)

    def __len__(self) -> int:
        return len(self.layers)

    def stored_name(self, parameter: str) -> str | None:
        """The name of a parameter's tensor in the checkpoint, its own or the one that it shares; None without one."""
        return self.names.stored_name(parameter)

    def tied_to(self, parameter: str) -> list[str]:
        """The other parameters that share their tensor with this one."""
        return self.names.tied_to(parameter)

    def layer_name(self, index: int) -> str:
        """The name of a decoder layer in the streamed: "model.layers.3"."""
        return f"{self.layers_name}.{index}"

    def stored_module(self, name: str) -> str:
        """The name that a module with a weight has in the checkpoint."""
        stored = self.names.stored_name(f"{name}.weight")
        if stored is None:
            raise KeyError(f"{name}.weight")
        return stored.removesuffix(".weight")

    def widest(self) -> int:
        """The most columns that any linear of the decoder layers has."""
        inside = [module for layer in self.layers for module in layer.modules()]
        conv1d = [int(module.get_parameter("weight").shape[0]) for module in inside if is_conv1d(module)]
        return max([*conv1d, *(module.in_features for module in inside if isinstance(module, nn.Linear))], default=0)

    def linear_names(self) -> dict[str, str]:
        """Name in the checkpoint → name in the model, of every linear of the decoder layers."""
        inside = ((n, m) for n, m in self.model.named_modules() if n.startswith(self.layers_name + "."))
        return {self.stored_module(n): n for n, m in inside if is_linear(m)}

    def load(self, index: int, dtype: torch.dtype | None = None) -> nn.Module:
        """Read one decoder layer from the shards into memory, in `dtype` if it is given; weights are checked to be

        finite. Experts that were taken away by `separate_experts` are not read.
        """
        layer = self.layers[index]
        with self._in_type(dtype):
            self._materialize(layer, self.layer_name(index) + ".")
            for mixture, experts in self._separated.get(index, ()):
                matrices = ("gate_up_proj", "up_proj", "down_proj")
                besides = {name.rpartition(".")[2] for name, _ in experts.named_parameters()}.difference(matrices)
                self._materialize(experts, f"{mixture.name}.", keys=tuple(besides))
        if self.adapter is not None:
            self.adapter.attach(layer, self.layer_name(index))
        if self.reader.packing is not None and index not in self._rounding:
            self._rounding[index] = served_rounding.attach(self, index)
        return layer

    def free(self, index: int) -> None:
        for handle in self._rounding.pop(index, []):
            handle.remove()
        if self.adapter is not None:
            self.adapter.detach(self.layer_name(index))
        self.layers[index].to("meta")
        for _, experts in self._separated.get(index, ()):
            experts.to("meta")

    def separate_experts(self) -> dict[int, list[ExpertLane]]:
        """Put stand-ins in the place of all experts, so that a layer is loaded without them; those of each layer."""
        sites = {site.name: site for site in of_mixtures(self.mixtures, self.reader.headers)}
        lanes: dict[int, list[ExpertLane]] = {}
        for mixture in self.mixtures:
            experts = self.model.get_submodule(mixture.name)
            self._separated.setdefault(mixture.layer, []).append((mixture, experts))
            stand_in = ExpertsStandIn(experts)
            self.model.set_submodule(mixture.name, stand_in)
            inputs = served_rounding.expert_inputs(self.reader, mixture)
            lanes.setdefault(mixture.layer, []).append(ExpertLane(stand_in, mixture, self.reader, sites, inputs))
        return lanes

    def is_packed(self, name: str) -> bool:
        """Whether the checkpoint stores the weight of a module, named as in the model, as integers."""
        weight = f"{name}.weight"
        return self._packed(self.names.stored_name(weight) or weight)

    def scheme(self, name: str) -> Scheme | None:
        """The scheme in which the checkpoint stores the weight of a module, named as in the model; None: dense."""
        packing = self.reader.packing
        if packing is None or not self.is_packed(name):
            return None
        return packing.scheme(self.stored_module(name))

    def input_scale(self, name: str) -> torch.Tensor | None:
        """The calibrated scale of the inputs of a module, named as in the model; None where it has none."""
        scheme, module = self.scheme(name), self.stored_module(name)
        format = self.reader.format(module)
        if scheme is None or format is None or not scheme.calibrated:
            return None
        scale = format.input_scale(module, scheme, self.reader.read)
        return None if scale is None else scale.to(self.device)

    def load_module(self, name: str, keys: tuple[str, ...] | None = None) -> None:
        """Make the parameters and buffers that a module itself holds real; with `keys` only the parameters so named."""
        self._materialize(self.model.get_submodule(name), f"{name}." if name else "", recurse=False, keys=keys)

    @contextmanager
    def _in_type(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Let parameters be made in another type for a while."""
        usual = self.dtype
        self.dtype = usual if dtype is None else dtype
        try:
            yield
        finally:
            self.dtype = usual

    def load_rest(self, *, embedding: bool = True, dtype: torch.dtype | None = None, towers: bool = False) -> None:
        """Make all but the decoder layers real, in `dtype` if it is given; without `embedding` the input table stays

        away unless it is tied. Models for images and sound are read with `towers`, and are NaN without.
        """
        skipped = None
        if not embedding and not self.names.ties and not self.outside.needs_embedding():
            skipped = self.model.get_input_embeddings()
        for name, module in self.model.named_modules():
            if name == self.layers_name or name.startswith(self.layers_name + ".") or module is skipped:
                continue
            if not towers and wrapping.in_tower(name, self.towers):
                wrapping.leave_out(module, self.device, self.dtype)
                continue
            with self._in_type(dtype):
                self._materialize(module, f"{name}." if name else "", recurse=False)

    def free_rest(self) -> None:
        for name, module in self.model.named_modules():
            if not (name == self.layers_name or name.startswith(self.layers_name + ".")):
                module._apply(lambda tensor: tensor.to("meta"), recurse=False)

    def calls(self, ids: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
        """Embed `ids`, as `OutsideLayers.calls` does. Needs `load_rest`."""
        return self.outside.calls(ids)

    def calls_with_images(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[Call]]:
        """Embed the `inputs` of the model's forward, images among them, as `calls` does. Needs `load_rest` of towers.

        RecipeError (R667) for a model that works on images between its decoder layers.
        """
        given = {n: v.to(self.device, self.dtype if v.is_floating_point() else v.dtype) for n, v in inputs.items()}
        ids = given.pop("input_ids")
        try:
            return self.outside.calls(ids, given)
        except RecipeError as error:
            help = "calibrate with text alone: leave `images` out of the data entry"
            raise RecipeError(replace(each, code="R667", help=help) for each in error.diagnostics) from None

    def logits(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The logits of final hidden states, as `OutsideLayers.logits` gives them. Needs `load_rest`."""
        return self.outside.logits(hidden, keep)

    def _name_map(self) -> NameMap:
        reader = self.reader

        def equal(one: str, other: str) -> bool:
            headers = [reader.headers.get(name) for name in (one, other)]
            return None not in headers and tied_weights.equal_tensors(reader.folder, *headers)  # type: ignore[arg-type]

        return tensor_names.name_map(self.model, reader.names(), equal)

    def _check(self) -> None:
        """Every tensor the model wants is in the shards, with the shape it wants."""
        for name in self._conversions.failed:
            message = f"`{name}` is stored in a form that transformers converts on loading, which cannot be streamed"
            raise RecipeError([Diagnostic("R408", message, "load it with transformers and save it again")])
        missing, wrong = [], []
        wanted = [*self.model.named_parameters(), *persistent_buffers(self.model)]
        for name, tensor in wanted:
            stored = self.names.stored_name(name) or name
            if name in self._conversions or self._packed(stored):
                continue
            header = self.reader.headers.get(stored)
            if header is None:
                missing.append(stored)
            elif tuple(header.shape) != tuple(tensor.shape):
                is_, wants = list(header.shape), list(tensor.shape)
                wrong.append(f"`{stored}` is {is_} in {header.shard}, the model wants {wants}")
        found = [
            *(Diagnostic("R406", f"tensor `{n}` is missing from {self.folder}") for n in missing),
            *(Diagnostic("R407", text) for text in wrong),
        ]
        if found:
            raise RecipeError(found)

    def _materialize(
        self, module: nn.Module, prefix: str, recurse: bool = True, keys: tuple[str, ...] | None = None
    ) -> None:
        modules = module.named_modules() if recurse else [("", module)]
        for name, inner in modules:
            where = f"{prefix}{name}." if name else prefix
            for key, parameter in list(inner._parameters.items()):
                if parameter is not None and parameter.is_meta and (keys is None or key in keys):
                    inner._parameters[key] = self._parameter(inner, key, where)
            if keys is not None:
                continue
            saved = dict(persistent_buffers(inner, recurse=False))
            for key, buffer in list(inner._buffers.items()):
                if buffer is not None and buffer.is_meta:
                    stored = self.names.stored_name(where + key) if key in saved else None
                    value = self._built[where + key] if stored is None else self.reader.read(stored)
                    inner._buffers[key] = value.to(self.device)

    def _parameter(self, module: nn.Module, key: str, where: str) -> nn.Parameter:
        name = where + key
        if name in self._conversions:
            built = self._conversions.build(name, self.reader.read_weight)
            return nn.Parameter(built.to(self.device, self.dtype).contiguous(), requires_grad=False)
        stored = self.names.stored_name(name) or name
        packed = self._packed(stored)
        tensor = self.reader.read_module_weight(stored.removesuffix(".weight")) if packed else self.reader.read(stored)
        if packed and is_conv1d(module):
            tensor = tensor.T.contiguous()
        return nn.Parameter(tensor.to(self.device, self.dtype), requires_grad=False)

    def _packed(self, stored: str) -> bool:
        module, _, key = stored.rpartition(".")
        return key == "weight" and self.reader.is_packed(module)


def persistent_buffers(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that a checkpoint carries."""
    for name, inner in module.named_modules() if recurse else [("", module)]:
        for key, buffer in inner._buffers.items():
            if buffer is not None and key not in inner._non_persistent_buffers_set:
                yield (f"{name}.{key}" if name else key), buffer


def dense_copy(layer: nn.Module) -> nn.Module:
    """The layer with its present weights, which later changes of the original do not touch."""
    return copy.deepcopy(layer)
