import time

import pytest

from seglib.errors import InputError
from seglib.runs.grid_file import parse_yaml, read_grid_file

WHOLE = """\
# One condition at a time.
name: losses
notebook: notebooks/02_train.ipynb
fixed: {epochs: 20, lr: 1e-3}
grid:
  loss: [{cross_entropy: 1.0}, {cross_entropy: 0.9, focal: 1e-1}]
  seed: [21, 42]
runs: [{loss: {dice: 1}, seed: 7}]
baseline: {loss: {cross_entropy: 1.0}}
then:
  - {notebook: notebooks/03_error_analysis.ipynb, each: true}
  - {notebook: notebooks/05_compare.ipynb, fixed: {top: 3}}
"""


@pytest.fixture
def read(tmp_path):
    def read(text, name="grid.yaml"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_grid_file(path)

    return read


def test_a_whole_grid_file_is_read_as_it_is_meant(read):
    file = read(WHOLE)
    assert (file.name, file.notebook) == ("losses", "notebooks/02_train.ipynb")
    assert file.fixed == {"epochs": 20, "lr": 0.001}
    assert file.axes == {"loss": [{"cross_entropy": 1.0}, {"cross_entropy": 0.9, "focal": 0.1}], "seed": [21, 42]}
    assert file.listed == [{"loss": {"dice": 1}, "seed": 7}] and file.baseline == {"loss": {"cross_entropy": 1.0}}
    assert [(step.notebook[-16:], step.each, step.fixed) for step in file.then] == [
        ("r_analysis.ipynb", True, {}),
        ("05_compare.ipynb", False, {"top": 3}),
    ]


def test_a_grid_file_needs_only_a_notebook_and_is_named_after_itself(read):
    file = read("notebook: n.ipynb\nfixed:\ngrid:\nruns:\nthen:\nname:\n", "loss_sweep.yaml")
    assert (file.name, file.fixed, file.axes, file.listed, file.then) == ("loss_sweep", {}, {}, [], [])


def test_written_and_read_again_it_is_the_same(read):
    file = read(WHOLE)
    assert vars(read(file.as_yaml())) == vars(file)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("-1E+2", -100.0), (".5e1", 5.0), ("5.e-1", 0.5), ("'1e-3'", "1e-3")]
)
def test_numbers_in_scientific_notation_are_numbers(text, value):
    parsed = parse_yaml(text, "--set lr")
    assert parsed == value and type(parsed) is type(value)


def test_anchors_and_merges_work_as_in_yaml():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "x") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }


def bomb():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


