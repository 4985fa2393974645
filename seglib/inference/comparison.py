"""Grids of runs compared: verdicts, classes, curves, pictures of the same images, and what to run next."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from scipy import stats

from seglib.errors import InputError, require_known, require_same, unknown_name
from seglib.evaluation.compare import compare_noises, find_scenes
from seglib.evaluation.metrics import image_miou, load_confusion, load_scene_names
from seglib.evaluation.verdicts import Noise, compare_conditions, correct_holm
from seglib.files import expand
from seglib.inference.predict import open_predictions, take_images
from seglib.inference.runs import BOARD, find_newest_run, load_finished_run, prepare_output_dir, save_tables
from seglib.runs.averages import explain_averages
from seglib.runs.conditions import (
    BLOCKS,
    ELSEWHERE,
    Comparison,
    Condition,
    RunResult,
    find_earlier_noise,
    identify,
    summarise_conditions,
    tabulate_scores,
)
from seglib.runs.grid_file import read_grid_file
from seglib.runs.leaderboard import collect_runs
from seglib.runs.record import find_split_seed, read_history
from seglib.runs.search import choose_judged, explain_search
from seglib.text import shorten

MOST_SEEDS = 5  # that are advised at once
MOST_PICTURES = 4  # conditions beside each other


class GridComparison:
    """The runs of one or several grids, gathered to conditions and compared.

    Parameters
    ----------
    grid_dir : folder of a grid; "" is that of the newest run under outputs/.
    more_grids : folders of grids on the same validation images whose runs take part.
    output_dir : where results go; "" is 05_compare in the grid's folder.
    data_dir : where the runs' data is now; "" where it was when they were trained.
    baseline : varied parameters and their values that others are compared with; {} is the first grid's own.
    worthwhile : smallest difference of mIoU worth having; 0 is the first grid's own.
    show_progress : `seglib.viz.show_progress`, or a function like it.

    Raises
    ------
    InputError
        A folder that is no grid's, grids of other classes or validation images, or a baseline that nothing has.

    Attributes
    ----------
    runs : all runs, `RunResult`; `varied`: the parameters in which they differ.
    comparison : of `summarise_conditions`: conditions with verdicts, best mean first; `baseline`: that condition, or None.
    scenes : how `compare_noises` joined images to scenes, in words.
    folder : where results go.
    """

    scenes = "no baseline: nothing is compared"

    def __init__(
        self,
        grid_dir: str | Path = "",
        more_grids: Sequence[str | Path] = (),
        output_dir: str | Path = "",
        data_dir: str = "",
        *,
        baseline: Mapping[str, Any] | None = None,
        worthwhile: float = 0.0,
        show_progress: Callable[[str, Path], Callable[[int, int], None]] | None = None,
    ):
        first = expand(grid_dir).resolve() if grid_dir else find_newest_run().parent
        grids = [first, *(expand(folder).resolve() for folder in more_grids)]
        self.root, self.data_dir, self._show_progress = first.parent, data_dir, show_progress
        self.runs, self.varied = _collect(grids, self.root)
        self._names = _require_same_images(grids, self.runs, self.root)
        files = {folder: read_grid_file(folder / "grid.yaml") for folder in grids}
        own = {folder: [run for run in self.runs if (self.root / run.run).parent == folder] for folder in grids}
        judged = [run for folder in grids for run in choose_judged(files[folder], own[folder])]
        self._search = [line for folder in grids for line in explain_search(files[folder], own[folder])]
        file, scored = files[first], any(run.miou is not None for run in judged)
        wanted = dict(baseline or file.baseline) if scored else {}
        if missing := [name for name in wanted if baseline and name not in self.varied]:
            raise InputError(f"baseline: {unknown_name('varied parameter', missing[0], self.varied)}")
        self._first, self._alone, self._seeds = first, len(grids) == 1, file.seeds if file.search else []
        self.comparison: Comparison = summarise_conditions(
            judged if scored else self.runs, self.varied, wanted, worthwhile=worthwhile or file.worthwhile,
            earlier=self._lend, max_seeds=max(each.max_seeds for each in files.values()),
        )  # fmt: skip
        self.baseline = next((item for item in self.conditions if item.verdict == "baseline"), None)
        if baseline and self.baseline is None:
            raise InputError(f"baseline: required values that runs with a score have, got {shorten(wanted)}")
        self.folder = prepare_output_dir(str(output_dir), first, "05_compare")

    def _lend(self) -> Noise | None:
        """The noise of earlier grids; none to several grids, one of which could be lent to itself."""
        runs = [Path(run.run).name for run in self.runs]
        return find_earlier_noise(self.root, self._first, runs) if self._alone else None

    def __repr__(self) -> str:
        scored = sum(run.miou is not None for run in self.runs)
        differ = ", ".join(self.varied) or "nothing"
        return f"{scored} of {len(self.runs)} runs have a score; {len(self.conditions)} conditions; runs differ in {differ}"

    @property
    def conditions(self) -> list[Condition]:
        """Those with a score, best mean first."""
        return [item for item in self.comparison.conditions if item.n]

    @property
    def _by_label(self) -> dict[str, Condition]:
        return {item.label: item for item in self.conditions}

    @property
    def _scored(self) -> list[RunResult]:
        """The runs of the conditions, in their order."""
        return [run for item in self.conditions for run in item.scored]

    @property
    def _pairs(self) -> dict[str, str]:
        """Each condition that is compared -> its baseline."""
        return {item.label: item.baseline for item in self.conditions if item.baseline}

    def tabulate_conditions(self) -> pd.DataFrame:
        """One row per condition, best mean first: condition, n, mean, std, shrunk, difference, low, high, p, verdict, hint.

        [low, high] is the interval that the verdict goes by, see `seglib.evaluation.verdicts.compare_conditions`.
        """
        names = ("n", "mean", "std", "shrunk", "difference", "low", "high", "p_holm", "verdict", "hint")
        rows = [[item.label, *(getattr(item, name) for name in names)] for item in self.conditions]
        table = pd.DataFrame(rows, columns=["condition", *names]).rename(columns={"p_holm": "p"})
        numbers = ["mean", "std", "shrunk", "difference", "low", "high", "p"]
        return table.astype(dict.fromkeys(numbers, float))

    def tabulate_runs(self) -> pd.DataFrame:
        """One row per run with a score: run, condition, the varied parameters' values, miou, seconds; trials of a search last."""
        labels = {run.run: item.label for item in self.conditions for run in item.scored}
        trials = [run for run in self.runs if run.miou is not None and run.run not in labels]
        rows = [
            {"run": run.run, "condition": labels.get(run.run, "a trial"), "miou": run.miou, "seconds": run.seconds}
            | {name: run.params.get(name) for name in self.varied}
            for run in (*self._scored, *trials)
        ]
        return pd.DataFrame(rows, columns=["run", "condition", *self.varied, "miou", "seconds"])

    def compare_classes(self) -> pd.DataFrame:
        """One row per condition and class: condition, class, baseline, difference, low, high, p, verdict.

        IoU by block, judged by the rule of the mIoU's verdicts; p is corrected for all classes and conditions by Holm, so
        that a verdict (better, worse) is wrong in any of them in at most 5 % of grids. Empty without a baseline.
        """
        columns = ["condition", "class", "baseline", "difference", "low", "high", "p", "verdict"]
        pairs, rows = self._pairs, []
        looks = {"looks": {item.label: item.seeds for item in self.conditions}, "max_looks": self.comparison.max_seeds}
        for name in next((run.iou for run in self.runs if run.iou), ()) if pairs else ():
            table = tabulate_scores(self._by_label, lambda run, name=name: run.iou.get(name))
            judged = compare_conditions(table, pairs, worthwhile=self.comparison.worthwhile, **looks)
            rows.append(
                judged.assign(**{"class": name, "baseline": [table[pairs[label]].mean() for label in judged.index]})
            )
        if not rows:
            return pd.DataFrame(columns=columns)
        table = pd.concat(rows).rename_axis("condition").reset_index()
        table["p"], _ = correct_holm(table["p"])
        sure = table["p"] <= 0.05
        table["verdict"] = np.where(sure, np.where(table["difference"] > 0, "better", "worse"), "")
        return table[columns]

    def compare_noises(self) -> pd.DataFrame:
        """One row per condition: what other seeds, other images, and both could do to its difference from the baseline.

        Intervals are of 95 % for each row alone. `scenes` says how images were joined to scenes. Conditions whose images
        are not the baseline's, as with another split, are left out; empty without a baseline.

        Returns
        -------
        condition, then as `seglib.evaluation.compare.compare_noises`: difference, low, high (both), seed_low, seed_high,
        image_low, image_high, and the standard errors and df of each.
        """
        items, pairs, rows = self._by_label, self._pairs, []
        if self.baseline:
            self.scenes = (
                "no condition has a seed with all the baseline's folds and validation images: nothing is compared"
            )
        earlier = self._lend() if pairs and self.comparison.earlier_df else None
        judged = compare_conditions(tabulate_scores(items), pairs, earlier=earlier) if pairs else pd.DataFrame()
        noises = {row.Index: Noise(row.error**2, row.df) if row.error > 0 else Noise() for row in judged.itertuples()}
        for label, baseline in pairs.items():
            pair = items[label], items[baseline]
            folds = set.intersection(*({self._fold(run) for run in item.scored} for item in pair))
            (ours, ids), (theirs, other_ids) = (self._read_confusions(item, folds) for item in pair)
            if len(ours) and len(theirs) and np.array_equal(ids, other_ids):
                found = compare_noises(ours, theirs, self._find_scenes(ids), noises[label])
                rows.append({"condition": label, **found})
        return pd.DataFrame(rows)

    def _fold(self, run: RunResult) -> Any:
        return run.params.get("fold") if "fold" in self.varied else None

    def _read_confusions(self, item: Condition, folds: set) -> tuple[np.ndarray, np.ndarray]:
        """(seeds, images, C, C) counts, of the seeds that have all these folds, which are joined; and the images' ids."""
        by_seed: dict[Any, dict[Any, Path]] = {}
        for run in item.scored:
            seeds = run.params.get("seed"), find_split_seed(run.params)
            by_seed.setdefault(seeds, {})[self._fold(run)] = self.root / run.run / "confusion.npz"
        counts, seen = [], []
        for paths in (paths for paths in by_seed.values() if folds and folds <= paths.keys()):
            parts = [load_confusion(paths[fold]) for fold in sorted(folds, key=str)]
            counts.append(np.concatenate([part[0] for part in parts]))
            seen.append(np.concatenate([part[1] for part in parts]))
        alike = [each for each, ids in zip(counts, seen, strict=True) if np.array_equal(ids, seen[0])]
        return np.array(alike), seen[0] if seen else np.zeros(0)

    def _find_scenes(self, image_ids: np.ndarray) -> np.ndarray:
        """By the groups and file names that confusion.npz keeps; earlier runs kept none: by the ids' neighbourhood."""
        known = [self._names.get(image_id) for image_id in image_ids.tolist()]
        groups, names = (None, image_ids) if None in known else zip(*known, strict=True)
        scenes, self.scenes = find_scenes(groups, names)
        return scenes

    def read_curves(self) -> pd.DataFrame:
        """One row per epoch of a run with a score: condition, run, epoch, train_loss, val_loss, miou."""
        rows = [
            {"condition": item.label, "run": run.run}
            | {name: each.get(name) for name in ("epoch", "train_loss", "val_loss", "miou")}
            for item in self.conditions
            for run in item.scored
            for each in read_history(self.root / run.run / "history.csv")
        ]
        return pd.DataFrame(rows, columns=["condition", "run", "epoch", "train_loss", "val_loss", "miou"])

    def find_numeric(self) -> list[str]:
        """Varied parameters, seed and fold left out, whose values are numbers in every run with a score."""
        free, runs = [name for name in self.varied if name not in BLOCKS], self._scored
        return [name for name in free if all(type(run.params.get(name)) in (int, float) for run in runs)]

    def compare_parameters(self, run_a: str = "", run_b: str = "") -> pd.DataFrame:
        """Parameters in which two runs differ, and their scores; "" is the best run, and the baseline's or the last."""
        ranked = sorted(self._scored, key=lambda run: -run.miou)
        others = [run for run in ranked if self.baseline and run.run == self.baseline.best_run and run is not ranked[0]]
        pair = [
            self._find_run(run_a) if run_a else ranked[0],
            self._find_run(run_b) if run_b else [*others, ranked[-1]][0],
        ]
        names = dict.fromkeys(name for run in pair for name in run.params if name not in ("run_dir", "output_dir"))
        texts = {name: [shorten(run.params[name]) if name in run.params else "-" for run in pair] for name in names}
        differing = {name: values for name, values in texts.items() if values[0] != values[1]}
        differing["mIoU"] = [f"{run.miou:.4f}" if run.miou is not None else "-" for run in pair]
        return pd.DataFrame.from_dict(differing, orient="index", columns=[run.run for run in pair])

    def _find_run(self, name: str) -> RunResult:
        runs = {each: run for run in reversed(self.runs) for each in (run.run.rpartition("/")[2], run.run)}
        require_known("run", name, runs, "two_runs")
        return runs[name]

    def show_images(self, count: int) -> tuple:
        """What `plot_run_rows` draws: images on which conditions differ most, each predicted by one run per condition.

        The runs share a block with the best run, so that nothing but their condition differs; the best and the baseline
        are among them. Their predictions are made once and kept in their folders.

        Returns
        -------
        images (N, S, S, 3) uint8, truths (N, S, S) uint8, condition -> masks (N, S, S) uint8, class names, titles.
        """
        chosen = self._choose_alike()
        runs = {label: load_finished_run(self.root / run.run, self.data_dir) for label, run in chosen.items()}
        first = next(iter(runs.values()))
        same = first.val_images.image_ids
        runs = {label: run for label, run in runs.items() if np.array_equal(run.val_images.image_ids, same)}
        scores = np.array([[image_miou(image[None]) for image in run.confusion] for run in runs.values()])
        spread = np.nan_to_num(scores.max(axis=0) - scores.min(axis=0))
        order = np.argsort(-spread, kind="stable")
        scenes = pd.Series(self._find_scenes(first.val_images.image_ids)[order])
        turns = scenes.groupby(scenes).cumcount()  # first one image of each scene, then a second: neighbours look alike
        order = order[np.argsort(turns.to_numpy(), kind="stable")][:count].tolist()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        masks, taken = {}, None
        for label, run in runs.items():
            report = self._show_progress and self._show_progress(f"predicting {run.folder.name}", self.folder)
            preds = open_predictions(run, device, progress=report).preds
            *taken, masks[label] = take_images(first.val_images, preds, order)
        titles = [
            f"image {first.val_images.image_ids[place]}\nmIoU {scores[:, place].min():.2f} to {scores[:, place].max():.2f}"
            for place in order
        ]
        return *taken, masks, first.class_names, titles

    def _choose_alike(self) -> dict[str, RunResult]:
        """Condition -> its run in the block of the best run, of one input size; the best condition and the baseline first."""
        best = self.conditions[0]
        place = next(
            place for (place, _), run in zip(best.scores, best.scored, strict=True) if run.run == best.best_run
        )
        ordered = dict.fromkeys(item.label for item in (best, self.baseline, *self.conditions) if item is not None)
        items, chosen = self._by_label, {}
        size = {"image_size", "paint_order", "background"}
        for label in ordered:
            runs = dict(zip((each for each, _ in items[label].scores), items[label].scored, strict=True))
            run = runs.get(place) or next(
                (each for each in items[label].scored if not {"fold", "split"} & {*self.varied}), None
            )
            first = next(iter(chosen.values()), run)
            if run is not None and all(run.params.get(name) == first.params.get(name) for name in size):
                chosen[label] = run
        return dict(list(chosen.items())[:MOST_PICTURES])

    def plan_next(self) -> pd.DataFrame:
        """What further seeds are worth, dearest gain per hour first.

        The value of further seeds of a condition is the rise that they promise of the mean of the condition that is chosen
        in the end: what they may change of the order, by the noise between blocks (knowledge gradient, flat prior). Seeds
        pair with the baseline's, so hours count as many of those.

        Returns
        -------
        One row per condition: condition, n, seeds (further ones, of all folds: those that would probably tell, else 1), hours
        (measured seconds of its runs and the baseline's), gain (expected, of mIoU), gain_per_hour, verdict. NaN where
        the noise is not known.

        Source: Frazier, Powell, Dayanik (2008), SIAM Journal on Control and Optimization 47.
        """
        items, noise = self.conditions, self.comparison.noise
        means, rows = np.array([item.mean for item in items]), []
        folds = {self._fold(run) for run in self._scored}
        for number, item in enumerate(items):
            seeds = min(MOST_SEEDS, math.ceil((item.more or 1) / len(folds)))
            pair = [each.scored for each in items if each.label in (item.label, item.baseline)]
            known = [[run.seconds for run in scored if run.seconds] or [0.0] for scored in pair]
            hours = seeds * len(folds) * float(sum(map(np.mean, known))) / 3600
            gain = math.nan
            if noise is not None and len(items) > 1:
                shift = noise * math.sqrt(1 / item.n - 1 / (item.n + seeds * len(folds)))
                gain = _knowledge_gradient(abs(item.mean - np.delete(means, number).max()), shift)
            rows.append([item.label, item.n, seeds, hours, gain, gain / hours if hours else math.nan, item.verdict])
        columns = ["condition", "n", "seeds", "hours", "gain", "gain_per_hour", "verdict"]
        table = pd.DataFrame(rows, columns=columns)
        return table.sort_values("gain_per_hour", ascending=False, kind="stable", ignore_index=True)

    def write_next(self, plan: pd.DataFrame, count: int = 3) -> str:
        """Lines for `runs:` of a grid file (of a search: `seeds:`): those of a plan's first `count`, and the baseline's."""
        items = self._by_label
        used = {run.params.get("seed") for run in self.runs}
        fresh = [seed for seed in range(21, 21 * (len(used) + MOST_SEEDS + 1), 21) if seed not in used]
        options = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": 200}
        wanted: dict[str, int] = {}
        for label, seeds in plan.loc[plan["gain"] > 1e-5, ["condition", "seeds"]].head(count).itertuples(index=False):
            for each in filter(None, (items[label].baseline, label)):
                wanted[each] = max(wanted.get(each, 0), seeds)
        if self._seeds:
            return (
                yaml.safe_dump({"seeds": [*self._seeds, *fresh[: max(wanted.values())]]}, **options) if wanted else ""
            )
        folds = sorted({self._fold(run) for run in self._scored}, key=str)
        rows = [
            dict(items[label].values) | {"seed": seed} | ({} if fold is None else {"fold": fold})
            for label, seeds in wanted.items()
            for seed in fresh[:seeds]
            for fold in folds
        ]
        return yaml.safe_dump({"runs": rows}, **options) if rows else ""

    def describe(self) -> list[str]:
        """The findings, a sentence or two each."""
        told = [item for item in self.conditions if item.verdict in ("better", "worse", "equal")]
        words = [f"{item.label} is {item.verdict} ({item.difference:+.4f})" for item in told]
        none = "No difference can be told from the noise yet." if self.baseline else "No baseline: nothing is compared."
        lines = [f"Verdicts: {'; '.join(words)}." if words else none]
        averages = explain_averages(self.root, self.runs, self.varied, self.comparison.worthwhile)
        return [*self._search, *lines, *self.comparison.explain(), *averages]

    def save(self, lines: Sequence[str], **tables: pd.DataFrame) -> None:
        """Write tables as CSV, and the findings as findings.md."""
        save_tables(self.folder, tables, lines)


