"""Votes of many stores, image by image: soft in two means, hard with ties decided, specialists by their own classes.

All votes yield one result per image, in the order of the stores' images; memory does not grow with images or members.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from seglib.data.dataset import Subset
from seglib.data.pixels import resize_mask
from seglib.errors import InputError, require_known, require_same
from seglib.evaluation.compare import find_scenes, show_outcomes
from seglib.evaluation.metrics import confusion_per_image
from seglib.inference.stores import Store, argmax_planes, require_alike
from seglib.submission import resize_nearest

MEANS = ("arithmetic", "geometric")
THREADS = 8  # each holds a few images of probabilities
INT32 = 2**31 - 1
# Probabilities that were rounded to 0, in a logarithm: half of the smallest that is kept.
SMALLEST = {"uint8": 0.5 / 255, "float16": 2.0**-25}


def soft_vote(
    stores: Sequence[Store], weights: ArrayLike | None = None, *, mean: str = "arithmetic"
) -> Iterator[np.ndarray]:
    """Most probable class of the members' weighted mean, (S, S) uint8 per image; the lower class where two are equal.

    The arithmetic mean is a sum of whole numbers: the same on every machine and in any order of members. Weights are
    rounded to 19 bits with up to 16 classes, to 15 with 255; where a whole number up to 1000 makes all of them whole,
    as with 1, 2, 1 or 0.25, 0.3, 0.45, their ratios are exact, and so are ties.

    Parameters
    ----------
    stores : M stores of the same images, classes and size; uint8 and float16 can be mixed.
    weights : (M,) or (M, C), at least 0, any scale; None: all the same. Weights per class multiply probabilities as they
        are (arithmetic), so that a class of larger weights is predicted more often; geometric means are taken with each
        class's weights divided by their sum.
    mean : "arithmetic", or "geometric": the product of p to the power of the weight.

    Raises
    ------
    InputError
        Stores that do not belong together, weights that do not fit them, an unknown mean, or damage.
    """
    given = _check_vote(stores, weights, mean)
    if mean == "geometric":
        return map_images(lambda position: argmax_planes(_merge(stores, given, True, position)), len(stores[0]))
    return map_images(partial(_vote_exactly, stores, *_make_whole(given)), len(stores[0]))


def average_probabilities(
    stores: Sequence[Store], weights: ArrayLike | None = None, *, mean: str = "arithmetic"
) -> Iterator[np.ndarray]:
    """As `soft_vote`, but the members' mean itself: (C, S, S) float32 per image, which add up to 1."""
    given = _check_vote(stores, weights, mean)

    def average(position: int) -> np.ndarray:
        merged = _merge(stores, given, mean == "geometric", position)
        if mean == "geometric":
            merged = np.exp(merged - merged.max(0))
        return merged / merged.sum(0)

    return map_images(average, len(stores[0]))


def hard_vote(
    stores: Sequence[Store], weights: ArrayLike | None = None, *, tie_break: int | None = None
) -> Iterator[np.ndarray]:
    """Class that most members predict, by weight, (S, S) uint8 per image.

    Parameters
    ----------
    weights : (M,), at least 0; None: all the same.
    tie_break : None: of tied classes the one with the greatest weighted sum of probabilities wins; else place of the
        member who decides: see `count_votes`.
    """
    require_alike(stores)
    given = check_weights(weights, len(stores))
    if tie_break is not None and not 0 <= tie_break < len(stores):
        raise InputError(f"tie_break: required the place of a member, 0 to {len(stores) - 1}, got {tie_break}")
    first = [] if tie_break is None else [tie_break]  # then by falling weight
    order = [*first, *(each for each in np.argsort(-given, kind="stable").tolist() if each not in first)]
    by_class = np.repeat(given[:, None], len(stores[0].class_names), axis=1)

    def vote(position: int) -> np.ndarray:
        preds = np.stack([argmax_planes(store.read(position)) for store in stores])
        confidence = _merge(stores, by_class, False, position) if tie_break is None else None
        return count_votes(preds, given, by_class.shape[1], order, confidence)

    return map_images(vote, len(stores[0]))


def count_votes(
    preds: np.ndarray, weights: ArrayLike, num_classes: int, order: Sequence[int], confidence: np.ndarray | None = None
) -> np.ndarray:
    """The class with the greatest weight of votes, (H, W) uint8.

    Parameters
    ----------
    preds : (M, H, W) uint8 class ids.
    weights : (M,) at least 0.
    order : members, the first of whom voted for one of the tied classes decides; read where `confidence` is None.
    confidence : (C, H, W); of the tied classes the greatest wins, the lower class where equal.
    """
    votes = np.zeros((num_classes, preds[0].size))
    flat, pixels = preds.reshape(len(preds), -1), np.arange(preds[0].size)
    for weight, pred in zip(weights, flat, strict=True):
        votes[pred, pixels] += weight
    tied = votes >= votes.max(0) - 1e-9 * np.sum(weights)  # 0.1 + 0.2 is as much as 0.3
    if confidence is not None:
        chosen = np.where(tied, confidence.reshape(num_classes, -1), -np.inf).argmax(0)
    else:
        chosen = tied.argmax(0)
        for member in reversed(order):  # the first in order has the last word
            chosen = np.where(tied[flat[member], pixels], flat[member], chosen)
    return chosen.astype(np.uint8).reshape(preds.shape[1:])


