"""The other processes (ranks) of a run that trains on several devices: each executes the same notebook, beside the first."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seglib import ranks
from seglib.files import PROJECT, private_folder
from seglib.runs.record import read_record

POLL = 0.5  # [s] between two looks at whether one has failed


@contextmanager
def start_others(job: Mapping[str, Any], fail: Callable[[str], None]) -> Iterator[None]:
    """Start what the environment asks for besides this process, the first rank, and end it with the block.

    Parameters
    ----------
    job : of this process; the others get it with a folder of their own, `ranks/1` ..., which is thrown away.
    fail : called from another thread with one line, when one of them ends before training together is over.
    """
    if ranks.count() == 1 or not ranks.is_first():
        yield
        return
    folder, devices = Path(job["run_dir"]) / "ranks", _list_devices(ranks.count())
    shutil.rmtree(folder, ignore_errors=True)
    over = threading.Event()
    with private_folder() as meeting:
        shared = {ranks.FOLDER: job["run_dir"], ranks.MEETING: f"{meeting}/meeting"}
        os.environ |= shared | {ranks.NUMBER: "0", "CUDA_VISIBLE_DEVICES": devices[0]}
        numbers = range(1, ranks.count())
        others = {number: _start(job, folder / str(number), number, devices[number]) for number in numbers}
        watch = threading.Thread(target=_watch, args=(others, folder, meeting, over, fail), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()
            for process in others.values():
                process.stdin.close()  # so its own children end too
                process.wait()
    if (read_record(job["run_dir"]) or {}).get("finished_at"):
        shutil.rmtree(folder, ignore_errors=True)


def _list_devices(count: int) -> list[str]:
    """What each rank sees as its only GPU; on a CPU it makes no difference."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = [each.strip() for each in visible.split(",") if each.strip()]
    return devices if len(devices) >= count else [str(number) for number in range(count)]


def _start(job: Mapping[str, Any], folder: Path, number: int, device: str) -> subprocess.Popen:
    folder.mkdir(parents=True)
    parameters = job["parameters"] | {"run_dir": str(folder)}
    parameters |= {"track": []} if "track" in parameters else {}
    with open(folder / "run.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            (sys.executable, "-m", "seglib.runs.execute"), stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
            cwd=PROJECT, env=os.environ | {ranks.NUMBER: str(number), "CUDA_VISIBLE_DEVICES": device},
            start_new_session=True,
        )  # fmt: skip
    process.stdin.write(json.dumps({**job, "parameters": parameters, "run_dir": str(folder), "neighbours": {}}) + "\n")
    process.stdin.flush()  # and stays open: when this process is killed, its end tells the child
    return process


def _watch(
    others: Mapping[int, subprocess.Popen], folder: Path, meeting: Path, over: threading.Event, fail: Callable
) -> None:
    while not over.wait(POLL):
        if (meeting / ranks.LEFT).exists():
            return
        for number, process in others.items():
            if process.poll() is not None and not (meeting / ranks.LEFT).exists():
                error = (read_record(folder / str(number)) or {}).get("error")
                fail(
                    f"process {number + 1} of {len(others) + 1}: {error or f'ended; see {folder / str(number)}/run.log'}"
                )
                return


_OF_ANOTHER = ("gloo", "NCCL", "peer", "distributed")  # in the words of a process whose partner went away


def find_cause(run_dir: str | Path, error: str | None) -> str | None:
    """A run's error; where it only says that another process went away, that one's."""
    for path in (
        sorted(Path(run_dir).glob("ranks/*/record.json")) if any(word in (error or "") for word in _OF_ANOTHER) else ()
    ):
        own = (read_record(path.parent) or {}).get("error") or ""
        if own and ranks.GoneOnAlone.__name__ not in own and not any(word in own for word in _OF_ANOTHER):
            return f"process {int(path.parent.name) + 1}: {own}"
    return error
