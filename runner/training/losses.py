"""Losses of distillation, from the text and from the teacher, as pure functions on tensors.

    L = α · L_hard + (1 − α) · T² · D(teacher, student)          Hinton 2015 (arXiv:1503.02531), section 2

L_hard is next-token cross entropy at temperature 1; D compares softmax(z / T) of both. T² compensates for the gradient
of D, which falls as 1/T². All means are over the L − 1 positions of a window that have a next token: position L − 1
predicts a token that does not exist, and both parts of L then average over the same tokens.

A teacher is its logits over the full vocabulary, or `TopK` of them. The tokens outside the k are one further outcome,
of probability 1 − Σ p on either side: the divergence of the two coarser distributions, which is a lower bound of the
full one (data processing inequality) and equal to it where k is the vocabulary.

Everything is computed in float32, or in float64 if it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from runner.model.layerwise.memory_budget import LOGIT_BYTES

DIVERGENCES = ("forward", "reverse", "js")


@dataclass(frozen=True)
class TopK:
    """The k largest logits of each position, and the normalizer over the full vocabulary.

    logits     [..., k], up to a constant of each position
    indices    [..., k] int64, the tokens they belong to
    logsumexp  [...], log Σ exp(z / T) over the full vocabulary, up to the same constant over T; T is the loss's own
    vocabulary its number of tokens; the logits of a student with more are cut to it
    """

    logits: torch.Tensor
    indices: torch.Tensor
    logsumexp: torch.Tensor
    vocabulary: int

    def to(self, device: torch.device) -> TopK:
        return TopK(self.logits.to(device), self.indices.to(device), self.logsumexp.to(device), self.vocabulary)


Teacher = torch.Tensor | TopK


@dataclass(frozen=True)
class Mix:
    """The weights of the parts of a loss: `alpha` α, `temperature` T, `divergence` one of DIVERGENCES."""

    alpha: float
    temperature: float
    divergence: str


def next_token(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of `logits` [b, n, V] with the next tokens `targets` [b, n]."""
    return cross_entropy(_working(logits).flatten(0, -2), targets.flatten())


def soft(logits: torch.Tensor, teacher: Teacher, temperature: float, divergence: str) -> torch.Tensor:
    """Return T² · D(teacher, student), the mean over positions; `logits` [b, n, V] are the student's."""
    theirs, ours = outcomes(logits, teacher, temperature)
    return temperature**2 * _DIVERGE[divergence](theirs, ours).mean()


def mixed(logits: torch.Tensor, ids: torch.Tensor, teacher: Teacher, mix: Mix) -> tuple[torch.Tensor, ...]:
    """Return (L, L_hard, T² · D) of the student's `logits` [b, L, V] on `ids` [b, L]; only L has a gradient.

    `teacher` has the positions 0 … L − 2. It is computed in chunks of positions, so that the
    float32 copies of logits take about LOGIT_BYTES at any length.
    """
    loss, hard, softened = _Chunked.apply(logits, ids, teacher, mix, LOGIT_BYTES)  # type: ignore[no-untyped-call]
    return loss, hard, softened


