"""The plots of `auto`: what groups of modules lose, and the bits or sparsities that they got."""

from __future__ import annotations

from collections import Counter

from runner.report import assigned_bits, delicate
from runner.report.html import plots
from runner.report.html.figures import described
from runner.report.html.markup import Markup
from runner.report.job_report import StepReport
from runner.report.step_details import place_in_layer
from runner.steps.assignment import BITS, SPARSITY
from runner.steps.site_groups import label


def losses(step: StepReport) -> Markup | None:
    """Plot the loss of each group a weight, layers across, with the delicate groups in words."""
    found = step.sensitivity
    if found is None:
        return None
    places = [place_in_layer(label(list(group.sites))) for group in found.groups]
    table = delicate.losses(found, places)
    names, layers = list(dict.fromkeys(places)), sorted({group.layer for group in found.groups})
    text = f"Loss a weight at {delicate.named(found)} ({found.measure.replace('_', ' ')}, {found.unit}). "
    text += " ".join(delicate.sentences(found))
    drawn = plots.both(
        lambda width: plots.cells(names, layers, table, width, lambda value: f"{value:.3g}"),
        f"Cells of losses by layer and group. {text}",
    )
    return described(text, drawn, "losses")


def assignment(step: StepReport) -> Markup | None:
    """Plot the bits or sparsity of each module, layers across."""
    if not step.assignment:
        return None
    target = assigned_bits.target(step.assignment)
    bits: dict[str, float] = step.assignment[target]
    table = {(place_in_layer(name), _layer(name)): float(each) for name, each in bits.items()}
    names, layers = list(dict.fromkeys(name for name, _ in table)), sorted({layer for _, layer in table})
    usual = Counter(bits.values()).most_common(1)[0][0]
    more = "sparsity" if target == SPARSITY else "bits"
    text = (
        f"{assigned_bits.line(step.assignment)}. The stronger the colour, the more {more}; most modules have {usual:g}."
    )
    drawn = plots.both(
        lambda width: plots.cells(
            names, layers, table, width, lambda value: f"{value:g}{' bits' if target == BITS else ''}"
        ),
        f"Cells of {more} by layer and module. {text}",
    )
    return described(text, drawn, "assignment")


def _layer(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)
