"""Arguments that several commands share, and the options that they become.

Only a command's `read_options` sees the `argparse.Namespace`; it returns a frozen dataclass.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.plan.resources import Offer

# The variables of huggingface_hub, datasets and transformers; the last one is read by runner's own remote recipes and
# stores.
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


def remote_url(args: argparse.Namespace) -> str | None:
    """Return the URL of the remote store from the arguments or RUNNER_STORE_REMOTE; None where neither has one."""
    return args.remote or os.environ.get("RUNNER_STORE_REMOTE") or None


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="run the code that a model brings, where transformers does not know its type: read it first",
    )  # fmt: skip


def go_offline(offline: bool) -> None:
    """Forbid network access to this process and its children where `offline` is true."""
    if offline:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))


def duration(text: str) -> float:
    """Parse `90s`, `30m`, `2h`, `1h30m` or `7d` into seconds; for argparse."""
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


def add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--executor", choices=("local", "ray", "slurm"), default="local",
        help="where steps run: workers on this machine, a Ray cluster, Slurm (extras `ray`, `slurm`); default local",
    )  # fmt: skip
    parser.add_argument(
        "--address", metavar="ADDRESS",
        help="the Ray cluster: auto, host:6379 or ray://host:10001; without it Ray is started on this machine",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", metavar="NAME=VALUE", action="append", default=[], dest="sbatch",
        help="an option of sbatch for each step: partition=gpu, timeout_min=240; cluster=local tries jobs here",
    )  # fmt: skip


@dataclass(frozen=True)
class ExecutorOptions:
    """The executor and how to reach it; `sbatch` are "name=value". `at_once`: the most steps that run together."""

    name: str = "local"
    address: str | None = None
    sbatch: tuple[str, ...] = ()
    at_once: int | None = None


def executor(args: argparse.Namespace) -> ExecutorOptions:
    given = vars(args)
    return ExecutorOptions(given["executor"], given["address"], tuple(given["sbatch"]), given.get("jobs_at_once"))


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where steps compute")


@dataclass(frozen=True)
class Resolving:
    """Options for reading, locking and resolving recipes; `sets` are "name=value" of params.

    `offer` has the machines of the executor, where that is not this one.
    """

    sets: tuple[str, ...]
    jobs: Path
    device: str = "auto"
    locked: bool = False
    trust_remote_code: bool = False
    offer: Offer | None = None


def resolving(args: argparse.Namespace) -> Resolving:
    """Return the options of a command that reads recipes; options that it does not take have their defaults."""
    given = vars(args)
    return Resolving(
        tuple(args.sets), jobs_folder(args), given.get("device", "auto"), given.get("locked", False),
        given.get("trust_remote_code", False),
    )  # fmt: skip


def jobs_folder(args: argparse.Namespace) -> Path:
    """Return the jobs folder; it need not exist."""
    from runner.api import folders

    return folders.jobs_folder(vars(args).get("jobs"))
