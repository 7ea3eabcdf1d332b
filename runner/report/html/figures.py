"""The plots of a report, each with a sentence that explains it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from runner.plan.types import MODEL
from runner.progress import board, units
from runner.report import findings
from runner.report.findings import Series
from runner.report.html import plots
from runner.report.html.markup import Markup, join, prose, tag
from runner.report.html.plots import Mark, Row
from runner.report.job_report import JobReport, StepReport
from runner.report.step_details import Curve, Layer, mean, place_in_layer


def sizes(job: JobReport) -> Markup | None:
    """Plot the size of the model and of every checkpoint that a step made."""
    known = [(MODEL, job.size_before), *((step.id, step.size) for step in job.steps)]
    made = [(id, size) for id, size in known if size is not None]
    if len(made) < 2:
        return None
    rows = [Row(id, float(size), units.size(size), "quiet" if id == MODEL else "accent") for id, size in made]
    first, last = made[0][1], made[-1][1]
    times = findings.times_smaller(first, last)
    text = f"The weights went from {units.size(first)} to {units.size(last)}" + (f", {times}" if times else "")
    saved = {b[0]: a[1] - b[1] for a, b in itertools.pairwise(made)}
    most = max(saved, key=lambda id: saved[id])
    if saved[most] > 0.05 * first and len(saved) > 1:
        text += f"; {most} saved the most, {units.size(saved[most])}"
    return described(f"{text}.", plots.both(lambda width: plots.bars(rows, width), f"Bars of sizes. {text}."), "sizes")


def quality(job: JobReport, series: Series) -> Markup | None:
    """Plot one metric along the chain, with the limit of its gate."""
    series = replace(series, points=tuple(point for point in series.points if math.isfinite(point.value)))
    if len(series.points) < 2:
        return None
    limit = _limit(job, series)
    missed = {
        step.id for step, gate in findings.gates(job) if not gate.get("passed") and gate["metric"] == series.metric
    }
    rows = [
        Row(
            _point_label(point.of, point.step), point.value, units.number(point.value),
            "bad" if point.step in missed else "quiet" if point.of == MODEL else "accent",
        )
        for point in series.points
    ]  # fmt: skip
    first, last = series.points[0].value, series.points[-1].value
    change = findings.percent(first, last)
    better = "higher" if series.higher_is_better else "lower"
    text = f"{series.label[0].upper()}{series.label[1:]} went from {units.number(first)} to {units.number(last)}"
    text += f" ({change}); {better} is better." if change else f"; {better} is better."
    if limit is not None and limit.value is not None:
        text += f" The dashed line is the gate's limit, {units.number(limit.value)}."
    text += " The scale does not begin at zero."
    return described(text, plots.both(lambda width: plots.dots(rows, width, limit), f"Dots. {text}"), "quality")


def _point_label(artifact: str, step: str) -> str:
    return f"{artifact} ({step})"


def _limit(job: JobReport, series: Series) -> Row | None:
    """Return the limit of the last gate on the metric; None where it has no finite limit."""
    ids = {point.step for point in series.points}
    limits = [gate["limit"] for step, gate in findings.gates(job) if gate["metric"] == series.metric and step.id in ids]
    known = [value for value in limits if isinstance(value, int | float) and math.isfinite(value)]
    return Row("limit", float(known[-1]), "limit") if known else None


def errors(step: StepReport) -> Markup | None:
    """Plot the relative error of each layer's outputs after a step."""
    layers = [layer for layer in step.layers if layer.error is not None]
    if not layers:
        return None
    values = [Mark(layer.layer, layer.error or 0.0, f"layer {layer.layer}: {figure(layer.error)}") for layer in layers]
    ghosts = [
        Mark(layer.layer, layer.error_before, f"layer {layer.layer}: {figure(layer.error_before)} before")
        for layer in layers
        if layer.error_before is not None
    ]
    tops = [
        Mark(layer.layer, worst.error or 0.0, f"{worst.name}: {figure(worst.error)}, the worst of layer {layer.layer}")
        for layer in layers
        if (worst := max(layer.modules, key=lambda module: module.error or 0.0, default=None)) is not None
    ]
    worst_layer = max(layers, key=lambda layer: layer.error or 0.0)
    median = statistics.median(layer.error or 0.0 for layer in layers)
    text = (
        f"Layer {worst_layer.layer} loses most: {share(worst_layer.error or 0.0)} of the energy of its modules' outputs"
    )
    if median > 0 and len(layers) > 2:
        text += f", {(worst_layer.error or 0.0) / median:.1f} times the median layer"
    text += ". A column is the mean over a layer's modules, the stroke above it the worst of them."
    if ghosts:
        text += " The pale columns are the error before this step."
    drawn = plots.both(
        lambda width: plots.columns(values, width, percent, x_label="layer", ghosts=ghosts, tops=tops),
        f"Columns of errors by layer. {text}",
    )
    return described(text, drawn, "errors")


