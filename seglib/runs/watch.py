"""A grid seen and steered from elsewhere: another terminal, or another machine that shares its folder.

All goes through files: the runner's and the runs' own are shown; orders are small files that the runner looks at.
"""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seglib.errors import InputError, printable, unknown_name
from seglib.files import hash_text, read_json, sign, write_json
from seglib.runs.grid import Job
from seglib.runs.grid_file import read_grid_file
from seglib.runs.lock import DEAD, QUIET, describe_holder, is_alive, is_here, read_age, read_clock, read_holder
from seglib.runs.record import NAME, read_record
from seglib.runs.slurm import describe_left, hold_left, stop_handed_over
from seglib.text import align, format_seconds

FOLDER = ".orders"
LOOK = 1.0  # [s] between two looks for orders, and at a grid that is watched
MOST_SHOWN = 40  # runs, where no terminal says how many


class Orders:
    """What others ask of the runner of a grid. Orders to an earlier runner are not obeyed.

    Parameters
    ----------
    folder : the grid's.
    lost : set once the grid's lock went to another machine.

    Attributes
    ----------
    paused : no further run is to start.
    stopped : names of runs that are to end, and not to start again.
    """

    def __init__(self, folder: Path, lost: threading.Event):
        self.folder, self.lost, self.paused, self.stopped = folder / FOLDER, lost, False, set()
        self._looked, self._runs = time.monotonic(), {}
        for path in self.folder.glob("*.json"):
            path.unlink()

    def expect(self, jobs: Iterable[Job]) -> None:
        """Write down what is to run, and where, for those who watch."""
        grid = self.folder.parent
        self._runs |= {job.label: os.path.relpath(job.run_dir, grid) for job in jobs}
        write_json(self.folder / "plan.json", {"runs": self._runs})

    def look(self) -> None:
        """Read what is asked, at most once a second."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(OSError):  # the disk is away for a while; what was asked before stays so
            found = {*os.listdir(self.folder)}
            self.paused = "pause.json" in found
            self.stopped |= {_read(self.folder / name).get("run") for name in found if name.startswith("stop-")}


def find_grid(path: Path, outputs: Path) -> Path:
    """The folder of a grid that is named by it, or by its grid file.

    Raises
    ------
    InputError
        No grid was run there.
    """
    folder = path if path.is_dir() else outputs / read_grid_file(path).name
    if not (folder / "grid.yaml").is_file() and not read_holder(folder):
        raise InputError(f"{folder}: required the folder of a grid that was run, got one without a grid.yaml")
    return folder.resolve()


def give_order(folder: Path, stop: str, pause: bool) -> str:
    """Ask a grid's runner, on whichever machine, to stop a run, to start no further ones, or to go on.

    Raises
    ------
    InputError
        Nobody runs this grid, or it has no such run.
    """
    state = _read_state(folder)
    if not state.live:
        raise InputError(f"{folder}: required a grid that is running, got one that {state.words}")
    orders = folder / FOLDER
    names = _read(orders / "plan.json").get("runs", {})
    if stop and stop not in names:
        raise InputError(f"--stop: {unknown_name('run', stop, names)}")
    if not state.holder:
        return stop_handed_over(folder / names[stop]) if stop else hold_left(folder, pause)
    who = describe_holder(state.holder)
    if stop:
        write_json(orders / f"stop-{hash_text(stop)}.json", {"run": stop})
        return f"asked {who} to stop {stop}"
    if pause:
        write_json(orders / "pause.json", {"pause": True})
        return f"asked {who} to start no further run; those that run go on"
    (orders / "pause.json").unlink(missing_ok=True)
    return f"asked {who} to go on"


def watch(folder: Path) -> None:
    """Show a grid until it ends, or Ctrl-C: in place on a terminal, elsewhere again where a run's state changed."""
    live, before = sys.stdout.isatty(), None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            columns, lines = shutil.get_terminal_size((80, MOST_SHOWN + 6)) if live else (80, MOST_SHOWN + 6)
            state = _read_state(folder)
            runs = [*_list_runs(folder, state.holder)]
            statuses = [(run.name, run.status) for run in runs]
            if live or statuses != before or not state.live:
                text = describe_grid(folder, state, runs, columns, lines - 6)
                print(f"\x1b[H\x1b[J{text}" if live else f"{text}\n", flush=True)
            before = statuses
            if not state.live:
                return
            time.sleep(LOOK)


