"""The leaderboard: a grid's runs, collected and ranked, as CSV and as text."""

import csv
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

from seglib.files import FORMULA, read_json, replacing, sign
from seglib.runs.conditions import METRICS, Comparison, RunResult
from seglib.runs.record import NAME, is_damaged, read_history, read_record
from seglib.text import align, format_number, format_seconds, shorten

# A grid's records as one table: collected, ranked, printed.


_rows: dict[tuple, tuple[object, RunResult]] = {}  # rows of runs that ended, and of which state of their files


def collect_runs(grid_dir: str | Path, run_names: list[str], varied: list[str]) -> list[RunResult]:
    """A row for the record of every planned run, in the grid's order; what cannot be read becomes a row that says so.

    Records that are the same as when they were last read are not read again.
    """
    rows, grid_dir = [], Path(grid_dir)
    for run in run_names:
        place, state = (grid_dir, run, *varied), (sign(grid_dir / run / NAME), sign(grid_dir / run / "history.csv"))
        known, row = _rows.get(place, (None, None))
        if row is None or known != state:
            row = _read_row(grid_dir / run, run, varied)
            if state[0] and row.status != "running":  # whether it still runs is another question each time
                _rows[place] = state, row
        rows.append(row)
    return rows


def read_average_scores(run_dir: str | Path, params: Mapping[str, object]) -> dict[str, tuple[float, float]]:
    """Name of each average of a run -> (its mIoU, that of the plain weights), each in its own best epoch.

    From history.csv; an average without a score is left out.
    """
    averaging = params.get("averaging")
    history = read_history(Path(run_dir) / "history.csv") if averaging and isinstance(averaging, dict) else []
    best = {
        name: max((row[name] for row in history if name in row), default=None)
        for name in ("miou", *(f"{each}_miou" for each in (averaging if history else ())))
    }
    plain = best.pop("miou", None)
    return {name.removesuffix("_miou"): (score, plain) for name, score in best.items() if None not in (score, plain)}


def rank_rows(rows: list[RunResult]) -> list[RunResult]:
    """Runs with a score by falling mIoU, then ok runs without one, then all others in the grid's order."""
    return sorted(rows, key=lambda row: (row.status != "ok", row.miou is None, -(row.miou or 0)))


def write_leaderboard(grid_dir: str | Path, rows: list[RunResult], searched: str = "") -> Path:
    """Write leaderboard.csv, best run first, numbers in full precision; returns its path.

    The validation loss is the column `val_loss`: `loss` is the parameter that a loss sweep varies.
    Texts that a spreadsheet would run as a formula (starting with = + - @) get an apostrophe in front. `searched`, of a grid
    that searches, has a column in each row.
    """
    varied = list(dict.fromkeys(name for row in rows for name in row.texts))
    classes = list(dict.fromkeys(name for row in rows for name in row.iou))
    metrics = ["val_loss" if name == "loss" else name for name in METRICS]
    costs, origin = (
        ("best_epoch", "seconds", "peak_memory_mb"),
        ("notes", "key", "weights_sha256", "git_commit", "error"),
    )
    path = Path(grid_dir) / "leaderboard.csv"
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        header = ["run", "status", *varied, *metrics, *costs, *(f"iou {name}" for name in classes), *origin]
        header += ["searched"] if searched else []
        writer.writerow(map(_cell, header))
        for row in rank_rows(rows):
            cells = [row.run, row.status, *(row.params.get(name, row.texts.get(name)) for name in varied)]
            cells += [*row.metrics.values(), *(getattr(row, name) for name in costs)]
            cells += [*(row.iou.get(name) for name in classes), *(getattr(row, name) for name in origin)]
            cells += [searched] if searched else []
            writer.writerow(map(_cell, cells))
    return path


def format_table(rows: list[RunResult], comparison: Comparison, varied: list[str], width: int = 100) -> str:
    """The grid's result for a terminal of `width` columns: runs, best first, then conditions where there is a verdict."""
    names = varied or ["run"]
    ranked, noted = rank_rows(rows), any(row.notes for row in rows)
    lines = [["#", *names, "status", "mIoU", "per image", "val loss", "epoch", "time", *(["notes"] if noted else [])]]
    for rank, row in enumerate(ranked, 1):
        scores = [format_number(row.metrics[name]) for name in ("miou", "miou_image", "loss")]
        place = str(rank) if row.miou is not None else "-"
        texts = [row.texts.get(name, "-") for name in names]
        cells = [place, *texts, row.status, *scores, format_number(row.best_epoch), format_seconds(row.seconds)]
        lines.append(cells + ([row.notes or ""] if noted else []))
    notes = {len(lines[0]) - 1} if noted else set()
    table = align(lines, {*range(1, len(names) + 1), *notes}, {*range(1, len(names) + 2), *notes}, width)
    table += f"\n\n{_format_comparison(comparison, width)}" if comparison.is_judged else ""
    return "\n".join(
        [table, *(line for text in (*comparison.search, *comparison.averages) for line in wrap(text, width))]
    )


