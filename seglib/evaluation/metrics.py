"""Confusion matrices, every score that is derived from them, and the file that keeps them."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError
from seglib.files import check_zip, replacing
from seglib.parts import find_parts

# What `select_by` may name, own metrics aside. 1: higher is better.
SIGNS = {"miou": 1, "miou_image": 1, "accuracy": 1, "loss": -1}
RELIABILITY_BINS = 15


def confusion_per_image(truth: Tensor, pred: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of every pair (true class, predicted class), image by image.

    Parameters
    ----------
    truth, pred : (N, H, W) integer class ids on one device; uint8 is fastest. Pixels of true id 255 are left out.
    num_classes : background included, 1 to 256.

    Returns
    -------
    (N, C, C) int64 on the CPU, truth in rows.

    Raises
    ------
    InputError
        An id that is no class, or shapes or types that do not fit.
    """
    _check_arguments(truth, pred, num_classes)
    if truth.ndim != 3:
        raise InputError(f"confusion: truth and pred must be (N, H, W), got {tuple(truth.shape)}; add the image axis.")
    if truth.device.type != "cpu":
        return _count(truth, pred, num_classes)
    count = _count_in_lanes if num_classes <= 32 and truth.shape[1:].numel() % 4 == 0 else _count
    counts = torch.empty(len(truth), num_classes, num_classes, dtype=torch.int64)
    for i in range(len(truth)):  # one at a time, because an image fits the cache
        counts[i] = count(truth[i : i + 1], pred[i : i + 1], num_classes)[0]
    return counts


def iou_per_class(confusion: ArrayLike) -> np.ndarray:
    """Intersection over union, (..., C, C) -> (..., C) float64; NaN for a class in neither truth nor prediction."""
    hits, true, predicted = _hits_true_predicted(confusion)
    return _ratio(hits, true + predicted - hits)


def precision_per_class(confusion: ArrayLike) -> np.ndarray:
    """Share of the pixels predicted as a class that are of it, (..., C); NaN for a class that is never predicted."""
    hits, _, predicted = _hits_true_predicted(confusion)
    return _ratio(hits, predicted)


def recall_per_class(confusion: ArrayLike) -> np.ndarray:
    """Share of a class's pixels that are predicted as it, (..., C); NaN for a class that is absent from the truth."""
    hits, true, _ = _hits_true_predicted(confusion)
    return _ratio(hits, true)


def pixel_accuracy(confusion: ArrayLike) -> float:
    """Share of the valid pixels that are predicted right; NaN without valid pixels. (C, C) or (images, C, C)."""
    hits, true, _ = _hits_true_predicted(confusion)
    return float(_ratio(hits.sum(), true.sum()))


def mean_iou(confusion: ArrayLike) -> float | np.ndarray:
    """Mean IoU over the classes in truth or prediction, (..., C, C) -> (...); NaN without valid pixels."""
    mean = _nanmean(iou_per_class(confusion))
    return mean if mean.ndim else float(mean)


def pooled_miou(per_image: ArrayLike) -> float:
    """mIoU of all pixels together, the leaderboard's score: the mean IoU of the summed (images, C, C) matrices."""
    return mean_iou(np.asarray(per_image).sum(0))


def image_miou(per_image: ArrayLike) -> float:
    """Mean over images of each image's own mIoU, (images, C, C); an image without valid pixels is left out."""
    return float(_nanmean(mean_iou(per_image)))


def batch_miou(per_image: ArrayLike, batch_size: int) -> float:
    """Mean over batches of consecutive images of each batch's own mIoU, as the old baseline reported it.

    It depends on the batch size and on the order of the images: for comparison with old notes, never for decisions.
    """
    if batch_size < 1:
        raise InputError(f"batch_miou: batch_size must be at least 1, got {batch_size}; give validation's batch size.")
    per_image = np.asarray(per_image)
    starts = np.arange(0, len(per_image), batch_size)
    return image_miou(np.add.reduceat(per_image, starts, axis=0) if len(starts) else per_image)


