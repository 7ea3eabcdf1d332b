"""Render several jobs that run at once as lines of styled text: a row for each, those at work first.

12 jobs  3 done  2 running  0:42
 ⠹ toy (bits=3)  2/4  gptq 17/32 1.8 s/layer 0:27 left
 ⠹ toy (bits=4)  1/4  quality 0:03
 ✓ toy (bits=8)  4/4  done in 41.2 s
 … 7 jobs wait
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from runner.progress import board as b
from runner.progress import frame, units
from runner.progress.board import Board

_NAME_CELLS = 40
_PENDING, _RUNNING, _WAITING, _DONE, _FAILED = range(5)
_ICONS = {_DONE: ("✓", "green"), _FAILED: ("✗", "bold red"), _WAITING: ("·", "yellow"), _PENDING: ("·", "dim")}
_SHOWN_FIRST = (_RUNNING, _FAILED, _WAITING, _DONE, _PENDING)  # where there is no room for all


def live(jobs: Sequence[tuple[str, Board]], now: float, width: int, height: int) -> list[Text]:
    """Return at most `height` lines: a title, rows of jobs in their order, and how many of which state are hidden."""
    states = [_state(board) for _, board in jobs]
    room = max(1, height - 1)
    shown = range(len(jobs))
    if len(jobs) > room:
        ranked = sorted(range(len(jobs)), key=lambda i: (_SHOWN_FIRST.index(states[i]), i))
        shown = sorted(ranked[: max(1, room - 1)])  # type: ignore[assignment]
    names = min(_NAME_CELLS, max((cell_len(jobs[i][0]) for i in shown), default=0))
    lines = [_title(jobs, states, now)]
    lines += [_row(*jobs[i], states[i], now, names, width) for i in shown]
    hidden = [states[i] for i in range(len(jobs)) if i not in set(shown)]
    if hidden and len(lines) < height:
        lines.append(Text(f" … {_counts(hidden)} more", "dim"))
    return lines


def _state(board: Board) -> int:
    if board.exit_code is not None:
        return _DONE if board.exit_code == 0 else _FAILED
    if any(step.state == b.RUNNING for step in board.steps.values()):
        return _RUNNING
    return _WAITING if board.steps or board.holder else _PENDING


def _title(jobs: Sequence[tuple[str, Board]], states: Sequence[int], now: float) -> Text:
    started = min((board.started for _, board in jobs if board.started is not None), default=now)
    text = Text(f"{len(jobs)} jobs", "bold")
    text.append(f"  {_counts(states)}  {units.clock(now - started)}", "not bold")
    return text


def _counts(states: Sequence[int]) -> str:
    words = ((_DONE, "done"), (_FAILED, "failed"), (_RUNNING, "running"), (_WAITING, "waiting"), (_PENDING, "to start"))
    return "  ".join(f"{states.count(state)} {word}" for state, word in words if states.count(state))


def _row(name: str, board: Board, state: int, now: float, names: int, width: int) -> Text:
    icon, style = _ICONS.get(state, (frame.SPINNER[int(now * 8) % len(frame.SPINNER)], "cyan"))
    shown = name if cell_len(name) <= names else set_cell_size(name, names - 1) + "…"
    row = Text(" ")
    row.append(icon, style)
    row.append(f" {set_cell_size(shown, names)}", "dim" if state == _PENDING else "")
    if board.steps:
        done = sum(step.state in (b.DONE, b.CACHED) for step in board.steps.values())
        row.append(f"  {done}/{len(board.steps)}")
        row.append(f"  {_doing(board, state, now)}", "red" if state == _FAILED else "")
    row.truncate(width, overflow="ellipsis")
    return row


def _doing(board: Board, state: int, now: float) -> str:
    """Return what a job does now, or how it ended."""
    if state == _DONE:
        return f"done in {units.duration(board.seconds or 0)}"
    if state == _FAILED:
        return _ending(board)
    running = [step for step in board.steps.values() if step.state == b.RUNNING]
    if running:
        return ", ".join(_step(step, now) for step in running)
    held = next((step for step in board.steps.values() if step.state == b.WAITING), None)
    return f"{held.id} waits for {held.holder}" if held is not None else ""


def _ending(board: Board) -> str:
    for step in board.steps.values():
        if step.failure is not None:
            return f"{step.id}: {str(step.failure['error']).splitlines()[0]}"
        if step.missed:
            return f"{step.id}: a quality gate was missed"
    return "interrupted" if board.exit_code in (75, 130) else f"ended with exit code {board.exit_code}"


def _step(step: b.StepBoard, now: float) -> str:
    """Return a running step with how far it is: `gptq 17/32 1.8 s/layer 0:27 left`, `train 120/400 0:50 left`."""
    if step.training is not None:
        at, of, left = step.training.at, step.training.of, step.training.remaining(now)
        return f"{step.id} {at}/{of}" + (f" {units.clock(left)} left" if left else "")
    if not step.layers:
        return f"{step.id} {units.clock(now - (step.started or now))}"
    rate, left = step.seconds_per_layer(), step.remaining(now)
    parts = [f"{step.id} {step.layer}/{step.layers}"]
    parts += [units.rate(rate)] if rate is not None else []
    parts += [f"{units.clock(left)} left"] if left else []
    return " ".join(parts)
