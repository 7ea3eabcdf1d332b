"""`runner plan`: every step with its state, the reason, and its cost. Computes nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.commands import folders, options

if TYPE_CHECKING:
    from runner.plan.types import Preview
    from runner.recipe.search_types import Search
    from runner.recipe.types import Recipe
    from runner.search.forecast import Forecast


@dataclass(frozen=True)
class Options:
    recipes: tuple[str, ...]
    resolving: options.Resolving
    offline: bool
    json: bool
    executor: options.ExecutorOptions
    remote: str | None


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_recipes(parser)
    options.add_jobs(parser)
    options.add_device(parser)
    options.add_offline(parser)
    options.add_locked(parser)
    options.add_trust(parser)
    options.add_executor(parser)
    options.add_remote(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_options(args: argparse.Namespace) -> Options:
    return Options(
        tuple(args.recipes), options.resolving(args), args.offline, args.json, options.executor(args),
        options.remote_url(args),
    )  # fmt: skip


def run(opts: Options) -> int:
    from runner.commands import cluster

    with cluster.connected(opts.executor, opts.remote, opts.resolving.jobs) as found:
        return _plan(replace(opts, resolving=replace(opts.resolving, offer=found.offer)))


def _plan(opts: Options) -> int:
    from runner.report import preview as report
    from runner.report.console import console, show

    options.go_offline(opts.offline)
    tasks = folders.tasks(opts.recipes, opts.resolving)
    for task in tasks:
        if task.error is not None:
            raise task.error
    recipes = [task.recipe for task in tasks if task.recipe is not None]
    searches = [_search(recipe, opts.resolving) for recipe in recipes if recipe.search is not None]
    found = [
        (task.name, folders.planned(task.recipe, opts.resolving).preview)
        for task in tasks if task.recipe is not None and task.recipe.search is None
    ]  # fmt: skip
    out = console()
    if searches:
        _show_searches(searches, opts.json)
        if not found or opts.json:
            return 0
    if len(found) == 1:
        if opts.json:
            print(json.dumps(report.document(found[0][1]), indent=2, ensure_ascii=False))
        else:
            show(report.lines(found[0][1], out.width), out)
        return 0
    found = after_earlier_jobs(found)
    common = folders.shared([(name, preview.plan) for name, preview in found])
    if opts.json:
        jobs = [{"name": name, **report.document(preview)} for name, preview in found]
        steps_in_common = [{"step": step, "jobs": names} for step, names in common]
        print(json.dumps({"schema": 1, "jobs": jobs, "shared": steps_in_common}, indent=2, ensure_ascii=False))
        return 0
    for number, (name, preview) in enumerate(found, 1):
        show([f"{number}/{len(found)} {name}", *report.short(preview, out.width), ""], out)
    show([totals(found)], out)
    for step, names in common:
        show([f"`{step}` is shared by {f'all {len(found)}' if len(names) == len(found) else ', '.join(names)}"], out)
    return 0


def _search(recipe: Recipe, how: options.Resolving) -> tuple[str, Search, Forecast]:
    from runner.api import recipes
    from runner.search import forecast

    trials = recipes.trials(recipe.file, sets=how.sets, locked=how.locked)
    if recipe.search is None:
        raise ValueError(recipe.file)
    found = forecast.forecast(
        recipe.search, recipe.params, lambda values: folders.planned(trials(values), how).preview
    )  # fmt: skip
    return recipe.name, recipe.search, found


def _show_searches(searches: Sequence[tuple[str, Search, Forecast]], as_json: bool) -> None:
    from runner.report import search_preview as report
    from runner.report.console import console, show

    documents = [report.document(*each) for each in searches]
    if as_json:
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, ensure_ascii=False))
        return
    out = console()
    for each in searches:
        show([*report.lines(*each, out.width), ""], out)


def totals(found: Sequence[tuple[str, Preview]]) -> str:
    """Return the number of jobs and of their steps, after `after_earlier_jobs`."""
    steps = [forecast.state for _, preview in found for forecast in preview.forecasts]
    cached = steps.count("cached")
    return f"{len(found)} jobs, {len(steps)} steps: {len(steps) - cached} to run, {cached} cached or shared"


def after_earlier_jobs(found: Sequence[tuple[str, Preview]]) -> list[tuple[str, Preview]]:
    """Return each preview as of when the jobs before it are done: steps that those jobs make count as cached."""
    makers: dict[str, str] = {}
    result = []
    for name, preview in found:
        forecasts = []
        for forecast in preview.forecasts:
            maker = makers.get(forecast.step.key)
            if forecast.state != "cached" and maker is not None:
                cost = replace(forecast.cost, memory=0, disk=0, scratch=0, seconds=0.0)
                forecast = replace(forecast, state="cached", reason=f"made by {maker}", cost=cost, resume_layer=None)
            makers.setdefault(forecast.step.key, name)
            forecasts.append(forecast)
        result.append((name, replace(preview, forecasts=tuple(forecasts))))
    return result
