"""Predictions of a model: whole images or windows, in several views."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import write_array_header_1_0
from torch import Tensor, channels_last, nn

from seglib.data.dataset import Subset
from seglib.data.loader import build_loader
from seglib.errors import InputError, unknown_name
from seglib.evaluation.findings import RELIABILITY_BINS, summarise_probabilities
from seglib.evaluation.metrics import confusion_per_image, mean_iou
from seglib.files import replacing, write_json
from seglib.inference.runs import FinishedRun
from seglib.training.device import autocast, move, seed_everything

# Test-time augmentation: an image predicted flipped, turned and scaled; the predictions turned back and merged.


Forward = Callable[[Tensor], Tensor]
# A flip as (mirrored left to right, then quarter turns): with the rotations, eight ways to lay a square.
FLIPS = {"none": (False, 0), "horizontal": (True, 0), "vertical": (True, 2), "both": (False, 2)}
ROTATIONS = (0, 90, 180, 270)
MERGES = ("mean", "logits")
PLAIN = {"flips": ["none"], "rotations": [0], "scales": [1.0]}
STRIDE = 32  # [px], what sides of images are multiples of


@dataclass(frozen=True)
class View:
    """One way to look at an image: scaled to `side` [px], mirrored left to right, turned counter-clockwise."""

    mirrored: bool
    quarter_turns: int
    side: int

    def __str__(self) -> str:
        turned = ["mirrored"] * self.mirrored + [f"rot{90 * self.quarter_turns}"] * bool(self.quarter_turns)
        return f"{'+'.join(turned) or 'plain'}@{self.side}"


def build_views(tta: Mapping[str, Any] | Sequence[Mapping[str, Any]], image_size: int) -> list[View]:
    """The views that `tta` names, each once.

    Parameters
    ----------
    tta : lists of `flips` (none, horizontal, vertical, both), `rotations` (0, 90, 180, 270) and `scales` (such as 0.75),
        of which every combination is a view; what is left out is [none], [0], [1.0]. Or a list of such mappings, whose
        views are put together. Empty: the plain view alone.
    image_size : side of the image at scale 1 [px]; scaled sides are rounded to multiples of 32.

    Raises
    ------
    InputError
        An unknown name, or a scale that is no number in 0.1 to 4.
    """
    specs = [tta] if isinstance(tta, Mapping) else list(tta) or [{}]
    views = [view for spec in specs for view in _build_product(spec, image_size)]
    return list(dict.fromkeys(views))


def merge_views(forward: Forward, images: Tensor, views: Sequence[View], merge: str) -> Tensor:
    """Probabilities (N, C, S, S) float32 of images (N, 3, S, S) uint8.

    Parameters
    ----------
    forward : images -> logits (N, C, H, W) of the same sides.
    merge : "mean" of the views' probabilities, or of their "logits", which is their normalised geometric mean.
    """
    total = None
    for view in views:
        logits = predict_view(forward, images, view)
        scores = logits.softmax(dim=1) if merge == "mean" else logits
        total = scores if total is None else total.add_(scores)
    if len(views) > 1:
        total = total / len(views)
    return total if merge == "mean" else total.softmax(dim=1)


def predict_view(forward: Forward, images: Tensor, view: View) -> Tensor:
    """Logits (N, C, S, S) float32 of one view, turned and scaled back."""
    side = images.shape[-1]
    logits = undo_turns(forward(apply_turns(scale_images(images, view.side), view)).float(), view)
    if view.side == side:
        return logits
    return F.interpolate(logits, (side, side), mode="bilinear", antialias=view.side > side)


def apply_turns(images: Tensor, view: View) -> Tensor:
    """Mirror and turn (..., S, S); `images` itself where there is nothing to do."""
    if view.mirrored:
        images = images.flip(-1)
    if view.quarter_turns:
        images = images.rot90(view.quarter_turns, (-2, -1))
    return images.contiguous(memory_format=channels_last) if view.mirrored or view.quarter_turns else images


def undo_turns(logits: Tensor, view: View) -> Tensor:
    """What `apply_turns` did, backwards: exact."""
    if view.quarter_turns:
        logits = logits.rot90(-view.quarter_turns, (-2, -1))
    return logits.flip(-1) if view.mirrored else logits


def scale_images(images: Tensor, side: int) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 3, side, side) uint8, linear, with a filter as wide as the step where it shrinks."""
    if images.shape[-1] == side:
        return images
    scaled = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(images.dtype).contiguous(memory_format=channels_last)


