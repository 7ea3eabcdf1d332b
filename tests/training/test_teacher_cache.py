"""What the cache keeps of a teacher, against the logits of the same model in transformers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import Interrupted, StepFailed
from runner.steps.layer_stream import hooks
from runner.training import losses, teacher_cache
from runner.training.losses import Mix
from runner.training.teacher_cache import Cached, Layout, Teacher
from tests.host import Host
from tests.tiny import save, tokens

ALL = torch.arange(6)


def plain(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return found


def cached(tmp_path: Path, folder: Path, host: Host | None = None, rows: torch.Tensor = ALL, **options: Any) -> Cached:
    ids = tokens()
    settings: dict[str, Any] = {"top_k": 5, "temperature": 2.0, "vocabulary": 96} | options
    host = host or Host(tmp_path, "evaluate.perplexity", folder, ids)
    return teacher_cache.cache(Teacher(folder, "cpu", **settings), ids, rows, tmp_path / "cache", hooks(host))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_largest_logits_and_the_rest(name: str, tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", name), tokens()
    expected = plain(folder, ids).double()
    found = cached(tmp_path, folder).rows(torch.tensor([3, 0, 3]))
    values, indices = expected[[3, 0, 3]].topk(5, -1)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.logits.double(), values - values[..., :1], rtol=1e-3, atol=1e-4)
    p = (found.logits / 2.0 - found.logsumexp[..., None]).exp()
    torch.testing.assert_close(
        p.double(), (expected / 2.0).softmax(-1)[[3, 0, 3]].gather(-1, indices), rtol=1e-3, atol=1e-6
    )
    assert found.vocabulary == 96


def test_with_the_whole_vocabulary_it_is_the_teacher_itself(tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", "llama"), tokens()
    online, student = plain(folder, ids), 3 * torch.randn(6, 24, 96, generator=torch.Generator().manual_seed(5))
    from_disk = cached(tmp_path, folder, top_k=1000).rows(ALL)
    assert from_disk.logits.shape == (6, 23, 96)
    for divergence in losses.DIVERGENCES:
        mix, gradients, values = Mix(0.1, 2.0, divergence), [], []
        for known in (online, from_disk):
            z = student.clone().requires_grad_()
            loss = losses.mixed(z, ids, known, mix)[0]
            gradients.append(torch.autograd.grad(loss, z)[0])
            values.append(float(loss.detach()))
        assert values[1] == pytest.approx(values[0], rel=1e-4)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-6)


def test_few_tokens_say_nearly_as_much(tmp_path: Path) -> None:
    """The rest as one outcome makes the divergence smaller, never larger."""
    folder, ids = save(tmp_path / "model", "llama"), tokens()
    online = plain(folder, ids)
    student = online + 0.5 * torch.randn(online.shape, generator=torch.Generator().manual_seed(5))
    whole = float(losses.soft(student, online, 2.0, "forward"))
    few = [
        float(losses.soft(student, cached(tmp_path, folder, top_k=k).rows(ALL), 2.0, "forward")) for k in (2, 16, 64)
    ]
    assert few == sorted(few)
    assert 0.8 * whole < few[-1] <= 1.001 * whole


def test_rounding_leaves_probabilities_that_add_up(tmp_path: Path) -> None:
    logits = 12 * torch.randn(4, 7, 500, generator=torch.Generator().manual_seed(0)) + 100
    layout = Layout(4, 7, 20, 1.5, 500)
    values, indices, logsumexp = teacher_cache.truncated(logits, layout)
    exact = (logits.double() / 1.5).softmax(-1)
    p = (values.double() / 1.5 - logsumexp.double()[..., None]).exp()
    rest = 1 - exact.gather(-1, indices).sum(-1)
    torch.testing.assert_close(1 - p.sum(-1), rest, rtol=1e-2, atol=1e-6)
    assert ((p / exact.gather(-1, indices) - 1).abs() * exact.gather(-1, indices)).max() < 1e-3
    assert values.dtype == torch.float16
    assert torch.isfinite(logsumexp).all()


def test_only_the_wanted_windows_are_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    some = cached(tmp_path, folder, rows=torch.tensor([1, 4]))
    assert some.layout.windows == 2
    assert (tmp_path / "cache" / "logits").stat().st_size == 2 * 23 * 5 * 2
    assert (tmp_path / "cache" / "indices").stat().st_size == 2 * 23 * 5 * 2
    assert (tmp_path / "cache" / "logsumexp").stat().st_size == 2 * 23 * 4
    found = some.rows(torch.tensor([4]))
    assert torch.equal(found.indices[0], plain(folder, tokens())[4].topk(5, -1).indices)
    with pytest.raises(KeyError):
        some.rows(torch.tensor([0]))


def test_a_finished_cache_is_not_made_again_and_another_is(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    host = Host(tmp_path, "evaluate.perplexity", folder, tokens())
    cached(tmp_path, folder, host)
    assert host.layers() == [1, 2, 3]
    assert [e for e in host.events if e["event"] == "progress"] == [
        {"event": "progress", "phase": "teacher", "done": 6, "total": 6, "unit": "windows"}
    ]
    before = digests(tmp_path / "cache")
    cached(tmp_path, folder, host)
    assert len(host.layers()) == 3
    cached(tmp_path, folder, host, temperature=1.0)
    assert len(host.layers()) == 6
    assert digests(tmp_path / "cache") != before
    assert not (tmp_path / "cache-hidden").exists()


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_pass_goes_on_and_ends_with_the_same_bytes(stop_after: int, tmp_path: Path) -> None:
    """After one of three layers, and after all of them but before the logits."""
    folder, ids = save(tmp_path / "model", "llama"), tokens()
    cached(tmp_path / "whole", folder)
    with pytest.raises(Interrupted):
        cached(tmp_path, folder, Host(tmp_path, "evaluate.perplexity", folder, ids, stop_after=stop_after))
    assert not (tmp_path / "cache" / "cache.json").exists()
    host = Host(tmp_path, "evaluate.perplexity", folder, ids)
    cached(tmp_path, folder, host)
    assert host.layers() == list(range(stop_after + 1, 4))
    assert digests(tmp_path / "cache") == digests(tmp_path / "whole" / "cache")


def test_a_cache_cut_short_says_so(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    made = cached(tmp_path, folder)
    file = tmp_path / "cache" / "indices"
    file.write_bytes(file.read_bytes()[:-1])
    made.rows(torch.tensor([0]))
    with pytest.raises(StepFailed) as caught:
        made.rows(torch.tensor([5]))
    assert caught.value.message == f"{file} is cut short: it ends in window 6 of 6"
    assert caught.value.help == "remove that folder, and the teacher runs again"
    made.close()


def test_numbers_beyond_two_bytes() -> None:
    assert Layout(1, 1, 1, 1.0, 65536).types()[1] == torch.uint16
    assert Layout(1, 1, 1, 1.0, 65537).types()[1] == torch.int32
    values = torch.tensor([65535]).to(torch.uint16)
    assert values.long().tolist() == [65535]
