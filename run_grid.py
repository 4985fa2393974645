#!/usr/bin/env python3
"""Run a grid of notebooks: `python run_grid.py params/quickstart.yaml`.

`--repeat RUN` runs a finished run again instead, and says whether its weights are the same.

Exit codes: 0 every run is ok (now or before), or the repeated one is the same; 1 a run failed, the others went on; 2 the grid is not valid, nothing was
started; 130 interrupted, what ran is kept.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from seglib.errors import InputError
from seglib.files import outputs_dir
from seglib.runs.engine import keep_finished, repeat_run, run_grid, write_results
from seglib.runs.grid import Grid, Run, load_grid
from seglib.runs.grid_file import parse_yaml, shorten
from seglib.runs.keys import explain_run
from seglib.runs.leaderboard import fit
from seglib.runs.record import only_runner


def main(arguments: list[str] | None = None) -> int:
    """Check a grid, run what is not done yet, write leaderboard and index; return the exit code."""
    options = parse_arguments(arguments)
    try:
        if options.repeat:
            line = StatusLine()
            return 0 if repeat_run(options.repeat.expanduser().resolve(), line.keep, line.show) else 1
        grid = load_grid(
            options.file, options.outputs.expanduser().resolve(), parse_settings(options.set), options.debug
        )
        chosen = choose_runs(grid, options.only, options.limit)
        if not options.dry_run:
            return execute(grid, chosen, options)
        print_plan(grid, chosen, options.fresh)
        sys.stdout.flush()
    except InputError as error:
        lines = str(error).splitlines()
        shown = lines if len(lines) <= 30 else [*lines[:29], f"... and {len(lines) - 29} more"]
        print("\n".join(shown), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        rest = "" if options.repeat else ", the same command goes on from here"
        print(f"interrupted; what ran is kept{rest}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a long list went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if options.dry_run else 1
    except OSError as error:  # a disk that is full
        print(f"{options.file or options.repeat}: stopped: {error}; what ran is kept", file=sys.stderr)
        return 1
    return 0


def execute(grid: Grid, chosen: list[Run], options: argparse.Namespace) -> int:
    """Run what is not done yet; return the exit code."""
    line = StatusLine()
    with only_runner(grid.folder, line.show):
        keep_finished(grid)
        reasons = find_reasons(grid, chosen, options.fresh)
        waiting = [run for run in chosen if run.name in reasons]
        line.keep(describe_plan(grid, len(chosen), len(waiting)))
        try:
            ok = run_grid(grid, waiting, options.workers, options.fail_fast, line.keep, line.show)
        finally:
            line.keep("")
        print(write_results(grid, shutil.get_terminal_size((100, 24)).columns))
    return 0 if ok else 1


def find_reasons(grid: Grid, chosen: list[Run], fresh: bool) -> dict[str, list[str]]:
    """Why runs are to go, by name: those that are not done yet, and with --fresh all of them."""
    reasons = {run.name: explain_run(run.folder, grid.notebook, run.key) for run in chosen}
    return {name: words or ["fresh"] for name, words in reasons.items() if words or fresh}


def choose_runs(grid: Grid, only: str, limit: int | None) -> list[Run]:
    """The runs whose names contain a text, at most so many of them."""
    chosen = [run for run in grid.runs if only in run.name][:limit]
    if not chosen:
        raise InputError(f"--only {only!r}: required a part of a run's name, got none's; one is {grid.runs[0].name!r}")
    return chosen


def print_plan(grid: Grid, chosen: list[Run], fresh: bool) -> None:
    """List the runs, and what varies; which are done already, and why the others are to go."""
    reasons = find_reasons(grid, chosen, fresh)
    for run in chosen:
        print(f"run   {run.name}  ({', '.join(reasons[run.name])})" if run.name in reasons else f"skip  {run.name}")
    for name in grid.varied:
        values = list(dict.fromkeys(shorten(run.varied[name]) for run in chosen if name in run.varied))
        rest = f", ... ({len(values)} values)" if len(values) > 12 else ""
        print(f"{name}: {', '.join(values[:12])}{rest}")
    print(describe_plan(grid, len(chosen), len(reasons)))


def describe_plan(grid: Grid, chosen: int, waiting: int) -> str:
    """How much there is to do, and where it goes."""
    return f"{grid.name}: {chosen} runs, {chosen - waiting} done before, {waiting} to go -> {grid.folder}"


def parse_settings(texts: list[str]) -> dict[str, object]:
    """Read NAME=VALUE; values are YAML, so that lists and mappings can be given too."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise InputError(f"--set: required NAME=VALUE, got {text!r}")
        if name in settings:
            raise InputError(f"--set {name}: required once, got twice; for several values write --set {name}=[A,B]")
        parsed = parse_yaml(value, f"--set {name}")
        if parsed == []:
            raise InputError(f"--set {name}: required a value, or a list of at least one, got an empty list")
        settings[name] = "" if parsed is None else parsed
    return settings


class StatusLine:
    """One line that changes in place on a terminal; elsewhere a new line when it changes, at most every ten seconds."""

    def __init__(self):
        self.live, self.last, self.printed = sys.stdout.isatty(), "", 0.0

    def show(self, text: str) -> None:
        """Show what is going on now."""
        if self.live:
            print(f"\r\x1b[K{fit(text, shutil.get_terminal_size().columns - 1)}", end="", flush=True)
        elif text != self.last and time.monotonic() - self.printed > 10:
            print(f"    {text}", flush=True)
            self.last, self.printed = text, time.monotonic()

    def keep(self, text: str) -> None:
        """Print a line that stays."""
        print(("\r\x1b[K" if self.live else "") + text, flush=True)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_grid.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="a grid file, such as params/quickstart.yaml"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="set a parameter; a list sweeps it"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose name contains TEXT")
    parser.add_argument("--limit", type=count, metavar="N", help="at most N runs")
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="check and list the runs, start nothing")
    parser.add_argument(
        "--debug", action="store_true", help="5 %% of the images, 2 epochs; fails if the loss does not fall"
    )
    parser.add_argument("--fresh", action="store_true", help="run again what is done; the old results are moved aside")
    parser.add_argument("--fail-fast", action="store_true", help="start no further run after one has failed")
    parser.add_argument("--outputs", type=Path, default=outputs_dir(), metavar="DIR", help="default: outputs/")
    parser.add_argument(
        "--repeat",
        type=Path,
        metavar="RUN",
        help="run the finished run in this folder again; are its weights the same?",
    )
    options = parser.parse_args(arguments)
    if (options.file is None) == (options.repeat is None):
        parser.error("required a grid file, or --repeat with the folder of a run")
    others = ("set", "only", "limit", "dry_run", "debug", "fresh", "fail_fast")
    if options.repeat and any(getattr(options, name) for name in others):
        parser.error("--repeat takes no other options: it does what the record says")
    return options


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"required a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, signal.default_int_handler)  # ends as Ctrl-C does
    sys.exit(main())
