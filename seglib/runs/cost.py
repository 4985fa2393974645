"""What a grid will take: time, memory and disk of its runs, by finished runs of the same kind."""

import datetime
import heapq
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from seglib.errors import InputError
from seglib.runs.conditions import ELSEWHERE, identify
from seglib.runs.halving import share_epochs
from seglib.runs.record import NAME, read_record
from seglib.runs.search import count_later
from seglib.text import count_noun, format_seconds

if TYPE_CHECKING:
    from seglib.runs.grid import Grid, Run

NEWEST = 300  # finished runs that are looked at, the newest ones
ENOUGH = 5  # of one kind
PROBES = ".probe"  # folder of a grid, with a folder for each run of which three steps were measured
# What a training's time and memory go by first; `epochs` and the pixels of an image scale it.
_SHAPE = ("data_dir", "train_json", "architecture", "encoder", "batch_size", "expand", "debug")


@dataclass(frozen=True)
class Cost:
    """Of one run: time [s], peak memory [MB], disk [bytes], whether it used a GPU; None where it is not known."""

    seconds: float
    memory_mb: float | None
    disk: int | None
    on_gpu: bool


@dataclass(frozen=True)
class PastRun:
    """A run that ended well, or one that was measured by a few steps."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """From its start to its end; of one that was measured as it was foreseen."""
        seconds = self.record["seconds"]
        return seconds if self.record["status"] == "ok" else seconds + self.record["estimate"]["total"]

    @property
    def memory_mb(self) -> float | None:
        """The peak [MB]."""
        return self.record.get("peak_memory_mb") or (self.record.get("estimate") or {}).get("peak_memory_mb")

    @cached_property
    def disk(self) -> int | None:
        """Bytes of the files in its folder; None of one that was only measured."""
        return (
            None
            if self.record["status"] != "ok"
            else sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        )


def read_past_runs(outputs: Path) -> dict[str, list[PastRun]]:
    """The newest finished runs of all grids, and those measured by `--probe`, by their kind, newest first."""
    dated, kinds = [], {}
    for path in itertools.chain(outputs.glob(f"*/*/{NAME}"), outputs.glob(f"*/{PROBES}/*/{NAME}")):
        try:
            dated.append((path.stat().st_mtime, path))
        except OSError:  # moved aside since
            continue
    for _, path in heapq.nlargest(NEWEST, dated):
        record = read_record(path.parent) or {}
        seconds, params = record.get("seconds"), record.get("params")
        known = record.get("status") == "ok" or (path.parent.parent.name == PROBES and record.get("estimate"))
        if known and isinstance(params, dict) and isinstance(seconds, int | float):
            for describe, _ in _LEVELS:
                kinds.setdefault(describe(params), []).append(PastRun(path.parent, record))
    return kinds


def expect_cost(parameters: Mapping[str, Any], notebook: str, past: Mapping[str, Sequence[PastRun]]) -> Cost | None:
    """What a run will take: the median of the newest finished runs of its kind; None where there is none.

    Runs are of a kind where only seed and fold differ, else where the data, the model and the batch are the same. Time
    goes with the number of epochs and, among the latter, with the pixels of an image.

    Parameters
    ----------
    parameters : of the run.
    notebook : hash of its code, as in its key; any notebook of ours may lend to a run that has epochs.
    past : as `read_past_runs` gives them.
    """
    for describe, scale in _LEVELS:
        alike = past.get(describe(parameters), ())
        alike = [run for run in alike if "epochs" in parameters or _hash_notebook(run.record) == notebook][:ENOUGH]
        if alike:
            times = [run.seconds * scale(parameters) / scale(run.record["params"]) for run in alike]
            memory, disk = [run.memory_mb for run in alike if run.memory_mb], [run.disk for run in alike if run.disk]
            on_gpu = any(str(run.record.get("device", "")).startswith("cuda") for run in alike)
            return Cost(median(times), max(memory, default=None), max(disk, default=None), on_gpu)
    return None


def _describe_all(parameters: Mapping[str, Any]) -> str:
    left_out = (*ELSEWHERE, "epochs")
    return identify({name: value for name, value in parameters.items() if name not in left_out})


def describe_shape(parameters: Mapping[str, Any]) -> str:
    """What a training's time and memory go by first. Without a model of ours: all but the seed."""
    return identify(
        [parameters.get(name) for name in _SHAPE] if "architecture" in parameters else [_describe_all(parameters)]
    )


