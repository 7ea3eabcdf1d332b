from __future__ import annotations

import io
from collections.abc import Iterable

from runner.progress.events import Event
from runner.progress.plain import Plain
from tests.progress import recorded


def shown(events: Iterable[Event]) -> str:
    stream = io.StringIO()
    sink = Plain(stream)
    for event in events:
        sink.send(event)
    sink.close()
    return stream.getvalue()


def test_a_whole_job() -> None:
    assert (
        shown(recorded.JOB)
        == """\
[ 0:00] tiny-0123456789ab: 4 steps in jobs/tiny-0123456789ab
[ 0:00] 1/4 baseline: evaluate.perplexity started
[ 0:02] 1/4 baseline: layer 1/2, 2.0 s/layer, 2.0 s left, 1.50 GB
[ 0:04] 1/4 baseline: layer 2/2, 2.0 s/layer, 1.50 GB
[ 0:04] 1/4 baseline: perplexity 15.374
[ 0:05] 1/4 baseline: finished in 4.9 s, peak memory 1.50 GB
[ 0:05] 2/4 prune: prune.wanda cached: sparsity 0.5
[ 0:05] 3/4 gptq: quantize.gptq started, resumed after layer 1/4
[ 0:05] 3/4 gptq: warning: Cholesky failed at damping 0.01, raised to 0.02
[ 0:07] 3/4 gptq: layer 2/4, 2.0 s/layer, 4.0 s left, error 0.01, 1.50 GB
[ 0:18] 3/4 gptq: layer 4/4, forward 96/128 windows
[ 1:19] 3/4 gptq: layer 4/4, 2.0 s/layer, error 0.0125, 1.50 GB
[ 1:20] 3/4 gptq: error 0.0142, size 3.51 MB
[ 1:20] 3/4 gptq: finished in 1 min 15 s, peak memory 1.90 GB
[ 1:20] 4/4 quality: waits for process 41 (runner apply tiny.yaml), since 2026-01-01T00:00:00Z
[ 1:21] 4/4 quality: evaluate.perplexity started
[ 1:24] 4/4 quality: perplexity 16.9
[ 1:24] 4/4 quality: finished in 3.0 s, peak memory 1.50 GB
[ 1:24] 4/4 quality: gate passed: `loss` is 2.827, within its limit 3
[ 1:24] 4/4 quality: gate missed: `perplexity` is 16.9, 0.8 above its limit 16.1 (1.05 × `baseline` 15.374)
[ 1:24] a quality gate was missed after 1 min 24 s, peak memory 1.90 GB
"""
    )


def test_a_training() -> None:
    assert (
        shown(recorded.TRAINED)
        == """\
[ 0:00] tiny-0123456789ab: 1 step in jobs/tiny-0123456789ab
[ 0:00] 1/1 distil: distill.logits started, resumed after step 120/400
[ 0:03] 1/1 distil: step 180/400, loss 2.5, evaluation 2.75, learning rate 0.001, 3.20 k tokens/s, 28.0 s left, 1.90 GB
[ 0:15] 1/1 distil: step 210/400, loss 2.31, evaluation 2.62, learning rate 0.001, 3.20 k tokens/s, 28.0 s left, 1.90 GB
[ 0:16] 1/1 distil: loss 2.3, evaluation loss 2.5, steps 400
[ 0:16] 1/1 distil: finished in 15.9 s, peak memory 1.90 GB
[ 0:16] done after 16.1 s, peak memory 1.90 GB
"""
    )


def test_a_training_of_many_fast_steps_makes_few_lines() -> None:
    fast = [recorded.train(0.05 * n, n, 400, 3.0, evaluation=3.0) for n in range(1, 401)]
    begin = recorded.at(0, "step_started", step=0, id="a", kind="x.y", key="k", resumed_at=None, layers=None)
    assert len(shown([recorded.started(("a", "x.y")), begin, *fast]).splitlines()) == 12


def test_a_failure() -> None:
    assert (
        shown(recorded.FAILED)
        == """\
[ 0:00] tiny-0123456789ab: 4 steps in jobs/tiny-0123456789ab
[ 0:01] 1/4 baseline: evaluate.perplexity started
[ 0:02] 1/4 baseline: failed: `model.embed_tokens.weight` in model.safetensors holds 3 NaN values
[ 0:02] 1/4 baseline: help: download the shard again
[ 0:02] 1/4 baseline: log: jobs/store/.staging/abc/log.txt
[ 0:02] failed after 2.0 s
"""
    )


def test_an_interruption() -> None:
    assert (
        shown(recorded.INTERRUPTED)
        == """\
[ 0:00] tiny-0123456789ab: 4 steps in jobs/tiny-0123456789ab
[ 0:00] 1/4 baseline: evaluate.perplexity started
[ 0:02] 1/4 baseline: layer 1/2, 2.0 s/layer, 2.0 s left, 1.50 GB
[ 0:03] 1/4 baseline: stopped at a safe point; continue with: runner apply tiny.yaml
[ 0:03] interrupted after 3.0 s, peak memory 1.50 GB
"""
    )


def test_waiting_for_another_apply() -> None:
    assert shown([recorded.at(0, "waiting", step=None, holder="process 41")]) == "[ 0:00] waits for process 41\n"


def test_many_fast_layers_make_few_lines() -> None:
    fast = [recorded.layer(0.05 * n, 0, n, 400, seconds=0.05) for n in range(1, 401)]
    begin = recorded.at(0, "step_started", step=0, id="a", kind="prune.wanda", key="k", resumed_at=None, layers=400)
    lines = shown([recorded.started(("a", "prune.wanda")), begin, *fast]).splitlines()
    assert lines[2:4] == [
        "[ 0:02] 1/1 a: layer 40/400, 0.05 s/layer, 18.0 s left, 1.50 GB",
        "[ 0:04] 1/1 a: layer 80/400, 0.05 s/layer, 16.0 s left, 1.50 GB",
    ]
    assert len(lines) == 12


def test_slow_layers_show_each() -> None:
    slow = [recorded.layer(60 * n, 0, n, 400, seconds=60) for n in range(1, 4)]
    begin = recorded.at(0, "step_started", step=0, id="a", kind="prune.wanda", key="k", resumed_at=None, layers=400)
    assert len(shown([recorded.started(("a", "prune.wanda")), begin, *slow]).splitlines()) == 5


def test_a_reader_that_left_silences_the_sink_and_not_the_job() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    sink = Plain(Broken())
    for event in recorded.JOB:
        sink.send(event)


def test_what_steers_a_terminal_is_written_as_text() -> None:
    told = {"event": "message", "time": 0, "step": None, "level": "warning", "text": "\x1b[2Jdone\r\u202e"}
    assert shown([told]) == "[ 0:00] warning: \ufffd[2Jdone\ufffd\ufffd\n"