class _State(NamedTuple):
    """Whether a grid is run now, by whom, and that in words."""

    live: bool
    holder: dict[str, Any]
    words: str


class _Row(NamedTuple):
    name: str
    status: str
    seconds: float | None
    text: str
    changed: float  # [s] of the record, by the disk's clock


def describe_grid(folder: Path, state: _State, runs: list[_Row], width: int, most: int) -> str:
    """What a grid does now, in at most `width` columns: who runs it, how far it is, what runs, what ended last."""
    counts = Counter(run.status for run in runs)
    order = {"running": 0, "waiting": 2}
    shown = sorted(runs, key=lambda run: (order.get(run.status, 1), -run.changed))[:most]
    cells = [[run.name, run.status, format_seconds(run.seconds), run.text] for run in shown]
    table = align([["run", "status", "time", ""], *cells], {0, 3}, {0, 1, 3}, width) if cells else ""
    more = f"... and {len(runs) - len(shown)} more" if len(runs) > len(shown) else ""
    paused = ", paused: no further run starts" if (folder / FOLDER / "pause.json").exists() and state.live else ""
    summary = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    head = [f"{folder.name}: {state.words}{paused}", f"{len(runs)} runs: {summary}"]
    return "\n".join(filter(None, [*(printable(line)[:width] for line in head), table, more]))


def _read_state(folder: Path) -> _State:
    holder = read_holder(folder)
    if not holder:
        left = describe_left(folder)
        return _State(bool(left), holder, left or "nobody runs now")
    try:
        age = read_age(folder)
    except OSError:  # a folder that cannot be written to has no clock
        age = 0.0
    live = is_alive(holder) if is_here(holder) else age < DEAD
    quiet = f", last heartbeat {format_seconds(age)} ago" if age > QUIET else ""
    return _State(live, holder, f"{describe_holder(holder)}{quiet}" + ("" if live else ", which is dead"))


def _list_runs(folder: Path, holder: dict[str, Any]) -> Iterator[_Row]:
    """The grid's runs: those that the holder, or the last one, is to run, and all others with a record."""
    planned = _read(folder / FOLDER / "plan.json").get("runs", {})
    others = {path.parent.name for path in folder.glob(f"*/{NAME}")} - {*planned.values()}
    try:
        now = read_clock(folder)
    except OSError:
        now = None
    for name, place in [*planned.items(), *((name, name) for name in sorted(others))]:
        record = read_record(folder / place) or {}
        changed = (sign(folder / place / NAME) or (0, 0, 0))[2] / 1e9
        status = str(record.get("status", "waiting"))
        if name in planned and status != "running" and changed < holder.get("since", 0):
            status, record = "waiting", {}  # what is there is of an earlier time
        if status == "waiting":
            text, seconds = str(_read(folder / place / "progress.json").get("text", "")), None  # queued somewhere
            yield _Row(name, status, seconds, text, changed)
            continue
        if status == "running":
            text = str(_read(folder / place / "progress.json").get("text", "starting"))
            seconds = now and max(0, now - changed)
        else:
            miou, seconds = (record.get("metrics") or {}).get("miou"), record.get("seconds")
            text = f"mIoU {miou:.4f}" if status == "ok" and miou is not None else str(record.get("error") or "")
        yield _Row(name, status, seconds, text, changed)


def _read(path: Path) -> dict[str, Any]:
    """A small file; an empty mapping where there is none, or none yet."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
