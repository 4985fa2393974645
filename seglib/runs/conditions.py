"""Runs gathered to conditions: those that differ only in seed and fold; each is judged against its baseline."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean, median_low, stdev
from typing import TYPE_CHECKING, Any

from seglib.runs.record import WITHOUT_EFFECT, find_split_seed, read_record
from seglib.text import count_noun

if TYPE_CHECKING:
    from seglib.evaluation.verdicts import Noise

METRICS = ("miou", "miou_image", "miou_batch", "accuracy", "loss")
BLOCKS = ("seed", "fold", "split_seed")  # what runs of one condition differ in
ELSEWHERE = (*BLOCKS, "data_dir", *WITHOUT_EFFECT)
ENOUGH = 5  # degrees of freedom from which a grid's own noise does without that of earlier grids
MOST_LENDING = 500  # runs of one earlier grid; more say no more of its noise


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
    average: float | None = None  # mIoU of its averaged weights, the best of several, in their own best epoch

    @property
    def miou(self) -> float | None:
        """Pooled mIoU of a run that ended well; None for any other, whose numbers are not a result."""
        return self.metrics["miou"] if self.status == "ok" else None


@dataclass(frozen=True)
class Condition:
    """Runs that differ only in seed and fold, and how their mIoU compares with the baseline condition's.

    `scores` are (block, miou) of the runs with a score, a block being the seed, the fold, or both; `runs` counts all. Where
    averaging is compared they are those of the averaged weights: a run keeps the better of these and the plain ones, of
    the very training that the baseline may be, and could not lose.
    `std` is the sample's, None for n < 2. `difference` is the mean of the shared blocks' differences, or the difference of
    means; [`low`, `high`] the interval that its verdict goes by; `p_holm` the corrected p; `shrunk` what the mean is
    expected to be once the luck of the best is taken out; `hint` says what would make a verdict possible: `more` blocks.
    `chance`, where a grid chooses its seeds: that the verdict is told once it has all that it may get. `baseline` is the
    label of what it is compared with; `scored` the runs of `scores`.
    """

    label: str
    values: dict[str, object]
    runs: int
    scores: tuple[tuple[object, float], ...]
    mean: float | None
    std: float | None
    best_run: str = ""
    shrunk: float | None = None
    baseline_mean: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    df: float | None = None
    p_holm: float | None = None
    paired: bool = False
    verdict: str = ""
    hint: str = ""
    more: int | None = None
    chance: float | None = None
    baseline: str = ""
    scored: tuple[RunResult, ...] = ()
    is_stopped: bool = False  # none of its runs was trained to the end, since it did worse

    @property
    def n(self) -> int:
        """Number of runs with a score."""
        return len(self.scores)

    @property
    def seeds(self) -> int:
        """Number of seeds with a score."""
        return len({_as_key(row.params.get("seed")) for row in self.scored})


@dataclass(frozen=True)
class Comparison:
    """The conditions of a grid, best mean first, and what is known of the noise between their blocks.

    `noise` is the standard deviation of mIoU between blocks, `df` its degrees of freedom, of which `earlier_df` are of
    earlier grids; `visible` the smallest difference that is seen in 8 of 10 grids like this one. `max_seeds`: of a
    grid that chooses its seeds, 0 of any other.
    """

    conditions: tuple[Condition, ...] = ()
    blocks: str = "seeds"
    noise: float | None = None
    df: float = 0
    earlier_df: float = 0
    visible: float | None = None
    worthwhile: float = 0.005
    max_seeds: int = 0
    averages: Sequence[str] = ()  # sentences, of averages.explain_averages
    search: Sequence[str] = ()  # of search.explain_search

    @property
    def is_judged(self) -> bool:
        """Whether there is a score and anything to say of conditions: blocks that were varied, or a baseline."""
        several = any(item.runs > 1 for item in self.conditions) or any(item.verdict for item in self.conditions)
        return several and any(item.n for item in self.conditions)

    @property
    def best(self) -> Condition | None:
        """The condition with the highest mean."""
        return next((item for item in self.conditions if item.mean is not None), None)

    def explain(self) -> list[str]:
        """How to read it, in whole sentences: one each for the noise, the verdicts, the best condition."""
        return [line for line in (self._explain_noise(), self._explain_verdicts(), self._explain_best()) if line]

    def _explain_noise(self) -> str:
        if self.noise is None:
            return f"Noise between {self.blocks} is not known: no difference can be told from it; vary seed."
        earlier = f", {self.earlier_df:.0f} of them from earlier grids" if self.earlier_df else ""
        line = f"Noise between {self.blocks}: standard deviation {self.noise:.4f} of mIoU ({self.df:.0f} df{earlier})."
        if self.visible is None:
            return line
        return f"{line} Differences from {self.visible:.3f} are seen in 8 of 10 grids like this one."

    def _explain_verdicts(self) -> str:
        tested = [item for item in self.conditions if item.p_holm is not None]
        if not tested:
            return ""
        stopped = sum(item.is_stopped for item in self.conditions)
        paired = sum(item.paired for item in tested)
        how = f"paired by {self.blocks}" if paired == len(tested) else f"{paired} of {len(tested)} paired"
        how = how if paired else "not paired"
        looks = f"; looks after 2 to {self.max_seeds} seeds share the 5 %" if self.max_seeds > 2 else ""
        return (
            f"The interval is the one that the verdict goes by: 95 % for {count_noun(len(tested) + stopped, 'comparison')}"
            f" together (Holm{looks}){', those that were stopped among them' if stopped else ''}, {how}. Equal: it lies within ±{self.worthwhile:g}."
        )

    def _explain_best(self) -> str:
        best = self.best
        if best is None or best.shrunk is None or sum(item.n > 0 for item in self.conditions) < 2:
            return ""
        ensemble = f", or an ensemble of its {self.blocks}" if best.n > 1 else ""
        return (
            f"Best of {sum(item.n > 0 for item in self.conditions)}: {best.label}, mean {best.mean:.4f}; without the luck"
            f" of being the best, {best.shrunk:.4f} is expected. Submit its best run, {best.best_run}{ensemble}."
        )


def summarise_conditions(
    rows: Sequence[RunResult],
    varied: Sequence[str],
    baseline: Mapping[str, object] | None,
    *,
    worthwhile: float = 0.005,
    earlier: "Callable[[], Noise | None] | None" = None,
    max_seeds: int = 0,
) -> Comparison:
    """Gather runs that differ only in seed and fold, and judge each condition against its baseline.

    A condition's baseline has its own values except where `baseline` gives others, so `{"loss": ...}` in a grid of
    losses and encoders compares losses within each encoder. Runs without parameters (planned, unknown) are left out.
    Verdicts are those of `seglib.evaluation.verdicts.compare_conditions`, for all comparisons of the grid together.

    Parameters
    ----------
    worthwhile : smallest difference of mIoU worth having.
    earlier : gives the noise of earlier grids, see `find_earlier_noise`; asked where this grid's has under 5 degrees of
        freedom.
    max_seeds : of a grid that chooses its seeds (`planning.find_needed`); its looks share the level.
    """
    compared, blocks = divide_varied(varied)
    groups: dict[str, list[RunResult]] = {}
    for row in rows:
        if row.params:
            groups.setdefault(identify({name: row.params.get(name) for name in compared}), []).append(row)
    conditions = {key: _gather(members, compared, blocks) for key, members in groups.items()}
    wanted = {name: value for name, value in (baseline or {}).items() if name in compared}
    references = {key: identify({**item.values, **wanted}) if wanted else "" for key, item in conditions.items()}
    words = " and ".join(f"{name}s" for name in blocks).replace("_", " ") or "seeds"
    if sum(item.n > 0 for item in conditions.values()) == 0:
        return Comparison(tuple(conditions.values()), words, worthwhile=worthwhile)
    return _judge(conditions, references, Comparison(blocks=words, worthwhile=worthwhile, max_seeds=max_seeds), earlier)


def divide_varied(varied: Sequence[str]) -> tuple[list[str], list[str]]:
    """What conditions differ in, and what the runs of one do."""
    return [name for name in varied if name not in BLOCKS], [name for name in BLOCKS if name in varied]


def _gather(members: Sequence[RunResult], compared: Sequence[str], blocks: Sequence[str]) -> Condition:
    texts = {name: members[0].texts.get(name, "-") for name in compared}
    label = ", ".join(texts.values() if len(texts) == 1 else (f"{name}={text}" for name, text in texts.items()))
    places = [tuple(_as_key(row.params.get(name)) for name in blocks) for row in members]
    times, scores = Counter(places), []
    for number, (row, place) in enumerate(zip(members, places, strict=True)):
        shared = blocks and None not in place and times[place] == 1
        if row.miou is not None:  # a run that shares its seed with another of its condition is paired with none
            averaged = "averaging" in compared and row.average is not None
            scores.append((place if shared else (label, number), row.average if averaged else row.miou))
    miou = [score for _, score in scores]
    return Condition(
        label=label or "all runs",
        values={name: members[0].params.get(name) for name in compared},
        runs=len(members),
        scores=tuple(scores),
        mean=fmean(miou) if miou else None,
        std=stdev(miou) if len(miou) > 1 else None,
        best_run=max(members, key=lambda row: -math.inf if row.miou is None else row.miou).run if miou else "",
        scored=tuple(row for row in members if row.miou is not None),
        is_stopped=not miou and any(row.status == "stopped" for row in members),
    )


def _judge(
    conditions: Mapping[str, Condition],
    references: Mapping[str, str],
    comparison: Comparison,
    earlier: "Callable | None",
) -> Comparison:
    from seglib.evaluation.verdicts import Noise, compare_conditions, measure_noise, shrink_means, smallest_visible

    table = tabulate_scores(conditions)
    noise = measure_noise(table)
    lent = (earlier() if earlier is not None and noise.df < ENOUGH else None) or Noise()
    known = noise.borrow(lent)
    pairs = {
        key: reference
        for key, reference in references.items()
        if reference != key and conditions[key].n and reference in conditions and conditions[reference].n
    }
    options = {"worthwhile": comparison.worthwhile, "earlier": lent, "max_looks": comparison.max_seeds}
    options["others"] = sum(item.is_stopped for item in conditions.values())
    looks = {key: item.seeds for key, item in conditions.items()}
    judged = compare_conditions(table, pairs, looks=looks, **options) if pairs else None
    shrunk = shrink_means(table, known)
    results = [
        replace(
            _word(item, key, references[key], conditions, judged, comparison.blocks),
            shrunk=float(shrunk[key]) if item.n and known.df else None,
        )
        for key, item in conditions.items()
    ]
    usual = median_low([conditions[key].n for key in pairs] or [0])
    visible = smallest_visible(Noise(known.variance, min(known.df, usual + 5)), usual, len(pairs) or 1)
    return replace(
        comparison,
        conditions=tuple(sorted(results, key=lambda item: (item.mean is None, -(item.mean or 0)))),
        noise=known.std if known.df else None,
        df=known.df,
        earlier_df=known.df - noise.df,
        visible=visible if math.isfinite(visible) and visible > 0 else None,
    )


def tabulate_scores(
    conditions: Mapping[Any, Condition], score: Callable[[RunResult], float | None] | None = None
) -> "pd.DataFrame":  # noqa: F821
    """(blocks, conditions) of the runs' mIoU, or of what `score` gives for a run; NaN where there is none."""
    import pandas as pd

    return pd.DataFrame(_fill_table(conditions, score), columns=list(conditions))


