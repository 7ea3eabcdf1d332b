"""Render a job as lines of styled text, for the live view and its final output.

llama-int4-3f9a1c2b70d4  step 3/4  0:12  1.90 GB
 ✓ baseline  evaluate.perplexity   3.2 s  perplexity 15.374
 ✓ prune     prune.wanda          cached
 ⠹ gptq      quantize.gptq          0:09
   ━━━━━━━━━━━━━━━━━━──────────────── 17/32  1.8 s/layer  0:27 left  1.90 GB
   error ▂▃▃▄▅▄▆█ 0.0123
 · quality   evaluate.perplexity
"""

from __future__ import annotations

import math

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from runner.progress import board as b
from runner.progress import units

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ICONS = {
    b.PENDING: ("·", "dim"),
    b.CACHED: ("✓", "green dim"),
    b.DONE: ("✓", "green"),
    b.FAILED: ("✗", "bold red"),
    b.STOPPED: ("‖", "yellow"),
}
INDENT = 3
TIME_CELLS = 9


GATE_STYLES = {"good": "green", "warn": "yellow", "bad": "bold red"}


def live(board: b.Board, now: float, width: int, height: int) -> list[Text]:
    """Return at most `height` lines for the time `now`; the running step and its bar are always among them."""
    steps = [board.steps[index] for index in sorted(board.steps)]
    if not steps:
        return [Text(f"waits for {board.holder}", "yellow")] if board.holder else []
    current = next((i for i, s in enumerate(steps) if s.state in (b.RUNNING, b.WAITING)), None)
    below = _running(steps[current], now, width) if current is not None else []
    focus = current if current is not None else max((i for i, s in enumerate(steps) if s.state != b.PENDING), default=0)
    first, last = _window(len(steps), focus, max(1, height - 1 - len(below)))
    columns = _columns(steps, width)
    lines = [_title(board, steps, now, current, width)]
    if first > 0:
        lines.append(Text(f" … {units.plural(first, 'step')} before", style="dim"))
    for i in range(first, last):
        lines.append(_row(steps[i], now, columns))
        if i == current:
            lines.extend(below)
    if last < len(steps):
        lines.append(Text(f" … {units.plural(len(steps) - last, 'step')} more", style="dim"))
    return lines


def final(board: b.Board, width: int) -> list[Text]:
    """Return every step with its metrics, gates and failure; nothing is cut."""
    steps = [board.steps[index] for index in sorted(board.steps)]
    columns = _columns(steps, width)
    lines = []
    for step in steps:
        row = _row(step, 0.0, columns, with_metrics=False)
        known = units.metrics(step.metrics.items())
        if known and row.cell_len + 2 + cell_len(known) <= width:
            row.append(f"  {known}")
            known = ""
        lines.append(row)
        if known:
            lines += [_indented(units.metric(n, v)) for n, v in units.shown(step.metrics.items())]
        lines += [_indented(b.gate_text(gate), GATE_STYLES[b.gate_level(gate)]) for gate in step.gates]
        if step.failure is not None:
            error, *rest = b.failure_lines(step.failure)
            lines += [_indented(error, "red"), *map(_indented, rest)]
    return lines


def _indented(text: str, style: str = "") -> Text:
    return Text("\n".join(" " * INDENT + line for line in text.splitlines()), style=style)


