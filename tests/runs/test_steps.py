"""The notebooks that follow a grid's runs, with a stand-in for papermill."""

import json
from pathlib import Path

import pytest

from seglib.files import PROJECT
from seglib.runs import engine
from seglib.runs.grid import load_grid

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


def step_records(grid_folder, *names):
    """Records of the steps named, or of all that are called look or compare: folder -> record."""
    found = sorted(
        path.parent for path in [*grid_folder.glob("*/look*/record.json"), *grid_folder.glob("compare*/record.json")]
    )
    folders = [grid_folder / name for name in names] or found
    return {
        str(folder.relative_to(grid_folder)): json.loads((folder / "record.json").read_text()) for folder in folders
    }


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
        write_notebook(
            tmp_path / "train.ipynb",
            parameters='run_dir: str = ""\ndo: str = "ok"\nlabels: str = ""\nlr: float = 1.0\n',
        )
        write_notebook(
            tmp_path / "label.ipynb", parameters='grid_dir: str = ""\noutput_dir: str = ""\ndo: str = "ok"\n'
        )
        label = f"{{notebook: {tmp_path}/label.ipynb, fixed: {{do: {do}}}}}"
        again = f'{{notebook: {tmp_path}/train.ipynb, fixed: {{labels: "{{grid_dir}}/label/x.json"}}}}'
        return write_grid(
            f"fixed: {{lr: 0.5}}\ngrid: {{do: [ok]}}\nthen: [{label}, {again}]", notebook=tmp_path / "train.ipynb"
        )

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


def test_steps_that_read_made_again_runs_are_made_again(call, loop_grid, grid_folder):
    path = loop_grid()
    call(path)
    before = step_records(grid_folder, "label", "then.2")
    assert call(path).code == 0 and step_records(grid_folder, "label", "then.2") == before
    assert call(path, "--fresh").code == 0
    after = step_records(grid_folder, "label", "then.2", "label.1", "then.2.1")
    assert [after["label.1"], after["then.2.1"]] == [*before.values()]
    assert all(after[name]["key"] != before[name]["key"] for name in before)


def test_a_step_reads_the_leaderboard_of_the_grid_as_it_is_now(call, write_grid_with_steps, grid_folder, monkeypatch):
    call(write_grid_with_steps("grid: {seed: [1, 2, 3]}"))
    seen = []
    plan = engine.plan_step
    monkeypatch.setattr(
        engine, "plan_step", lambda *a: seen.append((grid_folder / "leaderboard.csv").read_text()) or plan(*a)
    )
    call(write_grid_with_steps("grid: {seed: [1, 2]}"))
    assert "seed=2," in seen[0] and "seed=3," not in seen[0]


def test_steps_of_one_notebook_have_folders_of_their_own(call, write_grid, write_notebook, tmp_path, grid_folder):
    write_notebook(tmp_path / "look.ipynb", parameters='run_dir: str = ""\noutput_dir: str = ""\ntop: int = 3\n')
    write_notebook(tmp_path / "compare.ipynb", parameters='grid_dir: str = ""\noutput_dir: str = ""\ntop: int = 3\n')
    write_notebook(tmp_path / "train.ipynb", parameters='run_dir: str = ""\ndo: str = "ok"\n')
    look, compare = (f"{{notebook: {tmp_path}/{name}.ipynb, %s fixed: {{top: %d}}}}" for name in ("look", "compare"))
    again = f"{{notebook: {tmp_path}/train.ipynb}}"
    steps = [look % ("each: true,", 1), look % ("each: true,", 2), compare % ("", 1), compare % ("", 2), again, again]
    path = write_grid(f"then: [{', '.join(steps)}]", notebook=tmp_path / "train.ipynb")
    assert call(path, "--workers", 2).code == 0
    names = ["run/look", "run/look.then2", "compare", "compare.then4", "then.5", "then.6"]
    records = step_records(grid_folder, *names)
    assert [record["params"].get("top") for record in records.values()] == [1, 2, 1, 2, None, None]
    assert all(record["params"].get("output_dir", str(grid_folder / name)) == str(grid_folder / name)
               for name, record in records.items())  # fmt: skip
    assert call(path, "--workers", 2).code == 0 and step_records(grid_folder, *names) == records


def test_a_step_is_not_named_as_a_run(call, write_grid, write_notebook, tmp_path, grid_folder):
    write_notebook(tmp_path / "run.ipynb", parameters='grid_dir: str = ""\n')
    assert call(write_grid(f"then: [{{notebook: {tmp_path}/run.ipynb}}]")).code == 0
    assert step_records(grid_folder, "run.then1") and not (grid_folder / "run.1").exists()


@pytest.mark.parametrize("name", ["run_dir", "grid_dir", "output_dir"])
def test_folders_of_a_step_are_the_runners(call, write_grid, write_notebook, tmp_path, grid_folder, name):
    parameters = "".join(f'{each}: str = ""\n' for each in ("run_dir", "grid_dir", "output_dir"))
    step = write_notebook(tmp_path / "step.ipynb", parameters=parameters)
    path = write_grid(f"then: [{{notebook: {step}, fixed: {{{name}: x}}}}]")
    result = call(path)
    assert result.code == 2 and not grid_folder.exists()
    assert result.err == f"{path}: `then`: {step}: {name} is set by the runner; leave it out\n"


