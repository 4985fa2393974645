import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seglib.errors import InputError
from seglib.files import PROJECT
from seglib.runs.grid import find_neighbours, load_grid
from seglib.runs.keys import find_notebook

TRAIN = f"notebook: {PROJECT}/notebooks/02_train.ipynb\n"


@pytest.fixture
def load(tmp_path, write_grid):
    """Load a grid over the notebook with the parameters do, weight, seed and run_dir."""

    def load(text, debug=False, **overrides):
        return load_grid(write_grid(text), tmp_path / "outputs", overrides, debug)

    return load


@pytest.fixture
def load_training(tmp_path):
    """Load a grid over notebooks/02_train.ipynb."""

    def load(text, **overrides):
        (tmp_path / "grid.yaml").write_text(TRAIN + text)
        return load_grid(tmp_path / "grid.yaml", tmp_path / "outputs", overrides)

    return load


def names(grid):
    return [run.name for run in grid.runs]


def test_axes_are_multiplied_in_the_order_of_the_file(load):
    grid = load("fixed: {do: x}\ngrid: {weight: [0, 0.5], seed: [1, 2]}")
    assert names(grid) == ["weight=0,seed=1", "weight=0,seed=2", "weight=0.5,seed=1", "weight=0.5,seed=2"]
    assert grid.varied == ["weight", "seed"] and grid.runs[2].varied == {"weight": 0.5, "seed": 1}
    folder = grid.folder / "weight=0.5,seed=1"
    assert grid.runs[2].parameters == {"do": "x", "weight": 0.5, "seed": 1, "run_dir": str(folder)}


def test_runs_stand_beside_the_product_or_alone(load):
    assert names(load("grid: {seed: [1, 2]}\nruns: [{weight: 0.5}]")) == ["seed=1", "seed=2", "weight=0.5"]
    assert names(load("runs: [{weight: 0.5}, {weight: 1, seed: 3}]")) == ["weight=0.5", "weight=1,seed=3"]
    assert names(load("")) == ["run"]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("grid: {seed: [1, 2]}", {"weight": 2}, ["seed=1", "seed=2"]),
        ("grid: {seed: [1, 2]}", {"seed": 5}, ["seed=5"]),
        ("grid: {seed: [1, 2]}", {"seed": [5, 6]}, ["seed=5", "seed=6"]),
        ("fixed: {seed: 1}", {"seed": [5, 6]}, ["seed=5", "seed=6"]),
        ("grid: {seed: [1]}", {"weight": [1, 2]}, ["seed=1,weight=1", "seed=1,weight=2"]),
        (
            "runs: [{weight: 1}, {weight: 2}]",
            {"seed": [5, 6]},
            [f"weight={w},seed={s}" for w in (1, 2) for s in (5, 6)],
        ),
        ("runs: [{weight: 1, seed: 1}, {weight: 2}]", {"seed": 5}, ["weight=1,seed=5", "weight=2"]),
    ],
)
def test_the_command_line_overrides_the_file(load, text, overrides, expected):
    grid = load(text, **overrides)
    assert names(grid) == expected
    for run in grid.runs:
        for name, value in overrides.items():
            assert run.parameters[name] in (value if isinstance(value, list) else [value])


def test_a_baseline_that_the_command_line_takes_out_of_the_grid_is_let_go(load):
    text = "grid: {seed: [1, 2], weight: [0, 1]}\nbaseline: {weight: 0}"
    assert load(text).file.baseline == {"weight": 0}
    assert load(text, weight=1).file.baseline == {} and load(text, weight=[1, 2]).file.baseline == {}
    assert load(text, weight=[0, 2]).file.baseline == {"weight": 0}


