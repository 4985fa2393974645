"""Real Ray clusters on this machine, from one node to three; nodes and drivers are killed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from seglib.data.synthetic import make_synthetic
from seglib.files import PROJECT, read_json
from seglib.runs import search as searching
from seglib.runs.lock import is_held
from seglib.runs.reasons import BEGIN

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
STORE = 100_000_000  # bytes, the least that Ray takes is 75 MB
PATIENCE = 300  # [s]

# Says that it began; takes long enough to be killed in between.
BODY = """
with open(Path(run_dir).parent / "began", "a") as file:
    file.write(f"{seed}\\n")
time.sleep(2)
"""
RESULT = 'save_result(run_dir, metrics={"miou": 0.5}, threads=os.environ.get("OMP_NUM_THREADS"))\n'
# One that is cut goes on from a checkpoint within an epoch.
TRAINING = {
    "image_size": 64, "architecture": "PSPNet", "encoder": "tu-test_resnet", "encoder_weights": "", "epochs": 6,
    "batch_size": 2, "augmentation": "flips", "num_workers": 0, "checkpoint_minutes": 0.005,
}  # fmt: skip


@pytest.fixture
def make_cluster(monkeypatch, tmp_path):
    """A cluster: a head without resources, and nodes of one (pretended) GPU each; RAY_ADDRESS names it."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written to the home folder
    # Ray imports jsonschema, which builds a grammar of web addresses for seconds; a node has 15 s to be there.
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "rfc3987_syntax.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'ray'}:{PROJECT}")
    clusters = []

    def make(nodes):
        head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        cluster = try_thrice(lambda: Cluster(initialize_head=True, head_node_args=head))
        clusters.append(cluster)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE}
        return cluster, [try_thrice(lambda: cluster.add_node(**node)) for _ in range(nodes)]

    yield make
    for cluster in clusters:
        cluster.shutdown()


@pytest.fixture
def environment(environment):
    """With one thread per run."""
    return environment | {"OMP_NUM_THREADS": "1"}


def try_thrice(start):
    """A node must be there within 15 s of its start, or it gives up."""
    for _ in range(2):
        with contextlib.suppress(Exception):  # Ray raises no more exact one
            return start()
    return start()


def read_records(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/record.json")}


def count_lines(path):
    return Counter(path.read_text().split()) if path.is_file() else Counter()


def test_24_trainings_on_3_nodes_of_which_one_dies_and_then_the_driver_have_the_weights_of_one_machine(
    make_cluster, start, tmp_path, wait_for
):
    data_dir = make_synthetic(tmp_path / "data", num_images=60, image_size=64, seed=3)
    found = {}
    for name in ("local", "ray"):
        spec = {"name": name, "notebook": str(PROJECT / "notebooks" / "02_train.ipynb"), "grid": {"seed": [*range(24)]}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec | {"fixed": TRAINING | {"data_dir": str(data_dir)}}))
        folder, more = tmp_path / "outputs" / name, ("--workers", "2")
        if name == "ray":
            more = ("--on", "ray")
            before = kill_node_and_driver(*make_cluster(3), start(path, *more), folder, wait_for)
        process = start(path, *more)
        out, _ = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0, out
        found[name] = read_records(folder)
    weights = {name: {run: each["weights_sha256"] for run, each in records.items()} for name, records in found.items()}
    assert len({*weights["local"].values()}) == 24 and weights["ray"] == weights["local"]
    assert {record["status"] for record in found["ray"].values()} == {"ok"}
    assert {record["threads"] for record in found["ray"].values()} == {1}
    assert {run: found["ray"][run] for run in before} == before, "a run that was done ran again"
    attempts = {path.parent.name: path.read_text().count(BEGIN) for path in folder.glob("*/run.log")}
    total = sum(attempts.values())
    print(f"{len(found['ray'])} records, {len(before)} of them before the driver died; {total} attempts at 24 runs")
    assert total <= 24 + 1 + 2, f"one was cut by the node's end, two by the driver's: {attempts}"
    assert not [*tmp_path.rglob("*.part")]


def kill_node_and_driver(cluster, nodes, driver, folder, wait_for):
    """Kill a node and then the command, both in the middle; return the records of runs that were done by then."""

    def find_done():
        return {run: record for run, record in read_records(folder).items() if record["status"] == "ok"}

    wait_for(lambda: len(find_done()) >= 4 or driver.poll() is not None, 2 * PATIENCE)
    assert driver.poll() is None, driver.communicate()[0]
    cluster.remove_node(nodes[0], allow_graceful=False)
    wait_for(lambda: len(find_done()) >= 10, 2 * PATIENCE)
    driver.kill()
    return find_done()


def test_ctrl_c_stops_every_run_in_order_and_the_same_command_goes_on(
    make_cluster, start, write_notebook, records, tmp_path, grid_folder, wait_for
):
    make_cluster(2)
    write_notebook(
        tmp_path / "notebook.ipynb",
        BODY.replace("sleep(2)", "sleep(0 if (Path(run_dir) / 'run.log').read_text().count('cut') else 60)"),
        result=RESULT,
    )
    path = tmp_path / "grid.yaml"
    path.write_text(f"notebook: {tmp_path}/notebook.ipynb\ngrid: {{seed: [1, 2, 3]}}\n")
    driver = start(path, "--on", "ray")
    wait_for(lambda: count_lines(grid_folder / "began").total() == 2 or driver.poll() is not None)
    assert [is_held(grid_folder / f"seed={seed}") for seed in (1, 2, 3)] == [True, True, False]
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "Traceback" not in out, out
    assert {name: record["status"] for name, record in records().items()} == dict.fromkeys(
        ("seed=1", "seed=2"), "interrupted"
    )
    assert not any(is_held(path) for path in grid_folder.iterdir() if path.is_dir())


