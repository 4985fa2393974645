"""Everything that is no notebook and no grid: `python -m seglib list | submission | soup`; `--help` after each says more."""

import argparse
import inspect
import sys
from collections.abc import Mapping

from seglib.errors import InputError

_KINDS = ("models", "loss", "augmentation", "mixing", "optimizer", "scheduler", "split")


def main(arguments: list[str] | None = None) -> int:
    """Dispatch a command; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m seglib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="names that a grid may use")
    listing.add_argument("kind", choices=_KINDS)
    listing.add_argument("--works-with", metavar="NAME", default="", help="with models: one architecture or encoder")
    commands.add_parser("submission", help="check, send, score and list submissions", add_help=False)
    commands.add_parser("soup", help="average the weights of finished runs", add_help=False)
    options, rest = parser.parse_known_args(arguments[:1] if arguments[:1] in (["submission"], ["soup"]) else arguments)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.command == "list":
        return _list(options.kind, options.works_with)
    if options.command == "submission":
        from seglib.ledger import main as run
    else:
        from seglib.zoo.soup import main as run
    return run(arguments[1:]) or 0


def _list(kind: str, works_with: str) -> int:
    try:
        if kind == "models":
            from seglib.models.__main__ import list_models

            list_models(works_with)
        elif works_with:
            raise InputError(f"--works-with is for `list models`, got `list {kind}`; leave it out")
        else:
            for name, line in _describe(kind).items():
                print(f"{name:<20}{line}".rstrip())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _describe(kind: str) -> Mapping[str, str]:
    """Name -> first line of what the builder says of itself, "" where names alone are known."""
    from typing import get_args

    from seglib import vocabulary

    if kind == "loss":
        from seglib.training.losses import LOSSES as builders
    elif kind == "mixing":
        from seglib.data.loader import SAMPLE_MIXES
        from seglib.training.mixing import BATCH_MIXES

        builders = BATCH_MIXES | SAMPLE_MIXES
    elif kind == "scheduler":
        from seglib.training.optim import SCHEDULES as builders
    elif kind == "augmentation":
        from seglib.data.augment import PRESETS as builders
    elif kind == "optimizer":
        from timm.optim import get_optimizer_info

        names = get_args(vocabulary.OptimizerName)
        return {name: get_optimizer_info(name).description for name in names}
    else:
        return dict.fromkeys(get_args(vocabulary.SplitName), "")
    return {name: (inspect.getdoc(builder) or "").split("\n")[0] for name, builder in builders.items()}


if __name__ == "__main__":
    sys.exit(main())