@pytest.fixture
def submission_grid(write_grid, write_notebook, tmp_path):
    """A grid over a data set with test.json, and a step that predicts its images."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "test.json").write_text(json.dumps({"images": [{"file_name": "1.png"}]}))
    (data / "train.json").write_text(json.dumps({"images": []}))
    (data / "1.png").write_text("an image")
    (tmp_path / "sample.csv").write_text("image_id\n1\n")

    def write(test_json="test.json", sample="sample.csv", data_dir=data):
        names = f'run_dir: str = ""\ndata_dir: str = "{data_dir}"\ntrain_json: str = "train.json"\n'
        write_notebook(tmp_path / "train.ipynb", parameters=names)
        step = write_notebook(
            tmp_path / "submit.ipynb",
            parameters='grid_dir: str = ""\ndata_dir: str = ""\ntest_json: str = ""\nsample_submission: str = ""\n',
        )
        fixed = f'{{test_json: {test_json}, sample_submission: "{sample and tmp_path / sample}"}}'
        return write_grid(f"then: [{{notebook: {step}, fixed: {fixed}}}]", notebook=tmp_path / "train.ipynb")

    return write


@pytest.mark.parametrize("changed", ["data/test.json", "data/1.png", "sample.csv"])
def test_a_step_runs_again_when_the_test_images_or_the_rows_that_are_wanted_changed(
    call, submission_grid, tmp_path, grid_folder, changed
):
    path = submission_grid()
    assert call(path).code == 0
    before = step_records(grid_folder, "submit")
    assert call(path).code == 0 and step_records(grid_folder, "submit") == before
    content = {"images": [{"file_name": "1.png"}], "licenses": []}
    (tmp_path / changed).write_text(json.dumps(content))
    assert "1 done before, 0 to go" in call(path).out
    assert (
        step_records(grid_folder, "submit.1")["submit.1"]
        == before["submit"]
        != step_records(grid_folder, "submit")["submit"]
    )


def test_test_images_that_are_not_there_are_refused_before_a_run(call, submission_grid, tmp_path, grid_folder):
    path = submission_grid(test_json="tset.json")
    where = f"{path}: `then`: {tmp_path}/submit.ipynb"
    line = (
        f"{where}: test_json must be a file in data_dir, got 'tset.json'; {tmp_path}/data has test.json, train.json\n"
    )
    assert [call(path).err, call(path, "--dry-run").err] == [line, line] and not grid_folder.exists()
    missing = call(submission_grid(sample="smaple.csv"), "--dry-run")
    assert missing.code == 2 and missing.err == (
        f"{where}: sample_submission must be the path of a CSV file; there is no file '{tmp_path}/smaple.csv'"
        f" (seen from {Path.cwd()})\n"
    )
    assert call(submission_grid(test_json="tset.json", sample="", data_dir="synthetic"), "--dry-run").code == 0


def test_paths_of_a_step_are_seen_from_the_current_folder(write_grid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("")
    ensemble, train = (PROJECT / "notebooks" / f"{name}.ipynb" for name in ("04_ensemble", "02_train"))
    first = 'members: ["{grid_dir}/seed=1", other/run], sample_submission: rows.csv, data_dir: data, test_json: t.json'
    second = 'extra_data: [{json: "{grid_dir}/x.json"}, {data_dir: more, json: m.json}], lr: 0.5'
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "m.json").write_text('{"images": []}')
    steps = f"[{{notebook: {ensemble}, fixed: {{{first}}}}}, {{notebook: {train}, fixed: {{{second}}}}}]"
    then = load_grid(write_grid(f"then: {steps}", notebook=train), tmp_path / "outputs", {}).file.then
    assert then[0].fixed == {
        "members": ["{grid_dir}/seed=1", f"{tmp_path}/other/run"], "sample_submission": f"{tmp_path}/rows.csv",
        "data_dir": f"{tmp_path}/data", "test_json": "t.json",
    }  # fmt: skip
    assert then[1].fixed == {
        "extra_data": [{"json": "{grid_dir}/x.json"}, {"data_dir": f"{tmp_path}/more", "json": "m.json"}], "lr": 0.5,
    }  # fmt: skip


def test_a_step_that_cannot_be_planned_is_1_and_the_others_go_on(call, submission_grid, tmp_path, grid_folder):
    look = f"{{notebook: {tmp_path}/look.ipynb}}"
    path = submission_grid()
    path.write_text(path.read_text().replace("then: [", f"then: [{look}, "))
    (tmp_path / "look.ipynb").write_text((tmp_path / "submit.ipynb").read_text())
    (tmp_path / "data" / "test.json").write_text("no JSON")
    result = call(path)
    assert result.code == 1 and result.err == ""
    assert f"{tmp_path}/submit.ipynb: not started: {tmp_path}/data/test.json: must be JSON" in result.out
    assert (grid_folder / "leaderboard.csv").is_file() and step_records(grid_folder, "look")["look"]["status"] == "ok"


def test_after_a_failure_steps_that_need_nothing_of_it_go_on(call, loop_grid, tmp_path, grid_folder):
    path = loop_grid(do="raise")
    further = f"{{notebook: {tmp_path}/train.ipynb, fixed: {{lr: 0.25}}}}"
    path.write_text(path.read_text().rstrip()[:-1] + f", {further}]\n")
    result = call(path)
    assert result.code == 1 and "train.ipynb: not started, because what it follows failed" in result.out
    assert (
        not (grid_folder / "then.2").exists() and step_records(grid_folder, "then.3")["then.3"]["params"]["lr"] == 0.25
    )


def test_after_fail_fast_no_further_group_of_steps_is_started(call, loop_grid, grid_folder):
    result = call(loop_grid(do="raise"), "--fail-fast")
    assert result.code == 1 and "not started" not in result.out and not (grid_folder / "then.2").exists()


def test_the_grids_own_notebook_is_not_run_on_each_run(call, write_grid, tmp_path, grid_folder):
    path = write_grid(f"then: [{{notebook: {tmp_path}/notebook.ipynb, each: true}}]")
    result = call(path)
    assert result.code == 2 and f"{path}: `then`: {tmp_path}/notebook.ipynb would write over each run" in result.err
    assert not grid_folder.exists()