def _collect(grids: Sequence[Path], root: Path) -> tuple[list[RunResult], list[str]]:
    """All runs, named by their folders as seen from `root`, and the parameters in which those with a score differ."""
    for folder in grids:
        if not (folder / BOARD).is_file():
            required = f"required the folder of a grid, got one without {BOARD}"
            raise InputError(f"grid_dir {folder}: {required}; check grid_dir")
    boards = {folder: pd.read_csv(folder / BOARD, dtype=str, keep_default_na=False) for folder in grids}
    names = [os.path.relpath(folder / run, root) for folder, board in boards.items() for run in board["run"]]
    scored = [run for run in collect_runs(root, names, []) if run.miou is not None]
    if not scored:
        raise InputError(
            f"grid_dir {grids[0]}: required a run with a score, got none of {len(names)}; run the grid again"
        )
    known = dict.fromkeys(name for run in scored for name in run.params)
    values = {name: {identify(run.params[name]) for run in scored if name in run.params} for name in known}
    outside = set(ELSEWHERE) - set(BLOCKS)
    varied = [name for name in known if len(values[name]) > 1 and name not in outside]
    return collect_runs(root, names, varied), varied


def _require_same_images(grids: Sequence[Path], runs: Sequence[RunResult], root: Path) -> dict[Any, list[str]]:
    """Grids are compared on the same classes and validation images, those of all folds together: their scenes' names."""
    scene_names, seen = {}, {folder: (set(), set()) for folder in grids}
    for run in runs:
        path = root / run.run / "confusion.npz"
        if run.miou is not None and path.is_file():
            _, image_ids, names = load_confusion(path)
            images, classes = seen[path.parent.parent]
            images.update(image_ids.tolist())
            classes.add(tuple(names))
            scene_names |= load_scene_names(path)
    for folder in grids[1:]:
        for what, ours, theirs in zip(("validation images", "classes"), seen[grids[0]], seen[folder], strict=True):
            wanted, got = (sorted(each, key=str) for each in (ours, theirs))
            fix = "compare grids of one data set"
            require_same(f"more_grids {folder}", f"the {what} of {grids[0]}", wanted, got, fix)
    return scene_names


def _knowledge_gradient(behind: float, shift: float) -> float:
    """Expected rise of the best of two means that are `behind` apart when one of them moves by N(0, shift^2)."""
    if not shift:
        return 0.0
    z = -behind / shift
    return float(shift * (z * stats.norm.cdf(z) + stats.norm.pdf(z)))
