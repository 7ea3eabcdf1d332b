"""`runner schema`: the JSON Schema for completion and validation of recipes in editors."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    kind: str | None


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", nargs="?", help="only the parameters of this kind of step")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.kind)


def run(opts: Options) -> int:
    from runner.recipe.schema import editor, load

    document = editor.bundled() if opts.kind is None else load.kind_schema(opts.kind)
    print(json.dumps(document, indent=2, ensure_ascii=False))
    return 0
