"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.job.remote import Remote
    from runner.plan.lock_file import Locking
    from runner.plan.types import Plan, Preview
    from runner.recipe.types import Recipe

# Of huggingface_hub, datasets and transformers; the last one is read by remote recipes and stores of runner itself.
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "RUNNER_OFFLINE")
_PACKED = "or pack:NAME/RECIPE, such as pack:runner/llama_int4, which comes with runner"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=f"a recipe file, {_PACKED}")
    add_set(parser)


def add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help=f"recipe files, folders of them, {_PACKED}")
    add_set(parser)


def add_offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--offline",
        action="store_true",
        help="use what is on this machine: no network, no Hub, neither here nor in steps",
    )


def add_locked(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--locked", action="store_true", help="refuse (exit 2) where anything is not as the recipe's lock says"
    )


def add_remote(parser: argparse.ArgumentParser) -> None:
    help = "a store to share steps with (s3://…, gs://…, a folder); default $RUNNER_STORE_REMOTE"
    parser.add_argument("--remote", metavar="URL", help=help)


def remote_of(args: argparse.Namespace) -> Remote | None:
    """The remote store that the arguments or RUNNER_STORE_REMOTE name."""
    from runner.job.remote import Remote

    url = args.remote or os.environ.get("RUNNER_STORE_REMOTE")
    return Remote(url) if url else None


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="run the code that a model brings, where transformers does not know its type: read it first",
    )  # fmt: skip


def go_offline(args: argparse.Namespace) -> None:
    """With --offline, forbid the network to this process and to what it starts."""
    if getattr(args, "offline", False):
        os.environ.update(dict.fromkeys(OFFLINE, "1"))


def duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `2h`, `1h30m`, `7d`; for argparse."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 30m, 2h, 1h30m or 7d; got {text!r}")
    return seconds


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="sets", metavar="NAME=VALUE", action="append", default=[], help="change a param of the recipe"
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", metavar="DIR", type=Path, default=None, help="jobs folder; default $RUNNER_JOBS or ./jobs"
    )


def add_junit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--junit", metavar="FILE", type=Path, help="write steps and gates as JUnit XML, for CI to show as tests"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where steps compute")


def jobs_root(args: argparse.Namespace) -> Path:
    """The jobs folder; it need not exist."""
    return Path(args.jobs if args.jobs is not None else os.environ.get("RUNNER_JOBS") or "jobs")


def job_of(args: argparse.Namespace) -> tuple[Path, str]:
    """The jobs folder and the id of the job that JOB names: an id, the beginning of one, or the job's folder."""
    from runner.job import listing

    folder = Path(args.job)
    if (folder / "plan.json").is_file():
        folder = folder.resolve()
        return folder.parent, folder.name
    root = jobs_root(args)
    return root, listing.find(root, args.job)


def recipes_of(file: str, args: argparse.Namespace) -> tuple[Recipe, ...]:
    """The recipes in a file, as its lock pins them: one for each combination of its matrix."""
    from runner.model.architecture import remote_code
    from runner.recipe import load

    remote_code.allow(getattr(args, "trust_remote_code", False))
    return load.load_all(file, args.sets, locking_of(file, args).pins)


def preview_of(recipe: Recipe, args: argparse.Namespace) -> tuple[Plan, Preview]:
    """Resolve and preview a recipe."""
    from runner.job.store import Store
    from runner.plan import preview, resolve

    root = jobs_root(args)
    if root.exists() and not root.is_dir():
        raise UsageError(f"the jobs folder {root} is a file", "name another with --jobs")
    cache, locking = root / "store" / "digests.json", locking_of(recipe.file, args)
    plan = resolve.resolve(recipe, cache_file=cache, device=args.device, commits=locking.commits)
    drifted = locking.check([plan], cache)
    found = preview.preview(plan, Store(root / "store"), previous(root, recipe.name, recipe.matrix))
    return plan, replace(found, notes=(*drifted, *found.notes))


def locking_of(file: str, args: argparse.Namespace) -> Locking:
    """The lock of a recipe, if it has one; UsageError where --locked asks for one that is not there."""
    from runner.plan import lock_file

    return lock_file.use(file, strict=getattr(args, "locked", False))


def previous(root: Path, recipe: str, matrix: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Step id → key inputs of the job of that recipe name that was applied last; they say why a step runs again.

    One of the same combination of a matrix comes before all others.
    """
    from runner.job.directory import read_json

    latest, found = (False, ""), {}
    for path in sorted(root.glob("*/plan.json")):
        plan = read_json(path)
        same = plan.get("matrix", {}) == dict(matrix or {})
        started = (same, str(read_json(path.with_name("job.json")).get("started", "")))
        if plan.get("recipe") == recipe and started >= latest:
            latest, found = started, {step["id"]: step["key_inputs"] for step in plan.get("steps", [])}
    return found
