"""What was used up, and what went wrong first, is said by its own name, with the fix."""

import os
import shutil

import pytest

from seglib.files import write_json
from seglib.runs import reasons
from seglib.runs.leaderboard import collect_runs
from seglib.runs.reasons import BEGIN, explain, find_first_error
from seglib.runs.record import NAME, open_run, read_history, read_record, save_result, start_record, update_record
from seglib.runs.trackers import Tracking

LOG = f"""{BEGIN}2026-01-01 00:00:00
ValueError: of the attempt before
{BEGIN}2026-01-02 00:00:00
/lib/warnings.py:3: UserWarning: an Error in a warning
[IPKernelApp] WARNING | debugpy_stream undefined
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    raise OSError
OSError: [Errno 24] Too many open files: '/data/a.png'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
KeyError: 'second'
/lib/resource.py:9: ResourceWarning: unclosed file
  warnings.warn("the last word")
"""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("MemoryError:", "oom", "MemoryError; memory of the machine ran out: lower batch_size"),
        ("RuntimeError: could not create a primitive", "oom", "primitive; oneDNN, which computes on CPUs, found no memory"),
        ("OSError: [Errno 24] Too many open files: 'a'", "failed", "the file handles of a process, "),
        ("RuntimeError: received 0 items of ancdata", "failed", "raise them (ulimit -n 8192) or lower num_workers"),
        ("OSError: [Errno 23] Too many open files in system", "failed", "the file handles of the whole machine"),
        ("OSError: [Errno 28] No space left on device", "failed", "make room there, or move it to another disk (--outputs)"),
        ("RuntimeError: DataLoader worker is killed by signal: Bus error. out of shared memory", "failed", "set num_workers: 0"),
        ("ValueError: too small", "failed", "ValueError: too small"),
    ],
)  # fmt: skip
def test_what_is_used_up_is_named_with_the_fix(tmp_path, monkeypatch, words, status, said):
    monkeypatch.setattr(
        reasons.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, str(path) != str(tmp_path))
    )
    found, error = explain(words, tmp_path)
    assert found == status and said in error and error.startswith(words.rstrip(":")) and "\n" not in error


def test_a_full_disk_is_the_one_that_the_words_name_and_says_what_runs_there_take(tmp_path, monkeypatch):
    usage = lambda path: shutil._ntuple_diskusage(9, 9, 0)  # noqa: E731
    monkeypatch.setattr(reasons.shutil, "disk_usage", usage)
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))
    for folder in ("cache", "grid/a", "grid/b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "grid/a/record.json").write_bytes(bytes(3_000_000))
    words = f"[Errno 28] No space left on device: '{tmp_path}/cache/x'"
    assert (
        f"; {tmp_path}/cache is full (0.0 MB are free): make room there, or" in explain(words, tmp_path / "grid/b")[1]
    )
    _, error = explain("[Errno 28] No space left on device", tmp_path / "grid/c")  # which is not there
    assert f"; {tmp_path}/grid is full (0.0 MB are free, a run there takes up to 3.0 MB): make room" in error


def test_a_full_folder_for_temporary_files_or_shared_memory_is_named(tmp_path, monkeypatch):
    full = {str(tmp_path): 9}
    monkeypatch.setattr(
        reasons.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, full.get(str(path), 1e9))
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(reasons.tempfile, "gettempdir", lambda: "/tmp")  # where TMPDIR is full
    words = "OSError: [Errno 28] No space left on device"
    assert f"; {tmp_path} is full (0.0 MB are free): make room" in explain(words, tmp_path.parent / "grid/run")[1]
    full |= {"/dev/shm": 9, str(tmp_path): 1e9}
    assert "; /dev/shm, through which" in explain(words, tmp_path.parent / "grid/run")[1]


def test_inodes_that_are_used_up_are_not_a_full_disk(tmp_path, monkeypatch):
    full = os.statvfs_result((4096, 4096, 100, 50, 50, 1000, 0, 0, 0, 255))
    monkeypatch.setattr(reasons.os, "statvfs", lambda _: full)
    error = explain("OSError: [Errno 28] No space left on device: 'a'", tmp_path)[1]
    assert f"{tmp_path} has no inode left for a new file, though" in error and "(df -i)" in error


def test_the_first_error_of_the_last_attempt_is_the_reason(tmp_path):
    (tmp_path / "run.log").write_text(LOG)
    assert find_first_error(tmp_path / "run.log") == "OSError: [Errno 24] Too many open files: '/data/a.png'"
    (tmp_path / "run.log").write_text(f"{BEGIN}x\nno such module\n[IPKernelApp] WARNING | last\n")
    assert find_first_error(tmp_path / "run.log") == "no such module"
    assert find_first_error(tmp_path / "none.log") == ""


UNFORMATTED = """
def fail(*_, **__):
    raise MemoryError
get_ipython().InteractiveTB.structured_traceback = fail
raise MemoryError
"""
BUS_ERROR = "import faulthandler; faulthandler.enable(2); os.kill(os.getpid(), 7)"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (UNFORMATTED, "oom", "MemoryError; memory of the machine ran out"),
        (BUS_ERROR, "killed", "the kernel died: Fatal Python error: Bus error; /dev/shm, through which"),
    ],
)
def test_a_kernel_that_cannot_say_it_is_understood(
    tmp_path, write_notebook, write_grid, start_grid, grid_folder, body, status, said
):
    path = write_grid("fixed: {seed: 1}", write_notebook(tmp_path / "notebook.ipynb", body))
    out, _ = (runner := start_grid(path)).communicate(timeout=90)
    record = read_record(grid_folder / "run")
    assert runner.returncode == 1 and record["status"] == status and record["error"].startswith(said)
    assert said in out and "Traceback" not in out


def test_a_history_that_was_changed_is_not_read_and_the_leaderboard_says_so(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    start_record(folder, None, {"seed": 1}, {})
    (folder / "history.csv").write_text("epoch,miou\n1,0.25\n")
    save_result(folder, metrics={"miou": 0.25})
    assert read_history(folder / "history.csv") == [{"epoch": 1, "miou": 0.25}]
    (folder / "history.csv").write_text("epoch,miou\n1,0.75\n")
    (row,) = collect_runs(tmp_path, ["a"], [])
    assert read_history(folder / "history.csv") == [] and "history.csv is not what was written" in row.notes


def test_a_record_that_is_damaged_while_the_run_goes_on_keeps_what_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_RUNNER", "1")
    start_record(tmp_path, {"notebook": "k"}, {"seed": 1}, {"seed": 1})
    open_run({"seed": 1, "run_dir": str(tmp_path)})
    (tmp_path / NAME).write_bytes(b"\0\1")
    save_result(tmp_path, metrics={"miou": 0.5})
    (tmp_path / NAME).write_text("[]")
    record = update_record(tmp_path, status="ok")
    assert record["params"] == {"seed": 1} and record["metrics"] == {"miou": 0.5} and record["key"]


@pytest.mark.parametrize("content", ["{", "[1]", '{"mlflow": 1}', "\0"])
def test_damaged_notes_of_trackers_end_no_run(tmp_path, content):
    (tmp_path / "tracking.json").write_text(content)
    assert Tracking(tmp_path, {}, {}).describe() == {}
    write_json(tmp_path / "tracking.json", {"mlflow": {"id": "1"}})
    assert Tracking(tmp_path, {}, {}).describe() == {"mlflow": {"id": "1"}}
