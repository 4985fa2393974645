"""The grid file: strict YAML, the names of runs."""

import itertools
import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seglib.errors import InputError, InputErrors, unknown_name
from seglib.files import expand, hash_text, read_file
from seglib.runs.slots import find_per_gpu_problems
from seglib.text import shorten

_LARGEST = 300_000  # characters of a grid file, and values in it once its aliases are followed


_SURPRISING = re.compile(r"[-+]?(0[\d_]+|\d+(:[0-5]?\d)+(\.\d*)?)")


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML takes in silence: a name that stands twice (the last wins) or is no text (`no` is false).

    `010` and `1:30` are texts: YAML 1.1 would make 8 and 90 of them.
    """

    def resolve(self, kind, value, implicit):
        if kind is yaml.ScalarNode and implicit[0] and _SURPRISING.fullmatch(value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)

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
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # `2026-13-45`, 5,000 digits, `!!bool abc`
        raise InputError(f"{where}: required YAML, got: {error}") from error


def parse_settings(texts: list[str]) -> dict[str, object]:
    """Read NAME=VALUE; values are YAML, so that lists and mappings can be given too."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise InputError(f"--set: required NAME=VALUE, got {text!r}")
        if name in settings:
            raise InputError(f"--set {name}: required once, got twice; for several values write --set {name}=[A,B]")
        parsed = parse_yaml(value, f"--set {name}")
        if parsed == []:
            raise InputError(f"--set {name}: required a value, or a list of at least one, got an empty list")
        settings[name] = "" if parsed is None else parsed
    return settings


def read_text(path: Path) -> str:
    """The text of a grid file."""
    try:
        content = read_file(path, 4 * _LARGEST)
        text = content.decode()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such grid file") from error
    except OSError as error:
        raise InputError(f"{path}: required a file that can be read, got: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: required a text file (UTF-8), got something else") from error
    if len(text) > _LARGEST or len(content) == 4 * _LARGEST:
        raise InputError(f"{path}: required a grid file of at most {_LARGEST:,} characters, got more")
    return text


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


def _safe(name: str) -> str:
    safe = re.sub(r"[^\w.+=,@-]+", "_", name)
    return safe if len(safe.encode()) <= _LONGEST else _mark(safe.encode()[:_LONGEST].decode(errors="ignore"), name)


def _mark(name: str, values: object) -> str:
    return f"{name}~{hash_text(json.dumps(values, sort_keys=True, default=str))[:6]}"


GRID_DIR = "{grid_dir}"


@dataclass(frozen=True)
class Step:
    """A notebook that follows the runs: once for `each` run (as `run_dir`), or once for the grid (as `grid_dir`).

    The grid's own notebook is a further run, with what the grid fixes. `{grid_dir}` in a text of `fixed` is the grid's
    folder, in which the steps before have written.
    """

    notebook: str
    each: bool = False
    fixed: dict[str, Any] = field(default_factory=dict)

    def uses_grid_dir(self, *names: str) -> bool:
        """Whether one of the named parameters (default: any) names the grid's folder."""
        return any(
            GRID_DIR in json.dumps(self.fixed[name], default=str) for name in names or self.fixed if name in self.fixed
        )


@dataclass(frozen=True)
class GridFile:
    """A grid file as written; `axes` are the values to combine, `listed` the runs named one by one.

    `max_seeds` is that of `seeds: auto`, 0 where the seeds are given; `timeout_hours` of a run, `stall_minutes` that it
    may be without a sign of life, 0 for none; `gpus_per_run`: devices, each with a process, that train one model together.
    """

    path: Path
    name: str
    notebook: str
    fixed: dict[str, Any]
    axes: dict[str, list]
    listed: list[dict[str, Any]]
    baseline: dict[str, Any]
    then: list[Step]
    worthwhile: float = 0.005
    one_factor: bool = False
    factors: list[list[str]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    max_seeds: int = 0
    timeout_hours: float = 0.0
    stall_minutes: float = 0.0
    gpus_per_run: int = 1
    stop: dict[str, Any] = field(default_factory=dict)  # see halving.py
    per_gpu: int = 1
    deadline: Any = ""  # see order.py
    search: dict[str, Any] = field(default_factory=dict)  # see search_space.py
    trials: int = 0

    def as_yaml(self) -> str:
        """The grid in the form of a grid file."""
        then = [vars(step) for step in self.then]
        spec = {"name": self.name, "notebook": self.notebook, "fixed": self.fixed, "grid": self.axes}
        spec |= {"runs": self.listed, "baseline": self.baseline, "then": then}
        spec |= {"worthwhile": self.worthwhile} if self.worthwhile != _WORTHWHILE else {}
        spec |= {"one_factor": self.one_factor, "factors": self.factors}
        spec |= {"seeds": "auto", "max_seeds": self.max_seeds} if self.max_seeds else {}
        spec |= {"timeout_hours": self.timeout_hours, "stall_minutes": self.stall_minutes, "stop": self.stop}
        spec |= {"gpus_per_run": self.gpus_per_run} if self.gpus_per_run > 1 else {}
        spec |= {"per_gpu": self.per_gpu} if self.per_gpu != 1 else {}
        spec |= {"deadline": self.deadline}
        spec |= {"search": self.search, "trials": self.trials, "seeds": self.seeds} if self.search else {}
        filled = {key: value for key, value in spec.items() if value}
        return yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)


