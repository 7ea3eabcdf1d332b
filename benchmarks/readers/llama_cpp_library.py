"""Ask llama.cpp's own library, of the npm package node-llama-cpp 3.22.1 (llama.cpp 0.5.0), through its C interface.

    python -m benchmarks.readers.llama_cpp_library LIBRARIES logits FILE IDS.npy OUT.npy
    python -m benchmarks.readers.llama_cpp_library LIBRARIES loss FILE IDS.npy
    python -m benchmarks.readers.llama_cpp_library LIBRARIES tokens FILE TEXTS.json OUT.json
    python -m benchmarks.readers.llama_cpp_library LIBRARIES quantize FILE TYPE OUT.gguf [IMPORTANCE.npz]

LIBRARIES is a folder: `npm install --ignore-scripts node-llama-cpp@3.22.1` puts them into
node_modules/@node-llama-cpp/linux-x64/bins/linux-x64. IDS.npy has windows [windows, length] of ids; `loss` prints what
`evaluate.perplexity` measures. IMPORTANCE.npz has the mean square of each input, [columns], by the name of a tensor of
the file: an importance matrix. `quantize` is what llama-quantize does.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

# llama_ftype of llama.h
TYPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "q2_k_s": 21, "iq4_nl": 25, "iq4_xs": 30,
}  # fmt: skip


class ModelParams(Structure):
    """llama_model_params."""

    _fields_ = (
        ("devices", c_void_p), ("buffer_overrides", c_void_p), ("gpu_layers", c_int32), ("split_mode", c_int32),
        ("load_mode", c_int32), ("lazy_mode", c_int32), ("main_gpu", c_int32), ("tensor_split", c_void_p),
        ("progress", c_void_p), ("progress_data", c_void_p), ("kv_overrides", c_void_p), ("vocab_only", c_bool),
        ("check_tensors", c_bool), ("use_extra_buffers", c_bool), ("no_host", c_bool), ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )  # fmt: skip


class ContextParams(Structure):
    """llama_context_params."""

    _fields_ = (
        ("n_ctx", c_uint32), ("n_batch", c_uint32), ("n_ubatch", c_uint32), ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32), ("n_outputs_max", c_uint32), ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32), ("n_threads_batch", c_int32), ("ctx_type", c_int32), ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32), ("attention_type", c_int32), ("flash_attn_type", c_int32),
        ("rope", c_float * 6), ("yarn_orig_ctx", c_uint32), ("defrag", c_float), ("eval", c_void_p),
        ("eval_data", c_void_p), ("type_k", c_int32), ("type_v", c_int32), ("abort", c_void_p),
        ("abort_data", c_void_p), ("embeddings", c_bool), ("offload_kqv", c_bool), ("no_perf", c_bool),
        ("op_offload", c_bool), ("swa_full", c_bool), ("kv_unified", c_bool), ("samplers", c_void_p),
        ("n_samplers", c_size_t), ("other", c_void_p),
    )  # fmt: skip


class QuantizeParams(Structure):
    """llama_model_quantize_params."""

    _fields_ = (
        ("nthread", c_int32), ("ftype", c_int32), ("output_type", c_int32), ("embedding_type", c_int32),
        ("allow_requantize", c_bool), ("quantize_output", c_bool), ("only_copy", c_bool), ("pure", c_bool),
        ("keep_split", c_bool), ("dry_run", c_bool), ("imatrix", c_void_p), ("kv_overrides", c_void_p),
        ("type_overrides", c_void_p), ("prune_layers", c_void_p), ("max_buffer", c_size_t),
    )  # fmt: skip


class Importance(Structure):
    """llama_model_imatrix_data."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("size", c_size_t))


class Batch(Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8)),
    )  # fmt: skip


