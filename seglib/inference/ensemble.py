"""Ensembles: members' probabilities as a weighted sum, votes, weights by greedy selection, specialists."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from seglib.data.dataset import Subset
from seglib.data.pixels import resize_mask
from seglib.errors import InputError, unknown_name
from seglib.evaluation.compare import bootstrap_difference
from seglib.evaluation.metrics import (
    confusion_per_image,
    image_miou,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
    pooled_miou,
)
from seglib.files import replacing
from seglib.inference.postprocess import Tuned, remove_small_components
from seglib.inference.runs import Member, spread_weights
from seglib.inference.stores import (
    ProbabilityStore,
    name_classes,
    require_alike,
    score_weighted,
    take_images,
    weighted_argmax,
)
from seglib.zoo.crf import CrfParams, dense_crf

# Votes of many stores, image by image: soft in several means, hard with ties decided.


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


# One pass over all members: how each scores, whose errors coincide, and a sample of pixels to search weights on.


IGNORED = 255
DISPUTED_SHARE = 0.8  # of the sample; the rest are pixels on which all agree, which only calibration needs


@dataclass(frozen=True, eq=False)
class PixelSample:
    """Valid pixels of M members, and what is known of all others.

    Where all members predict one class, each weighted mean of theirs predicts it too. So those pixels are counted, all of
    them, in `agreed`, and only the disputed ones are drawn.

    Attributes
    ----------
    planes : (M, C, P) uint8, round(255 p)
    truth : (P,) uint8
    image : (P,) int64, position of the pixel's image
    stands_for : (P,) float64, pixels of its image that each stands for; 1 where all were drawn
    disputed : (P,) bool
    agreed : (N, C, C) int64, confusion of the pixels on which all members agree, truth in rows
    """

    planes: np.ndarray
    truth: np.ndarray
    image: np.ndarray
    stands_for: np.ndarray
    disputed: np.ndarray
    agreed: np.ndarray

    def take_images(self, chosen: np.ndarray) -> "PixelSample":
        """The pixels of some images, `chosen` (N,) bool; positions stay."""
        kept = chosen[self.image]
        return PixelSample(
            self.planes[:, :, kept], self.truth[kept], self.image[kept], self.stands_for[kept], self.disputed[kept],
            self.agreed * chosen[:, None, None],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Survey:
    """What `survey_members` found over N images of M members; counts are of all valid pixels.

    Attributes
    ----------
    confusions : (M, N, C, C) int64, truth in rows
    errors : (M, M) int64, pixels that both are wrong about
    disputed : (N,) int64, pixels on which members do not agree
    sample : PixelSample
    """

    confusions: np.ndarray
    errors: np.ndarray
    disputed: np.ndarray
    sample: PixelSample


def survey_members(stores: Sequence[ProbabilityStore], truth: Subset, pixels: int = 200_000, seed: int = 0) -> Survey:
    """Score each member and draw a sample, in one pass; memory grows with members times `pixels` alone.

    Each image gives an equal number of pixels, as many of its disputed ones as it has; a fifth are pixels on which all
    agree.

    Parameters
    ----------
    stores : M stores of `truth`'s images, see `predict_validation`.
    truth : masks of another size than the stores' are resized by nearest neighbour.
    pixels : to draw, over all images.
    seed : of the drawing.
    """
    require_alike(stores)
    _require_images(stores[0], truth)
    counted = []
    for start, preds in _predict_all(stores):
        masks = np.stack([read_mask(truth, start + image, stores[0].size) for image in range(len(preds))])
        firsts = _count(masks, preds[:, 0], len(stores[0].class_names))
        for image, (mask, of_image, first) in enumerate(zip(masks, preds, firsts, strict=True)):
            rng = np.random.default_rng((seed, start + image))
            counted.append(_survey_image(stores, start + image, mask, of_image, first, pixels // len(truth), rng))
    confusions, errors, disputed, drawn = zip(*counted, strict=True)
    return Survey(np.stack(confusions, axis=1), sum(errors), np.array(disputed), _join(drawn))


def tabulate_members(names: Sequence[str], confusions: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """One row a member: member, miou, miou_image, accuracy, then IoU by class name. confusions: (M, N, C, C)."""
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


def read_mask(truth: Subset, position: int, size: int) -> np.ndarray:
    """The mask of an image at (size, size), uint8."""
    mask = truth.read(position)[1]
    return mask if len(mask) == size else resize_mask(mask, size)


def _require_images(store: ProbabilityStore, truth: Subset) -> None:
    if not np.array_equal(store.image_ids, truth.image_ids) or list(truth.data.class_names) != store.class_names:
        raise InputError(
            f"{store.folder}: required predictions of the {len(truth)} images and the classes of"
            f" {truth.data.json_path.name}, got others; take both from predict_validation"
        )


def _predict_all(stores: Sequence[ProbabilityStore]) -> Iterator[tuple[int, np.ndarray]]:
    """Position of the first image, and each member's class ids (n, M, S, S)."""
    for blocks in zip(*(weighted_argmax([store]) for store in stores), strict=True):
        yield blocks[0][0], np.stack([preds for _, preds in blocks], axis=1)


