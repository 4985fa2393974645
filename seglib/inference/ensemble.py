"""Votes of many stores, image by image: soft in several means, hard with ties decided."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from seglib.errors import InputError, unknown_name
from seglib.inference.probability_store import ProbabilityStore
from seglib.inference.weighted_sum import require_alike, weighted_argmax

MEANS = ("arithmetic", "geometric")
BLOCK = 32  # images given out at a time
THREADS = 8
# Probabilities that were rounded to 0, in a logarithm: half of what can be told from 0.
SMALLEST = {"uint8": 0.5 / 255, "float16": 2.0**-25}
Votes = Iterator[tuple[int, np.ndarray]]
_buffers = threading.local()


@dataclass(frozen=True, eq=False)
class _Vote:
    """A soft vote that was checked: weights (M, C), and a table a store of what each stored number counts for."""

    stores: Sequence[ProbabilityStore]
    weights: np.ndarray
    tables: Sequence[np.ndarray]
    geometric: bool


def soft_vote(
    stores: Sequence[ProbabilityStore],
    weights: ArrayLike | None = None,
    *,
    mean: str = "arithmetic",
) -> Votes:
    """Most probable class of the members' mean; the lower class where two are equal.

    The arithmetic mean is `weighted_argmax`: exact, and fastest. Memory does not grow with images
    or members.

    Parameters
    ----------
    stores : M stores of the same images, classes and size.
    weights : (M,) or (M, C), at least 0, any scale; None: all the same. Weights of their own a class multiply
        probabilities as they are (arithmetic), so that a class of larger weights is predicted more often; geometric
        means are taken with each class's weights divided by their sum.
    mean : "arithmetic", or "geometric": the product of p to the power of the weight.

    Yields
    ------
    start, preds : position of the first image, and (n, S, S) uint8 class ids of up to 32 images.

    Raises
    ------
    InputError
        Stores that do not belong together, weights that do not fit them, an unknown mean, or damage.
    """
    if mean == "arithmetic":
        return weighted_argmax(stores, weights)
    vote = _check_vote(stores, weights, mean)
    return _stream(vote.stores, lambda files, position: argmax_planes(_merge(vote, files, position)))


def average_probabilities(
    stores: Sequence[ProbabilityStore],
    weights: ArrayLike | None = None,
    *,
    mean: str = "arithmetic",
) -> Votes:
    """As `soft_vote`, yielding one image at a time with its probabilities (1, C, S, S) float32, which add up to 1."""
    vote = _check_vote(stores, weights, mean)

    def average(files: list, position: int) -> np.ndarray:
        merged = _merge(vote, files, position)
        if vote.geometric:
            merged = np.exp(merged - merged.max(0))
        return merged / merged.sum(0)

    return _stream(stores, average, block=1)


def hard_vote(
    stores: Sequence[ProbabilityStore], weights: ArrayLike | None = None, *, tie_break: int | None = None
) -> Votes:
    """Class that most members predict, by weight.

    Parameters
    ----------
    weights : (M,), at least 0; None: all the same.
    tie_break : None: of tied classes the one with the greatest weighted sum of probabilities wins; else place of the
        member who decides: see `count_votes`.

    Yields and errors are those of `soft_vote`.
    """
    vote = _check_vote(stores, check_weights(weights, len(stores)), "arithmetic")
    return _vote_hard(vote, order_ties(vote.weights[:, 0], tie_break), tie_break is None)


def _vote_hard(vote: _Vote, order: Sequence[int], by_confidence: bool) -> Votes:
    of_member, num_classes = vote.weights[:, 0], len(vote.stores[0].class_names)
    with ExitStack() as opened, ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        files = [opened.enter_context(store.open()) for store in vote.stores]
        for blocks in zip(*(weighted_argmax([store]) for store in vote.stores), strict=True):
            start, preds = blocks[0][0], np.stack([preds for _, preds in blocks], axis=1)

            def count(image: int, start: int = start, preds: np.ndarray = preds) -> np.ndarray:
                confide = partial(_confide, vote, files, start + image) if by_confidence else None
                return count_votes(preds[image], of_member, num_classes, order, confide)

            yield start, np.stack(list(pool.map(count, range(len(preds)))))


def count_votes(
    preds: np.ndarray,
    weights: ArrayLike,
    num_classes: int,
    order: Sequence[int],
    confide: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """The class with the greatest weight of votes.

    Parameters
    ----------
    preds : (M, ...) uint8 class ids.
    weights : (M,) at least 0.
    order : members, the first of whom voted for one of the tied classes decides; read where `confide` is None.
    confide : gives confidences (C, K) at K places of the flattened mask; of the tied classes the greatest wins, the
        lower class where equal.

    Returns
    -------
    (...) uint8
    """
    weights, result = np.asarray(weights, np.float64), preds[int(np.argmax(weights))].reshape(-1).copy()
    places = np.flatnonzero((preds != preds[0]).any(0))  # where all agree nothing is to be counted
    flat = preds.reshape(len(preds), -1)[:, places]
    votes, pixels = np.zeros((num_classes, len(places))), np.arange(len(places))
    for weight, pred in zip(weights, flat, strict=True):
        votes[pred, pixels] += weight
    tied = votes >= votes.max(0) - 1e-9 * weights.sum()  # 0.1 + 0.2 is as much as 0.3
    chosen, drawn = tied.argmax(0), np.flatnonzero(tied.sum(0) > 1)
    if confide is not None:
        chosen[drawn] = np.where(tied[:, drawn], confide(places[drawn]), -np.inf).argmax(0)
    else:
        for member in reversed(order):  # the first in order has the last word
            choice = flat[member, drawn]
            decides = tied[choice, drawn]
            chosen[drawn[decides]] = choice[decides]
    result[places] = chosen
    return result.reshape(preds.shape[1:])


def _check_vote(stores: Sequence[ProbabilityStore], weights: ArrayLike | None, mean: str) -> _Vote:
    require_alike(stores)
    if mean not in MEANS:
        raise InputError(f"ensemble: {unknown_name('mean', mean, MEANS)}")
    given, geometric = check_weights(weights, len(stores), len(stores[0].class_names)), mean == "geometric"
    if geometric:
        given = np.divide(given, given.sum(0), out=np.full(given.shape, np.nan), where=given.sum(0) > 0)
    tables = [_tabulate(store.data.dtype, geometric) for store in stores]
    return _Vote(stores, given.astype(np.float32), tables, geometric)


def argmax_planes(planes: np.ndarray) -> np.ndarray:
    """(C, ...) -> (...) uint8, the lower class where equal; a plane at a time is faster than numpy's argmax over axis 0."""
    best, pred = planes[0].copy(), np.zeros(planes.shape[1:], np.uint8)
    for class_id, plane in enumerate(planes[1:], 1):
        np.copyto(pred, np.uint8(class_id), where=plane > best)
        np.maximum(best, plane, out=best)
    return pred