def _window(count: int, focus: int, room: int) -> tuple[int, int]:
    """Return the range of rows to show: `room` with the markers of hidden ones, a third of them before `focus`."""
    if count <= room:
        return 0, count
    visible = max(1, room - 2)
    first = min(max(0, focus - visible // 3), count - visible)
    return first, first + visible


def _title(board: b.Board, steps: list[b.StepBoard], now: float, current: int | None, width: int) -> Text:
    finished = sum(s.state in (b.DONE, b.CACHED) for s in steps)
    at = current + 1 if current is not None else finished
    facts = f"  step {at}/{len(steps)}  {units.clock(now - (board.started or now))}"
    facts += f"  {units.size(board.memory)}" if board.memory else ""
    name = board.job or board.name or "job"
    return Text.assemble((_fit(name, min(cell_len(name), max(8, width - len(facts)))), "bold"), facts)


def _columns(steps: list[b.StepBoard], width: int) -> tuple[int, int]:
    """Return the widths of the id and the kind column; without room the kind is omitted first, then the id is cut."""
    ids = max((cell_len(s.id) for s in steps), default=0)
    kinds = max((cell_len(s.kind) for s in steps), default=0)
    room = width - INDENT - 2 - TIME_CELLS
    if ids + 2 + kinds > room:
        return min(ids, max(4, room)), 0
    return ids, kinds


def _row(step: b.StepBoard, now: float, columns: tuple[int, int], with_metrics: bool = True) -> Text:
    ids, kinds = columns
    if step.state in (b.RUNNING, b.WAITING):
        icon, style = SPINNER[int(now * 8) % len(SPINNER)], "cyan"
    else:
        icon, style = ("✗", "bold red") if step.missed else ICONS[step.state]
    dim = "dim" if step.state == b.PENDING else ""
    row = Text(" ")
    row.append(icon, style=style)
    row.append(" " + _fit(step.id, ids), style=dim or ("bold" if step.state == b.RUNNING else ""))
    if kinds:
        row.append("  " + _fit(step.kind, kinds), style="dim")
    row.append("  " + _time(step, now).rjust(TIME_CELLS), style=dim)
    row.rstrip()
    if with_metrics and step.metrics:
        row.append("  " + units.metrics(step.metrics.items()))
    return row


def _fit(text: str, cells: int) -> str:
    if cell_len(text) > cells:
        text = set_cell_size(text, cells - 1) + "…"
    return set_cell_size(text, cells)


def _time(step: b.StepBoard, now: float) -> str:
    if step.state == b.CACHED:
        return "cached"
    if step.state == b.WAITING:
        return "waiting"
    if step.state == b.RUNNING:
        return units.clock(now - (step.started or now))
    if step.seconds is None:
        return ""
    return units.duration(step.seconds) if step.seconds < 60 else units.clock(step.seconds)


def _running(step: b.StepBoard, now: float, width: int) -> list[Text]:
    """Return the lines below the running step: a bar over layers with errors, or over steps with losses; a phase."""
    if step.state == b.WAITING:
        return [Text(" " * INDENT + f"waits for {step.holder}", style="yellow")]
    lines = []
    if step.training is not None:
        lines += _training(step.training, step.memory, now, width)
    elif step.layers:
        facts = [f"{step.layer}/{step.layers}"]
        rate, left = step.seconds_per_layer(), step.remaining(now)
        facts += [units.rate(rate)] if rate is not None else []
        facts += [f"{units.clock(left)} left"] if left else []
        facts += [units.size(step.memory)] if step.memory else []
        lines.append(_bar(step.layer / step.layers, facts, width))
    if step.errors and step.training is None:
        layers = range(min(step.errors), max(step.errors) + 1)
        text = Text(" " * INDENT + "error ", style="dim")
        room = max(8, min(60, width - INDENT - 16))
        text.append(units.sparkline([step.errors.get(i) for i in layers][-room:], room), style="not dim magenta")
        text.append(f" {b.figure(step.errors[max(step.errors)])}", style="not dim")
        lines.append(text)
    if step.phase is not None:
        phase = step.phase
        if phase.total and not step.layers and step.training is None:
            counts = f"{units.number(phase.done)}/{units.number(phase.total)} {phase.unit}".rstrip()
            lines.append(_bar(phase.done / phase.total, [counts, phase.name], width))
        else:
            total = f"/{units.number(phase.total)}" if phase.total else ""
            words = f"{phase.name} {units.number(phase.done)}{total} {phase.unit}".rstrip()
            lines.append(Text(" " * INDENT + words, style="dim"))
    return lines


def _training(training: b.Training, memory: float, now: float, width: int) -> list[Text]:
    """Return the bar over optimizer steps, and a sparkline of the losses, scaled from the lowest, with the latest."""
    rate, left = training.tokens_per_second, training.remaining(now)
    facts = [f"{training.at}/{training.of} steps"]
    facts += [f"{units.count(rate)} tokens/s"] if rate else []
    facts += [f"{units.clock(left)} left"] if left else []
    facts += [units.size(memory)] if memory else []
    lines = [_bar(training.at / training.of, facts, width)]
    if training.losses:
        words = [b.figure(training.losses[-1])]
        if training.learning_rate is not None:
            words.append(f"learning rate {b.figure(training.learning_rate)}")
        if training.evaluations:
            best = min(training.evaluations)
            words.append(f"evaluation {b.figure(training.evaluations[-1])} (best {b.figure(best)})")
        while len(words) > 1 and INDENT + 5 + 8 + 1 + cell_len("  ".join(words)) > width:
            words = words[:-1]
        facts_text = "  ".join(words)
        text = Text(" " * INDENT + "loss ", style="dim")
        room = max(8, min(40, width - INDENT - 6 - cell_len(facts_text)))
        low = min((loss for loss in training.losses if math.isfinite(loss)), default=0.0)
        text.append(units.sparkline([loss - low for loss in training.losses], room), style="not dim magenta")
        text.append(f" {facts_text}", style="not dim")
        lines.append(text)
    return lines


def _bar(share: float, facts: list[str], width: int) -> Text:
    """Return a bar followed by `facts`; those that do not fit are left out from the end."""
    while len(facts) > 1 and INDENT + 10 + 1 + cell_len("  ".join(facts)) > width:
        facts = facts[:-1]
    words = "  ".join(facts)
    cells = max(4, min(40, width - INDENT - 1 - cell_len(words)))
    full = round(min(1.0, max(0.0, share)) * cells)
    line = Text(" " * INDENT)
    line.append("━" * full, style="cyan")
    line.append("─" * (cells - full), style="dim")
    line.append(" " + words)
    return line