def test_seeds_are_those_of_every_run_and_the_command_line_has_the_last_word(load):
    text = "runs: [{weight: 0.5}, {weight: 1}]\nseeds: [1, 2]"
    assert names(load(text)) == ["weight=0.5,seed=1", "weight=0.5,seed=2", "weight=1,seed=1", "weight=1,seed=2"]
    assert (
        names(load(text, seed=7)) == ["weight=0.5", "weight=1"] and load(text, seed=7).runs[0].parameters["seed"] == 7
    )
    assert names(load("seeds: [1, 2]")) == ["seed=1", "seed=2"]
    assert names(load(text, seed=[3])) == ["weight=0.5,seed=3", "weight=1,seed=3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: [1, 1]", "`seeds` must be auto or a list of different whole numbers, got a list"),
        ("seeds: 3", "`seeds` must be auto or a list of different whole numbers, got the number 3"),
        ("seeds: [1]\ngrid: {seed: [1, 2]}", "`seeds` gives each run its seeds; take the parameter seed out"),
        ("seeds: auto", "`seeds: auto` adds seeds until conditions are told from a baseline; name one as `baseline`"),
        ("seeds: [1]\nmax_seeds: 3", "`max_seeds` belongs to `seeds: auto`; add that, or take it out"),
        ("seeds: auto\nmax_seeds: 1", "`max_seeds` must be a whole number from 2 to 50, got the number 1"),
        ("one_factor: yes please", "`one_factor` must be true or false, got the text 'yes please'"),
        ("factors: [weight]", "`factors` must be a list of lists of two or more parameters, got a list"),
        ("one_factor: true", "`one_factor` must have a `baseline`, from which each condition differs; name one"),
        ("factors: [[weight, sead]]", "`factors`: unknown parameter 'sead'; did you mean 'seed'?"),
    ],
)
def test_seeds_and_factors_are_checked(load, text, words):
    with pytest.raises(InputError) as caught:
        load(text)
    assert words in str(caught.value)


TWO = "runs: [{weight: 0}, {weight: 1, do: slow}, {weight: 1}, {weight: 1, do: slow, seed: 3}]\nbaseline: {weight: 0}\n"


def test_one_factor_refuses_conditions_that_differ_in_two_and_names_them(load):
    with pytest.raises(InputError) as caught:
        load(TWO + "one_factor: true\nthen: [{notebook: none.ipynb}]")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "there is no notebook" in lines[1]
    assert lines[0].endswith(
        "`one_factor` must have conditions that differ from the baseline in one factor, got weight=1,do=slow (do and weight);"
        " take them out, or name what is meant to go together in `factors`: [[A, B]]"
    )
    assert len(load(TWO).runs) == len(load(TWO + "one_factor: true\nfactors: [[do, weight]]").runs) == 4


def test_one_factor_goes_by_resolved_values_seeds_and_each_baseline(load):
    same = (
        "fixed: {do: slow}\nruns: [{weight: 0}, {weight: 0.0, seed: 3}, {weight: 1, do: slow}]\nbaseline: {weight: 0}\n"
    )
    assert len(load(same + "one_factor: true").runs) == 3
    crossed = "grid: {weight: [0, 1], do: [ok, slow]}\nbaseline: {weight: 0}\none_factor: true"
    assert len(load(crossed).runs) == 4  # within each `do`
    with pytest.raises(InputError, match=r"got weight=1,do=slow \(do and weight\)"):
        load(crossed.replace("{weight: 0}", "{weight: 0, do: ok}"))
    assert not load(crossed, weight=1).file.one_factor  # the command line took the baseline out


def test_a_baseline_may_name_a_value_that_a_run_has_by_default(load):
    assert load("runs: [{weight: 0.5}, {seed: 3}]\nbaseline: {weight: 0}").file.baseline == {"weight": 0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fixed: {sed: 1}", "unknown parameter 'sed'; did you mean 'seed'?"),
        (
            "grid: {weight: [1, a]}",
            "[weight=a]: weight must be a number, got 'a' (a text) (the notebook's default is 0.0)",
        ),
        ("grid: {seed: [1, 1]}", "the same run stands twice, as seed=1~"),
        ("runs: [{}, {seed: 21}]", "the same run stands twice, as run and seed=21; take one out"),
        (
            "grid: {seed: [1]}\nbaseline: {seed: 2}",
            "`baseline` must be the values of a run, got seed=2, which no run has",
        ),
        ("baseline: {sead: 2}", "`baseline`: unknown parameter 'sead'; did you mean 'seed'?"),
        ("fixed: {run_dir: /tmp/x}", "run_dir is set by the runner; leave it out"),
        ("grid: {run_dir: [a, b]}", "run_dir is set by the runner; leave it out"),
        ("then: [{notebook: nowhere.ipynb}]", "`then`: "),
        (f"then: [{{notebook: {PROJECT}/notebooks/01_eda.ipynb}}]", "must have a parameter grid_dir"),
        (
            f"then: [{{notebook: {PROJECT}/notebooks/02_train.ipynb, each: true, fixed: {{lr: x}}}}]",
            "02_train.ipynb: lr must be a number",
        ),
        (
            "grid: {seed: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], weight: *a, do: *a, run_dir: *a, x: *a, y: *a}",
            "at most 20,000 runs, got more",
        ),
    ],
)
def test_a_grid_that_cannot_run_is_refused(load, tmp_path, text, words):
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        load(text)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path}/grid.yaml") and words in lines[0]
    assert len(lines) == 1 or "twice" in words or "run_dir" in words
    assert time.monotonic() - began < 5 and not (tmp_path / "outputs").exists()


