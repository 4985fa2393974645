"""Runs as SLURM jobs on a real cluster of one node, which the tests start themselves."""

import contextlib
import getpass
import os
import platform
import shutil
import signal
import socket
import subprocess
import time

import pytest
import yaml

from seglib.data.synthetic import make_synthetic
from seglib.files import PROJECT, read_json
from seglib.runs import search as searching
from seglib.runs.lock import is_held
from seglib.runs.reasons import BEGIN

pytestmark = pytest.mark.slow
PATIENCE = 420  # [s]
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


def test_a_pause_holds_what_waits_in_the_queue_and_the_next_command_lets_it_go(
    start, cluster, waiting_grid, records, grid_folder, wait_for
):
    def count_held():
        return ask(cluster, "squeue", "--noheader", "--format=%r").count("JobHeldUser")

    def order(what, words):
        ordering = start(waiting_grid, what)
        out, _ = ordering.communicate(timeout=60)
        assert ordering.returncode == 0 and words in out, out

    process = start(waiting_grid, "--on", "slurm")
    wait_for(lambda: read_began(grid_folder) == ["1", "2"])
    order("--pause", "to start no further run")
    wait_for(lambda: count_held() == 1, 60)
    (grid_folder / "go").touch()
    wait_for(lambda: len(records()) == 2 and not is_held(grid_folder / "seed=1"), 60)
    time.sleep(8)  # two looks of SLURM's scheduler, which has room now
    assert read_began(grid_folder) == ["1", "2"] and count_held() == 1
    order("--resume", "to go on")
    wait_for(lambda: read_began(grid_folder) == ["1", "2", "3"], 60)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and {record["status"] for record in records().values()} == {"ok"}, out
    (grid_folder / "go").unlink()
    leaving = start(waiting_grid, "--on", "slurm", "--detach", "--fresh")
    leaving.communicate(timeout=60)
    wait_for(lambda: len(read_began(grid_folder)) == 5)
    order("--pause", "asked SLURM to hold 1 job in its queue; those that run go on")
    assert count_held() == 1
    (grid_folder / "go").touch()
    again = start(waiting_grid, "--on", "slurm")
    out, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0 and read_began(grid_folder) == ["1", "1", "2", "2", "3", "3"], out


def test_a_search_goes_by_results_of_jobs_and_half_of_the_conditions_stop(
    start, write_grid, stopping_notebook, records, grid_folder
):
    path = write_grid("search: {weight: {uniform: [0, 1]}}\ntrials: 11\nseeds: [1, 2]", stopping_notebook)
    search = start(path, "--on", "slurm", "--workers", "2")
    out, _ = search.communicate(timeout=PATIENCE)
    assert search.returncode == 0 and "Best of 11 trials" in out, out
    assert {record["status"] for record in records().values()} == {"ok"} and len(records()) == 11 + 3
    assert read_json(grid_folder / "search.json")["trials"][-1]["told"] == 11 - 1 - searching.LAG
    shutil.rmtree(grid_folder)
    stop = "stop: {rule: halving, after: [1], keep: 0.5}"
    path = write_grid(f"{stop}\ngrid: {{weight: [0.1, 0.4, 0.2, 0.3]}}", stopping_notebook)
    left = start(path, "--on", "slurm", "--detach")
    out, _ = left.communicate(timeout=60)
    assert left.returncode == 0, out
    halving = start(path, "--on", "slurm")  # the rungs go on while a command waits
    out, _ = halving.communicate(timeout=PATIENCE)
    assert halving.returncode == 0, out
    assert [record["status"] for record in records().values()] == ["stopped", "stopped", "ok", "ok"]


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
