"""Two runs on the same images: who is right where, and what other images, and other seeds, could do to a difference.

Images of one scene, such as the frames of a video, are alike: what holds for other images is told from scenes, each left
out once (the jackknife), with a t interval of as many degrees of freedom as scenes allow. Where the bootstrap of single
frames covers 40 to 57 % instead of 95 and that of scenes 66 to 95, this covers 92 to 96 (tests/benchmarks/scenes.py).
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from seglib.data.masks import IGNORE_INDEX
from seglib.evaluation.metrics import iou_per_class, mean_iou, pooled_miou
from seglib.evaluation.verdicts import Noise

OUTCOMES = ("both", "only_a", "only_b", "neither")  # who is right
FEW_SCENES, NEARLY_ALL = 3, 0.8  # with fewer, or one of more of the images than this, stretches take their place
GAIN = ("before", "after", "points", "low", "high")
STRETCHES = 5  # of neighbouring images: fewer and longer ones are more independent


def show_outcomes(truth: np.ndarray, pred_a: np.ndarray, pred_b: np.ndarray) -> np.ndarray:
    """(..., H, W) uint8: index into `OUTCOMES`, 255 where the truth is ignored. Masks (..., H, W) uint8."""
    outcome = np.uint8(2) * (pred_a != truth) + (pred_b != truth)  # 0 both, 1 only a, 2 only b, 3 neither
    outcome[truth == IGNORE_INDEX] = 255
    return outcome


def count_outcomes(
    triples: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], class_names: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Count who is right, by true class and by image, over (truth, pred_a, pred_b), (H, W) uint8 each.

    Returns
    -------
    by_class : one row per class: class, both, only_a, only_b, neither [px].
    by_image : (images, 4) int64 [px].
    """
    counts = [np.zeros((0, len(class_names), 4), np.int64)]
    for truth, pred_a, pred_b in triples:
        outcome = show_outcomes(truth, pred_a, pred_b)
        valid = outcome < 4
        codes = np.bincount(truth[valid].astype(np.int64) * 4 + outcome[valid], minlength=4 * len(class_names))
        counts.append(codes.reshape(1, -1, 4))
    counts = np.concatenate(counts)
    table = pd.DataFrame(counts.sum(0), columns=list(OUTCOMES))
    table.insert(0, "class", list(class_names))
    return table, counts.sum(1)


