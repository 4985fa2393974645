"""One pass over all members: how each scores, whose errors coincide, and a sample of pixels to search weights on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from seglib.data.dataset import Subset
from seglib.data.pixels import resize_mask
from seglib.errors import InputError
from seglib.evaluation.metrics import confusion_per_image, image_miou, iou_per_class, mean_iou, pixel_accuracy
from seglib.inference.probability_store import ProbabilityStore
from seglib.inference.weighted_sum import require_alike, weighted_argmax

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
