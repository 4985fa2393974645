"""The leaderboard: runs ranked and compared, as CSV and as text."""

import csv
import json
import math
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from seglib.files import replacing
from seglib.runs.grid_file import shorten
from seglib.runs.record import read_record

# Numbers as short texts, and columns of text for a terminal, where a Korean syllable takes two columns.


def align(lines: list[list[str]], shrinking: set[int], left: set[int], width: int) -> str:
    """Lay out a header and its lines, columns two spaces apart, in at most `width` terminal columns.

    The widest of the `shrinking` columns give way until the table fits; their long texts end in an ellipsis. Columns
    in `left` start at the left, all others end at the right, as numbers should.
    """
    widths = [max(map(count_columns, column)) for column in zip(*lines, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths[index] for index in shrinking) > 4:
        widths[max(shrinking, key=lambda index: widths[index])] -= 1
    aligned = [fit(_line(line, widths, left), width) for line in lines]
    return "\n".join([aligned[0], "─" * min(width, sum(widths) + 2 * (len(widths) - 1)), *aligned[1:]])


def count_columns(text: str) -> int:
    """Terminal columns of a text: wide characters take two, combining marks none."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in _plain(text))


def fit(text: str, size: int) -> str:
    """Shorten to `size` terminal columns with an ellipsis."""
    text = _plain(text)
    if count_columns(text) <= size:
        return text
    while text and count_columns(text) > size - 1:
        text = text[:-1]
    return text + "…"


def format_number(value: float | None, pattern: str = ".4f") -> str:
    """Four decimals, whole numbers as they are, "-" for nothing."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else format(value, pattern)


def format_seconds(value: float | None) -> str:
    """Two units are enough: 42s, 3m05s, 1h02m."""
    if value is None:
        return "-"
    minutes, seconds = divmod(round(value), 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours}h{rest:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def _line(cells: list[str], widths: list[int], left: set[int]) -> str:
    padded = []
    for index, (cell, size) in enumerate(zip(cells, widths, strict=True)):
        text = fit(cell, size)
        space = " " * (size - count_columns(text))
        padded.append(text + space if index in left else space + text)
    return "  ".join(padded).rstrip()


def _plain(text: str) -> str:
    """Composed syllables (macOS names files decomposed), and nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "�" for c in unicodedata.normalize("NFC", text))


# A grid's records as one table: collected, ranked, conditions compared against the noise between seeds, printed.


Scores = Sequence[tuple[object, float]]  # (seed, score)
METRICS = ("miou", "miou_image", "miou_batch", "accuracy", "loss")


@dataclass(frozen=True)
class RunResult:
    """One planned run and what its record says; None where the record says nothing.

    `status` is the record's, or "planned" (no folder yet), or "unknown" (no readable record; `error` says why).
    `texts` are the varied parameters' values as short texts for people; `params` has the values themselves.
    """

    run: str
    status: str
    texts: dict[str, str]
    params: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(METRICS))
    iou: dict[str, float | None] = field(default_factory=dict)
    best_epoch: int | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    key: str | None = None
    weights_sha256: str | None = None
    git_commit: str | None = None
    error: str | None = None
    notes: str | None = None  # what sets its conditions apart from what was asked, or from other runs

    @property
    def miou(self) -> float | None:
        """Pooled mIoU of a run that ended well; None for any other, whose numbers are not a result."""
        return self.metrics["miou"] if self.status == "ok" else None


@dataclass(frozen=True)
class Condition:
    """Runs that differ only in `seed`, and how their mIoU compares with the baseline condition's.

    `scores` are (seed, miou) of the runs with a score, `runs` counts all. `std` is the sample's, None for n < 2.
    `difference` is mean - `baseline_mean`, [`low`, `high`] its 95 % t interval, `p` the two-sided p value of that
    test, `p_holm` the same after Holm's correction, `paired` whether both sides share their seeds.
    """

    label: str
    values: dict[str, object]
    runs: int
    scores: tuple[tuple[object, float], ...]
    mean: float | None
    std: float | None
    minimum: float | None
    maximum: float | None
    baseline_mean: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    paired: bool = False
    verdict: str = ""

    @property
    def n(self) -> int:
        """Number of runs with a score."""
        return len(self.scores)


class Interval(NamedTuple):
    """95 % t interval of a difference of means, two-sided p value of "no difference", and whether seeds were paired."""

    low: float
    high: float
    p: float
    paired: bool


def collect_runs(grid_dir: str | Path, run_names: list[str], varied: list[str]) -> list[RunResult]:
    """Read the record of every planned run, in the grid's order; what cannot be read becomes a row that says so."""
    return [_read_row(Path(grid_dir) / run, run, varied) for run in run_names]


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a history.csv as finite numbers by column, without pandas; none where no epoch was finished."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = [{name: _parse(text) for name, text in row.items()} for row in csv.DictReader(file)]
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return [row for row in rows if "epoch" in row]


def _parse(text: object) -> float | None:
    try:
        return _number(float(text))
    except (TypeError, ValueError):  # a text, or a line that is too long or too short
        return None


def rank_rows(rows: list[RunResult]) -> list[RunResult]:
    """Runs with a score by falling mIoU, then ok runs without one, then all others in the grid's order."""
    return sorted(rows, key=lambda row: (row.status != "ok", row.miou is None, -(row.miou or 0)))


def write_leaderboard(grid_dir: str | Path, rows: list[RunResult]) -> Path:
    """Write leaderboard.csv, best run first, numbers in full precision; returns its path.

    The validation loss is the column `val_loss`: `loss` is the parameter that a loss sweep varies.
    Texts that a spreadsheet would run as a formula (starting with = + - @) get an apostrophe in front.
    """
    varied = list(dict.fromkeys(name for row in rows for name in row.texts))
    classes = list(dict.fromkeys(name for row in rows for name in row.iou))
    metrics = ["val_loss" if name == "loss" else name for name in METRICS]
    costs, origin = (
        ("best_epoch", "seconds", "peak_memory_mb"),
        ("notes", "key", "weights_sha256", "git_commit", "error"),
    )
    path = Path(grid_dir) / "leaderboard.csv"
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = ["run", "status", *varied, *metrics, *costs, *(f"iou {name}" for name in classes), *origin]
        writer.writerow(map(_cell, header))
        for row in rank_rows(rows):
            cells = [row.run, row.status, *(row.params.get(name, row.texts.get(name)) for name in varied)]
            cells += [*row.metrics.values(), *(getattr(row, name) for name in costs)]
            cells += [*(row.iou.get(name) for name in classes), *(getattr(row, name) for name in origin)]
            writer.writerow(map(_cell, cells))
    return path


def summarise_conditions(rows: list[RunResult], varied: list[str], baseline: dict | None) -> list[Condition]:
    """Gather runs that differ only in `seed` and compare each condition with its baseline, best mean first.

    A condition's baseline has its own values except where `baseline` gives others, so `{"loss": ...}` in a grid of
    losses and encoders compares losses within each encoder. Runs without parameters (planned, unknown) are left out.

    The 95 % interval (`compare_means`: paired when both have the same seeds, else Welch) is for one
    comparison alone. The verdict is for all together: "better" or "worse" when p after `correct_holm` is
    below 0.05, else "within noise". So an interval may leave out 0 and the verdict still be "within noise".
    """
    compared = [name for name in varied if name != "seed"]
    groups: dict[str, list[RunResult]] = {}
    for row in rows:
        if row.params:
            groups.setdefault(_identity({name: row.params.get(name) for name in compared}), []).append(row)
    conditions = {identity: _condition(members, compared) for identity, members in groups.items()}
    wanted = {name: value for name, value in (baseline or {}).items() if name in compared}
    if wanted:
        references = [conditions.get(_identity({**item.values, **wanted})) for item in conditions.values()]
        results = _judge([_compare(*pair) for pair in zip(conditions.values(), references, strict=True)])
    else:
        results = list(conditions.values())
    return sorted(results, key=lambda item: (item.mean is None, -(item.mean or 0)))


def compare_means(ours: Scores, theirs: Scores) -> Interval | None:
    """Interval of mean(ours) - mean(theirs), at least two scores each: paired t when both have the same seeds, else Welch.

    None when the seeds made no spread, so that nothing says what noise is.
    """
    from scipy import stats  # numpy with it: only a finished grid needs them

    ours_by_seed, theirs_by_seed = dict(ours), dict(theirs)
    paired = ours_by_seed.keys() == theirs_by_seed.keys() and len(ours_by_seed) == len(ours) == len(theirs)
    x = [score for _, score in ours]
    y = [theirs_by_seed[seed] for seed, _ in ours] if paired else [score for _, score in theirs]
    spread = stdev(a - b for a, b in zip(x, y, strict=True)) if paired else max(stdev(x), stdev(y))
    if spread < 1e-12:
        return None
    with warnings.catch_warnings():  # SciPy warns of one side whose seeds changed nothing; the test stands
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        test = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
    low, high = map(float, test.confidence_interval(0.95))
    return Interval(low, high, float(test.pvalue), paired)


def correct_holm(p_values: list[float]) -> list[float]:
    """Holm's corrected p values, in the order given: of m sorted upwards, p(k) becomes max_{j<=k} min(1, (m-j+1) p(j)).

    Source: Holm (1979), Scandinavian Journal of Statistics 6.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def noise_floor(conditions: list[Condition]) -> float | None:
    """Standard deviation of mIoU between seeds, over all conditions: sqrt(sum (n-1) s^2 / sum (n-1)); None without."""
    known = [(item.n - 1, item.std) for item in conditions if item.std is not None]
    return math.sqrt(sum(df * std**2 for df, std in known) / sum(df for df, _ in known)) if known else None


def format_table(rows: list[RunResult], conditions: list[Condition], varied: list[str], width: int = 100) -> str:
    """The grid's result for a terminal of `width` columns: runs, best first, then conditions when seeds were varied."""
    names = varied or ["run"]
    ranked, noted = rank_rows(rows), any(row.notes for row in rows)
    lines = [["#", *names, "status", "mIoU", "per image", "val loss", "epoch", "time", *(["notes"] if noted else [])]]
    for rank, row in enumerate(ranked, 1):
        scores = [format_number(row.metrics[name]) for name in ("miou", "miou_image", "loss")]
        place = str(rank) if row.miou is not None else "-"
        texts = [row.texts.get(name, "-") for name in names]
        cells = [place, *texts, row.status, *scores, format_number(row.best_epoch), format_seconds(row.seconds)]
        lines.append(cells + ([row.notes or ""] if noted else []))
    table = align(lines, set(range(1, len(names) + 1)), {*range(1, len(names) + 2)}, width)
    return table + "\n\n" + _format_conditions(conditions, width) if "seed" in varied and conditions else table


def describe_comparison(conditions: list[Condition]) -> tuple[str, str] | None:
    """How intervals were computed and over how many comparisons the verdicts hold, in words; None without any."""
    tested = [item for item in conditions if item.p is not None]
    paired = sum(item.paired for item in tested)
    how = "paired by seed" if paired == len(tested) else f"{paired} paired by seed, else Welch" if paired else "Welch"
    return (how, f"{len(tested)} comparison{'s' if len(tested) > 1 else ''}") if tested else None


def _read_row(run_dir: Path, run: str, varied: list[str]) -> RunResult:
    if not run_dir.is_dir():
        return RunResult(run, "planned", _texts(run, varied, {}))
    record = read_record(run_dir)
    if record is None:
        return RunResult(run, "unknown", _texts(run, varied, {}), error=_why_unreadable(run_dir / "record.json"))
    params, metrics = _mapping(record.get("params")), _mapping(record.get("metrics"))
    return RunResult(
        run,
        str(record.get("status") or "unknown"),
        _texts(run, varied, params),
        params,
        {name: _number(metrics.get(name)) for name in METRICS},
        {name: _number(value) for name, value in _mapping(metrics.get("iou")).items()},
        **{name: _number(record.get(name)) for name in ("best_epoch", "seconds", "peak_memory_mb")},
        **{name: _text(record.get(name)) for name in ("key", "weights_sha256", "git_commit", "error")},
        notes=_describe_conditions(record),
    )


def _describe_conditions(record: dict) -> str | None:
    """Memory that ran out, averaged weights, a run that other bits may come of: a few words each."""
    split, weights = _number(record.get("oom_split")) or 1, record.get("weights")
    notes = [
        f"memory ran out: batch cut into {split:g}" if split > 1 else "",
        f"{weights} weights" if isinstance(weights, str) and weights != "plain" else "",
        "went on under other conditions" if record.get("conditions_changed") else "",
        "not deterministic" if record.get("deterministic") is False else "",
    ]
    return ", ".join(note for note in notes if note) or None


def _why_unreadable(path: Path) -> str:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "no record.json"
    except (OSError, ValueError) as error:
        return f"record.json cannot be read: {error}"
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
    return value if real and math.isfinite(value) else None


def _text(value: object) -> str | None:
    """Texts as they are, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(value: object) -> object:
    """A CSV cell: numbers stay numbers (the writer uses repr), containers become JSON, formulas become text."""
    if isinstance(value, bool | int | float):
        return value
    text = _text(value) or ""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _identity(value: object) -> str:
    """One text for equal values, however YAML and JSON spelled them: 1, 1.0 and the text "1e0" are the same."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{_identity(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_identity, value)) + "]"
    try:
        return repr(float(value)) if not isinstance(value, bool) else repr(value)
    except (TypeError, ValueError):
        return repr(value)


def _condition(members: list[RunResult], compared: list[str]) -> Condition:
    texts = {name: members[0].texts.get(name, "-") for name in compared}
    label = ", ".join(texts.values() if len(texts) == 1 else (f"{name}={text}" for name, text in texts.items()))
    scores = tuple((row.params.get("seed"), row.miou) for row in members if row.miou is not None)
    miou = [score for _, score in scores]
    return Condition(
        label=label or "all runs",
        values={name: members[0].params.get(name) for name in compared},
        runs=len(members),
        scores=scores,
        mean=fmean(miou) if miou else None,
        std=stdev(miou) if len(miou) > 1 else None,
        minimum=min(miou, default=None),
        maximum=max(miou, default=None),
    )


def _compare(condition: Condition, reference: Condition | None) -> Condition:
    """Fill in difference, interval and p; the verdict stays open where Holm decides it."""
    if condition is reference:
        return replace(condition, baseline_mean=condition.mean, verdict="baseline")
    if condition.mean is None:
        return replace(condition, verdict="no score")
    if reference is None or reference.mean is None:
        return replace(condition, verdict="no baseline score")
    difference = condition.mean - reference.mean
    condition = replace(condition, baseline_mean=reference.mean, difference=difference)
    if condition.n < 2 or reference.n < 2:
        return replace(condition, verdict="one seed: no noise floor")
    interval = compare_means(condition.scores, reference.scores)
    return replace(condition, **interval._asdict()) if interval else replace(condition, verdict="no spread over seeds")


def _judge(conditions: list[Condition]) -> list[Condition]:
    """Correct the p values for the number of comparisons and word the open verdicts."""
    corrected = iter(correct_holm([item.p for item in conditions if item.p is not None]))
    return [item if item.p is None else _verdict(item, next(corrected)) for item in conditions]


def _verdict(condition: Condition, p: float) -> Condition:
    verdict = "within noise" if p >= 0.05 else "better" if condition.difference > 0 else "worse"
    return replace(condition, p_holm=p, verdict=verdict)


def _format_conditions(conditions: list[Condition], width: int) -> str:
    lines = [["condition", "n", "mean ± std", "difference [95 %]", "verdict"]]
    for item in conditions:
        mean = format_number(item.mean) + (f" ± {item.std:.4f}" if item.std is not None else "")
        change = "-" if item.difference is None else f"{item.difference:+.4f}"
        interval = "" if item.low is None else f" [{item.low:+.4f}, {item.high:+.4f}]"
        lines.append([item.label, str(item.n), mean, change + interval, item.verdict or "-"])
    text, floor, comparison = (
        align(lines, {0}, {0, 2, 3, 4}, width),
        noise_floor(conditions),
        describe_comparison(conditions),
    )
    if floor is not None:
        text += "\n" + fit(f"noise between seeds (pooled std of mIoU): {floor:.4f}", width)
    if comparison:
        how, count = comparison
        text += "\n" + fit(f"difference: 95 % t interval, {how}; verdict: Holm-corrected for {count}", width)
    return text
