"""Which members and which weights: one pass over all of them, greedy selection on a sample, judged on images not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from seglib.data.dataset import Subset
from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError, require_known
from seglib.evaluation.compare import compare_images
from seglib.evaluation.metrics import mean_iou, pooled_miou
from seglib.inference.stores import Store, argmax_planes, require_alike
from seglib.inference.votes import count_mask, find_scenes_of, map_images, read_mask, require_truth, score_weighted

DISPUTED_SHARE = 0.8  # of the pixels that an image may give
PIXELS_AT_ONCE = 4096  # of all members and classes in whole numbers: what a processor's cache holds
MEAN = "mean"


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over N images of M members found, and what selections on it have counted.

    Where all members predict one class, each weighted mean of theirs predicts it too: such pixels are only counted, in
    `agreed`. Of the others, the disputed ones, P are drawn. The images are in F folds.

    Attributes
    ----------
    confusions : (M, N, C, C) int64 of all valid pixels, truth in rows
    errors : (M, M) int64, valid pixels that both are wrong about
    fold_of_image : (N,) int64
    agreed : (F, C, C) int64, confusion of the pixels on which all members agree
    planes : (M, C, P) uint8, round(255 p)
    labels, folds : (P,) int64, the true class, and the fold of the pixel's image
    stands_for : (P,) float64, pixels of its image that each stands for; 1 where all were drawn
    """

    confusions: np.ndarray
    errors: np.ndarray
    fold_of_image: np.ndarray
    agreed: np.ndarray
    planes: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    stands_for: np.ndarray
    _counted: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)

    def count_next(self, drawn: Sequence[int]) -> np.ndarray:
        """(M, F, C, C) float64: confusion of the mean of the drawn members and one more, by which; each counted once."""
        known = tuple(sorted(drawn))
        if known not in self._counted:
            starts = range(0, self.planes.shape[2], PIXELS_AT_ONCE)
            draws = np.bincount(np.array(drawn, np.int64), minlength=len(self.planes)).astype(np.int32)
            parts = map_images(lambda number: self._count(draws, starts[number]), len(starts))
            counts = sum(parts, np.zeros((len(self.planes), self.agreed.size)))
            self._counted[known] = counts.reshape(-1, *self.agreed.shape) + self.agreed
        return self._counted[known]

    def _count(self, draws: np.ndarray, start: int) -> np.ndarray:
        """(M, F C C) of some pixels. The class is in the low bits, turned round: one maximum finds it, the lower of equals."""
        chosen, classes = slice(start, start + PIXELS_AT_ONCE), self.planes.shape[1]
        shift = max(1, (classes - 1).bit_length())
        last = (1 << shift) - 1
        planes = self.planes[..., chosen].astype(np.int32) << shift
        total = np.tensordot(draws, planes, 1) + (last - np.arange(classes, dtype=np.int32))[:, None]
        cells = (self.folds[chosen] * classes + self.labels[chosen]) * classes + last
        weights, size = self.stands_for[chosen], self.agreed.size
        return np.stack([np.bincount(cells - ((total + each).max(0) & last), weights, size) for each in planes])