def _fill_table(
    conditions: Mapping[Any, Condition], score: Callable[[RunResult], float | None] | None = None
) -> "np.ndarray":  # noqa: F821
    import numpy as np

    rows: dict[Any, int] = {}
    for item in conditions.values():
        for place, _ in item.scores:
            rows.setdefault(place, len(rows))
    table = np.full((len(rows), len(conditions)), np.nan)
    for column, item in enumerate(conditions.values()):
        values = map(score, item.scored) if score else (miou for _, miou in item.scores)
        table[[rows[place] for place, _ in item.scores], column] = [np.nan if each is None else each for each in values]
    return table


def _word(
    item: Condition, key: str, reference: str, conditions: Mapping[str, Condition], judged: Any, blocks: str
) -> Condition:
    if not reference:
        return item
    if key == reference:
        return replace(item, baseline_mean=item.mean, verdict="baseline")
    if not item.n:
        return replace(item, verdict="stopped" if item.is_stopped else "no score")
    if judged is None or key not in judged.index:
        return replace(item, verdict="no baseline score")
    row = judged.loc[key]
    numbers = {
        name: None if math.isnan(value) else float(value) for name, value in row[["difference", "df", "p_holm"]].items()
    }
    low, high = (None if math.isnan(row[name]) else float(row[name]) for name in ("family_low", "family_high"))
    hint, more = "", None if math.isnan(row["more_blocks"]) else int(row["more_blocks"])
    chance = float(row["chance"]) if math.isfinite(row.get("chance", math.nan)) else None
    if low is None:
        hint = "noise unknown" if min(item.n, conditions[reference].n) < 2 else f"no spread over {blocks}"
    elif more:
        hint = count_noun(more, f"more {'seed' if blocks == 'seeds' else 'block'}")
        if blocks == "folds":  # there are no further ones: they are trained again with other seeds
            hint = f"{count_noun(math.ceil(more / item.n), 'more seed')} of all folds"
    return replace(
        item, baseline_mean=conditions[reference].mean, low=low, high=high, paired=bool(row["paired"]),
        verdict=row["verdict"], hint=hint, more=more, chance=chance, baseline=conditions[reference].label, **numbers,
    )  # fmt: skip


