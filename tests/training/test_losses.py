"""Losses of distillation against a float64 reference that loops over tokens, and what each option means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from runner.training import losses
from runner.training.losses import Mix, TopK

B, L, V = 2, 5, 11
Array = NDArray[np.float64]


def logits(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(*(shape or (B, L, V)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = logits(0), logits(1)
IDS = torch.randint(0, V, (B, L), generator=torch.Generator().manual_seed(2))


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    found: Array = e / e.sum()
    return found


def kl(p: Array, q: Array) -> float:
    return sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True) if a > 0)


def distance(p: Array, q: Array, divergence: str) -> float:
    """Of the teacher's distribution p and the student's q."""
    if divergence == "forward":
        return kl(p, q)
    if divergence == "reverse":
        return kl(q, p)
    m = (p + q) / 2
    return (kl(p, m) + kl(q, m)) / 2


def bucketed(p: Array, kept: list[int]) -> Array:
    return np.array([*(p[i] for i in kept), 1 - sum(p[i] for i in kept)])


def reference(alpha: float, temperature: float, divergence: str, k: int = V) -> tuple[float, float, float]:
    """(L, L_hard, T² D) as the module's docstring defines them, one position at a time."""
    hard = softened = 0.0
    for b in range(B):
        for i in range(L - 1):
            s, t = STUDENT[b, i].numpy(), TEACHER[b, i].numpy()
            hard -= math.log(softmax(s)[IDS[b, i + 1]])
            p, q = softmax(t / temperature), softmax(s / temperature)
            if k < V:
                kept = sorted(range(V), key=lambda token: -t[token])[:k]
                p, q = bucketed(p, kept), bucketed(q, kept)
            softened += temperature**2 * distance(p, q, divergence)
    count = B * (L - 1)
    hard, softened = hard / count, softened / count
    return alpha * hard + (1 - alpha) * softened, hard, softened


def top(k: int, temperature: float, teacher: torch.Tensor = TEACHER) -> TopK:
    values, indices = teacher[:, :-1].topk(k, -1)
    return TopK(values, indices, (teacher[:, :-1] / temperature).logsumexp(-1), teacher.shape[-1])


