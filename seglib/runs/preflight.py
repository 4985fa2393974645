"""Whether models can be built, known before a grid starts and without importing torch."""

import importlib.metadata
import json
from collections.abc import Sequence
from functools import cache

from seglib.errors import unknown_name
from seglib.files import PROJECT, hash_file
from seglib.runs.child_check import ask_child

TABLE = PROJECT / "seglib" / "models" / "compatibility.json"


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that decide whether a model can be built."""
    return {name: importlib.metadata.version(name) for name in ("segmentation-models-pytorch", "timm")}


def find_model_refusals(models: Sequence[dict]) -> list[str]:
    """Say for each model why it cannot be built, "" where it can.

    A model is a dict of architecture, encoder, image_size [px] and batch_size. smp's own names are looked up in
    compatibility.json; the rest (`tu-` names, other library versions, one image of 32 px) is built in a child process
    and remembered.
    """
    answers = [_look_up(model) for model in models]
    unknown = [model for model, answer in zip(models, answers, strict=True) if answer is None]
    built = iter(_ask_child(unknown) if unknown else [])
    return [next(built) if answer is None else answer for answer in answers]


def _look_up(model: dict) -> str | None:
    table = _load_table()
    architecture, encoder = model["architecture"], model["encoder"]
    one_pixel = model["image_size"] == 32 and model["batch_size"] == 1  # fails in nearly all encoders' batch norms
    if not table or one_pixel or encoder.startswith(("tu-", "timm-")):
        return None
    if architecture not in table["architectures"]:
        return unknown_name("architecture", architecture, table["architectures"])
    if encoder not in table["encoders"]:
        return unknown_name("encoder", encoder, table["encoders"])
    if encoder in table["refused"][architecture]:
        fits = [name for name in table["architectures"] if encoder not in table["refused"][name]]
        return f"{table['refused'][architecture][encoder]}; architectures that take it: {', '.join(fits)}"
    if model["image_size"] < table["smallest_size"][architecture]:
        smallest = table["smallest_size"][architecture]
        return f"{architecture} needs an image_size of at least {smallest}, got {model['image_size']}"
    if model["batch_size"] == 1 and architecture in table["needs_batch_of_two"]:
        return f"{architecture} pools to one pixel in front of a batch norm: batch_size must be at least 2, got 1"
    return ""


def _ask_child(models: Sequence[dict]) -> list[str]:
    code = [hash_file(path) for path in sorted(TABLE.parent.glob("*.py"))]
    return ask_child("seglib.models", models, [installed_versions(), code])


@cache
def _load_table() -> dict:
    """The shipped table; empty if it was made with other versions than those installed."""
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    return table if table.get("versions") == installed_versions() else {}