def sensitivity(step: StepReport) -> Markup | None:
    """Plot the sensitivity of modules: layers across, places in the layer down."""
    layers = [layer for layer in step.layers if layer.error is not None]
    table = module_errors(layers)
    names = list(dict.fromkeys(name for name, _ in table))
    if len(names) < 2 or len(layers) < 2:
        return None
    means = {name: statistics.fmean(v for (of, _), v in table.items() if of == name) for name in names}
    hardest, easiest = max(means, key=lambda n: means[n]), min(means, key=lambda n: means[n])
    (name, layer), value = max(table.items(), key=lambda item: item[1])
    text = f"{hardest} is the most sensitive, with a mean error of {share(means[hardest])}"
    if means[easiest] > 0:
        text += f"; {easiest} the least, with {share(means[easiest])}"
    text += (
        f". The worst single place is {name} of layer {layer}, {share(value)}. The stronger the colour, the larger the "
        "error: where it is strong, more bits or less sparsity buy the most."
    )
    numbers = [layer.layer for layer in layers]
    drawn = plots.both(
        lambda width: plots.cells(names, numbers, table, width, share), f"Cells of errors by layer and module. {text}"
    )
    return described(text, drawn, "sensitivity")


def module_errors(layers: Sequence[Layer]) -> dict[tuple[str, int], float]:
    """Return (place in the layer, layer) → mean error of the modules there."""
    found: dict[tuple[str, int], list[float]] = {}
    for layer in layers:
        for module in layer.modules:
            if module.error is not None:
                found.setdefault((place_in_layer(module.name), layer.layer), []).append(module.error)
    return {key: mean(values) or 0.0 for key, values in found.items()}


def training(curve: Curve) -> Markup:
    """Plot the losses of a training."""
    points = [Mark(p.step, p.loss, f"step {p.step}: training loss {figure(p.loss)}") for p in curve.points]
    measured = [Mark(e.step, e.loss, f"step {e.step}: evaluation loss {figure(e.loss)}") for e in curve.evaluations]
    first, last = curve.points[0], curve.points[-1]
    change = findings.percent(first.loss, last.loss)
    text = f"The training loss went from {figure(first.loss)} to {figure(last.loss)}{f' ({change})' if change else ''}"
    text += f" over {units.plural(last.step, 'optimizer step')}."
    if curve.evaluations:
        best = min(curve.evaluations, key=lambda evaluation: evaluation.loss)
        text += f" The loss on the evaluation text (circles) was lowest at step {best.step}: {figure(best.loss)}."
    at = None
    if curve.kept is not None and curve.evaluations:
        text += f" The weights of step {curve.kept} were kept."
        at = Mark(curve.kept, 0.0, "kept")
    rates = [point.learning_rate for point in curve.points if point.learning_rate is not None]
    if rates:
        text += f" The learning rate was at most {max(rates):.3g}."
    drawn = plots.both(
        lambda width: plots.lines(points, measured, width, figure, x_label="optimizer step", at=at),
        f"A curve of losses. {text}",
    )
    return described(text, drawn, "loss")


def sparsity(step: StepReport) -> Markup | None:
    """Return a sentence on the share of zeros, and its range over modules."""
    values = {module.name: module.sparsity for layer in step.layers for module in layer.modules}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    low, high = min(known.values()), max(known.values())
    if high - low < 0.005:
        return tag("p", f"{percent(statistics.fmean(known.values()))} of the weights of every module are zero.")
    densest, sparsest = min(known, key=lambda n: known[n]), max(known, key=lambda n: known[n])
    return tag("p", f"Zeros: from {percent(low)} of {densest} to {percent(high)} of {sparsest}.")


def figure(value: float | None) -> str:
    return board.figure(value)


def share(value: float) -> str:
    """Format a share as percent, in three digits: `0.168 %`."""
    return f"{value * 100:.3g} %"


def percent(value: float) -> str:
    """Format a share as percent, short enough for an axis."""
    return f"{value * 100:.4g} %"


def described(text: str, drawn: Markup, kind: str) -> Markup:
    """Return a plot with the sentences that explain it."""
    return tag("figure", join(drawn), tag("figcaption", prose(text)), data_plot=kind)