def survey_members(
    stores: Sequence[Store], truth: Subset, *, folds: int = 5, pixels: int = 200_000, seed: int = 0
) -> Survey:
    """Score each member and draw a sample, in one pass; memory grows with members times `pixels` alone.

    Parameters
    ----------
    stores : M stores of `truth`'s images.
    truth : masks of another size than the stores' are resized by nearest neighbour.
    folds : of the images, see `deal_images`.
    pixels : to draw of all images at most; each gives an equal number of its disputed ones, as many as it has.
    seed : of the drawing and the dealing.
    """
    require_alike(stores)
    require_truth(stores[0], truth)
    fold_of_image = deal_images(truth, folds, seed)
    survey = partial(_survey_image, stores, truth, max(2, pixels // len(truth)), seed)
    confusions, errors, agreed, planes, labels, stands_for = zip(*map_images(survey, len(truth)), strict=True)
    by_fold = np.zeros((fold_of_image.max() + 1, *agreed[0].shape), np.int64)
    np.add.at(by_fold, fold_of_image, agreed)
    return Survey(
        np.stack(confusions, axis=1), sum(errors), fold_of_image, by_fold, np.concatenate(planes, axis=-1),
        np.concatenate(labels), np.repeat(fold_of_image, [len(each) for each in labels]), np.concatenate(stands_for),
    )  # fmt: skip


def select_greedily(survey: Survey, held_out: int | None = None, draws: int = 0) -> tuple[list[int], list[float]]:
    """Draw members one after another, each the one that makes the mean of the drawn ones best by pooled mIoU.

    Any may be drawn again, which gives it weight; the first is the best member. Of equals the earlier is drawn.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models.

    Parameters
    ----------
    held_out : a fold that takes no part.
    draws : 0 is the number of members, at least 10.

    Returns
    -------
    The members in the order in which they were drawn, and the pooled mIoU after each draw.
    """
    seen, drawn, scores = np.arange(len(survey.agreed)) != held_out, [], []
    for _ in range(draws or max(10, len(survey.planes))):
        found = [mean_iou(confusion) for confusion in survey.count_next(drawn)[:, seen].sum(1)]
        drawn.append(int(np.argmax(found)))
        scores.append(max(found))
    return drawn, scores


def find_greedy(survey: Survey, held_out: int | None = None) -> np.ndarray:
    """(M,) weights that add up to 1: how often each was drawn up to the best mIoU of the path, the first of equals."""
    drawn, scores = select_greedily(survey, held_out)
    best = int(np.argmax(scores)) + 1
    return np.bincount(drawn[:best], minlength=len(survey.planes)) / best


def find_best(survey: Survey, held_out: int | None = None) -> np.ndarray:
    """All weight on the member with the best pooled mIoU, the first of equals."""
    return np.eye(len(survey.planes))[select_greedily(survey, held_out, 1)[0][0]]


SEARCHES: dict[str, Callable[..., np.ndarray]] = {"best": find_best, "greedy": find_greedy}


def judge_searches(
    stores: Sequence[Store], truth: Subset, survey: Survey, searches: Sequence[str] = ("best", "greedy")
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Search weights, and judge each search by cross-validation over the survey's folds, beside the plain mean.

    One image alone cannot be judged: what is of images not seen is NaN then. The mean costs one pass over all pixels,
    each search two more at most: weights that were scored before are not scored again.

    Parameters
    ----------
    survey : of the same stores and images.
    searches : names of `SEARCHES`. "best" is the best member alone, chosen as the others are: a mean with members that are
        much weaker may be worse than it.

    Returns
    -------
    table : one row per way to weigh, the plain mean first: weights (its name), searched (pooled mIoU of weights that saw
        all images), held_out (of weights that did not see the image that they are scored on), gain of held_out over the
        plain mean, low, high (95 % over other scenes, of one comparison: of several searches the best is flattered a
        little). All are exact, on all pixels.
    weights : (M,) by name, of the search on all images.
    """
    for name in searches:
        require_known("search", name, SEARCHES, "ensemble")
    weights = {MEAN: np.full(len(stores), 1 / len(stores))} | {name: SEARCHES[name](survey) for name in searches}
    scored = {}  # weights -> (N, C, C)
    for given in weights.values():
        if given.tobytes() not in scored:
            scored[given.tobytes()] = score_weighted(stores, truth, given)
    mean, scenes, rows = scored[weights[MEAN].tobytes()], find_scenes_of(truth)[0], []
    for name, given in weights.items():
        judged = [pooled_miou(mean), 0.0, 0.0, 0.0] if name == MEAN else [np.nan] * 4
        if name != MEAN and len(truth) > 1:
            held_out = _cross_validate(SEARCHES[name], stores, truth, survey, scored)
            judged = [pooled_miou(held_out), *compare_images(held_out, mean, scenes)]
        rows.append([name, pooled_miou(scored[given.tobytes()]), *judged])
    return pd.DataFrame(rows, columns=["weights", "searched", "held_out", "gain", "low", "high"]), weights


def _cross_validate(
    find: Callable, stores: Sequence[Store], truth: Subset, survey: Survey, scored: dict[bytes, np.ndarray]
) -> np.ndarray:
    """Confusion (N, C, C) int64 of all pixels, each image with the weights that were found on the other folds."""
    counts = np.zeros(survey.confusions.shape[1:], np.int64)
    for fold in range(len(survey.agreed)):
        weights, held = find(survey, fold), np.flatnonzero(survey.fold_of_image == fold)
        if weights.tobytes() in scored:
            counts[held] = scored[weights.tobytes()][held]
        else:
            images = Subset(truth.data, truth.pixels, truth.indices[held])
            counts[held] = score_weighted([store.take(held) for store in stores], images, weights)
    return counts


def recommend_weights(table: pd.DataFrame) -> tuple[str, str]:
    """Of `judge_searches`: the name with the highest gain whose interval is above 0, "mean" where there is none; and why."""
    if table["held_out"].isna().any():
        return MEAN, "one image: nothing is left to judge a search on, so the plain mean is recommended, not judged"
    words = [
        f"{row.weights}: cross-validated gain {row.gain:+.4f} mIoU [{row.low:+.4f}, {row.high:+.4f}]"
        for row in table.itertuples()
    ]
    if (table["low"] > 0).any():
        best = int(table["gain"].where(table["low"] > 0).argmax())
        why = "better than the plain mean on images that it did not see; use it"
        return table["weights"][best], f"{words[best]}: {why}"
    tried = "; ".join(words[1:]) or "nothing was searched"
    return MEAN, f"{tried}: not above 0 for certain, so the plain mean is recommended"


def describe_ensemble(expected: float, name: str, beside: dict[str, float]) -> str:
    """What an ensemble is expected to score, and whether that is more than its best member, `name`, has alone.

    `beside` is from that member to the ensemble's masks, of `measure_gain`.
    """
    words = "surely better" if beside["low"] > 0 else "not surely better"
    if expected <= beside["before"]:
        words = "NOT better; with weights: best that member predicts alone"
    gain = "{points:+.2f} points, {low:+.2f} to {high:+.2f} over other scenes".format_map(beside)
    return (
        f"expected mIoU {expected:.4f}; the best member alone, {name}, has {beside['before']:.4f}: {words} (on images that"
        f" the choices have seen {gain})"
    )


def deal_images(truth: Subset, folds: int, seed: int) -> np.ndarray:
    """(N,) fold of each image, 0 to folds - 1; a scene is in one fold, and fewer scenes make fewer folds.

    What the scenes are is printed, see `find_scenes`: what is held out of one video is like what is not, so that a search
    looks better than it is. One image is all in fold 0.
    """
    if folds < 2:
        raise InputError(f"folds: required 2 or more, got {folds}")
    scenes, how = find_scenes_of(truth)
    print(f"what holds for other images is judged on {how}")
    units = scenes.max() + 1
    return np.random.default_rng(seed).permutation(np.arange(units) % min(folds, units))[scenes]


def trace_selection(survey: Survey, names: Sequence[str], draws: int = 0) -> pd.DataFrame:
    """Pooled mIoU against the number of members, on the sample.

    Returns
    -------
    One row per draw: draw (from 1), member (drawn from all images), searched (greedy selection, scored on the images that
    it saw), held_out (selections on the other folds, NaN with one image), best_mean (plain mean of so many of the best
    members, NaN after all).
    """
    drawn, searched = select_greedily(survey, None, draws)
    held_out = np.full(len(drawn), np.nan)
    if len(survey.agreed) > 1:
        paths = [select_greedily(survey, fold, len(drawn))[0] for fold in range(len(survey.agreed))]
        held_out = [
            mean_iou(sum(survey.count_next(path[:place])[path[place], fold] for fold, path in enumerate(paths)))
            for place in range(len(drawn))
        ]
    alone = [mean_iou(confusion) for confusion in survey.count_next(()).sum(1)]
    best = np.argsort(np.negative(alone), kind="stable").tolist()
    means = [mean_iou(survey.count_next(best[:size])[member].sum(0)) for size, member in enumerate(best)]
    scores = {"searched": searched, "held_out": held_out, "best_mean": pd.Series(means).reindex(range(len(drawn)))}
    members = [names[member] for member in drawn]
    return pd.DataFrame({"draw": np.arange(1, len(drawn) + 1), "member": members, **scores})


def _survey_image(
    stores: Sequence[Store], truth: Subset, quota: int, seed: int, position: int
) -> tuple[np.ndarray, ...]:
    """One image's confusions, errors, agreed, planes, labels, stands_for, see `Survey`. Members differ in the disputed pixels alone: only those are counted for each."""
    mask, classes = read_mask(truth, position, stores[0].size), len(stores[0].class_names)
    preds = np.stack([argmax_planes(store.read(position)) for store in stores])
    disputed = (mask != IGNORE_INDEX) & (preds != preds[0]).any(0)
    labels, votes = mask[disputed].astype(np.int64), preds[:, disputed]
    counts = np.stack([np.bincount(labels * classes + vote, minlength=classes**2) for vote in votes])
    counts = counts.reshape(-1, classes, classes)
    agreed, wrong = count_mask(mask, preds[0], classes) - counts[0], (votes != labels).astype(np.float32)
    errors = np.round(wrong @ wrong.T).astype(np.int64) + agreed.sum() - np.trace(agreed)  # below 2^24, so exact
    places, share = np.flatnonzero(disputed), round(quota * DISPUTED_SHARE)
    chosen = places
    if len(places) > share:
        chosen = np.sort(np.random.default_rng((seed, position)).choice(places, share, replace=False))
    raw = [store.read(position).reshape(classes, -1)[:, chosen] for store in stores]
    floats = (each if each.dtype == np.uint8 else np.round(255 * each.astype(np.float32)) for each in raw)
    planes = np.stack([each.astype(np.uint8) for each in floats])
    stands_for = np.full(len(chosen), len(places) / max(1, len(chosen)))
    return agreed + counts, errors, agreed, planes, mask.reshape(-1)[chosen].astype(np.int64), stands_for
