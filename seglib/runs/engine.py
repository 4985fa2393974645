"""A grid's runs, in slots: what is to do, in which order, on which device, again."""

import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import seglib
from seglib.data.fingerprint import fingerprint_data, hash_files
from seglib.errors import InputError, InputErrors
from seglib.files import PROJECT, outputs_dir, write_text
from seglib.parameters import read_schema
from seglib.parts import find_kept_parts
from seglib.rules import check_parameters, resolve_paths
from seglib.runs.check import compose_values, find_data_dirs, is_further_run
from seglib.runs.grid import Grid, Run
from seglib.runs.grid_file import GRID_DIR, Step
from seglib.runs.keys import (
    compare_keys,
    compute_keys,
    find_changes,
    find_notebook,
    hash_code,
    hash_values,
    is_finished,
)
from seglib.runs.leaderboard import collect_runs, format_seconds, format_table, summarise_conditions, write_leaderboard
from seglib.runs.page import write_index
from seglib.runs.record import describe_key, kill_family, read_record, update_record

# Runs jobs: one process each, a few at a time, with progress; what fails or is killed does not stop the rest.


COMMAND = (sys.executable, "-m", "seglib.runs.execute")
GRACE = 20  # [s] that a run which is told to stop gets to save its notebook before it is killed
POLL = 0.25  # [s] between two looks at what runs


@dataclass(frozen=True)
class Job:
    """A notebook to execute: a run of the grid, or a step that follows. Everything is written in `run_dir`.

    `neighbours` of a run: `previous` and `next` in its grid, and the runs of the `baseline`.
    """

    label: str
    notebook: Path
    run_dir: Path
    key: dict[str, Any]
    parameters: dict[str, Any]
    varied: dict[str, Any]
    neighbours: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Active:
    """A job that runs: its process, its place in the list, when it began on the monotonic clock [s]."""

    job: Job
    process: subprocess.Popen
    place: str
    began: float


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    fail_fast: bool,
    prepare: Callable[[Job], Job],
    report: Callable[[str], None],
    show: Callable[[str], None],
    on_end: Callable[[], None],
) -> bool:
    """Execute jobs, at most `workers` at a time; return whether all are ok.

    Parameters
    ----------
    prepare : called just before a job starts; makes room in its folder and returns the job to start.
    report : takes a line that stays (a run began or ended).
    show : takes the line of what is going on now, about four times a second.
    on_end : called after each job.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when every process has ended; records say `interrupted`.
    """
    waiting, active, statuses, seconds = list(jobs), [], [], []
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                place = f"[{len(jobs) - len(waiting) + 1}/{len(jobs)}]"
                job = prepare(waiting.pop(0))
                with _interrupts_held_back():  # in between, a process would have begun that nobody ends or records
                    active.append(_start(job, place))
                report(f"{place} {active[-1].job.label}")
            time.sleep(POLL)
            show(_describe(active, len(waiting), seconds, workers))
            for run in [run for run in active if run.process.poll() is not None]:
                active.remove(run)
                statuses.append(_finish(run, report))
                seconds += [time.monotonic() - run.began] if statuses[-1] == "ok" else []
                on_end()
            if fail_fast and any(status != "ok" for status in statuses):
                waiting.clear()
    finally:
        if active:  # Ctrl-C, or a disk that is full
            show("stopping ...")
            _stop([run.process for run in active])
            for run in active:
                _finish(run, report, interrupted=True)
    return len(statuses) == len(jobs) and all(status == "ok" for status in statuses)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C, and the signals that end as it does, wait until the block is left."""
    came = []
    held = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.default_int_handler]
    for number in held:
        signal.signal(number, lambda *_: came.append(True))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def _start(job: Job, place: str) -> _Active:
    job.run_dir.mkdir(parents=True, exist_ok=True)
    with open(job.run_dir / "run.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=PROJECT,
            env=os.environ | {"SEGLIB_OUTPUTS": str(outputs_dir())},  # seen from here, not from where the run stands
            close_fds=False,  # the lock on the grid's folder is the one handle that is inheritable
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which ends its children in order
        )  # fmt: skip
    with contextlib.suppress(BrokenPipeError):  # it ended already; _finish says how
        process.stdin.write(json.dumps(asdict(job), default=str) + "\n")
        process.stdin.flush()  # and stays open: when this process is killed, its end tells the child
    return _Active(job, process, place, time.monotonic())


def _finish(run: _Active, report: Callable[[str], None], interrupted: bool = False) -> str:
    """Read how a job ended; if its process could not say so itself, say it for it."""
    job, code = run.job, run.process.returncode
    with contextlib.suppress(BrokenPipeError):
        run.process.stdin.close()
    if code or interrupted:
        kill_family(run.process.pid)
    if code:
        status, error = "failed", _last_line(job.run_dir / "run.log")
        if interrupted:
            status, error = "interrupted", "stopped before its end"
        elif code < 0:
            status, error = "killed", f"the process of the run was killed (signal {-code})"
        update_record(
            job.run_dir, status=status, error=error, params=job.parameters, varied=job.varied, **describe_key(job.key)
        )
    (job.run_dir / "progress.json").unlink(missing_ok=True)
    record = read_record(job.run_dir) or {}
    status, miou = record.get("status", "failed"), (record.get("metrics") or {}).get("miou")
    detail = f"mIoU {miou:.4f}" if status == "ok" and miou is not None else record.get("error") or ""
    seconds = format_seconds(time.monotonic() - run.began)
    report(f"{run.place} {job.label}: {status}, {seconds}  {detail[:300]}".rstrip())
    return status


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    """Ask every process to stop and save, and end those that do not."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300] if lines else 'the process of the run ended without a word'}; see {log}"


