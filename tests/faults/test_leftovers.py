"""What a killed process was writing is swept by the next one; what a live process, another user or host writes is not."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from seglib import files
from seglib.files import private_file, private_folder, replacing, replacing_folder, sweep
from seglib.runs.record import read_record

WRITE = """
import os, sys
from seglib.files import private_folder, replacing, replacing_folder
with replacing(sys.argv[1] + "/a.txt") as a, replacing_folder(sys.argv[1] + "/b") as b, private_folder(sys.argv[1]) as c:
    for path in (a, b / "half", c / "half"):
        path.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """A process that writes a file and two folders, and does not come to an end."""
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_dead_process_wrote_is_swept_and_what_a_live_one_writes_is_not(tmp_path, writer):
    (tmp_path / ".a.txt.x1y2z3.part").touch()  # of nobody that can be told
    before = names(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == before and len(before) == 4
    writer.kill()
    writer.wait()
    sweep(tmp_path)
    assert names(tmp_path) == [".a.txt.x1y2z3.part"]


def test_what_other_hosts_and_users_left_stays(tmp_path, writer, monkeypatch):
    writer.kill()
    writer.wait()
    before = names(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: "another")
        sweep(tmp_path)
    assert names(tmp_path) == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        sweep(tmp_path)
    assert names(tmp_path) == before
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_links_are_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    (tmp_path / "swept").mkdir()
    (tmp_path / f"swept/{files._mark()}folder").symlink_to(tmp_path / "precious")
    (tmp_path / f"swept/{files._mark()}file").symlink_to(tmp_path / "precious/file")
    os.mkfifo(tmp_path / f"swept/{files._mark()}pipe")
    sweep(tmp_path / "swept")
    assert (tmp_path / "precious/file").read_text() == "mine"


@pytest.mark.parametrize("write", [replacing, replacing_folder, private_folder, private_file])
def test_what_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch, write):
    whole, swept = files.fcntl.flock, []

    def sweep_first(handle, operation):
        if operation == files.fcntl.LOCK_SH and not swept:
            swept.append(True)
            sweep(tmp_path)
        whole(handle, operation)

    monkeypatch.setattr(files.fcntl, "flock", sweep_first)
    with write(tmp_path / "a" if write in (replacing, replacing_folder) else tmp_path) as temporary:
        assert swept and temporary.exists()
    assert names(tmp_path) == (["a"] if write in (replacing, replacing_folder) else [])


WAIT = """
print("started", flush=True)
Path(run_dir, "kernel").write_text(str(os.getpid()))
while do == "wait" and not Path(run_dir).with_name("go").exists():
    time.sleep(0.1)
"""


@pytest.mark.parametrize("victims", [("run", "run_grid.py"), ("run_grid.py", "run"), ("kernel", "run", "run_grid.py")])
def test_after_the_end_of_all_at_once_the_same_command_goes_on_and_sweeps(
    tmp_path, write_notebook, write_grid, start_grid, grid_folder, wait_for, victims
):
    path = write_grid("fixed: {do: wait}", write_notebook(tmp_path / "notebook.ipynb", WAIT))
    short = (
        Path("/tmp") / f"{tmp_path.parent.name[-20:]}-{os.getpid()}-{len(victims)}{victims[0][-1]}"
    )  # as sockets need it
    short.mkdir()
    environment = os.environ | {"TMPDIR": str(short), "SEGLIB_CACHE": str(tmp_path / "cache")}
    try:
        runner = start_grid(path, env=environment)
        kernel = wait_for(lambda: read_pid(grid_folder / "run/kernel"))
        pids = {"kernel": kernel, "run": read_record(grid_folder / "run")["process"]["pid"], "run_grid.py": runner.pid}
        family = psutil.Process(runner.pid).children(recursive=True)
        left = [*map(psutil.Process, pids.values()), *family]
        for name in victims:
            os.kill(pids[name], signal.SIGKILL)
        assert runner.wait() == -9
        psutil.wait_procs(left, timeout=30)
        (grid_folder / f".leaderboard.csv.{files._mark()}12345678.part").write_text("half")
        assert [each for each in names(short) if each.startswith("seglib-")]
        (grid_folder / "go").touch()
        out, _ = (again := start_grid(path, env=environment)).communicate(timeout=90)
        assert again.returncode == 0 and "Traceback" not in out, out
        assert read_record(grid_folder / "run")["status"] == "ok"
        assert not [each for each in names(short) if each.startswith("seglib-")]
        assert not [*tmp_path.rglob("*.part")]
    finally:
        subprocess.run(["rm", "-rf", short], check=True)


def read_pid(path):
    return int(path.read_text() or 0) if path.exists() else 0