def find_earlier_noise(outputs: str | Path, grid_dir: str | Path, runs: Iterable[str]) -> "Noise | None":
    """The noise between seeds and folds in the other grids of `outputs`, on the same data, epochs and image size.

    None where there is none, or where the grid has no run that ended well.
    """
    finished = _read_ok(Path(grid_dir), runs)
    task = next((describe_task(record["params"], record.get("data_hash")) for record in finished), None)
    return measure_earlier_noise(outputs, task, besides=Path(grid_dir))[0] if task else None


def measure_earlier_noise(outputs: str | Path, task: tuple, besides: Path | None = None) -> "tuple[Noise | None, int]":
    """The noise between seeds and folds in the grids of `outputs` on a task (see `describe_task`); how many lent.

    None where nothing is known; NumPy is imported only where there is something to measure.
    """
    noise, grids = None, 0
    for folder in sorted(path for path in Path(outputs).glob("*") if path.is_dir() and path != besides):
        records = (each for each in _read_all(folder) if describe_task(each["params"], each.get("data_hash")) == task)
        records = islice(records, MOST_LENDING)
        several = {
            key: Condition(key, {}, len(scores), tuple(scores.items()), None, None)
            for key, scores in _group_records(records, within_split=True).items()
            if len(scores) > 1 and None not in task
        }
        if several:
            from seglib.evaluation.verdicts import measure_noise

            found = measure_noise(_fill_table(several))
            noise, grids = noise.pool(found) if noise else found, grids + 1
    return (noise, grids) if noise and noise.df else (None, 0)