def _read_row(run_dir: Path, run: str, varied: list[str]) -> RunResult:
    record = read_record(run_dir)
    is_queued = not (run_dir / NAME).exists() and (run_dir / "progress.json").exists()  # with Ray or SLURM
    if is_queued or not run_dir.is_dir():
        return RunResult(run, "planned", _texts(run, varied, {}))
    if record is None:
        return RunResult(run, "unknown", _texts(run, varied, {}), error=_why_unreadable(run_dir / "record.json"))
    params, metrics = _mapping(record.get("params")), _mapping(record.get("metrics"))
    averages = read_average_scores(run_dir, params)
    by_miou = params.get("select_by", "miou") == "miou"
    return RunResult(
        run,
        str(record.get("status") or "unknown"),
        _texts(run, varied, params),
        params,
        {name: _number(metrics.get(name)) for name in METRICS},
        {name: _number(value) for name, value in _mapping(metrics.get("iou")).items()},
        **{name: _number(record.get(name)) for name in ("best_epoch", "seconds", "peak_memory_mb")},
        **{name: _text(record.get(name)) for name in ("key", "weights_sha256", "git_commit", "error")},
        notes=_describe_conditions(record, averages, is_damaged(run_dir / "history.csv")),
        average=max((score for score, _ in averages.values()), default=None) if by_miou else None,
    )


def _describe_conditions(record: dict, averages: Mapping[str, tuple[float, float]], damaged: bool) -> str | None:
    """Memory that ran out, averaged weights, a run that other bits may come of: a few words each."""
    split, weights = _number(record.get("oom_split")) or 1, record.get("weights")
    notes = [
        f"memory ran out: batch cut into {split:g}" if split > 1 else "",
        f"{weights} weights" if isinstance(weights, str) and weights != "plain" else "",
        *(f"{name} {score:.4f} against plain {plain:.4f}" for name, (score, plain) in averages.items()),
        *(_describe_unpainted(name, classes) for name, classes in _mapping(record.get("painted")).items()),
        "went on under other conditions" if record.get("conditions_changed") else "",
        str(record.get("error") or "") if record.get("status") == "stopped" else "",
        "not deterministic" if record.get("deterministic") is False else "",
        "history.csv is not what was written" if damaged else "",
    ]
    return ", ".join(note for note in notes if note) or None


def _describe_unpainted(subset: str, classes: object) -> str:
    counts = [_mapping(counts) for counts in _mapping(classes).values()]
    annotations, objects = (sum(_number(each.get(name)) or 0 for each in counts) for name in ("annotations", "objects"))
    return (
        f"{annotations - objects:,} of {annotations:,} {subset} annotations paint nothing"
        if annotations > objects
        else ""
    )


def _why_unreadable(path: Path) -> str:
    try:
        value = read_json(path)
    except FileNotFoundError:
        return "no record.json"
    except (OSError, ValueError) as error:
        return f"record.json cannot be read: {error}".replace(f"{path}: ", "")
    return f"record.json must hold an object, got {type(value).__name__}"


def _texts(run: str, varied: list[str], params: dict) -> dict[str, str]:
    """Short texts of the varied values; before a run has a record, those that its name says."""
    if params:
        return {name: shorten(params[name]) if name in params else "-" for name in varied}
    parts = re.split(f",(?=(?:{'|'.join(map(re.escape, varied))})=)", run)
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    return {name: named.get(name, "-") for name in varied}


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return value if real and abs(value) <= sys.float_info.max else None  # an int may be larger; NaN is not


def _text(value: object) -> str | None:
    """Texts as they are, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(value: object) -> object:
    """A CSV cell: numbers stay numbers (the writer uses repr), containers become JSON, formulas become text."""
    if isinstance(value, bool | int | float):
        return value
    text = _text(value) or ""
    return "'" + text if text.startswith(FORMULA) else text


def _format_comparison(comparison: Comparison, width: int) -> str:
    lines = [["condition", "n", "mean ± std", "difference [interval]", "verdict"]]
    for item in comparison.conditions:
        mean = format_number(item.mean) + (f" ± {item.std:.4f}" if item.std is not None else "")
        change = "-" if item.difference is None else f"{item.difference:+.4f}"
        interval = "" if item.low is None else f" [{item.low:+.4f}, {item.high:+.4f}]"
        verdict = f"{item.verdict} ({item.hint})" if item.hint else item.verdict or "-"
        lines.append([item.label, str(item.n), mean, change + interval, verdict])
    return "\n".join(
        [align(lines, {0}, {0, 2, 3, 4}, width), *(line for text in comparison.explain() for line in wrap(text, width))]
    )
