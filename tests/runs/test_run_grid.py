"""The command line from end to end: notebooks in kernels of their own, killed and interrupted in every way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from seglib.files import PROJECT
from seglib.runs.record import read_record

# The first time, what `do` says happens; the next time the run is well.
MISFORTUNE = """
flag = Path(run_dir).parent / f"{do} happened"
first, _ = not flag.exists(), flag.touch()
if first and do == "kill":
    os.kill(os.getpid(), 9)
if first and do == "raise":
    raise ValueError("not this time")
if first and do.startswith("sleep"):
    import subprocess
    subprocess.Popen(["sleep", "120"])  # as the workers of a loader
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line of a copy of the project, which nobody edits while the tests run."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(PROJECT / "seglib", project / "seglib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "run_grid.py", project)

    def command(path, *arguments):
        outputs = path.parent / "outputs"
        return [sys.executable, str(project / "run_grid.py"), str(path), "--outputs", str(outputs), *arguments]

    return command


@pytest.fixture
def run(command):
    """Run the command to its end."""
    return lambda *arguments: subprocess.run(command(*arguments), capture_output=True, text=True, timeout=90)


@pytest.fixture
def start(command):
    """Start the command in the background; it is killed when the test ends."""
    runners = []

    def start(*arguments):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        runners.append(process)
        return process

    yield start
    for runner in runners:
        runner.kill()
        runner.communicate()


@pytest.fixture
def write_misfortune(tmp_path, write_notebook):
    def write(*what):
        write_notebook(tmp_path / "notebook.ipynb", MISFORTUNE)
        (tmp_path / "grid.yaml").write_text(f"notebook: {tmp_path}/notebook.ipynb\ngrid: {{do: {json.dumps(what)}}}\n")
        return tmp_path / "grid.yaml"

    return write


def family_of(record):
    """The process that executes a run, its kernel, and what that has started."""
    process = psutil.Process(record["process"]["pid"])
    return [process, *process.children(recursive=True)]


def is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_kernel_is_recorded_and_the_same_command_runs_only_what_failed(
    run, write_misfortune, records, grid_folder
):
    path = write_misfortune("nothing", "kill", "raise")
    result, first = run(path, "--workers", "2"), records()
    assert result.returncode == 1 and result.stderr == ""
    assert {name: record["status"] for name, record in first.items()} == {
        "do=nothing": "ok",
        "do=kill": "killed",
        "do=raise": "failed",
    }
    assert first["do=kill"]["error"].startswith("the kernel died")
    assert first["do=raise"]["error"] == "ValueError: not this time" and "not this time" in result.stdout
    notebook = (grid_folder / "do=raise" / "notebook.ipynb").read_text()
    assert "not this time" in notebook and "not this time" in (grid_folder / "do=raise" / "notebook.html").read_text()

    again = run(path, "--workers", "2")
    assert again.returncode == 0 and "3 runs, 1 done before, 2 to go" in again.stdout
    assert all(record["status"] == "ok" and record["error"] is None for record in records().values())
    assert records()["do=nothing"] == first["do=nothing"] and len(records()) == 3


def test_a_killed_process_takes_its_kernel_along_and_ctrl_c_keeps_what_ran(
    write_misfortune, start, records, grid_folder, wait_for
):
    path = write_misfortune("sleep 1", "sleep 2")
    runner = start(path, "--workers", "2")
    wait_for(lambda: len([*grid_folder.glob("*happened")]) == 2, 90)
    one, two = (read_record(grid_folder / f"do=sleep_{number}") for number in (1, 2))
    families = [family_of(one), family_of(two)]
    assert [len(family) for family in families] == [3, 3]

    os.kill(one["process"]["pid"], signal.SIGKILL)
    wait_for(lambda: all(map(is_gone, families[0])), 10)
    wait_for((grid_folder / "leaderboard.csv").is_file)
    assert records()["do=sleep_1"]["status"] == "killed"
    assert not any(map(is_gone, families[1]))

    runner.send_signal(signal.SIGINT)
    out, _ = runner.communicate(timeout=30)
    assert runner.returncode == 130 and all(map(is_gone, families[1]))
    assert "do=sleep_1: killed" in out and "do=sleep_2: interrupted" in out and "Traceback" not in out
    assert records()["do=sleep_2"]["status"] == "interrupted"
    assert "time.sleep(120)" in (grid_folder / "do=sleep_2" / "notebook.ipynb").read_text()
    assert {line.split(",")[1] for line in (grid_folder / "leaderboard.csv").read_text().splitlines()[1:]} == {
        "killed",
        "interrupted",
    }


def test_after_the_runner_is_killed_its_runs_end_before_the_next_one_starts(
    write_misfortune, run, start, records, grid_folder, wait_for
):
    path = write_misfortune("sleep")
    runner = start(path)
    wait_for(lambda: [*grid_folder.glob("*happened")], 90)
    record = read_record(grid_folder / "do=sleep")
    family = family_of(record)
    second = run(path)
    assert second.returncode == 2 and second.stdout == ""
    assert re.sub(" on .*?, since [-0-9: ]+", "", second.stderr) == (
        f"{grid_folder} is in use by another run_grid.py (process {runner.pid});"
        " wait until it ends, or choose another --outputs\n"
    )

    runner.kill()
    result = run(path)
    assert result.returncode == 0 and records()["do=sleep"]["status"] == "ok"
    assert len(family) == 3 and all(map(is_gone, family))
    assert "waiting for the last processes of a killed run_grid.py to end" in result.stdout


def test_sigterm_ends_as_ctrl_c_does(write_misfortune, start, records, grid_folder, wait_for):
    runner = start(write_misfortune("sleep"))
    wait_for(lambda: (grid_folder / "do=sleep" / "run.log").is_file())  # its process has only just begun
    runner.terminate()
    out, _ = runner.communicate(timeout=30)
    assert runner.returncode == 130 and "Traceback" not in out and records()["do=sleep"]["status"] == "interrupted"


def test_records_are_whole_at_every_moment(tmp_path, write_notebook):
    """A reader in another process never meets half of a record, however often it is written."""
    script = (
        "import sys\nfrom seglib.runs.record import start_record, update_record\n"
        "start_record(sys.argv[1], None, {}, {})\n"
        "for number in range(300): update_record(sys.argv[1], metrics={'text': 'x' * 20000, 'number': number})"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    seen = set()
    while writer.poll() is None:
        if (tmp_path / "record.json").is_file():
            metrics = json.loads((tmp_path / "record.json").read_text()).get("metrics", {})
            seen.add(metrics.get("number"))
    assert writer.returncode == 0 and len(seen) > 3