class Library:
    """llama.cpp, with its backends loaded from `folder`."""

    def __init__(self, folder: Path) -> None:
        for name in ("libggml-base.so", "libggml.v*.so", "libllama.v*.so"):
            [path] = folder.glob(name)
            opened = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            if name.startswith("libggml.v"):
                opened.ggml_backend_load_all_from_path(str(folder).encode())
        self.c = opened
        for name, result in (
            ("llama_model_default_params", ModelParams), ("llama_context_default_params", ContextParams),
            ("llama_model_quantize_default_params", QuantizeParams), ("llama_model_load_from_file", c_void_p),
            ("llama_init_from_model", c_void_p), ("llama_model_get_vocab", c_void_p), ("llama_get_memory", c_void_p),
            ("llama_batch_init", Batch), ("llama_get_logits", POINTER(c_float)),
        ):  # fmt: skip
            getattr(self.c, name).restype = result
        context = self.c.llama_context_default_params()
        if (context.n_ctx, context.n_batch, context.type_k, context.n_samplers) != (512, 2048, 1, 0):
            raise SystemExit("this is another version of llama.cpp: its parameters lie in other places")

    def logits(self, file: Path, windows: Any) -> Iterator[Any]:
        """Yield the float32 logits [length, vocabulary] of each window."""
        length = windows.shape[1]
        model = self._model(file)
        params = self.c.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = length
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = params.flash_attn_type = 0  # float32, off
        context = c_void_p(self.c.llama_init_from_model(model, params))
        width = self.c.llama_vocab_n_tokens(c_void_p(self.c.llama_model_get_vocab(model)))
        for window in windows:
            self.c.llama_memory_clear(c_void_p(self.c.llama_get_memory(context)), c_bool(True))
            batch = self.c.llama_batch_init(c_int32(length), c_int32(0), c_int32(1))
            batch.n_tokens = length
            for place, token in enumerate(window):
                batch.token[place], batch.pos[place], batch.n_seq_id[place] = int(token), place, 1
                batch.seq_id[place][0], batch.logits[place] = 0, 1
            if self.c.llama_decode(context, batch):
                raise SystemExit("llama.cpp cannot decode this")
            self.c.llama_batch_free(batch)
            yield np.ctypeslib.as_array(self.c.llama_get_logits(context), (length, width)).copy()
        self.c.llama_free(context)
        self.c.llama_model_free(model)

    def tokens(self, file: Path, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, with special tokens parsed and none added."""
        vocabulary = c_void_p(self.c.llama_model_get_vocab(self._model(file, vocabulary=True)))
        found = []
        for text in texts:
            data = text.encode()
            ids = (c_int32 * (len(data) + 16))()
            count = self.c.llama_tokenize(
                vocabulary, data, c_int32(len(data)), ids, c_int32(len(ids)), c_bool(False), c_bool(True)
            )
            found.append(list(ids[:count]))
        return found

    def quantize(self, file: Path, type: str, out: Path, importance: Path | None) -> None:
        """Write the file again in a type of llama-quantize."""
        params = self.c.llama_model_quantize_default_params()
        params.nthread, params.ftype = 1, TYPES[type]
        if importance is not None:
            given = {name: np.ascontiguousarray(x, np.float32) for name, x in np.load(importance).items()}
            rows = [Importance(name.encode(), x.ctypes.data, x.size) for name, x in given.items()]
            table = (Importance * (len(rows) + 1))(*rows)
            params.imatrix = ctypes.addressof(table)
        if self.c.llama_model_quantize(str(file).encode(), str(out).encode(), byref(params)):
            raise SystemExit("llama.cpp cannot quantize this")

    def _model(self, file: Path, *, vocabulary: bool = False) -> c_void_p:
        params = self.c.llama_model_default_params()
        params.vocab_only = vocabulary
        model = c_void_p(self.c.llama_model_load_from_file(str(file).encode(), params))
        if not model:
            raise SystemExit(f"llama.cpp cannot load {file}")
        return model


def loss(library: Library, file: Path, windows: Any) -> float:
    """Return the mean loss of the tokens that follow another in a window."""
    total, count = 0.0, 0
    for window, found in zip(windows, library.logits(file, windows), strict=True):
        rows = found[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), window[1:]]).sum())
        count += len(rows)
    return total / count


def main(libraries: str, verb: str, file: str, *rest: str) -> None:
    library, path = Library(Path(libraries)), Path(file)
    if verb == "logits":
        np.save(rest[1], np.stack(list(library.logits(path, np.load(rest[0])))))
    elif verb == "loss":
        found = loss(library, path, np.load(rest[0]))
        print(json.dumps({"loss": found, "perplexity": math.exp(found)}))
    elif verb == "tokens":
        Path(rest[1]).write_text(json.dumps(library.tokens(path, json.loads(Path(rest[0]).read_text()))))
    elif verb == "quantize":
        library.quantize(path, rest[0], Path(rest[1]), Path(rest[2]) if len(rest) > 2 else None)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