def _describe(active: Sequence[_Active], waiting: int, seconds: Sequence[float], workers: int) -> str:
    """What each run does now, after the time that is left if all take as long as those that were ok [s]."""
    parts = []
    elapsed = [time.monotonic() - run.began for run in active]
    if seconds:
        mean = statistics.fmean(seconds)
        left = (waiting * mean + sum(max(0, mean - so_far) for so_far in elapsed)) / workers
        parts += [f"about {format_seconds(left)} left"] if left >= 1 else []
    for run, so_far in zip(active, elapsed, strict=True):
        parts.append(f"{run.place} {_read_progress(run.job.run_dir) or f'starting {format_seconds(so_far)}'}")
    return " | ".join(parts)


def _read_progress(run_dir: Path) -> str:
    try:
        return json.loads((run_dir / "progress.json").read_text())["text"]
    except (OSError, ValueError, KeyError):  # not written yet
        return ""


# The notebooks that follow a grid's runs (`then:`): once for each finished run, once for the grid, or as a further run.


def group_steps(steps: Sequence[Step]) -> list[list[int]]:
    """Places (from 1) of steps that may be planned together: one that names `{grid_dir}` needs what those before it wrote."""
    groups: list[list[int]] = []
    for place, step in enumerate(steps, 1):
        if not groups or step.uses_grid_dir():
            groups.append([])
        groups[-1].append(place)
    return groups


def plan_step(grid: Grid, place: int) -> list[Job]:
    """Jobs of a step (by its place in `then`, from 1) that are not done, over the runs that are; each has its own folder.

    Raises
    ------
    InputError
        What it is to read is not there.
    """
    finished = [run for run in grid.runs if is_finished(run.folder, grid.notebook, run.key)]
    step = grid.file.then[place - 1]
    notebook = find_notebook(step.notebook, grid.file.path)
    if not finished:
        jobs = []
    elif step.each:
        jobs = [_make_job(grid, place, notebook, run.folder, "run_dir", [run]) for run in finished]
    elif is_further_run(grid.file, step, notebook):
        jobs = [_make_run(grid, place, notebook, finished)]
    else:
        jobs = [_make_job(grid, place, notebook, grid.folder, "grid_dir", finished)]
    return [job for job in jobs if not is_finished(job.run_dir, job.notebook, job.key)]


def _make_run(grid: Grid, place: int, notebook: Path, finished: Sequence[Run]) -> Job:
    """One more run, with what the grid fixes; its folder is named after its place among the steps."""
    folder, step = grid.folder / f"then.{place}", grid.file.then[place - 1]
    values = _expand(compose_values(grid.file, step, notebook), grid.folder)
    values = resolve_paths(values, notebook.parent) | {"run_dir": str(folder)}
    values |= _take_debug(grid, values)
    (key,) = compute_keys(notebook, [values])
    if step.uses_grid_dir() and "data_dir" not in values:  # a training's files are known, and count by their content
        key["runs"] = hash_values(_read_weights(finished))
    return Job(f"{notebook.stem} {folder.name}", notebook, folder, key, values, {})


