"""Everything that is no notebook and no grid: `python -m seglib list | submission | convert | soup`; `--help` after each says more."""

import argparse
import inspect
import sys
from collections.abc import Mapping

from seglib.errors import InputError, print_anything, unknown_name
from seglib.parts import find_parts, list_names

_KINDS = ("model", "loss", "augmentation", "mixing", "optimizer", "scheduler", "split", "metric", "callback")


def main(arguments: list[str] | None = None) -> int:
    """Dispatch a command; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m seglib", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="names that a grid may use", allow_abbrev=False)
    listing.add_argument("kind", choices=(*_KINDS, "models"))
    listing.add_argument("--parts", nargs="+", default=[], metavar="FILE", help="files with parts of your own")
    listing.add_argument("--works-with", metavar="NAME", default="", help="with model: one architecture or encoder")
    commands.add_parser("submission", help="check, send, score and list submissions", add_help=False)
    commands.add_parser("convert", help="masks or another format as a COCO file, either as masks", add_help=False)
    commands.add_parser("soup", help="average the weights of finished runs", add_help=False)
    passes_on = arguments[:1] in (["submission"], ["convert"], ["soup"])
    options, rest = parser.parse_known_args(arguments[:1] if passes_on else arguments)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.command == "list":
        return _list(options.kind.replace("models", "model"), options.parts, options.works_with)
    if options.command == "submission":
        from seglib.ledger import main as run
    elif options.command == "convert":
        from seglib.data.convert import main as run
    else:
        from seglib.zoo.soup import main as run
    return run(arguments[1:]) or 0


def _list(kind: str, parts: list[str], works_with: str) -> int:
    try:
        if works_with and kind != "model":
            raise InputError(f"--works-with is for `list model`, got `list {kind}`; leave it out")
        if works_with:
            _list_pairs(works_with)
        else:
            for name, line in _describe(kind, parts).items():
                print(f"{name:<22}{line}".rstrip())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _describe(kind: str, parts: list[str]) -> Mapping[str, str]:
    """Name -> first line of what the part says of itself, "" where names alone are known."""
    lines = {}
    if kind == "model":
        from seglib.models import ARCHITECTURES, OWN_ENCODERS

        takes = {name: ", ".join(each or "none" for each in encoders) for name, encoders in OWN_ENCODERS.items()}
        lines = {name: f"encoder: {takes.get(name, 'of smp and timm')}" for name in ARCHITECTURES}
    elif kind == "optimizer":
        from timm.optim import get_optimizer_info

        from seglib.training.optim import list_optimizers

        lines = {name: get_optimizer_info(name).description for name in list_optimizers()}
    elif kind == "augmentation":
        from seglib.data.augment import PRESETS

        lines = {name: (inspect.getdoc(builder) or "").partition("\n")[0] for name, builder in PRESETS.items()}
    elif kind == "split":
        lines = dict.fromkeys(list_names("split"), "")
    return lines | {name: part.summary for name, part in find_parts(kind, parts).items()}


def _list_pairs(name: str) -> None:
    """Print each pair with an architecture or encoder that works, by its number of parameters at 12 classes."""
    import segmentation_models_pytorch as smp

    from seglib.models import ARCHITECTURES, OWN_ENCODERS
    from seglib.runs.check import ask_builders

    encoders = smp.encoders.get_encoder_names()
    own = {encoder for names in OWN_ENCODERS.values() for encoder in names}
    if name not in (*ARCHITECTURES, *encoders, *own) and not name.startswith("tu-"):
        raise InputError(unknown_name("architecture or encoder", name, [*ARCHITECTURES, *encoders, *sorted(own)]))
    if name in ARCHITECTURES:
        pairs = [(name, encoder) for encoder in OWN_ENCODERS.get(name, encoders)]
    else:
        pairs = [(each, name) for each in ARCHITECTURES if name in OWN_ENCODERS.get(each, (name,))]
    print(f"trying {len(pairs)} pairs, a second each where they are not remembered", file=sys.stderr)
    asked = [{"about": "size", "architecture": each, "encoder": encoder, "parts": []} for each, encoder in pairs]
    found = zip(ask_builders(asked), pairs, strict=True)
    for millions, (architecture, encoder) in sorted(found, key=lambda each: float(each[0] or 0)):
        if millions:
            print(f"{architecture:<22}{encoder or '-':<28}{millions:>9} M")
    if name == "DPT":
        print("DPT takes encoders of timm only (tu- names): each is tried when a grid names it")


if __name__ == "__main__":
    sys.exit(main())
