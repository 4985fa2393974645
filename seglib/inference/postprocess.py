"""What follows a vote: a dense CRF, small components removed; chosen on one half of the images, judged on the other."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt

from seglib.data.coco import CocoData
from seglib.errors import InputError
from seglib.evaluation.compare import measure_gain
from seglib.evaluation.errors import measure_objects, summarise_objects
from seglib.evaluation.metrics import mean_iou
from seglib.inference.stores import Progress
from seglib.inference.votes import count_mask
from seglib.zoo.crf import CrfParams, dense_crf

MIN_PIXELS = (0, 4, 8, 16, 32, 64, 128, 256, 512)  # tried for each class
CRF_VALUES = {  # drawn from by draw_crf_candidates; pixels at an image size of 256 px
    "smoothness_weight": (0.5, 1.0, 2.0, 4.0),
    "smoothness_sigma": (1.0, 2.0, 4.0),
    "appearance_weight": (1.0, 2.0, 4.0, 8.0),
    "appearance_sigma": (10.0, 20.0, 40.0, 80.0),
    "colour_sigma": (4.0, 8.0, 13.0, 20.0),
}


def remove_small_components(mask: np.ndarray, min_pixels: Sequence[int]) -> np.ndarray:
    """Remove components (8 neighbours) of fewer than `min_pixels[class]` pixels.

    All small components go at once, and each of their pixels takes the class of the nearest pixel that stays: the class
    around a speck, or the nearer one where it lies between two. Where nothing would stay the mask is left as it is.

    Parameters
    ----------
    mask : (H, W) uint8 class ids.
    min_pixels : one number per class [px], 0 keeps all of its components; that of the background fills small holes.

    Returns
    -------
    (H, W) uint8, a new array.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(
            f"remove_small_components: mask must be (H, W) uint8 class ids, got {mask.shape} {mask.dtype};"
            " pass probabilities.argmax(0).astype(np.uint8)"
        )
    if mask.size and mask.max() >= len(min_pixels):
        raise InputError(
            f"remove_small_components: min_pixels must have a number for every class, got {len(min_pixels)} and a mask with"
            f" class id {mask.max()}; give one number per class, background included"
        )
    removed = np.zeros(mask.shape, bool)
    for class_id in np.unique(mask):
        if min_pixels[class_id] > 1:
            removed |= find_small(mask == class_id, min_pixels[class_id])
    if removed.all() or not removed.any():
        return mask.copy()
    rows, columns = distance_transform_edt(removed, return_distances=False, return_indices=True)
    return mask[rows, columns]