def describe_task(params: Mapping[str, Any], data_hash: str | None) -> tuple:
    """What runs must share so that the noise of one says something of another's; None where it is not known."""
    data = "synthetic" if params.get("data_dir") == "synthetic" else data_hash
    return data, params.get("epochs"), params.get("image_size"), bool(params.get("debug"))


def compare_over_seeds(run_dir: str | Path, other_dir: str | Path) -> str:
    """One sentence: whether the condition of a run (A) is better than that of another (B), over all runs of their grids."""
    folders = [Path(run_dir), Path(other_dir)]
    groups = _group_records(
        record for folder in dict.fromkeys(each.parent for each in folders) for record in _read_all(folder)
    )
    keys = [_find_condition(read_record(folder) or {}) for folder in folders]
    if keys[0] == keys[1]:
        return "Both are runs of one condition: seeds and folds alone make the difference."
    conditions = {
        key: Condition(key, {}, len(each), tuple(each.items()), fmean(each.values()), None)
        for key, each in groups.items()
    }
    if not {*keys} <= conditions.keys():
        return "Other seeds were not looked at."
    ours, theirs = keys
    references = dict.fromkeys(conditions, "") | {ours: theirs}
    judged = _judge(conditions, references, Comparison(), None)
    (item,) = (each for each in judged.conditions if each.label == ours)
    if item.low is None:
        return "Whether another seed would change it was not looked at: no condition here has two."
    interval = f"{item.low:+.4f} to {item.high:+.4f}"
    counts = " and ".join(str(conditions[key].n) for key in keys)
    verdict = item.verdict if item.verdict not in ("better", "worse") else f"A is {item.verdict}"
    return (
        f"Over {counts} runs of the two conditions the difference is {item.difference:+.4f}, 95 % interval {interval}"
        f" over seeds and folds: {verdict}."
    )


def _find_condition(record: Mapping[str, Any]) -> str:
    return identify({name: value for name, value in (record.get("params") or {}).items() if name not in ELSEWHERE})


def _group_records(records: Iterable[Mapping[str, Any]], within_split: bool = False) -> dict[str, dict[tuple, float]]:
    """Condition, of one split where that is asked for -> (seed, fold, split seed) -> mIoU."""
    groups: dict[str, dict[tuple, float]] = {}
    for record in records:
        params, split_seed = record["params"], find_split_seed(record["params"])
        condition = _find_condition(record) + (f" {split_seed}" if within_split else "")
        place = tuple(map(_as_key, (params.get("seed"), params.get("fold"), split_seed)))
        groups.setdefault(condition, {})[place] = record["metrics"]["miou"]
    return groups


def _read_all(folder: Path) -> Iterable[dict[str, Any]]:
    return _read_ok(folder, sorted(path.name for path in folder.iterdir()))


def _read_ok(folder: Path, runs: Iterable[str]) -> Iterable[dict[str, Any]]:
    for run in runs:
        record = read_record(folder / run) or {}
        params, metrics = record.get("params"), record.get("metrics")
        whole = record.get("status") == "ok" and isinstance(params, dict) and isinstance(metrics, dict)
        if whole and isinstance(metrics.get("miou"), float) and math.isfinite(metrics["miou"]):
            yield record


def _as_key(value: object) -> object:
    """A number or text as it is; what a record should not have in their place, as a text."""
    return identify(value) if isinstance(value, dict | list) else value


def identify(value: object) -> str:
    """One text for equal values, however YAML and JSON spelled them: 1, 1.0 and the text "1e0" are the same."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{identify(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(identify, value)) + "]"
    try:
        return repr(float(value)) if not isinstance(value, bool) else repr(value)
    except (TypeError, ValueError):
        return repr(value)
