#!/usr/bin/env python3
"""Run a grid of notebooks: `python run_grid.py params/quickstart.yaml`.

Exit codes: 0 every run is ok (now or before), or the repeated one is the same; 1 a run failed, the others went on;
2 the grid is not valid, nothing was started; 130 interrupted, what ran is kept.
"""

import argparse
import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from seglib.errors import InputError, print_anything, printable
from seglib.files import expand, outputs_dir, sweep
from seglib.runs.cost import forecast
from seglib.runs.engine import find_next, find_outdated, keep_finished, run_grid
from seglib.runs.family import NOT_ADOPTED, adopt_orphans
from seglib.runs.grid import Grid, Run, choose_runs, find_reasons, foresee_verdicts, load_grid, require_weights
from seglib.runs.grid_file import parse_settings
from seglib.runs.halving import describe_stops
from seglib.runs.local import LocalMachine
from seglib.runs.lock import only_runner, wait_until_free
from seglib.runs.node import require_extra, require_whole_gpus
from seglib.runs.on_slurm import ask_slurm, open_slurm
from seglib.runs.order import Order
from seglib.runs.probe import probe_runs
from seglib.runs.reasons import explain
from seglib.runs.repeat import repeat_run
from seglib.runs.results import write_results
from seglib.runs.schedule import Place, StatusLine
from seglib.runs.search import count_later, foresee_search
from seglib.runs.slots import choose_slots, hint_at_gpus
from seglib.runs.slurm import describe_left, find_handed_over, parse_options, require_collected
from seglib.runs.watch import Orders, find_grid, give_order, watch
from seglib.text import shorten