_EMPTY = {"parts": [], "fixed": {}, "grid": {}, "runs": [], "seeds": [], "baseline": {}, "factors": [], "then": []}
_WORTHWHILE = 0.005  # smallest difference of mIoU worth having
_KEYS = (
    "notebook", "name", "worthwhile", "one_factor", "max_seeds", "timeout_hours", "stall_minutes", "gpus_per_run",
    "per_gpu", *_EMPTY, "stop", "deadline", "search",
    "trials",
)  # fmt: skip
_MAX_SEEDS, _TRIALS = 5, 30  # of `seeds: auto`, of `search`
_STEP_KEYS = ("notebook", "each", "fixed")
_OWN_FILES = (".csv", ".html", ".ipynb", ".json", ".log", ".lock", ".npz", ".part", ".pt", ".yaml")
_NAME = re.compile(r"[\w][\w.+,=@() -]{0,79}(?<! )")


def read_grid_file(path: str | Path) -> GridFile:
    """Read and check the form of a grid file.

    Raises
    ------
    InputErrors
        One line for each mistake.
    """
    path = Path(path)
    spec = parse_yaml(read_text(path), str(path))
    if not isinstance(spec, dict):
        raise InputError(f"{path}: required a mapping with `notebook`, got {_kind(spec)}")
    spec = _EMPTY | {key: value for key, value in spec.items() if value is not None}
    problems = _find_problems(spec)
    if problems:
        raise InputErrors(f"{path}: {problem}" for problem in problems)
    return GridFile(
        path=path,
        name=spec.get("name", path.stem),
        notebook=spec["notebook"],
        fixed=spec["fixed"] | ({"parts": _find_files(path, spec["parts"])} if spec["parts"] else {}),
        axes=spec["grid"],
        listed=spec["runs"],
        baseline=spec["baseline"],
        worthwhile=float(spec.get("worthwhile", _WORTHWHILE)),
        one_factor=spec.get("one_factor", False),
        factors=spec["factors"],
        seeds=[] if spec["seeds"] == "auto" else spec["seeds"],
        max_seeds=spec.get("max_seeds", _MAX_SEEDS) if spec["seeds"] == "auto" else 0,
        timeout_hours=float(spec.get("timeout_hours", 0)),
        stall_minutes=float(spec.get("stall_minutes", 0)),
        gpus_per_run=spec.get("gpus_per_run", 1),
        stop=spec.get("stop", {}),
        per_gpu=spec.get("per_gpu", 1),
        deadline=spec.get("deadline", ""),
        search=spec.get("search", {}),
        trials=spec.get("trials", _TRIALS if spec.get("search") else 0),
        then=[Step(**{**step, "fixed": step.get("fixed") or {}}) for step in spec["then"]],
    )


def _find_files(path: Path, names: list[str]) -> list[str]:
    """Absolute paths of the files of parts, seen from the grid file's folder, else from the current one."""
    folders = [path.resolve().parent, Path.cwd()]
    found = {
        name: next((file for folder in folders if (file := folder / expand(name)).is_file()), None) for name in names
    }
    where = f"neither in {folders[0]} nor in {folders[1]}"
    missing = [f"{path}: `parts`: there is no file {name!r}, {where}" for name, file in found.items() if not file]
    if missing:
        raise InputErrors(missing)
    return [str(file.resolve()) for file in found.values()]


