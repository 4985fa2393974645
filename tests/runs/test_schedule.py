"""What the command line does with runs; a stand-in for papermill keeps each under half a second."""

import json
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from seglib.files import PROJECT
from seglib.runs import local, results, schedule
from seglib.runs.grid import Job
from seglib.runs.local import LocalMachine
from seglib.runs.record import read_record
from seglib.runs.schedule import run_jobs

pytestmark = pytest.mark.usefixtures("stand_in")


def statuses(records):
    return {name: record["status"] for name, record in records.items()}


def test_all_ok_is_0_and_a_second_time_nothing_runs(call, write_grid, records):
    path = write_grid("grid: {seed: [1, 2]}")
    first, before = call(path), records()
    second = call(path)
    assert (first.code, second.code) == (0, 0)
    assert statuses(before) == {"seed=1": "ok", "seed=2": "ok"} and records() == before
    assert "2 runs, 0 done before, 2 to go" in first.out and "2 runs, 2 done before, 0 to go" in second.out


def test_a_failed_run_is_1_the_others_go_on_and_the_same_command_runs_only_that_one(call, write_grid, records):
    path = write_grid("grid: {do: [raise, ok]}")
    assert call(path).code == 1 and statuses(records()) == {"do=ok": "ok", "do=raise": "failed"}
    again = call(path)
    assert again.code == 1 and "1 done before, 1 to go" in again.out and "[1/1] do=raise" in again.out


def test_fail_fast_starts_nothing_after_a_failure(call, write_grid, records):
    assert call(write_grid("grid: {do: [raise, ok]}"), "--fail-fast").code == 1
    assert statuses(records()) == {"do=raise": "failed"}


@pytest.mark.parametrize(
    ("do", "status", "error"),
    [
        ("kill", "killed", "the process of the run was killed (signal 9)"),
        ("crash", "failed", "no module named nonsense; see "),
    ],
)
def test_a_process_that_cannot_say_how_it_ended_is_spoken_for(call, write_grid, records, do, status, error):
    result = call(write_grid(f"grid: {{do: [{do}, ok]}}"))
    record = records()[f"do={do}"]
    assert result.code == 1 and statuses(records())["do=ok"] == "ok"
    assert record["status"] == status and error in record["error"] and record["params"]["do"] == do
    assert f"do={do}: {status}" in result.out and error in result.out


def test_a_process_that_is_killed_after_its_result_is_written_leaves_it_ok(call, write_grid, records, stand_in):
    stand_in.write_text(stand_in.read_text() + 'if do == "late":\n    os.kill(os.getpid(), signal.SIGKILL)\n')
    path = write_grid("fixed: {do: late}")
    result = call(path)
    assert result.code == 0 and "run: ok" in result.out and statuses(records()) == {"run": "ok"}
    assert "0 to go" in call(path).out


def test_two_workers_run_two_at_a_time_and_one_runs_one(call, write_grid, records, grid_folder):
    def overlap(workers):
        assert call(write_grid("fixed: {do: slow}\ngrid: {seed: [1, 2]}"), "--fresh", "--workers", workers).code == 0
        one, two = sorted(records().values(), key=lambda record: record["began"])[-2:]
        return two["began"] < one["ended"]

    assert overlap(2) and not overlap(1)


def test_only_and_limit_choose_runs(call, write_grid, records):
    path = write_grid("grid: {seed: [1, 2, 12]}")
    assert call(path, "--only", "2", "--limit", 1).code == 0 and [*records()] == ["seed=2"]
    assert call(path, "--only", "1").code == 0 and [*records()] == ["seed=1", "seed=12", "seed=2"]


def test_a_changed_key_moves_the_old_folder_aside_and_never_onto_a_planned_run(call, write_grid, records):
    assert call(write_grid("grid: {weight: [0, 0.1]}"), "--only", "weight=0", "--limit", 1).code == 0
    old = records()["weight=0"]
    assert call(write_grid("fixed: {seed: 5}\ngrid: {weight: [0, 0.1]}"), "--only", "weight=0", "--limit", 1).code == 0
    assert [*records()] == ["weight=0", "weight=0.2"] and records()["weight=0.2"] == old
    assert records()["weight=0"]["params"]["seed"] == 5


def test_fresh_keeps_every_old_result(call, write_grid, records):
    path = write_grid("fixed: {seed: 1}")
    assert [call(path, "--fresh").code for _ in range(3)] == [0, 0, 0]
    assert [*records()] == ["run", "run.1", "run.2"]
    assert records()["run.1"]["began"] < records()["run.2"]["began"] < records()["run"]["began"]


