"""Which members and which weights: one pass over all of them, greedy selection on a sample, judged on images not seen."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from seglib.data.dataset import Subset
from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError, unknown_name
from seglib.evaluation.compare import bootstrap_difference
from seglib.evaluation.metrics import image_miou, iou_per_class, mean_iou, pixel_accuracy, pooled_miou
from seglib.inference.stores import Store, argmax_planes, require_alike
from seglib.inference.votes import count_mask, map_images, read_mask, require_truth, score_weighted

DISPUTED_SHARE = 0.8  # of the pixels that an image may give
MEAN = "mean"


class Survey(NamedTuple):
    """What one pass over N images of M members found.

    Where all members predict one class, each weighted mean of theirs predicts it too: such pixels are only counted, in
    `agreed`. Of the others, the disputed ones, P are drawn.

    Attributes
    ----------
    confusions : (M, N, C, C) int64 of all valid pixels, truth in rows
    errors : (M, M) int64, valid pixels that both are wrong about
    agreed : (N, C, C) int64, confusion of the pixels on which all members agree
    planes : (M, C, P) uint8, round(255 p)
    labels : (P,) int64, the true class
    image : (P,) int64, position of the pixel's image
    stands_for : (P,) float64, pixels of its image that each stands for; 1 where all were drawn
    """

    confusions: np.ndarray
    errors: np.ndarray
    agreed: np.ndarray
    planes: np.ndarray
    labels: np.ndarray
    image: np.ndarray
    stands_for: np.ndarray

    def take_images(self, chosen: np.ndarray) -> "Survey":
        """What is drawn and agreed of some images, `chosen` (N,) bool; positions stay."""
        kept = chosen[self.image]
        rows = {name: getattr(self, name)[..., kept] for name in ("planes", "labels", "image", "stands_for")}
        return self._replace(agreed=self.agreed * chosen[:, None, None], **rows)

    def count(self, total: np.ndarray) -> np.ndarray:
        """Pooled confusion (C, C) float64 of weighted sums (C, P); of equal ones the lower class wins."""
        classes = len(total)
        cells = np.bincount(self.labels * classes + argmax_planes(total), self.stands_for, classes**2)
        return cells.reshape(classes, classes) + self.agreed.sum(0)

    def score(self, draws: Sequence[int]) -> float:
        """Pooled mIoU of the mean in which each member counts so often, (M,) whole numbers."""
        return mean_iou(self.count(np.tensordot(np.asarray(draws, np.int32), self.planes.astype(np.int32), 1)))


def survey_members(stores: Sequence[Store], truth: Subset, pixels: int = 200_000, seed: int = 0) -> Survey:
    """Score each member and draw a sample, in one pass; memory grows with members times `pixels` alone.

    Parameters
    ----------
    stores : M stores of `truth`'s images.
    truth : masks of another size than the stores' are resized by nearest neighbour.
    pixels : to draw of all images at most; each gives an equal number of its disputed ones, as many as it has.
    seed : of the drawing.
    """
    require_alike(stores)
    require_truth(stores[0], truth)
    survey = partial(_survey_image, stores, truth, max(2, pixels // len(truth)), seed)
    confusions, errors, agreed, *drawn = zip(*map_images(survey, len(truth)), strict=True)
    sample = [np.concatenate(parts, axis=-1) for parts in drawn]
    return Survey(np.stack(confusions, axis=1), sum(errors), np.stack(agreed), *sample)


def tabulate_members(names: Sequence[str], confusions: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """One row per member: member, miou, miou_image, accuracy, then IoU by class name. confusions: (M, N, C, C)."""
    rows = []
    for name, per_image in zip(names, confusions, strict=True):
        pooled = per_image.sum(0)
        scores = {"miou": mean_iou(pooled), "miou_image": image_miou(per_image), "accuracy": pixel_accuracy(pooled)}
        rows.append({"member": name, **scores, **dict(zip(class_names, iou_per_class(pooled), strict=True))})
    return pd.DataFrame(rows)


def correlate_errors(survey: Survey) -> np.ndarray:
    """(M, M) float64 phi coefficients of "this pixel is wrong" between members, over all valid pixels.

    1: wrong about the same pixels; 0: wrong independently of each other. NaN for a member that is never wrong.
    """
    total, both = float(survey.confusions[0].sum()), survey.errors.astype(np.float64)
    one = np.diag(both)
    spread = np.sqrt(one * (total - one))
    scale = np.outer(spread, spread)
    return np.divide(total * both - np.outer(one, one), scale, out=np.full(both.shape, np.nan), where=scale > 0)


def select_greedily(survey: Survey, draws: int = 0) -> tuple[list[int], list[float]]:
    """Draw members one after another, each the one that makes the mean of the drawn ones best by pooled mIoU.

    Any may be drawn again, which gives it weight; the first is the best member. Of equals the earlier is drawn.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models.

    Parameters
    ----------
    draws : 0 is the number of members, at least 10.

    Returns
    -------
    The members in the order in which they were drawn, and the pooled mIoU after each draw.
    """
    total, drawn, scores = np.zeros(survey.planes.shape[1:], np.int32), [], []
    for _ in range(draws or max(10, len(survey.planes))):
        found = [mean_iou(survey.count(total + planes)) for planes in survey.planes]
        drawn.append(int(np.argmax(found)))
        scores.append(max(found))
        total += survey.planes[drawn[-1]]
    return drawn, scores


def find_greedy(survey: Survey) -> np.ndarray:
    """(M,) weights that add up to 1: how often each was drawn up to the best mIoU of the path, the first of equals."""
    drawn, scores = select_greedily(survey)
    best = int(np.argmax(scores)) + 1
    return np.bincount(drawn[:best], minlength=len(survey.planes)) / best


def find_best(survey: Survey) -> np.ndarray:
    """All weight on the member with the best pooled mIoU, the first of equals."""
    alone = np.eye(len(survey.planes), dtype=int)
    return alone[int(np.argmax([survey.score(one) for one in alone]))].astype(float)


SEARCHES: dict[str, Callable[[Survey], np.ndarray]] = {"best": find_best, "greedy": find_greedy}


def judge_searches(
    stores: Sequence[Store], truth: Subset, survey: Survey, searches: Sequence[str] = ("best", "greedy"),
    *, folds: int = 5, seed: int = 0, resamples: int = 1000,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:  # fmt: skip
    """Search weights, and judge each search by K-fold cross-validation over images, beside the plain mean.

    One image alone cannot be judged: what is of images not seen is NaN then. The mean costs one pass over all pixels,
    each search two more.

    Parameters
    ----------
    survey : of the same stores and images.
    searches : names of `SEARCHES`. "best" is the best member alone, chosen as the others are: a mean with members that are
        much weaker may be worse than it.
    folds : K; images of one group stay together.
    resamples : draws of the images for the interval, which is one comparison's: of several searches the best is
        flattered a little.

    Returns
    -------
    table : one row per way to weigh, the plain mean first: weights (its name), searched (pooled mIoU of weights that saw
        all images), held_out (of weights that did not see the image that they are scored on), gain of held_out over the
        plain mean, low, high (95 % over images). All are exact, on all pixels.
    weights : (M,) by name, of the search on all images.
    """
    for name in searches:
        if name not in SEARCHES:
            raise InputError(f"ensemble: {unknown_name('search', name, SEARCHES)}")
    fold_of_image = deal_images(truth, folds, seed)
    weights = {MEAN: np.full(len(stores), 1 / len(stores))} | {name: SEARCHES[name](survey) for name in searches}
    confusions = {name: score_weighted(stores, truth, given) for name, given in weights.items()}
    rows = [[MEAN, pooled_miou(confusions[MEAN]), pooled_miou(confusions[MEAN]), 0.0, 0.0, 0.0]]
    for name in searches:
        judged = [np.nan] * 4
        if len(truth) > 1:
            held_out = _cross_validate(SEARCHES[name], stores, truth, survey, fold_of_image)
            judged = [pooled_miou(held_out), *bootstrap_difference(held_out, confusions[MEAN], resamples, seed)]
        rows.append([name, pooled_miou(confusions[name]), *judged])
    return pd.DataFrame(rows, columns=["weights", "searched", "held_out", "gain", "low", "high"]), weights


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
        return table["weights"][
            best
        ], f"{words[best]}: better than the plain mean on images that it did not see; use it"
    tried = "; ".join(words[1:]) or "nothing was searched"
    return MEAN, f"{tried}: not above 0 for certain, so the plain mean is recommended"


def deal_images(truth: Subset, folds: int, seed: int) -> np.ndarray:
    """(N,) fold of each image, 0 to folds - 1; images of one group are in one fold, and fewer groups make fewer folds.

    Images of one group alone, as of one video, are dealt one by one, which is printed: what is held out is like what is
    not, so that a search looks better than it is. One image is all in fold 0.
    """
    if folds < 2:
        raise InputError(f"folds: required 2 or more, got {folds}")
    groups = truth.data.images["group"].iloc[truth.indices].tolist()
    named = [place if group in (None, "") or group != group else f"group {group}" for place, group in enumerate(groups)]
    if len(set(named)) == 1 and len(named) > 1:
        print(
            f"all {len(named)} images are of one group: they are dealt one by one, so that gains held out are flattered"
        )
        named = range(len(named))
    units = {unit: number for number, unit in enumerate(dict.fromkeys(named))}
    folds = min(folds, len(units))
    fold_of_unit = np.random.default_rng(seed).permutation(np.arange(len(units)) % folds)
    return fold_of_unit[[units[unit] for unit in named]]


def trace_selection(survey: Survey, fold_of_image: np.ndarray, names: Sequence[str], draws: int = 0) -> pd.DataFrame:
    """Pooled mIoU against the number of members, on the sample.

    Returns
    -------
    One row per draw: draw (from 1), member (drawn from all images), searched (greedy selection, scored on the images that
    it saw), held_out (selections on the other folds, NaN with one image), best_mean (plain mean of so many of the best
    members, NaN after all).
    """
    (drawn, searched), folds, members = select_greedily(survey, draws), np.unique(fold_of_image), len(names)
    held_out = np.full(len(drawn), np.nan)
    if len(folds) > 1:
        counts = sum(_count_path(survey, fold_of_image == fold, len(drawn)) for fold in folds)
        held_out = [mean_iou(confusion) for confusion in counts]
    ranked = np.argsort([-survey.score(one) for one in np.eye(members, dtype=int)], kind="stable")
    best = [survey.score(np.isin(np.arange(members), ranked[: size + 1])) for size in range(members)]
    columns = {"draw": np.arange(1, len(drawn) + 1), "member": [names[member] for member in drawn]}
    scores = {"searched": searched, "held_out": held_out, "best_mean": pd.Series(best).reindex(range(len(drawn)))}
    return pd.DataFrame(columns | scores)


def _survey_image(
    stores: Sequence[Store], truth: Subset, quota: int, seed: int, position: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The fields of a `Survey` of one image. Members differ in the disputed pixels alone: only those are counted for each."""
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
    planes = np.stack([_take_levels(store.read(position), chosen) for store in stores])
    stands_for = np.full(len(chosen), len(places) / max(1, len(chosen)))
    image = np.full(len(chosen), position, np.int64)
    return agreed + counts, errors, agreed, planes, mask.reshape(-1)[chosen].astype(np.int64), image, stands_for