def _find_problems(spec: Mapping) -> list[str]:
    hint = "; parameters belong in `fixed`, `grid` or `runs`"
    problems = [unknown_name("key", key, _KEYS) + hint for key in spec if key not in _KEYS]
    if not isinstance(spec.get("notebook"), str):
        problems.append(f"`notebook` must be the path of a notebook, got {_kind(spec.get('notebook'))}")
    name = spec.get("name", "grid")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.append(f"`name` must be a folder name (letters, digits, . _ + -; at most 80), got {_kind(name)}")
    worthwhile = spec.get("worthwhile", _WORTHWHILE)
    if not isinstance(worthwhile, int | float) or isinstance(worthwhile, bool) or not 0 <= worthwhile < 1:
        problems.append(f"`worthwhile` must be a difference of mIoU from 0 to below 1, got {_kind(worthwhile)}")
    for key, what in (
        ("timeout_hours", "hours that a run may take"),
        ("stall_minutes", "minutes that it may be quiet"),
    ):
        most = spec.get(key, 0)
        if not isinstance(most, int | float) or isinstance(most, bool) or not 0 <= most < math.inf:
            problems.append(f"`{key}` must be the {what}, 0 for no limit, got {_kind(most)}")
    if type(gpus := spec.get("gpus_per_run", 1)) is not int or gpus < 1:
        problems.append(f"`gpus_per_run` must be a whole number from 1, got {_kind(gpus)}")
    if not isinstance(one_factor := spec.get("one_factor", False), bool):
        problems.append(f"`one_factor` must be true or false, got {_kind(one_factor)}")
    problems += _find_seed_problems(spec) + find_per_gpu_problems(spec)
    if not _is_couplings(spec["factors"]):
        problems.append(f"`factors` must be a list of lists of two or more parameters, got {_kind(spec['factors'])}")
    if not isinstance(spec["parts"], list) or not all(isinstance(name, str) for name in spec["parts"]):
        problems.append(f"`parts` must be a list of Python files, got {_kind(spec['parts'])}")
    for key in ("fixed", "grid", "baseline"):
        problems += _find_mapping_problems(f"`{key}`", spec[key])
    axes, fixed = (spec[key] if isinstance(spec[key], dict) else {} for key in ("grid", "fixed"))
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            problems.append(f"`grid`: {axis} must be a list of values, got {_kind(values)}; write {axis}: [VALUE, ...]")
    problems += [f"{name} stands in `fixed` and in `grid`; take one out" for name in axes if name in fixed]
    if spec["parts"] and "parts" in (axes | fixed):
        problems.append("the files of parts stand twice, as `parts` and as a parameter; take one out")
    for key in ("runs", "then"):
        problems += _find_list_problems(key, spec[key])
    for step in spec["then"] if isinstance(spec["then"], list) else ():
        problems += _find_step_problems(step) if isinstance(step, dict) else []
    return problems


def _find_seed_problems(spec: Mapping) -> list[str]:
    seeds, most = spec["seeds"], spec.get("max_seeds", _MAX_SEEDS)
    if seeds != "auto" and "max_seeds" in spec:
        return ["`max_seeds` belongs to `seeds: auto`; add that, or take it out"]
    if type(most) is not int or not 2 <= most <= 50:
        return [f"`max_seeds` must be a whole number from 2 to 50, got {_kind(most)}"]
    if seeds == "auto" and not spec["baseline"]:
        return ["`seeds: auto` adds seeds until conditions are told from a baseline; name one as `baseline`"]
    if seeds != "auto" and (
        not isinstance(seeds, list) or any(type(seed) is not int for seed in seeds) or len({*seeds}) < len(seeds)
    ):
        return [f"`seeds` must be auto or a list of different whole numbers, got {_kind(seeds)}"]
    runs = spec["runs"] if isinstance(spec["runs"], list) else []
    named = any(isinstance(part, dict) and "seed" in part for part in (spec["fixed"], spec["grid"], *runs))
    return ["`seeds` gives each run its seeds; take the parameter seed out"] if seeds and named else []


def _is_couplings(value: object) -> bool:
    """Whether it is a list of lists of names."""
    lists = value if isinstance(value, list) else [None]
    return all(
        isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names) for names in lists
    )


def _find_mapping_problems(where: str, value: object) -> list[str]:
    return [] if isinstance(value, dict) else [f"{where} must be a mapping name: value, got {_kind(value)}"]


def _find_list_problems(key: str, value: object) -> list[str]:
    if not isinstance(value, list):
        return [f"`{key}` must be a list of mappings name: value, got {_kind(value)}"]
    problems = []
    for number, item in enumerate(value, 1):
        problems += _find_mapping_problems(f"`{key}`, entry {number},", item)
    return problems


def _find_step_problems(step: Mapping) -> list[str]:
    problems = [f"`then`: {unknown_name('key', key, _STEP_KEYS)}" for key in step if key not in _STEP_KEYS]
    if not isinstance(step.get("notebook"), str):
        problems.append(f"`then`: notebook must be the path of a notebook, got {_kind(step.get('notebook'))}")
    elif not _can_name_folder(Path(step["notebook"]).stem):
        problems.append(f"`then`: results go to a folder of the notebook's name, got {step['notebook']!r}; rename it")
    if not isinstance(step.get("each", False), bool):
        problems.append(f"`then`: each must be true or false, got {_kind(step['each'])}")
    return problems + _find_mapping_problems("`then`: fixed", step.get("fixed") or {})


def _can_name_folder(stem: str) -> bool:
    """Whether a step's folder can stand beside a grid's and a run's own files."""
    return (
        bool(_NAME.fullmatch(stem)) and Path(stem).suffix not in _OWN_FILES and stem not in ("figures", "probabilities")
    )


_KINDS = {
    dict: "a mapping",
    list: "a list",
    str: "the text",
    bool: "the switch",
    int: "the number",
    float: "the number",
}


def _kind(value: object) -> str:
    """What arrived, in words, with the value where it is short."""
    if value is None:
        return "nothing"
    if isinstance(value, list | dict):
        return _KINDS[type(value)] if value else f"an empty {_KINDS[type(value)][2:]}"
    return f"{_KINDS.get(type(value), f'a {type(value).__name__}')} {reprlib.repr(value)}"