def test_a_search_goes_by_results_of_the_nodes_and_half_of_the_conditions_stop(
    make_cluster, start, write_grid, stopping_notebook, records, grid_folder
):
    make_cluster(2)
    path = write_grid("search: {weight: {uniform: [0, 1]}}\ntrials: 11\nseeds: [1, 2]", stopping_notebook)
    search = start(path, "--on", "ray")
    out, _ = search.communicate(timeout=PATIENCE)
    assert search.returncode == 0 and "Best of 11 trials" in out, out
    assert "Ray: 2 nodes, 2 runs at a time\n" in out
    assert {record["status"] for record in records().values()} == {"ok"} and len(records()) == 11 + 3
    assert read_json(grid_folder / "search.json")["trials"][-1]["told"] == 11 - 1 - searching.LAG
    shutil.rmtree(grid_folder)
    stop = "stop: {rule: halving, after: [1], keep: 0.5}"
    halving = start(write_grid(f"{stop}\ngrid: {{weight: [0.1, 0.4, 0.2, 0.3]}}", stopping_notebook), "--on", "ray")
    out, _ = halving.communicate(timeout=PATIENCE)
    assert halving.returncode == 0, out
    assert [record["status"] for record in records().values()] == ["stopped", "stopped", "ok", "ok"]


# The run of weight 1 runs out of memory at first; when it is tried again, nothing may be beside it. What it waits for
# takes longer than a run may be silent.
CROWDED = """
beside, log = Path(run_dir).parent / "beside", Path(run_dir) / "run.log"
if weight == 0:
    beside.touch()
    for _ in range(16):
        log.touch()  # a sign of life
        time.sleep(1)
    beside.unlink()
elif log.read_text().count("--- begins") == 1:
    while not beside.exists():
        time.sleep(0.1)
    raise RuntimeError("CUDA out of memory")
else:
    assert not beside.exists()
"""


def test_what_ran_out_of_memory_on_a_shared_gpu_is_tried_again_with_all_of_it(
    make_cluster, start, write_grid, write_notebook, records, tmp_path
):
    make_cluster(1)
    result = RESULT.replace("threads=", "at_once=os.environ['SEGLIB_RUNS_AT_ONCE'], threads=")
    notebook = write_notebook(tmp_path / "crowded.ipynb", CROWDED, result=result)
    path = write_grid("grid: {weight: [0, 1]}\nper_gpu: 2\nstall_minutes: 0.15", notebook)
    driver = start(path, "--on", "ray")
    out, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0 and out.count("weight=1: oom") == 1 and "weight=1: once more, alone" in out, out
    assert [(each["status"], each["at_once"]) for each in records().values()] == [("ok", "2"), ("ok", "1")]


def test_runs_of_several_gpus_share_none(start, write_grid, write_notebook, tmp_path):
    notebook = write_notebook(tmp_path / "trains.ipynb", "if False:\n    Trainer()")
    path = write_grid("grid: {seed: [1]}\nper_gpu: 2\ngpus_per_run: 2", notebook)
    for more in ((), ("--dry-run",)):
        driver = start(path, "--on", "ray", *more)
        out, _ = driver.communicate(timeout=PATIENCE)
        words = "per_gpu: required 1 with --on ray, where a run has 2 GPUs (gpus_per_run), got 2\n"
        assert (driver.returncode, out) == (2, words)


def test_a_node_with_other_code_or_without_the_folder_is_refused_in_one_line(
    make_cluster, start, write_notebook, tmp_path
):
    make_cluster(1)
    write_notebook(tmp_path / "notebook.ipynb", "")
    path = tmp_path / "grid.yaml"
    path.write_text(f"notebook: {tmp_path}/notebook.ipynb\ngrid: {{seed: [1]}}\n")
    project = tmp_path / "project"  # what the driver runs; the nodes get it by PYTHONPATH, and see another folder
    shutil.copytree(PROJECT / "seglib", project / "seglib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "run_grid.py", project)
    code = (project / "seglib" / "runs" / "node.py").read_text()
    changed = code.replace('"token": probe.read_text()', '"token": "another"')
    (project / "seglib" / "runs" / "node.py").write_text(changed)
    result = subprocess.run(
        [sys.executable, project / "run_grid.py", path, "--on", "ray", "--outputs", tmp_path / "o"],
        capture_output=True, text=True, timeout=PATIENCE, env=os.environ | {"PYTHONPATH": str(project)},
    )  # fmt: skip
    assert result.returncode == 2 and not [*Path(tmp_path).glob("o/grid/seed=1")]
    assert result.stderr.startswith("--on ray: node ") and result.stderr.count("\n") == 1
    assert f"does not see {tmp_path / 'o' / 'grid'}; required a folder that all nodes share" in result.stderr
