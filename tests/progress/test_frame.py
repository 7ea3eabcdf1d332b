from __future__ import annotations

import pytest

from runner.progress import board, frame
from runner.progress.events import Event
from tests.progress import recorded


def live(events: list[Event], width: int, height: int, after: float = 1.0) -> str:
    lines = frame.live(board.replay(events), events[-1]["time"] + after, width, height)
    return "\n".join(line.plain for line in lines) + "\n"


def final(events: list[Event], width: int) -> str:
    return "\n".join(line.plain for line in frame.final(board.replay(events), width)) + "\n"


def test_a_running_step() -> None:
    assert (
        live(recorded.JOB[:13], 100, 20)
        == """\
tiny-0123456789ab  step 3/4  0:19  1.50 GB
 ✓ baseline  evaluate.perplexity      4.9 s  perplexity 15.374
 ✓ prune     prune.wanda             cached  sparsity 0.5
 ⠹ gptq      quantize.gptq             0:14
   ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━────────── 3/4  2.0 s/layer  1.50 GB
   error ▅█ 0.02
   forward 96/128 windows
 · quality   evaluate.perplexity
"""
    )


def test_forty_columns() -> None:
    text = live(recorded.JOB[:13], 40, 20)
    assert (
        text
        == """\
tiny-012345678…  step 3/4  0:19  1.50 GB
 ✓ baseline      4.9 s  perplexity 15.374
 ✓ prune        cached  sparsity 0.5
 ⠹ gptq           0:14
   ━━━━━━━━─── 3/4  2.0 s/layer  1.50 GB
   error ▅█ 0.02
   forward 96/128 windows
 · quality
"""
    )


def test_a_training() -> None:
    assert (
        live(recorded.TRAINED[:7], 100, 20)
        == """\
tiny-0123456789ab  step 1/1  0:16  1.90 GB
 ⠇ distil  distill.logits       0:16
   ━━━━━━━━━━━━━━━━━━━━━─────────────────── 210/400 steps  3.20 k tokens/s  0:27 left  1.90 GB
   loss █▄▂▁▁ 2.31  learning rate 0.001  evaluation 2.62 (best 2.5)
"""
    )


def test_a_training_in_forty_columns() -> None:
    assert (
        live(recorded.TRAINED[:7], 40, 20)
        == """\
tiny-012345678…  step 1/1  0:16  1.90 GB
 ⠇ distil  distill.logits       0:16
   ━━━━━━━━━━━━─────────── 210/400 steps
   loss █▄▂▁▁ 2.31
"""
    )


def test_a_training_that_was_resumed_and_has_told_nothing_yet() -> None:
    assert live(recorded.TRAINED[:2], 100, 20).splitlines()[2] == (
        "   ━━━━━━━━━━━━──────────────────────────── 120/400 steps"
    )


def test_a_loss_that_is_no_number() -> None:
    events = [*recorded.TRAINED[:4], recorded.train(2, 151, 400, float("nan"))]
    assert live(events, 100, 20).splitlines()[3] == "   loss █▁! nan  learning rate 0.001"


def test_waiting_for_a_step() -> None:
    at = next(i for i, e in enumerate(recorded.JOB) if e["event"] == "waiting")
    assert "   waits for process 41 (runner apply tiny.yaml)" in live(recorded.JOB[: at + 1], 100, 20)


def test_waiting_for_the_whole_job() -> None:
    assert live([recorded.at(0, "waiting", step=None, holder="process 41")], 80, 20) == "waits for process 41\n"


@pytest.mark.parametrize("current", [0, 7, 29])
def test_more_steps_than_rows_keep_the_running_one_in_sight(current: int) -> None:
    steps = [(f"step{n}", "prune.magnitude") for n in range(30)]
    begin = recorded.at(
        1, "step_started", step=current, id=f"step{current}", kind="prune.magnitude", key="k", resumed_at=None, layers=9
    )
    text = live([recorded.started(*steps), begin, recorded.layer(3, current, 1, 9)], 80, 10)
    assert f" step{current} " in text
    assert " 1/9  2.0 s/layer" in text
    assert len(text.splitlines()) <= 10


def test_a_step_without_layers_has_a_bar_over_its_phase() -> None:
    begin = recorded.at(0, "step_started", step=0, id="a", kind="x.y", key="k", resumed_at=None, layers=None)
    phase = recorded.at(1, "progress", step=0, phase="download", done=25, total=100, unit="MB")
    assert live([recorded.started(("a", "x.y")), begin, phase], 80, 20).splitlines()[2] == (
        "   ━━━━━━━━━━────────────────────────────── 25/100 MB  download"
    )


def test_the_end_shows_everything() -> None:
    assert (
        final(recorded.JOB, 100)
        == """\
 ✓ baseline  evaluate.perplexity      4.9 s  perplexity 15.374
 ✓ prune     prune.wanda             cached  sparsity 0.5
 ✓ gptq      quantize.gptq             1:15  error 0.0142, size 3.51 MB
 ✗ quality   evaluate.perplexity      3.0 s  perplexity 16.9
   gate passed: `loss` is 2.827, within its limit 3
   gate missed: `perplexity` is 16.9, 0.8 above its limit 16.1 (1.05 × `baseline` 15.374)
"""
    )


def test_the_end_in_forty_columns() -> None:
    assert (
        final(recorded.JOB, 40)
        == """\
 ✓ baseline      4.9 s
   perplexity 15.374
 ✓ prune        cached  sparsity 0.5
 ✓ gptq           1:15
   error 0.0142
   size 3.51 MB
 ✗ quality       3.0 s  perplexity 16.9
   gate passed: `loss` is 2.827, within its limit 3
   gate missed: `perplexity` is 16.9, 0.8 above its limit 16.1 (1.05 × `baseline` 15.374)
"""
    )


def test_the_end_of_a_failure() -> None:
    assert (
        final(recorded.FAILED, 100)
        == """\
 ✗ baseline  evaluate.perplexity      1.0 s
   `model.embed_tokens.weight` in model.safetensors holds 3 NaN values
   help: download the shard again
   log: jobs/store/.staging/abc/log.txt
 · prune     prune.wanda
 · gptq      quantize.gptq
 · quality   evaluate.perplexity
"""
    )


def test_the_end_of_an_interruption() -> None:
    assert final(recorded.INTERRUPTED, 100).startswith(" ‖ baseline  evaluate.perplexity      2.9 s\n")
