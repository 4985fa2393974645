"""What follows a prediction: thresholds by class, small components, the CRF."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt

from seglib.data.coco import CocoData
from seglib.errors import InputError
from seglib.evaluation.errors import measure_objects, summarise_objects
from seglib.evaluation.metrics import confusion_matrix, mean_iou
from seglib.zoo.crf import CrfParams, dense_crf

# Small connected components of a predicted mask are given to what surrounds them.


def remove_small_components(mask: np.ndarray, min_pixels: Sequence[int]) -> np.ndarray:
    """Remove components (8 neighbours) of fewer than `min_pixels[class]` pixels.

    All small components go at once, and each of their pixels takes the class of the nearest pixel that stays: the class
    around a speck, or the nearer one where it lies between two. No probabilities are needed, so that votes and submission
    files can be cleaned too. Where nothing would stay the mask is left as it is.

    Parameters
    ----------
    mask
        (H, W) uint8 class ids.
    min_pixels
        One number a class [px], 0 keeps all of its components; that of the background fills small holes.

    Returns
    -------
    (H, W) uint8, a new array.

    Raises
    ------
    InputError
        A mask of another type or shape, or with an id that has no number.
    """
    _check_mask(mask, min_pixels)
    removed = np.zeros(mask.shape, bool)
    for class_id in np.unique(mask):
        if min_pixels[class_id] > 1:
            removed |= _find_small(mask == class_id, min_pixels[class_id])
    if removed.all() or not removed.any():
        return mask.copy()
    rows, columns = distance_transform_edt(removed, return_distances=False, return_indices=True)
    return mask[rows, columns]


def _find_small(is_class: np.ndarray, min_pixels: int) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(is_class.view(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_pixels
    small[0] = False  # all that is not of the class
    return small[labels]


def _check_mask(mask: np.ndarray, min_pixels: Sequence[int]) -> None:
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(
            f"remove_small_components: mask must be (H, W) uint8 class ids, got {mask.shape} {mask.dtype};"
            " pass probabilities.argmax(0).astype(np.uint8)"
        )
    if mask.size and mask.max() >= len(min_pixels):
        raise InputError(
            f"remove_small_components: min_pixels must have a number for every class, got {len(min_pixels)} and a mask with"
            f" class id {mask.max()}; give one number a class, background included"
        )


# Choose the post-processing on validation images, estimate what it gains on others, switch it off where it does not.


MIN_PIXELS = (0, 4, 8, 16, 32, 64, 128, 256, 512)  # tried for each class
CRF_VALUES = {  # drawn from by draw_crf_candidates; pixels at an image size of 256 px
    "smoothness_weight": (0.5, 1.0, 2.0, 4.0),
    "smoothness_sigma": (1.0, 2.0, 4.0),
    "appearance_weight": (1.0, 2.0, 4.0, 8.0),
    "appearance_sigma": (10.0, 20.0, 40.0, 80.0),
    "colour_sigma": (4.0, 8.0, 13.0, 20.0),
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tuned:
    """What a search found; `dataclasses.asdict` of it goes into a record.

    Attributes
    ----------
    step : "crf" or "components"
    on : whether the step is worth using: what was chosen on either half of the images gains mIoU on the other half, and
        over both together
    chosen : what was chosen on all images: fields of CrfParams or one number of pixels a class; None where that is "off"
    miou_before : pooled mIoU of all images without the step
    miou_held_out : with it, each half with what the other half chose: the estimate for new images
    miou_chosen : with `chosen`, on the images that it was chosen on: too high by the search's own overfit
    half_gains : mIoU that the first and the second half gain with what the other chose; NaN of a half without images
    candidates : what was tried, with the mIoU of all images
    """

    step: str
    on: bool
    chosen: dict | list[int] | None
    miou_before: float
    miou_held_out: float
    miou_chosen: float
    half_gains: list[float]
    candidates: list[dict]


def describe_tuned(tuned: Tuned) -> str:
    """One line: on or off, and the held-out gain."""
    if np.isnan(tuned.half_gains).any():
        return f"{tuned.step}: off; mIoU {tuned.miou_before:.4f}, a half of the images has nothing to test a choice on"
    first, second = (f"{100 * gain:+.2f}" for gain in tuned.half_gains)
    return (
        f"{tuned.step}: {'on' if tuned.on else 'off'}; mIoU {tuned.miou_before:.4f} becomes {tuned.miou_held_out:.4f} on images"
        f" it was not chosen on (halves {first} and {second} points), {tuned.miou_chosen:.4f} on those it was"
    )


def draw_crf_candidates(count: int, seed: int, image_size: int, pixels_per_cluster: int = 1) -> list[CrfParams]:
    """Draw different parameters at random; reaches grow with the image size [px]. (Random search: Bergstra 2012.)

    Raises
    ------
    InputError
        More than there are.
    """
    radix = [len(values) for values in CRF_VALUES.values()]
    if not 1 <= count <= np.prod(radix):
        raise InputError(
            f"draw_crf_candidates: count must be from 1 to {np.prod(radix)}, got {count}; 12 to 24 are usual"
        )
    drawn = np.random.default_rng(seed).choice(np.prod(radix), size=count, replace=False)
    candidates = []
    for positions in zip(*np.unravel_index(drawn, radix), strict=True):
        chosen = {name: values[i] for (name, values), i in zip(CRF_VALUES.items(), positions, strict=True)}
        for name in ("smoothness_sigma", "appearance_sigma"):
            chosen[name] *= image_size / 256
        candidates.append(CrfParams(**chosen, pixels_per_cluster=pixels_per_cluster))
    return candidates


def search_crf(
    samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    candidates: Sequence[CrfParams],
    device: torch.device | str = "cpu",
    ignore_index: int = 255,
    progress: Progress | None = None,
) -> Tuned:
    """Choose the CRF's parameters, or none, by the pooled mIoU.

    Parameters
    ----------
    samples
        samples[i] is (image (H, W, 3) uint8, probabilities (C, H, W), truth (H, W) uint8) of image i, read once and one at a
        time. The halves are the first and the second half of them: photographs of one series stay on one side. One image
        alone is never switched on.
    candidates
        The CRF is tried with each; "off" always takes part, and wins ties.
    progress
        Called with (CRFs done, CRFs in all).

    Raises
    ------
    InputError
        No image, or no candidate.
    """
    half = _halve("search_crf", samples)
    if not candidates:
        raise InputError("search_crf: candidates must hold parameters to try, got none; draw_crf_candidates draws some")
    counts, done = None, 0
    for i in range(len(samples)):
        image, probabilities, truth = samples[i]
        if counts is None:
            counts = np.zeros((2, 1 + len(candidates), len(probabilities), len(probabilities)), np.int64)
        counts[half[i], 0] += _count(truth, probabilities.argmax(0), len(probabilities), ignore_index)
        for k, params in enumerate(candidates, start=1):
            refined = dense_crf(image, probabilities, params, device)
            counts[half[i], k] += _count(truth, refined.argmax(0), len(probabilities), ignore_index)
            done += 1
            if progress:
                progress(done, len(samples) * len(candidates))
    choices = [_best(counts[h]) for h in (0, 1)]
    chosen = _best(counts.sum(0))
    tried = [
        asdict(params) | {"miou": mean_iou(matrix)}
        for params, matrix in zip(candidates, counts.sum(0)[1:], strict=True)
    ]
    held_out = np.stack([counts[0, choices[1]], counts[1, choices[0]]])
    found = asdict(candidates[chosen - 1]) if chosen else None
    return _conclude("crf", found, counts[:, 0], held_out, counts.sum(0)[chosen], tried)


def tune_min_pixels(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
    sizes: Sequence[int] = MIN_PIXELS,
    ignore_index: int = 255,
    progress: Progress | None = None,
) -> Tuned:
    """Choose for each class the size under which its components are removed, or none, by the pooled mIoU.

    Each class is tried alone, then what they chose is applied together. Of `sizes` 0 keeps all and wins ties.

    Parameters
    ----------
    pairs
        pairs[i] is (truth, pred) of image i, (H, W) uint8 both; each is read twice, one at a time. Halves as in `search_crf`.
    progress
        Called with (images done, images in all), where each image counts twice.

    Raises
    ------
    InputError
        No image.
    """
    half = _halve("tune_min_pixels", pairs)
    sizes = sorted({0, *sizes})
    counts = np.zeros((2, num_classes, len(sizes), num_classes, num_classes), np.int64)
    for i in range(len(pairs)):
        counts[half[i]] += _count_each_class(*pairs[i], sizes, num_classes, ignore_index)
        if progress:
            progress(i + 1, 2 * len(pairs))
    choices = [_best_sizes(counts[h], sizes) for h in (0, 1)]
    chosen = _best_sizes(counts.sum(0), sizes)
    held_out, with_chosen = np.zeros((2, 2, num_classes, num_classes), np.int64)
    for i in range(len(pairs)):
        truth, pred = pairs[i]
        others, own = (remove_small_components(pred, numbers) for numbers in (choices[1 - half[i]], chosen))
        held_out[half[i]] += _count(truth, others, num_classes, ignore_index)
        with_chosen[half[i]] += _count(truth, own, num_classes, ignore_index)
        if progress:
            progress(len(pairs) + i + 1, 2 * len(pairs))
    tried = [
        {"class_id": c, "min_pixels": size, "miou": mean_iou(counts[:, c, s].sum(0))}
        for c in range(num_classes)
        for s, size in enumerate(sizes)
    ]
    found = chosen if any(chosen) else None
    return _conclude("components", found, counts[:, 0, 0], held_out, with_chosen.sum(0), tried)


def compare_objects(
    data: CocoData,
    image_ids: Sequence[int],
    masks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    resamples: int = 1000,
) -> pd.DataFrame:
    """Recall of the annotated objects by size, before and after post-processing: whether it erases the small ones.

    Parameters
    ----------
    image_ids, masks
        The images, and (truth, pred before, pred after) of each, (S, S) uint8, taken one at a time.
    resamples
        Of the images, for the intervals of the mean recall.

    Returns
    -------
    One row a size: the columns of `summarise_objects` for both, ending in _before and _after.
    """
    tables = {"_before": [], "_after": []}
    for image_id, (truth, before, after) in zip(image_ids, masks, strict=True):
        for name, pred in zip(tables, (before, after), strict=True):
            tables[name].append(measure_objects(data, [image_id], [(truth, pred)]))
    parts = [
        summarise_objects(pd.concat([table for table in kept if len(table)] or kept), "bin", resamples).add_suffix(name)
        for name, kept in tables.items()
    ]
    return pd.concat(parts, axis=1)


def _conclude(
    step: str,
    chosen: dict | list | None,
    before: np.ndarray,
    held_out: np.ndarray,
    with_chosen: np.ndarray,
    tried: list,
) -> Tuned:
    """before, held_out: (2, C, C), a matrix a half."""
    gains = [mean_iou(after) - mean_iou(without) for after, without in zip(held_out, before, strict=True)]
    return Tuned(
        step=step,
        on=chosen is not None
        and all(gain > 0 for gain in [*gains, mean_iou(held_out.sum(0)) - mean_iou(before.sum(0))]),
        chosen=chosen,
        miou_before=mean_iou(before.sum(0)),
        miou_held_out=mean_iou(held_out.sum(0)),
        miou_chosen=mean_iou(with_chosen),
        half_gains=gains,
        candidates=tried,
    )


def _halve(where: str, samples: Sequence) -> np.ndarray:
    """Half, 0 or 1, of each image."""
    if not len(samples):
        raise InputError(f"{where}: required at least one image, got none; check what was predicted")
    return (np.arange(len(samples)) >= len(samples) // 2).astype(int)


def _count(truth: np.ndarray, pred: np.ndarray, num_classes: int, ignore_index: int) -> np.ndarray:
    arrays = (torch.from_numpy(np.array(array, dtype=np.uint8)) for array in (truth, pred))
    return confusion_matrix(*arrays, num_classes, ignore_index).numpy()


def _count_each_class(
    truth: np.ndarray, pred: np.ndarray, sizes: Sequence[int], num_classes: int, ignore_index: int
) -> np.ndarray:
    """(classes, sizes, C, C): confusion when components of one class under one size are removed."""
    before = _count(truth, pred, num_classes, ignore_index)
    counts = np.broadcast_to(before, (num_classes, len(sizes), *before.shape)).copy()
    for class_id in np.unique(pred):
        for s, size in enumerate(sizes):
            numbers = np.zeros(num_classes, int)
            numbers[class_id] = size
            cleaned = remove_small_components(pred, numbers)
            if (cleaned != pred).any():
                counts[class_id, s] = _count(truth, cleaned, num_classes, ignore_index)
    return counts


def _best(matrices: np.ndarray) -> int:
    """Position of the first matrix (K, C, C) with the highest mIoU."""
    scores = np.array([mean_iou(matrix) for matrix in matrices])
    return int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0


def _best_sizes(matrices: np.ndarray, sizes: Sequence[int]) -> list[int]:
    """Size a class of matrices (classes, sizes, C, C)."""
    return [sizes[_best(of_class)] for of_class in matrices]
