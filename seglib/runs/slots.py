"""The slots of this machine: which GPU and how many threads each run gets, through its process's environment."""

import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from seglib.errors import InputError

AUTO_CORES = 4  # per run, where `--workers auto` finds no GPU
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_DRIVER, _DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/dev")
_VISIBLE, _MPS, _THREADS = "CUDA_VISIBLE_DEVICES", "mps", ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_UUID = re.compile(r"\(UUID: ((?:GPU|MIG)-[^)]+)\)")


def choose_slots(
    gpus: str | None, workers: int | None, per_gpu: int = 1, gpus_per_run: int = 1
) -> list[dict[str, str]]:
    """What each slot adds to the environment of its runs; their number is that of the runs at a time.

    Runs are dealt over the GPUs in turn. The cores are divided by the runs: `OMP_NUM_THREADS`, unless the environment
    says a number already, or one run is alone.

    Parameters
    ----------
    gpus : "all", "none", or numbers and names separated by commas, which count among the visible GPUs; None: as it comes.
    workers : runs at a time; 0: as many as the GPUs take, or one per four cores; None: one, with `gpus` as these take.
    per_gpu : runs on one GPU, where the GPUs decide their number.
    gpus_per_run : GPUs that a run gets together; what is left over stands idle.

    Raises
    ------
    InputError
        A GPU that is not there, or stands twice; fewer than a run takes.
    """
    if gpus is None and workers in (None, 1):
        return [{}]
    names = [] if gpus == "none" else _choose_gpus(gpus)
    if 0 < len(names) < gpus_per_run:
        raise InputError(f"`gpus_per_run`: required {gpus_per_run} GPUs, got {len(names)}: {', '.join(names)}")
    whole = len(names) // gpus_per_run * gpus_per_run
    together = [names[at : at + gpus_per_run] for at in range(0, whole, gpus_per_run)]
    cards = [{} if group == [_MPS] else {_VISIBLE: ",".join(group)} for group in together]
    on_cpu = 1 if workers is None else max(1, count_cores() // AUTO_CORES)
    number = workers or per_gpu * len(cards) or on_cpu
    places = cards or [{_VISIBLE: ""} if gpus == "none" else {}]
    return [places[at % len(places)] | _divide_cores(number, number * gpus_per_run) for at in range(number)]


def _choose_gpus(gpus: str | None) -> list[str]:
    """The names of the chosen GPUs; none where none was asked for and there is none."""
    found = find_gpus()
    if gpus is None or gpus == "all":
        if gpus and not found:
            raise InputError("--gpus all: required a GPU, got none that nvidia-smi lists; leave --gpus out for the CPU")
        return found
    chosen = [_find_gpu(each.strip(), found) for each in gpus.split(",")]
    if len({*chosen}) < len(chosen):
        raise InputError(f"--gpus {gpus}: required each GPU once; for several runs on one set per_gpu in the grid file")
    return chosen


def _find_gpu(asked: str, found: Sequence[str]) -> str:
    if asked.isascii() and asked.isdigit() and int(asked) < len(found):
        return found[int(asked)]
    named = [name for name in found if not asked.isdigit() and asked and name.startswith(asked)]
    if len(named) != 1:
        have = f"0 to {len(found) - 1} or one of {', '.join(found)}" if found else "a GPU, and there is none"
        raise InputError(f"--gpus: required all, none, or {have}; got {asked!r}")
    return named[0]


def find_gpus() -> list[str]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them; "mps" is Apple's.

    Where that variable is set, those that it lists; else all that nvidia-smi does, or the driver where there is no
    nvidia-smi. The names are UUIDs: CUDA's own numbers go by speed. A GPU that is divided (MIG) counts by its parts.
    """
    visible = os.environ.get(_VISIBLE)
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        end = next((at for at, name in enumerate(names) if name in ("", "-1")), len(names))  # CUDA stops there too
        return names[:end]
    if sys.platform == "darwin":
        return [_MPS] if platform.machine() == "arm64" else []
    return _ask_nvidia_smi() if shutil.which("nvidia-smi") else _ask_driver()


def _ask_nvidia_smi() -> list[str]:
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = _UUID.findall(answer.stdout) if answer.returncode == 0 else []
    parts = {at for at, name in enumerate(found) if name.startswith("MIG-")}
    return [name for at, name in enumerate(found) if at in parts or at + 1 not in parts]  # parts follow their GPU


def _ask_driver() -> list[str]:
    found = []
    for path in sorted(_DRIVER.glob("*/information")):
        facts = dict(re.findall(r"^([^:\n]+):\s*(\S+)", path.read_text(), re.M))
        if "GPU UUID" in facts and (_DEVICES / f"nvidia{facts.get('Device Minor')}").exists():  # containers have some
            found.append(facts["GPU UUID"])
    return found


def count_cores() -> int:
    """Cores that this process may use: those it is bound to, as many as a container's quota is worth."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no quota: "max 100000"
        quota, period = map(int, _CPU_MAX.read_text().split())
        bound = min(bound, math.ceil(quota / period))
    return min(bound, psutil.cpu_count(logical=False) or bound)  # torch takes one thread per physical core


def _divide_cores(runs: int, processes: int) -> dict[str, str]:
    if runs == 1 or any(os.environ.get(name) for name in _THREADS):
        return {}
    return {_THREADS[0]: str(max(1, count_cores() // processes))}


def set_threads(threads: object) -> dict[str, str]:
    """The environment of a run that computes with so many threads; {} where none are recorded."""
    return {name: str(threads) for name in _THREADS} if isinstance(threads, int) else {}


def hint_at_gpus(gpus: str | None, workers: int | None, gpus_per_run: int = 1) -> list[str]:
    """A line where GPUs would stand idle: without `--gpus` and `--workers` there is one run at a time."""
    found = find_gpus() if gpus is None and workers is None else []
    line = f"{len(found)} GPUs are here, and one run at a time uses {gpus_per_run}; --gpus all uses all"
    return [line] if len(found) >= 2 * gpus_per_run else []


def find_per_gpu_problems(spec: Mapping) -> list[str]:
    """What is wrong with `per_gpu` of a grid file."""
    value = spec.get("per_gpu", 1)
    good = type(value) is int and 1 <= value <= 64
    return [] if good else [f"`per_gpu` must be the number of runs on one GPU at a time, from 1 to 64, got {value!r}"]
