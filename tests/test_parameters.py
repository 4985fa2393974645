"""`p = read_parameters()`: the notebook's own names of now, in a kernel and in a script."""

import json
import subprocess
import sys

import nbformat
import papermill
import pytest

from seglib import read_parameters
from seglib.errors import InputError
from seglib.files import PROJECT
from seglib.parameters import Parameter, Parameters

CELL = 'lr: float = 1e-3  # of the weights\nname: str = "a"\nloss: dict = {"dice": 1}'


@pytest.fixture
def run(tmp_path):
    """Execute cells in a kernel, the first of them tagged `parameters`; return what each one printed."""

    def run(*sources, **parameters):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
        papermill.execute_notebook(
            str(tmp_path / "n.ipynb"), str(tmp_path / "out.ipynb"), parameters, kernel_name="python3",
            language="python", cwd=str(PROJECT), progress_bar=False,
        )  # fmt: skip
        cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
        cells = [cell for cell in cells if cell["metadata"]["tags"] != ["injected-parameters"]]
        return ["".join(text for output in cell["outputs"] for text in output.get("text", "")) for cell in cells]

    return run


def test_a_view_reads_the_names_of_the_notebook_as_they_are_now(run):
    printed = run(
        CELL,
        "from seglib import read_parameters\np = read_parameters()\nprint(p.lr, p.name, dict(p))",
        "lr = 1e-5\ncounter: int = 3",
        "print(p.lr, [*p])",
        CELL.replace("name", "title"),
        "print([*p])",
        "lr: float = 0.5",
        "print(p.lr, [*p], p.to_dict(exclude=['lr', 'loss']))",
        name="injected",
    )
    assert printed[1] == "0.001 injected {'lr': 0.001, 'name': 'injected', 'loss': {'dice': 1}}\n"
    assert printed[3] == "1e-05 ['lr', 'name', 'loss']\n"
    assert printed[5] == "['lr', 'title', 'loss']\n"
    assert printed[7] == "0.5 ['lr', 'title', 'loss'] {'title': 'a'}\n"


def test_a_script_has_the_parameters_at_its_top(tmp_path):
    (tmp_path / "script.py").write_text(
        f"from seglib import read_parameters\n{CELL}\np = read_parameters()\nlr = 2.0\nprint(p.lr, p.to_dict(['loss']))"
    )
    output = subprocess.check_output([sys.executable, str(tmp_path / "script.py")], text=True)
    assert output == "2.0 {'lr': 2.0, 'name': 'a'}\n"


def test_without_a_parameters_cell_one_line_says_so():
    namespace = {"__name__": "nowhere", "read_parameters": read_parameters}
    with pytest.raises(InputError, match=r"required a parameters cell .* got none; run it first"):
        exec("read_parameters()", namespace)


def test_a_view_cannot_be_written_to_and_knows_its_names():
    p = Parameters({"lr": 0.1}, lambda: {"lr": Parameter("float", 0.1, "")})
    with pytest.raises(InputError, match=r"p.lr cannot be set: write lr = 1 in a cell"):
        p.lr = 1
    with pytest.raises(AttributeError, match="unknown parameter 'lrr'; did you mean 'lr'"):
        p.lrr  # noqa: B018
    assert (repr(p), dir(p), "lr" in p, "x" in p) == ("lr = 0.1", ["lr", "to_dict"], True, False)
