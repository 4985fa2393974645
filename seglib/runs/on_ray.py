"""Runs on a Ray cluster: each is a task, and Ray chooses its node. Paths travel, not arrays."""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seglib.errors import InputError, InputErrors
from seglib.runs.grid import Grid, Job
from seglib.runs.lock import is_held
from seglib.runs.node import GRACE, decode, describe_here, find_differences, show_progress, start_keeper, write_order
from seglib.runs.schedule import Place, Process, read_progress
from seglib.text import count_noun

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
sys.modules.setdefault("rfc3987_syntax", None)  # see execute.py: Ray imports jsonschema too
logging.getLogger("ray").setLevel(logging.ERROR)

with contextlib.suppress(ImportError):  # the extra `ray`; without it see node.require_extra
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError, TaskCancelledError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_QUEUED = "queued"  # until its node says more
_RETRIES = 10  # nodes that may die under one run
_STORE = 100_000_000  # bytes of Ray's own store, where this process starts the cluster
_LONGEST_PROBE = 120  # [s] that a node has to start a first process
_OF_RAY = ("OMP_NUM_THREADS",)  # Ray sets it to a task's CPUs; bits depend on the number of threads


class RayProcess(Process):
    """A run that was handed over to Ray; see `schedule.Process`."""

    def __init__(self, task: "ray.ObjectRef", run_dir: Path, room: str | None):
        self.task, self.run_dir, self.room, self.code, self.queued = task, run_dir, room, None, True

    def poll(self) -> int | None:
        self.queued = self.queued and read_progress(self.run_dir) == _QUEUED
        if self.code is None and ray.wait([self.task], timeout=0)[0]:
            self.code = self._read_code()
        return self.code

    def _read_code(self) -> int:
        try:
            return ray.get(self.task)
        except TaskCancelledError:
            return -signal.SIGTERM
        except RayError as error:  # of the node or of Ray; what the run itself has to say is in its record
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, TaskCancelledError):
                return -signal.SIGTERM
            with open(self.run_dir / "run.log", "a", encoding="utf-8") as log:
                log.write(f"{' '.join(str(cause).split())}\n")
            return 1

    def stop(self) -> None:
        ray.cancel(self.task)

    def kill(self) -> None:
        ray.cancel(self.task, force=True)
        deadline = time.monotonic() + GRACE
        while is_held(self.run_dir) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.code = -signal.SIGKILL

    def close(self, ended_well: bool) -> None:
        """The node has cleared up."""


class RayCluster(Place):
    """Hands runs over to Ray; see `schedule.Place`.

    Parameters
    ----------
    here : `node.describe_here`.
    workers : runs at a time on a node without GPUs, whose CPUs they share.
    per_gpu : runs at a time on one GPU, where nodes have some.
    gpus_per_run : GPUs that a run takes together.
    """

    def __init__(self, here: Mapping[str, Any], workers: int = 1, per_gpu: int = 1, gpus_per_run: int = 1):
        self.here, self.known, self.counted = here, {}, 0.0
        nodes = _list_nodes()
        if any(node.get("GPU") for node in nodes.values()):
            self.needs = {"num_gpus": gpus_per_run / per_gpu, "num_cpus": 0}
            self.whole = {"num_gpus": gpus_per_run, "num_cpus": 0}
        else:
            cpus = min(int(node.get("CPU", 0)) for node in nodes.values())
            self.needs, self.whole = {"num_cpus": max(1, cpus // workers)}, {"num_cpus": max(1, cpus)}
        self.room = "" if self.needs != self.whole else None  # it is Ray that knows which runs share a GPU
        if not self.slots:
            raise InputError(f"--on ray: required a node with {self.needs}, got {[*nodes.values()]}")
        self.about = (
            f"Ray: {count_noun(sum(map(bool, self.known.values())), 'node')}, {count_noun(self.slots, 'run')} at a time"
        )

    @property
    def slots(self) -> int:
        """Runs that the nodes take now; nodes come and go."""
        if time.monotonic() - self.counted > 2:
            name, share = (
                ("GPU", self.needs["num_gpus"]) if "num_gpus" in self.needs else ("CPU", self.needs["num_cpus"])
            )
            self.known = {node: int(has.get(name, 0) / share + 1e-6) for node, has in _list_nodes().items()}
            self.counted = time.monotonic()
        return sum(self.known.values())

    def require_same(self) -> None:
        """Refuse nodes that do not see the shared folders or have other code or packages, before anything starts.

        Raises
        ------
        InputErrors
            A line for each node.
        """
        probe = ray.remote(num_cpus=0, max_retries=0)(find_differences)
        nodes = [node for node, slots in self.known.items() if slots]
        tasks = [
            probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(self.here)
            for node in nodes
        ]
        if problems := [line for node, task in zip(nodes, tasks, strict=True) if (line := _ask(node, task))]:
            raise InputErrors(f"--on ray: {line}" for line in problems)

    def has_free_room(self) -> bool:
        """Ray lets a job that needs all of a GPU wait for one."""
        return True

    def start(self, job: Job, alone: bool = False) -> RayProcess:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        show_progress(job.run_dir, _QUEUED)
        orders = {node: write_order(job, self.here, 1 if alone else slots) for node, slots in self.known.items()}
        needs = self.whole if alone else self.needs
        task = ray.remote(max_retries=_RETRIES, **needs)(_run).options(name=job.label)
        return RayProcess(task.remote(orders, write_order(job, self.here)), job.run_dir, self.room)


def _run(orders: Mapping[str, str], otherwise: str) -> int:
    """The task: keep a run on this node until it ends; Ray raises KeyboardInterrupt where it is to stop."""
    keeper = start_keeper(orders.get(ray.get_runtime_context().get_node_id(), otherwise), without=_OF_RAY)
    try:
        while keeper.poll() is None:
            time.sleep(0.2)
        return decode(keeper.returncode)
    except KeyboardInterrupt:
        keeper.terminate()
        keeper.wait(GRACE + 3)
        raise


def _ask(node: str, task: "ray.ObjectRef") -> str:
    """What is wrong with a node."""
    try:
        return ray.get(task, timeout=_LONGEST_PROBE)
    except GetTimeoutError:
        return f"node {node[:8]}: required an answer within {_LONGEST_PROBE} s, got none"
    except RayError as error:  # it has no seglib, or another Python
        lines = str(error).strip().splitlines()
        return f"node {node[:8]}: required seglib and its packages as here, got: {lines[-1] if lines else error!r}"


def _list_nodes() -> dict[str, dict[str, float]]:
    """What each node that is there has, by the node's id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


@contextlib.contextmanager
def open_ray(grid: Grid, workers: int) -> Iterator[RayCluster]:
    """Join the cluster at RAY_ADDRESS, or start one on this machine for as long as the block runs.

    Raises
    ------
    InputError
        There is no cluster at that address, no node can take a run, or nodes are not as this machine.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    own = {} if address else {"include_dashboard": False, "object_store_memory": _STORE}
    held = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises that, no more exact one, where a node does not come up in time
        where = f"at RAY_ADDRESS={address}" if address else "that starts here"
        words = " ".join(str(error).split())[:300]
        raise InputError(f"--on ray: required a cluster {where}, got: {words}") from error
    signal.signal(signal.SIGTERM, held)  # a cluster of our own takes it
    try:
        cluster = RayCluster(describe_here(grid), workers, grid.file.per_gpu, grid.file.gpus_per_run)
        cluster.require_same()
        yield cluster
    finally:
        ray.shutdown()
