"""Reads YAML as a person means it, refuses what PyYAML takes in silence; each mistake is one line with its place."""

import itertools
import math
import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from seglib.errors import InputError

_LARGEST = 300_000  # characters of a grid file, and values in it once its aliases are followed


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML takes in silence: a name that stands twice (the last wins) or is no text (`no` is false)."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = "<<" if key_node.tag.endswith(":merge") else self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                what = f"the name {reprlib.repr(key)}, which is no text; quote it"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and _count_values(node, {}) > _LARGEST:
            raise yaml.composer.ComposerError(None, None, "more values than a grid can have", node.start_mark)
        return node


# YAML 1.1, as PyYAML reads it, takes `1e-3` for a text; a person means a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), [*"-+.0123456789"]
)


def _count_values(node: yaml.Node, counts: dict[int, float]) -> float:
    """Values below a node, those behind an alias each time that it is used; infinite where an alias contains itself."""
    if id(node) not in counts:
        counts[id(node)] = math.inf  # until it is known
        parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        below = [] if isinstance(node, yaml.ScalarNode) else [_count_values(part, counts) for part in parts]
        counts[id(node)] = 1 + sum(below)
    return counts[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """Load YAML safely; a mistake becomes one line with its place."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{where}{place}: required YAML, got: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise InputError(f"{where}: required YAML, got nesting without end") from error
    except ValueError as error:  # a date such as 2026-13-45, a whole number of 5,000 digits
        raise InputError(f"{where}: required YAML, got: {error}") from error


def read_text(path: Path) -> str:
    """The text of a grid file."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such grid file") from error
    except OSError as error:
        raise InputError(f"{path}: required a file that can be read, got: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: required a text file (UTF-8), got something else") from error
    if len(text) > _LARGEST:
        raise InputError(f"{path}: required a grid file of at most {_LARGEST:,} characters, got more")
    return text
