"""Whether searched weights are worth it: scored on images that the search did not see, against the plain mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from seglib.data.dataset import Subset
from seglib.errors import InputError, unknown_name
from seglib.evaluation.compare import bootstrap_difference
from seglib.evaluation.metrics import mean_iou, pooled_miou
from seglib.inference.ensemble_sample import PixelSample
from seglib.inference.ensemble_weights import SEARCHES, find_mean, score_weights, select_greedily
from seglib.inference.probability_store import ProbabilityStore
from seglib.inference.sample_tally import open_tally
from seglib.inference.store_views import take_images
from seglib.inference.weighted_sum import score_weighted

MEAN = "mean"
Find = Callable[[PixelSample], np.ndarray]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What `judge_searches` found.

    Attributes
    ----------
    table : one row a way to weigh, the plain mean first: name, searched (pooled mIoU of weights that saw all images),
        held_out (of weights that did not see the image that they are scored on), gain of held_out over the plain mean,
        low, high (95 % over images). All are exact, on all pixels.
    weights : (M,) by name, of the search on all images
    confusions : (N, C, C) int64 by name, of these weights
    recommended : the name with the highest gain whose interval is above 0; "mean" where there is none
    text : why, in a line
    """

    table: pd.DataFrame
    weights: dict[str, np.ndarray]
    confusions: dict[str, np.ndarray]
    recommended: str
    text: str


def judge_searches(
    stores: Sequence[ProbabilityStore], truth: Subset, sample: PixelSample, searches: Sequence[str] = ("best", "greedy"),
    *, folds: int = 5, seed: int = 0, resamples: int = 1000,
) -> Verdict:  # fmt: skip
    """Search weights, and judge each search by K-fold cross-validation over images.

    One image alone cannot be judged: what is of images not seen is NaN then, and the plain mean is recommended.

    The mean costs one pass over all pixels, each search two more.

    Parameters
    ----------
    sample : of `survey_members`, over the same stores and images.
    searches : names of `SEARCHES`. "best" is the best member alone, chosen as the others are: a mean with members that are
        much weaker may be worse than it.
    folds : K; images of one group stay together.
    resamples : draws of the images for the interval, which is one comparison's: of several searches the best is
        flattered a little.

    Raises
    ------
    InputError
        An unknown search, or fewer than 2 folds.
    """
    for name in searches:
        if name not in SEARCHES:
            raise InputError(f"ensemble: {unknown_name('search', name, SEARCHES)}")
    fold_of_image = deal_images(truth, folds, seed)
    weights = {MEAN: find_mean(sample)} | {name: SEARCHES[name](sample) for name in searches}
    confusions = {name: score_weighted(stores, truth, given) for name, given in weights.items()}
    rows = [[MEAN, pooled_miou(confusions[MEAN]), pooled_miou(confusions[MEAN]), 0.0, 0.0, 0.0]]
    for name in searches:
        judged = [np.nan] * 4
        if len(truth) > 1:
            held_out = cross_validate(SEARCHES[name], stores, truth, sample, fold_of_image)
            judged = [pooled_miou(held_out), *bootstrap_difference(held_out, confusions[MEAN], resamples, seed)]
        rows.append([name, pooled_miou(confusions[name]), *judged])
    table = pd.DataFrame(rows, columns=["weights", "searched", "held_out", "gain", "low", "high"])
    return Verdict(table, weights, confusions, *_recommend(table))


def cross_validate(
    find: Find,
    stores: Sequence[ProbabilityStore],
    truth: Subset,
    sample: PixelSample,
    fold_of_image: np.ndarray,
) -> np.ndarray:
    """Confusion (N, C, C) int64 of all pixels, each image with the weights that were found on the other folds."""
    counts = np.zeros((len(truth), *sample.agreed.shape[1:]), np.int64)
    for fold in np.unique(fold_of_image):
        weights, held = find(sample.take_images(fold_of_image != fold)), np.flatnonzero(fold_of_image == fold)
        images = Subset(truth.data, truth.pixels, truth.indices[held])
        counts[held] = score_weighted([take_images(store, held) for store in stores], images, weights)
    return counts


