"""What a cell starts in a session of its own, without the run's mark, ends with the run, however that ends."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from seglib.runs.record import read_record

ESCAPE = """
import subprocess
Path(run_dir, "escaped").touch()
def escape(command, **options):
    subprocess.Popen(["sh", "-c", command], env={"PATH": os.environ["PATH"]}, **options)
sleep = "echo $$ >> " + str(Path(run_dir)) + "/escaped; exec sleep 300"
escape(sleep, start_new_session=True)
escape("nohup setsid sh -c '" + sleep + "' >/dev/null 2>&1 & exit 0", start_new_session=True)
while do != "ok" or len(Path(run_dir, "escaped").read_text().split()) < 2:
    time.sleep(0.1)
"""


@pytest.mark.parametrize("victim", ["nobody", "kernel", "run", "run_grid.py"])
def test_processes_that_escape_end_with_the_run(
    tmp_path, write_notebook, write_grid, start_grid, grid_folder, wait_for, victim
):
    notebook = write_notebook(tmp_path / "notebook.ipynb", ESCAPE)
    runner = start_grid(write_grid(f"fixed: {{do: {'ok' if victim == 'nobody' else 'wait'}}}", notebook))
    folder = grid_folder / "run"
    escaped = wait_for(lambda: find_escaped(folder / "escaped"), 60)
    pid = (read_record(folder) or {}).get("process", {}).get("pid")
    if victim == "run_grid.py":
        runner.kill()
    elif victim != "nobody":
        kernels = [each.pid for each in psutil.Process(pid).children() if "ipykernel_launcher" in each.cmdline()]
        os.kill(pid if victim == "run" else kernels[0], signal.SIGKILL)
    out, _ = runner.communicate(timeout=60)
    wait_for(lambda: not any(map(psutil.pid_exists, escaped)), 30)
    assert "Traceback" not in out and runner.returncode == {"nobody": 0, "run_grid.py": -9}.get(victim, 1), out
    ended = wait_for(lambda: (status := read_record(folder)["status"]) != "running" and status)
    assert ended == ("ok" if victim == "nobody" else "killed")


def find_escaped(path: Path) -> list[int]:
    pids = [int(pid) for pid in path.read_text().split()] if path.exists() else []
    return pids if len(pids) == 2 else []