def test_the_command_line_is_named_where_the_mistake_came_from_it(load):
    with pytest.raises(InputError, match=r"^--set: weight must be a number"):
        load("grid: {seed: [1, 2]}", weight="a")
    with pytest.raises(InputError, match=r"^--set \[seed=a\]: seed must be a whole number"):
        load("", seed=[1, "a"])


def test_debug_needs_a_notebook_that_knows_it(load):
    with pytest.raises(InputError, match=r"--debug: .*notebook.ipynb must have a parameter `debug`"):
        load("", debug=True)


def test_the_four_line_promise(load_training, tmp_path):
    """A misspelt parameter, a wrong type, an unknown loss, an encoder that cannot be dilated: one line each."""
    with pytest.raises(InputError) as caught:
        load_training(
            "fixed: {encoder_weights: '', image_sise: 128}\n"
            "grid:\n"
            "  lr: [1e-3, fast]\n"
            "  loss: [{cross_entropy: 1.0}, {cross_entropy: 0.9, focl: 0.1}]\n"
            "  architecture: [FPN, DeepLabV3Plus]\n"
            "  encoder: [resnet18, densenet121]\n"
        )
    where = f"{tmp_path}/grid.yaml"
    typo, loss, lr, encoder = caught.value.lines
    assert typo == f"{where}: unknown parameter 'image_sise'; did you mean 'image_size'?"
    assert loss.startswith(f"{where} [loss=ce0.9+focl0.1]: unknown loss 'focl'; did you mean 'focal'?")
    assert lr.startswith(f"{where} [lr=fast]: lr must be a number, got 'fast' (a text)")
    assert encoder.startswith(
        f"{where} [architecture=DeepLabV3Plus, encoder=densenet121]: encoder 'densenet121' cannot be dilated,"
        " which DeepLabV3Plus needs; architectures that take it: Unet"
    )


def test_numbers_are_what_the_notebook_means_so_that_1_and_1_0_are_the_same_run(load_training):
    run = load_training("fixed: {encoder_weights: '', lr: 1, loss: {focal: 1}}").runs[0]
    assert repr(run.parameters["lr"]) == "1.0" and run.parameters["loss"] == {"focal": 1.0}
    assert load_training("fixed: {encoder_weights: '', lr: 1.0, loss: {focal: 1.0}}").runs[0].key == run.key
    with pytest.raises(InputError, match="the same run stands twice"):
        load_training("fixed: {encoder_weights: ''}\ngrid: {lr: [1, 1.0]}")


def key_of(load, text, **overrides):
    return load(text, **overrides).runs[0].key


def test_the_key_follows_parameters_and_code_but_not_prose_or_names(load, tmp_path, write_notebook):
    key = key_of(load, "")
    assert key_of(load, "fixed: {seed: 21}") == key  # the default, written down
    assert key_of(load, "name: other\ngrid: {do: [ok]}") == key
    assert key_of(load, "fixed: {seed: 22}") != key

    def reload(change):
        notebook = json.loads((tmp_path / "notebook.ipynb").read_text())
        change(notebook["cells"])
        (tmp_path / "notebook.ipynb").write_text(json.dumps(notebook))
        return load_grid(tmp_path / "grid.yaml", tmp_path / "outputs", {}).runs[0].key

    load("")
    assert reload(lambda cells: cells.insert(0, {"cell_type": "markdown", "source": "prose", "metadata": {}})) == key
    assert reload(lambda cells: cells[-1].update(outputs=[{"output_type": "stream"}], execution_count=3)) == key
    assert reload(lambda cells: cells[-1].update(source="print(1)")) != key