def _hash_notebook(record: Mapping[str, Any]) -> Any:
    return (record.get("key_parts") or {}).get("notebook")


def _count_epochs(parameters: Mapping[str, Any]) -> float:
    return float(parameters.get("epochs") or 1)


def _count_pixels(parameters: Mapping[str, Any]) -> float:
    return _count_epochs(parameters) * float(parameters.get("image_size") or 1) ** 2


_LEVELS = ((_describe_all, _count_epochs), (describe_shape, _count_pixels))


def forecast(grid: "Grid", runs: "Sequence[Run]", slots: int) -> str:
    """One line: what runs will take together and when they end, `slots` at a time (0: nobody knows); "" where no kind was measured.

    Raises
    ------
    InputError
        What finished runs of the same kind took on the disk is more than what is free.
    """
    past = read_past_runs(grid.folder.parent) if runs else {}
    costs = [expect_cost(run.parameters, run.key["notebook"], past) for run in runs] if past else []
    _require_disk(costs, grid.folder.parent)
    share = share_epochs(grid)
    costs = [cost and replace(cost, seconds=cost.seconds * share) for cost in costs]
    later = sum(count_later(grid)) if costs else 0
    costs += [costs[number % len(costs)] for number in range(later)]  # like those that are known
    return _describe_costs(costs, slots)


def _describe_costs(costs: Sequence[Cost | None], slots: int) -> str:
    known, unknown = [cost for cost in costs if cost], sum(cost is None for cost in costs)
    if not known:
        return ""
    seconds = find_makespan([cost.seconds for cost in known], slots or 1)
    on_gpus = sum(cost.seconds for cost in known if cost.on_gpu)
    how = "" if slots == 1 else f" with {slots} at a time" if slots else " of runs"
    words = [f"about {format_seconds(seconds)}{how}"]
    words += [f"{on_gpus / 3600:.1f} GPU h"] if on_gpus else []
    words += [f"until {datetime.datetime.now() + datetime.timedelta(seconds=seconds):%a %H:%M}"] if slots else []
    memory = [cost.memory_mb for cost in known if cost.memory_mb]
    words += [f"{max(memory) / 1024:.1f} GiB of memory"] if memory else []
    disk = _sum_disk(known) / 2**30
    words += [f"{disk:.1f} GiB of disk"] if all(cost.disk for cost in known) and disk >= 0.05 else []
    rest = f"; {count_noun(unknown, 'run')} of a kind that was not measured yet: --dry-run --probe" if unknown else ""
    return f"it takes {', '.join(words)} (by runs of the same kind){rest}"


def find_makespan(seconds: Iterable[float], slots: int) -> float:
    """When the last run ends [s] if the longest begin first."""
    ends = [0.0] * slots
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def _sum_disk(costs: Iterable[Cost]) -> int:
    return sum(cost.disk or 0 for cost in costs)


def _require_disk(costs: Sequence[Cost | None], outputs: Path) -> None:
    folder = next(path for path in (outputs, *outputs.parents) if path.is_dir())
    needed, free = _sum_disk(cost for cost in costs if cost), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{outputs}: required {needed / 2**30:.1f} GiB for {count_noun(len(costs), 'run')}, as finished runs of the"
            f" same kind took, got {free / 2**30:.1f} GiB free; make room, or choose --outputs on another disk"
        )
