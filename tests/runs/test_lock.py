import subprocess
import sys
import time

import pytest

from seglib.errors import InputError
from seglib.runs.record import only_runner

# Takes the lock, starts a process that inherits it as a run does, and ends without it.
KILLED_RUNNER = """
import os, subprocess, sys
from pathlib import Path
from seglib.runs.record import only_runner
with only_runner(Path(sys.argv[1]), print):
    subprocess.Popen(["sleep", "1"], close_fds=False, stdout=subprocess.DEVNULL)
    os._exit(0)
"""


def ignore(text):
    pass


def test_a_second_runner_is_refused_while_the_first_is_there_and_not_afterwards(tmp_path):
    folder = tmp_path / "outputs" / "grid"
    with only_runner(folder, ignore):
        with (
            pytest.raises(InputError, match=r"outputs/grid is in use by another run_grid.py \(process \d+\)"),
            only_runner(folder, ignore),
        ):
            pass
        with only_runner(tmp_path / "outputs" / "another", ignore):
            pass
    with only_runner(folder, ignore):
        pass


def test_the_runs_of_a_killed_runner_are_waited_for(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED_RUNNER, str(tmp_path)], check=True)
    began, said = time.monotonic(), set()
    with only_runner(tmp_path, said.add):
        assert time.monotonic() - began > 0.3
    assert said == {"waiting for the last processes of a killed run_grid.py to end"}


def test_a_damaged_lock_file_locks_as_well(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff{")
    with only_runner(tmp_path, ignore):
        pass