def test_the_key_follows_the_content_of_data_and_weights_not_where_they_lie(load_training, small_data, tmp_path):
    shutil.copytree(small_data, tmp_path / "a")
    (tmp_path / "a.pth").write_bytes(b"weights")
    first = key_of(load_training, "", data_dir=str(tmp_path / "a"), encoder_weights=str(tmp_path / "a.pth"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copy(tmp_path / "a.pth", tmp_path / "b.pth")
    overrides = {"data_dir": str(tmp_path / "b"), "encoder_weights": str(tmp_path / "b.pth")}
    assert key_of(load_training, "", **overrides) == first
    (tmp_path / "b.pth").write_bytes(b"other")
    assert (with_other_weights := key_of(load_training, "", **overrides)) != first
    images = sorted((tmp_path / "b").rglob("*.jpg"))
    images[0].write_bytes(images[1].read_bytes())
    assert key_of(load_training, "", **overrides) not in (first, with_other_weights)


def test_relative_paths_are_seen_from_the_current_folder_and_kept_absolute(load_training, small_data, monkeypatch):
    monkeypatch.chdir(small_data.parent)
    grid = load_training("fixed: {encoder_weights: ''}\ngrid: {data_dir: [small]}")
    assert grid.runs[0].parameters["data_dir"] == str(small_data) and str(small_data) in grid.file.as_yaml()


def test_a_notebook_is_found_from_the_current_folder_the_project_or_the_grid_file(
    tmp_path, monkeypatch, write_notebook
):
    monkeypatch.chdir(tmp_path)
    grid_path = tmp_path / "params" / "grid.yaml"
    grid_path.parent.mkdir()
    beside = write_notebook(tmp_path / "params" / "n.ipynb")
    assert find_notebook("n.ipynb", grid_path) == beside
    assert find_notebook("n.ipynb", Path("params/grid.yaml")) == beside
    here = write_notebook(tmp_path / "n.ipynb")
    assert find_notebook("n.ipynb", grid_path) == here
    assert find_notebook("notebooks/02_train.ipynb", grid_path) == PROJECT / "notebooks" / "02_train.ipynb"


def test_a_thousand_runs_are_planned_without_torch(tmp_path):
    axes = {"lr": [n / 1000 for n in range(1, 11)], "weight_decay": [n / 1000 for n in range(10)], "seed": [*range(10)]}
    (tmp_path / "grid.yaml").write_text(f"{TRAIN}fixed: {{encoder_weights: ''}}\ngrid: {json.dumps(axes)}\n")
    program = (
        f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\nimport run_grid\ncode = run_grid.main(sys.argv[1:])\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'papermill') if name in sys.modules])\nsys.exit(code)"
    )
    command = [sys.executable, "-c", program, tmp_path / "grid.yaml", "--dry-run", "--outputs", tmp_path / "outputs"]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and lines[-1] == "[]" and "1000 runs, 0 done before, 1000 to go" in lines[-3]
    assert len({line for line in lines if line.startswith("run ")}) == 1000 and not (tmp_path / "outputs").exists()


def test_twenty_thousand_runs_are_listed_in_seconds(call, write_grid):
    began = time.monotonic()
    result = call(write_grid(f"grid: {{seed: {list(range(20_000))}}}"), "--dry-run")
    assert result.code == 0 and "\nseed: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (20000 values)\n" in result.out
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], "nowhere.yaml: there is no such grid file"),
        (["."], ".: required a file that can be read, got: Is a directory"),
        (["GRID", "--set", "seed"], "--set: required NAME=VALUE, got 'seed'"),
        (["GRID", "--set", "=3"], "--set: required NAME=VALUE, got '=3'"),
        (["GRID", "--set", "seed=[1"], "--set seed, line 1, column 3: required YAML, got: "),
        (["GRID", "--set", "seed=[]"], "--set seed: required a value, or a list of at least one, got an empty list"),
        (
            ["GRID", "--set", "seed=1", "--set", "seed=2"],
            "--set seed: required once, got twice; for several values write --set seed=[A,B]",
        ),
        (["GRID", "--set", "sede=1"], "--set: unknown parameter 'sede'; did you mean 'seed'?"),
        (["GRID", "--set", "run_dir=x"], "--set: run_dir is set by the runner; leave it out"),
        (["GRID", "--only", "seed=9"], "--only 'seed=9': required a part of a run's name, got none's; one is 'seed=1'"),
        (["GRID", "--debug"], "notebook.ipynb must have a parameter `debug`"),
    ],
)
def test_a_wrong_command_is_one_line_and_nothing_is_written(call, write_grid, tmp_path, arguments, words):
    path = write_grid("grid: {seed: [1]}")
    result = call(*[path if argument == "GRID" else argument for argument in arguments])
    assert result.code == 2 and result.out == "" and not (tmp_path / "outputs").exists()
    assert words in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--limit", "x"], ["--limit", "-1"], ["--nonsense"]])