def test_a_run_that_did_not_end_goes_on_in_its_own_folder(call, write_grid, records, grid_folder):
    path = write_grid("grid: {do: [raise]}")
    call(path)
    (grid_folder / "do=raise" / "last.pt").write_text("where it was")
    call(path)
    assert [*records()] == ["do=raise"] and (grid_folder / "do=raise" / "last.pt").is_file()


def test_results_made_with_other_parameters_take_no_part_in_the_leaderboard(call, write_grid, grid_folder):
    call(write_grid("grid: {seed: [1, 2]}"))
    call(write_grid("fixed: {weight: 0.5}\ngrid: {seed: [1, 2]}"), "--only", "seed=1")
    table = (grid_folder / "leaderboard.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in table] == [["run", "status"], ["seed=1", "ok"], ["seed=2", "outdated"]]


def test_code_that_changes_while_the_grid_runs_is_told_and_recorded(
    call, write_grid, write_notebook, records, tmp_path, monkeypatch
):
    path = write_grid("grid: {seed: [1, 2]}")
    start = LocalMachine.start

    def start_and_edit(*arguments):
        write_notebook(tmp_path / "notebook.ipynb", "print('another idea')")
        return start(*arguments)

    monkeypatch.setattr(LocalMachine, "start", start_and_edit)
    result = call(path)
    assert result.code == 1 and result.out.count("changed since the grid was checked") == 1
    assert result.out.endswith(
        "1 of 2 runs are outdated: data or code changed while the grid ran; the same command runs them again\n"
    )
    assert "seed=2: notebook changed" in result.out
    assert "1 done before, 1 to go" in call(path, "--dry-run").out  # seed=2 has the key of the new code


def test_debug_has_a_folder_of_its_own(call, tmp_path, write_notebook):
    write_notebook(tmp_path / "n.ipynb", parameters='do: str = "ok"\ndebug: bool = False\n')
    (tmp_path / "grid.yaml").write_text(f"notebook: {tmp_path}/n.ipynb")
    assert call(tmp_path / "grid.yaml", "--debug").code == 0
    record = json.loads((tmp_path / "outputs" / "grid-debug" / "run" / "record.json").read_text())
    assert record["params"]["debug"] is True and not (tmp_path / "outputs" / "grid").exists()


def test_a_dry_run_lists_runs_and_what_varies_and_writes_nothing(call, write_grid, grid_folder):
    path = write_grid("grid: {seed: [1, 2], do: [ok]}")
    call(path, "--only", "seed=1")
    before = sorted(grid_folder.rglob("*"))
    result = call(path, "--dry-run")
    assert result.code == 0 and sorted(grid_folder.rglob("*")) == before
    assert result.out.splitlines() == [
        "skip  seed=1,do=ok",
        "run   seed=2,do=ok  (new)",
        "seed: 1, 2",
        "do: ok",
        f"grid: 2 runs, 1 done before, 1 to go -> {grid_folder}",
    ]


def test_the_grid_that_ran_is_kept_as_a_grid_file(call, write_grid, grid_folder):
    call(write_grid("grid: {seed: [1, 2]}"), "--set", "seed=[3]", "--set", "weight=1e-3")
    again = call(grid_folder / "grid.yaml", "--dry-run")
    assert "skip  seed=3" in again.out and "1 runs, 1 done before" in again.out


def test_progress_is_one_line_that_changes_at_most_every_ten_seconds(call, write_grid):
    out = call(write_grid("grid: {seed: [1, 2]}")).out
    assert re.search(r"^\[1/2\] seed=1$", out, re.M) and re.search(r"^\[1/2\] seed=1: ok, \ds  mIoU 0.5000$", out, re.M)
    assert out.count("starting") == 1 and "\r" not in out and "\x1b" not in out


def ignore(*_):
    pass


def make_job(folder, do="ok"):
    return Job(folder.name, folder / "n.ipynb", folder, {"notebook": "a"}, {"do": do}, {})


def test_ctrl_c_stops_what_runs_and_records_it(tmp_path):
    kept, pids = [], []

    def interrupt_once(text):
        if not pids and (tmp_path / "a" / "record.json").is_file():
            pids.append(read_record(tmp_path / "a")["process"]["pid"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([make_job(tmp_path / name, "sleep") for name in "ab"], LocalMachine(), kept.append, interrupt_once)
    record = read_record(tmp_path / "a")
    assert (record["status"], record["error"]) == ("interrupted", "stopped before its end")
    assert not psutil.pid_exists(pids[0]) and not (tmp_path / "b").exists()
    assert kept[-1].startswith("[1/2] a: interrupted")


def test_ctrl_c_while_a_process_is_being_started_leaves_no_process_and_a_record(tmp_path, monkeypatch):
    popen = subprocess.Popen

    def interrupt_at_once(*arguments, **options):
        process = popen(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(local.subprocess, "Popen", interrupt_at_once)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        run_jobs([make_job(tmp_path / "a", "sleep")], LocalMachine(), ignore, ignore)
    assert read_record(tmp_path / "a")["status"] == "interrupted"
    assert not psutil.Process().children()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_runner_itself_leaves_no_process(tmp_path):
    def fail(job, status):
        raise ZeroDivisionError

    jobs = [make_job(tmp_path / "a", "raise"), make_job(tmp_path / "b", "sleep")]
    with pytest.raises(ZeroDivisionError):
        run_jobs(jobs, LocalMachine(2), ignore, ignore, on_end=fail)
    assert not psutil.Process().children()


def test_a_run_whose_folder_goes_while_it_runs_fails_alone(tmp_path, stand_in):
    vanish = 'if do == "vanish":\n    import shutil; shutil.rmtree(folder); sys.exit("gone")\n'
    stand_in.write_text(stand_in.read_text().replace('if do == "kill":', vanish + 'if do == "kill":'))
    lines = []
    (tmp_path / "file").write_text("no folder can be made here")
    jobs = [make_job(tmp_path / "a", "vanish"), make_job(tmp_path / "file" / "b"), make_job(tmp_path / "c")]
    assert not run_jobs(jobs, LocalMachine(), lines.append, ignore)
    assert read_record(tmp_path / "c")["status"] == "ok"
    assert any("[1/3]" in line and ": failed" in line and "run.log" in line for line in lines), lines
    assert any("[2/3]" in line and "failed, not started" in line for line in lines)


def test_a_disk_that_is_full_for_a_while_ends_no_run(call, write_grid, records, monkeypatch):
    whole, calls = results.write_leaderboard, []

    def fail_at_first(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return whole(*arguments)

    monkeypatch.setattr(results, "write_leaderboard", fail_at_first)
    result = call(write_grid("grid: {seed: [1, 2]}"))
    assert result.code == 0 and "leaderboard and page were not written: [Errno 28] No space" in result.out
    assert {record["status"] for record in records().values()} == {"ok"}


def test_a_run_over_its_time_is_stopped_and_the_others_go_on(tmp_path):
    lines, jobs = [], [make_job(tmp_path / "a", "sleep"), make_job(tmp_path / "b")]
    assert not run_jobs(jobs, LocalMachine(), lines.append, ignore, limit=8)
    assert read_record(tmp_path / "a")["status"] != "ok" and read_record(tmp_path / "b")["status"] == "ok"
    assert any("stopped after 8s (timeout_hours)" in line for line in lines)
    assert not psutil.Process().children()


def test_shortened_options_are_refused(call, write_grid, capsys):
    result = call(write_grid("grid: {seed: [1]}"), "--onl", "ray")
    assert result.code == 2 and "unrecognized arguments: --onl ray" in result.err


def test_a_process_that_ends_before_it_hears_of_its_job_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "COMMAND", ("sh", "-c", "echo no such module >&2; exit 3"))
    assert not run_jobs([make_job(tmp_path / "a", "x" * 1_000_000)], LocalMachine(), ignore, ignore)
    assert read_record(tmp_path / "a")["error"] == f"no such module; see {tmp_path / 'a' / 'run.log'}"


def test_a_dry_run_into_head_is_quiet(tmp_path, write_grid):
    path = write_grid(f"grid: {{seed: {list(range(5000))}}}")
    command = f"{sys.executable} {PROJECT}/run_grid.py {path} --dry-run --outputs {tmp_path}/o | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("run   seed=0  (new)\n", "")


def test_the_time_that_is_left_counts_down_from_what_runs_took_so_far(tmp_path, monkeypatch):
    job = make_job(tmp_path / "a", "ok")
    runs = [
        schedule._Active(job, SimpleNamespace(queued=False), f"[{n}/5]", began) for n, began in ((2, 100.0), (3, 104.0))
    ]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: 106.0)
    assert schedule._describe(runs, 2, [], 2) == "[2/5] starting 6s | [3/5] starting 2s"
    # 2 waiting runs of 10 s, 4 s and 8 s of those that run, by two workers
    assert schedule._describe(runs, 2, [9.0, 11.0], 2).startswith("about 16s left | [2/5] starting 6s")