def main(arguments: list[str] | None = None) -> int:
    """Check a grid, run what is not done yet, write leaderboard and index; return the exit code."""
    print_anything()
    options = parse_arguments(arguments)
    try:
        if options.repeat:
            line = StatusLine()
            return 0 if repeat_run(expand(options.repeat).resolve(), line.keep, line.show) else 1
        if options.watch or options.stop or options.pause or options.resume:
            folder = find_grid(expand(options.watch or options.file), expand(options.outputs).resolve())
            if options.watch:
                watch(folder)
            else:
                print(printable(give_order(folder, options.stop, options.pause)))
            return 0
        if options.on:
            require_extra(options.on)
        options.asked = parse_options(options.slurm)
        grid = load_grid(options.file, expand(options.outputs).resolve(), parse_settings(options.set), options.debug)
        if options.on:
            require_whole_gpus(options.on, grid)
        options.slots = []  # of this machine; elsewhere nobody knows yet how many there are
        if not options.on:
            options.slots = choose_slots(options.gpus, options.workers, grid.file.per_gpu, grid.file.gpus_per_run)
            grid.notes.extend(hint_at_gpus(options.gpus, options.workers, grid.file.gpus_per_run))
        chosen = choose_runs(grid, options.only, options.limit)
        if not options.dry_run:
            return execute(grid, chosen, options)
        print_plan(grid, chosen, options)
        sys.stdout.flush()
    except InputError as error:
        lines = str(error).splitlines()
        shown = lines if len(lines) <= 30 else [*lines[:29], f"... and {len(lines) - 29} more"]
        print("\n".join(shown), file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:
        what = f"{options.file}: names need {error.object[error.start : error.end]!a}, which file names in"
        print(f"{what} {error.encoding} cannot have; export PYTHONUTF8=1", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        rest = "" if options.repeat else ", the same command goes on from here"
        print(f"interrupted; what ran is kept{rest}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a long list went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if options.dry_run else 1
    except OSError as error:  # a disk that is full
        what, words = (
            options.file or options.repeat or options.watch,
            explain(f"{error}", expand(options.outputs).resolve())[1],
        )
        print(printable(f"{what}: stopped: {words}; what ran is kept"), file=sys.stderr)
        return 1
    return 0


def execute(grid: Grid, chosen: list[Run], options: argparse.Namespace) -> int:
    """Run what is not done yet; return the exit code."""
    line = StatusLine()
    with only_runner(grid.folder, line.show) as lost:
        sweep(grid.folder)
        orders = Orders(grid.folder, lost)
        keep_finished(grid)
        reasons = find_reasons(grid, chosen, options.fresh)
        waiting = [run for run in chosen if run.name in reasons]
        require_weights(grid, waiting)
        soon = {*find_next(grid, [run.name for run in waiting])}
        outlook = foresee_time(grid, [run for run in waiting if run.name in soon], len(options.slots))
        line.keep("\n".join(filter(None, [*grid.notes, describe_plan(grid, chosen, reasons), *outlook])))
        folders = [run.folder for run in waiting]
        handed_over = find_handed_over(folders)
        if options.on != "slurm":
            require_collected(handed_over)
        wait_until_free([folder for folder in folders if folder not in handed_over], line.show)
        try:
            with open_place(grid, options, waiting, lost) as place:
                if place.about:
                    line.keep(place.about)
                ok = run_grid(grid, waiting, place, options.fail_fast, line.keep, line.show, orders)
        finally:
            line.keep("")
        chosen = grid.runs if grid.file.search else chosen
        outdated = find_outdated(grid, {run.name for run in chosen})
        print(printable(write_results(grid, shutil.get_terminal_size((100, 24)).columns)))
        if options.detach:
            print(describe_left(grid.folder))
    if outdated:
        print(
            f"{len(outdated)} of {len(chosen)} runs are outdated: data or code changed while the grid ran;"
            " the same command runs them again"
        )
    return 0 if ok and not outdated else 1


def open_place(
    grid: Grid, options: argparse.Namespace, waiting: list[Run], lost: threading.Event
) -> AbstractContextManager[Place]:
    """Where the runs go: this machine, or what --on names."""
    if options.on == "slurm":
        return nullcontext(open_slurm(grid, waiting, options.asked, options.workers, options.detach, lost))
    if options.on == "ray":
        from seglib.runs.on_ray import open_ray

        return open_ray(grid, options.workers or 1)
    jobs = len(waiting) + sum(count_later(grid)) + len(grid.file.then)
    return nullcontext(LocalMachine(environments=options.slots, warm=jobs > 2))


def print_plan(grid: Grid, chosen: list[Run], options: argparse.Namespace) -> None:
    """List the runs, and what varies; which are done already, why the others are to go, what they take."""
    reasons = find_reasons(grid, chosen, options.fresh)
    require_weights(grid, [run for run in chosen if run.name in reasons])
    print(printable("\n".join(grid.notes)), end="\n" if grid.notes else "")
    soon = {*find_next(grid, [run.name for run in chosen])}
    for run in (run for run in chosen if run.name in soon):
        print(f"run   {run.name}  ({', '.join(reasons[run.name])})" if run.name in reasons else f"skip  {run.name}")
    for name in grid.varied:
        values = list(dict.fromkeys(shorten(run.varied[name]) for run in chosen if name in run.varied))
        if not values:  # the further seeds of a search are not planned yet
            continue
        rest = f", ... ({len(values)} values)" if len(values) > 12 else ""
        print(printable(f"{name}: {', '.join(values[:12])}{rest}"))
    print(describe_plan(grid, chosen, reasons))
    due = soon & {*reasons}
    waiting = [run for run in chosen if run.name in due]
    if options.probe:
        line = StatusLine()
        probe_runs(grid, waiting, LocalMachine(), line.keep, line.show)
    outlook = [*foresee_time(grid, waiting, len(options.slots)), describe_stops(grid), foresee_search(grid.file)]
    outlook.append(foresee_verdicts(grid))
    if options.on == "slurm":
        outlook.append(ask_slurm(grid, options.asked))
    print("".join(f"{line}\n" for line in outlook if line), end="")


def foresee_time(grid: Grid, waiting: list[Run], slots: int) -> list[str]:
    """What the runs take, and with a `deadline` how many are expected to end by then, so many `slots` at a time; 0: unknown."""
    ahead = Order(grid).foresee(waiting, slots) if grid.file.deadline and waiting and slots else ""
    return [forecast(grid, waiting, slots), ahead]


def describe_plan(grid: Grid, chosen: list[Run], reasons: Collection[str]) -> str:
    """How much there is to do, and where it goes."""
    soon = {*find_next(grid, [run.name for run in chosen])}
    waiting, later = len(soon & {*reasons}), len({*reasons} - soon)
    more = "stay stopped" if grid.file.stop else "more where further seeds can tell"
    more = f", {'' if grid.file.stop else 'up to '}{later} {more}" if later else ""
    trials, seeds = count_later(grid)
    more += f", then {trials} more trials and up to {seeds} runs with further seeds" if trials or seeds else ""
    return f"{grid.name}: {len(soon)} runs, {len(soon) - waiting} done before, {waiting} to go{more} -> {grid.folder}"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "run_grid.py", None, __doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )  # `--on` is no `--only`
    add = parser.add_argument
    add("file", type=Path, nargs="?", metavar="FILE", help="a grid file, such as params/quickstart.yaml")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="set a parameter; a list sweeps it")
    add("--only", default="", metavar="TEXT", help="only runs whose name contains TEXT")
    add("--limit", type=count, metavar="N", help="at most N runs")
    add("--workers", type=count_or_auto, metavar="N", help="runs at a time (default 1; auto: by GPUs, else by cores)")
    add("--gpus", metavar="LIST", help="all, none, or 0,1: a run on each of these at a time")
    add(
        "--on",
        choices=("ray", "slurm"),
        help="several machines: a Ray cluster (RAY_ADDRESS, or one started here), SLURM",
    )
    add("--slurm", default="", metavar="LIST", help="what each job asks SLURM for: partition=gpu,time=8h,gpus=1")
    add("--detach", action="store_true", help="with --on slurm: hand the runs over and return; later shows their state")
    add("--dry-run", action="store_true", help="check and list the runs, start nothing")
    add("--probe", action="store_true", help="with --dry-run: measure three steps of each kind of run that never ran")
    add("--debug", action="store_true", help="5 %% of the images, 2 epochs; fails if the loss does not fall")
    add("--fresh", action="store_true", help="run again what is done; the old results are moved aside")
    add("--fail-fast", action="store_true", help="start no further run after one has failed")
    add("--outputs", type=Path, default=outputs_dir(), metavar="DIR", help="default: outputs/")
    add("--repeat", type=Path, metavar="RUN", help="run a finished run's folder again; are its weights the same?")
    add("--watch", type=Path, metavar="GRID", help="show a grid (file or folder) that runs, here or elsewhere")
    add("--stop", default="", metavar="RUN", help="of the grid FILE that runs, here or elsewhere: end this run")
    add("--pause", action="store_true", help="of the grid FILE that runs: start no further run")
    add("--resume", action="store_true", help="of the grid FILE that was paused: go on")
    options = parser.parse_args(arguments)
    if sum(each is not None for each in (options.file, options.repeat, options.watch)) != 1:
        parser.error("required a grid file, or --repeat with the folder of a run, or --watch with a grid")
    if options.probe and not options.dry_run:
        parser.error("--probe goes with --dry-run")
    if (options.slurm or options.detach) and options.on != "slurm":
        parser.error("--slurm and --detach go with --on slurm")
    if options.on and (options.gpus or options.workers == 0):
        how = "GPUs and cores are asked for by --slurm gpus=1,cpus=4" if options.on == "slurm" else "Ray deals out GPUs"
        parser.error(f"--on {options.on}: {how}; required no --gpus and no --workers auto")
    if options.detach and options.workers:
        parser.error("--detach hands over every run at once; required no --workers")
    others = ("set", "only", "limit", "dry_run", "debug", "fresh", "fail_fast", "gpus", "on")
    if options.repeat and any(getattr(options, name) for name in others):
        parser.error("--repeat takes no other options: it does what the record says")
    asked = [name for name in ("watch", "repeat", "stop", "pause", "resume") if getattr(options, name)]
    if len(asked) > 1 or (asked and any(getattr(options, name) for name in others)):
        parser.error(f"--{asked[0]} takes no other options but --outputs")
    return options


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or len(text) > 5 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"required a whole number from 1 to 99,999, got {text[:40]!r}")
    return int(text)


def count_or_auto(text: str) -> int:
    """A whole number from 1; 0 for auto."""
    return 0 if text == "auto" else count(text)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, signal.default_int_handler)  # ends as Ctrl-C does
    if not adopt_orphans():
        print(NOT_ADOPTED, flush=True)
    if "--dry-run" not in sys.argv:
        sys.exit(main())
    # All that a plan makes lives to its end, and nothing stays open: of 10,000 runs, looking for cycles would take a sixth
    # of the time, and taking them apart a tenth.
    gc.disable()
    code = main()
    sys.stdout.flush()
    os._exit(code)
