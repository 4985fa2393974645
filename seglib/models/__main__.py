"""Which architecture goes with which encoder: `python -m seglib.models --list [--works-with DeepLabV3Plus]`.

The runner of grids, which never imports torch, asks here in a child process (`--check`) about pairs that
compatibility.json, made by `--write-table`, does not cover.
"""

import argparse
import json
import sys
import warnings

import segmentation_models_pytorch as smp
import torch

from seglib.errors import InputError, unknown_name
from seglib.files import write_text
from seglib.models.architectures import ARCHITECTURES, OWN_ENCODERS
from seglib.models.build import build_model
from seglib.models.trial import find_refusal
from seglib.runs.preflight import TABLE, installed_versions


def make_table() -> dict:
    """Try every pair of known names: versions, names, smallest sizes, refusals and parameter counts (millions)."""
    encoders = smp.encoders.get_encoder_names()
    table = {"versions": installed_versions(), "architectures": list(ARCHITECTURES), "encoders": encoders}
    table |= {"own_encoders": {name: list(own) for name, own in OWN_ENCODERS.items()}}
    table |= {"smallest_size": {}, "needs_batch_of_two": [], "refused": {}, "parameters": {}}
    for architecture in ARCHITECTURES:
        candidates = OWN_ENCODERS.get(architecture, encoders)
        reasons = {encoder: find_refusal(architecture, encoder, 128, 2) for encoder in candidates}
        works = [encoder for encoder in candidates if not reasons[encoder]]
        table["refused"][architecture] = {encoder: reason for encoder, reason in reasons.items() if reason}
        table["parameters"][architecture] = {encoder: _count_millions(architecture, encoder) for encoder in works}
        if works:
            table["smallest_size"][architecture] = _find_smallest_size(architecture, works[0])
        if works and find_refusal(architecture, works[0], 128, 1):
            table["needs_batch_of_two"].append(architecture)
        print(f"{architecture}: {len(works)} of {len(candidates)} encoders", file=sys.stderr)
    return table


def _find_smallest_size(architecture: str, encoder: str) -> int:
    return next(size for size in (32, 64, 96, 128) if not find_refusal(architecture, encoder, size, 2))


def _count_millions(architecture: str, encoder: str) -> float:
    with torch.device("cpu" if encoder.startswith("mit_") else "meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build_model(architecture, encoder, 12)
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)


def list_models(works_with: str = "") -> None:
    """Print each pair that works with its parameter count at 12 classes; `-` stands for no encoder."""
    table = json.loads(TABLE.read_text())
    own = {encoder for names in table["own_encoders"].values() for encoder in names}
    names = [*table["architectures"], *table["encoders"], *sorted(own - {"", *table["encoders"]})]
    if works_with and works_with not in names:
        raise InputError(unknown_name("architecture or encoder", works_with, names))
    if works_with in table["parameters"] and not table["parameters"][works_with]:
        print(f"{works_with} takes encoders of timm only (tu- names): each is tried when a grid names it")
    for architecture, counts in table["parameters"].items():
        for encoder, millions in sorted(counts.items(), key=lambda item: item[1]):
            if works_with in ("", architecture, encoder):
                print(f"{architecture:<22}{encoder or '-':<28}{millions:>9.2f} M")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m seglib.models", description=__doc__.split("\n")[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="pairs that work, with parameter counts")
    action.add_argument(
        "--check", action="store_true", help="read a JSON list of models, write why each cannot be built"
    )
    action.add_argument("--write-table", action="store_true", help="make compatibility.json anew (minutes)")
    parser.add_argument("--works-with", metavar="NAME", default="", help="with --list: one architecture or encoder")
    arguments = parser.parse_args()
    if arguments.check:
        print(json.dumps([find_refusal(**model) for model in json.load(sys.stdin)]))
    elif arguments.write_table:
        write_text(TABLE, json.dumps(make_table(), indent=1) + "\n")
    else:
        print("python -m seglib.models --list is now: python -m seglib list models", file=sys.stderr)
        try:
            list_models(arguments.works_with)
        except InputError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