def check_weights(weights: ArrayLike | None, members: int, classes: int = 0) -> np.ndarray:
    """(M,), or with `classes` (M, C), float64."""
    given = np.ones(members) if weights is None else np.asarray(weights, np.float64)
    shapes = [(members,), *([(members, classes)] if classes else [])]
    if (
        given.shape not in shapes
        or not np.isfinite(given).all()
        or given.min(initial=0) < 0
        or (members and not given.any())
    ):
        wanted = f"{members} weights of at least 0, one above" + (f", or {members} x {classes}" * bool(classes))
        raise InputError(f"weights: required {wanted}, got {given.tolist()}")
    return np.broadcast_to(given.reshape(members, -1), (members, classes)) if classes else given


def order_ties(weights: np.ndarray, tie_break: int | None) -> list[int]:
    """Who decides ties: the one that is named, then by falling weight."""
    order = np.argsort(-weights, kind="stable").tolist()
    if tie_break is None:
        return order
    if not 0 <= tie_break < len(order):
        raise InputError(f"tie_break: required the place of a member, 0 to {len(order) - 1}, got {tie_break}")
    return [tie_break, *(member for member in order if member != tie_break)]


def decode_table(dtype: np.dtype) -> np.ndarray:
    """Probability of each number that a store of this dtype can hold, float32; of float16 by its 16 bits."""
    if dtype == np.uint8:
        return np.arange(256, dtype=np.float32) / 255
    return np.arange(0x3C01, dtype=np.uint16).view(np.float16).astype(np.float32)  # to 1.0


def index_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8 if dtype == np.uint8 else np.uint16)


def _tabulate(dtype: np.dtype, logarithm: bool) -> np.ndarray:
    """p, or its logarithm, of each number that a store can hold."""
    p = decode_table(dtype)
    return np.log(np.maximum(p.astype(np.float64), SMALLEST[dtype.name])).astype(np.float32) if logarithm else p


def _merge(vote: _Vote, files: list, position: int) -> np.ndarray:
    """(C, S, S) float32: the weighted sum of what the tables say."""
    total = np.zeros(vote.stores[0].data.shape[1:], np.float32).reshape(len(vote.stores[0].class_names), -1)
    for store, file, weights, table in zip(vote.stores, files, vote.weights, vote.tables, strict=True):
        if not np.nan_to_num(weights).any():
            continue
        raw = _read(store, file, position).reshape(total.shape)
        total += weights[:, None] * table[raw.view(index_dtype(raw.dtype))]
    total[np.isnan(vote.weights[0])] = -np.inf  # a class for which nobody votes, of a geometric mean
    return total.reshape(vote.stores[0].data.shape[1:])


def _confide(vote: _Vote, files: list, position: int, places: np.ndarray) -> np.ndarray:
    """(C, K) float32: the weighted sum of probabilities at some places of an image."""
    total = np.zeros((len(vote.stores[0].class_names), len(places)), np.float32)
    for store, file, weights, table in zip(vote.stores, files, vote.weights, vote.tables, strict=True):
        raw = _read(store, file, position).reshape(len(total), -1)[:, places]
        total += weights[:, None] * table[raw.view(index_dtype(raw.dtype))]
    return total


def _read(store: ProbabilityStore, file, position: int) -> np.ndarray:
    """One image as it is stored, (C, S, S), in this thread's memory until the next."""
    key = f"{store.data.dtype} {store.data.shape[1:]}"
    if not hasattr(_buffers, key):
        setattr(_buffers, key, np.empty(store.data.shape[1:], store.data.dtype))
    raw = getattr(_buffers, key)
    for class_id, plane in enumerate(raw):
        store.read_plane(file, position, class_id, plane.reshape(-1))
    return raw


def _stream(
    stores: Sequence[ProbabilityStore], compute: Callable[[list, int], np.ndarray], block: int = BLOCK
) -> Votes:
    with ExitStack() as opened, ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        files = [opened.enter_context(store.open()) for store in stores]
        for start in range(0, len(stores[0]), block):
            stop = min(start + block, len(stores[0]))
            yield start, np.stack(list(pool.map(lambda position: compute(files, position), range(start, stop))))