def choose_changes(
    gained: ArrayLike, lost: ArrayLike, image_ids: Sequence, count: int, words: tuple[str, str] = ("won", "lost")
) -> tuple[list[int], list[str]]:
    """Positions and titles: images where most was gained, net, then those where most was lost, half and half; at least 2.

    gained, lost : (N,) int of each image [px]; `words` name them in the titles.
    """
    gained, lost = np.asarray(gained), np.asarray(lost)
    order = np.argsort(lost - gained, kind="stable")
    count = min(max(2, count), len(order))
    chosen = [*order[: (count + 1) // 2].tolist(), *order[::-1][: count // 2].tolist()]
    titles = [f"image {image_ids[i]}\n{words[0]} {gained[i]} px\n{words[1]} {lost[i]} px" for i in chosen]
    return chosen, titles


def compare_class_iou(confusion_a: ArrayLike, confusion_b: ArrayLike, class_names: Sequence[str]) -> pd.DataFrame:
    """One row per class: class, iou_a, iou_b, difference = a - b. (images, C, C) counts each."""
    iou_a, iou_b = (iou_per_class(np.sum(confusion, axis=0)) for confusion in (confusion_a, confusion_b))
    return pd.DataFrame({"class": list(class_names), "iou_a": iou_a, "iou_b": iou_b, "difference": iou_a - iou_b})


def find_scenes(groups: Sequence | None, image_names: Sequence) -> tuple[np.ndarray, str]:
    """Which images belong together: by their group, or guessed from file names; and how that was found, in words.

    File names of one scene differ in their last number, as `0001TP_006690.png` and `0001TP_006720.png` do. Where there
    are fewer than 3 scenes, or one holds nearly all images, stretches of neighbours take their place: what they say
    holds for these scenes, and others may differ by more.

    Parameters
    ----------
    groups : (N,) scene of each image, None, NaN or "" where the data has none; None where it has none at all.
    image_names : (N,) file names, or ids: numbers that are neighbours.

    Returns
    -------
    (N,) int64, 0 to S - 1; and the words, such as "5 scenes (guessed from file names)".
    """
    places, source = _split_names([str(name) for name in image_names]), "guessed from file names"
    units = [prefix for prefix, _ in places]
    known = pd.Series(units if groups is None else list(groups), dtype=object).replace("", None).notna()
    if groups is not None and known.any():
        source = "by the data's groups"
        units = [group if has else (place,) for place, (group, has) in enumerate(zip(groups, known, strict=True))]
    scenes, found = pd.factorize(pd.Series(units, dtype=object))
    if len(found) == len(units):
        return np.arange(len(units)), f"{len(units)} images, each a scene of its own ({source})"
    if len(found) >= FEW_SCENES and np.bincount(scenes).max() <= NEARLY_ALL * len(units):
        return scenes.astype(np.int64), f"{len(found)} scenes ({source})"
    count = min(STRETCHES, len(units))
    stretches, order = np.empty(len(units), np.int64), sorted(range(len(units)), key=lambda i: (scenes[i], places[i]))
    stretches[order] = np.arange(len(units)) * count // len(units)
    scene = f"{len(found)} scene{'s' if len(found) > 1 else ''} {source}"
    return stretches, f"{count} stretches of neighbouring images, too alike for what other scenes would say ({scene})"


def _split_names(names: Sequence[str]) -> list[tuple[str, int]]:
    """What stands before the last number of a file name, and that number; what all names end in is left out."""
    ends = zip(*(reversed(name) for name in names), strict=False)
    common = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, ends)) if len(names) > 1 else 0
    while common and names[0][-common].isdigit():  # 0010.png, 0020.png: all end in 0, which is a number's
        common -= 1
    stems = [name[: len(name) - common] for name in names]
    found = [re.fullmatch(r"(.*?)(\d+)\D*", stem, re.DOTALL) for stem in stems]
    return [(match[1], int(match[2])) if match else (stem, 0) for match, stem in zip(found, stems, strict=True)]


def estimate_noise(score: Callable[[np.ndarray], float], counts: ArrayLike, scenes: np.ndarray) -> Noise:
    """Variance of a score of summed counts over other scenes: the jackknife, with the degrees of freedom of its t.

    Scenes of unequal size count as fewer: df is N^2 / sum(n^2) - 1 for scenes of n images. One scene says nothing.

    Parameters
    ----------
    score : sum over images, of the shape of one image's counts, -> number.
    counts : (N, ...) of each image.
    scenes : (N,) int, of `find_scenes`.

    Source: Efron and Stein (1981), The jackknife estimate of variance; effective clusters: Kish (1965).
    """
    counts, sizes = np.asarray(counts), np.bincount(scenes)
    present = np.flatnonzero(sizes)
    if len(present) < 2:
        return Noise()
    total = counts.sum(0)
    without = np.array([score(total - counts[scenes == scene].sum(0)) for scene in present])
    df = max(1.0, sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum() - 1)
    return Noise(float((len(present) - 1) * without.var()), df)


def find_interval(value: float, noise: Noise, alpha: float = 0.05) -> tuple[float, float]:
    """The t interval around a value, 95 % by default; NaN where nothing is known of its noise."""
    half = float(stats.t.isf(alpha / 2, noise.df)) * noise.std if noise.df else math.nan
    return value - half, value + half


