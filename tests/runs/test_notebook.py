import json

import pytest

from seglib.errors import InputError
from seglib.files import PROJECT
from seglib.parameters import Parameter, read_defaults, read_schema
from seglib.runs.keys import calls, hash_code


def as_notebook(*cells):
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells)})


def code(source, *tags):
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": []}


def test_defaults_are_read_without_running_anything(tmp_path):
    cell = code(["# a comment\n", "a: float = -1e-3  # unit\n", 'b = {"x": [1, None]}\n', 'c: str = ""'], "parameters")
    (tmp_path / "n.ipynb").write_text(as_notebook(code("1 / 0"), cell))
    assert read_defaults(tmp_path / "n.ipynb") == {"a": -0.001, "b": {"x": [1, None]}, "c": ""}


def test_the_training_notebook_says_what_it_is(write_notebook, tmp_path):
    path = PROJECT / "notebooks" / "02_train.ipynb"
    assert calls(path, "save_result(") and read_schema(path)["lr"] == Parameter(
        "float", 1e-3, "learning rate after the warm-up"
    )
    bare = write_notebook(tmp_path / "n.ipynb", result="print('done')")
    assert not calls(bare, "save_result(")


def test_the_hash_is_of_the_code_alone(write_notebook, tmp_path):
    path = write_notebook(tmp_path / "n.ipynb", "x = 1")
    before = hash_code(path)
    notebook = json.loads(path.read_text())
    notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "prose"})
    notebook["cells"][0]["source"] = notebook["cells"][0]["source"].splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1))
    assert hash_code(path) == before
    assert hash_code(write_notebook(tmp_path / "n.ipynb", "x = 2")) != before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not JSON", "required a Jupyter notebook (JSON with cells), got something else"),
        ("[]", "required a Jupyter notebook"),
        ('{"cells": 3}', "required a Jupyter notebook"),
        ('{"cells": [3]}', "required a Jupyter notebook"),
        ('{"cells": [{"cell_type": "code"}]}', "required a Jupyter notebook"),
        ("[" * 100_000, "required a Jupyter notebook"),
        ('{"cells": [{"cell_type": "code", "metadata": {"tags": null}}]}', "required a Jupyter notebook"),
        (
            as_notebook(code("a = 1", "parameters") | {"cell_type": "markdown"}, code("a = 1", "parameters")),
            "required one code cell tagged `parameters`, got 2 (markdown, code); tag it in JupyterLab",
        ),
        (as_notebook(code("a = 1")), "required one code cell tagged `parameters`, got 0; tag it in JupyterLab"),
        (as_notebook(code("a = 1", "parameters"), code("a = 1", "parameters")), "tagged `parameters`, got 2"),
        (as_notebook(code("a = = 1", "parameters")), "the parameters cell must be Python, got line 1: invalid syntax"),
        (as_notebook(code("%matplotlib inline", "parameters")), "the parameters cell must be Python, got line 1"),
        (as_notebook(code("a = '\0'", "parameters")), "the parameters cell must be Python, got "),
        (as_notebook(code("import os", "parameters")), "line 1 of the parameters cell must be `name: type = literal`"),
        (as_notebook(code("a = 1\na, b = 1, 2", "parameters")), "line 2 of the parameters cell must be"),
        (as_notebook(code("a: int", "parameters")), "line 1 of the parameters cell must be"),
        (as_notebook(code("a = list(range(3))", "parameters")), "the default of a must be a plain literal, got code"),
        (as_notebook(code("a = {[]: 1}", "parameters")), "the default of a must be a plain literal, got code"),
    ],
)
def test_a_broken_notebook_is_one_clear_line(call, tmp_path, content, words):
    (tmp_path / "n.ipynb").write_text(content)
    (tmp_path / "grid.yaml").write_text(f"notebook: {tmp_path}/n.ipynb")
    result = call(tmp_path / "grid.yaml")
    assert result.code == 2 and result.err.startswith(f"{tmp_path}/n.ipynb: ") and words in result.err
    assert result.err.count("\n") == 1 and not (tmp_path / "outputs").exists()


def test_a_binary_notebook_and_one_that_is_not_there_are_one_line_each(call, tmp_path):
    (tmp_path / "n.ipynb").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="required a Jupyter notebook"):
        read_defaults(tmp_path / "n.ipynb")
    (tmp_path / "grid.yaml").write_text("notebook: nowhere.ipynb")
    assert "grid.yaml: there is no notebook 'nowhere.ipynb', neither in " in call(tmp_path / "grid.yaml").err
