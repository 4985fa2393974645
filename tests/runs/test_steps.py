"""The notebooks that follow a grid's runs, with a stand-in for papermill."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("stand_in")


@pytest.fixture
def write_grid_with_steps(write_grid, write_notebook, tmp_path):
    def write(text, source=""):
        write_notebook(tmp_path / "look.ipynb", source, parameters='run_dir: str = ""\ndo: str = "ok"\n')
        write_notebook(
            tmp_path / "compare.ipynb", parameters='grid_dir: str = ""\noutput_dir: str = ""\ntop: int = 3\n'
        )
        look = f"{{notebook: {tmp_path}/look.ipynb, each: true}}"
        compare = f"{{notebook: {tmp_path}/compare.ipynb, fixed: {{top: 5}}}}"
        return write_grid(f"{text}\nthen: [{look}, {compare}]")

    return write


def step_records(grid_folder):
    paths = [*grid_folder.glob("*/look*/record.json"), *grid_folder.glob("compare*/record.json")]
    return {str(path.parent.relative_to(grid_folder)): json.loads(path.read_text()) for path in sorted(paths)}


def test_steps_follow_each_run_or_all_of_them_and_are_told_where(call, write_grid_with_steps, grid_folder):
    result = call(write_grid_with_steps("grid: {seed: [1, 2]}"))
    steps = step_records(grid_folder)
    assert result.code == 0 and sorted(steps) == ["compare", "seed=1/look", "seed=2/look"]
    assert steps["seed=1/look"]["params"] == {"run_dir": str(grid_folder / "seed=1"), "do": "ok"}
    assert steps["compare"]["params"] == {
        "grid_dir": str(grid_folder),
        "output_dir": str(grid_folder / "compare"),
        "top": 5,
    }
    assert "[1/3] look seed=1: ok" in result.out and "[3/3] compare: ok" in result.out


def test_steps_that_are_done_are_not_done_again(call, write_grid_with_steps, grid_folder):
    path = write_grid_with_steps("grid: {seed: [1, 2]}")
    call(path)
    before = step_records(grid_folder)
    assert call(path).code == 0 and step_records(grid_folder) == before


def test_a_step_runs_again_when_its_runs_or_its_own_code_changed(call, write_grid_with_steps, grid_folder):
    call(write_grid_with_steps("grid: {seed: [1, 2]}"))
    before = step_records(grid_folder)
    call(write_grid_with_steps("grid: {seed: [1, 2, 3]}"))
    more = step_records(grid_folder)
    assert sorted(more) == ["compare", "compare.1", "seed=1/look", "seed=2/look", "seed=3/look"]
    assert more["compare.1"] == before["compare"] and more["seed=1/look"] == before["seed=1/look"]
    call(write_grid_with_steps("grid: {seed: [1, 2, 3]}", "print('a better look')"))
    assert {"seed=1/look.1", "seed=1/look"} < step_records(grid_folder).keys() and "compare.2" not in step_records(
        grid_folder
    )


def test_steps_follow_the_runs_that_are_well(call, write_grid_with_steps, grid_folder):
    assert call(write_grid_with_steps("grid: {do: [ok, raise]}")).code == 1
    assert sorted(step_records(grid_folder)) == ["compare", "do=ok/look"]


def test_no_step_follows_where_no_run_is_well_or_after_fail_fast(call, write_grid_with_steps, grid_folder):
    assert call(write_grid_with_steps("grid: {do: [raise]}")).code == 1 and step_records(grid_folder) == {}
    assert call(write_grid_with_steps("grid: {do: [ok, raise]}"), "--fail-fast").code == 1
    assert step_records(grid_folder) == {}


def test_a_failed_step_is_1_and_is_tried_again(call, write_grid, write_notebook, tmp_path, grid_folder):
    write_notebook(tmp_path / "look.ipynb", parameters='run_dir: str = ""\ndo: str = "ok"\n')
    path = write_grid(f"then: [{{notebook: {tmp_path}/look.ipynb, each: true, fixed: {{do: raise}}}}]")
    assert call(path).code == 1
    again = call(path)
    assert again.code == 1 and "1 done before, 0 to go" in again.out and "look run: failed" in again.out
    assert sorted(step_records(grid_folder)) == ["run/look"]


@pytest.fixture
def loop_grid(write_grid, write_notebook, tmp_path):
    """Runs, a step that reads them, and a further run of the same notebook that reads what the step wrote."""

    def write(do="ok"):
        write_notebook(tmp_path / "train.ipynb", parameters='run_dir: str = ""\ndo: str = "ok"\nlabels: str = ""\nlr: float = 1.0\n')
        write_notebook(tmp_path / "label.ipynb", parameters='grid_dir: str = ""\noutput_dir: str = ""\ndo: str = "ok"\n')
        label = f"{{notebook: {tmp_path}/label.ipynb, fixed: {{do: {do}}}}}"
        again = f'{{notebook: {tmp_path}/train.ipynb, fixed: {{labels: "{{grid_dir}}/label/x.json"}}}}'
        return write_grid(f"fixed: {{lr: 0.5}}\ngrid: {{do: [ok]}}\nthen: [{label}, {again}]", notebook=tmp_path / "train.ipynb")

    return write


def test_a_further_run_has_what_the_grid_fixes_and_reads_what_a_step_before_it_wrote(call, loop_grid, grid_folder):
    result = call(loop_grid())
    assert result.code == 0, result.out
    record = json.loads((grid_folder / "then.2" / "record.json").read_text())
    assert record["status"] == "ok"
    assert record["params"] == {
        "run_dir": str(grid_folder / "then.2"), "do": "ok", "labels": f"{grid_folder}/label/x.json", "lr": 0.5,
    }  # fmt: skip
    assert call(loop_grid()).code == 0 and not [*grid_folder.glob("then.2.*")]


def test_a_further_run_is_not_started_where_the_step_before_it_failed(call, loop_grid, grid_folder):
    result = call(loop_grid(do="raise"))
    assert result.code == 1 and "train.ipynb: not started, because what it follows failed" in result.out
    assert not (grid_folder / "then.2").exists()
