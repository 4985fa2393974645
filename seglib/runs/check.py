"""Every run is checked before any starts: parameters, classes, and what only the builders of parts can tell.

The runner imports neither torch nor albumentations: it asks the builders in one child process for a whole grid, which is
this module run as a program, and their answers are remembered.
"""

import importlib.metadata
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from seglib.data.class_names import BACKGROUND, SYNTHETIC, is_background, list_json, refuse_class_map, refuse_ignored
from seglib.data.layouts import fingerprint_sets
from seglib.data.sources import open_source
from seglib.errors import InputError, unknown_name
from seglib.files import (
    PROJECT,
    cache_dir,
    expand,
    hash_file,
    hash_files,
    hash_text,
    keep_json,
    leave_report_to_parent,
    read_json,
)
from seglib.parameters import Schema, read_defaults, read_schema
from seglib.parts import find_parts, hash_parts, load_parts, read_choice
from seglib.rules import check_parameters
from seglib.runs.conditions import ELSEWHERE, identify
from seglib.runs.grid_file import GridFile, Step
from seglib.runs.keys import find_notebook, name_jsons
from seglib.text import shorten

# Whether models, optimizers and augmentations can be built: questions, answers, the child that finds them.

_QUESTIONS = {  # what is asked about -> the parameters that the answer depends on
    "model": ("architecture", "encoder", "image_size", "batch_size"),
    "optimizer": ("optimizer",),
    "augmentation": ("augmentation", "image_size"),
    "data": ("data_dir", "train_json", "val_json", "split", "folds", "fold", "split_seed", "focus_classes", "extra_data"),
}  # fmt: skip
_OF_WEIGHTS = ("architecture", "encoder", "image_size", "encoder_weights", "init_from")
_BUILDERS = (
    "models.py", "model_check.py", "layers.py", "zoo/*.py", "parts.py", "data/*.py", "training/optim.py",
)  # fmt: skip
LONGEST = 120  # [s] that files of parts, or what they build, may take
_LIBRARIES = ("segmentation-models-pytorch", "timm", "torchvision", "albumentations")