def check_weights(weights: ArrayLike | None, members: int, classes: int = 0) -> np.ndarray:
    """(M,), or with `classes` (M, C), float64."""
    given = np.ones(members) if weights is None else np.asarray(weights, np.float64)
    fits = given.shape == (members,) or bool(classes and given.shape == (members, classes))
    if not fits or not np.isfinite(given).all() or given.min(initial=0) < 0 or (members and not given.any()):
        wanted = f"{members} weights of at least 0, one above" + (f", or {members} x {classes}" * bool(classes))
        raise InputError(f"weights: required {wanted}, got {given.tolist()}")
    return np.broadcast_to(given.reshape(members, -1), (members, classes)) if classes else given


# Specialists vote for their own classes, by weight or where they are confident.


def add_specialists(
    stores: Sequence[Store], weights: ArrayLike | None, specialists: Sequence[Store], specialist_weights: ArrayLike
) -> tuple[list[Store], np.ndarray]:
    """Stores and weights (M + K, C) of a soft vote in which K specialists take part, by their own classes alone.

    Each class's probability is the weighted mean over those who know it: a specialist counts where it says one of its
    classes, and its background counts for nothing.

    Parameters
    ----------
    weights : (M,) of the members, None: all the same.
    specialist_weights : (K,) at least 0, on the scale of `weights`.
    """
    of_member, class_names = check_weights(weights, len(stores)), stores[0].class_names
    own = [[name in store.class_names[1:] for name in class_names] for store in specialists]
    known = np.concatenate([np.ones((len(stores), len(class_names))), np.reshape(own, (-1, len(class_names)))])
    given = np.concatenate([of_member, check_weights(specialist_weights, len(specialists))])[:, None] * known
    return [*stores, *(store.name_classes(class_names) for store in specialists)], given / given.sum(0)


def follow_confident(
    masks: Iterable[np.ndarray], specialists: Sequence[Store], class_names: Sequence[str], threshold: float
) -> Iterator[np.ndarray]:
    """Masks in which a specialist decides where one of its classes has a probability above `threshold` (0..1).

    Of several the most confident decides; a specialist's background never does. `class_names` are those of the masks.
    """
    require_alike([store.name_classes(class_names) for store in specialists])
    if not 0 <= threshold <= 1:
        raise InputError(f"specialists: threshold must be a probability from 0 to 1, got {threshold}")
    places = [[list(class_names).index(name) for name in store.class_names] for store in specialists]
    return (_follow(mask, specialists, places, threshold, position) for position, mask in enumerate(masks))


def _follow(
    mask: np.ndarray, specialists: Sequence[Store], places: Sequence[Sequence[int]], threshold: float, position: int
) -> np.ndarray:
    mask, best = mask.copy(), np.full(mask.shape, threshold, np.float32)
    for store, class_ids in zip(specialists, places, strict=True):
        for class_id, p in zip(class_ids[1:], store.read_probabilities(position)[1:], strict=True):
            mask[p > best] = class_id
            np.maximum(best, p, out=best)
    return mask


# Masks against the truth.


def read_mask(truth: Subset, position: int, size: int) -> np.ndarray:
    """The mask of an image at (size, size), uint8, resized by nearest neighbour, as leaderboards do."""
    mask = truth.read(position)[1]
    return mask if len(mask) == size else resize_mask(mask, size)


def score_weighted(stores: Sequence[Store], truth: Subset, weights: ArrayLike | None = None) -> np.ndarray:
    """Confusion of the weighted vote with a subset's masks, (N, C, C) int64, truth in rows; see `soft_vote`."""
    require_alike(stores)
    require_truth(stores[0], truth)
    return count_masks(truth, soft_vote(stores, weights))


def count_masks(truth: Subset, masks: Iterable[np.ndarray]) -> np.ndarray:
    """(N, C, C) int64 of masks (S, S), truth in rows, resized to them by nearest neighbour."""
    classes = len(truth.data.class_names)
    return np.stack([count_mask(read_mask(truth, place, len(mask)), mask, classes) for place, mask in enumerate(masks)])