def _make_job(grid: Grid, place: int, notebook: Path, source: Path, name: str, runs: Sequence[Run]) -> Job:
    """`source` is the folder of `runs` that the notebook reads, given to it as the parameter `name`."""
    step, folder = grid.file.then[place - 1], source / _name_folder(grid, place)
    asked = compose_values(grid.file, step, notebook)
    asked |= _take_debug(grid, asked)
    values = _expand(asked, grid.folder)
    values |= {name: str(source)} | ({"output_dir": str(folder)} if "output_dir" in values else {})
    content = _hash_content(values, runs)
    by_place = {"run_dir", "grid_dir", "output_dir", *content}
    key = {
        "parameters": hash_values({name: value for name, value in asked.items() if name not in by_place}),
        "data": content,
        "notebook": hash_code(notebook),
        "results": seglib.RESULTS,
        "runs": hash_values([[run.key for run in runs], _read_weights(runs)]),
    }
    return Job(" ".join([folder.name, *(run.name for run in runs if step.each)]), notebook, folder, key, values, {})


def _name_folder(grid: Grid, place: int) -> str:
    """A step's folder is named after its notebook, and after its place too where that name is taken."""
    step, stem = grid.file.then[place - 1], Path(grid.file.then[place - 1].notebook).stem
    taken = {Path(other.notebook).stem for other in grid.file.then[: place - 1] if other.each == step.each}
    taken |= set() if step.each else {run.name for run in grid.runs}
    return f"{stem}.then{place}" if stem in taken else stem


def _read_weights(runs: Sequence[Run]) -> list[str | None]:
    """What training made of each run: a run that was made again has the same key, and maybe other weights."""
    return [(read_record(run.folder) or {}).get("weights_sha256") for run in runs]