def ask_builders(questions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say for each question why the builders refuse, "" where they do not.

    Parameters
    ----------
    questions : `{"about": "model", **values}`, see `_QUESTIONS`; `parts` are files of own parts that it needs. "size" asks
        for the number of a model's parameters instead, "weights" whether pretrained weights can be had. `content` is what
        an answer depends on besides. The answer about "data" is JSON: the refusal, and the lines that are to be shown.
        Refusals of these two are not remembered.

    Raises
    ------
    InputError
        The child process could not answer.
    """
    path, state = cache_dir() / "answers.json", _describe_builders()
    remembered = _read_remembered(path)
    keys = [
        hash_text(json.dumps([question | {"parts": hash_parts(question["parts"])}, state])) for question in questions
    ]
    new = {key: question for key, question in zip(keys, questions, strict=True) if key not in remembered}
    if new:
        asked = [{name: value for name, value in each.items() if name != "content"} for each in new.values()]
        remembered |= dict(zip(new, _run_child(asked), strict=True))
        mended = {key for key, question in new.items() if _may_be_mended(question["about"], remembered[key])}
        keep_json(path, {key: answer for key, answer in remembered.items() if key not in mended})
    return [remembered[key] for key in keys]


def _may_be_mended(about: str, answer: str) -> bool:
    """Whether another answer may come without any change that the question names: a network, a disk that is mounted."""
    return bool(answer) if about == "weights" else about == "data" and bool(json.loads(answer)[0])


def _describe_builders() -> list[str]:
    """What answers depend on: code and versions."""
    files = [path for name in _BUILDERS for path in sorted((PROJECT / "seglib").glob(name))]
    return [*map(hash_file, files), *map(importlib.metadata.version, _LIBRARIES)]


def _run_child(questions: Sequence[Mapping[str, Any]]) -> list[str]:
    command = [sys.executable, "-m", "seglib.runs.check"]
    child = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, cwd=PROJECT)
    if child.returncode or not child.stdout:
        ended = f"exit code {child.returncode}" if child.returncode else "it ended without an answer"
        last = (child.stderr.strip() if child.returncode else "") or ended
        raise InputError(f"the check by `python -m seglib.runs.check` could not run: {last.splitlines()[-1]}")
    return json.loads(child.stdout)


def _read_remembered(path: Path) -> dict[str, str]:
    try:
        remembered = read_json(path)
    except (OSError, ValueError):  # absent or damaged: everything is asked again
        return {}
    sound = isinstance(remembered, dict) and all(isinstance(answer, str) for answer in remembered.values())
    return remembered if sound else {}


@contextmanager
def _limited(parts: Sequence[str]) -> Iterator[None]:
    """Refuse parts that do not come to an end."""

    def stop(*_: object) -> None:
        raise InputError(f"parts: {', '.join(parts)} must run within {LONGEST} s, got no end; does a loop never stop?")

    seconds = LONGEST if parts else 0  # 0 for no limit
    handler, timer = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _answer(about: str, parts: Sequence[str], **values: Any) -> str:
    """In the child: ask a builder. What it needs is imported here, since torch takes longer than most questions."""
    try:
        with _limited(parts):
            load_parts(parts)
        if about == "augmentation":
            from seglib.data.augment_check import find_refusal
        elif about == "optimizer":
            from seglib.training.optim import find_refusal
        elif about == "model":
            from seglib.model_check import find_refusal
        elif about == "weights":
            from seglib.model_check import find_missing_weights as find_refusal
        elif about == "data":
            from seglib.data.extra_data import find_refusal

            with redirect_stdout(io.StringIO()) as printed:
                refusal = find_refusal(**values)
            return json.dumps([refusal, printed.getvalue()])
        else:
            from seglib.model_check import count_parameters as find_refusal
        with _limited(parts if about in ("model", "optimizer", "augmentation") else ()):
            return find_refusal(**values)
    except InputError as error:
        return json.dumps([str(error), ""]) if about == "data" else str(error)


# Whether the classes that parameters name are classes of the data, known before a grid starts.


def find_class_problems(values: Mapping) -> dict[str, str]:
    """Word the class names that the data does not have: parameter name -> one line."""
    used, extra_data, ignored = _name_classes(values), values.get("extra_data", []), values.get("ignore_classes", [])
    is_asked = any(used.values()) or extra_data or ignored
    known = _read_class_names(values["data_dir"], values["train_json"]) if is_asked else ()
    if not known:  # nothing to check, or a file that cannot be read: the data's own check says so
        return {}
    if problem := refuse_ignored(ignored, known):
        return {"ignore_classes": problem}
    known = tuple(name for name in known if name not in ignored)
    focused = tuple(used.get("focus_classes", ())) or known[1:]
    usable = {"focus_classes": known[1:], "mixing": focused}  # the background cannot be pasted
    problems = {
        name: _find_unknown(name, names, usable.get(name, (BACKGROUND, *focused))) for name, names in used.items()
    }
    found = (
        _find_map_problem(place, {"data_dir": values["data_dir"]} | extra_set, known, ignored)
        for place, extra_set in enumerate(extra_data)
    )
    problems["extra_data"] = next(filter(None, found), "")
    return {name: problem for name, problem in problems.items() if problem}


def _name_classes(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """The classes that each of the checked parameters names."""
    terms = [term for term in values["loss"].values() if isinstance(term, dict)]
    weights = [term["class_weights"] for term in terms if isinstance(term.get("class_weights"), dict)]
    pasted = values["mixing"].get("copy_paste")
    return {
        "focus_classes": values["focus_classes"],
        "loss": [name for names in weights for name in names],
        "mixing": pasted.get("classes", []) if isinstance(pasted, dict) else [],
    }


def _find_map_problem(place: int, extra_set: Mapping, known: Sequence[str], ignored: Sequence[str]) -> str:
    """What is wrong with the classes of an extra set; a file that cannot be read is left to the data's own check."""
    theirs = _read_class_names(extra_set["data_dir"], extra_set["json"])[1:]
    classes = extra_set.get("classes", {})
    theirs = theirs if classes else [name for name in theirs if name not in ignored]
    return refuse_class_map(f"extra_data[{place}]", classes, theirs, known) if theirs else ""


def _find_unknown(parameter: str, names: Sequence[str], known: Sequence[str]) -> str:
    unknown = [name for name in names if name not in known]
    return unknown_name(f"class in {parameter}", unknown[0], known, limit=20) if unknown else ""


@cache
def _read_class_names(data_dir: str, train_json: str) -> tuple[str, ...]:
    if data_dir == "synthetic":
        return (BACKGROUND, *SYNTHETIC)
    try:
        names = open_source(expand(data_dir), train_json).class_names
    except InputError:
        return ()
    return (BACKGROUND, *(name for name in names if not is_background(name)))


# Words what is wrong with the runs of a grid, all of it, before any starts.

_OF_RUNNER = ("run_dir", "grid_dir", "output_dir")  # in a step, which reads and writes where it is told


def find_run_problems(
    file: GridFile,
    schema: Schema,
    parameters: Sequence[Mapping[str, Any]],
    problems: Sequence[Mapping[str, str]],
    varied: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """One line per mistake, with the varied values that it comes from and without those that make no difference.

    Mistakes in data, which name the file, and the lines that the data's check prints (second) stand once, however many
    runs read it.
    """
    lines: dict[str, None] = {}
    shown_lines: dict[str, None] = {}
    asked: dict[str, tuple[dict, str]] = {}  # each question once, however many runs need it
    with_classes = {"data_dir", "train_json", "focus_classes", "loss", "mixing"} <= schema.keys()
    for values, found, shown in zip(parameters, problems, varied, strict=True):
        classes = find_class_problems(values) if with_classes and not found else {}
        found = found | classes
        for name, problem in found.items():
            lines[f"{_where(file, [name], shown, overrides)}: {problem}"] = None
        for question in _compose_questions(schema, values, found):
            where = _where(file, _QUESTIONS[question["about"]], shown, overrides)
            asked.setdefault(json.dumps(question), (question, where))
    refusals: dict[str, str] = {}  # a file of parts that cannot be run would be the answer to all
    answers = ask_builders([each for each, _ in asked.values()])
    for answer, (question, where) in zip(answers, asked.values(), strict=True):
        if question["about"] == "data":
            refusal, printed = json.loads(answer)
            lines |= dict.fromkeys(refusal.splitlines())
            shown_lines |= dict.fromkeys(printed.splitlines())
        else:
            refusals.setdefault(answer, where)
    return [*lines, *(f"{where}: {refusal}" for refusal, where in refusals.items() if refusal)], [*shown_lines]


def find_missing_weights(schema: Schema, parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why the pretrained weights of runs cannot be had, a line for each encoder; what can be downloaded is downloaded."""
    questions = {}
    for values in parameters if schema.keys() >= {*_OF_WEIGHTS} else ():
        path, starts_elsewhere = values["encoder_weights"], bool(values["init_from"] or values.get("continue_from"))
        if path and not starts_elsewhere:
            asked = {name: values[name] for name in _OF_WEIGHTS if name != "init_from"}
            content = "" if path == "imagenet" else hash_files([os.path.expanduser(path)])[0]
            question = {"about": "weights", **asked, "parts": values.get("parts", []), "content": content}
            questions.setdefault(json.dumps(question), question)
    return [*dict.fromkeys(filter(None, ask_builders([*questions.values()])))]


def _compose_questions(schema: Schema, values: Mapping[str, Any], problems: Mapping[str, str]) -> list[dict]:
    """What the builders must be asked about a run, as far as its values have no problem yet."""
    parts, questions = values.get("parts", []), []
    for about, names in _QUESTIONS.items():
        if schema.keys() >= {*names} and problems.keys().isdisjoint({*names, "parts", "ignore_classes"}):
            asked = {name: values[name] for name in names}
            if about == "model":
                asked["batch_size"] = min(values["batch_size"], 2)
            if about == "data":
                asked |= _describe_data(values)
            if not _is_known(about, asked, parts):
                questions.append({"about": about, **asked, "parts": [] if about == "data" else parts})
    return questions


def _describe_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the data's check reads: its content, and nothing that makes no difference to the split."""
    unused = dict.fromkeys(("folds", "fold", "split_seed"), 0) if values["split"] == "given" else {"val_json": ""}
    unused["ignore_classes"] = values.get("ignore_classes", [])
    if values["data_dir"] == "synthetic" and not values["extra_data"]:
        return unused
    try:
        content = fingerprint_sets(values["data_dir"], name_jsons(values), values["extra_data"])
    except InputError:  # the check says so, better
        content = ""
    return unused | {"content": content}


def _is_known(about: str, asked: Mapping[str, Any], parts: Sequence[str]) -> bool:
    """Whether the answer is known without the child: presets are sound, and own optimizers are built where they train."""
    if about == "augmentation":
        return isinstance(asked["augmentation"], str)
    if about == "data":  # the embedded set is sound
        return asked["data_dir"] == "synthetic" and not asked["extra_data"] and asked["split"] == "given"
    return about == "optimizer" and read_choice("optimizer", asked["optimizer"])[0] in find_parts("optimizer", parts)


def find_grid_problems(file: GridFile, parameters: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Mistakes of the grid as a whole: the same run twice, a baseline that is not in it, steps that cannot run."""
    problems = []
    seen: dict[str, str] = {}
    for values, name in zip(parameters, names, strict=True):
        identity = json.dumps(values, sort_keys=True, default=str)
        if identity in seen:
            problems.append(f"{file.path}: the same run stands twice, as {seen[identity]} and {name}; take one out")
        seen[identity] = name
    problems += _find_baseline_problems(file, parameters) or _find_factor_problems(file, parameters, names)
    for step in file.then:
        problems += [f"{file.path}: `then`: {problem}" for problem in _find_step_problems(file, step, parameters)]
    return problems


def _find_baseline_problems(file: GridFile, parameters: Sequence[Mapping]) -> list[str]:
    unknown = [name for name in file.baseline if name not in parameters[0]]
    if unknown:
        return [f"{file.path}: `baseline`: {unknown_name('parameter', name, parameters[0])}" for name in unknown]
    if not any(file.baseline.items() <= values.items() for values in parameters):
        shown = ", ".join(f"{name}={shorten(value)}" for name, value in file.baseline.items())
        return [f"{file.path}: `baseline` must be the values of a run, got {shown}, which no run has"]
    return []


def _find_factor_problems(file: GridFile, parameters: Sequence[Mapping], names: Sequence[str]) -> list[str]:
    """With `one_factor`: conditions that differ from each baseline run in more than one factor, in one line."""
    for name in itertools.chain(*file.factors):
        if name not in parameters[0]:
            return [f"{file.path}: `factors`: {unknown_name('parameter', name, parameters[0])}"]
    if file.one_factor and not file.baseline:
        return [f"{file.path}: `one_factor` must have a `baseline`, from which each condition differs; name one"]
    if not file.one_factor:
        return []
    conditions = _list_conditions(parameters, names)
    baselines = [values for values in conditions.values() if _has(values, file.baseline)]
    found = {}
    for name, values in conditions.items():
        different = min(([each for each in values if values[each] != base[each]] for base in baselines), key=len)
        if len(different) > 1 and not any({*different} <= {*coupled} for coupled in file.factors):
            found[name] = f"{name} ({' and '.join(different)})"
    if not found:
        return []
    shown = "; ".join([*found.values()][:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
    return [
        f"{file.path}: `one_factor` must have conditions that differ from the baseline in one factor, got {shown}; take them"
        " out, or name what is meant to go together in `factors`: [[A, B]]"
    ]


def _list_conditions(parameters: Sequence[Mapping], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Name of a condition's first run -> its values, as texts, of the parameters in which conditions differ."""
    first_values, left_out = parameters[0], {*ELSEWHERE} - {"data_dir"}
    varied = [
        name
        for name, value in first_values.items()
        if name not in left_out and any(values.get(name) != value for values in parameters)
    ]
    rows = [{name: identify(values.get(name)) for name in varied} for values in parameters]
    first: dict[str, tuple[str, dict]] = {}
    for name, row in zip(names, rows, strict=True):
        first.setdefault(json.dumps(row), (name, row))
    return dict(first.values())


def _has(texts: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    return all(texts.get(name, identify(value)) == identify(value) for name, value in wanted.items())


def _find_step_problems(file: GridFile, step: Step, parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    try:
        notebook = find_notebook(step.notebook, file.path)
        schema = read_schema(notebook)
    except InputError as error:
        return [str(error)]
    if step.each and notebook == find_notebook(file.notebook, file.path):
        return [f"{step.notebook} would write over each run, as the grid's own notebook; leave `each` out"]
    needed = "run_dir" if step.each or is_further_run(file, step, notebook) else "grid_dir"
    if needed not in schema:
        return [f"{step.notebook} must have a parameter {needed}, through which it is told what to read"]
    values = compose_values(file, step, notebook)
    _, problems = check_parameters(schema, values)
    problems |= {name: f"{name} is set by the runner; leave it out" for name in _OF_RUNNER if name in step.fixed}
    problems = _find_missing_files(values, parameters) | problems
    known = [
        name for name in step.fixed if not step.uses_grid_dir(name)
    ]  # what is still to be written cannot be checked
    return [f"{step.notebook}: {problems[name]}" for name in known if name in problems]


def _find_missing_files(values: Mapping[str, Any], parameters: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Files that a step is to read beside its runs' and that are not there; folders that are not are told elsewhere."""
    problems, name, sample = {}, values.get("test_json"), values.get("sample_submission")
    if name and isinstance(name, str):
        folders = [Path(folder) for folder in find_data_dirs(values, parameters) if folder != "synthetic"]
        for folder in folders:
            if folder.is_dir() and not (folder / name).is_file():
                problems["test_json"] = (
                    f"test_json must be a file in data_dir, got {name!r}; {folder} has {list_json(folder)}"
                )
    if sample and isinstance(sample, str) and not expand(sample).is_file():
        problems["sample_submission"] = (
            f"sample_submission must be the path of a CSV file; there is no file {sample!r} (seen from {Path.cwd()})"
        )
    return problems


def find_data_dirs(values: Mapping[str, Any], parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a step looks for `test_json`: in its own data_dir, else in those of the runs; "synthetic" is no folder."""
    given = [values.get("data_dir")] if values.get("data_dir") else [run.get("data_dir") for run in parameters]
    return sorted({os.path.expanduser(folder) for folder in given if folder and isinstance(folder, str)})


def compose_values(file: GridFile, step: Step, notebook: Path) -> dict[str, Any]:
    """A step's parameters before any folder is known: the notebook's, under those that a further run has from its grid."""
    return read_defaults(notebook) | (file.fixed if is_further_run(file, step, notebook) else {}) | step.fixed


def is_further_run(file: GridFile, step: Step, notebook: Path) -> bool:
    """Whether a step trains once more, with the grid's own notebook."""
    return not step.each and notebook == find_notebook(file.notebook, file.path)


def _where(file: GridFile, names: Sequence[str], varied: Mapping, overrides: Mapping) -> str:
    """The file, or `--set` where the values come from the command line, and which of the varied values it is."""
    shown = ", ".join(f"{name}={shorten(varied[name])[:60]}" for name in names if name in varied)
    source = "--set" if any(name in overrides for name in names) else file.path
    return f"{source} [{shown}]" if shown else f"{source}"


if __name__ == "__main__":
    leave_report_to_parent()
    with open(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what parts print is no answer
        answers.write(json.dumps([_answer(**question) for question in json.load(sys.stdin)]))
