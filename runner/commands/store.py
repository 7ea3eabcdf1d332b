"""`runner store`: list, verify, clean, push and pull the results of steps."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import options
from runner.errors import RunnerError, StoreError, UsageError

if TYPE_CHECKING:
    from runner.job.remote import Remote

_KEY_LENGTH = 12  # of keys on the screen
_NAMES = "keys, their beginnings, or jobs; default: every entry"


@dataclass(frozen=True)
class Options:
    """The options of all actions; those that an action does not take have their defaults. `names` are keys or jobs."""

    action: str
    jobs: Path
    json: bool
    names: tuple[str, ...] = ()
    keep_jobs: int = 0
    older_than: float = 0.0
    yes: bool = False
    remote: str | None = None
    replace: bool = False


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        options.add_jobs(made)
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    action("ls", "list the entries: key, kind, size, age, the jobs that use them")
    verify = action("verify", "hash every byte again, and move damaged entries aside")
    verify.add_argument("names", metavar="KEY", nargs="*", help=_NAMES)
    gc = action("gc", "remove what neither accepted nor recent jobs need; only shows it without --yes")
    gc.add_argument("--keep-jobs", metavar="N", type=_count, default=3, help="the last of each recipe; default: 3")
    gc.add_argument("--older-than", metavar="TIME", type=options.duration, default=30 * 86400.0, help="default: 30d")
    gc.add_argument("--yes", action="store_true", help="remove it")
    for name, text in (("push", "upload entries to a remote store"), ("pull", "fetch entries from a remote store")):
        made = action(name, text)
        made.add_argument("names", metavar="KEY", nargs="*", help=_NAMES)
        options.add_remote(made)
        if name == "push":
            made.add_argument(
                "--replace", action="store_true", help="also upload entries that exist there, and replace them"
            )


def read_options(args: argparse.Namespace) -> Options:
    jobs, given = options.jobs_folder(args), vars(args)
    if args.action == "gc":
        return Options("gc", jobs, args.json, keep_jobs=args.keep_jobs, older_than=args.older_than, yes=args.yes)
    remote = options.remote_url(args) if args.action in ("push", "pull") else None
    return Options(
        args.action, jobs, args.json, tuple(given.get("names", ())), remote=remote, replace=given.get("replace", False)
    )


def run(opts: Options) -> int:
    acts: dict[str, Callable[[Path, Options], int]] = {
        "ls": _ls, "verify": _verify, "gc": _gc, "push": _push, "pull": _pull,
    }  # fmt: skip
    return acts[opts.action](opts.jobs, opts)


def _ls(root: Path, opts: Options) -> int:
    from runner.job import retention
    from runner.progress import units
    from runner.report.console import console, show
    from runner.report.table import Cell, table

    found = retention.entries(root)
    if opts.json:
        print(json.dumps([asdict(entry) for entry in found], indent=2, ensure_ascii=False))
        return 0
    if not found:
        print(f"no entries in {root / 'store'}")
        return 0
    rows: list[list[Cell]] = [["key", "kind", "size", "made (UTC)", "used by"]]
    rows += [
        [
            entry.key[:_KEY_LENGTH], entry.kind or "damaged", units.size(entry.size),
            entry.finished.replace("T", " ").removesuffix("Z"), ", ".join(entry.jobs),
        ]
        for entry in found
    ]  # fmt: skip
    out = console()
    show(table(rows, out.width, "<<><<", indent=0, head=True), out)
    show([f"{_entries(len(found))}, {units.size(sum(e.size for e in found))}"], out)
    return 0


def _verify(root: Path, opts: Options) -> int:
    from runner.job.store import Store

    store = Store(root / "store")
    keys = _keys(root, opts.names, list(store.keys()))
    damaged = []
    for key in keys:
        damage, place = store.verify(key)
        if damage is not None:
            damaged.append({"key": key, "reason": damage.reason, "moved_to": str(place) if place else None})
    if opts.json:
        print(json.dumps({"entries": len(keys), "damaged": damaged}, indent=2, ensure_ascii=False))
    else:
        for entry in damaged:
            where = f"moved to {entry['moved_to']}" if entry["moved_to"] else "in use by another process, left there"
            print(f"{entry['key']}: {entry['reason']}; {where}")
        sound = len(keys) - len(damaged)
        print(f"{sound} of {len(keys)} entries have the bytes that were made")
    return StoreError.exit_code if damaged else 0


def _gc(root: Path, opts: Options) -> int:
    from runner.job import retention
    from runner.progress import units

    found = retention.garbage(root, opts.keep_jobs, opts.older_than)
    if opts.yes:
        retention.remove(root, found)
    if opts.json:
        document = {
            "removed": opts.yes, "jobs": list(found.jobs), "entries": [entry.key for entry in found.entries],
            "leftovers": [str(path) for path in found.leftovers], "bytes": found.freed,
        }  # fmt: skip
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return 0
    for id in found.jobs:
        print(f"job {id}")
    for entry in found.entries:
        print(f"entry {entry.key[:_KEY_LENGTH]} {entry.kind or 'damaged'} {units.size(entry.size)}")
    for path in found.leftovers:
        print(f"leftover {path.relative_to(root / 'store')}")
    if not (found.jobs or found.entries or found.leftovers):
        print("nothing to remove")
    elif opts.yes:
        print(f"removed, {units.size(found.freed)} freed")
    else:
        print(f"{units.size(found.freed)} would be freed; `--yes` removes it")
    return 0


def _push(root: Path, opts: Options) -> int:
    from runner.job.store import Store

    store, remote = Store(root / "store"), _remote(opts)

    def push(key: str) -> int:
        entry = store.entry(key)
        if entry is None:
            raise StoreError(f"the entry {key} is damaged, and was moved aside", "apply its recipe again")
        return remote.push(entry, replace=opts.replace)

    return _each(_keys(root, opts.names, list(store.keys())), push, "pushed", "to", opts)


def _pull(root: Path, opts: Options) -> int:
    from runner.job.store import Store

    store, remote = Store(root / "store"), _remote(opts)
    store.prepare()

    def pull(key: str) -> int:
        if store.has(key):
            return 0
        entry = remote.pull(key, store)
        if entry is None:
            raise StoreError(f"the entry {key} is not in {remote.url}", "push it from where it was made")
        return sum(fact.size for fact in entry.record.files)

    return _each(_keys(root, opts.names, remote.keys()), pull, "pulled", "from", opts)


def _each(keys: Sequence[str], act: Callable[[str], int], done: str, word: str, opts: Options) -> int:
    """Apply `act` to every key, also after one that is refused; print the result and return the exit code."""
    from runner.progress import units

    moved, refused = 0, []
    for key in keys:
        try:
            moved += act(key)
        except StoreError as error:
            refused.append(error)
    url = _remote(opts).url
    if opts.json:
        errors = [error.message for error in refused]
        print(json.dumps({"entries": len(keys), "bytes": moved, "errors": errors}, indent=2, ensure_ascii=False))
    else:
        for refusal in refused:
            print(refusal.render())
        sound = _entries(len(keys) - len(refused))
        print(f"{sound} {done} {word} {url}, {units.size(moved)} moved")
    return StoreError.exit_code if refused else 0


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _remote(opts: Options) -> Remote:
    from runner.job.remote import Remote

    if opts.remote is None:
        raise UsageError("no remote store is named", "write `--remote URL`, or set RUNNER_STORE_REMOTE")
    return Remote(opts.remote)


def _keys(root: Path, names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return the keys that `names` refer to: full keys, prefixes of keys, or jobs. UsageError for other names."""
    from runner.job import listing
    from runner.job.directory import read_json

    names = list(names)
    if not names:
        return list(known)
    found: list[str] = []
    for name in names:
        matching = [key for key in known if key.startswith(name)]
        if not matching:
            try:
                job = listing.find(root, name)
            except RunnerError:
                raise UsageError(
                    f"`{name}` is neither the beginning of a key nor a job", "`runner store ls` shows the keys"
                ) from None
            matching = [key for key in listing.step_keys(read_json(root / job / "plan.json")) if key in known]
        found += matching
    return list(dict.fromkeys(found))


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}")
    return int(text)
