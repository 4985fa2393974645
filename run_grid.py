#!/usr/bin/env python3
"""Run a grid of notebooks: `python run_grid.py params/quickstart.yaml`.

Exit codes: 0 every run is ok (now or before); 1 a run failed, the others went on; 2 the grid is not valid, nothing was
started; 130 interrupted, what ran is kept.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from seglib.errors import InputError
from seglib.files import outputs_dir
from seglib.runs.grid import Grid, Run, load_grid
from seglib.runs.grid_file import parse_yaml
from seglib.runs.run import run_grid, write_results
from seglib.runs.schedule import is_finished


def main(arguments: list[str] | None = None) -> int:
    """Check a grid, run what is not done yet, write leaderboard and index; return the exit code."""
    options = parse_arguments(arguments)
    try:
        overrides = dict(parse_setting(text) for text in options.set)
        grid = load_grid(options.file, options.outputs.expanduser().resolve(), overrides, options.debug)
        chosen = choose_runs(grid, options.only, options.limit)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    waiting = [run for run in chosen if options.fresh or not is_finished(run.folder, run.key)]
    if options.dry_run:
        print_plan(grid, chosen, waiting)
        return 0
    print(f"{grid.name}: {len(chosen)} runs, {len(chosen) - len(waiting)} done before, {len(waiting)} to go -> {grid.folder}")
    line = StatusLine()
    try:
        ok = run_grid(grid, waiting, options.workers, options.fail_fast, line.keep, line.show)
    except KeyboardInterrupt:
        line.keep("interrupted; what ran is kept, the same command goes on from here")
        return 130
    line.keep("")
    print(write_results(grid, shutil.get_terminal_size((100, 24)).columns))
    return 0 if ok and all(is_finished(run.folder, run.key) for run in chosen) else 1


def choose_runs(grid: Grid, only: str, limit: int | None) -> list[Run]:
    """The runs whose names contain a text, at most so many of them."""
    chosen = [run for run in grid.runs if only in run.name][:limit]
    if not chosen:
        raise InputError(f"--only {only!r}: no run has this in its name; the first is {grid.runs[0].name!r}")
    return chosen


def print_plan(grid: Grid, chosen: list[Run], waiting: list[Run]) -> None:
    """List the runs, what varies in each, and which are done already."""
    waiting_names = {run.name for run in waiting}
    width = max(len(run.name) for run in chosen)
    for run in chosen:
        print(f"{run.name:<{width}}  {'would run' if run.name in waiting_names else 'done, would be skipped'}")
    print(f"{grid.name}: {len(chosen)} runs, {len(waiting)} would run -> {grid.folder}")


def parse_setting(text: str) -> tuple[str, object]:
    """Read NAME=VALUE; the value is YAML, so that lists and mappings can be given too."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"--set {text}: required NAME=VALUE, got {text!r}")
    parsed = parse_yaml(value, f"--set {name}")
    return name.strip(), "" if parsed is None else parsed


class StatusLine:
    """One line that changes in place on a terminal; elsewhere a new line when it changes, at most every ten seconds."""

    def __init__(self):
        self.live, self.last, self.printed = sys.stdout.isatty(), "", 0.0

    def show(self, text: str) -> None:
        """Show what is going on now."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", flush=True)
        elif text != self.last and time.monotonic() - self.printed > 10:
            print(f"    {text}", flush=True)
            self.last, self.printed = text, time.monotonic()

    def keep(self, text: str) -> None:
        """Print a line that stays."""
        print(("\r\x1b[K" if self.live else "") + text, flush=True)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run_grid.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a grid file, such as params/quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="set a parameter; a list sweeps it")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose name contains TEXT")
    parser.add_argument("--limit", type=count, metavar="N", help="at most N runs")
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="check and list the runs, start nothing")
    parser.add_argument("--debug", action="store_true", help="5 %% of the images, 2 epochs; fails if the loss does not fall")
    parser.add_argument("--fresh", action="store_true", help="run again what is done; the old results are moved aside")
    parser.add_argument("--fail-fast", action="store_true", help="start no further run after one has failed")
    parser.add_argument("--outputs", type=Path, default=outputs_dir(), metavar="DIR", help="default: outputs/")
    return parser.parse_args(arguments)


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"required a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
