"""Whether models can be built, asked in a child process and remembered."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from seglib.errors import InputError, unknown_name
from seglib.files import PROJECT, cache_dir, hash_file, hash_text, write_json

# Asks a child process what only heavy imports can tell, so that the runner of grids stays light; answers are kept.


def ask_child(module: str, questions: Sequence[dict], state: object) -> list[str]:
    """Give the questions to `python -m MODULE --check`, as a JSON list, and return its answers, a text for each.

    Parameters
    ----------
    state : JSON values that the answers depend on (versions, hashes of code); another state is asked anew.

    Raises
    ------
    InputError
        The child did not answer.
    """
    path = cache_dir() / f"{module}.json"
    remembered = _read_remembered(path)
    keys = [hash_text(json.dumps([question, state], sort_keys=True)) for question in questions]
    new = {key: question for key, question in zip(keys, questions, strict=True) if key not in remembered}
    if new:
        remembered |= dict(zip(new, _run_child(module, [*new.values()]), strict=True))
        write_json(path, remembered)
    return [remembered[key] for key in keys]


def _run_child(module: str, questions: Sequence[dict]) -> list[str]:
    command = [sys.executable, "-m", module, "--check"]
    child = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, cwd=PROJECT)
    if child.returncode:
        last = (child.stderr.strip() or f"exit code {child.returncode}").splitlines()[-1]
        raise InputError(f"the check by `python -m {module} --check` could not run: {last}")
    return json.loads(child.stdout.splitlines()[-1])


def _read_remembered(path: Path) -> dict[str, str]:
    try:
        remembered = json.loads(path.read_text())
    except (OSError, ValueError):  # absent or damaged: everything is asked again
        return {}
    sound = isinstance(remembered, dict) and all(isinstance(answer, str) for answer in remembered.values())
    return remembered if sound else {}


# Whether models can be built, known before a grid starts and without importing torch.


TABLE = PROJECT / "seglib" / "models" / "compatibility.json"


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that decide whether a model can be built."""
    return {name: importlib.metadata.version(name) for name in ("segmentation-models-pytorch", "timm")}


def refuse_encoder(architecture: str, encoder: str, own_encoders: Sequence[str] | None) -> str:
    """Say why an architecture does not take an encoder, "" where nothing speaks against it yet.

    Parameters
    ----------
    own_encoders : the only ones that it takes, ("",) if it has none to choose; None: any of smp's and timm's.
    """
    if own_encoders is None:
        return "" if encoder else f'{architecture} needs an encoder, got ""; write one, such as encoder: resnet34'
    plain = encoder.partition(".")[0] if encoder.startswith("tu-") else encoder  # `.tag` names the weights
    if plain in own_encoders:
        return ""
    if list(own_encoders) == [""]:
        return f'{architecture} has no encoder to choose, got {encoder!r}; write encoder: ""'
    *others, last = map(repr, own_encoders)
    return f"{architecture} takes encoder {', '.join(others)}{' or ' if others else ''}{last}, got {encoder!r}"


def refuse_weights(architecture: str, encoder: str, encoder_weights: str) -> str:
    """Say why there is nothing to load weights into, "" where there is."""
    if encoder or not encoder_weights:
        return ""
    return f'{architecture} has no encoder to load into, got {encoder_weights!r}; write encoder_weights: ""'


def find_model_refusals(models: Sequence[dict]) -> list[str]:
    """Say for each model why it cannot be built, "" where it can.

    A model is a dict of architecture, encoder, image_size [px] and batch_size. What compatibility.json knows is looked
    up there; the rest (timm's encoders, other library versions, one image of 32 px) is built in a child process and
    remembered.
    """
    answers = [_look_up(**model) for model in models]
    unknown = [model for model, answer in zip(models, answers, strict=True) if answer is None]
    built = iter(_ask_child(unknown) if unknown else [])
    return [next(built) if answer is None else answer for answer in answers]


def _look_up(architecture: str, encoder: str, image_size: int, batch_size: int) -> str | None:
    table = _load_table()
    one_pixel = image_size == 32 and batch_size == 1  # fails in nearly all encoders' batch norms
    if not table or one_pixel:
        return None
    if architecture not in table["architectures"]:
        return unknown_name("architecture", architecture, table["architectures"], limit=30)
    own_encoders = table["own_encoders"].get(architecture)
    refusal = refuse_encoder(architecture, encoder, own_encoders)
    if refusal:
        return refusal
    if encoder in table["refused"][architecture]:
        fits = ", ".join(name for name in table["architectures"] if encoder in table["parameters"][name])
        return f"{table['refused'][architecture][encoder]}; architectures that take it: {fits}"
    if encoder not in table["parameters"][architecture]:
        if encoder.startswith(("tu-", "timm-")):
            return None
        return unknown_name("encoder", encoder, table["encoders"])
    smallest = table["smallest_size"][architecture]
    if image_size < smallest:
        return f"{architecture} needs an image_size of at least {smallest}, got {image_size}"
    if batch_size == 1:
        pools = f"{architecture} pools to one pixel in front of a batch norm: batch_size must be at least 2, got 1"
        if architecture in table["needs_batch_of_two"]:
            return pools
        return "" if own_encoders else None  # some of smp's encoders pool too
    return ""


def _ask_child(models: Sequence[dict]) -> list[str]:
    zoo = PROJECT / "seglib" / "zoo"
    code = [hash_file(path) for path in [*sorted(TABLE.parent.glob("*.py")), *sorted(zoo.glob("*.py"))]]
    return ask_child("seglib.models", models, [installed_versions(), code])


@cache
def shipped_architectures() -> tuple[str, ...]:
    """Names of the architectures that come with seglib."""
    return tuple(json.loads(TABLE.read_text())["architectures"])


@cache
def _load_table() -> dict:
    """The shipped table; empty if it was made with other versions than those installed."""
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    return table if table.get("versions") == installed_versions() else {}