def find_small(is_class: np.ndarray, min_pixels: int) -> np.ndarray:
    """(H, W) bool: the pixels of components (8 neighbours) of fewer than `min_pixels`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(is_class.view(np.uint8), connectivity=8)
    return is_class & (stats[:, cv2.CC_STAT_AREA] < min_pixels)[labels]


def draw_crf_candidates(count: int, seed: int, image_size: int, pixels_per_cluster: int = 1) -> list[CrfParams]:
    """Draw different parameters at random; reaches grow with the image size [px]. (Random search: Bergstra 2012.)"""
    known = list(product(*CRF_VALUES.values()))
    if not 1 <= count <= len(known):
        raise InputError(f"draw_crf_candidates: count must be from 1 to {len(known)}, got {count}; 12 to 24 are usual")
    candidates = []
    for place in np.random.default_rng(seed).choice(len(known), size=count, replace=False):
        chosen = dict(zip(CRF_VALUES, known[place], strict=True))
        for name in ("smoothness_sigma", "appearance_sigma"):
            chosen[name] *= image_size / 256
        candidates.append(CrfParams(**chosen, pixels_per_cluster=pixels_per_cluster))
    return candidates


def search_crf(
    read: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    count: int,
    candidates: Sequence[CrfParams],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    scenes: np.ndarray | None = None,
) -> dict[str, Any]:
    """Choose the CRF's parameters, or none, by the pooled mIoU.

    Parameters
    ----------
    read : position, 0 to `count` - 1, -> image (H, W, 3) uint8, probabilities (C, H, W), truth (H, W) uint8; each is read
        once. One image, or one scene, alone is never switched on.
    candidates : the CRF is tried with each; "off" always takes part, and wins ties.
    progress : called with (CRFs done, CRFs in all).
    scenes : (count,) int, of `find_scenes`; each image is one by default. The halves are the first and the second half of
        them.

    Returns
    -------
    For a record: step, on (whether the gain on images that it was not chosen on is surely above 0), chosen (on all images;
    None is "off"), before, after (mIoU; each half with what the other chose: the estimate for new images), points, low, high
    (the gain and its 95 % interval over other scenes, NaN for one), miou_chosen (on the images that it was chosen on: too
    high), tried (each with the mIoU of all images); and held_out, (count, C, C) int64, for what follows.
    """
    _require_images("search_crf", count)
    if not candidates:
        raise InputError("search_crf: candidates must hold parameters to try, got none; draw_crf_candidates draws some")
    counts = []
    for image in range(count):
        photograph, probabilities, truth = read(image)
        preds = [probabilities.argmax(0)]
        for params in candidates:
            preds.append(dense_crf(photograph, probabilities, params, device).argmax(0))
            if progress:
                progress(image * len(candidates) + len(preds) - 1, count * len(candidates))
        counts.append([count_mask(truth, pred, len(probabilities)) for pred in preds])
    counts, scenes = np.array(counts), np.arange(count) if scenes is None else scenes
    chosen, held_out = choose_by_halves(counts, scenes)
    mious = [mean_iou(matrix) for matrix in counts.sum(0)]
    tried = [asdict(params) | {"miou": miou} for params, miou in zip(candidates, mious[1:], strict=True)]
    found = asdict(candidates[chosen - 1]) if chosen else None
    return _judge("crf", found, counts[:, 0], held_out, scenes, mious[chosen], tried)


def choose_by_halves(counts: np.ndarray, scenes: np.ndarray) -> tuple[int, np.ndarray]:
    """The best of K candidates by all images, and what it gives where each half of the scenes has what the other chose.

    (images, K, C, C) counts and (images,) scenes -> place, and (images, C, C) counts. Of equals the first.
    """
    second = _halve(scenes)
    choices = [_best(counts[second != half].sum(0)) for half in (False, True)]
    return _best(counts.sum(0)), counts[np.arange(len(counts)), np.where(second, choices[1], choices[0])]


def search_min_pixels(
    read: Callable[[int], tuple[np.ndarray, np.ndarray]],
    count: int,
    num_classes: int,
    sizes: Sequence[int] = MIN_PIXELS,
    progress: Progress | None = None,
    scenes: np.ndarray | None = None,
) -> dict[str, Any]:
    """Choose for each class the size under which its components are removed, or none, by the pooled mIoU.

    Each class is tried alone, then what they chose is applied together. Of `sizes` 0 keeps all and wins ties.

    Parameters
    ----------
    read : position -> truth, pred, (H, W) uint8 both; each is read twice. Scenes, halves and result are those of `search_crf`.
    progress : called with (images done, images in all), where each image counts twice.
    """
    _require_images("search_min_pixels", count)
    sizes, progress = sorted({0, *sizes}), progress or (lambda done, total: None)
    counts = []
    for image in range(count):
        counts.append(_count_each_class(*read(image), sizes, num_classes))
        progress(image + 1, 2 * count)
    counts, scenes = np.array(counts), np.arange(count) if scenes is None else scenes
    second = _halve(scenes)
    seen = counts[~second], counts[second], counts  # a half is cleaned with what the other chose
    of_first, of_second, chosen = ([sizes[_best(of_class)] for of_class in each.sum(0)] for each in seen)
    cleaned = []
    for image in range(count):
        truth, pred = read(image)
        numbers = of_first if second[image] else of_second, chosen
        cleaned.append([count_mask(truth, remove_small_components(pred, each), num_classes) for each in numbers])
        progress(count + image + 1, 2 * count)
    cleaned = np.array(cleaned)
    tried = [
        {"class_id": class_id, "min_pixels": size, "miou": miou}
        for class_id, of_class in enumerate(mean_iou(counts.sum(0)))
        for size, miou in zip(sizes, of_class.tolist(), strict=True)
    ]
    miou = mean_iou(cleaned[:, 1].sum(0))
    return _judge("components", chosen if any(chosen) else None, counts[:, 0, 0], cleaned[:, 0], scenes, miou, tried)


def describe_step(found: dict[str, Any]) -> str:
    """One line on what a search found: on or off, and the held-out gain."""
    if np.isnan(found["low"]):
        return f"{found['step']}: off; mIoU {found['before']:.4f}, one scene has nothing to test a choice on"
    points, low, high = (found[name] for name in ("points", "low", "high"))
    return (
        f"{found['step']}: {'on' if found['on'] else 'off'}; mIoU {found['before']:.4f} becomes"
        f" {found['after']:.4f} on images it was not chosen on ({points:+.2f} points, {low:+.2f} to {high:+.2f} over"
        f" other scenes), {found['miou_chosen']:.4f} on those it was"
    )


def compare_objects(
    data: CocoData,
    image_ids: Sequence[int],
    masks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    scenes: Sequence[int],
) -> pd.DataFrame:
    """Recall of the annotated objects by size, before and after post-processing: whether it erases the small ones.

    Parameters
    ----------
    image_ids, masks : the images, and (truth, pred before, pred after) of each, (S, S) uint8, taken one at a time.
    scenes : of each image, see `find_scenes`.

    Returns
    -------
    One row per size: the columns of `summarise_objects` for both, ending in _before and _after.
    """
    tables = {"_before": [], "_after": []}
    for image_id, (truth, *preds), scene in zip(image_ids, masks, scenes, strict=True):
        for kept, pred in zip(tables.values(), preds, strict=True):
            kept.append(measure_objects(data, [image_id], [(truth, pred)]).assign(scene=scene))
    parts = [
        summarise_objects(pd.concat([table for table in kept if len(table)] or kept), "bin").add_suffix(name)
        for name, kept in tables.items()
    ]
    return pd.concat(parts, axis=1)


def _judge(
    step: str, chosen: dict | list | None, before: np.ndarray, held_out: np.ndarray, scenes: np.ndarray,
    miou_chosen: float, tried: list,
) -> dict[str, Any]:  # fmt: skip
    """before, held_out: (images, C, C)."""
    measured = measure_gain(before, held_out, scenes)
    on = chosen is not None and measured["low"] > 0
    return {
        "step": step, "on": on, "chosen": chosen, **measured, "miou_chosen": miou_chosen, "tried": tried, "held_out": held_out
    }  # fmt: skip


def _require_images(where: str, count: int) -> None:
    if not count:
        raise InputError(f"{where}: required at least one image, got none; check what was predicted")


def _halve(scenes: np.ndarray) -> np.ndarray:
    """(images,) bool: whether the scene of each is in the second half of them."""
    numbers = np.unique(scenes, return_inverse=True)[1]
    return numbers >= (numbers.max() + 1) // 2


def _count_each_class(truth: np.ndarray, pred: np.ndarray, sizes: Sequence[int], num_classes: int) -> np.ndarray:
    """(classes, sizes, C, C): confusion when components of one class under one size are removed."""
    before = count_mask(truth, pred, num_classes)
    counts = np.broadcast_to(before, (num_classes, len(sizes), *before.shape)).copy()
    for class_id in np.unique(pred):
        for place, size in enumerate(sizes):
            cleaned = remove_small_components(pred, np.eye(num_classes, dtype=int)[class_id] * size)
            if (cleaned != pred).any():
                counts[class_id, place] = count_mask(truth, cleaned, num_classes)
    return counts


def _best(matrices: np.ndarray) -> int:
    """Position of the first matrix (K, C, C) with the highest mIoU."""
    scores = np.array([mean_iou(matrix) for matrix in matrices])
    return int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