def _take_levels(raw: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(C, P) uint8, round(255 p) at some places of an image."""
    chosen = raw.reshape(len(raw), -1)[:, places]
    return chosen if raw.dtype == np.uint8 else np.round(255 * chosen.astype(np.float32)).astype(np.uint8)


def _cross_validate(
    find: Callable, stores: Sequence[Store], truth: Subset, survey: Survey, fold_of_image: np.ndarray
) -> np.ndarray:
    """Confusion (N, C, C) int64 of all pixels, each image with the weights that were found on the other folds."""
    counts = np.zeros(survey.agreed.shape, np.int64)
    for fold in np.unique(fold_of_image):
        weights, held = find(survey.take_images(fold_of_image != fold)), np.flatnonzero(fold_of_image == fold)
        images = Subset(truth.data, truth.pixels, truth.indices[held])
        counts[held] = score_weighted([store.take(held) for store in stores], images, weights)
    return counts


def _count_path(survey: Survey, held: np.ndarray, draws: int) -> np.ndarray:
    """Confusion (draws, C, C) of held-out images after each draw of a selection on the others."""
    drawn, _ = select_greedily(survey.take_images(~held), draws)
    own = survey.take_images(held)
    return np.stack([own.count(total) for total in own.planes[drawn].cumsum(0, dtype=np.int32)])