@pytest.mark.parametrize("divergence", losses.DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_mix_equals_the_reference(alpha: float, temperature: float, divergence: str) -> None:
    found = losses.mixed(STUDENT, IDS, TEACHER[:, :-1], Mix(alpha, temperature, divergence))
    expected = reference(alpha, temperature, divergence)
    assert [float(part) for part in found] == pytest.approx(expected, rel=1e-10)
    single = losses.mixed(STUDENT.float(), IDS, TEACHER[:, :-1].float(), Mix(alpha, temperature, divergence))
    assert all(part.dtype == torch.float32 for part in single)
    assert [float(part) for part in single] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("divergence", losses.DIVERGENCES)
@pytest.mark.parametrize("k", [1, 4, V])
def test_top_k_is_the_divergence_of_k_tokens_and_the_rest(k: int, divergence: str) -> None:
    found = losses.mixed(STUDENT, IDS, top(k, 2.0), Mix(0.25, 2.0, divergence))
    assert [float(part) for part in found] == pytest.approx(reference(0.25, 2.0, divergence, k), rel=1e-9)
    assert float(found[2]) <= reference(0.25, 2.0, divergence)[2] + 1e-12


def test_the_options_differ_so_that_swapping_them_shows() -> None:
    """The reference itself tells α from 1 − α, T from 1 / T, T² from 1, and one direction from the other."""
    base = reference(0.3, 2.5, "forward")[0]
    without_square = 0.3 * reference(1, 1, "js")[1] + 0.7 * reference(0, 2.5, "forward")[2] / 2.5**2
    others = [without_square, reference(0.7, 2.5, "forward")[0], reference(0.3, 0.4, "forward")[0]]
    others += [reference(0.3, 2.5, "reverse")[0], reference(0.3, 2.5, "js")[0]]
    assert all(abs(base - other) > 0.01 * base for other in others)


def test_alpha_one_is_plain_cross_entropy_and_zero_the_teacher_alone() -> None:
    wrong = logits(7)
    only_text = losses.mixed(STUDENT, IDS, wrong[:, :-1], Mix(1.0, 2.0, "forward"))
    plain = torch.nn.functional.cross_entropy(STUDENT[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert float(only_text[0]) == pytest.approx(float(plain), rel=1e-12)
    other_text = losses.mixed(STUDENT, (IDS + 1) % V, TEACHER[:, :-1], Mix(0.0, 2.0, "forward"))
    assert float(other_text[0]) == pytest.approx(reference(0, 2.0, "forward")[0], rel=1e-12)


def test_forward_covers_the_teachers_tokens_and_reverse_forgives_what_the_student_leaves_out() -> None:
    """A teacher of two likely tokens, a student of one of them: KL(teacher ‖ student) is large, the other small."""
    both = torch.tensor([[[10.0, 10.0, 0.0]]])
    one = torch.tensor([[[10.0, -5.0, 0.0]]])
    forward = float(losses.soft(one, both, 1.0, "forward"))
    reverse = float(losses.soft(one, both, 1.0, "reverse"))
    assert forward > 6 > 1 > reverse == pytest.approx(math.log(2), abs=1e-2)


def test_the_gradient_keeps_its_size_when_the_temperature_grows() -> None:
    """What T² is for: of centred logits z and v the gradient tends to (z − v) / V, whatever T (Hinton 2015, eq. 4)."""
    student = (STUDENT - STUDENT.mean(-1, keepdim=True)).requires_grad_()
    teacher = TEACHER - TEACHER.mean(-1, keepdim=True)
    loss = losses.mixed(student, IDS, teacher[:, :-1], Mix(0.0, 1000.0, "forward"))[0]
    (found,) = torch.autograd.grad(loss, student)
    expected = (student.detach() - teacher)[:, :-1] / V / (B * (L - 1))
    torch.testing.assert_close(found[:, :-1], expected, rtol=1e-2, atol=1e-4)
    assert not found[:, -1].any()


@pytest.mark.parametrize("divergence", losses.DIVERGENCES)
@pytest.mark.parametrize("k", [None, 4, V])
def test_gradients(k: int | None, divergence: str) -> None:
    teacher = TEACHER[:, :-1] if k is None else top(k, 1.7)
    student = STUDENT.clone().requires_grad_()
    mix = Mix(0.2, 1.7, divergence)
    assert torch.autograd.gradcheck(lambda z: losses.mixed(z, IDS, teacher, mix)[0], (student,))
    assert torch.autograd.gradcheck(lambda z: losses.soft(z[:, :-1], teacher, 1.7, divergence), (student,))


def test_gradients_of_hidden_states_and_attention() -> None:
    student, teacher = logits(3, 2, 3, 4).requires_grad_(), logits(4, 2, 3, 4)
    assert torch.autograd.gradcheck(lambda s: losses.hidden_distance(s, teacher), (student,))
    scores, maps = logits(5, 1, 2, 3, 3).requires_grad_(), logits(6, 1, 2, 3, 3).softmax(-1)
    assert torch.autograd.gradcheck(lambda s: losses.attention_distance(s.softmax(-1), maps), (scores,))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mix = Mix(0.4, 2.0, "forward")
    found: list[Any] = []
    for limit in (1 << 20, 4 * B * V * 3, 1):  # all positions, three and one at a time
        monkeypatch.setattr(losses, "LOGIT_BYTES", limit)
        student = STUDENT.clone().requires_grad_()
        parts = losses.mixed(student, IDS, top(4, 2.0), mix)
        (gradient,) = torch.autograd.grad(2 * parts[0], student)
        found.append((torch.stack(list(parts)).detach(), gradient))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-12)


def test_half_precision_logits_are_compared_in_float32() -> None:
    student = STUDENT.to(torch.bfloat16).requires_grad_()
    parts = losses.mixed(student, IDS, TEACHER[:, :-1].to(torch.bfloat16), Mix(0.1, 2.0, "forward"))
    assert parts[0].dtype == torch.float32
    (gradient,) = torch.autograd.grad(parts[0], student)
    assert gradient.dtype == torch.bfloat16
    assert float(parts[0].detach()) == pytest.approx(reference(0.1, 2.0, "forward")[0], rel=2e-2)


def test_a_padded_vocabulary_is_compared_over_what_both_have() -> None:
    padded = torch.cat([STUDENT, torch.full((B, L, 3), 9.0, dtype=torch.float64)], -1)
    expected = reference(0, 2.0, "forward")[2]
    assert float(losses.soft(padded[:, :-1], TEACHER[:, :-1], 2.0, "forward")) == pytest.approx(expected, rel=1e-10)
    assert float(losses.soft(padded[:, :-1], top(V, 2.0), 2.0, "forward")) == pytest.approx(expected, rel=1e-10)


def test_certainty_stays_finite() -> None:
    """A student or a teacher that puts all its probability on the k tokens leaves a rest of 0."""
    sure = torch.zeros(1, 2, V)
    sure[..., 0] = 200.0
    spread = torch.zeros(1, 2, V)
    for student, teacher in ((sure, spread), (spread, sure), (sure, sure)):
        values, indices = teacher.topk(3, -1)
        for divergence in losses.DIVERGENCES:
            z = student.clone().requires_grad_()
            known = TopK(values, indices, teacher.logsumexp(-1), V)
            loss = losses.soft(z, known, 1.0, divergence)
            assert torch.isfinite(loss)
            assert torch.isfinite(torch.autograd.grad(loss, z)[0]).all()
    assert float(losses.soft(sure, TopK(values, indices, sure.logsumexp(-1), V), 1.0, "forward")) == 0


def test_hidden_distance_is_relative_to_each_position() -> None:
    student, teacher = logits(3, 2, 3, 4), logits(4, 2, 3, 4)
    expected = np.mean([
        sum((s - t) ** 2 for s, t in zip(student[b, i].tolist(), teacher[b, i].tolist(), strict=True))
        / sum(t**2 for t in teacher[b, i].tolist())
        for b in range(2) for i in range(3)
    ])  # fmt: skip
    assert float(losses.hidden_distance(student, teacher)) == pytest.approx(float(expected), rel=1e-12)
    assert float(losses.hidden_distance(teacher, teacher)) == 0
    assert float(losses.hidden_distance(0 * teacher, teacher)) == pytest.approx(1)
    scale = torch.tensor([1.0, 1000.0, 1.0])[None, :, None]
    assert float(losses.hidden_distance(scale * student, scale * teacher)) == pytest.approx(float(expected), rel=1e-12)


def test_attention_distance_is_the_teachers_divergence() -> None:
    student, teacher = logits(5, 2, 3, 4, 4).softmax(-1), logits(6, 2, 3, 4, 4).softmax(-1)
    rows = zip(teacher.reshape(-1, 4).numpy(), student.reshape(-1, 4).numpy(), strict=True)
    expected = float(np.mean([kl(p, q) for p, q in rows]))
    assert float(losses.attention_distance(student, teacher)) == pytest.approx(expected, rel=1e-12)
    causal = torch.ones(4, 4).tril()
    masked = torch.where(causal.bool(), teacher, 0)
    assert float(losses.attention_distance(masked, masked)) == 0
    heads = float(losses.attention_distance(student[:, :1], teacher))
    rows = zip(teacher.mean(1).reshape(-1, 4).numpy(), student[:, 0].reshape(-1, 4).numpy(), strict=True)
    assert heads == pytest.approx(float(np.mean([kl(p, q) for p, q in rows])), rel=1e-12)
