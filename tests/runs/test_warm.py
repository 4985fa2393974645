"""Runs that are forked from a process which has the libraries imported: as if each had started by itself."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from seglib.files import PROJECT
from seglib.parameters import read_defaults
from seglib.runs.grid import Job
from seglib.runs.local import LocalMachine
from seglib.runs.record import read_record
from seglib.runs.warm import WarmRun, _has_opened_gpu

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")


def warm_up(slots):
    machine, until = LocalMachine(slots, warm=True), time.monotonic() + 120
    while not machine.warm_up():
        assert machine.parent.alive and time.monotonic() < until
        time.sleep(0.02)
    return machine


@pytest.fixture(scope="module", autouse=True)
def _ask_for_it():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SEGLIB_WARM", raising=False)
        yield


@pytest.fixture(scope="module")
def machine(_ask_for_it):
    """A machine whose first run has been: the process that forks has all imported."""
    machine = warm_up(2)
    yield machine
    machine.parent.channel.close()
    machine.parent.process.wait(10)


@pytest.fixture
def start(tmp_path, write_notebook):
    """Start a notebook of a given body; returns its process and its folder."""

    def start(machine, name, body):
        notebook = write_notebook(tmp_path / f"{name}.ipynb", body)
        folder = tmp_path / name
        parameters = {"do": "ok", "weight": 0.0, "seed": 21, "run_dir": str(folder)}
        return machine.start(Job(name, notebook, folder, {}, parameters, {})), folder

    return start


def finish(process, folder, seconds=120):
    until = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < until, (folder / "run.log").read_text()
        time.sleep(0.02)
    process.close(ended_well=True)
    return read_record(folder) or {}


LEAVE = """
import builtins, random, numpy, torch, matplotlib.pyplot as plt, seglib.files
random.seed(1); numpy.random.seed(1); torch.manual_seed(1); torch.set_num_threads(1)
plt.rcParams["font.size"] = 33; plt.figure(); builtins.left = 1; os.environ["LEFT"] = "1"; seglib.files.PROJECT = None
sys.modules["left"] = sys; os.chdir("/")
"""
FIND = """
import builtins, random, numpy, torch, json
assert "matplotlib_inline.backend_inline" not in sys.modules
import matplotlib.pyplot as plt, seglib.files
assert plt.rcParams["font.size"] == 10 and not plt.get_fignums() and plt.get_backend().endswith("inline")
assert not hasattr(builtins, "left") and "left" not in sys.modules and "LEFT" not in os.environ
assert seglib.files.PROJECT and os.getcwd() == str(Path(run_dir).parent) and not torch.cuda.is_initialized()
assert sys.argv[0].endswith("ipykernel_launcher.py") and os.getsid(0) == os.getpid()
assert not any("record" in str(os.readlink(f"/proc/self/fd/{n}")) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}"))
Path(run_dir, "draws.json").write_text(json.dumps([random.random(), numpy.random.rand(), torch.rand(1).item()]))
plt.plot([1, 2]); plt.show()
"""


def test_nothing_of_one_run_is_found_in_the_next(machine, start):

    assert finish(*start(machine, "leave", LEAVE))["status"] == "ok"
    draws = []
    for name in ("one", "two"):
        process, folder = start(machine, name, FIND)
        record = finish(process, folder)
        assert record["status"] == "ok", record["error"]
        draws.append(json.loads((folder / "draws.json").read_text()))
        outputs = json.loads((folder / f"{name}.ipynb").read_text())["cells"][-2]["outputs"]
        assert any("image/png" in each.get("data", {}) for each in outputs)
    assert not any(one == two for one, two in zip(*draws, strict=True)), draws


def test_each_run_has_its_own_environment(machine, start, monkeypatch):
    body = "import torch\nassert (torch.get_num_threads(), os.environ['CUDA_VISIBLE_DEVICES']) == ({n}, '{n}')"
    for n in (1, 3):
        monkeypatch.setenv("OMP_NUM_THREADS", str(n))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(n))
        record = finish(*start(machine, f"threads{n}", body.format(n=n)))
        assert record["status"] == "ok", record["error"]


@pytest.mark.parametrize("who", ["run", "kernel"])
def test_a_killed_process_is_its_run_s_end_alone(machine, start, who, wait_for):
    body = "Path(run_dir, 'pid').write_text(str(os.getpid()))\ntime.sleep(60)"
    process, folder = start(machine, who, body)
    wait_for((folder / "pid").is_file)
    kernel = int((folder / "pid").read_text())
    assert process.poll() is None and process.process.pid != kernel
    os.kill(process.process.pid if who == "run" else kernel, signal.SIGKILL)
    record = finish(process, folder)
    assert record["status"] == "killed" and process.poll() == (-9 if who == "run" else 0)
    if who == "run":
        os.kill(kernel, signal.SIGKILL)
    assert finish(*start(machine, f"after {who}", ""))["status"] == "ok"


def test_a_run_is_stopped_as_any_other(machine, start, wait_for):
    process, folder = start(machine, "slow", "Path(run_dir, 'pid').write_text('')\ntime.sleep(60)")
    wait_for((folder / "pid").is_file)
    process.stop()
    assert finish(process, folder)["status"] == "interrupted"


def test_when_the_process_that_forks_is_killed_runs_go_on_and_others_start_by_themselves(start, capsys, wait_for):
    machine = warm_up(3)
    process, folder = start(machine, "goes on", "time.sleep(3)\nPath(run_dir, 'pid').write_text(str(os.getppid()))")
    wait_for((folder / "record.json").is_file)
    before, after = start(machine, "never forked", ""), None
    os.kill(machine.parent.process.pid, signal.SIGSTOP)  # it does not answer ...
    after = start(machine, "never forked either", "")
    os.kill(machine.parent.process.pid, signal.SIGKILL)
    assert [finish(*each)["status"] for each in ((process, folder), before, after)] == ["ok"] * 3
    assert finish(*start(machine, "cold", ""))["status"] == "ok"
    assert capsys.readouterr().out.count("has ended (-9): from here each starts by itself") == 1


@pytest.mark.parametrize("how", ["variable", "system"])
def test_where_it_cannot_be_had_runs_start_by_themselves(monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("SEGLIB_WARM", "0")
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    assert not LocalMachine(1, warm=True).warm


def test_a_run_waits_for_no_import(start):
    """While the process that forks imports, one run at a time starts by itself; others wait for it."""
    machine = LocalMachine(2, warm=True)
    first, second = start(machine, "first", ""), start(machine, "second", "")
    assert isinstance(first[0].process, subprocess.Popen) and isinstance(second[0].process, WarmRun)
    assert [finish(*each)["status"] for each in (first, second)] == ["ok", "ok"]
    third = start(machine, "third", "")
    assert machine.warm_up() and isinstance(third[0].process, WarmRun) and finish(*third)["status"] == "ok"


def test_after_a_library_that_opens_the_gpu_nothing_is_forked(monkeypatch):
    """CUDA's driver, begun before a fork, does not work after it; what it has open is seen here by a stand-in."""
    real = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: "/dev/nvidiactl" if str(path).endswith("/fd/0") else real(path))
    assert _has_opened_gpu()
    monkeypatch.undo()
    assert not _has_opened_gpu()


def test_the_weights_are_the_same_warm_and_cold(machine, tmp_path):
    notebook = PROJECT / "notebooks" / "02_train.ipynb"
    tiny = {
        "data_dir": "synthetic", "image_size": 64, "encoder": "tu-test_resnet", "encoder_weights": "", "epochs": 1,
        "warmup_epochs": 0.0, "batch_size": 8, "num_workers": 0,
    }  # fmt: skip
    hashes = []
    for name, place in (("warm", machine), ("cold", LocalMachine(2))):
        folder = tmp_path / name
        values = read_defaults(notebook) | tiny | {"run_dir": str(folder)}
        record = finish(place.start(Job(name, notebook, folder, {}, values, {})), folder, 400)
        assert record["status"] == "ok", record["error"]
        hashes.append((record["weights_sha256"], record["metrics"], (folder / "confusion.npz").read_bytes()))
    assert hashes[0] == hashes[1]
