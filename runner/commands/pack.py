"""`runner pack`: a folder of recipes as an installable package, to be extended as `pack:NAME/RECIPE`."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

from runner.errors import UsageError


@dataclass(frozen=True)
class Options:
    folder: Path
    name: str | None
    version: str
    output: Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a folder of recipes")
    parser.add_argument("--name", help="the NAME of `pack:NAME/RECIPE`; default: the folder's name")
    parser.add_argument("--version", default="0.1.0", help="version of the package; default: 0.1.0")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("dist"), help="default: dist")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.folder, args.name, args.version, args.output)


def run(opts: Options) -> int:
    from runner.recipe import pack_wheel
    from runner.recipe.origins.packs import Pack, PackPlace

    folder = opts.folder
    if not folder.is_dir():
        raise UsageError(f"there is no folder `{folder}`", "name the folder that holds the recipes")
    name = opts.name or re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    if not pack_wheel.NAME.fullmatch(name):
        raise UsageError(f"a pack cannot be called `{name}`", "--name takes lower case letters, digits and `-`")
    if not pack_wheel.VERSION.fullmatch(opts.version):
        raise UsageError(f"`{opts.version}` is not a version", "write one such as 1.2.0 or 1.2.0rc1")
    contents = pack_wheel.collect(folder, name)
    if not contents.recipes:
        raise UsageError(f"the folder `{folder}` holds no recipe", "recipes are .yaml or .yml files")
    file, data = pack_wheel.build(contents, name, opts.version)
    path = opts.output / file
    try:
        opts.output.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        staged.write_bytes(data)
        staged.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "-o DIR names another folder") from None
    print(f"wrote {path}")
    for inner in contents.recipes:
        print(f"  extends: {PackPlace(Pack(name, folder, ''), inner).name}")
    for note in contents.notes:
        print(f"note: {note}")
    print(f"`pip install {path}` installs it")
    return 0
