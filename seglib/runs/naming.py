"""Names of run folders: what varies, safe as a file name, unique."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from seglib.files import hash_text

_SHORT = {"cross_entropy": "ce"}
_LONGEST = 120  # characters; file systems allow 255 bytes, and folders get suffixes


def name_runs(varied: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each run by what varies: `loss=ce0.9+focal0.1,seed=21`; a run in which nothing varies is `run`."""
    names = [
        _safe(",".join(f"{name}={shorten(value)}" for name, value in values.items()) or "run") for values in varied
    ]
    counts = Counter(name.casefold() for name in names)  # some file systems take upper and lower case for the same
    return [
        name if counts[name.casefold()] == 1 else _mark(name, values)
        for name, values in zip(names, varied, strict=True)
    ]


def shorten(value: object) -> str:
    """A parameter's value in few characters: `{cross_entropy: 0.9, focal: 0.1}` is `ce0.9+focal0.1`."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        if "data_dir" in value:
            return _shorten_set(value)
        if len(value) == 1 and next(iter(value.values())) in (1, {}):
            return shorten(next(iter(value)))
        return "+".join(f"{shorten(name)}{_shorten_item(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return "-".join(map(shorten, value)) or "none"
    return _SHORT.get(str(value), str(value).rstrip("/").rsplit("/", 1)[-1]) or "none"


def _shorten_item(value: object) -> str:
    """What a name in a mapping stands for; options follow their name: `focal@weight0.1@gamma3`."""
    if isinstance(value, dict):
        return "".join(f"@{name}{shorten(item)}" for name, item in value.items())
    return shorten(value)


def _shorten_set(value: dict) -> str:
    """An extra data set by its folder and file, `taco.annotations@weight0.5`; a class map, which is long, by its hash."""
    options = {name: item for name, item in value.items() if name not in ("data_dir", "json")}
    if options.get("classes"):
        options["classes"] = hash_text(json.dumps(options["classes"], sort_keys=True, default=str))[:4]
    file = str(value.get("json", "")).removesuffix(".json")
    return f"{shorten(value['data_dir'])}.{file}{_shorten_item(options)}"


def _safe(name: str) -> str:
    safe = re.sub(r"[^\w.+=,@-]+", "_", name)
    return safe if len(safe.encode()) <= _LONGEST else _mark(safe.encode()[:_LONGEST].decode(errors="ignore"), name)


def _mark(name: str, values: object) -> str:
    return f"{name}~{hash_text(json.dumps(values, sort_keys=True, default=str))[:6]}"