def test_a_wrong_option_is_2_too(call, write_grid, arguments):
    result = call(write_grid(""), *arguments)
    assert result.code == 2 and "error: " in result.err and "Traceback" not in result.err


def test_empty_and_structured_values_can_be_set(call, write_grid, tmp_path):
    (tmp_path / "grid.yaml").write_text(TRAIN + "fixed: {encoder_weights: imagenet}\n")
    arguments = [
        "--set",
        "encoder_weights=",
        "--set",
        "loss={focal: 1e-1, dice: 1}",
        "--set",
        "seed=[1, 2]",
        "--dry-run",
    ]
    result = call(tmp_path / "grid.yaml", *arguments)
    assert result.code == 0 and result.err == "" and result.out.count("run ") == 2


def test_an_outputs_folder_that_cannot_be_written_is_one_line(write_grid, tmp_path, call):
    (tmp_path / "outputs").write_text("a file")
    result = call(write_grid(""))
    assert result.code == 2 and result.err.startswith(f"{tmp_path}/outputs/grid: required a folder to write to, got ")


def test_a_list_on_the_command_line_does_not_double_runs_that_are_listed_for_it(load):
    text = "fixed: {do: x}\ngrid: {weight: [0, 1]}\nruns: [{weight: 1, seed: 2}, {weight: 1, seed: 3}, {weight: 5}]"
    grid = load(text, seed=[1, 2, 3])
    rows = [(run.varied["weight"], run.varied["seed"]) for run in grid.runs]
    assert sorted(rows) == [(weight, seed) for weight in (0, 1, 5) for seed in (1, 2, 3)]


def test_steps_weights_and_classes_that_cannot_be_are_refused_before_a_run(load_training):
    text = (
        "fixed: {encoder_weights: ''}\n"
        "runs:\n"
        "  - {augmentation: [flips, {ElasticTransfrm: {alpha: 40}}]}\n"
        "  - {augmentation: [flips, Normalize]}\n"
        "  - {architecture: FCDenseNet56, encoder: '', encoder_weights: imagenet}\n"
        "  - {architecture: FCN8s, encoder: resnet50}\n"
        "  - {mixing: {copy_paste: {classes: [Batery]}}}\n"
        "  - {loss: {focal: {gama: 2}}}\n"
        "  - {augmentation: [flips, {ElasticTransform: {alpha: 40, p: 0.5}}], mixing: {copy_paste: {classes: [Battery]}}}\n"
    )
    with pytest.raises(InputError) as caught:
        load_training(text)
    lines = str(caught.value).splitlines()
    words = [
        "unknown transform 'ElasticTransfrm'; did you mean 'ElasticTransform'",
        "Normalize cannot be used",
        "encoder_weights must be \"\" for an architecture without an encoder, got 'imagenet'",
        "FCN8s takes encoder 'vgg16', got 'resnet50'",
        "unknown class in mixing 'Batery'; did you mean 'Battery'?",
        "unknown option of loss.focal 'gama'; did you mean 'gamma'?",
    ]
    assert len(lines) == len(words)
    assert all(any(word in line for line in lines) for word in words), lines


def test_each_run_knows_its_neighbours_and_the_baseline(load):
    grid = load("grid: {seed: [1, 2], weight: [0, 1]}\nbaseline: {weight: 0}")
    first, *_, last = grid.runs
    near = find_neighbours(grid)
    assert near[first.name]["previous"] == "" and near[first.name]["next"] == grid.runs[1].name
    assert near[last.name]["previous"] == grid.runs[2].name and near[last.name]["next"] == ""
    assert near[last.name]["baseline"] == [grid.runs[0].name, grid.runs[2].name]