def _survey_image(
    stores: Sequence[ProbabilityStore], position: int, mask: np.ndarray, preds: np.ndarray, first: np.ndarray, quota: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, int, PixelSample]:  # fmt: skip
    """Confusions (M, C, C), errors (M, M), disputed pixels and the drawn ones; `first` is the first member's confusion.

    Members differ in the disputed pixels alone, so only those are counted for each.
    """
    valid, classes = mask != IGNORED, len(first)
    disputed = valid & (preds != preds[0]).any(0)
    truth, votes = mask[disputed].astype(np.int64), preds[:, disputed]
    counts = np.stack([np.bincount(truth * classes + vote, minlength=classes**2) for vote in votes])
    counts = counts.reshape(-1, classes, classes)
    agreed, wrong = first - counts[0], (votes != truth).astype(np.float32)
    errors = np.round(wrong @ wrong.T).astype(np.int64) + agreed.sum() - np.trace(agreed)  # below 2^24, so exact
    share = round(max(2, quota) * DISPUTED_SHARE)
    parts = [_draw(rng, disputed, share), _draw(rng, valid & ~disputed, max(2, quota) - share)]
    return agreed + counts, errors, len(truth), _gather(stores, position, mask, parts, agreed)


def _count(masks: np.ndarray, preds: np.ndarray, classes: int) -> np.ndarray:
    return confusion_per_image(torch.from_numpy(masks), torch.from_numpy(np.ascontiguousarray(preds)), classes).numpy()


