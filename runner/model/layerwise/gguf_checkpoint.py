"""Make a checkpoint of transformers from a GGUF file: `python -m runner.model.layerwise.gguf_checkpoint < request`.

The request is JSON: `file`, and `out`, an empty folder. transformers' own reader of GGUF builds the configuration, the
tokenizer and the tensors; the model is in memory once, in the type it is written in. The answer is JSON: `problem`, why
the file cannot be read as a model ("" for none), and `help`. `runner.model.source.gguf` asks.

transformers leaves unread what it does not know of in a file. Here that is a problem: another model would come out.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from runner.system import answering

VERSION = 1  # raised when other bytes are written
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FREQUENCIES = "rope_freqs.weight"  # llama.cpp's form of Llama 3's scaling of rotary frequencies
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_FACTORS = (8.0, 32.0, 4.0, 16.0)  # of Llama 3.1 and 3.2, and two more
_DENSE = "start from the checkpoint of transformers that the file was made from"


class Unreadable(Exception):
    """A GGUF file that cannot be read as the model it holds: a phrase that follows its name, and the remedy."""

    def __init__(self, problem: str, help: str = _DENSE) -> None:
        super().__init__(problem)
        self.problem, self.help = problem, help


def main() -> None:
    answering.answer(convert)


def convert(request: dict[str, Any]) -> dict[str, str]:
    """Answer a request (see above)."""
    try:
        write(Path(request["file"]), Path(request["out"]))
    except Unreadable as error:
        return {"problem": error.problem, "help": error.help}
    return {"problem": "", "help": ""}


def write(file: Path, out: Path) -> None:
    """Write the checkpoint of a GGUF file to `out`. Raises Unreadable."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        kept = _Contents(file)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise Unreadable(f"is not a sound GGUF file: {error}", "download it again") from error
    if kept.split > 1:
        raise Unreadable(
            f"is one of {kept.split} parts of a model", "join them with `llama-gguf-split --merge` of llama.cpp"
        )
    how: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **how)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, **how, dtype=kept.dtype(), quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )  # fmt: skip
    except (ValueError, KeyError, NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unreadable(f"holds a model (`{kept.architecture}`) that transformers cannot read: {text}") from error
    model, found = loaded
    for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "holds, besides its model,")):
        if found[key]:
            raise Unreadable(f"{what} `{min(found[key])}`")
    kept.require_read(model)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


class _Contents:
    """The metadata and the tensor table of a GGUF file."""

    def __init__(self, file: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(file)
        self.architecture = str(reader.fields["general.architecture"].contents())
        wanted = (f"{self.architecture}.", "split.")
        self.fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith(wanted)}
        self.split = int(self.fields.get("split.count", 0) or 0)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def dtype(self) -> torch.dtype:
        """The type of most values where they are stored as floats; bfloat16 for what is stored in blocks."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.tensor_type.name] += int(tensor.n_elements)
        return _FLOATS.get(counts.most_common(1)[0][0], torch.bfloat16)

    def require_read(self, model: Any) -> None:
        """Raise Unreadable where transformers' reader left something out that changes what the model computes."""
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

        if self.architecture in GGUF_ARCHS:  # its newer reader reports the tensors that it leaves out
            return
        self._require_tensors(model)
        self._require_keys(model.config.get_text_config())
        if _FREQUENCIES in self.tensors:
            self._scale_frequencies(model.config)

    def _require_tensors(self, model: Any) -> None:
        from importlib import import_module

        reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")  # untyped
        processor = reading.TENSOR_PROCESSORS.get(self.architecture, reading.TensorProcessor)(
            config=model.config.to_dict()
        )
        known = reading.get_gguf_hf_weights_map(model, processor)
        unread = [name for name in self.tensors if name not in known and "_exps" not in name and name != _FREQUENCIES]
        if unread:
            raise Unreadable(f"holds `{unread[0]}`, which transformers' reader of GGUF leaves out")

    def _require_keys(self, config: Any) -> None:
        from transformers.integrations import ggml

        mapping: Any = ggml.GGUF_CONFIG_MAPPING
        read = mapping.get(config.model_type) or mapping.get(self.architecture) or {}
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        implied = {"rope.dimension_count": size, "attention.key_length": size, "attention.value_length": size}
        for name, value in self.fields.items():
            key = name.removeprefix(f"{self.architecture}.")
            if key == name or read.get(key) is not None or value in (0, False, "none", None):
                continue
            if key in ("vocab_size", "attention.causal") or value == implied.get(key):
                continue
            raise Unreadable(f"says `{name}` = {value}, which transformers' reader of GGUF leaves out")

    def _scale_frequencies(self, config: Any) -> None:
        """Give config.json the scaling of Llama 3 that the table of frequency factors was made by."""
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        stored = torch.from_numpy(self.tensors[_FREQUENCIES].data.copy()).float()
        plain = dict(config.rope_parameters)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        base = 1.0 / plain["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        for factor in _FACTORS:
            config.rope_parameters = {**plain, "rope_type": "llama3", "factor": factor, **_LLAMA3}
            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
            if scaled.shape == stored.shape and torch.allclose(base / stored, scaled, rtol=1e-4, atol=0):
                return
        largest = float(stored.max()) if stored.numel() else math.nan
        raise Unreadable(
            f"scales its rotary frequencies by `{_FREQUENCIES}` (up to {largest:g}) in a way that is not Llama 3's"
        )


if __name__ == "__main__":
    main()
