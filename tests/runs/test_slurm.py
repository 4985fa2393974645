"""Runs as SLURM jobs, with commands that only pretend."""

import json
import os
import platform
import signal
import sys

import pytest

from seglib.errors import InputErrors
from seglib.files import PROJECT, write_json
from seglib.runs import on_slurm, schedule, slurm
from seglib.runs.record import read_record, update_record

# Stands for sbatch, squeue, scancel and scontrol: a folder has a file for each job, with its state; `mode` says what
# becomes of a job that is handed over. A run that is "executed" has a record at once.
PRETEND = r"""
import json, os, shlex, sys, time
from pathlib import Path
sys.path.insert(0, os.environ["PROJECT"])
folder, name, words = Path(os.environ["PRETENDED"]), Path(sys.argv[0]).name, sys.argv[1:]
with open(folder / "calls", "a") as file:
    file.write(" ".join([name, *words]) + "\n")
jobs = sorted(folder.glob("job-*"), key=lambda path: int(path.name[4:]))
mode = (folder / "mode").read_text()
if name == "sbatch":
    if "--partition=none" in words:
        sys.exit("sbatch: error: invalid partition specified: none")
    if "--test-only" in words:
        print("sbatch: Job 9 to start at 2026-12-01T08:00:00 using 1 processors on nodes n1", file=sys.stderr)
        sys.exit()
    run_dir = Path(shlex.split(sys.stdin.read().splitlines()[1])[4])
    if mode == "run":
        from seglib.runs.record import save_result, start_record, update_record
        os.environ["SEGLIB_RUNNER"] = "1"
        job = json.loads(json.loads((run_dir / ".slurm.json").read_text())["order"])["job"]
        start_record(run_dir, job["key"], job["parameters"], job["varied"])
        save_result(run_dir, metrics={"miou": 0.5})
        update_record(run_dir, status="ok")
    (folder / f"job-{len(jobs) + 1}").write_text({"run": "COMPLETED"}.get(mode, mode))
    print(f"{len(jobs) + 1};cluster")
if name == "squeue":
    for path in jobs:
        print(f"{path.name[4:]}|{path.read_text()}" + ("" if "|" in path.read_text() else "|Priority"))
if name == "scontrol" and words[0] in ("uhold", "release"):
    for number in words[1].split(","):
        (folder / f"job-{number}").write_text("PENDING" + ("|JobHeldUser" if words[0] == "uhold" else ""))
if name == "scancel" and "--batch" not in words:
    (folder / f"job-{words[-1]}").write_text("CANCELLED")
"""


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """SLURM's commands, pretended; a folder with their state."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        (folder / name).write_text(f"#!{sys.executable}\n{PRETEND}")
        (folder / name).chmod(0o755)
    (folder / "mode").write_text("run")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PRETENDED", str(folder))
    monkeypatch.setenv("PROJECT", str(PROJECT))
    monkeypatch.setattr(slurm, "LOOK", 0.0)
    return folder


def read_calls(folder, name):
    return [line for line in (folder / "calls").read_text().splitlines() if line.startswith(name)]


def test_each_run_is_a_job_that_asks_for_what_is_said(pretended, call, write_grid, records):
    path = write_grid("grid: {seed: [1, 2, 3]}")
    result = call(path, "--on", "slurm", "--slurm", "partition=gpu,time=1h30m,gpus=a100:1,cpus=4,exclude=n1,n2")
    assert result.code == 0, result.err
    assert {name: record["status"] for name, record in records().items()} == {f"seed={n}": "ok" for n in (1, 2, 3)}
    asked = [line for line in read_calls(pretended, "sbatch") if "--parsable" in line]
    assert len(asked) == 3
    wanted = "--signal=B:USR1@120 --partition=gpu --time=90 --gpus=a100:1 --cpus-per-task=4 --exclude=n1,n2"
    assert all(wanted in line and "--requeue" in line for line in asked)
    assert not [*path.parent.rglob(slurm.NOTE)], "what is collected has no note any more"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("8h", 480), ("90m", 90), ("1-00:00:00", 1440), ("2d1h", 2940), ("01:30:00", 90), ("1-2", 1560)],
)
def test_a_time_is_read_in_words_and_in_slurms_own_form(text, minutes):
    assert slurm.parse_options(f"time={text}") == {"time": str(minutes)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partion=gpu", "--slurm: unknown option 'partion'; did you mean 'partition'?"),
        ("time=90", "--slurm: time: required such as 8h, 90m, 1h30m or 1-00:00:00, at least a minute, got '90'"),
        ("time=0m", "got '0m'"),
        ("gpus=0", "--slurm: gpus: required a number, or a kind and a number such as a100:1, got '0'"),
        ("cpus=four", "--slurm: cpus: required a whole number, got 'four'"),
        ("mem=8 GB", "--slurm: mem: required a number of MB, or such as 32G, got '8 GB'"),
        ("gpu", "--slurm: required NAME=VALUE, got 'gpu'"),
        ("qos=a,qos=b", "--slurm: qos: required once, got it twice"),
        ("qos=", "--slurm: qos: required a value without spaces, got ''"),
    ],
)
def test_what_slurm_would_not_take_is_refused_in_a_line(text, words):
    with pytest.raises(InputErrors) as caught:
        slurm.parse_options(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_cluster_that_refuses_such_jobs_or_is_not_there_is_named_before_anything_starts(
    pretended, call, write_grid, write_notebook, monkeypatch
):
    path = write_grid("grid: {seed: [1]}")
    for more in ((), ("--dry-run",)):
        result = call(path, "--on", "slurm", "--slurm", "partition=none", *more)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "--on slurm: required a job that SLURM takes, got: sbatch: error: invalid partition" in result.err
    assert "\nSLURM: Job 9 to start at 2026-12-01T08:00:00 using 1 " in call(path, "--on", "slurm", "--dry-run").out
    shared = call(write_grid("grid: {seed: [1]}\nper_gpu: 2"), "--on", "slurm", "--dry-run")
    assert shared.code == 2 and "per_gpu: required 1 with --on slurm, where a GPU is one job's, got 2" in shared.err
    notebook = write_notebook(path.parent / "trains.ipynb", "if False:\n    Trainer()")
    path = write_grid("grid: {seed: [1]}\ngpus_per_run: 2", notebook)
    result = call(path, "--on", "slurm", "--slurm", "gpus=1")
    assert "--slurm: required gpus=2, as gpus_per_run in the grid file, got gpus=1" in result.err
    monkeypatch.setenv("PATH", str(path.parent))
    assert "--on slurm: required SLURM's sbatch on PATH, got none" in call(path, "--on", "slurm").err
    assert "--slurm and --detach go with --on slurm" in call(path, "--detach").err
    assert "required no --workers" in call(path, "--on", "slurm", "--detach", "--workers", "2").err
    assert (
        "Ray deals out GPUs; required no --gpus and no --workers auto" in call(path, "--on", "ray", "--gpus", "all").err
    )


def test_runs_left_with_slurm_are_found_shown_stopped_and_collected(
    pretended, call, write_grid, records, grid_folder, monkeypatch
):
    path = write_grid("grid: {seed: [1, 2, 3]}")
    (pretended / "mode").write_text("PENDING")
    result = call(path, "--on", "slurm", "--detach")
    assert result.code == 0 and "with SLURM: 0 running, 3 queued" in result.out, result
    assert result.out.count(" planned ") == 3 and "unknown" not in result.out
    result = call(path, "--workers", "1")
    assert result.code == 2 and "handed over to SLURM (job 1), as 3 runs are; required --on slurm" in result.err
    assert "with SLURM: 0 running, 3 queued" in call(path, "--on", "slurm", "--detach").out
    assert "asked SLURM to hold 3 jobs in its queue; those that run go on" in call(path, "--pause").out
    assert "with SLURM: 0 running, 3 queued (3 held; --resume)" in call(path, "--on", "slurm", "--detach").out
    assert "asked SLURM to let 3 jobs go on" in call(path, "--resume").out
    assert "asked SLURM to let 0 jobs go on" in call(path, "--resume").out
    with monkeypatch.context() as patch:  # a machine that shares the folder and knows no SLURM
        patch.setattr(slurm, "_queue", slurm.Queue())
        patch.setenv("PATH", "")
        for order in (("--pause",), ("--stop", "seed=3")):
            result = call(path, *order)
            assert (result.code, result.err.count("\n")) == (2, 1) and "required an answer of SLURM's" in result.err
    assert "asked SLURM to end job 3, seed=3" in call(path, "--stop", "seed=3").out
    assert "a job that is queued or runs, got seed=3" in call(path, "--stop", "seed=3").err
    (pretended / "job-1").write_text("RUNNING")
    for job, state in ((1, "OUT_OF_MEMORY"), (2, "TIMEOUT")):
        (pretended / f"job-{job}").write_text(state)
    assert "nobody runs now" in call("--watch", grid_folder).out
    result = call(path, "--on", "slurm")
    assert result.code == 1
    found = records()
    assert [found[f"seed={n}"]["status"] for n in (1, 2, 3)] == ["oom", "failed", "failed"]
    assert "error: job 2 of SLURM is timeout" in found["seed=2"]["error"]
    assert "error: job 3 of SLURM is cancelled" in found["seed=3"]["error"]
    (pretended / "mode").write_text("run")
    assert call(path, "--on", "slurm").code == 0
    assert len([line for line in read_calls(pretended, "sbatch") if "--parsable" in line]) == 6


def test_ctrl_c_ends_jobs_but_not_those_that_were_left(pretended, call, write_grid, records, monkeypatch):
    path = write_grid("grid: {seed: [1, 2]}")
    (pretended / "mode").write_text("PENDING")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "_stop_late", interrupt)
        assert call(path, "--only", "seed=1", "--on", "slurm", "--slurm", "time=2h").code == 130
    assert read_calls(pretended, "scancel") == ["scancel --state=PENDING 1"]
    assert records()["seed=1"]["status"] == "interrupted"
    assert call(path, "--only", "seed=2", "--on", "slurm", "--detach").code == 0
    monkeypatch.setattr(schedule, "_stop_late", interrupt)
    assert call(path, "--only", "seed=2", "--on", "slurm").code == 130
    assert len(read_calls(pretended, "scancel")) == 1 and (pretended / "job-2").read_text() == "PENDING"


def test_a_job_whose_run_has_other_code_by_now_is_ended_and_handed_over_again(
    pretended, call, write_grid, write_notebook, records
):
    (pretended / "mode").write_text("PENDING")
    path = write_grid("grid: {seed: [1]}")
    assert call(path, "--on", "slurm", "--detach").code == 0
    write_notebook(path.parent / "notebook.ipynb", "more = 1")
    (pretended / "mode").write_text("run")
    result = call(path, "--on", "slurm")
    assert result.code == 0, result
    assert "scancel 1" in read_calls(pretended, "scancel") and records()["seed=1"]["status"] == "ok"


@pytest.fixture
def in_job(pretended, tmp_path, monkeypatch):
    """What runs in a job, with a run that ends at once: `keep` is what the run does."""
    run_dir = tmp_path / "run"
    here = {"probe": str(tmp_path / "probe"), "token": "all", "paths": [], "same": {}, "environment": {}}
    (tmp_path / "probe").write_text("all")
    write_json(
        run_dir / slurm.NOTE, {"token": "a", "order": json.dumps({"job": {"notebook": "n.ipynb"}, "here": here})}
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    held = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def in_job(keep, token="a"):
        monkeypatch.setattr(on_slurm, "keep", keep)
        return on_slurm.main(run_dir, token)

    yield in_job, run_dir
    for number, handler in held.items():
        signal.signal(number, handler)


def test_a_run_whose_time_is_up_is_queued_again_if_it_kept_something(in_job, pretended):
    main, run_dir = in_job

    def keep(order, stop):
        (run_dir / "last.pt").write_text("kept")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.wait(1)
        return 0

    assert main(keep) == 0 and read_calls(pretended, "scontrol") == ["scontrol requeue 7"]
    idle = lambda *_: os.kill(os.getpid(), signal.SIGUSR1)  # noqa: E731
    assert [main(idle), main(idle), main(idle)] == [0, 0, 1]
    assert len(read_calls(pretended, "scontrol")) == 3
    assert "before it had kept anything new to go on from" in read_record(run_dir)["error"]
    (run_dir / "last.pt").unlink()
    assert main(idle) == 1, "what keeps nothing at all is not started again"


def test_a_run_that_is_ok_leaves_no_note_even_where_its_time_was_up(in_job, pretended):
    main, run_dir = in_job

    def keep(order, stop):
        os.kill(os.getpid(), signal.SIGUSR1)
        update_record(run_dir, status="ok")
        return 0

    assert main(keep) == 0 and not (run_dir / slurm.NOTE).exists() and not (pretended / "calls").exists()


def test_a_job_that_was_withdrawn_or_is_on_another_kind_of_node_runs_nothing(in_job, tmp_path, capsys):
    main, _ = in_job
    assert main(lambda *_: pytest.fail("it ran"), token="b") == 0 and "was withdrawn" in capsys.readouterr().out
    (tmp_path / "probe").write_text("other")
    assert main(lambda *_: pytest.fail("it ran")) == 1
    assert f"error: node {platform.node()}: does not see {tmp_path}; required a folder" in capsys.readouterr().out
    assert main(lambda *_: pytest.fail("it ran"), token="c") == 0