def _draw(rng: np.random.Generator, candidates: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Up to `count` places of a mask (S, S) bool, sorted, and how many each of them stands for."""
    places = np.flatnonzero(candidates)
    if len(places) <= count:
        return places, 1.0
    return np.sort(rng.choice(places, count, replace=False)), len(places) / count


def _gather(
    stores: Sequence[ProbabilityStore], position: int, mask: np.ndarray, parts: Sequence[tuple[np.ndarray, float]],
    agreed: np.ndarray,
) -> PixelSample:  # fmt: skip
    """One image's pixels, of its disputed and its agreed places."""
    places = np.concatenate([part for part, _ in parts])
    planes = np.empty((len(stores), len(stores[0].class_names), len(places)), np.uint8)
    for store, of_store in zip(stores, planes, strict=True):
        plane = np.empty(store.size**2, store.data.dtype)
        with store.open() as file:
            for class_id, out in enumerate(of_store):
                store.read_plane(file, position, class_id, plane)
                chosen = plane[places]
                out[:] = chosen if chosen.dtype == np.uint8 else np.round(255 * chosen.astype(np.float32))
    stands_for = np.concatenate([np.full(len(part), weight) for part, weight in parts])
    disputed = np.arange(len(places)) < len(parts[0][0])
    image = np.full(len(places), position, np.int64)
    return PixelSample(planes, mask.reshape(-1)[places], image, stands_for, disputed, agreed[None])


def _join(drawn: Sequence[PixelSample]) -> PixelSample:
    def join(name: str, axis: int = 0) -> np.ndarray:
        return np.concatenate([getattr(each, name) for each in drawn], axis)

    rest = ("truth", "image", "stands_for", "disputed", "agreed")
    return PixelSample(join("planes", -1), *(join(name) for name in rest))


# Pooled confusions of many weightings of one sample, fast: only disputed pixels are voted on, in whole numbers.


TALLY_CHUNK = 4096  # pixels whose scores are in the processor's caches together
WHOLE = 4096  # weights that add up to 1 are multiples of 1 / this
Scores = np.ndarray  # (C, P) int32: the weighted sum, and below it the class, so that one maximum finds both


@dataclass(frozen=True, eq=False)
class Tally:
    """The disputed pixels of a sample, ready to be counted.

    Attributes
    ----------
    planes : (M, C, P) uint8
    pairs : (P,) int64, C times the true class
    stands_for : (P,) float64
    agreed : (C, C) int64, pixels on which all members agree: the same for all weightings
    """

    planes: np.ndarray
    pairs: np.ndarray
    stands_for: np.ndarray
    agreed: np.ndarray

    @property
    def shift(self) -> int:
        """Bits that hold the class, turned round: of equal sums the lower class has the greater number."""
        return max(1, (self.planes.shape[1] - 1).bit_length())

    def start(self, factors: Sequence[int] = ()) -> Scores:
        """Scores of nobody's vote, or of members with these whole weights, of WHOLE together at most."""
        last, shape = (1 << self.shift) - 1, self.planes.shape[1:]
        scores = np.repeat(last - np.arange(shape[0], dtype=np.int32)[:, None], shape[1], axis=1)
        for member, factor in enumerate(factors):
            if factor:
                self.add(scores, member, factor)
        return scores

    def add(self, scores: Scores, member: int, factor: int = 1) -> None:
        """Add a member's vote, times `factor` (below 0: take it away)."""
        scores += np.multiply(self.planes[member], np.int32(factor << self.shift), dtype=np.int32)

    def count(self, scores: Scores, additions: Sequence[tuple[int, int]] = ((0, 0),)) -> np.ndarray:
        """Confusions (K, C, C) float64 of `scores` with each of K additions (member, factor) to it."""
        last, (classes, pixels) = np.int32((1 << self.shift) - 1), scores.shape
        factors = [np.int32(factor << self.shift) for _, factor in additions]
        best = np.empty((len(additions), pixels), np.int32)
        term = np.empty((classes, TALLY_CHUNK), np.int32)
        for start in range(0, pixels, TALLY_CHUNK):
            part = slice(start, min(start + TALLY_CHUNK, pixels))
            room = term[:, : part.stop - start]
            for row, (member, _), factor in zip(best, additions, factors, strict=True):
                np.multiply(self.planes[member, :, part], factor, out=room, dtype=np.int32)
                np.add(room, scores[:, part], out=room)
                np.max(room, axis=0, out=row[part])
        best &= last
        counts = [np.bincount(self.pairs + (last - row), self.stands_for, classes**2) for row in best]
        return np.array(counts).reshape(-1, classes, classes) + self.agreed


def open_tally(sample: PixelSample) -> Tally:
    """Make a sample ready to be counted."""
    kept = sample.disputed
    pairs = sample.truth[kept].astype(np.int64) * sample.planes.shape[1]
    return Tally(sample.planes[:, :, kept], pairs, sample.stands_for[kept], sample.agreed.sum(0))


def make_whole(weights: np.ndarray) -> list[int]:
    """Weights (M,) of any scale as whole numbers that add up to about WHOLE."""
    return np.round(WHOLE * np.asarray(weights, np.float64) / np.sum(weights)).astype(int).tolist()


# Which members and which weights: greedy selection on a sample, the best alone, or all the same.


class Selection(NamedTuple):
    """Members in the order in which greedy selection drew them (any may come again), and the pooled mIoU after each."""

    drawn: list[int]
    miou: list[float]


def score_weights(sample: PixelSample, weights: np.ndarray) -> float:
    """Pooled mIoU of a weighted mean (M,), on the sample."""
    tally = open_tally(sample)
    return mean_iou(tally.count(tally.start(make_whole(weights)))[0])


def select_greedily(sample: PixelSample, draws: int = 0) -> Selection:
    """Draw members one after another, each the one that makes the mean of the drawn ones best by pooled mIoU.

    Any may be drawn again, which gives it weight; the first is the best member. Of equals the earlier is drawn.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models.

    Parameters
    ----------
    draws : 0 is the number of members, at least 10.
    """
    tally, members = open_tally(sample), len(sample.planes)
    scores, path = tally.start(), Selection([], [])
    for _ in range(draws or max(10, members)):
        found = [mean_iou(confusion) for confusion in tally.count(scores, [(member, 1) for member in range(members)])]
        path.drawn.append(int(np.argmax(found)))
        path.miou.append(max(found))
        tally.add(scores, path.drawn[-1])
    return path


def weigh_path(path: Selection, members: int) -> np.ndarray:
    """(M,) weights that add up to 1: how often each was drawn up to the best mIoU of a path, the first of equals."""
    best = int(np.argmax(path.miou)) + 1
    return np.bincount(path.drawn[:best], minlength=members) / best


def find_greedy(sample: PixelSample) -> np.ndarray:
    """Weights of greedy selection."""
    return weigh_path(select_greedily(sample), len(sample.planes))


def find_mean(sample: PixelSample) -> np.ndarray:
    """Equal weights, searched for by nobody."""
    return np.full(len(sample.planes), 1 / len(sample.planes))


def find_best(sample: PixelSample) -> np.ndarray:
    """All weight on the member with the best pooled mIoU, the first of equals."""
    alone = np.eye(len(sample.planes))
    return alone[int(np.argmax([score_weights(sample, of_member) for of_member in alone]))]


SEARCHES = {"best": find_best, "greedy": find_greedy}


# Whether searched weights are worth it: scored on images that the search did not see, against the plain mean.


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


# What a vote changed, image by image: pixels won and lost against one member, and the pictures that show it.


KINDS = ("won", "lost", "wrong_both")


def tabulate_changes(truth: Subset, before: Votes, after: Votes) -> pd.DataFrame:
    """Valid pixels whose class the vote changed; both votes are of `truth`'s images, at one size.

    Returns
    -------
    One row an image: image_id, won (right after, wrong before), lost (the other way round), wrong_both [px].
    """
    rows = []
    for (start, old), (_, new) in zip(before, after, strict=True):
        for image, (was, now) in enumerate(zip(old, new, strict=True)):
            mask = read_mask(truth, start + image, len(now))
            changed = (was != now) & (mask != IGNORED)
            won, lost = int((changed & (now == mask)).sum()), int((changed & (was == mask)).sum())
            rows.append([truth.image_ids[start + image], won, lost, int(changed.sum()) - won - lost])
    return pd.DataFrame(rows, columns=["image_id", *KINDS])


def choose_changes(table: pd.DataFrame, count: int) -> tuple[list[int], list[str]]:
    """Positions and titles of images: half of them where most was won, net, half where most was lost; at least 2."""
    order = np.argsort(table["lost"].to_numpy() - table["won"].to_numpy(), kind="stable")
    count = min(max(2, count), len(order))
    chosen = [int(place) for place in (*order[: (count + 1) // 2], *order[len(order) - count // 2 :][::-1])]
    rows = [table.iloc[place] for place in chosen]
    return chosen, [f"image {row['image_id']}\nwon {row['won']} px\nlost {row['lost']} px" for row in rows]


def read_pictures(truth: Subset, positions: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, size, size, 3) and masks (n, size, size), uint8, resized by nearest neighbour."""
    images = []
    for position in positions:
        image = truth.read(position)[0]
        index = np.arange(size) * len(image) // size
        images.append(image[np.ix_(index, index)])
    return np.stack(images), np.stack([read_mask(truth, position, size) for position in positions])


# Class specialists in an ensemble: they vote for their own classes, by weight or where they are confident.


def add_specialists(
    stores: Sequence[ProbabilityStore],
    weights: ArrayLike | None,
    specialists: Sequence[ProbabilityStore],
    specialist_weights: ArrayLike,
) -> tuple[list[ProbabilityStore], np.ndarray]:
    """Stores and weights (M + K, C) of a soft vote in which K specialists take part, by their own classes alone.

    Each class's probability is the weighted mean over those who know it: a specialist counts where it says one of its
    classes, and its background counts for nothing.

    Parameters
    ----------
    weights : (M,) of the members, None: all the same.
    specialist_weights : (K,) at least 0, on the scale of `weights`.
    """
    of_member, class_names = check_weights(weights, len(stores)), stores[0].class_names
    own = np.array([[name in store.class_names[1:] for name in class_names] for store in specialists], np.float64)
    known = np.concatenate([np.ones((len(stores), len(class_names))), own.reshape(-1, len(class_names))])
    given = np.concatenate([of_member, check_weights(specialist_weights, len(specialists))])[:, None] * known
    return [*stores, *(name_classes(store, class_names) for store in specialists)], given / given.sum(0)


def follow_confident(
    votes: Votes, specialists: Sequence[ProbabilityStore], class_names: Sequence[str], threshold: float
) -> Votes:
    """Votes in which a specialist decides where one of its classes has a probability above `threshold` (0..1).

    Of several the most confident decides; a specialist's background never does. `class_names` are those of the votes.
    """
    views = [name_classes(store, class_names) for store in specialists]
    require_alike(views)
    if not 0 <= threshold <= 1:
        raise InputError(f"specialists: threshold must be a probability from 0 to 1, got {threshold}")
    return _follow(votes, specialists, views, threshold)


def _follow(
    votes: Votes, specialists: Sequence[ProbabilityStore], views: Sequence[ProbabilityStore], threshold: float
) -> Votes:
    with ExitStack() as opened:
        files = [opened.enter_context(view.open()) for view in views]
        for start, preds in votes:
            preds = preds.copy()
            for image, pred in enumerate(preds):
                best = np.full(pred.shape, threshold, np.float32)
                for store, view, file in zip(specialists, views, files, strict=True):
                    for name in store.class_names[1:]:
                        class_id = view.class_names.index(name)
                        plane = np.empty(pred.size, view.data.dtype)
                        view.read_plane(file, start + image, class_id, plane)
                        p = decode_table(view.data.dtype)[plane.view(index_dtype(plane.dtype))].reshape(pred.shape)
                        pred[p > best] = class_id
                        np.maximum(best, p, out=best)
            yield start, preds


# What validation decided about an ensemble, applied to any images: vote, specialists, CRF, removal of components.


Stores = Sequence[ProbabilityStore]


@dataclass(frozen=True)
class KeptMasks:
    """Masks (N, S, S) uint8 in a .npy file, read where they are looked at: mapped pages would count as memory."""

    path: Path
    shape: tuple[int, int, int]
    offset: int  # of the first mask [bytes]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | Sequence[int]) -> np.ndarray:
        if isinstance(key, slice):
            key = range(len(self))[key]
        if not isinstance(key, int | np.integer):
            return np.stack([self[int(place)] for place in key])
        if not 0 <= key < len(self):
            raise IndexError(key)  # what ends a for loop over the masks
        side = self.shape[1]
        return np.fromfile(self.path, np.uint8, side * side, offset=self.offset + int(key) * side * side).reshape(
            side, side
        )


@dataclass(frozen=True, eq=False)
class Decisions:
    """How the members' probabilities become masks.

    Attributes
    ----------
    vote : "soft", "geometric" or "hard"
    weights : (M,) of the members
    tie_break : place of the member who decides ties of a hard vote; None for the surest class
    specialist_weight : of each specialist in a soft vote, on the scale of `weights`; 0 for none
    specialist_confidence : above which a specialist decides; 0 for never
    crf, components : None, or what was found; only what is on is used
    """

    vote: str
    weights: np.ndarray
    tie_break: int | None = None
    specialist_weight: float = 0.0
    specialist_confidence: float = 0.0
    crf: Tuned | None = None
    components: Tuned | None = None

    def for_runs(self, members: Sequence[Member]) -> "Decisions":
        """The same for one store a run, as `predict_test` gives them, where a member may be several folds."""
        counts = [len(member.folders) for member in members]
        first = None if self.tie_break is None else sum(counts[: self.tie_break])
        return replace(self, weights=spread_weights(members, self.weights), tie_break=first)

    def describe(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(replace(self, weights=0)) | {"weights": self.weights.tolist()}


def name_sources(stores: Stores) -> list[dict[str, str]]:
    """Grid and run, and the hash of the weights, of each store: what a submission's record names."""
    runs = [store.folder.parents[1] for store in stores]  # <grid>/<run>/probabilities/<store>
    return [
        {"run": f"{run.parent.name}/{run.name}", "weights_sha256": store.facts["weights_sha256"]}
        for run, store in zip(runs, stores, strict=True)
    ]


def average(decisions: Decisions, stores: Stores, specialists: Stores) -> Votes:
    """Merged probabilities, an image at a time: start, (1, C, S, S) float32. Of a hard vote, the soft one's."""
    stores, options = gather_voters(decisions, stores, specialists)
    return average_probabilities(stores, **options)


def gather_voters(decisions: Decisions, stores: Stores, specialists: Stores) -> tuple[Stores, dict[str, Any]]:
    """All stores that vote by weight, and `weights` and `mean` as the functions of `ensemble` take them."""
    weights = decisions.weights
    if len(specialists) and decisions.specialist_weight:
        own = np.full(len(specialists), decisions.specialist_weight)
        stores, weights = add_specialists(stores, weights, specialists, own)
    mean = "geometric" if decisions.vote == "geometric" else "arithmetic"
    return stores, {"weights": weights, "mean": mean}


def predict_masks(
    decisions: Decisions, stores: Stores, specialists: Stores, images: Subset, device: torch.device
) -> Votes:
    """Masks: position of the first image, (n, S, S) uint8.

    Parameters
    ----------
    stores, specialists : of `images`, in their order.
    """
    if decisions.crf and decisions.crf.on:
        votes = _refine(average(decisions, stores, specialists), decisions.crf, images, device)
    else:
        votes = _vote(decisions, stores, specialists)
    if len(specialists) and decisions.specialist_confidence:
        votes = follow_confident(votes, specialists, stores[0].class_names, decisions.specialist_confidence)
    return remove_components(votes, decisions.components)


def remove_components(votes: Votes, components: Tuned | None) -> Votes:
    """Masks without their small components, where that is on."""
    for start, preds in votes:
        if components and components.on:
            preds = np.stack([remove_small_components(pred, components.chosen) for pred in preds])
        yield start, preds


def split_masks(masks: KeptMasks) -> Votes:
    """Masks that were kept, an image at a time."""
    return ((image, masks[image : image + 1]) for image in range(len(masks)))


def name_images(votes: Votes, images: Subset) -> Iterator[tuple[str, np.ndarray]]:
    """File name and mask (or probabilities) of each image, as `write_submission` takes them."""
    names = images.data.images["file_name"].to_numpy()[images.indices]
    for start, results in votes:
        yield from zip(names[start : start + len(results)], results, strict=True)


def count_masks(truth: Subset, masks: KeptMasks) -> np.ndarray:
    """(N, C, C) int64 of masks (N, S, S), truth in rows, resized to them by nearest neighbour."""
    pairs, num_classes = MaskPairs(truth, masks), len(truth.data.class_names)
    counts = [
        confusion_per_image(*(torch.from_numpy(np.array(mask))[None] for mask in pair), num_classes) for pair in pairs
    ]
    return torch.cat(counts).numpy()


def keep_masks(path: str | Path, votes: Votes, images: int, size: int) -> KeptMasks:
    """Write masks as they come; the file is there when it is whole."""
    shape = (images, size, size)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        offset = file.tell()
        for _, preds in votes:
            file.write(np.ascontiguousarray(preds, np.uint8).tobytes())
    return KeptMasks(Path(path), shape, offset)


@dataclass(frozen=True, eq=False)
class Samples:
    """Some of the images for `search_crf`: samples[i] is (image (S, S, 3), probabilities (C, S, S), truth (S, S))."""

    decisions: Decisions
    stores: Stores
    specialists: Stores
    truth: Subset
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = [int(self.positions[number])]
        stores, specialists = (
            [take_images(store, position) for store in group] for group in (self.stores, self.specialists)
        )
        ((_, probabilities),) = average(self.decisions, stores, specialists)
        images, masks = read_pictures(self.truth, position, self.stores[0].size)
        return images[0], probabilities[0], masks[0]


@dataclass(frozen=True, eq=False)
class MaskPairs:
    """pairs[i] is (truth, pred) of an image, (S, S) uint8 both, for `tune_min_pixels`."""

    truth: Subset
    preds: KeptMasks

    def __len__(self) -> int:
        return len(self.preds)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        pred = self.preds[number]
        return read_mask(self.truth, number, len(pred)), pred


def gains_in_both_halves(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the pooled mIoU gains in the first and in the second half of the images, and in all; both (N, C, C)."""
    half = len(before) // 2
    parts = (slice(half), slice(half, None), slice(None))
    return all(pooled_miou(after[part]) > pooled_miou(before[part]) for part in parts)


def _vote(decisions: Decisions, stores: Stores, specialists: Stores) -> Votes:
    if decisions.vote == "hard":
        return hard_vote(stores, decisions.weights, tie_break=decisions.tie_break)
    stores, options = gather_voters(decisions, stores, specialists)
    return soft_vote(stores, **options)


def _refine(votes: Votes, crf: Tuned, images: Subset, device: torch.device) -> Iterator[tuple[int, np.ndarray]]:
    params = CrfParams(**crf.chosen)
    for start, probabilities in votes:
        pictures, _ = read_pictures(images, [start], probabilities.shape[-1])
        refined = dense_crf(pictures[0], probabilities[0], params, device)
        yield start, refined.argmax(0)[None].astype(np.uint8)
