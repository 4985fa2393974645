"""Runs as SLURM jobs: with commands that only pretend, and with a real cluster of one node that the test starts itself."""

import contextlib
import getpass
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from seglib.data.synthetic import make_synthetic
from seglib.errors import InputErrors
from seglib.files import PROJECT, read_json, write_json
from seglib.runs import on_slurm, schedule, slurm
from seglib.runs.lock import is_held
from seglib.runs.reasons import BEGIN
from seglib.runs.record import read_record, update_record

PATIENCE = 420  # [s]

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
        print(f"{path.name[4:]}|{path.read_text()}|Priority")
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
    result = call(path, "--on", "slurm", "--slurm", "partition=none")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--on slurm: required a job that SLURM takes, got: sbatch: error: invalid partition" in result.err
    assert (
        "per_gpu: required 1 with --on slurm" in call(write_grid("grid: {seed: [1]}\nper_gpu: 2"), "--on", "slurm").err
    )
    notebook = write_notebook(path.parent / "trains.ipynb", "if False:\n    Trainer()")
    path = write_grid("grid: {seed: [1]}\ngpus_per_run: 2", notebook)
    result = call(path, "--on", "slurm", "--slurm", "gpus=1")
    assert "--slurm: required gpus=2, as gpus_per_run in the grid file, got gpus=1" in result.err
    monkeypatch.setenv("PATH", str(path.parent))
    assert "--on slurm: required SLURM's sbatch on PATH, got none" in call(path, "--on", "slurm").err
    assert "--slurm and --detach go with --on slurm" in call(path, "--detach").err
    assert "required no --workers" in call(path, "--on", "slurm", "--detach", "--workers", "2").err


def test_runs_left_with_slurm_are_found_shown_stopped_and_collected(pretended, call, write_grid, records, grid_folder):
    path = write_grid("grid: {seed: [1, 2, 3]}")
    (pretended / "mode").write_text("PENDING")
    result = call(path, "--on", "slurm", "--detach")
    assert result.code == 0 and "with SLURM: 0 running, 3 queued" in result.out, result
    result = call(path, "--workers", "1")
    assert result.code == 2 and "handed over to SLURM (job 1), as 3 runs are; required --on slurm" in result.err
    assert "with SLURM: 0 running, 3 queued" in call(path, "--on", "slurm", "--detach").out
    assert "asked SLURM to end job 3, seed=3" in call(path, "--stop", "seed=3").out
    assert "a job that is queued or runs, got seed=3" in call(path, "--stop", "seed=3").err
    assert "--pause and --resume required a runner, got runs with SLURM" in call(path, "--pause").err
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


# A real cluster.

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
OverTimeLimit=0
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=work Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""
TRAINING = {
    "image_size": 64, "architecture": "PSPNet", "encoder": "tu-test_resnet", "encoder_weights": "", "epochs": 100,
    "batch_size": 2, "augmentation": "flips", "num_workers": 0, "checkpoint_minutes": 0.02,
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, wait_for):
    """SLURM and munge on this machine, with a configuration of their own; ended with the tests."""
    if os.getuid() != 0 or any(shutil.which(name) is None for name in ("munged", "slurmctld", "slurmd", "sbatch")):
        pytest.skip("required root, and Debian's slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)  # munged refuses a socket that others cannot reach
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    host = platform.node().partition(".")[0]
    configuration.write_text(
        CONFIGURATION.format(folder=folder, host=host, ports=find_ports(2), user=getpass.getuser())
    )
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.sock", f"--key-file={key}",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D", "-i", "-c", "-f", configuration],
        ["slurmd", "-D", "-f", configuration, "-N", host],
    ]  # fmt: skip
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    processes = []
    for words in daemons:
        with open(folder / f"{words[0]}.out", "wb") as out:
            processes.append(subprocess.Popen(words, stdout=out, stderr=out, env=environment))
        time.sleep(1)
    # Without the 5 s that SLURM takes at least, a job that is queued again waits for two minutes.
    wait_for(lambda: "idle" in ask(environment, "sinfo", "--noheader", "--format=%T"), 60)
    yield environment
    ask(environment, "scancel", "--user", getpass.getuser())
    wait_for(lambda: not ask(environment, "squeue", "--noheader"), 60)
    for process in reversed(processes):
        process.terminate()
        process.wait(30)


@pytest.fixture
def environment(cluster, environment):
    """Of the cluster's, with one thread per run."""
    return cluster | environment | {"OMP_NUM_THREADS": "1"}


def find_ports(number):
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


def ask(environment, *words):
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60).stdout


def count_attempts(run_dir):
    log = run_dir / "run.log"
    return log.read_text().count(BEGIN) if log.is_file() else 0