def _hash_content(values: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Hashes of the files that a step reads beside those of its runs, by the parameter that names them."""
    if not values.get("test_json"):
        return {}
    data_dirs = find_data_dirs(values, [run.parameters for run in runs])
    images = [name if name == "synthetic" else fingerprint_data(name, [values["test_json"]]) for name in data_dirs]
    sample = values.get("sample_submission")
    return {"test_json": [values["test_json"], images], "sample_submission": hash_files([sample])[0] if sample else ""}


def _take_debug(grid: Grid, values: Mapping[str, Any]) -> dict[str, bool]:
    """What follows a trial is a trial."""
    return {"debug": True} if "debug" in values and any(run.parameters.get("debug") for run in grid.runs) else {}


def _expand(value: Any, folder: Path) -> Any:
    """Put the grid's folder where a value names it."""
    if isinstance(value, str):
        return value.replace(GRID_DIR, str(folder))
    if isinstance(value, Mapping):
        return {name: _expand(item, folder) for name, item in value.items()}
    return [_expand(item, folder) for item in value] if isinstance(value, list) else value


# Runs a checked grid: what is not done yet, the steps that follow, leaderboard and index.


def run_grid(
    grid: Grid,
    waiting: Sequence[Run],
    workers: int,
    fail_fast: bool,
    report: Callable[[str], None],
    show: Callable[[str], None],
) -> bool:
    """Run the waiting runs and then the steps that follow; return whether all of them are ok.

    `report` takes lines that stay, `show` the line of what is going on now (see `schedule.run_jobs`).

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C; what ran is kept and the leaderboard is written.
    """

    def prepare(job: Job) -> Job:
        try:
            key = compute_keys(grid.notebook, [job.parameters])[0]
        except ValueError:  # the data set or the notebook is gone: the run itself says so, and the others go on
            key = job.key
        if key != job.key:
            changed = " and ".join(compare_keys(job.key, key))
            report(f"{job.label}: {changed} changed since the grid was checked; this run is with the new")
            position = [run.name for run in grid.runs].index(job.label)
            grid.runs[position] = replace(grid.runs[position], key=key)
        make_room(job.run_dir, job.notebook, key, [run.name for run in grid.runs])
        return replace(job, key=key)

    def prepare_step(job: Job) -> Job:
        make_room(job.run_dir, job.notebook, job.key, ())
        return job

    write_text(grid.folder / "grid.yaml", grid.file.as_yaml())
    near = find_neighbours(grid)
    jobs = [
        Job(run.name, grid.notebook, run.folder, run.key, run.parameters, run.varied, near[run.name]) for run in waiting
    ]
    try:
        ok = run_jobs(jobs, workers, fail_fast, prepare, report, show, lambda: write_results(grid))
        if grid.file.then:
            write_results(grid)  # which a step reads; nothing ran where the grid only became smaller
        for places in group_steps(grid.file.then):
            if fail_fast and not ok:
                break
            jobs, planned = _plan_group(grid, places, ok, report)
            ok = run_jobs(jobs, workers, fail_fast, prepare_step, report, show, lambda: None) and planned and ok
        return ok
    except KeyboardInterrupt:
        write_results(grid)
        raise


def find_neighbours(grid: Grid) -> dict[str, dict[str, Any]]:
    """By a run's name: the runs before and after it (`previous`, `next`), and those of the `baseline`."""
    names, wanted = ["", *(run.name for run in grid.runs), ""], grid.file.baseline.items()
    baseline = [run.name for run in grid.runs if wanted and wanted <= run.parameters.items()]
    return {
        name: {"previous": names[place], "next": names[place + 2], "baseline": baseline}
        for place, name in enumerate(names[1:-1])
    }


def _plan_group(grid: Grid, places: Sequence[int], ok: bool, report: Callable[[str], None]) -> tuple[list[Job], bool]:
    """Jobs of the steps at these places, and whether each step could be planned; those that cannot are reported."""
    jobs, planned = [], True
    for place in places:
        step = grid.file.then[place - 1]
        if not ok and step.uses_grid_dir():
            report(f"{step.notebook}: not started, because what it follows failed")
            continue
        try:
            jobs += plan_step(grid, place)
        except InputError as error:
            report(f"{step.notebook}: not started: {error}")
            planned = False
    return jobs, planned


def make_room(folder: Path, notebook: Path, key: Mapping[str, Any], planned: Iterable[str]) -> None:
    """Move aside a finished run, or what other parameters, code or data left; a run that did not end goes on.

    The old folder becomes `<run>.1` (or .2, ...), never a name that is planned: `weight_decay=0` is not moved onto
    `weight_decay=0.1`.
    """
    record = read_record(folder)
    if not folder.exists() or (record and record.get("status") != "ok" and not find_changes(folder, notebook, key)):
        return
    number, taken = 1, set(planned)
    while (target := folder.with_name(f"{folder.name}.{number}")).exists() or target.name in taken:
        number += 1
    folder.rename(target)


def keep_finished(grid: Grid) -> None:
    """Write the key into the records of runs that are done and have no parts of it yet: it is worked out only once."""
    for run in grid.runs:
        record = read_record(run.folder) or {}
        if record and "key_parts" not in record and is_finished(run.folder, grid.notebook, run.key):
            update_record(run.folder, **describe_key(run.key))


def write_results(grid: Grid, width: int = 100) -> str:
    """Write leaderboard.csv and index.html; return the leaderboard as text `width` columns wide, and where to look."""
    rows = collect_runs(grid.folder, [run.name for run in grid.runs], grid.varied)
    done = {run.name for run in grid.runs if is_finished(run.folder, grid.notebook, run.key)}
    rows = [replace(row, status="outdated") if row.status == "ok" and row.run not in done else row for row in rows]
    conditions = summarise_conditions(rows, grid.varied, grid.file.baseline)
    table = write_leaderboard(grid.folder, rows)
    page = write_index(grid.folder, rows, conditions, grid.varied, grid.name, grid.notebook.stem)
    return f"{format_table(rows, conditions, grid.varied, width)}\n\nleaderboard  {table}\nlook here    {page}"


# Runs a recorded run again, in a folder inside its own, and says whether the same weights come out.


# What may make a difference, in the order in which it is told.
_CAUSES = (
    "versions", "platform", "device", "precision", "threads", "deterministic", "oom_split", "weights", "data_hash",
    "git_commit", "git_dirty",
)  # fmt: skip


_ALONE = {"continue_from": "", "track": []}  # a repeat is made from the beginning, and told to nobody


def repeat_run(run_dir: Path, report: Callable[[str], None], show: Callable[[str], None]) -> bool:
    """Run a finished run again with the parameters of its record; return whether the weights are the same to the bit.

    What comes of it is in `run_dir`/repeat (repeat.2, ...). `report` and `show`: see `schedule.run_jobs`.

    Raises
    ------
    InputError
        A run that is not finished, or parameters that no longer fit the notebook or the data.
    """
    before = _read_finished(run_dir)
    job = _plan(run_dir, before)
    if not run_jobs([job], 1, False, lambda job: job, report, show, lambda: None):
        return False
    after = read_record(job.run_dir) or {}
    same = [_hashes(record) for record in (before, after)]
    if same[0] == same[1] and _same_confusion(run_dir, job.run_dir):
        report(f"the same weights, bit for bit ({before['weights_sha256'][:16]}...), and the same confusion matrices")
        return True
    report(f"OTHER weights: {before['weights_sha256'][:16]}... then, {str(after.get('weights_sha256'))[:16]}... now")
    for line in describe_differences(before, after) or ["nothing that is recorded differs"]:
        report(f"  {line}")
    return False


def _hashes(record: Mapping[str, Any]) -> tuple:
    """Of the best weights, and of those fitted to all images."""
    return record.get("weights_sha256"), (record.get("final_fit") or {}).get("weights_sha256")


def describe_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two records of which the same was asked: a line each."""
    lines = []
    keys = [record.get("key_parts") for record in (before, after)]
    if all(keys) and (changed := compare_keys(*keys)):
        lines.append(f"the run's key: another {', '.join(changed)}")
    for name in _CAUSES:
        then, now = before.get(name), after.get(name)
        if isinstance(then, dict) and isinstance(now, dict):
            lines += [f"{each}: {then.get(each)} then, {now.get(each)} now" for each in sorted(then.keys() | now.keys())
                      if then.get(each) != now.get(each)]  # fmt: skip
        elif then != now:
            lines.append(f"{name}: {then} then, {now} now")
    if not after.get("deterministic", True):
        lines.append("deterministic is false: other bits are to be expected")
    score = [(record.get("metrics") or {}).get("miou") for record in (before, after)]
    return lines + ([f"mIoU: {score[0]} then, {score[1]} now"] if score[0] != score[1] else [])


def _read_finished(run_dir: Path) -> dict[str, Any]:
    record = read_record(run_dir)
    if record is None or record.get("status") != "ok" or "weights_sha256" not in record:
        got = "no record.json" if record is None else f"status {record.get('status')}"
        raise InputError(f"--repeat {run_dir}: required the folder of a finished training run, got {got}")
    return record


def _plan(run_dir: Path, record: Mapping[str, Any]) -> Job:
    notebook = _find_notebook(run_dir)
    schema = read_schema(notebook)
    values = {name: each.default for name, each in schema.items()} | record["params"]
    values |= {name: value for name, value in _ALONE.items() if name in values}
    values |= {"parts": find_kept_parts(run_dir)} if "parts" in values else {}
    values = resolve_paths(values, notebook.parent)  # a run by hand may have relative ones
    parameters, problems = check_parameters(schema, values)
    if problems:
        raise InputErrors([f"--repeat {run_dir}: {problem}" for problem in problems.values()])
    folder = _find_free(run_dir)
    parameters |= {"run_dir": str(folder)}
    (key,) = compute_keys(notebook, [parameters])
    return Job(f"repeat of {run_dir.name}", notebook, folder, key, parameters, dict(record.get("varied", {})))


def _find_notebook(run_dir: Path) -> Path:
    """The notebook of which the run's folder holds the executed copy."""
    names = [path.name for path in run_dir.glob("*.ipynb") if (PROJECT / "notebooks" / path.name).is_file()]
    if len(names) != 1:
        raise InputError(
            f"--repeat {run_dir}: required the executed copy of one of {PROJECT / 'notebooks'}, got {names or 'none'}"
        )
    return PROJECT / "notebooks" / names[0]


def _find_free(run_dir: Path) -> Path:
    names = itertools.chain(["repeat"], (f"repeat.{number}" for number in itertools.count(2)))
    return next(folder for name in names if not (folder := run_dir / name).exists())


def _same_confusion(*folders: Path) -> bool:
    import numpy as np  # not at the top: a dry run does without it

    with np.load(folders[0] / "confusion.npz") as before, np.load(folders[1] / "confusion.npz") as after:
        return all(np.array_equal(before[name], after[name]) for name in ("confusion", "image_ids"))
