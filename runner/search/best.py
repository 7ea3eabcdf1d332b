"""The best trial of a search as a plain recipe: its job's recipe and lock, without the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import RunnerError, StoreError, UsageError
from runner.job import files
from runner.plan import lock_file
from runner.recipe import load
from runner.recipe.search_types import describe
from runner.recipe.syntax import nodes, yaml_text
from runner.search import front
from runner.search.archive import DONE, Archive
from runner.search.trial import MET, Trial

_FILLED_IN = ("params", "matrix")  # of a job's own recipe: their values are in its steps already


def chosen(archive: Archive, number: int | None) -> Trial:
    """Return the trial of a number, or the best. UsageError where there is none, or it made no job."""
    if number is None:
        best = front.winner(archive.search, archive.trials)
        if best is None:
            raise UsageError(
                f"no trial of `{archive.id}` kept every limit",
                f"`runner search show {archive.id}` shows what each missed; `--trial N` takes one all the same",
            )
        return best
    found = next((trial for trial in archive.trials if trial.number == number), None)
    if found is None:
        last = len(archive.trials)
        raise UsageError(f"`{archive.id}` has no trial {number}", f"its trials are 1 to {last}" if last else None)
    if found.job is None:
        raise UsageError(f"trial {number} of `{archive.id}` has no job: {found.reason}", "choose another")
    return found


def write(root: Path, archive: Archive, trial: Trial, path: Path) -> list[Path]:
    """Write the recipe of a trial at `path` and its lock next to it, each with the choice in its head; return both.

    The recipe says what the recipe of the search and the trial say, where the job was made of that file as it is now;
    else all values of the job's own recipe, defaults too. Applied, either gives the same job.
    """
    folder = root / str(trial.job)
    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        lock = (folder / lock_file.SHARED).read_text(encoding="utf-8")
    except OSError as error:
        message = f"the job {trial.job} of trial {trial.number} is not complete: {error.filename} cannot be read"
        raise UsageError(message, f"`runner apply {archive.file}` makes it again") from None
    document = nodes.plain(yaml_text.parse(text, str(folder / "recipe.yaml")))
    job = {key: value for key, value in document.items() if key not in _FILLED_IN}
    plain = _written(archive, trial, job) or job
    head = _head(archive, trial)
    locked = lock_file.lock_path(str(path))
    body = lock.partition("\n")[2]  # without the line that names the job's recipe
    try:
        files.write_atomic(path, head + yaml_text.dump(plain))
        files.write_atomic(locked, lock_file.HEAD.format(recipe=path.name) + head + body)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", "name another file") from error
    return [path, locked]


def _written(archive: Archive, trial: Trial, job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what the file of a search and the values of a trial say; None where that is another job, or no recipe."""
    try:
        written = load.trials(archive.file, archive.sets)(trial.values).written
        again = load.loads(yaml_text.dump(written), archive.file).document
    except (RunnerError, OSError):
        return None
    same = {key: value for key, value in again.items() if key not in _FILLED_IN}
    return written if files.canonical(same) == files.canonical(job) else None


def _head(archive: Archive, trial: Trial) -> str:
    """Return the choice as comments: which trial of which search it is, its values, what it missed."""
    done = "" if archive.status == DONE else ", which is not finished"
    rank = "the best" if trial == front.winner(archive.search, archive.trials) else "a trial"
    lines = [
        f"Trial {trial.number}, {rank} of {len(archive.trials)} of the search {archive.id}{done}; job {trial.job}.",
        f"Chosen: {describe(trial.values)}.",
    ]
    if trial.state != MET:
        lines.append(f"It missed a limit: {trial.reason}.")
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)