def compute_metrics(per_image: ArrayLike, class_names: Sequence[str], batch_size: int) -> dict:
    """Compute the scores of a run's record from (images, C, C) counts, truth in rows, and C different names.

    Returns
    -------
    dict
        `miou` (pooled), `miou_image`, `miou_batch` (of `batch_size` images), `accuracy` and every registered metric of
        the user's own: float; `iou`: float by class name. What cannot be computed is NaN, which `write_json` writes as
        null.

    Raises
    ------
    InputError
        Names that do not fit the matrices, a batch size below 1, or an own metric that gives no number.
    """
    per_image = np.asarray(per_image)
    _check_confusion("compute_metrics", per_image, class_names)
    pooled, own = per_image.sum(0), {}
    for name, part in find_parts("metric").items():
        value = part.build(pooled.copy())
        try:
            own[name] = float(value)
        except (TypeError, ValueError):
            raise InputError(f"metric {name}: required a number for a matrix (C, C), got {value!r}") from None
    return {
        "miou": mean_iou(pooled),
        "miou_image": image_miou(per_image),
        "miou_batch": batch_miou(per_image, batch_size),
        "accuracy": pixel_accuracy(pooled),
        **own,
        "iou": dict(zip(class_names, iou_per_class(pooled).tolist(), strict=True)),
    }


def find_signs() -> dict[str, int]:
    """What `select_by` may name: 1 where higher is better, -1 where lower is.

    An own metric says `higher_is_better = False`, as its attribute or as the default of an argument of that name.
    """
    signs = dict(SIGNS)
    for name, part in find_parts("metric").items():
        argument = inspect.signature(part.build).parameters.get("higher_is_better")
        higher = getattr(part.build, "higher_is_better", argument.default if argument else True)
        signs[name] = 1 if higher else -1
    return signs


