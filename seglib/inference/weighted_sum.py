"""The weighted vote of many stores: a sum of probabilities and its argmax, streamed, in whole numbers."""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import ArrayLike

from seglib.data.dataset import Subset
from seglib.data.pixels import resize_mask
from seglib.errors import InputError
from seglib.evaluation.metrics import confusion_per_image
from seglib.inference.probability_store import ProbabilityStore

BLOCK = 32  # images given out at a time
CHUNK = 65_536  # pixels whose sums are in the processor's second cache together
THREADS = 8
INT32 = 2**31 - 1
_buffers = threading.local()


def weighted_argmax(
    stores: Sequence[ProbabilityStore], weights: ArrayLike | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Class with the greatest weighted sum of probabilities at each pixel; the lower class where two are equal.

    Sums are of whole numbers, so that the result is the same on every machine and in any order of members. Weights are
    rounded to 19 bits with up to 16 classes, to 15 with 255; where a whole number up to 1000 makes all of them whole,
    as with 1, 2, 1 or 0.25, 0.3, 0.45, their ratios are exact, and so are ties.
    Ten members of 1,500 images, 12 classes, 256 px take 7 s of one processor (tests/benchmarks/weighted_sum.py); in
    memory are a few planes S x S a thread, however many stores and images there are.

    Parameters
    ----------
    stores : M stores of the same images, classes and size; uint8 and float16 can be mixed.
    weights : (M,), or (M, C) for weights of their own a class; at least 0, any scale. None: all the same.

    Yields
    ------
    start, preds : position of the first image, and (n, S, S) uint8 class ids of up to 32 images.

    Raises
    ------
    InputError
        Stores that do not belong together, weights that do not fit them, or damage.
    """
    require_alike(stores)
    shift = max(1, (len(stores[0].class_names) - 1).bit_length())
    whole = _whole_weights(stores, weights, shift)
    return _vote(stores, whole, shift)


def score_weighted(stores: Sequence[ProbabilityStore], subset: Subset, weights: ArrayLike | None = None) -> np.ndarray:
    """Confusion of the weighted vote with a subset's masks, (N, C, C) int64, truth in rows; see `weighted_argmax`.

    Masks of another size than the stores' are resized by nearest neighbour, as leaderboards do.

    Raises
    ------
    InputError
        Other images or classes, too.
    """
    _require_truth(stores[0], subset)
    size, classes, counts = stores[0].size, len(stores[0].class_names), []
    for start, preds in weighted_argmax(stores, weights):
        truths = [subset.read(start + image)[1] for image in range(len(preds))]
        truth = np.stack([mask if len(mask) == size else resize_mask(mask, size) for mask in truths])
        counts.append(confusion_per_image(torch.from_numpy(truth), torch.from_numpy(preds), classes).numpy())
    return np.concatenate(counts)


def score_store(store: ProbabilityStore, subset: Subset) -> np.ndarray:
    """Confusion of one store's most probable classes, (N, C, C) int64, truth in rows; see `score_weighted`."""
    return score_weighted([store], subset)


def require_alike(stores: Sequence[ProbabilityStore]) -> None:
    """Refuse stores whose pixels cannot be added.

    Raises
    ------
    InputError
        There is none, or one has other images, classes or another size than the first.
    """
    if not stores:
        raise InputError("ensemble: required at least one store of probabilities, got none; name a member")
    first = stores[0]
    for store in stores[1:]:
        if store.class_names != first.class_names:
            got = f"{', '.join(store.class_names)} instead of {', '.join(first.class_names)}"
            raise InputError(
                f"{store.folder}: required the classes of {first.folder}, got {got}; leave this member out"
            )
        if store.size != first.size:
            raise InputError(
                f"{store.folder}: required {first.size} px as in {first.folder}, got {store.size} px; predict both at one size"
            )
        if not np.array_equal(store.image_ids, first.image_ids):
            raise InputError(
                f"{store.folder}: required the {len(first)} images of {first.folder}, got {len(store)} or others;"
                " predict both for the same images"
            )


def _require_truth(store: ProbabilityStore, subset: Subset) -> None:
    if not np.array_equal(store.image_ids, subset.image_ids):
        raise InputError(
            f"{store.folder}: required predictions of the {len(subset)} images of {subset.data.json_path.name}, got"
            f" {len(store)} or others; score a store with the images that it was made of"
        )
    if list(subset.data.class_names) != store.class_names:
        raise InputError(
            f"{store.folder}: required the classes of {subset.data.json_path.name}"
            f" ({', '.join(subset.data.class_names)}), got {', '.join(store.class_names)}"
        )


def _whole_weights(stores: Sequence[ProbabilityStore], weights: ArrayLike | None, shift: int) -> np.ndarray:
    """(M, C) int64 whose sums of 255 times the weight, shifted by `shift`, fit int32."""
    members, classes = len(stores), len(stores[0].class_names)
    given = np.ones(members) if weights is None else np.asarray(weights, np.float64)
    if given.shape not in ((members,), (members, classes)):
        raise InputError(
            f"weights: required {members}, one a member, or {members} x {classes} for classes of their own, got {given.shape}"
        )
    given = np.broadcast_to(given.reshape(members, -1), (members, classes))
    heaviest = given.sum(0).max()
    if not np.isfinite(heaviest) or given.min() < 0 or heaviest == 0:
        raise InputError(f"weights: required numbers of at least 0, one above, got {given.tolist()}")
    limit = (INT32 >> shift) // 255 - members - 1  # each weight may be rounded up
    unit = heaviest * _find_denominator(given)
    return np.round(given * (limit // unit * unit / heaviest if unit <= limit else limit / heaviest)).astype(np.int64)


def _find_denominator(weights: np.ndarray) -> float:
    """Smallest whole number up to 1000 that makes all weights whole: 20 for 0.25 and 0.3; infinity if there is none."""
    for number in range(1, 1001):
        if np.allclose(weights * number, np.round(weights * number), rtol=0, atol=1e-9):
            return number
    return np.inf


def _vote(stores: Sequence[ProbabilityStore], whole: np.ndarray, shift: int) -> Iterator[tuple[int, np.ndarray]]:
    with ExitStack() as opened, ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        files = [opened.enter_context(store.open()) for store in stores]
        for start in range(0, len(stores[0]), BLOCK):
            stop = min(start + BLOCK, len(stores[0]))
            preds = pool.map(lambda position: _vote_image(stores, files, whole, shift, position), range(start, stop))
            yield start, np.stack(list(preds))


def _vote_image(
    stores: Sequence[ProbabilityStore], files: Sequence[BinaryIO], whole: np.ndarray, shift: int, position: int
) -> np.ndarray:
    """(S, S) uint8. The class is in the low bits of its sum, turned round: one maximum finds both, the lower class first."""
    size, last = stores[0].size, (1 << shift) - 1
    total, best = _buffer("total", np.int32, size * size), _buffer("best", np.int32, size * size)
    best.fill(-1)
    for class_id in range(len(stores[0].class_names)):
        total.fill(last - class_id)
        for store, file, weight in zip(stores, files, whole[:, class_id].tolist(), strict=True):
            if weight:
                plane = _buffer("plane", store.data.dtype, size * size)
                store.read_plane(file, position, class_id, plane)
                _add(total, plane, weight, shift)
        np.maximum(best, total, out=best)
    return (last - (best & last)).astype(np.uint8).reshape(size, size)


def _add(total: np.ndarray, plane: np.ndarray, weight: int, shift: int) -> None:
    """total += (255 * weight * probability) << shift, all (S * S,)."""
    for start in range(0, len(total), CHUNK):
        part, values = total[start : start + CHUNK], plane[start : start + CHUNK]
        term = _buffer("term", np.int32, len(part))
        if values.dtype == np.uint8:
            np.multiply(values, np.int32(weight << shift), out=term, dtype=np.int32, casting="unsafe")
        else:
            np.copyto(term, np.rint(values.astype(np.float32) * np.float32(255 * weight)), casting="unsafe")
            np.left_shift(term, shift, out=term)
        np.add(part, term, out=part)


def _buffer(name: str, dtype: np.dtype, count: int) -> np.ndarray:
    """This thread's array of that name: memory that is used again stays in the processor's cache."""
    key = f"{name} {np.dtype(dtype)} {count}"
    if not hasattr(_buffers, key):
        setattr(_buffers, key, np.empty(count, dtype))
    return getattr(_buffers, key)