def _build_product(spec: Mapping[str, Any], image_size: int) -> list[View]:
    if not isinstance(spec, Mapping):
        raise InputError(f"tta: required lists by name (flips, rotations, scales), or a list of such, got {spec!r}")
    for name in spec:
        if name not in PLAIN:
            raise InputError(f"tta: {unknown_name('entry', name, PLAIN)}")
    flips, rotations, scales = (_as_list(name, spec.get(name, plain)) for name, plain in PLAIN.items())
    return [
        View(*_turn(flip, rotation), _scaled_side(scale, image_size))
        for scale, flip, rotation in product(scales, flips, rotations)
    ]


def _as_list(name: str, values: Any) -> list:
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"tta: {name} must be a list with an entry at least, got {values!r}; such as {PLAIN[name]}")
    return list(values)


def _turn(flip: str, rotation: int) -> tuple[bool, int]:
    if not isinstance(flip, str) or flip not in FLIPS:
        raise InputError(f"tta: {unknown_name('flip', flip, FLIPS)}")
    if isinstance(rotation, bool) or rotation not in ROTATIONS:
        raise InputError(f"tta: {unknown_name('rotation', rotation, map(str, ROTATIONS))}")
    mirrored, turns = FLIPS[flip]
    return mirrored, (turns + int(rotation) // 90) % 4


def _scaled_side(scale: float, image_size: int) -> int:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.1 <= scale <= 4:
        raise InputError(f"tta: a scale must be a number from 0.1 to 4, got {scale!r}")
    return image_size if scale == 1 else max(STRIDE, round(image_size * scale / STRIDE) * STRIDE)


# A large image predicted in overlapping windows of the model's own size, blended where they overlap.


BLENDS = ("gaussian", "linear")
DEFAULTS = {"overlap": 0.5, "blend": "gaussian"}
SPREAD = 1 / 8  # standard deviation of the Gaussian as a share of the window's side


def check_sliding(sliding: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The options of sliding windows with their defaults; {} where there are none.

    Parameters
    ----------
    sliding : `size`, the side that images are opened at [px]; `overlap` of neighbouring windows as a share of their
        side (0.5); `blend`, how a window's logits count less towards its edges: gaussian (the default) or linear.
    image_size : side of a window, the model's own [px].

    Raises
    ------
    InputError
        An unknown name, or a value out of range.
    """
    if not sliding:
        return {}
    for name in sliding:
        if name not in ("size", *DEFAULTS):
            raise InputError(f"sliding: {unknown_name('entry', name, ('size', *DEFAULTS))}")
    options = DEFAULTS | dict(sliding)
    size, overlap = options.get("size"), options["overlap"]
    if isinstance(size, bool) or not isinstance(size, int) or size < image_size or size % STRIDE:
        raise InputError(
            f"sliding: size must be a multiple of {STRIDE} of at least {image_size} px (a window), got {size!r}"
        )
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap < 0.95:
        raise InputError(f"sliding: overlap must be a number from 0 to 0.95, got {overlap!r}")
    if options["blend"] not in BLENDS:
        raise InputError(f"sliding: {unknown_name('blend', options['blend'], BLENDS)}")
    return options


def slide(forward: Forward, window: int, overlap: float, blend: str, images: Tensor) -> Tensor:
    """Logits (N, C, S, S) float32 of images (N, 3, S, S): the weighted mean of the windows that see a pixel."""
    side = images.shape[-1]
    window = min(window, side)
    weight = window_weights(window, blend).to(images.device)
    total, weights = None, torch.zeros(side, side, device=images.device)
    starts = find_starts(side, window, overlap)
    for top in starts:
        for left in starts:
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = forward(images[place].contiguous(memory_format=torch.channels_last)).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], side, side)
            total[place] += logits * weight
            weights[place] += weight
    return total / weights


def find_starts(side: int, window: int, overlap: float) -> list[int]:
    """First pixels of windows along a side, evenly spread from edge to edge, overlapping by at least `overlap`."""
    step = max(1, int(window * (1 - overlap)))
    steps = -(-(side - window) // step)
    return [round(number * (side - window) / steps) for number in range(steps + 1)] if steps else [0]


def window_weights(window: int, blend: str) -> Tensor:
    """(W, W) float32 above 0, symmetrical, highest in the middle."""
    distance = (torch.arange(window, dtype=torch.float32) + 0.5 - window / 2).abs()
    if blend == "gaussian":
        line = torch.exp(-0.5 * (distance / (window * SPREAD)) ** 2)
    else:
        line = 1 - distance / (window / 2 + 0.5)
    return line[:, None] * line[None, :]


# Predictions of a model: of some images at once, or of a run's whole validation set, kept in the run's folder.


TOLERANCE = 1e-3  # share of pixels that another device or batch size may decide otherwise


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of N images of S x S pixels, in the order of the run's validation images.

    Attributes
    ----------
    preds : (N, S, S) uint8 class ids, read from disk where it is looked at
    probabilities : (N, C, S, S) float16 likewise, or None where they were not kept
    reliability : (N, bins, 3) float64: pixels, sum of confidences, pixels that are right; see `summarise_probabilities`
    softmin, given : (N,) float64, label quality of each image
    """

    preds: np.ndarray
    probabilities: np.ndarray | None
    reliability: np.ndarray
    softmin: np.ndarray
    given: np.ndarray


@torch.inference_mode()
def predict(
    model: nn.Module, subset: Subset, positions: Sequence[int], device: torch.device, precision: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict a few images, one at a time.

    Returns
    -------
    images (N, S, S, 3) uint8 RGB, truths (N, S, S) uint8, preds (N, S, S) uint8.
    """
    images, truths = (np.stack(arrays) for arrays in zip(*map(subset.read, positions), strict=True))
    preds = [predict_logits(model, image, device, precision).argmax(dim=0).to(torch.uint8).cpu() for image in images]
    return images, truths, np.stack(preds)


def take_images(
    subset: Subset, preds: np.ndarray, positions: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images, truths, preds of some images as `predict` gives them, from predictions (N, S, S) made before."""
    images, truths = (np.stack(arrays) for arrays in zip(*map(subset.read, positions), strict=True))
    return images, truths, np.stack([preds[position] for position in positions])


def probability_of_labels(run: FinishedRun, positions: Sequence[int], device: torch.device) -> np.ndarray:
    """(n, S, S) float32: the model's probability of the label that each pixel is given; 1 where it is ignored."""
    model, given = run.model.to(device), []
    for image, mask in map(run.val_images.read, positions):
        probabilities = predict_logits(model, image, device, run.record["precision"]).softmax(dim=0).cpu().numpy()
        label = np.where(mask < len(probabilities), mask, 0)
        chosen = np.take_along_axis(probabilities, label[None].astype(np.int64), axis=0)[0]
        given.append(np.where(mask < len(probabilities), chosen, 1))
    return np.stack(given)


@torch.inference_mode()
def predict_logits(model: nn.Module, image: np.ndarray, device: torch.device, precision: str) -> Tensor:
    """Logits (C, S, S) float32 of one image (S, S, 3) uint8 RGB."""
    model.eval()
    batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2).to(device)
    with autocast(device, precision):
        return model(batch)[0].float()


@torch.inference_mode()
def predict_batches(
    run: FinishedRun,
    model: nn.Module,
    images: Subset,
    device: torch.device,
    batch_size: int,
    compute: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(masks, what `compute` makes of the model and the images) a batch: the model's logits unless something else is asked.

    Computed as training's evaluation does: the same algorithms, layout, precision, batches.
    """
    seed_everything(run.record["params"]["seed"], run.record["params"]["deterministic"])
    model = model.to(device, memory_format=torch.channels_last).eval()
    loader = build_loader(images, batch_size, shuffle=False, augmentation="none", seed=0, num_workers=0)
    for batch, masks in loader:
        with autocast(device, run.record["precision"]), _threads(run.record["threads"]):
            computed = compute(model, move(batch, device))
        yield move(masks, device), computed


def open_predictions(
    run: FinishedRun,
    device: torch.device,
    *,
    batch_size: int = 0,
    keep_probabilities: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Open the predictions kept in a run's folder; made first where there are none, or those of other weights.

    Writes predictions.npy, prediction_quality.npz, probabilities.npy if these are kept, and predictions.json last: files
    without it are not looked at. One batch is in memory at a time.

    Parameters
    ----------
    batch_size : images predicted at a time; 0 is the run's own, which gives the same bits on the same device.
    progress : called with (images done, images in all).
    """
    facts = {
        "weights_sha256": run.record["weights_sha256"],
        "image_ids": run.val_images.image_ids.tolist(),
        "image_size": run.image_size,
        "classes": len(run.class_names),
    }
    if not _is_current(run.folder, facts, keep_probabilities):
        (run.folder / "predictions.json").unlink(missing_ok=True)
        _write_predictions(run, device, batch_size or run.batch_size, keep_probabilities, progress)
        write_json(run.folder / "predictions.json", facts | {"probabilities": keep_probabilities})
    kept = (run.folder / "probabilities.npy").exists()
    with np.load(run.folder / "prediction_quality.npz", allow_pickle=False) as file:
        quality = {name: file[name] for name in ("reliability", "softmin", "given")}
    return Predictions(
        preds=_open_array(run.folder / "predictions.npy"),
        probabilities=_open_array(run.folder / "probabilities.npy") if kept else None,
        **quality,
    )


def count_confusion(run: FinishedRun, preds: np.ndarray) -> np.ndarray:
    """(images, classes, classes) int64 of a run's predictions, truth in rows.

    Raises
    ------
    InputError
        It is not what the run counted itself, by more than another device's rounding explains.
    """
    counts = [
        confusion_per_image(torch.from_numpy(truth)[None], torch.from_numpy(pred.copy())[None], len(run.class_names))
        for truth, pred in run.pair_masks(preds)
    ]
    confusion = torch.cat(counts).numpy()
    differing = count_differing(confusion, run.confusion)
    if differing > TOLERANCE * confusion.sum():
        raise InputError(
            f"{run.folder}: required predictions that give the run's confusion.npz, got {differing} of {confusion.sum()} pixels"
            " counted otherwise; the data or seglib changed since the run: train it again, or delete predictions.json"
        )
    return confusion


def describe_agreement(run: FinishedRun, confusion: np.ndarray) -> str:
    """One line: whether the predictions give the run's confusion matrices."""
    differing, pixels = count_differing(confusion, run.confusion), int(confusion.sum())
    if not differing:
        return f"predictions of {len(confusion)} images give the run's confusion.npz exactly, all {pixels} pixels"
    return (
        f"predictions of {len(confusion)} images: {differing} of {pixels} pixels are decided otherwise than in confusion.npz,"
        " as another device, batch size or number of threads does; the analysis is of these predictions"
    )


def count_differing(confusion: np.ndarray, other: np.ndarray) -> int:
    """Fewest pixels that must be decided otherwise to turn one confusion matrix into the other."""
    return int(np.abs(confusion - other).sum() + 1) // 2


def choose_spread(confusion: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of images from the worst to the best by their own mIoU, evenly spread, and these mIoUs.

    Images without a valid pixel are left out. confusion: (images, classes, classes).
    """
    scores = np.array([mean_iou(matrix) for matrix in confusion])
    order = np.argsort(scores)[: np.isfinite(scores).sum()]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))]
    return chosen, scores[chosen]


def _is_current(folder: Path, facts: dict, keep_probabilities: bool) -> bool:
    """Whether predictions.json says that the files beside it are what is asked for."""
    try:
        written = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = ["predictions.npy", "prediction_quality.npz"] + ["probabilities.npy"] * keep_probabilities
    same = isinstance(written, dict) and {name: written.get(name) for name in facts} == facts
    return same and all((folder / name).is_file() for name in names)


def _write_predictions(
    run: FinishedRun,
    device: torch.device,
    batch_size: int,
    keep_probabilities: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    count, size, classes = len(run.val_images), run.image_size, len(run.class_names)
    (run.folder / "probabilities.npy").unlink(missing_ok=True)
    quality = {
        "reliability": np.zeros((count, RELIABILITY_BINS, 3)),
        "softmin": np.zeros(count),
        "given": np.zeros(count),
    }
    with ExitStack() as files:
        preds_file = _start_array(files, run.folder / "predictions.npy", np.uint8, (count, size, size))
        if keep_probabilities:
            shape = (count, classes, size, size)
            probabilities_file = _start_array(files, run.folder / "probabilities.npy", np.float16, shape)
        done = 0
        for masks, logits in predict_batches(run, run.model, run.val_images, device, batch_size):
            probabilities = logits.float().softmax(dim=1)
            preds_file.write(logits.argmax(dim=1).to(torch.uint8).cpu().numpy().tobytes())
            if keep_probabilities:
                probabilities_file.write(probabilities.half().cpu().numpy().tobytes())
            for name, values in summarise_probabilities(probabilities, masks).items():
                quality[name][done : done + len(masks)] = values
            done += len(masks)
            if progress:
                progress(done, count)
    with replacing(run.folder / "prediction_quality.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **quality)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads: another number adds in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_array(files: ExitStack, path: Path, dtype: type, shape: tuple[int, ...]):
    """A file that bytes are appended to, with the header of the whole array; renamed to `path` when `files` closes."""
    temporary = files.enter_context(replacing(path))
    file = files.enter_context(temporary.open("wb"))
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file


def _open_array(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)