HEAD = "notebook: n.ipynb\n"
BROKEN = {
    "not YAML": ("notebook: [", "grid.yaml, line 1, column 12: required YAML, got: "),
    "a tab": ("fixed:\n\tlr: 1", "grid.yaml, line 2, column 1: required YAML, got: found character '\\t'"),
    "empty": ("", "required a mapping with `notebook`, got nothing"),
    "a list": ("- notebook: n.ipynb", "required a mapping with `notebook`, got a list"),
    "a text": ("notebook", "required a mapping with `notebook`, got the text 'notebook'"),
    "two documents": ("a: 1\n---\na: 1", "line 2, column 1: required YAML, got: "),
    "a code tag": ("notebook: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "required a text file (UTF-8), got something else"),
    "control characters": ("notebook: \x07", "required YAML, got: unacceptable character #x0007"),
    "too large": (HEAD + "#" * 300_000, "required a grid file of at most 300,000 characters, got more"),
    "deep nesting": ("fixed: " + "[" * 5000, "required YAML, got nesting without end"),
    "an alias in itself": (HEAD + "fixed: &a {x: *a}", "required YAML, got: more values than a grid can have"),
    "an alias bomb": (bomb(), "required YAML, got: more values than a grid can have"),
    "a number too long": (HEAD + "fixed: {seed: " + "9" * 5000 + "}", "required YAML, got: Exceeds the limit"),
    "a date that is none": (HEAD + "fixed: {x: 2026-13-45}", "required YAML, got: month must be in 1..12"),
    "a name twice": (HEAD + "fixed: {lr: 1, lr: 2}", "line 2, column 16: required YAML, got: 'lr' stands twice"),
    "a name that is no text": (
        HEAD + "fixed: {no: 1}",
        "line 2, column 9: required YAML, got: the name False, which is no text",
    ),
    "a list as a name": (HEAD + "fixed: {[a]: 1}", "the name ['a'], which is no text"),
    "no notebook": ("fixed: {lr: 1}", "`notebook` must be the path of a notebook, got nothing"),
    "a number as notebook": ("notebook: 3", "`notebook` must be the path of a notebook, got the number 3"),
    "unknown key": (HEAD + "grids: {}", "unknown key 'grids'; did you mean 'grid'?"),
    "a parameter outside": (
        HEAD + "lr: 1",
        "unknown key 'lr'; choices: notebook, name, worthwhile, one_factor, max_seeds, timeout_hours, ",
    ),
    "fixed is a number": (
        HEAD + "fixed: 0\ngrid: {lr: [1]}",
        "`fixed` must be a mapping name: value, got the number 0",
    ),
    "worthwhile is a text": (HEAD + "worthwhile: no", "`worthwhile` must be a difference of mIoU from 0 to below 1"),
    "grid is a list": (HEAD + "grid: [1]", "`grid` must be a mapping name: value, got a list"),
    "axis is no list": (
        HEAD + "grid: {lr: 0.1}",
        "`grid`: lr must be a list of values, got the number 0.1; write lr: [VALUE, ...]",
    ),
    "empty axis": (HEAD + "grid: {lr: []}", "`grid`: lr must be a list of values, got an empty list"),
    "fixed and in the grid": (
        HEAD + "fixed: {lr: 1}\ngrid: {lr: [1]}",
        "lr stands in `fixed` and in `grid`; take one out",
    ),
    "runs is a mapping": (HEAD + "runs: {lr: 1}", "`runs` must be a list of mappings name: value, got a mapping"),
    "a run is a number": (
        HEAD + "runs: [{lr: 1}, 2]",
        "`runs`, entry 2, must be a mapping name: value, got the number 2",
    ),
    "a bad name": (
        HEAD + "name: ../up",
        "`name` must be a folder name (letters, digits, . _ + -; at most 80), got the text '../up'",
    ),
    "a hidden name": (HEAD + "name: .cache", "`name` must be a folder name"),
    "a number as name": (
        HEAD + "name: 3",
        "`name` must be a folder name (letters, digits, . _ + -; at most 80), got the number 3",
    ),
    "unknown key in then": (
        HEAD + "then: [{notebook: a, eech: true}]",
        "`then`: unknown key 'eech'; did you mean 'each'?",
    ),
    "each is no switch": (
        HEAD + "then: [{notebook: a, each: 1}]",
        "`then`: each must be true or false, got the number 1",
    ),
    "then, a folder that is the grid's own": (
        HEAD + "then: [{notebook: ..ipynb}]",
        "`then`: results go to a folder of the notebook's name, got '..ipynb'; rename it",
    ),
    "then, a folder in a file's place": (
        HEAD + "then: [{notebook: a/index.html.ipynb, each: true}]",
        "`then`: results go to a folder of the notebook's name, got 'a/index.html.ipynb'; rename it",
    ),
    "then without notebook": (
        HEAD + "then: [{each: true}]",
        "`then`: notebook must be the path of a notebook, got nothing",
    ),
    "then.fixed is a list": (
        HEAD + "then: [{notebook: a, fixed: [1]}]",
        "`then`: fixed must be a mapping name: value, got a list",
    ),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_grid_file_is_one_clear_line(read, tmp_path, text, words):
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        read(text)
    line = str(caught.value)
    assert line.startswith(str(tmp_path / "grid.yaml")) and words in line and "\n" not in line and len(line) < 400
    assert time.monotonic() - began < 60  # it does not hang


def test_all_mistakes_of_form_are_told_together(read):
    with pytest.raises(InputError) as caught:
        read("grids: {}\nname: 3\nfixed: 1")
    assert len(caught.value.lines) == 4
