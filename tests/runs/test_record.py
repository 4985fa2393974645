import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from seglib.errors import InputError
from seglib.files import write_json
from seglib.parameters import Parameter, Parameters
from seglib.runs.record import (
    UNDER_RUNNER,
    complete_params,
    find_split_seed,
    open_run,
    read_record,
    save_result,
    start_record,
    update_record,
)


@pytest.fixture(autouse=True)
def _interactive(monkeypatch):
    monkeypatch.delenv(UNDER_RUNNER, raising=False)


def test_a_notebook_on_its_own_opens_a_folder_and_its_last_line_says_ok(tmp_path):
    folder = open_run({"lr": 0.1}, tmp_path / "mine")
    assert read_record(folder)["status"] == "running"
    save_result(folder, metrics={"miou": float("nan")}, best_epoch=3)
    record = read_record(folder)
    assert record["status"] == "ok" and record["error"] is None and record["metrics"] == {"miou": None}
    assert record["params"] == {"lr": 0.1} and record["versions"]["torch"] and record["versions"]["python"]
    assert re.fullmatch(r"[0-9a-f]{40}", record["git_commit"] or "0" * 40) and record["finished_at"]


def test_under_the_runner_the_last_line_leaves_the_last_word_to_it(tmp_path, monkeypatch):
    start_record(tmp_path, "key", {}, {})
    monkeypatch.setenv(UNDER_RUNNER, "1")
    assert open_run({"run_dir": str(tmp_path)}) == tmp_path
    save_result(tmp_path, metrics={"miou": 0.5})
    assert read_record(tmp_path)["status"] == "running" and read_record(tmp_path)["metrics"] == {"miou": 0.5}
    update_record(tmp_path, status="ok")
    assert read_record(tmp_path)["status"] == "ok"


def test_results_are_never_written_over(tmp_path):
    save_result(open_run({}, tmp_path / "a"), metrics={})
    with pytest.raises(InputError, match="holds a finished run; required a new folder"):
        open_run({}, tmp_path / "a")
    assert open_run({}, tmp_path / "b") == open_run({}, tmp_path / "b")  # the same kernel, once more

    script = "import sys, time; from seglib.runs.record import open_run; print(open_run({}, sys.argv[1]), flush=True)"
    command = [sys.executable, "-c", f"{script}; time.sleep(60)", str(tmp_path / "c")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(InputError, match=f"is written to by process {other.pid}"):
        open_run({}, tmp_path / "c")
    other.kill()
    other.wait()
    assert read_record(tmp_path / "c")["status"] == "killed"
    open_run({}, tmp_path / "c")


def test_notebooks_that_begin_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_OUTPUTS", str(tmp_path))
    monkeypatch.delenv(UNDER_RUNNER, raising=False)
    monkeypatch.setattr("time.strftime", lambda form: "2026-01-01_00-00-00")
    with ThreadPoolExecutor(8) as pool:
        folders = [*pool.map(lambda _: open_run({}, ""), range(8))]
    assert len({*folders}) == 8 and {path.parent for path in folders} == {tmp_path / "notebooks"}


def test_a_running_record_of_a_process_that_is_gone_reads_as_killed(tmp_path):
    start_record(tmp_path, "key", {"lr": 1}, {})
    assert read_record(tmp_path)["status"] == "running"
    record = json.loads((tmp_path / "record.json").read_text())
    record["process"]["started"] -= 100  # the id went to another process
    write_json(tmp_path / "record.json", record)
    assert (
        read_record(tmp_path)["status"] == "killed"
        and "killed before it could say why" in read_record(tmp_path)["error"]
    )


def test_a_process_that_nobody_waited_for_is_not_alive(tmp_path):
    script = f"from seglib.runs.record import start_record; start_record({str(tmp_path)!r}, 'k', {{}}, {{}})"
    child = subprocess.Popen([sys.executable, "-c", script])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie until it is waited for
    assert read_record(tmp_path)["status"] == "killed"
    child.wait()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"status": "running"}', '{"status": "running", "process": 3}']
)
def test_a_damaged_record_is_no_finished_run(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    assert (read_record(tmp_path) or {}).get("status") in (None, "killed")


def test_a_parameter_that_changed_since_the_run_was_opened_is_not_recorded_as_the_old_one(tmp_path):
    notebook = {"lr": 0.1, "seed": 1, "run_dir": str(tmp_path / "run")}
    schema = {name: Parameter("", value, "") for name, value in notebook.items()}
    folder = open_run(Parameters(notebook, lambda: schema))
    notebook["lr"] = 0.5
    with pytest.raises(InputError, match=r"lr was 0.1 when the run was opened and is 0.5 now; run the cell with open_"):
        save_result(folder, metrics={})
    notebook |= {"lr": object(), "run_dir": ""}  # an object of the notebook's own took the name: code, not a value
    save_result(folder, metrics={})
    assert read_record(folder)["status"] == "ok" and read_record(folder)["params"] == {"lr": 0.1, "seed": 1}


SAVES = """
import json, sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
from seglib import open_run, save_result
shell = InteractiveShell.instance()
shell.kernel = "a kernel"
save_result(open_run({}, sys.argv[1]), metrics={})
"""


@pytest.mark.parametrize(
    ("session", "line"),
    [
        ("mine.ipynb", "mine.ipynb as it was last saved is in "),
        ("gone.ipynb", "no copy of the notebook is in "),
        ("", "no copy of the notebook is in "),
    ],
)
def test_a_run_by_hand_leaves_its_notebook_beside_its_record(tmp_path, session, line):
    (tmp_path / "mine.ipynb").write_text("the notebook")
    environment = os.environ | {"JPY_SESSION_NAME": session and str(tmp_path / session)}
    command = [sys.executable, "-c", SAVES, str(tmp_path / "run")]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.startswith(line) and output.count("\n") == 1
    assert (tmp_path / "run" / "mine.ipynb").is_file() == (session == "mine.ipynb")
    assert read_record(tmp_path / "run")["status"] == "ok"


@pytest.mark.parametrize(
    ("params", "split_seed"),
    [
        ({"split": "given", "split_seed": 5, "seed": 3}, None),
        ({"split": "kfold", "split_seed": 5, "seed": 3}, 5),
        ({"split": {"by_turns": {"shift": 1}}, "seed": 3}, 3),
        ({"depth": 1}, None),
    ],
)
def test_a_split_is_drawn_from_its_own_seed_and_was_from_the_run_s_before(params, split_seed):
    assert find_split_seed(params) == split_seed


def test_what_a_notebook_has_been_given_since_a_run_has_its_default():
    defaults = {"seed": 21, "split_seed": 21, "lr": 0.1, "new": 0}
    assert complete_params(defaults, {"seed": 3, "lr": 0.5}) == {"seed": 3, "split_seed": 3, "lr": 0.5, "new": 0}
    assert complete_params(defaults, {"split_seed": 4}) == defaults | {"split_seed": 4}
    assert complete_params({"depth": 2}, {}) == {"depth": 2}
