"""Kills aimed at each kind of write: before it, in its middle, before and after the file gets its name."""

import re
from pathlib import Path

import pytest

from seglib.runs.record import read_record

pytestmark = pytest.mark.slow

# (who writes, the file, at which moment, of which write in this process); a run is hit once in each command.
OF_RUNS = [
    [("run", r"/02_train.ipynb$", "before", 3), ("run", r"/02_train.ipynb$", "middle", 5),
     ("run", r"/02_train.ipynb$", "rename", 8), ("run", r"/02_train.ipynb$", "after", 12),
     ("kernel", r"/pixels/\w+$", "rename", 1), ("kernel", r"/last.pt$", "before", 2),
     ("kernel", r"/last.pt$", "middle", 3), ("kernel", r"pixels/.*/images.npy$", "middle", 1)],
    [("run", r"/record.json$", "middle", 1), ("kernel", r"/record.json$", "rename", 1),
     ("run", r"/record.json$", "before", 2), ("run", r"/record.json$", "after", 2),
     ("kernel", r"/last.pt$", "rename", 2), ("kernel", r"/best.pt$", "after", 1),
     ("kernel", r"/history.csv$", "middle", 1), ("kernel", r"/confusion.npz$", "middle", 1)],
    [("kernel", r"/history.csv$", "rename", 1), ("kernel", r"/confusion.npz$", "rename", 1),
     ("kernel", r"/tracking.json$", "middle", 1), ("kernel", r"/tracking.json$", "rename", 2),
     ("kernel", r"/batch.png$", "middle", 1), ("run", r"/02_train.html$", "middle", 1),
     ("kernel", r"/best.pt$", "middle", 1)],
    [("run", r"/02_train.ipynb$", "before", 1), ("run_grid", r"/record.json$", "middle", 1)],
]  # fmt: skip
OF_THE_STORES = [
    ("kernel", r"\.part/probabilities.npy$", "middle", 1), ("kernel", r"\.part/store.json$", "middle", 1),
    ("kernel", r"/probabilities/[^/]+$", "after", 1),
]  # fmt: skip
OF_THE_GRID = [
    ("run_grid", r"/grid.yaml$", "middle", 1), ("run_grid", r"/grid.yaml$", "rename", 1),
    ("run_grid", r"/\.lock$", "before", 1), ("run_grid", r"/\.lock$", "middle", 1),
    ("run_grid", r"/leaderboard.csv$", "middle", 1), ("run_grid", r"/leaderboard.csv$", "rename", 1),
    ("run_grid", r"/index.html$", "middle", 1), ("run_grid", r"/index.html$", "after", 1),
]  # fmt: skip


@pytest.fixture
def kill(tmp_path, grid, totals):
    """Run the grid's command with aims; look at what is left, and at what was said."""

    def kill(aims):
        aims = [
            {"who": who, "file": file, "at": at, "count": count, "flag": str(tmp_path / f"hit-{totals.tried.total()}-{number}")}
            for number, (who, file, at, count) in enumerate(aims)
        ]  # fmt: skip
        grid.aim(aims).wait(600)
        said = grid.log.read_text()
        for aim in aims:
            assert Path(aim["flag"]).exists(), f"not hit: {aim}\n{said}"
            totals.tried[re.findall(r"[\w.]{3,}", aim["file"].replace("\\", ""))[-1]] += 1
        totals.look(grid, f"{aims}")
        if not any(aim["who"] == "run_grid" for aim in aims):  # which can say no more
            told = {name for name in re.findall(KILLED, said) if is_told(grid.folder / name, "killed")}
            late = {find_run(aim) for aim in aims if (aim["file"], aim["at"]) == (r"/record.json$", "after")}
            told |= {name for name in late if is_told(grid.folder / name, "ok")}  # what had its result stays ok
            hit = {find_run(aim) for aim in aims}
            totals.wrong["unclear"] += [f"{told} of {hit}: {said}"] if len(told) < len(hit) else []
        return said

    return kill


KILLED = r"\] (\S+): killed, \S+  the (?:kernel died: killed from outside|process of the run was killed \(signal \d+\))"


def is_told(folder, status):
    record = read_record(folder) or {}
    return record.get("status") == status and (bool(record.get("error")) == (status == "killed"))


def find_run(aim):
    """The run that was hit; two aims may hit one: its kernel, and then the process that executes it."""
    found = re.search(r"/grid/(seed=\d+|04_ensemble)/", Path(aim["flag"]).read_text())
    return found[1] if found else aim["flag"]


@pytest.fixture
def grid(make_trainings, tmp_path):
    return make_trainings(tmp_path / "killed")


def test_after_aimed_kills_all_is_whole_and_the_end_is_that_of_an_undisturbed_grid(undisturbed, grid, kill, totals):
    for aims in OF_RUNS:
        kill(aims)
    for aim in [*OF_THE_STORES, *OF_THE_GRID]:
        kill([aim])
    said = grid.run()
    assert ": failed" not in said and ": killed" not in said, said
    totals.compare(grid, undisturbed)
    totals.require_none()