def outcomes(logits: torch.Tensor, teacher: Teacher, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities [b, n, outcomes] of teacher and student at temperature T.

    The outcomes are all tokens, or the teacher's k and one for the rest. A vocabulary that is padded for one of them
    is compared over the tokens that both have.
    """
    ours = _working(logits) / temperature
    if isinstance(teacher, torch.Tensor):
        common = min(teacher.shape[-1], ours.shape[-1])
        theirs = _working(teacher[..., :common]) / temperature
        return theirs.log_softmax(-1), ours[..., :common].log_softmax(-1)
    ours = ours[..., : teacher.vocabulary]
    is_complete = teacher.logits.shape[-1] == ours.shape[-1]
    p = _working(teacher.logits) / temperature - teacher.logsumexp[..., None]
    q = ours.gather(-1, teacher.indices) - ours.logsumexp(-1, keepdim=True)
    return (p, q) if is_complete else (_with_rest(p), _with_rest(q))


def forward_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(p ‖ q) = Σ p (log p − log q) over the last dimension, of log-probabilities: p is the teacher's."""
    return _expectation(p, p - q)


def reverse_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(q ‖ p): the student's own choices judged by the teacher (Gu 2023, arXiv:2306.08543)."""
    return _expectation(q, q - p)


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2: symmetric, at most log 2 (Lin 1991)."""
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (_expectation(p, p - m) + _expectation(q, q - m))


_DIVERGE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "forward": forward_kl, "reverse": reverse_kl, "js": jensen_shannon,
}  # fmt: skip


def hidden_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean over positions of ‖s − t‖² / ‖t‖², for hidden states [b, L, d].

    TinyBERT's squared error (Jiao 2020, arXiv:1909.10351, eq. 8), relative to each position's own size: a language
    model gives a few positions activations hundreds of times the usual (Sun 2024, arXiv:2402.17762), which would
    drown the others in a plain mean.
    """
    s, t = _working(student), _working(teacher)
    size = t.square().sum(-1).clamp_min(torch.finfo(t.dtype).tiny)
    return ((s - t).square().sum(-1) / size).mean()


def attention_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean over heads and positions of KL(teacher ‖ student) of attention probabilities [b, heads, L, L].

    MiniLM's attention transfer (Wang 2020, arXiv:2002.10957, eq. 4). Where the numbers of heads differ, the means over
    heads are compared.
    """
    s, t = _working(student), _working(teacher)
    if s.shape[1] != t.shape[1]:
        s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
    least = torch.finfo(s.dtype).tiny
    return (t * (t.clamp_min(least).log() - s.clamp_min(least).log())).sum(-1).mean()


def _expectation(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return Σ exp(w) v; an outcome of probability 0 adds nothing, whatever its value."""
    return (weights.exp() * values.masked_fill(weights == -math.inf, 0)).sum(-1)


def _with_rest(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Append the log of the remaining probability, at least the rounding error: [..., k] → [..., k + 1]."""
    rest = 1 - log_probabilities.exp().sum(-1, keepdim=True)
    return torch.cat([log_probabilities, rest.clamp_min(torch.finfo(rest.dtype).eps).log()], -1)


def _working(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()


class _Chunked(torch.autograd.Function):
    """`mixed` over chunks of positions, each with its gradient, so that intermediates of one chunk exist at a time."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, ids: torch.Tensor, teacher: Teacher, mix: Mix, limit: int
    ) -> tuple[torch.Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits) if wanted else None
        totals = torch.zeros(3, dtype=_working(logits[:0]).dtype, device=logits.device)
        for part, share in _parts(logits, limit):
            with torch.set_grad_enabled(wanted):
                chunk = _working(logits[:, part].detach()).requires_grad_(wanted)
                hard = next_token(chunk, _next(ids, part))
                softened = soft(chunk, _at(teacher, part), mix.temperature, mix.divergence)
                loss = mix.alpha * hard + (1 - mix.alpha) * softened
            if gradient is not None:
                gradient[:, part] = share * torch.autograd.grad(loss, chunk)[0]
            totals += share * torch.stack([loss, hard, softened]).detach()
        ctx.save_for_backward(*([] if gradient is None else [gradient]))
        loss, hard, softened = (total.clone() for total in totals)
        ctx.mark_non_differentiable(hard, softened)
        return loss, hard, softened

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None, None, None


def _parts(logits: torch.Tensor, limit: int) -> Iterator[tuple[slice, float]]:
    """Yield the positions 0 … L − 2 of `logits` [b, L, V] in chunks of about `limit` bytes, and the share of each."""
    windows, length, vocabulary = logits.shape
    size = max(1, limit // (4 * windows * vocabulary))
    for start in range(0, length - 1, size):
        stop = min(length - 1, start + size)
        yield slice(start, stop), (stop - start) / (length - 1)


def _next(ids: torch.Tensor, part: slice) -> torch.Tensor:
    """Return the tokens that follow the positions of `part`."""
    return ids[:, part.start + 1 : part.stop + 1]


def _at(teacher: Teacher, part: slice) -> Teacher:
    if isinstance(teacher, torch.Tensor):
        return teacher[:, part]
    return TopK(teacher.logits[:, part], teacher.indices[:, part], teacher.logsumexp[:, part], teacher.vocabulary)
