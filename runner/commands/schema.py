"""`runner schema`: the JSON Schema with which an editor completes and checks recipes."""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", nargs="?", help="only the parameters of this kind of step")


def run(args: argparse.Namespace) -> int:
    from runner.recipe.schema import editor, load

    document = editor.bundled() if args.kind is None else load.kind_schema(args.kind)
    print(json.dumps(document, indent=2, ensure_ascii=False))
    return 0