def count_mask(truth: np.ndarray, pred: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64 of one image's masks (S, S) uint8, truth in rows."""
    pair = (torch.from_numpy(np.array(mask, np.uint8))[None] for mask in (truth, pred))
    return confusion_per_image(*pair, classes)[0].numpy()


def require_truth(store: Store, truth: Subset) -> None:
    """Refuse a store of other images or classes than the truth's."""
    where, of, fix = store.folder, truth.data.json_path.name, "score a store with the images that it was made of"
    images = f"predictions of the {len(truth)} images of {of}"
    require_same(where, images, truth.image_ids.tolist(), store.image_ids.tolist(), fix)
    require_same(where, f"the classes of {of}", truth.data.class_names, store.class_names, fix)


def find_scenes_of(images: Subset) -> tuple[np.ndarray, str]:
    """(N,) int and words: which images belong together, see `seglib.evaluation.compare.find_scenes`."""
    return find_scenes(images.images["group"], images.images["file_name"])


def tabulate_changes(truth: Subset, before: Iterable[np.ndarray], after: Iterable[np.ndarray]) -> pd.DataFrame:
    """Valid pixels whose class differs between two sets of masks of `truth`'s images, at one size.

    Returns
    -------
    One row per image: image_id, won (right after, wrong before), lost (the other way round), wrong_both [px].
    """
    rows = []
    for position, (was, now) in enumerate(zip(before, after, strict=True)):
        outcome = show_outcomes(read_mask(truth, position, len(now)), was, now)
        _, lost, won, wrong_both = np.bincount(outcome[(was != now) & (outcome < 4)], minlength=4).tolist()
        rows.append([truth.image_ids[position], won, lost, wrong_both])
    return pd.DataFrame(rows, columns=["image_id", "won", "lost", "wrong_both"])


def read_pair(truth: Subset, position: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (size, size, 3) and mask (size, size), uint8, resized by nearest neighbour."""
    return resize_nearest(truth.read(position)[0], size), read_mask(truth, position, size)


# One image's sums.


def map_images(compute: Callable[[int], np.ndarray], count: int) -> Iterator[np.ndarray]:
    """compute(0), compute(1), ...: by threads, a few ahead of the reader (numpy lets go of the interpreter lock)."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, count, THREADS):
            yield from pool.map(compute, range(start, min(start + THREADS, count)))


def _check_vote(stores: Sequence[Store], weights: ArrayLike | None, mean: str) -> np.ndarray:
    """Weights (M, C); of a geometric mean each class's add up to 1, NaN for a class for which nobody votes."""
    require_alike(stores)
    require_known("mean", mean, MEANS, "ensemble")
    given = check_weights(weights, len(stores), len(stores[0].class_names))
    if mean == "arithmetic":
        return given
    return np.divide(given, given.sum(0), out=np.full(given.shape, np.nan), where=given.sum(0) > 0)


def _make_whole(weights: np.ndarray) -> tuple[np.ndarray, int]:
    """(M, C) int64 whose sums of 255 times the weight fit int32 when shifted; and the shift, bits that hold a class."""
    shift, heaviest = max(1, (weights.shape[1] - 1).bit_length()), weights.sum(0).max()
    limit = (INT32 >> shift) // 255 - len(weights) - 1  # each weight may be rounded up
    denominators = (number for number in range(1, 1001) if np.allclose(w := weights * number, np.round(w), 0, 1e-9))
    unit = heaviest * next(denominators, np.inf)
    scale = limit // unit * unit / heaviest if unit <= limit else limit / heaviest
    return np.round(weights * scale).astype(np.int64), shift


def _vote_exactly(stores: Sequence[Store], whole: np.ndarray, shift: int, position: int) -> np.ndarray:
    """(S, S) uint8. The class is in the low bits of its sum, turned round: one maximum finds both, the lower class first."""
    size, last = stores[0].size, (1 << shift) - 1
    total = np.empty((whole.shape[1], size, size), np.int32)
    total[:] = last - np.arange(len(total), dtype=np.int32)[:, None, None]
    for store, weights in zip(stores, whole[:, :, None, None], strict=True):
        if not weights.any():
            continue
        raw = store.read(position)
        if raw.dtype == np.uint8:
            total += np.multiply(raw, (weights << shift).astype(np.int32), dtype=np.int32)
        else:
            total += np.rint(raw.astype(np.float32) * (255 * weights).astype(np.float32)).astype(np.int32) << shift
    return (last - (total.max(0) & last)).astype(np.uint8)


def _merge(stores: Sequence[Store], weights: np.ndarray, geometric: bool, position: int) -> np.ndarray:
    """(C, S, S) float32: the weighted sum of probabilities, or of their logarithms."""
    total = np.zeros((weights.shape[1], stores[0].size, stores[0].size), np.float32)
    for store, of_class in zip(stores, weights.astype(np.float32), strict=True):
        if np.nan_to_num(of_class).any():
            values = _logarithm(store.read(position)) if geometric else store.read_probabilities(position)
            total += of_class[:, None, None] * values
    total[np.isnan(weights[0])] = -np.inf
    return total


def _logarithm(raw: np.ndarray) -> np.ndarray:
    """log p, float32, of what a store keeps; of uint8 by a table."""
    values = np.arange(256, dtype=np.float32) / 255 if raw.dtype == np.uint8 else raw
    logarithms = np.log(np.maximum(values.astype(np.float64), SMALLEST[raw.dtype.name])).astype(np.float32)
    return logarithms[raw] if raw.dtype == np.uint8 else logarithms
