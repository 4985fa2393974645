"""A grid's results, leaderboard.csv and index.html: written when a run has ended, without holding up the next one."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from seglib.runs.averages import explain_averages
from seglib.runs.conditions import Comparison, RunResult, find_earlier_noise, summarise_conditions
from seglib.runs.grid import Grid
from seglib.runs.keys import is_finished
from seglib.runs.leaderboard import collect_runs, format_table, write_leaderboard
from seglib.runs.page import write_index
from seglib.runs.planning import find_needed
from seglib.runs.reasons import explain
from seglib.runs.search import choose_judged, describe_search, explain_search

PAUSE = 3.0  # [s] at least between two times that the results are written on the way
SHARE = 20  # and this many times what the last time took: of ten thousand runs that is a minute


class ResultsWriter:
    """Writes the results as runs end, in a thread.

    A disk that is full now ends no run: `report` takes a line, and at the end they are written again.
    """

    def __init__(self, grid: Grid, report: Callable[[str], None]):
        self.grid, self.report = grid, report
        self.wanted, self.closed = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def write_soon(self) -> None:
        """Called when a run has ended."""
        self.wanted.set()
        if not self.thread.is_alive() and not self.closed.is_set():
            self.thread.start()

    def close(self) -> None:
        """Write no more; returns when nothing is being written."""
        self.closed.set()
        self.wanted.set()
        if self.thread.is_alive():
            self.thread.join()

    def _work(self) -> None:
        while self.wanted.wait() and not self.closed.is_set():
            self.wanted.clear()
            began = time.monotonic()
            try:
                write_files(self.grid)
            except Exception as error:  # at the end, where nothing else can be harmed, it is raised
                words = explain(f"{error}", self.grid.folder / "run")[1]
                self.report(f"{self.grid.folder}: leaderboard and page were not written: {words}; the runs go on")
            self.closed.wait(max(PAUSE, SHARE * (time.monotonic() - began)))


def write_results(grid: Grid, width: int = 100) -> str:
    """Write leaderboard.csv and index.html; return the leaderboard as text `width` columns wide, and where to look."""
    rows, comparison = write_files(grid)
    table = format_table(rows, comparison, grid.varied, width)
    return f"{table}\n\nleaderboard  {grid.folder / 'leaderboard.csv'}\nlook here    {grid.folder / 'index.html'}"


def write_files(grid: Grid) -> tuple[list[RunResult], Comparison]:
    """Write leaderboard.csv and index.html; return what stands in them."""
    rows, earlier = collect_rows(grid), lend_noise(grid)
    needed = find_needed(grid, rows, earlier=earlier)
    rows = [row for row in rows if row.run in needed or row.status != "planned"]
    options = {"worthwhile": grid.file.worthwhile, "earlier": earlier, "max_seeds": grid.file.max_seeds}
    comparison = summarise_conditions(choose_judged(grid.file, rows), grid.varied, grid.file.baseline, **options)
    averages = explain_averages(grid.folder, rows, grid.varied, grid.file.worthwhile)
    comparison = replace(comparison, averages=averages, search=explain_search(grid.file, rows))
    write_leaderboard(grid.folder, rows, describe_search(grid.file))
    write_index(grid.folder, rows, comparison, grid.varied, grid.name, grid.notebook.stem)
    return rows, comparison


def collect_rows(grid: Grid) -> list[RunResult]:
    """A row for each run of the grid; one whose key is another now is outdated, its score no result."""
    runs = [*grid.runs]  # a search adds some meanwhile
    rows = collect_runs(grid.folder, [run.name for run in runs], grid.varied)
    return [
        replace(row, status="outdated")
        if row.status == "ok" and not is_finished(run.folder, grid.notebook, run.key)
        else row
        for row, run in zip(rows, runs, strict=True)
    ]


def lend_noise(grid: Grid) -> Callable[[], Any]:
    """Gives the noise of earlier grids where it is asked for; all records of the outputs folder are read once for it."""
    runs = [run.name for run in grid.runs]
    return cache(partial(find_earlier_noise, grid.folder.parent, grid.folder, runs))
