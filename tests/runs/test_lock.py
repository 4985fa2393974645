"""Who holds a grid, on this machine and on others: two hosts are two names of one machine here."""

import itertools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time

import pytest

from seglib.errors import InputError
from seglib.files import PROJECT
from seglib.runs import lock
from seglib.runs.lock import is_alive, only_runner
from seglib.runs.record import read_record, start_record


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="required a folder to write to"), only_runner(tmp_path / "grid", print):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    "signed", [{}, {"process": None}, {"process": {"pid": -1, "started": 0}}, {"process": {"pid": "x"}}]
)
def test_what_signs_nothing_is_not_alive(signed):
    assert not is_alive(signed)


# Takes the lock, starts a process that inherits it as a run does, and ends without it.
KILLED_RUNNER = """
import os, subprocess, sys
from pathlib import Path
from seglib.runs.lock import only_runner
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
            pytest.raises(
                InputError,
                match=r"outputs/grid is in use by another run_grid.py \(process \d+ on .+, since \d{4}-.+\); wait",
            ),
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


def test_who_was_killed_while_it_took_the_lock_is_not_waited_for(tmp_path):
    code = "import os, sys; from pathlib import Path; from seglib.runs import lock; lock._sign = lambda *_: os._exit(9)"
    code += "\nwith lock.only_runner(Path(sys.argv[1]), print): pass"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    assert (tmp_path / ".lock.taking").exists()
    began = time.monotonic()
    with only_runner(tmp_path, ignore):
        assert time.monotonic() - began < 5
    (tmp_path / ".lock.taking").write_text(json.dumps(lock.describe_process()))
    assert lock._try(tmp_path, ignore) is None and (tmp_path / ".lock.taking").exists()


def test_a_damaged_lock_file_locks_as_well(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff{")
    with only_runner(tmp_path, ignore):
        pass


@pytest.fixture
def be(monkeypatch):
    """Be the machine of another name from now on."""
    return lambda name: monkeypatch.setattr(platform, "node", lambda: name)


@pytest.fixture
def beaten(tmp_path):
    """Say how long ago the last heartbeat was [s]."""
    return lambda age: os.utime(tmp_path / ".lock", times=(time.time() - age,) * 2)


def test_the_heartbeat_touches_the_lock(tmp_path, monkeypatch, beaten):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with only_runner(tmp_path, ignore):
        beaten(1000)
        time.sleep(0.2)
        assert lock.read_age(tmp_path) < 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_live_holder_on_another_machine_is_reported_at_once(tmp_path, be, monkeypatch, beaten):
    be("node1")
    monkeypatch.setattr(lock, "_take", lambda *_: True)  # flock does not reach from machine to machine
    with only_runner(tmp_path, ignore):
        be("node2")
        beaten(20)
        words = rf"in use by another run_grid.py \(process {os.getpid()} on node1, since .*; last heartbeat 20 s ago\)"
        with pytest.raises(InputError, match=words), only_runner(tmp_path, ignore):
            pass
    with only_runner(tmp_path, ignore):  # what ended left nobody to wait for
        pass


@pytest.mark.parametrize(("held", "age"), [(False, 91), (True, 181)])
def test_a_dead_holder_on_another_machine_is_followed_and_sees_it_when_it_wakes(
    tmp_path, be, monkeypatch, beaten, held, age
):
    monkeypatch.setattr(lock, "BEAT", 0.3)
    if not held:
        monkeypatch.setattr(lock, "_take", lambda *_: True)
    be("node1")
    with only_runner(tmp_path, ignore) as first:
        be("node2")
        beaten(age)
        with only_runner(tmp_path, ignore) as second:
            assert lock.read_holder(tmp_path)["process"]["host"] == "node2"
            assert first.wait(5) and not second.is_set()
    assert not second.is_set() and lock.read_holder(tmp_path) == {}


def test_a_holder_that_may_be_dead_is_waited_for(tmp_path, be, monkeypatch, beaten):
    be("node1")
    with only_runner(tmp_path, ignore):
        be("node2")
        beaten(100)
        said = []
        assert lock._try(tmp_path, said.append) is None
    assert re.fullmatch(rf"process {os.getpid()} on node1, since .* 100 s ago; taken over after 180 s", said[0])


def test_a_run_on_another_machine_goes_on_while_the_holder_under_whom_it_began_lives(tmp_path, be, beaten):
    be("node1")
    with only_runner(tmp_path, ignore):
        (tmp_path / "run").mkdir()
        start_record(tmp_path / "run", "key", {}, {})
        be("node2")
        assert read_record(tmp_path / "run")["status"] == "running"
        beaten(91)
        assert read_record(tmp_path / "run")["status"] == "killed"
        beaten(0)
        os.utime(tmp_path / "run" / "record.json", times=(time.time() - 60,) * 2)  # of the holder before
        assert read_record(tmp_path / "run")["status"] == "killed"
    assert read_record(tmp_path / "run")["status"] == "killed"


# run_grid.py with the stand-in runner, and short times; nothing but the folder is shared with the other host.
HOST = """
import sys
sys.path.insert(0, {project!r})
from seglib.runs import local, lock, schedule
local.COMMAND, schedule.POLL = (sys.executable, {script!r}), 0.02
lock.BEAT, lock.QUIET, lock.DEAD = 0.2, 1.5, 2.5
import run_grid
sys.exit(run_grid.main(sys.argv[1:]))
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "-u", "true"], capture_output=True).returncode != 0,
    reason="other hosts are mount and UTS namespaces, which root makes",
)
def test_two_hosts_on_one_folder_neither_hang_nor_run_anything_twice(tmp_path, write_grid, stand_in, records):
    path = write_grid("grid: {seed: [1, 2, 3]}\nfixed: {do: slow}")
    (tmp_path / "host.py").write_text(HOST.format(project=str(PROJECT), script=str(stand_in)))
    arguments = [sys.executable, tmp_path / "host.py", path, "--outputs", tmp_path / "outputs"]

    def start(name):
        command = ["unshare", "-m", "-u", "sh", "-c", f'hostname {name} && exec "$@"', "sh", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start("node1")
    deadline = time.monotonic() + 30
    while not any(each["status"] == "ok" for each in records().values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = start("node2")
    out, err = second.communicate(timeout=30)
    assert second.returncode == 2 and out == "" and " on node1, since " in err and err.count("\n") == 1, (out, err)

    first.send_signal(signal.SIGKILL)
    before = {name: each["began"] for name, each in records().items() if each["status"] == "ok"}
    first.wait()
    third = start("node2")
    while (ended := third.communicate(timeout=60)) and third.returncode == 2 and " last heartbeat " in ended[1]:
        third = start("node2")
    assert third.returncode == 0, ended
    found = records()
    assert len(found) == 3 and {each["status"] for each in found.values()} == {"ok"}
    assert before.items() <= {name: each["began"] for name, each in found.items()}.items()
    times = sorted((each["began"], each["ended"]) for each in found.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))