def save_confusion(
    path: str | Path,
    confusion: ArrayLike,
    image_ids: Sequence,
    class_names: Sequence[str],
    images: pd.DataFrame | None = None,
) -> None:
    """Save (images, C, C) counts, the images' ids (numbers or text) and the class names as a compressed .npz file.

    Parameters
    ----------
    images : one row per image: `group` and `file_name`, by which `find_scenes` joins images; kept as text in `groups`
        ("" where there is none) and `file_names`.

    Raises
    ------
    InputError
        Counts, ids and names that do not fit each other.
    """
    arrays = {
        "confusion": np.asarray(confusion),
        "image_ids": np.asarray(list(image_ids)),  # of pandas' column of text numpy would make objects
        "class_names": np.asarray(class_names, dtype=np.str_),
    }
    _check_arrays(f"{path}", **arrays)
    if images is not None:
        arrays["groups"] = images["group"].map(lambda group: "" if pd.isna(group) else str(group)).to_numpy(np.str_)
        arrays["file_names"] = images["file_name"].to_numpy(np.str_)
    arrays["confusion"] = arrays["confusion"].astype(np.int64)
    with replacing(path) as temporary, open(temporary, "wb") as file:  # given a path, numpy would append .npz to it
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_confusion(path: str | Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Load what `save_confusion` saved: (images, C, C) int64 counts, truth in rows; (images,) ids; C names.

    Raises
    ------
    InputError
        The file is missing, broken, or holds something else.
    """
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as file:
            confusion, image_ids, class_names = (file[name] for name in ("confusion", "image_ids", "class_names"))
    except Exception as error:  # a damaged file raises nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: must be a file of save_confusion, got {reason}; run the training again.") from None
    _check_arrays(f"{path}", confusion, image_ids, class_names)
    if confusion.min(initial=0) < 0 or len(np.unique(image_ids)) < len(image_ids):
        got = "counts below 0" if confusion.min(initial=0) < 0 else "one twice"
        raise InputError(f"{path}: must have counts from 0 and an id per image, got {got}; run the training again.")
    return confusion, image_ids, class_names.tolist()


def load_scene_names(path: str | Path) -> dict[int | str, list[str]]:
    """Image id -> [group, file name] of a file of `save_confusion`; empty where these were not saved with it."""
    with np.load(path, allow_pickle=False) as file:
        names = [file[name].tolist() for name in ("image_ids", "groups", "file_names") if name in file]
    return {image_id: pair for image_id, *pair in zip(*names, strict=True)} if len(names) == 3 else {}


# How far probabilities can be trusted, and which labels they contradict.


def summarise_probabilities(probabilities: Tensor, mask: Tensor) -> dict[str, np.ndarray | float]:
    """Reduce the probabilities of an image to a few numbers, over its valid pixels.

    Parameters
    ----------
    probabilities : (C, H, W) float, after softmax
    mask : (H, W) uint8, the given labels

    Returns
    -------
    reliability : (bins, 3) float64
        By confidence, the highest probability of a pixel, in `RELIABILITY_BINS` bins of equal width: pixels, sum of
        confidences, pixels whose most probable class is the label.
    softmin : float
        Sum over pixels of p * softmax((1 - p) / 0.1), where p is the probability of the given label: the mean, drawn
        towards the smallest. NaN without valid pixels. Source: Lad and Mueller 2023, "Estimating label quality and
        errors in semantic segmentation data via any model".
    given : float
        The mean of p.
    """
    valid = mask != IGNORE_INDEX
    known, labels = probabilities[:, valid], mask[valid].long()
    confidence, pred = known.max(dim=0)
    p = known.gather(0, labels[None])[0].double()
    index = (confidence * RELIABILITY_BINS).long().clamp(max=RELIABILITY_BINS - 1).cpu()
    weights = (torch.ones_like(confidence), confidence, pred == labels)  # on the CPU: CUDA adds them in any order
    sums = [torch.bincount(index, each.cpu().double(), RELIABILITY_BINS) for each in weights]
    softmin, given = ((p * ((1 - p) / 0.1).softmax(dim=0)).sum(), p.mean()) if len(p) else (math.nan, math.nan)
    return {"reliability": torch.stack(sums, dim=1).numpy(), "softmin": float(softmin), "given": float(given)}


def tabulate_reliability(reliability: np.ndarray) -> pd.DataFrame:
    """One row per bin that has pixels: confidence (mean), accuracy, pixels, share of all. reliability: (N, bins, 3)."""
    pixels, confidence, right = reliability.sum(0).T
    with np.errstate(invalid="ignore"):  # empty bins are left out below
        means = {"confidence": confidence / pixels, "accuracy": right / pixels}
    table = pd.DataFrame({"pixels": pixels.astype(np.int64), "share": pixels / max(1, pixels.sum()), **means})
    table.index = pd.Index(np.arange(len(table)) / len(table), name="from")
    return table[pixels > 0]


def calibration_error(reliability: np.ndarray) -> float:
    """Expected calibration error in 0..1: mean over pixels of |confidence - accuracy| of their bin. (N, bins, 3)."""
    pixels, confidence, right = reliability.sum(0).T
    return float(np.abs(confidence - right).sum() / pixels.sum())


def _count_in_lanes(truth: Tensor, pred: Tensor, num_classes: int) -> Tensor:
    """Count one image (1, H, W) of up to 32 classes on the CPU -> (1, C, C).

    `truth * C + pred` of a uint8 truth fits int16 whatever the truth is, so that ignored and foreign ids need no pass
    of their own: they are rows of the table. Neighbours are mostly alike, and adding 1 to a counter waits for the
    addition before. So each of four neighbours has a table of its own, which one addition to four int16 at once tells
    apart (in whichever order the processor keeps them). Largest index: 4 * 256 * 32 - 1, the largest int16.
    """
    if _out_of_range(truth, 256) or _out_of_range(pred, num_classes):
        raise _foreign_id(truth, pred, num_classes)
    rows = 256 * num_classes
    index = truth.flatten().to(torch.uint8).to(torch.int16).mul_(num_classes).add_(pred.flatten().to(torch.uint8))
    index.view(torch.int64).add_(sum(lane * rows << 16 * lane for lane in range(4)))
    table = torch.bincount(index, minlength=4 * rows).view(4, 256, num_classes).sum(0)
    table[IGNORE_INDEX] = 0
    if table[num_classes:].any():
        raise _foreign_id(truth, pred, num_classes)
    return table[None, :num_classes]


def _count(truth: Tensor, pred: Tensor, num_classes: int) -> Tensor:
    """Count a batch (N, H, W) of any number of classes on any device -> (N, C, C).

    Row C takes the ignored pixels, row C + 1 and column C the foreign ids: checks before the count would each wait for
    a GPU. bincount itself waits, for its lowest and highest index.
    """
    n, c = len(truth), num_classes
    truth, pred = truth.long(), pred.long()
    rows = torch.where((truth < 0) | (truth >= c), c + 1, truth).masked_fill_(truth == IGNORE_INDEX, c)
    columns = torch.where((pred < 0) | (pred >= c), c, pred)
    image = torch.arange(n, device=truth.device)[:, None, None]
    index = (image * (c + 2) + rows) * (c + 1) + columns
    table = torch.bincount(index.flatten(), minlength=n * (c + 2) * (c + 1)).cpu().view(n, c + 2, c + 1)
    if table[:, c + 1].any() or table[:, :, c].any():
        raise _foreign_id(truth, pred, num_classes)
    return table[:, :c, :c]


def _out_of_range(ids: Tensor, limit: int) -> bool:
    low, high = ids.aminmax() if ids.numel() else (0, 0)
    return int(low) < 0 or int(high) >= limit  # as Python's: uint8 >= 256 would compare with 0


def _foreign_id(truth: Tensor, pred: Tensor, num_classes: int) -> InputError:
    truth, pred = truth.long(), pred.long()
    ids, name = truth[truth != IGNORE_INDEX], f"truth must be ignore_index={IGNORE_INDEX} or"
    foreign = ids[(ids < 0) | (ids >= num_classes)]
    if len(foreign) == 0:
        foreign, name = pred[(pred < 0) | (pred >= num_classes)], "pred must be"
    return InputError(
        f"confusion: {name} a class id from 0 to {num_classes - 1}, got {int(foreign[0])} ({len(foreign)} such pixels); "
        "check num_classes, or the categories of the annotation file."
    )


def _hits_true_predicted(confusion: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    confusion = np.asarray(confusion, dtype=np.float64)
    return np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1), confusion.sum(-2)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaNs, and NaN, not numpy's warning, where nothing else is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def _check_arguments(truth: Tensor, pred: Tensor, num_classes: int) -> None:
    if truth.shape != pred.shape:
        shapes = f"{tuple(truth.shape)} and {tuple(pred.shape)}"
        raise InputError(f"confusion: truth and pred must have one shape, got {shapes}; resize the logits.")
    for name, ids in (("truth", truth), ("pred", pred)):
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise InputError(f"confusion: {name} must hold integer class ids, got {ids.dtype}; take logits.argmax(1).")
    if not 1 <= num_classes <= 256:
        raise InputError(f"confusion: num_classes must be 1 to 256 (masks are uint8), got {num_classes}.")


def _check_confusion(where: str, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    shape = confusion.shape
    if confusion.ndim != 3 or shape[1:] != (len(class_names),) * 2 or confusion.dtype.kind not in "iu":
        raise InputError(
            f"{where}: confusion must be (images, classes, classes) integer counts with a name per class, got {shape} "
            f"{confusion.dtype} and {len(class_names)} names; give the result of confusion_per_image and its names."
        )
    if len(set(class_names)) < len(class_names):
        raise InputError(f"{where}: class names must differ, got {', '.join(class_names)}; rename the category.")


def _check_arrays(where: str, confusion: np.ndarray, image_ids: np.ndarray, class_names: np.ndarray) -> None:
    if class_names.ndim != 1 or class_names.dtype.kind != "U":
        got = f"{class_names.shape} {class_names.dtype}"
        raise InputError(f"{where}: class_names must be a list of text, got {got}; give the data set's names.")
    _check_confusion(where, confusion, class_names.tolist())
    if image_ids.shape != confusion.shape[:1] or image_ids.dtype.kind not in "iuU":
        got = f"{image_ids.shape} {image_ids.dtype}; give the ids of the images that were counted"
        raise InputError(
            f"{where}: image_ids must be one number or text for each of {len(confusion)} images, got {got}."
        )
