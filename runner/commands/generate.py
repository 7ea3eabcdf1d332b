"""`runner generate`: generate text with a job's checkpoint or engine, to check the model's quality by eye."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import MachineError, UsageError

if TYPE_CHECKING:
    from runner.runtime.protocol import Runtime


@dataclass(frozen=True)
class Options:
    """The model, the prompt, and how tokens are sampled."""

    job: str
    jobs: Path
    step: str | None
    prompt: str
    chat: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    threads: int | None
    device: str


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", metavar="JOB", help="an id, the beginning of one, a job's folder, or a folder of a checkpoint or engine"
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the beginning of the text; `-` reads it from stdin")
    parser.add_argument("--max-new-tokens", metavar="N", type=_positive, default=128, help="default: 128")
    parser.add_argument(
        "--temperature", metavar="T", type=_temperature, default=0.0,
        help="above 0, sample tokens at random; default: 0, the likeliest token",
    )  # fmt: skip
    parser.add_argument(
        "--top-p",
        metavar="P",
        type=_share,
        default=1.0,
        help="sample among the likeliest tokens whose probabilities sum to P; default: 1",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the sampling; default: 0")
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message in a chat")
    parser.add_argument("--threads", metavar="N", type=_positive, default=None, help="default: one for each core")
    parser.add_argument(
        "--step", metavar="ID", help="what this step of the job made; default: the job's output, or, where that cannot "
        "run on this machine, the last thing the job made that can"
    )  # fmt: skip
    options.add_device(parser)
    options.add_jobs(parser)


def read_options(args: argparse.Namespace) -> Options:
    return Options(
        job=args.job, jobs=options.jobs_folder(args), step=args.step, prompt=args.prompt, chat=args.chat,
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed,
        threads=args.threads, device=args.device,
    )  # fmt: skip


def run(opts: Options) -> int:
    folders = _folders(opts.job, opts.jobs, opts.step)
    prompt = _stdin() if opts.prompt == "-" else opts.prompt
    from runner.plan.machine import resolve_device
    from runner.runtime import open
    from runner.runtime.greedy import sampler, stream
    from runner.runtime.text import Text

    open.require(folders[0])
    text = Text(folders[0])  # before the model is loaded, which takes longer
    ids = text.chat_ids(prompt) if opts.chat else text.ids(prompt)
    if not ids.size:
        raise UsageError("the prompt has no tokens, and the model no token that begins a text", "write a prompt")
    runtime = _opened(folders, resolve_device(opts.device), opts.threads)
    try:
        choose = sampler(opts.temperature, opts.top_p, opts.seed % 2**32)
        ended = False
        tokens = stream(runtime, ids, opts.max_new_tokens, text.ends(), choose)
        for piece in text.pieces(tokens):
            sys.stdout.write(piece)
            sys.stdout.flush()
            ended = piece.endswith("\n")
        if not ended:
            sys.stdout.write("\n")
    finally:
        runtime.close()
    return 0


def _opened(folders: list[Path], device: str, threads: int | None) -> Runtime:
    """Open the first of the folders that this machine can run; raise the first folder's MachineError if none can."""
    from runner.runtime import open

    first_error: MachineError | None = None
    for folder in folders:
        try:
            runtime = open.open(folder, device, threads)
        except MachineError as error:
            first_error = first_error or error
            continue
        if first_error is not None:
            step = folder.parent.name.partition("-")[2]
            print(f"note: {first_error.message}; this is what step `{step}` made", file=sys.stderr, flush=True)
        return runtime
    assert first_error is not None
    raise first_error


def _folders(name: str, jobs: Path, step: str | None) -> list[Path]:
    """Return the folders that JOB names, the preferred one first.

    These are a folder that holds a model itself; else a job's output, then what its steps made, the last step first; or
    only what the step of `--step` made.
    """
    from runner.api.jobs import Job

    given = Path(name)
    if given.name == "output" and (given.parent / "plan.json").is_file():
        given = given.parent
    if given.is_dir() and not (given / "plan.json").is_file():
        if step:
            raise UsageError(f"`--step` needs a job; `{given}` is a folder", "name the step's folder, or the job")
        return [given]
    job = Job(_latest(given, jobs), jobs)
    id = job.id
    made = [folder for folder in sorted((job.path / "steps").glob("*-*/out"), reverse=True) if _holds_model(folder)]
    if step:
        found = [folder for folder in made if folder.parent.name.partition("-")[2] == step]
        if not found:
            names = ", ".join(f"`{folder.parent.name.partition('-')[2]}`" for folder in reversed(made)) or "none"
            message = f"no step `{step}` of job `{id}` has made a checkpoint or an engine"
            raise UsageError(message, f"steps that have: {names}")
        return found
    output = job.output
    if output is None and made:
        last = made[0].parent.name.partition("-")[2]
        print(f"note: job `{id}` has no output yet; this is what step `{last}` made", file=sys.stderr, flush=True)
        return made
    if output is None:
        raise UsageError(
            f"job `{id}` has no output: no step of it has made a checkpoint or an engine yet",
            "apply its recipe to the end, or name the folder of one of its steps",
        )
    return [output, *made]


def _latest(given: Path, jobs: Path) -> Path:
    """Return the job that is meant: of several whose ids begin so, the one that started last, which is said."""
    from runner.job import listing

    if (given / "plan.json").is_file():
        return given
    found = listing.matching(jobs, str(given))
    if len(found) < 2:
        return given
    print(
        f"note: {len(found)} jobs begin with `{given}`; this is `{found[-1]}`, the latest", file=sys.stderr, flush=True
    )
    return Path(found[-1])


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("engine.json", "config.json"))


def _stdin() -> str:
    if sys.stdin.isatty():
        print("the prompt, then ctrl-d:", file=sys.stderr)
    return sys.stdin.read()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0; got {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1; got {text!r}")
    return value