def deal_images(truth: Subset, folds: int, seed: int) -> np.ndarray:
    """(N,) fold of each image, 0 to folds - 1; images of one group are in one fold, and fewer groups make fewer folds.

    Images of one group alone, as of one video, are dealt one by one, which is printed: what is held out is like what is
    not, so that a search looks better than it is. One image is all in fold 0.
    """
    if folds < 2:
        raise InputError(f"folds: required 2 or more, got {folds}")
    groups = truth.data.images["group"].iloc[truth.indices].tolist()
    named = [
        f"group {group}" if group == group and group not in (None, "") else place for place, group in enumerate(groups)
    ]
    if len(set(named)) == 1 and len(named) > 1:
        print(
            f"all {len(named)} images are of one group: they are dealt one by one, so that gains held out are flattered"
        )
        named = range(len(named))
    units = {unit: number for number, unit in enumerate(dict.fromkeys(named))}
    folds = min(folds, len(units))
    fold_of_unit = np.random.default_rng(seed).permutation(np.arange(len(units)) % folds)
    return fold_of_unit[[units[unit] for unit in named]]


def trace_selection(
    sample: PixelSample, fold_of_image: np.ndarray, names: Sequence[str], draws: int = 0
) -> pd.DataFrame:
    """Pooled mIoU against the number of members, on the sample.

    Returns
    -------
    One row a draw: draw (from 1), member (drawn from all images), searched (greedy selection, scored on the images that it
    saw), held_out (selections on the other folds, NaN with one image), best_mean (plain mean of so many of the best members, NaN after all).
    """
    path, folds = select_greedily(sample, draws), np.unique(fold_of_image)
    held_out = np.full(len(path.drawn), np.nan)
    if len(folds) > 1:
        counts = sum(_count_path(sample, fold_of_image == fold, len(path.drawn)) for fold in folds)
        held_out = [mean_iou(confusion) for confusion in counts]
    alone = [score_weights(sample, np.eye(len(names))[member]) for member in range(len(names))]
    ranked = np.argsort([-score for score in alone], kind="stable")
    best = [
        score_weights(sample, np.isin(np.arange(len(names)), ranked[:size]) / size) for size in range(1, len(names) + 1)
    ]
    return pd.DataFrame({
        "draw": np.arange(1, len(path.drawn) + 1), "member": [names[member] for member in path.drawn],
        "searched": path.miou, "held_out": held_out,
        "best_mean": [*best, *[np.nan] * len(path.drawn)][: len(path.drawn)],
    })  # fmt: skip


def _count_path(sample: PixelSample, held: np.ndarray, draws: int) -> np.ndarray:
    """Confusion (draws, C, C) of held-out images after each draw of a selection on the others."""
    path, tally = select_greedily(sample.take_images(~held), draws), open_tally(sample.take_images(held))
    scores, counts = tally.start(), []
    for member in path.drawn:
        tally.add(scores, member)
        counts.append(tally.count(scores)[0])
    return np.array(counts)


def _recommend(table: pd.DataFrame) -> tuple[str, str]:
    if table["held_out"].isna().any():
        return MEAN, "one image: nothing is left to judge a search on, so the plain mean is recommended, not judged"
    better = table[table["low"] > 0].sort_values("gain", ascending=False)
    if len(better):
        best = better.iloc[0]
        return best["weights"], f"{_word(best)}: better than the plain mean on images that it did not see; use it"
    tried = "; ".join(_word(row) for _, row in table.iloc[1:].iterrows()) or "nothing was searched"
    return MEAN, f"{tried}: not above 0 for certain, so the plain mean is recommended"


def _word(row: pd.Series) -> str:
    return f"{row['weights']}: cross-validated gain {row['gain']:+.4f} mIoU [{row['low']:+.4f}, {row['high']:+.4f}]"