@pytest.mark.slow
def test_trainings_that_the_time_limit_cuts_twice_have_the_weights_of_one_machine(start, tmp_path):
    data_dir = make_synthetic(tmp_path / "data", num_images=160, image_size=64, seed=3)
    weights = {}
    for name in ("slurm", "local"):
        spec = {"name": name, "notebook": str(PROJECT / "notebooks" / "02_train.ipynb"), "grid": {"seed": [21, 42]}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(spec | {"fixed": TRAINING | {"data_dir": str(data_dir)}}))
        more = ("--on", "slurm", "--slurm", "partition=work,time=1m") if name == "slurm" else ("--workers", "2")
        process = start(tmp_path / f"{name}.yaml", *more)
        out, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, out
        found = {path.parent.name: read_json(path) for path in (tmp_path / "outputs" / name).glob("*/record.json")}
        weights[name] = {run: record["weights_sha256"] for run, record in found.items()}
    cuts = {path.name: count_attempts(path) - 1 for path in (tmp_path / "outputs" / "slurm").glob("seed=*")}
    print(f"cuts by the time limit: {cuts}; weights: {weights['slurm']}")
    assert min(cuts.values()) >= 2 and len(cuts) == 2
    assert len({*weights["local"].values()}) == 2 and weights["slurm"] == weights["local"]


# Says that it began; goes on after one was cut.
WAITS = """
with open(Path(run_dir).parent / "began", "a") as file:
    file.write(f"{seed}\\n")
flag = Path(run_dir).parent / "go"
while not flag.exists():
    time.sleep(0.1)
"""


@pytest.fixture
def waiting_grid(tmp_path, write_notebook):
    write_notebook(tmp_path / "notebook.ipynb", WAITS)
    path = tmp_path / "grid.yaml"
    path.write_text(f"notebook: {tmp_path}/notebook.ipynb\ngrid: {{seed: [1, 2, 3]}}\n")
    return path


def read_began(folder):
    path = folder / "began"
    return sorted(path.read_text().split()) if path.is_file() else []


@pytest.mark.slow
def test_a_run_that_is_preempted_goes_on_when_there_is_room(
    start, cluster, waiting_grid, records, grid_folder, wait_for
):
    process = start(waiting_grid, "--on", "slurm", "--limit", "2")
    wait_for(lambda: read_began(grid_folder) == ["1", "2"])
    urgent = subprocess.Popen(["srun", "--partition=urgent", "--ntasks=2", "sleep", "1"], env=cluster)
    wait_for(lambda: len(read_began(grid_folder)) == 4)
    urgent.wait(60)
    (grid_folder / "go").touch()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out
    assert {record["status"] for record in records().values()} == {"ok"} and len(records()) == 2


@pytest.mark.slow
def test_left_runs_outlive_the_command_and_the_same_command_collects_them(
    start, waiting_grid, records, grid_folder, wait_for
):
    for _ in range(2):  # the second time it shows how they are doing
        process = start(waiting_grid, "--on", "slurm", "--detach")
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "with SLURM: " in out, out
        wait_for(lambda: read_began(grid_folder) == ["1", "2"])
    assert "with SLURM: 2 running, 1 queued" in out
    watching = start("--watch", grid_folder)
    stopping = start(waiting_grid, "--stop", "seed=2")
    out, _ = stopping.communicate(timeout=60)
    assert stopping.returncode == 0 and "asked SLURM to end job" in out, out
    wait_for(lambda: read_began(grid_folder) == ["1", "2", "3"])
    collecting = start(waiting_grid, "--on", "slurm")
    time.sleep(8)
    collecting.send_signal(signal.SIGINT)
    out, _ = collecting.communicate(timeout=60)
    assert collecting.returncode == 130 and is_held(grid_folder / "seed=1") and is_held(grid_folder / "seed=3"), out
    (grid_folder / "go").touch()
    again = start(waiting_grid, "--on", "slurm")
    out, _ = again.communicate(timeout=PATIENCE)
    assert [records()[f"seed={seed}"]["status"] for seed in (1, 3)] == ["ok", "ok"], out
    assert read_began(grid_folder).count("1") == read_began(grid_folder).count("3") == 1
    shown, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0 and "with SLURM: " in shown, shown


@pytest.mark.slow
def test_ctrl_c_ends_the_jobs_and_a_killed_command_leaves_them_to_the_next(
    start, cluster, waiting_grid, records, grid_folder, wait_for
):
    process = start(waiting_grid, "--on", "slurm")
    wait_for(lambda: read_began(grid_folder) == ["1", "2"])
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and "Traceback" not in out, out
    wait_for(lambda: not ask(cluster, "squeue", "--noheader"), 60)
    assert {record["status"] for record in records().values()} == {"interrupted"}
    process = start(waiting_grid, "--on", "slurm")
    wait_for(lambda: read_began(grid_folder) == ["1", "1", "2", "2"])
    process.kill()
    (grid_folder / "go").touch()
    again = start(waiting_grid, "--on", "slurm")
    out, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, out
    assert read_began(grid_folder) == ["1", "1", "2", "2", "3"] and len(records()) == 3
