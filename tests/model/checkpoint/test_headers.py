"""Headers of sound and of broken checkpoints; each complaint is asserted whole."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from runner.errors import RecipeError
from runner.model.architecture import decoder_layers, inspect
from runner.model.checkpoint import headers
from tests.model.checkpoints import LLAMA, llama_shapes, raw, shard, write, write_sharded

AGAIN = "download that file again, or copy it from an intact source"


def complaints(folder: Path) -> list[tuple[str, str, str | None]]:
    with pytest.raises(RecipeError) as caught:
        inspect.facts(folder, "m")
    return [(d.code, d.message, d.help) for d in caught.value.diagnostics]


def complaint(folder: Path) -> tuple[str, str, str | None]:
    found = complaints(folder)
    assert len(found) == 1
    return found[0]


PEFT = (
    'merge the adapter into its base model (`python -c "from peft import AutoPeftModelForCausalLM as M; '
    "M.from_pretrained('{0}').merge_and_unload().save_pretrained('merged')\"`) and name the folder of the result"
)


def test_an_adapter_with_the_config_of_its_base(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert complaint(tmp_path) == (
        "R432",
        f"`{tmp_path}` holds an adapter (adapter_config.json) and no weights of a model; its config.json is the base's",
        PEFT.format(tmp_path),
    )
    (tmp_path / "config.json").unlink()
    assert complaint(tmp_path) == (
        "R432", f"`{tmp_path}` holds an adapter (adapter_config.json), not a model", PEFT.format(tmp_path)
    )  # fmt: skip


def test_weights_beside_an_adapter_of_another_model(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    held = f"`{tmp_path}` holds both the weights of a model and an adapter (adapter_config.json)"
    assert complaint(tmp_path) == (
        "R432",
        f"{held}, which transformers would apply to another model",
        "remove adapter_config.json if the adapter is merged already, or merge it into its base model first",
    )


def test_facts_of_one_file(tmp_path: Path) -> None:
    facts = inspect.facts(write(tmp_path), "m")
    assert (facts.layers_prefix, facts.layer_count, facts.architecture) == ("model.layers.", 4, "LlamaForCausalLM")
    assert [linear.name for linear in facts.sites[:7]] == [
        "model.layers.0.mlp.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj",
        "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
    ]  # fmt: skip
    down = facts.sites[0]
    assert (down.columns, down.rows, down.role, down.transposed) == (16, 8, "down", False)
    assert facts.nbytes == sum(2 * (s[0] * s[1] if len(s) == 2 else s[0]) for _, s in llama_shapes().values())


def test_offsets_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(shard({"a": ("F32", [2]), "b": ("F32", [3])}))
    found = headers.read_headers(tmp_path)
    length = struct.unpack("<Q", (tmp_path / "model.safetensors").read_bytes()[:8])[0]
    assert (found["a"].begin, found["b"].begin, found["b"].end) == (8 + length, 16 + length, 28 + length)


def test_offsets_agree_with_safetensors(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    values = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(4, dtype=np.int64)}
    save_file(values, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    for name, header in headers.read_headers(tmp_path).items():
        assert (
            np.frombuffer(data[header.begin : header.end], values[name].dtype).tolist() == values[name].ravel().tolist()
        )


def test_shards_make_the_same_facts(tmp_path: Path) -> None:
    one = inspect.facts(write(tmp_path / "one"), "m")
    many = inspect.facts(write_sharded(tmp_path / "many", 3), "m")
    assert many.sites == one.sites
    assert {n: t.shape for n, t in many.tensors.items()} == {n: t.shape for n, t in one.tensors.items()}
    assert sorted({t.shard for t in many.tensors.values()}) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]


def test_no_config(tmp_path: Path) -> None:
    assert complaint(tmp_path) == (
        "R432",
        f"`{tmp_path}` has no config.json, so it is not a checkpoint of transformers",
        "name the folder that holds config.json and the safetensors files",
    )


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert complaint(tmp_path)[1] == f"`{tmp_path}` holds an adapter (adapter_config.json), not a model"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read as JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "must hold a JSON object; it holds a list"),
    ],
)
def test_config_is_no_object(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "config.json").write_text(text)
    code, message, _ = complaint(tmp_path)
    assert (code, message) == ("R432", f"`{tmp_path / 'config.json'}` {why}")


def test_no_weights(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert complaint(tmp_path) == (
        "R433",
        f"`{tmp_path}` holds no weights: neither `model.safetensors` nor `model.safetensors.index.json` is there",
        "download the safetensors files of the model into that folder",
    )


def test_only_bin_files(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert complaint(tmp_path) == (
        "R433",
        f"`{tmp_path}` holds its weights in PyTorch files only (`pytorch_model.bin`); safetensors files are needed",
        conversion(f"'{tmp_path}'"),
    )


def conversion(where: str) -> str:
    return (
        'convert it: `python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"M.from_pretrained({where}).save_pretrained('converted'); "
        f"T.from_pretrained({where}).save_pretrained('converted')\"` and name the folder `converted`"
    )


@pytest.mark.parametrize("config", [True, False])
def test_only_a_gguf_file(tmp_path: Path, config: bool) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "m.gguf")
    message = f"`{tmp_path}` holds its weights in GGUF files only (`m.gguf`); safetensors files are needed"
    if not config:
        (tmp_path / "config.json").unlink()
        message = f"`{tmp_path}` holds a GGUF file (`m.gguf`), not a checkpoint of transformers"
    assert complaint(tmp_path) == (
        "R433" if config else "R432",
        message,
        f"name the file: `{tmp_path / 'm.gguf'}`; a model that was quantized there stays as lossy as it is",
    )  # fmt: skip


def test_only_a_tensorflow_file(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "tf_model.h5")
    assert complaint(tmp_path) == (
        "R433",
        f"`{tmp_path}` holds its weights in TensorFlow files only (`tf_model.h5`); safetensors files are needed",
        "name a checkpoint of the model in safetensors files",
    )


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    write(tmp_path)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345678\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert complaint(tmp_path) == (
        "R436",
        f"`{tmp_path}/model.safetensors` is a pointer of Git LFS, not the weights themselves",
        "fetch them: `git lfs pull` in that folder, or download the file",
    )


def test_missing_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert complaint(tmp_path) == (
        "R434",
        (
            f"`{tmp_path}/model-00002-of-00002.safetensors` is missing; "
            "`model.safetensors.index.json` lists 19 tensors in it"
        ),
        "download that file again, or copy it to the others",
    )


def test_every_broken_shard_is_told_at_once(tmp_path: Path) -> None:
    write_sharded(tmp_path, 3)
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    path = tmp_path / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert [code for code, _, _ in complaints(tmp_path)] == ["R434", "R435"]


def test_truncated_data(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert complaint(tmp_path) == (
        "R435",
        (
            f"`{path}` is truncated: its header describes {len(whole):,} bytes, the file has {len(whole) - 10:,}; "
            "`model.norm.weight` is the first tensor that is cut off"
        ),
        AGAIN,
    )


def test_truncated_header(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 3000) + b"{" * 12)
    message = f"`{path}` is truncated: its header has 3,000 bytes, the file 20 in all"
    assert complaint(tmp_path) == ("R435", message, AGAIN)


def test_empty_file(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(b"")
    message = f"`{path}` is truncated: it has 0 bytes, a safetensors file at least 8"
    assert complaint(tmp_path) == ("R435", message, AGAIN)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<!DOCTYPE html>\n<html>", "its first 8 bytes give the header"),
        (raw(b"not json"), "its header is not JSON"),
        (raw(b"[1, 2]"), "its header is a list, not an object"),
        (
            raw({"a": {"dtype": "F32"}}),
            'the entry of `a` needs dtype, shape and data_offsets; it is {"dtype": "F32"}',
        ),
        (raw({"a": entry("F32", [2], 0, 8)}, 12), "its header describes"),
    ],
)
def test_corrupt_header(tmp_path: Path, content: bytes, why: str) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(content)
    code, message, help = complaint(tmp_path)
    assert (code, help) == ("R436", AGAIN)
    assert message.startswith(f"`{path}` is not a sound safetensors file: {why}")


def test_overlapping_tensors(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    header = {"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 8, 24)}
    path.write_bytes(raw(header, 24))
    base = 8 + len(json.dumps(header))
    message = (
        f"`{path}` is not a sound safetensors file: `a` takes the bytes {base} to {base + 16} and `b` {base + 8} to "
        f"{base + 24}, which overlap"
    )
    assert complaint(tmp_path) == ("R436", message, AGAIN)


def test_bytes_that_do_not_fit_the_shape(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(raw({"a": entry("F32", [3, 2], 0, 16)}, 16))
    message = f"`a` in `{path}` has 16 bytes; F32 of shape [3, 2] takes 24"
    assert complaint(tmp_path) == ("R439", message, AGAIN)


def test_unknown_dtype(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(raw({"a": entry("F7", [2], 0, 2)}, 2))
    code, message, help = complaint(tmp_path)
    assert code == "R438"
    assert message.startswith(f"`a` in `{path}` has the dtype F7; known are F64, F32, F16, BF16, ")
    assert help == "save the checkpoint in bfloat16, float16 or float32"


def test_index_and_shard_disagree(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(document))
    assert complaint(tmp_path) == (
        "R437",
        (
            f"`{tmp_path}/model-00001-of-00002.safetensors` does not hold `model.extra.weight`, which "
            "`model.safetensors.index.json` places there"
        ),
        "the index and the shards come from different downloads; download the checkpoint again",
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_index_is_no_index(tmp_path: Path, text: str) -> None:
    write_sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    message = f"`{path}` must be JSON with a `weight_map` from the name of each tensor to its file"
    assert complaint(tmp_path) == ("R436", message, AGAIN)


def test_index_may_not_leave_the_folder(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": "../other.safetensors"}}')
    message = f"`{path}` names `../other.safetensors`; a shard must be a file of the same folder"
    assert complaint(tmp_path) == ("R436", message, None)


def test_config_belongs_to_another_model(tmp_path: Path) -> None:
    found = inspect.facts(write(tmp_path, config=LLAMA | {"num_hidden_layers": 6, "hidden_size": 16}), "m")
    wrong = decoder_layers.complaints(found.config.raw, found.tensors, found.source)
    assert [(d.code, d.message, d.help) for d in wrong] == [
        (
            "R445",
            (
                "config.json of `m` has `num_hidden_layers` = 6; its shards hold 4 decoder layers "
                "(`model.layers.0.` to `model.layers.3.`)"
            ),
            "the checkpoint is incomplete or was edited; download it again",
        ),
        (
            "R445",
            (
                "`model.embed_tokens.weight` of `m` has the shape [32, 8]; config.json has `vocab_size` = 32 and "
                "`hidden_size` = 16"
            ),
            "config.json belongs to another model; download both together",
        ),
    ]


def test_weights_in_one_file_and_in_shards_are_two_answers(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    write(tmp_path)
    with pytest.raises(RecipeError) as caught:
        headers.read_headers(tmp_path)
    (found,) = caught.value.diagnostics
    assert (found.code, found.message) == (
        "R416",
        f"`{tmp_path}` holds its weights twice: in `model.safetensors`, and in the files that `{headers.INDEX}` names",
    )


def test_a_tensor_that_the_index_places_elsewhere_or_not_at_all(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    del document["weight_map"]["model.norm.weight"]
    document["weight_map"]["model.embed_tokens.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(document))
    with pytest.raises(RecipeError) as caught:
        headers.read_headers(tmp_path)
    found = [each.message for each in caught.value.diagnostics if each.code == "R416"]
    first, second = tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"
    assert found == [
        f"`{first}` holds `model.embed_tokens.weight`, and `model.safetensors.index.json` places it in `{second.name}`",
        f"`{second}` holds `model.norm.weight`, and `model.safetensors.index.json` does not list it",
    ]
