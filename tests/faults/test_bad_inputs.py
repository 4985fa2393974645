"""Grid files, options, notebooks and parts from outside: whatever is wrong with them is one clear line, and no more.

`test_bad_data.py` and `test_bad_results.py` are the same for data sets and for what runs leave behind.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from seglib.__main__ import main
from seglib.files import PROJECT
from seglib.parameters import read_schema
from seglib.runs import check

ASK_CHILD = check._run_child  # before the tests' fixture answers in its place

NOTEBOOK = PROJECT / "notebooks/02_train.ipynb"
HEAD = f"notebook: {NOTEBOOK}\n"
TINY = "data_dir: synthetic, epochs: 2, encoder_weights: '', architecture: Linknet, encoder: tu-test_resnet, image_size: 64"


def fixed(text: str) -> str:
    return f"{HEAD}fixed: {{<<: {{{TINY}}}, {text}}}\n"


def grid(text: str) -> str:
    return f"{HEAD}fixed: {{{TINY}}}\n{text}\n"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
GRIDS = {  # text of a grid file, and what its line must hold
    "laughs": (BOMB, "more values"), "cycle": (grid("grid: &a {lr: [*a]}"), "more values"), "cycle of merges": (HEAD + "fixed: &a\n  <<: *a\n", "YAML"),
    "unknown alias": (fixed("lr: *b"), "undefined alias"), "merge of a number": (HEAD + "fixed: {<<: 3}", "merging"),
    "python object": (fixed("lr: !!python/object/apply:os.system ['touch pwned']"), "could not determine a constructor"),
    "python name": (fixed("lr: !!python/name:os.system ''"), "constructor"), "python tuple": (fixed("lr: !!python/tuple [1]"), "constructor"),
    "own tag": (fixed("lr: !ENV '${HOME}'"), "constructor"), "wrong bool": (fixed("cache: !!bool abc"), "YAML"), "wrong int": (fixed("seed: !!int abc"), "YAML"),
    "wrong float": (fixed("lr: !!float abc"), "YAML"), "binary": (fixed("encoder: !!binary aGFsbG8="), "encoder must be a text"),
    "not base64": (fixed("encoder: !!binary é"), "YAML"), "a set": (fixed("loss: !!set {focal}"), "loss"),
    "a set of all": (HEAD + "fixed: !!set {lr}\n", "`fixed` must be a mapping"), "ordered": (fixed("loss: !!omap [focal: 1]"), "loss"),
    "NUL": (grid("grid: {lr: [\0]}"), "special characters"), "escape": (grid("grid: {lr: [\x1b[31m]}"), "special characters"), "BOM": ("\ufeff" + fixed("seed: 1"), ""),
    "UTF-16": (fixed("seed: 1").encode("utf-16"), "UTF-8"), "latin-1": (fixed("encoder: é").encode("latin-1"), "UTF-8"),
    "half a character": (fixed('encoder: "\\ud800"'), "unknown encoder"), "CRLF": (fixed("seed: 1").replace("\n", "\r\n"), ""),
    "tab": (HEAD + "fixed:\n\tlr: 1\n", "YAML"), "two documents": (grid("---\na: 1"), "another document"), "nothing": ("", "required a mapping"),
    "comment": ("# nothing\n", "required a mapping"), "a list": ("[1, 2]", "required a mapping"), "a text": ("notebook", "required a mapping"),
    "a number": ("1", "required a mapping"), "deep": ("a: " + "[" * 50_000, "nesting without end"), "long": ("# " + "x" * 400_000, "at most 300,000 characters"),
    "key twice": (fixed("lr: 1.0e-3, lr: 2.0e-3"), "'lr' stands twice"), "section twice": (grid("grid: {seed: [1]}\ngrid: {seed: [2]}"), "'grid' stands twice"),
    "key is false": (fixed("no: 1"), "no text"), "key is null": (fixed("~: 1"), "no text"), "key is a number": (fixed("1: 1"), "no text"),
    "key is a list": (fixed("? [1] : 1"), "no text"), "key is empty": (fixed("'': 1"), "unknown parameter ''"),
    "key has RTL": (fixed("'\\u202egnp': 1"), "unknown parameter"), "key is a dunder": (fixed("__class__: 1"), "unknown parameter '__class__'"),
    "1e400": (fixed("lr: 1e400"), "lr must be a finite number"), "-1e400": (fixed("lr: [-1e400]"), "lr must be"), "inf": (fixed("lr: .inf"), "lr must be a finite number"),
    "nan": (fixed("weight_decay: .nan"), "weight_decay must be a finite number"), "inf in a loss": (fixed("loss: {focal: .inf}"), "loss.focal must be"),
    "nan in a mixing": (fixed("mixing: {mixup: .nan}"), "mixing.mixup must be"), "date": (fixed("val_json: 2026-01-01"), "val_json must be a text"),
    "time": (fixed("seed: 2026-01-01 10:00:00"), "seed must be a whole number"), "no such date": (fixed("seed: 2026-13-45"), "YAML"),
    "sexagesimal": (fixed("seed: 1:30"), "seed must be a whole number, got '1:30'"), "sexagesimal float": (fixed("lr: 0:0.1"), "lr must be a number, got '0:0.1'"),
    "octal": (fixed("seed: 010"), "seed must be a whole number, got '010'"), "hexadecimal": (fixed("seed: 0x10"), ""), "underscores": (fixed("seed: 1_0"), ""),
    "negative seed": (fixed("seed: -1"), "seed must be at least 0"), "2**31": (fixed(f"seed: {2**31}"), "seed must be below"),
    "5,000 digits": (fixed(f"seed: {'9' * 5000}"), "YAML"), "300 digits": (fixed(f"epochs: {'9' * 300}"), "epochs must be"),
    "float of 300 digits": (fixed(f"lr: {'9' * 300}"), "lr must be at most 10"), "float of 400 digits": (fixed(f"lr: {'9' * 400}"), "lr must be"),
    "bool for int": (fixed("seed: true"), "seed must be a whole number, got true"), "yes for int": (fixed("epochs: yes"), "epochs must be a whole number, got true"),
    "int for bool": (fixed("cache: 1"), "cache must be true or false"), "text for bool": (fixed("cache: 'true'"), "cache must be true or false"),
    "float for int": (fixed("epochs: 2.0"), "epochs must be a whole number"), "null": (fixed("epochs: ~"), "epochs must be a whole number, got None"),
    "same run twice": (grid("runs: [{seed: 1}, {seed: 1}]"), "the same run stands twice"),
    "1e3 and 1000.0": (grid("grid: {lr: [1e-3, 0.001]}"), "the same run stands twice"),
    "20,001 runs": (grid(f"grid: {{seed: {[*range(300)]}, lr: {[(1 + n) / 1000 for n in range(300)]}}}"), "20,000 runs"),
    "name with a slash": (grid("name: ../up"), "`name` must be a folder name"), "name with a newline": (grid('name: "a\\nb"'), "`name` must be a folder name"),
    "name with RTL": (grid('name: "\\u202egnp"'), "`name` must be a folder name"), "name with an emoji": (grid("name: 🙂"), "`name` must be a folder name"),
    "name of 400": (grid(f"name: {'x' * 400}"), "`name` must be a folder name"), "name ..": (grid("name: .."), "`name` must be a folder name"),
    "name .": (grid("name: ."), "`name` must be a folder name"), "name is empty": (grid("name: ''"), "`name` must be a folder name"),
    "name is a lock": (grid("name: .cache"), "`name` must be a folder name"), "name is a date": (grid("name: 2026-01-01"), "`name` must be a folder name"),
    "value of 400": (grid(f"grid: {{init_from: [{'x' * 400}]}}"), "init_from must be the folder of a run"),
    "value with a newline": (grid('grid: {optimizer: ["a\\nb"]}'), "optimizer"), "value with RTL": (grid('grid: {optimizer: ["\\u202egnp", adam]}'), "\\u202egnp"),
    "value with NUL": (grid('grid: {init_from: ["a\\0b"]}'), "init_from must be the folder of a run"),
    "data_dir with NUL": (HEAD + 'fixed: {data_dir: "a\\0b"}', "data_dir must be a folder"),
    "data_dir of 5,000": (HEAD + f"fixed: {{data_dir: {'x' * 5000}}}", "data_dir must be a folder"),
    "data_dir ~nouser": (HEAD + "fixed: {data_dir: ~nouser/x}", "data_dir must be a folder"),
    "data_dir is a file": (HEAD + "fixed: {data_dir: /etc/passwd}", "data_dir must be a folder"),
    "data_dir is /dev": (HEAD + "fixed: {data_dir: /dev, train_json: zero}", "train_json must be a file"), "init_from /etc": (fixed("init_from: /etc"), "/etc"),
    "init_from a device": (fixed("init_from: /dev/null"), "init_from must be the folder of a run"), "continue_from /etc": (fixed("continue_from: /etc"), "/etc"),
    "weights /etc/passwd": (fixed("encoder_weights: /etc/passwd"), "/etc/passwd"), "weights /dev/zero": (fixed("encoder_weights: /dev/zero"), "encoder_weights must be"),
    "weights are a folder": (fixed("encoder_weights: /tmp"), "encoder_weights must be"), "run_dir": (fixed("run_dir: /tmp/x"), "run_dir is set by the runner"),
    "run_dir varied": (grid("grid: {run_dir: [a, b]}"), "run_dir is set by the runner"),
    "parts twice": (grid("parts: [a.py]") + "grid: {parts: [[a.py]]}\n", "stand twice"), "parts missing": (grid("parts: [nowhere.py]"), "there is no file 'nowhere.py'"),
    "parts a device": (grid("parts: [/dev/zero]"), "there is no file"), "step into a folder": (grid("then: [{notebook: ..ipynb}]"), "rename it"),
    "step into the page": (grid("then: [{notebook: index.html.ipynb}]"), "rename it"), "step is missing": (grid("then: [{notebook: no.ipynb}]"), "no.ipynb"),
    "step has keys": (grid("then: [{notebook: a.ipynb, every: 1}]"), "unknown key 'every'"),
    "step sets run_dir": (
        grid(f"then: [{{notebook: {PROJECT}/notebooks/03_error_analysis.ipynb, each: true, fixed: {{run_dir: /tmp}}}}]"),
        "run_dir is set by the runner",
    ),
    "step reads nothing": (
        grid(f"then: [{{notebook: {PROJECT}/notebooks/04_ensemble.ipynb, fixed: {{sample_submission: /dev/zero}}}}]"),
        "sample_submission must be the path of a CSV file",
    ),
    "step reads a folder": (
        grid(f"then: [{{notebook: {PROJECT}/notebooks/04_ensemble.ipynb, fixed: {{test_json: [1]}}}}]"),
        "test_json must be a text",
    ),
    "baseline of nothing": (grid("grid: {seed: [1]}\nbaseline: {seed: 2}"), "`baseline` must be the values of a run"),
    "factors unknown": (grid("grid: {seed: [1]}\nfactors: [[a, b]]"), "unknown"), "max_seeds alone": (grid("max_seeds: 3"), "`max_seeds` belongs to `seeds: auto`"),
    "seeds and seed": (grid("seeds: [1]\ngrid: {seed: [2]}"), "take the parameter seed out"), "stop without a rule": (grid("stop: {}\ngrid: {seed: [1]}"), ""),
}  # fmt: skip
WRONG = {  # key of a grid file -> values of other types
    "notebook": ("3", "[a]", "{a: 1}", "true", "''"), "name": ("[a]", "{}", "true"), "worthwhile": ("a", "[1]", "true", "-1", ".nan", "2"),
    "one_factor": ("1", "a", "[true]"), "timeout_hours": ("-1", ".inf", ".nan", "a", "true", "[1]"), "stall_minutes": ("-1", "a", "{}", "false"),
    "gpus_per_run": ("0", "1.5", "true", "a"), "per_gpu": ("0", "1.5", "true", "[1]"), "parts": ("a.py", "[1]", "{a: 1}"),
    "fixed": ("[1]", "a", "3"), "grid": ("[1]", "{lr: 3}", "{lr: []}", "{lr: {}}", "{lr: ~}"), "runs": ("{}", "[1]", "a", "[[]]"),
    "seeds": ("x", "[1.5]", "[true]", "[1, 1]", "{}", "3"), "baseline": ("[1]", "a", "{nope: 1}"), "factors": ("[a]", "[[a]]", "{}", "[[1, 2]]"),
    "then": ("x", "[x]", "[{}]", "[{notebook: 3}]", "[{notebook: a.ipynb, each: 1}]", "[{notebook: a.ipynb, fixed: [1]}]"),
    "stop": ("3", "a", "[1]", "{nope: 1}"), "max_seeds": ("1", "a", "true"),
}  # fmt: skip
WRONG_KEYS = {
    f"{key}: {value}": (
        (f"{HEAD}seeds: auto\nbaseline: {{lr: 1.0e-3}}\n" if key == "max_seeds" else "" if key == "notebook" else HEAD)
        + f"{key}: {value}\n",
        key,
    )
    for key, values in WRONG.items()
    for value in values
}


@pytest.fixture
def plan(call, tmp_path):
    """Ask run_grid.py for a dry run of tmp_path/grid.yaml."""

    def ask(*arguments, path="grid.yaml"):
        done = call(tmp_path / path, "--dry-run", *arguments)
        return done.code, done.err if done.code else ""

    return ask


@pytest.mark.parametrize(("text", "words"), (GRIDS | WRONG_KEYS).values(), ids=(GRIDS | WRONG_KEYS).keys())
def test_grid_files(judge, plan, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    judge(tmp_path, plan, words)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", read_schema(NOTEBOOK))
def test_every_parameter_of_another_type(judge, plan, tmp_path, name):
    for value in ("[[1]]", "{a: [1]}", "!!binary aGFsbG8=", "2026-01-01"):
        (tmp_path / "grid.yaml").write_text(fixed(f"{name}: {value}"))
        judge(tmp_path, plan, name)


OPTIONS = {  # arguments of run_grid.py, and what its line must hold
    "a list is a sweep": (["--set", "focus_classes=[Battery]"], "write [Battery], and [[Battery]] after --set"),
    "no value": (["--set", "lr"], "NAME=VALUE"), "no name": (["--set", "=3"], "NAME=VALUE"), "spaces": (["--set", "a b=1"], "NAME=VALUE"),
    "a path": (["--set", "../a=1"], "NAME=VALUE"), "nothing": (["--set", ""], "NAME=VALUE"), "empty": (["--set", "lr="], "lr must be a number"),
    "open list": (["--set", "lr=["], "--set lr, line 1, column 2: required YAML"), "empty list": (["--set", "lr=[]"], "a list of at least one"),
    "empty map": (["--set", "lr={}"], "lr must be a number"), "code": (["--set", "lr=!!python/object/apply:os.system ['touch pwned']"], "constructor"),
    "cycle": (["--set", "lr=&a [*a]"], "more values"), "sexagesimal": (["--set", "seed=1:30"], "got '1:30'"), "NUL": (["--set", "encoder=\0"], "special characters"),
    "escape": (["--set", "encoder=\x1b[31m"], "special characters"), "not UTF-8": (["--set", "encoder=\udcff"], "special characters"),
    "twice": (["--set", "lr=1", "--set", "lr=2"], "required once"), "dunder": (["--set", "__import__=1"], "unknown parameter '__import__'"),
    "run_dir": (["--set", "run_dir=/tmp"], "run_dir is set by the runner"), "deep": (["--set", f"lr={'[' * 20_000}"], "nesting without end"),
    "only a group": (["--only", "[(*"], "--only '[(*'"), "only a dot": (["--only", ".*"], "--only '.*'"), "only not UTF-8": (["--only", "\udcff"], "--only"),
    "only a NUL": (["--only", "\0"], "--only"), "limit 0": (["--limit", "0"], "whole number from 1"), "limit -1": (["--limit", "-1"], "whole number from 1"),
    "limit 1e3": (["--limit", "1e3"], "whole number from 1"), "limit ²": (["--limit", "²"], "whole number from 1"),
    "limit of 5,000 digits": (["--limit", "9" * 5000], "whole number from 1"), "workers 0": (["--workers", "0"], "whole number from 1"),
    "workers many": (["--workers", "99999999999"], "--workers"), "gpus of letters": (["--gpus", "a"], "--gpus"), "gpus twice": (["--gpus", "0,0"], "--gpus"),
    "gpus with a gap": (["--gpus", "0,,1"], "--gpus"), "gpus below 0": (["--gpus=-1"], "--gpus"), "on a moon": (["--on", "moon"], "invalid choice"),
    "shortened": (["--dry"], "unrecognized arguments"), "two files": (["b.yaml"], "unrecognized arguments"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options(judge, plan, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(grid("grid: {seed: [1, 2]}"))
    judge(tmp_path, lambda: plan(*arguments), words)
    assert not (tmp_path / "pwned").exists()


def cell(source, kind="code", tags=("parameters",), **more):
    return {
        "cell_type": kind,
        "metadata": {"tags": tags},
        "source": source,
        "outputs": [],
        "execution_count": None,
        **more,
    }


def notebook(*cells, **more):
    return json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": cells} | more)


STREAM = {"output_type": "stream", "name": "stdout", "text": "x" * 100_000_000}
NOTEBOOKS = {  # a notebook, and what its line must hold
    "no parameters": (notebook(cell("a = 1", tags=())), "required one code cell tagged `parameters`, got 0"), "two": (notebook(cell("a = 1"), cell("b = 1")), "got 2"),
    "in Markdown": (notebook(cell("a = 1", "markdown")), "got 1 (markdown)"), "cut": (notebook(cell("a = 1"))[:-9], "required a Jupyter notebook"),
    "empty": ("", "required a Jupyter notebook"), "a list": ("[]", "required a Jupyter notebook"), "HTML": ("<html>", "required a Jupyter notebook"),
    "BOM": ("\ufeff" + notebook(cell("seed: int = 1")), ""), "deep": ("[" * 100_000, "required a Jupyter notebook"),
    "NaN": ('{"cells": NaN}', "required a Jupyter notebook"), "nbformat 3": (json.dumps({"nbformat": 3, "worksheets": [{"cells": []}]}), "format 3"),
    "cells are texts": (notebook("a"), "required a Jupyter notebook"), "cells are a map": (json.dumps({"cells": {"a": 1}}), "required a Jupyter notebook"),
    "no metadata": (json.dumps({"cells": [{"cell_type": "code"}]}), "required a Jupyter notebook"), "tags are a text": (notebook(cell("seed = 1", tags="parameters")), ""),
    "tags are a map": (notebook(cell("seed = 1", tags={"parameters": 1})), ""),
    "tags are numbers": (notebook(cell("seed = 1", tags=[1, [2]])), "required a Jupyter notebook"),
    "source is a list": (notebook(cell(["seed: int = 1\n", "lr: float = 1.0"])), ""), "source has numbers": (notebook(cell([1, 2])), "required a Jupyter notebook"),
    "source is null": (notebook(cell(None)), "required a Jupyter notebook"),
    "unknown kernel": (notebook(cell("seed: int = 1"), metadata={"kernelspec": {"name": "nope"}}), ""),
    "100 MB output": (notebook(cell("seed: int = 1"), cell("print()", tags=(), outputs=[STREAM])), ""),
    "magic": (notebook(cell("%matplotlib inline\nseed = 1")), "must be Python, got line 1"), "shell": (notebook(cell("!touch pwned")), "must be Python, got line 1"),
    "code": (notebook(cell("import os\nseed = 1")), "line 1 of the parameters cell must be"), "call": (notebook(cell("seed = int('1')")), "plain literal, got code"),
    "f-string": (notebook(cell("name = f'{1}'")), "plain literal, got code"), "two names": (notebook(cell("a = b = 1")), "line 1 of the parameters cell must be"),
    "name twice": (notebook(cell("seed = 1\nseed = 2")), "seed stands twice"), "unpacked": (notebook(cell("a, b = 1, 2")), "line 1 of the parameters cell must be"),
    "no value": (notebook(cell("seed: int")), "line 1 of the parameters cell must be"), "type of their own": (notebook(cell("a: Path = 'x'")), "type of a must be plain"),
    "type is code": (notebook(cell("a: __import__('os').system('touch pwned') = 1")), "type of a must be plain"),
    "type is broken": (notebook(cell("a: 'list[' = 1")), "type of a must be plain"), "type of no list": (notebook(cell("a: list[()] = 1")), "a must be a list"),
    "literal of code": (notebook(cell("a: Literal[f()] = 1")), "type of a must be plain"),
    "default of another type": (notebook(cell("seed: int = 'x'")), "seed must be a whole number"), "NUL": (notebook(cell("seed = 1\0")), "must be Python"),
    "deep literal": (notebook(cell(f"a = {'[' * 500}{']' * 500}")), "must be Python"), "deep minus": (notebook(cell(f"a = {'-' * 50_000}1")), "must be Python"),
    "5,000 digits": (notebook(cell(f"a = {'9' * 5000}")), "must be Python"), "infinite": (notebook(cell("lr: float = 1e400")), "lr must be a finite number"),
    "a set": (notebook(cell("a = {1, 2}")), "a must be"), "bytes": (notebook(cell("a = b'x'")), "type of a must be plain"),
    "complex": (notebook(cell("a = 1j")), "type of a must be plain"), "half a character": (notebook(cell("a = '\\ud800'")), ""),
    "lone surrogate in the file": (notebook(cell("a = 1")).replace("a = 1", "a = '\\ud800'"), "must be Python"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), NOTEBOOKS.values(), ids=NOTEBOOKS.keys())
def test_notebooks(judge, plan, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n.ipynb").write_text(text)
    (tmp_path / "grid.yaml").write_text("notebook: n.ipynb\n")
    judge(tmp_path, plan, words)
    assert not (tmp_path / "pwned").exists()


def make_pipe(path):
    os.mkfifo(path)


NO_FILES = {  # how to make what is no file
    "missing": lambda path: None,
    "a pipe": make_pipe,
    "a folder": Path.mkdir,
    "a loop": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to a pipe": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
    "0 bytes": lambda path: path.write_bytes(b""),
    "NUL bytes": lambda path: path.write_bytes(b"\0" * 5000),
    "2 TB of nothing": lambda path: (path.touch(), os.truncate(path, 2 << 40)),
}  # fmt: skip


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES.keys())
@pytest.mark.parametrize("name", ["grid.yaml", "n.ipynb", "p.py"])
def test_what_is_no_file(judge, plan, tmp_path, monkeypatch, name, make):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n.ipynb").write_text(notebook(cell("parts: list[str] = []")))
    (tmp_path / "p.py").write_text("")
    (tmp_path / "grid.yaml").write_text("notebook: n.ipynb\nparts: [p.py]\n")
    (tmp_path / name).unlink()
    make(tmp_path / name)
    fine = name == "p.py" and make is NO_FILES["0 bytes"]
    judge(
        tmp_path, plan, "" if fine else name if make is not NO_FILES["0 bytes"] or name != "grid.yaml" else "a mapping"
    )


LOSS = "from seglib import register\n@register('loss')\ndef own(logits, target, weight): return logits.mean()\n"
PARTS = {  # a file of parts, and what its line must hold
    "syntax": ("def", "p.py must be Python, got line 1"), "NUL": ("a = 1\0", "p.py must be Python"), "deep": ("-" * 50_000 + "1", "p.py must be Python"),
    "half a character": ("a = '\\ud800'\n" + LOSS, ""), "BOM": ("\ufeff" + LOSS, ""), "latin-1": ("a = 'é'".encode("latin-1"), "UTF-8"),
    "UTF-16": (LOSS.encode("utf-16"), "UTF-8"), "shipped name": (LOSS.replace("own", "dice"), "that of a shipped loss"),
    "kind": (LOSS.replace("'loss'", "'los'"), "did you mean 'loss'"), "kind is a number": (LOSS.replace("'loss'", "3"), "unknown kind of part 3"),
    "kind is a list": (LOSS.replace("'loss'", "[]"), "unknown kind of part []"),
    "arguments": (LOSS.replace("logits, target, weight", "*a"), "required the arguments own("),
    "a class": (
        LOSS.replace("def own(logits, target, weight): return logits.mean()", "class own: pass"),
        "got a class",
    ),
    "twice": (LOSS + LOSS.partition("\n")[2], "stands in"), "missing module": ("import no_such_module\n" + LOSS, "No module named 'no_such_module'"),
    "missing name": ("from seglib import nothing\n" + LOSS, "ImportError"), "division": ("1 / 0\n" + LOSS, "ZeroDivisionError"),
    "exit()": ("exit()\n" + LOSS, "p.py must run as Python, got SystemExit"), "exit(0)": ("import sys; sys.exit(0)\n" + LOSS, "got SystemExit"),
    "os._exit(0)": ("import os; os._exit(0)\n" + LOSS, "could not run: it ended without an answer"), "os.abort()": ("import os; os.abort()\n" + LOSS, "could not run"),
    "interrupt": ("raise KeyboardInterrupt\n" + LOSS, "KeyboardInterrupt"), "recursion": ("def f(): f()\nf()\n" + LOSS, "RecursionError"),
    "memory": ("a = [0] * 10**13\n" + LOSS, "MemoryError"), "endless": ("while True: pass\n" + LOSS, "p.py must run within 1 s"),
    "sleeps": ("import time; time.sleep(600)\n" + LOSS, "p.py must run within 1 s"), "input()": ("input()\n" + LOSS, "must run as Python"),
    "prints escapes": ("raise ValueError('\\x1b[31m')\n" + LOSS, "\\x1b[31m"),
    "long words": ("raise ValueError('x' * 100_000)\n" + LOSS, "ValueError"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), PARTS.values(), ids=PARTS.keys())
def test_parts(judge, plan, tmp_path, monkeypatch, text, words):
    """What may end the process is asked about in a child, as a grid asks; the others in this one."""
    if any(each in str(text) for each in ("_exit", "abort", "Interrupt")):
        monkeypatch.setattr(check, "_run_child", ASK_CHILD)
    monkeypatch.setattr(check, "LONGEST", 1)
    (tmp_path / "p.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "grid.yaml").write_text(grid("parts: [p.py]"))
    judge(tmp_path, plan, words)


def test_what_parts_print_is_no_answer(tmp_path):
    (tmp_path / "p.py").write_text("import atexit; print('[1]'); atexit.register(print, '[2]')\n" + LOSS)
    question = {
        "about": "augmentation",
        "augmentation": [{"nope": {}}],
        "image_size": 64,
        "parts": [f"{tmp_path}/p.py"],
    }
    (answer,) = ASK_CHILD([question])
    assert "nope" in answer


ENVIRONMENTS = {  # what stands in the environment (None: not there), and what a dry run's line must hold
    "SEGLIB_CACHE is a device": ({"SEGLIB_CACHE": "/dev/null"}, ""), "SEGLIB_CACHE is a file": ({"SEGLIB_CACHE": "{folder}/grid.yaml"}, ""),
    "SEGLIB_CACHE of 5,000": ({"SEGLIB_CACHE": "/tmp/" + "x" * 5000}, ""), "SEGLIB_CACHE of no user": ({"SEGLIB_CACHE": "~nouser/x"}, ""),
    "SEGLIB_OUTPUTS is a file": ({"SEGLIB_OUTPUTS": "{folder}/grid.yaml"}, "required a folder to write to"),
    "SEGLIB_TRUST_LINKS": ({"SEGLIB_TRUST_LINKS": "::~nouser:/dev/zero:" + "x" * 5000}, ""), "OMP_NUM_THREADS": ({"OMP_NUM_THREADS": "abc"}, ""),
    "TMPDIR is missing": ({"TMPDIR": "/no/such/folder"}, ""), "HOME is unset": ({"HOME": None, "SEGLIB_CACHE": None}, ""), "HOME is a file": ({"HOME": "/etc/passwd"}, ""),
    "LANG=C": ({"LANG": "C", "LC_ALL": "C"}, ""), "LANG=C without UTF-8": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "export PYTHONUTF8=1"),
    "ascii": ({"PYTHONIOENCODING": "ascii"}, ""), "COLUMNS": ({"COLUMNS": "-5"}, ""), "nothing at all": (dict.fromkeys(os.environ), ""),
}  # fmt: skip


@pytest.fixture
def start(tmp_path):
    """Start the real run_grid.py in tmp_path, and wait for it at most so long."""

    def start(*arguments, name="grid.yaml", **environment):
        values = {each: value and value.replace("{folder}", str(tmp_path)) for each, value in environment.items()}
        env = {each: value for each, value in (os.environ | values).items() if value is not None}
        command = [sys.executable, PROJECT / "run_grid.py", name, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=30)
        return done.returncode, (done.stderr or done.stdout).decode("utf-8", "backslashreplace")

    return start


@pytest.mark.parametrize(("environment", "words"), ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_environments(judge, start, tmp_path, environment, words):
    (tmp_path / "n.ipynb").write_text(notebook(cell("name: str = 'é'")))
    (tmp_path / "grid.yaml").write_text("notebook: n.ipynb\ngrid: {name: [é, 종이]}")
    judge(tmp_path, lambda: start("--dry-run", **environment), words)


def test_arguments_and_paths_that_are_not_utf_8(judge, start, tmp_path):
    (tmp_path / "n.ipynb").write_text(notebook(cell("name: str = 'é'")))
    (tmp_path / "grid.yaml").write_text("notebook: n.ipynb")
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    (tmp_path / "out").write_text("a file")
    for arguments, name, words in (
        ([b"--set", b"name=\xff"], "grid.yaml", "special characters"),
        ([b"--only", b"\xff"], "grid.yaml", "--only"),
        (["--dry-run", "--outputs", folder], "grid.yaml", ""),
        ([], b"\xff", "required a file"),
        ([], b"\xff/grid.yaml", "no such grid file"),
        (["--dry-run", "--outputs", "out"], "grid.yaml", "required a folder to write to"),
        (["--outputs", "out"], "grid.yaml", "required a folder to write to"),
        (["--outputs", "/dev/null/a"], "grid.yaml", "required a folder to write to"),
        (["--outputs", "x" * 300], "grid.yaml", "required a folder to write to"),
    ):  # fmt: skip
        judge(tmp_path, partial(start, *arguments, name=name), words)


@pytest.mark.parametrize(
    "command",
    ["submission check a.csv --samp b.csv", "submission list --per 3", "convert a b --t coco", "list loss --part p.py"],
)
def test_shortened_options_are_refused(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    err = capsys.readouterr().err
    assert "Traceback" not in err and (
        "unrecognized arguments" in err or "unknown arguments" in err or "required: --to" in err
    )
