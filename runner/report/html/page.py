"""report.html: one self-contained file without scripts, for wide screens and phones, dark mode and print."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from runner.progress import board, units
from runner.report import findings, report_json, tensor_account
from runner.report.findings import Series
from runner.report.html import bits_figures, figures
from runner.report.html.elements import (
    ICONS,
    data_table,
    folded,
    hash_code,
    number_text,
    section,
    sentence,
    state_mark,
)  # fmt: skip
from runner.report.html.markup import Markup, Part, join, prose, tag
from runner.report.job_report import JobReport, StepReport

_STATES = {"done": "good", "cached": "good", "failed": "bad", "stopped": "warn", "pending": "idle"}
# The packages that can change results.
_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "compressed-tensors",
    "tokenizers",
    "numpy",
)


def html(job: JobReport) -> str:
    """Return the page."""
    job = report_json.public(job)
    all_series = findings.series(job)
    verdict = findings.verdict(job)
    title = f"{findings.title(job)}: {verdict.word}"
    sections = (
        _gates(job),
        _chain(job, all_series),
        _effects(job, all_series),
        _layers(job),
        _training(job),
        _tensors(job),
        _warnings(job),
        _usage(job),
        _recipe(job),
        _environment(job),
        _digests(job),
    )
    body = tag("body", tag("main", _head(job, verdict, all_series), sections), _foot(job))
    return "<!doctype html>\n" + tag("html", meta(title), body, lang="en") + "\n"


def meta(title: str) -> Markup:
    """Make the head of a page: its title, its style, and a policy that loads and runs nothing."""
    style = resources.files("runner.report.html").joinpath("style.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        # Even markup injected through a hostile name could load or run nothing.
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("title", title),
        tag("style", Markup(style)),
    )


def _head(job: JobReport, verdict: findings.Verdict, all_series: Sequence[Series]) -> Markup:
    facts = [f"job {job.id}", f"model {job.model}"]
    facts += [f"ended {job.finished.replace('T', ' ').replace('Z', ' UTC')}"] if job.finished else []
    failure = next((step.failure for step in job.steps if step.failure is not None), None)
    return tag(
        "header",
        tag("p", "Report of a compression", class_="eyebrow"),
        tag("h1", findings.title(job)),
        tag("p", " · ".join(facts), class_="facts"),
        tag(
            "div",
            tag(
                "p",
                tag("span", ICONS[verdict.level], aria_hidden="true", class_="icon"),
                verdict.word.capitalize(),
                class_="word",
            ),
            tag("p", sentence(verdict.text)),
            tag("p", f"What helps: {failure['help']}") if failure and failure.get("help") else None,
            tag("pre", tag("code", job.resume)) if job.resume and job.status == "interrupted" else None,
            class_=f"verdict {verdict.level}",
        ),
        _figures_of_merit(job, all_series),
    )


def _figures_of_merit(job: JobReport, all_series: Sequence[Series]) -> Markup | None:
    """Make the boxes of size, quality, time and memory."""
    boxes: list[tuple[str, str, str]] = []
    if job.size_after is not None:
        before = f"from {units.size(job.size_before)}" if job.size_before else ""
        times = findings.times_smaller(job.size_before, job.size_after)
        boxes.append(("size", units.size(job.size_after), ", ".join(filter(None, (before, times)))))
    main = findings.headline(all_series)
    if main is not None and (value := main.after if main.after is not None else main.before) is not None:
        change = ""
        if main.before is not None and main.after is not None:
            change = f"from {units.number(main.before)} {findings.percent(main.before, main.after)}".replace(
                " +", ", +"
            )
            change = change.replace(" −", ", −").replace(" ±", ", ±")
        boxes.append((main.label, units.number(value), change))
    computed = [step.seconds for step in job.steps if step.seconds is not None and step.digest is not None]
    if computed:
        cached = sum(step.state == "cached" for step in job.steps)
        note = f"to compute {_counted(len(computed), len(job.steps))}"
        note += f", {cached} of them cached in this run" if cached else ""
        boxes.append(("time", units.duration(sum(computed)), note))
    memories = [step.memory for step in job.steps if step.memory]
    if memories:
        worst = max((step for step in job.steps if step.memory), key=lambda step: step.memory or 0)
        boxes.append(("peak memory", units.size(max(memories)), f"in {worst.id}"))
    if not boxes:
        return None
    made = [
        tag("div", tag("dt", name), tag("dd", tag("b", prose(value)), tag("span", prose(note))))
        for name, value, note in boxes
    ]
    return tag("dl", made, class_="merit")


def _counted(some: int, every: int) -> str:
    return f"{some} of {every} steps" if some < every else "every step" if every > 1 else "its one step"


def _gates(job: JobReport) -> Markup | None:
    judged = findings.gates(job)
    if not judged:
        return None
    rows = [
        (
            state_mark(board.gate_word(gate), board.gate_level(gate)),
            f"{step.id}: {findings.label(str(gate['metric']))}",
            number_text(gate.get("value")),
            sentence(str(gate.get("rule") or number_text(gate.get("limit")))),
            sentence(findings.gate_sentence(gate)),
        )
        for step, gate in judged
    ]
    head = ("verdict", "metric", "value", "allowed", "in words")
    return section(
        "Gates", "gates", data_table("Every quality gate and whether it was passed", head, rows, numbers={2})
    )


def _chain(job: JobReport, all_series: Sequence[Series]) -> Markup:
    rows = []
    for step in job.steps:
        size = f"{units.size(step.size_before)} → {units.size(step.size)}" if step.size and step.size_before else ""
        facts = [_change(change) for change in findings.changes(all_series, step)]
        if findings.is_evaluation(step) or not facts:
            facts += [units.metric(n, v) for n, v in units.shown(step.metrics.items()) if n != "bytes"]
        rows.append((
            tag("span", tag("b", step.id), tag("small", step.kind), class_="step"),
            state_mark(_state_word(step), _STATES.get(step.state, "idle")),
            _forecast(units.duration(step.seconds) if step.seconds is not None else "",
                      units.about(step.forecast.seconds) if step.forecast else ""),
            _forecast(units.size(step.memory) if step.memory else "",
                      units.size(step.forecast.memory) if step.forecast else ""),
            size,
            join([tag("span", text, class_="line") for text in facts]),
        ))  # fmt: skip
    head = ("step", "state", "time", "peak memory", "size", "quality and metrics")
    caption = "The steps in order: time and memory as measured, the forecast below; size and quality before → after"
    return section("Chain of steps", "chain", data_table(caption, head, rows, numbers={2, 3, 4}))


def _state_word(step: StepReport) -> str:
    resumed = f", resumed after layer {step.resumed_at}" if step.resumed_at and step.state == "done" else ""
    return step.state + resumed


def _forecast(measured: str, expected: str) -> Part:
    return join(measured, tag("small", f"forecast {expected}") if expected else None)


def _change(change: findings.Change) -> str:
    if change.before is None or change.after is None:
        return f"{change.label} {number_text(change.after)}"
    gain = findings.percent(change.before, change.after)
    return f"{change.label} {number_text(change.before)} → {number_text(change.after)}" + (f" ({gain})" if gain else "")


def _effects(job: JobReport, all_series: Sequence[Series]) -> Markup | None:
    plots = [figures.sizes(job), *(figures.quality(job, one) for one in all_series)]
    made = [plot for plot in plots if plot is not None]
    return section("Size and quality along the chain", "effects", *made) if made else None


def _layers(job: JobReport) -> Markup | None:
    parts: list[Markup] = []
    for step in job.steps:
        made = (
            bits_figures.losses(step), bits_figures.assignment(step), figures.errors(step), figures.sensitivity(step),
            figures.sparsity(step),
        )  # fmt: skip
        plots = [plot for plot in made if plot]
        parts += [tag("h3", f"{step.id} ", tag("small", step.kind)), *plots] if plots else []
    return section("Layer by layer", "layers", *parts) if parts else None


def _training(job: JobReport) -> Markup | None:
    parts: list[Markup] = []
    for step in job.steps:
        if step.curve is not None:
            parts += [tag("h3", f"{step.id} ", tag("small", step.kind)), figures.training(step.curve)]
    return section("Training", "training", *parts) if parts else None


def _tensors(job: JobReport) -> Markup | None:
    parts: list[Markup] = []
    for step in job.steps:
        if step.tensors:
            head, *rows = tensor_account.rows(step.tensors)
            parts.append(data_table(f"{step.id}: what became of its input", head, rows, range(1, len(head))))
    return section("Account of tensors", "tensors", *parts) if parts else None


def _warnings(job: JobReport) -> Markup | None:
    texts = [*job.messages, *(text for step in job.steps for text in step.messages)]
    return section("Warnings", "warnings", tag("ul", [tag("li", sentence(text)) for text in texts])) if texts else None


def _usage(job: JobReport) -> Markup | None:
    if job.output is None:
        return None
    blocks = report_json.usage(job.output)
    made = [
        tag("pre", tag("code", block.text), tabindex="0") if block.code is not None else tag("p", sentence(block.text))
        for block in blocks
    ]
    where = tag("p", "The result is in ", tag("code", str(job.output)), ".")
    return section("Load the result", "load", where, *made)


def _recipe(job: JobReport) -> Markup | None:
    if not job.text:
        return None
    text = tag("pre", tag("code", job.text), tabindex="0")
    note = tag("p", "As resolved: params filled in, parents merged. It applies on its own to the same plan.")
    return section("Recipe", "recipe", note, folded("recipe.yaml", text))


def _environment(job: JobReport) -> Markup | None:
    facts = job.environment
    if not facts:
        return None
    packages = facts.get("packages", {})
    rows: list[tuple[Part, ...]] = [
        (name, str(facts[name]))
        for name in ("runner", "python", "platform", "cpu", "device", "threads")
        if name in facts
    ]
    rows += [(name, str(packages[name])) for name in _PACKAGES if name in packages]
    every = [(str(name), str(version)) for name, version in packages.items()]
    return section(
        "Environment", "environment",
        data_table("The machine and the packages of the last run that computed anything", ("what", "value"), rows),
        folded(f"{len(every)} packages", data_table("Every package", ("package", "version"), every)) if every else None,
    )  # fmt: skip


def _digests(job: JobReport) -> Markup:
    rows: list[tuple[Part, ...]] = [("plan", "key", hash_code(job.key))]
    model = job.lock.get("model", {})
    rows.append(("model", "digest", hash_code(str(model.get("commit") or model.get("digest") or "not known"))))
    for name, data in job.lock.get("data", {}).items():
        rows.append((f"data {name}", "digest", hash_code(str(data.get("commit") or data.get("digest")))))
    for step in job.steps:
        rows.append((step.id, "key", hash_code(step.key)))
        rows.append((step.id, "digest", hash_code(step.digest) if step.digest else "none yet"))
    note = "A key says what was to be made, a digest what came out: equal digests, equal bytes."
    table = data_table("sha256 of the plan, its inputs and the result of every step", ("of", "what", "sha256"), rows)
    signed = f"signed by {job.signature}" if job.signature else "not signed"
    text = tag("p", tag("code", "provenance.json"), f" states what went in and what came out; it is {signed}.")
    statement = text if job.provenance else None
    return section("Digests", "digests", tag("p", note), statement, folded("keys and digests", table))


def _foot(job: JobReport) -> Markup:
    version = job.environment.get("runner", "")
    return tag("footer", tag("p", f"Made by runner {version} from the records in {job.path}.".replace("  ", " ")))