def compare_images(confusion_a: ArrayLike, confusion_b: ArrayLike, scenes: np.ndarray) -> tuple[float, float, float]:
    """Pooled mIoU of a minus that of b, and its 95 % interval over other images, the same for both; NaN for one scene.

    It says how much the difference owes to the choice of images; other seeds of the training move it as well.

    Parameters
    ----------
    confusion_a, confusion_b : (images, C, C) counts over the same images in the same order.
    scenes : (images,) int, of `find_scenes`.
    """
    counts = np.stack([confusion_a, confusion_b], axis=1)
    difference = _subtract(counts.sum(0))
    return difference, *find_interval(difference, estimate_noise(_subtract, counts, scenes))


def measure_gain(before: ArrayLike, after: ArrayLike, scenes: np.ndarray) -> dict[str, float]:
    """Pooled mIoU `before` and `after` of (images, C, C) counts, `points` gained, `low` and `high` of these over other images."""
    gain = np.multiply(100, compare_images(after, before, scenes)).tolist()
    return {"before": pooled_miou(before), "after": pooled_miou(after), **dict(zip(GAIN[2:], gain, strict=True))}


def _subtract(pair: np.ndarray) -> float:
    return mean_iou(pair[0]) - mean_iou(pair[1])


def compare_noises(
    confusions_a: ArrayLike, confusions_b: ArrayLike, scenes: np.ndarray, seeds: Noise | None = None
) -> dict[str, float]:
    """Compare two conditions over other seeds and other images: each noise by itself, then both together.

    The variance over scenes (of the difference of mean scores, by the jackknife) and that over seeds add up; what seeds
    do to single scenes is in both, so that the interval is a little wide. df are Satterthwaite's.

    Parameters
    ----------
    confusions_a, confusions_b : (runs, images, C, C) counts of the seeds of a condition, over the same images.
    scenes : (images,) int, of `find_scenes`.
    seeds : variance of the difference of means over seeds, and its df, where a grid knows more than these runs, whose
        variances are pooled otherwise. Of a row of `compare_conditions`: the square of
        (high - low) / 2 / scipy.stats.t.isf(0.025, df), and df.

    Returns
    -------
    difference, low, high, df : of the mean mIoU of a minus that of b, and its 95 % interval over seeds and images; NaN
        where one of the noises is not known, as with one run a side; never narrower than that of one noise.
    seed_std_error, seed_df, seed_low, seed_high : would other seeds change it, on these images?
    image_std_error, image_df, image_low, image_high : would other images change it, with these runs?
    """
    a, b = np.asarray(confusions_a), np.asarray(confusions_b)
    runs = np.concatenate([a, b]).swapaxes(0, 1)  # (images, runs, C, C)

    def score(total: np.ndarray) -> float:
        return float(np.mean(mean_iou(total[: len(a)])) - np.mean(mean_iou(total[len(a) :])))

    images = estimate_noise(score, runs, scenes)
    if seeds is None:
        scores, df = [mean_iou(side.sum(1)) for side in (a, b)], len(a) + len(b) - 2
        spread = sum(float(((each - each.mean()) ** 2).sum()) for each in scores)
        seeds = Noise(spread / df * (1 / len(a) + 1 / len(b)), df) if df else Noise()
    joined, difference = _add_noises(images, seeds), score(runs.sum(0))
    found = {"difference": difference}
    for name, noise in (("", joined), ("seed_", seeds), ("image_", images)):
        low, high = find_interval(difference, noise)
        found |= {f"{name}std_error": noise.std, f"{name}df": noise.df, f"{name}low": low, f"{name}high": high}
    if joined.df:  # with its larger df it may be narrower than one noise's: what holds for both holds for each
        found["low"] = min(found[f"{name}low"] for name in ("", "seed_", "image_"))
        found["high"] = max(found[f"{name}high"] for name in ("", "seed_", "image_"))
    return found


def _add_noises(first: Noise, second: Noise) -> Noise:
    """Of a sum of two independent parts, both known; Satterthwaite's degrees of freedom."""
    if not (first.df and second.df):
        return Noise()
    variance = first.variance + second.variance
    scale = first.variance**2 / first.df + second.variance**2 / second.df
    return Noise(variance, variance**2 / scale if scale else first.df + second.df)
