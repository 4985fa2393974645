"""Parts: what a grid names. Registered by a decorator, found by name, checked by their options, loaded from files.

The shipped parts and a user's own come in by the same door. The runner of grids reads their files (`read_parts`): what
it knows of a part is its name and its options, the arguments after those that seglib gives. A file of parts is run only
where a model is trained or opened again. What a notebook's cells register is kept with each run as such a file.
"""

import ast
import inspect
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from seglib.errors import InputError, require_known
from seglib.files import PROJECT, expand, hash_text, read_file, replacing, write_text
from seglib.parameters import (
    NotNegative,
    Share,
    build_type,
    check_options,
    check_value,
    parse_code,
    read_code_cells,
    require_options,
)

_GIVEN = {
    "model": ("num_classes",),
    "loss": ("logits", "target", "weight"),
    "metric": ("confusion",),
    "augmentation": (),
    "split": ("table", "folds", "seed"),
    "optimizer": ("param_groups", "lr", "weight_decay"),
    "scheduler": ("epoch", "epochs"),
    "mixing": ("images", "masks", "rng"),
    "callback": (),
}  # kind -> what seglib gives an own part, by position
_SHIPPED = {  # kind -> the files whose parts of it a grid may name; models and optimizers are those of smp and timm too
    "loss": ("training/loss_terms.py",),
    "scheduler": ("training/optim.py",),
    "mixing": ("data/loader.py", "training/mixing.py"),
}
_NAMED = {  # kind -> the file and its constant that holds shipped names of it
    "split": ("data/splits.py", "SPLITS"),
    "augmentation": ("data/augment.py", "PRESETS"),
}
_NUMBER = {"loss": ("weight", NotNegative), "mixing": ("p", Share)}  # what a bare number means
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
CELLS = "registered_in_cells.py"  # in a run's `parts`
_COLUMNS = {  # of history.csv, and names of scores: an own metric stands beside them
    "epoch", "lr", "conditions", "train_loss", "val_loss", "loss", "miou", "miou_image", "miou_batch", "accuracy", "iou", "seconds", "memory_mb",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part: `options` are name -> type, `needed` those without a default, `summary` its docstring's first line.

    `build` is None where it was only read.
    """

    kind: str
    name: str
    options: dict[str, Any]
    needed: tuple[str, ...]
    own: bool
    summary: str = field(default="", compare=False)
    build: Callable | None = field(default=None, compare=False)


_registered: dict[tuple[str, str], Part] = {}  # own parts
_shipped: dict[tuple[str, str], Part] = {}  # those of the files above that were imported
_loaded: dict[str, list[Part]] = {}  # by the hash of a file's text


def register(kind: str) -> Callable[[Callable], Callable]:
    """Make a part of yours known by its name, in a file of `parts` or in a notebook's cell; keywords are its options.

    `@register("model")` takes a class or function `(num_classes, options...) -> nn.Module`, which maps float images
    (N, 3, H, W), normalised, to logits (N, num_classes, H, W). `@register("loss")` takes a function
    `(logits (N, C, H, W), target (N, H, W) int64, weight (N, H, W), *, options...) -> scalar`, where `weight` is 0 for
    ignored pixels and 1 elsewhere. `@register("metric")` takes a function `(confusion (C, C) int64) -> float`; it is
    computed at each evaluation, and `select_by` may name it.

    `"augmentation"`: `(*, options...) -> ` a transform of albumentations. `"split"`: `(table, folds, seed) -> ` the fold
    (0 to folds - 1) of each row of a DataFrame of images. `"optimizer"`: `(param_groups, lr, weight_decay) -> Optimizer`.
    `"scheduler"`: `(epoch, epochs) -> ` factor of the learning rate, both counted from the end of the warm-up.
    `"mixing"`: `(images (N, 3, H, W) uint8, masks (N, H, W) uint8, rng) -> ` the same, mixed; its option `p` is seglib's.
    `"callback"`: `() -> ` an object with any of on_step(trainer), on_epoch(trainer), on_end(trainer); with state_dict()
    and load_state_dict(state) it goes on after a kill where it was. Registered again, the newer one counts.

    Raises
    ------
    InputError
        An unknown kind, a name of a shipped part, or arguments that do not fit.
    """

    def add(build: Callable) -> Callable:
        if (build.__module__ or "").startswith("seglib."):  # None: made by exec
            _shipped[kind, build.__name__] = replace(_read_shipped(kind)[build.__name__], build=build)
            return build
        arguments = [
            (name, _read_type(each.annotation), each.default is each.empty, each.kind is each.KEYWORD_ONLY)
            for name, each in inspect.signature(build).parameters.items()
            if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]
        part = _describe("@register", kind, build.__name__, inspect.isclass(build), arguments, inspect.getdoc(build))
        part = replace(part, build=build)
        _refuse_shipped("@register", part, _list_shipped(kind))
        _registered[kind, part.name] = part
        return build

    return add


@cache
def list_names(kind: str) -> tuple[str, ...]:
    """The names of shipped parts as seglib's own files have them, read without importing them."""
    if kind == "metric":
        return tuple(_COLUMNS)
    if kind not in _NAMED:
        return tuple(_read_shipped(kind))
    path, constant = PROJECT / "seglib" / _NAMED[kind][0], _NAMED[kind][1]
    for node in _parse(path).body:
        target = getattr(node, "target", None) or (getattr(node, "targets", None) or [None])[0]
        if getattr(target, "id", "") == constant:
            value = node.value
            return tuple(each.value for each in (value.keys if isinstance(value, ast.Dict) else value.elts))
    raise LookupError(f"{path} has no {constant}")


def find_parts(kind: str, paths: Iterable[str | Path] = ()) -> dict[str, Part]:
    """Parts of a kind by name: the shipped ones, the registered ones, and those that files define."""
    shipped = {name: _shipped.get((kind, name), part) for name, part in _read_shipped(kind).items()}
    registered = [part for part in _registered.values() if part.kind == kind]
    read = [part for part in read_parts(paths) if part.kind == kind]
    return shipped | {part.name: part for part in [*registered, *read]}


def read_parts(paths: Iterable[str | Path]) -> list[Part]:
    """What files, or a notebook's cells, define by `@register(...)` at their top level, without running them.

    Raises
    ------
    InputError
        Files that cannot be read, or that define a name twice, a shipped name or arguments that do not fit.
    """
    found: dict[tuple[str, str], Path] = {}
    parts, files = [], {}
    for path in map(Path, paths):
        if path.name in files:
            raise InputError(f"parts: {path} and {files[path.name]} have the same file name; rename one")
        files[path.name] = path
        for part in _read_definitions(path, _read_text(path)):
            if (part.kind, part.name) in found:
                raise InputError(
                    f"parts: {part.kind} {part.name!r} stands in {found[part.kind, part.name]} and in {path}; rename one"
                )
            _refuse_shipped(path, part, list_names(part.kind))
            found[part.kind, part.name] = path
            parts.append(part)
    return parts


def load_parts(paths: Iterable[str | Path], keep_in: str | Path | None = None) -> None:
    """Run files of parts, each content once, so that their parts are registered.

    Parameters
    ----------
    keep_in : a run's folder; its `parts` gets a copy of each file, with which the run is opened again.

    Raises
    ------
    InputError
        See `read_parts`, and a file that cannot be run.
    """
    paths = [expand(path).resolve() for path in paths]
    read_parts(paths)
    for path in paths:
        text = _read_text(path)
        content = hash_text(text)
        if content not in _loaded:
            _loaded[content] = _run_file(path, f"seglib_parts_{path.stem}_{content[:8]}")
        _registered.update({(part.kind, part.name): part for part in _loaded[content]})
        if keep_in is not None:
            with replacing(Path(keep_in) / "parts" / path.name) as temporary:
                shutil.copyfile(path, temporary)


def read_choice(kind: str, value: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of a part: `name`, or `{name: options}`."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, options),) = value.items()
        if isinstance(name, str) and isinstance(options, Mapping):
            return name, dict(options)
    if isinstance(value, str) and value:
        return value, {}
    raise InputError(f"{kind} must be a name, or one name with its options, got {value!r}")


def check_part(kind: str, value: Any, parts: Mapping[str, Part], others: Iterable[str] = ()) -> str | dict[str, Any]:
    """Check a parameter that names one part, `name` or `{name: options}`; return it with whole numbers as floats.

    Parameters
    ----------
    kind : the parameter's name, for the words.
    others : names that stand for no part, which take no options.

    Raises
    ------
    InputError
        An unknown name, or options that do not fit.
    """
    names = [*parts, *others]
    if not isinstance(value, str | Mapping):
        raise InputError(f"{kind} must be one of {', '.join(names[:20])}, or a name with options, got {value!r}")
    name, options = read_choice(kind, value)
    require_known(kind, name, names, limit=100)
    if name in parts:
        options = check_options(f"{kind}.{name}", options, parts[name].options, parts[name].needed)
    elif options:
        raise InputError(f"{kind} {name} takes no options, got {value!r}; write {kind}: {name}")
    return {name: options} if options else name


def check_choices(kind: str, choices: Mapping[str, Any], paths: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Check a mapping name -> number or options, as `loss` and `mixing` are.

    Returns
    -------
    The mapping with whole numbers as floats where floats are meant.

    Raises
    ------
    InputError
        One line for the first mistake.
    """
    checked, parts, (option, limits) = {}, find_parts(kind, paths), _NUMBER[kind]
    for name, value in choices.items():
        require_known(kind, name, parts)
        where, part = f"{kind}.{name}", parts[name]
        if isinstance(value, Mapping):
            checked[name] = check_options(where, value, part.options | {option: limits}, part.needed)
        else:
            checked[name] = check_value(where, value, limits, f"{option}, or a mapping of options")
            require_options(where, part.needed, ())
    return checked


def read_choices(kind: str, choices: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Check like `check_choices`, and write bare numbers out: name -> options."""
    option, _ = _NUMBER[kind]
    checked = check_choices(kind, choices)
    return {name: value if isinstance(value, Mapping) else {option: value} for name, value in checked.items()}


def _describe(where: str, kind: str, name: str, is_class: bool, arguments: list[tuple], docstring: str | None) -> Part:
    """A part of its arguments, each (name, type, whether it must be given, whether it is a keyword only)."""
    require_known("kind of part", kind, _GIVEN, where)
    where = f"{where}: {kind} {name!r}"
    given = _GIVEN[kind]
    form = f"{name}({', '.join(given)}, *, ...)"
    if kind in ("loss", "metric") and is_class:
        raise InputError(f"{where}: required a function {form}, got a class")
    positional = [name for name, _, _, keyword in arguments if not keyword]
    options = arguments[len(given) :]
    if len(positional) < len(given):
        raise InputError(f"{where}: required the arguments {form}, got ({', '.join(positional) or 'none'})")
    if kind == "loss" and any(option == "weight" for option, *_ in options):
        raise InputError(f"{where}: `weight` is its factor in the sum; call the option by another name")
    if kind == "metric" and any(needed for _, _, needed, _ in options):
        raise InputError(f"{where}: required a default for each argument after confusion; nothing else is given")
    types, needed = {each[0]: each[1] for each in options}, tuple(each[0] for each in options if each[2])
    return Part(kind, name, types, needed, True, (docstring or "").partition("\n")[0])


def _refuse_shipped(where: object, part: Part, shipped: Iterable[str]) -> None:
    if part.name in shipped:
        got = f"got that of a shipped {part.kind}; rename yours"
        raise InputError(f"{where}: {part.kind} {part.name!r}: required a name of its own, {got}")


def _list_shipped(kind: str) -> Iterable[str]:
    """The names that an own part may not take, those of smp and timm included, which are imported for it."""
    if kind == "model":
        from seglib.models import ARCHITECTURES

        return ARCHITECTURES
    if kind == "optimizer":
        from seglib.training.optim import list_optimizers

        return list_optimizers()
    return list_names(kind)


@cache
def _read_shipped(kind: str) -> dict[str, Part]:
    """The shipped parts of a kind as their files define them; options are what has a default."""
    parts = {}
    found = [each for name in _SHIPPED.get(kind, ()) for each in _find_registered(_parse(PROJECT / "seglib" / name))]
    for node in (node for node, of_kind in found if of_kind == kind):
        options = {option: each for option, each, needed, _ in _read_arguments(node) if not needed}
        summary = (ast.get_docstring(node) or "").partition("\n")[0]
        parts[node.name] = Part(kind, node.name, options, (), False, summary)
    return parts


@cache
def _read_definitions(path: Path, text: str) -> list[Part]:
    parts = []
    for node, kind in _find_registered(_parse(path, text)):
        where, is_class = f"{path}, line {node.lineno}", isinstance(node, ast.ClassDef)
        parts.append(_describe(where, kind, node.name, is_class, _read_arguments(node), ast.get_docstring(node)))
    return parts


def _run_file(path: Path, name: str) -> list[Part]:
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # as an import does: dataclasses look there
    try:
        exec(compile(_read_text(path), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a file that calls exit() would end the check without a word
        del sys.modules[name]
        if isinstance(error, InputError):
            raise
        raise InputError(f"parts: {path} must run as Python, got {type(error).__name__}: {error}") from error
    return [part for part in _registered.values() if part.build.__module__ == name]


def build_callbacks(callbacks: Mapping[str, Mapping[str, Any]]) -> list[object]:
    """The registered callbacks of these names, each made with its options."""
    own = find_parts("callback")
    for name, options in callbacks.items():
        check_part("callback", {name: options}, own)
    return [own[name].build(**options) for name, options in callbacks.items()]


# Their files, and the cells of notebooks, read without being run.


def keep_cells(run_dir: str | Path, cells: Iterable[str]) -> None:
    """Keep what the cells of a notebook that ran have registered in a run's `parts`, with which the run is opened again."""
    if text := _compose_cells(cells):
        folder = Path(run_dir) / "parts"
        folder.mkdir(exist_ok=True)
        write_text(folder / CELLS, text)


def _compose_cells(cells: Iterable[str]) -> str:
    """A file of parts: the imports of all cells, and the cells that register any, of those run again the last; "" for none."""
    imports, kept = {}, {}
    for cell in cells:
        try:
            tree = ast.parse(cell)
        except (SyntaxError, ValueError):  # a magic: %matplotlib inline
            continue
        found = [node.name for node, _ in _find_registered(tree)]
        nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        imports |= dict.fromkeys(map(ast.unparse, nodes))
        if found:
            kept[tuple(found)] = cell
    return "\n".join([*imports, *(f"\n\n{cell}" for cell in kept.values()), ""]) if kept else ""


def find_kept_parts(run_dir: str | Path) -> list[str]:
    """The copies of own parts in a run's folder; [] where it used none."""
    return sorted(map(str, (Path(run_dir) / "parts").glob("*.py")))


def hash_parts(paths: Iterable[str | Path]) -> list[str]:
    """Hash of each file's code, in no order; comments, docstrings and layout do not count."""
    return sorted(hash_text(unparse_code(_parse(path))) for path in map(Path, paths))


def unparse_code(tree: ast.Module) -> str:
    """What code does: its text without comments, docstrings and layout."""
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


def _find_registered(tree: ast.Module) -> list[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    """The functions and classes that stand under `@register(kind)` at the top level, each with its kind."""
    found = [(node, _find_kind(decorator)) for node in tree.body for decorator in getattr(node, "decorator_list", ())]
    return [(node, kind) for node, kind in found if kind is not None]


def _find_kind(decorator: ast.expr) -> str | None:
    """The kind in `@register("loss")`; None for another decorator."""
    if not isinstance(decorator, ast.Call) or len(decorator.args) != 1:
        return None
    name = getattr(decorator.func, "id", getattr(decorator.func, "attr", ""))
    return getattr(decorator.args[0], "value", None) if name == "register" else None


def _read_arguments(node: ast.FunctionDef | ast.ClassDef) -> list[tuple]:
    """Arguments as (name, type, whether it must be given, whether it is a keyword only); of a class, its __init__'s."""
    function = node
    if isinstance(node, ast.ClassDef):
        function = next((each for each in node.body if getattr(each, "name", "") == "__init__"), None)
        if function is None:
            return []
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    first_default = len(positional) - len(a.defaults)
    arguments = [
        (each.arg, _read_type(each.annotation), number < first_default, False) for number, each in enumerate(positional)
    ]
    arguments = arguments[1:] if function is not node else arguments
    return arguments + [
        (each.arg, _read_type(each.annotation), default is None, True)
        for each, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]


def _read_type(annotation: Any) -> Any:
    """The type of an option by its annotation, be it a type, its text or its syntax tree."""
    if annotation in (None, inspect.Parameter.empty):
        return Any
    if isinstance(annotation, ast.expr):
        text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    else:
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    try:
        return build_type(str(text).replace("typing.", ""), of_part=True)
    except (InputError, SyntaxError, ValueError):
        return Any  # a type of the user's own: the part checks it


def _parse(path: Path, text: str | None = None) -> ast.Module:
    return parse_code(_read_text(path) if text is None else text, f"parts: {path}")


def _read_text(path: Path) -> str:
    """A file's text; of a notebook what its cells register."""
    if path.suffix == ".ipynb":
        return _compose_cells(cell["source"] for cell in read_code_cells(path))
    try:
        return read_file(expand(path)).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        got = error.strerror if isinstance(error, OSError) else "other bytes, or no file"
        raise InputError(f"parts: required a Python file (UTF-8), got {str(path)!r}: {got}") from error
