"""Predictions of a finished run: in several views, whole or in windows, kept as a store of probabilities."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, channels_last, nn

from seglib.data.coco import load_coco
from seglib.data.dataset import Subset
from seglib.data.loader import build_loader
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pixels import open_pixels
from seglib.data.verify import refuse_errors, verify_coco
from seglib.errors import InputError
from seglib.evaluation.metrics import summarise_probabilities
from seglib.files import expand, hash_files, hash_text
from seglib.inference.runs import FinishedRun, Member, choose_weights, load_finished_run
from seglib.inference.stores import (
    Progress,
    Store,
    argmax_planes,
    describe_store,
    join_stores,
    keep_masks,
    open_store,
    require_alike,
    write_store,
)
from seglib.inference.views import Forward, View, check_request, compute_probabilities, quantise
from seglib.inference.votes import count_masks
from seglib.models import explain_refusal
from seglib.training.device import autocast, describe_device, move, seed_everything
from seglib.training.step import prepare_images

VERSION = 1  # of how probabilities are computed and stored: those of another one are made again
NOTHING = MappingProxyType({})


def predict_run(
    run: FinishedRun,
    images: Subset,
    *,
    device: torch.device,
    final: bool = False,
    tta: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    merge: str = "mean",
    sliding: Mapping[str, Any] = NOTHING,
    size: int = 0,
    dtype: str = "uint8",
    batch_size: int = 0,
    progress: Progress | None = None,
) -> Store:
    """Open the probabilities of a run for some images; predicted first where there are none, or those of other weights.

    They are kept in the run's folder, in probabilities/. A killed prediction goes on where it was. Predictions of weights
    or images that changed since are deleted, once the new ones are whole.

    uint8 keeps 255 p, rounded; where that ties the most probable class with a lower one it is raised by 1, so that a
    store's argmax is that of the probabilities in every pixel: one model loses nothing. The mean of two models on CamVid
    decided 0.026 % of the pixels otherwise than in float32, mIoU 0.5261 for 0.5263; with float16 0.002 %, mIoU 0.5263.

    Parameters
    ----------
    images : `run.val_images`, or what `open_test_images` opened; opened again where the size is not the model's.
    final : take final.pt where the run has one, in place of best.pt. It has seen the validation images, so for images of a
        test set alone; its `origin` says which it was, as `weights_file`.
    tta : flips, rotations and scales, see `build_views`; empty for the plain image.
    merge : "mean" of the views' probabilities, or of their "logits".
    sliding : predict images opened at a larger size in windows, see `check_sliding`; empty for the whole image at once.
    size : side at which probabilities are kept [px]; 0 is the model's. A smaller size takes one pixel of several, which is
        exact: a vote over such stores and its argmax are what voting at the model's size and resizing the masks by nearest
        neighbour gives. A larger one is linear between pixel centres, since repeated pixels would vote in blocks.
    dtype : "uint8", or "float16" of twice the size.
    batch_size : images predicted at a time; 0 is the run's own, which gives the same bits on the same device.
    progress : called with (images done, images in all).

    Raises
    ------
    InputError
        Options that are unknown or that the model cannot do, or a disk that is too full.
    """
    options = {"merge": merge, "size": size, "dtype": dtype, "tta": tta, "sliding": sliding}
    views, request = check_request(run.image_size, **options)
    weights_file, weights_sha256, take_model = choose_weights(run, may_be_final=final)
    batch_size = batch_size or run.batch_size
    rows, said = images.data.images.iloc[images.indices], ["image_id", "file_name", "width", "height"]
    origin = request | {
        "run": run.folder.name,
        "images": images.data.json_path.name,
        "images_hash": hash_text(json.dumps([hash_files(rows["path"]), rows[said].to_dict("list")])),
        "image_size": run.image_size,
        "precision": run.record["precision"],
        "weights_file": weights_file,
        "weights_sha256": weights_sha256,
        "batch_size": batch_size,
        "device": describe_device(device),
    }
    folder = _name_folder(run, request, images, origin)
    folder.parent.mkdir(exist_ok=True)
    request_name = folder.name.rpartition("-")[0]
    with FileLock(folder.parent / f"{request_name}.lock"):
        if not _is_kept(folder):
            names = rows["file_name"].tolist()
            about = describe_store(images.image_ids, names, run.class_names, request["size"], dtype, origin)
            model = take_model()
            _require_sides(run, model, views, request, device)
            compute = partial(compute_probabilities, views=views, request=request, window=run.image_size)
            side = request["sliding"].get("size", run.image_size)
            opened = (
                images if images.image_size == side else replace(images, pixels=_open_pixels(run, images.data, side))
            )
            predict = partial(predict_batches, run, model, opened, device, batch_size, compute, dtype)
            write_store(folder, about, predict, batch_size, progress)
        for other in folder.parent.glob(f"{request_name}-*"):  # of other weights or images
            if other != folder:
                shutil.rmtree(other)
    return open_store(folder)


def open_test_images(run: FinishedRun, json_name: str, data_dir: str = "") -> Subset:
    """Open images to predict as the run's validation images were opened; annotations, if there are any, are left out.

    Parameters
    ----------
    json_name : a COCO file with `images`, of any size. The classes are the run's, whatever categories it has or lacks.
    data_dir : its folder; "" is that of the run's validation images.

    Raises
    ------
    InputErrors
        One line for each error that `verify_coco` finds: missing images, other sizes than the file says, and so on.
    """
    own = run.val_images.data
    data = load_coco(expand(data_dir) if data_dir else own.data_dir, json_name)
    data = replace(
        data,
        annotations=data.annotations.iloc[:0],
        ignored=None,
        class_names=own.class_names,
        category_ids=own.category_ids,
    )
    refuse_errors(verify_coco(data), data.json_path)
    return Subset(data, _open_pixels(run, data, run.image_size), np.arange(len(data.images)))


def predict_validation(members: Sequence[Member], *, data_dir: str = "", **options: Any) -> tuple[list[Store], Subset]:
    """Predict the images that members are scored on, each by models that have not seen it; one model in memory at a time.

    Returns
    -------
    One store per member, of the same images in the same order; and these images with their masks, at the largest input
    size among the members that know all classes.
    """
    predicted = []
    for member in members:
        stores, subsets = [], []
        for folder in member.folders:
            run = load_finished_run(folder, data_dir)
            stores.append(predict_run(run, run.val_images, **options))
            subsets.append(run.val_images)
            del run  # and its model
        indices = np.sort(np.concatenate([subset.indices for subset in subsets]))
        images = Subset(subsets[0].data, subsets[0].pixels, indices)
        predicted.append((stores[0] if len(stores) == 1 else join_stores(stores, images.image_ids), images))
    require_alike([store for store, _ in predicted], ("file_names",))
    full = [images for member, (_, images) in zip(members, predicted, strict=True) if not member.focus_classes]
    return [store for store, _ in predicted], max(full or [predicted[0][1]], key=lambda images: images.image_size)


def predict_test(members: Sequence[Member], json_name: str, *, data_dir: str = "", **options: Any) -> list[Store]:
    """Predict other images, of a file beside the validation images, by all runs of all members, one store per run.

    A run that was fitted to all images at the end predicts with these weights, its final.pt.
    """
    stores = []
    for folder in [folder for member in members for folder in member.folders]:
        run = load_finished_run(folder, data_dir)
        stores.append(predict_run(run, open_test_images(run, json_name), final=True, **options))
        del run
    require_alike(stores, ("file_names",))  # ids may be alike by chance, of two data sets that both count from 1
    return stores


# What the analysis of one run needs: masks, their confusion, how far probabilities can be trusted.


TOLERANCE = 1e-3  # share of pixels that another device or batch size may decide otherwise


class Predictions(NamedTuple):
    """Predictions of a run's N validation images of S x S pixels, in their order.

    Attributes
    ----------
    store : Store, what an ensemble votes with
    preds : (N, S, S) uint8 class ids, a memory map
    reliability : (N, bins, 3) float64: pixels, sum of confidences, pixels that are right; see `summarise_probabilities`
    softmin, given : (N,) float64, label quality of each image
    """

    store: Store
    preds: np.ndarray
    reliability: np.ndarray
    softmin: np.ndarray
    given: np.ndarray


def open_predictions(
    run: FinishedRun,
    device: torch.device,
    *,
    batch_size: int = 0,
    keep_probabilities: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Open the predictions of a run's validation images, see `predict_run`: those that an ensemble uses too.

    Parameters
    ----------
    keep_probabilities : in float16 too, finer than the uint8 that is kept anyway.
    """
    options = {"device": device, "batch_size": batch_size, "progress": progress}
    store, summaries = predict_run(run, run.val_images, **options), []
    if keep_probabilities:
        predict_run(run, run.val_images, dtype="float16", **options)

    def decide(position: int) -> np.ndarray:
        probabilities = store.read_probabilities(position)
        pair = torch.from_numpy(probabilities), torch.from_numpy(run.val_images.read(position)[1])
        summaries.append(summarise_probabilities(*(each.to(device) for each in pair)))
        return argmax_planes(probabilities)

    preds = keep_masks(store.folder / "preds.npy", map(decide, range(len(store))), len(store), store.size)
    quality = {name: np.stack([each[name] for each in summaries]) for name in Predictions._fields[2:]}
    return Predictions(store, preds, **quality)


def count_confusion(run: FinishedRun, preds: np.ndarray) -> np.ndarray:
    """(images, classes, classes) int64 of a run's predictions, truth in rows."""
    confusion = count_masks(run.val_images, preds)
    differing = count_differing(confusion, run.confusion)
    if differing > TOLERANCE * confusion.sum():
        why = "the data or seglib changed since the run: train it again, or delete its folder probabilities"
        if "architecture" in (run.record.get("made_by_hand") or ()):
            why = f"the code in {run.folder / 'parts'} is not that of the cell that made the model: correct it, and delete its folder probabilities"
        raise InputError(
            f"{run.folder}: required predictions that give the run's confusion.npz, got {differing} of {confusion.sum()} pixels"
            f" counted otherwise; {why}"
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


def take_images(
    subset: Subset, preds: np.ndarray | Mapping[int, Tensor], positions: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images, truths, preds of some images as `predict` gives them, from predictions (N, S, S) made before."""
    images, truths = (np.stack(arrays) for arrays in zip(*map(subset.read, positions), strict=True))
    return images, truths, np.stack([preds[position] for position in positions])


def probability_of_labels(store: Store, truths: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """(n, S, S) float32: the probability of the label that each pixel of truths (n, S, S) has; 1 where it is ignored."""
    probabilities = np.stack([store.read_probabilities(position) for position in positions])
    labels = np.minimum(truths, probabilities.shape[1] - 1)[:, None].astype(np.int64)
    return np.where(truths == IGNORE_INDEX, 1, np.take_along_axis(probabilities, labels, axis=1)[:, 0])


@torch.inference_mode()
def predict_batches(
    run: FinishedRun, model: nn.Module, images: Subset, device: torch.device, batch_size: int,
    compute: Callable[[Forward, Tensor], Tensor], dtype: str, start: int,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Probabilities (n, C, S, S) of dtype per batch, from image `start` on: what `compute` makes of the model and images.

    Computed as training's evaluation does: the same algorithms, layout, precision, batches.
    """
    seed_everything(run.record["params"]["seed"], run.record["params"]["deterministic"])
    model = model.to(device, memory_format=channels_last).eval()
    rest = replace(images, indices=images.indices[start:])
    for batch, _ in build_loader(rest, batch_size, shuffle=False, augmentation="none", seed=0, num_workers="auto"):
        with autocast(device, run.record["precision"]), _threads(run.record["threads"]):
            probabilities = compute(partial(_forward, model), move(batch, device))
        if not torch.isfinite(probabilities).all():
            raise InputError(f"{run.folder}: required probabilities, got NaN from the model; train it again")
        yield quantise(probabilities, dtype).cpu().numpy()


def _forward(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of images (N, 3, S, S) uint8, be the model seglib's or one that was made by hand."""
    return model(prepare_images(model, images))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads: another number adds in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require_sides(
    run: FinishedRun, model: nn.Module, views: Sequence[View], request: Mapping[str, Any], device: torch.device
) -> None:
    """Refuse views whose scaled images the model cannot take, before the first image is predicted."""
    window, params = run.image_size, run.record["params"]
    sides = {min(view.side, window) if request["sliding"] else view.side for view in views}
    for side in sorted(sides - {window}):
        image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
        try:
            with torch.inference_mode(), autocast(device, run.record["precision"]):
                shape = _forward(model.to(device).eval(), image).shape[-2:]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models raise whatever their parts raise
            names = params["architecture"], params["encoder"]
            reason = explain_refusal(*names, error, doing=f"predict images of {side} px")
            raise InputError(
                f"tta: scales give {side} px, which {run.folder} cannot take: {reason}; leave them out"
            ) from error
        if tuple(shape) != (side, side):
            raise InputError(f"tta: scales give {side} px, of which {run.folder} makes {tuple(shape)}; leave them out")


def _name_folder(run: FinishedRun, request: Mapping, images: Subset, origin: Mapping[str, Any]) -> Path:
    """JSON's name, hash of what is asked for, hash of what it is made from."""
    asked = [VERSION, dict(request), origin["images"], images.image_ids.tolist()]
    if origin["weights_file"] != "best.pt":
        asked.append(origin["weights_file"])  # kept beside what best.pt says of the same images
    names = ("images_hash", "image_size", "precision", "weights_file", "weights_sha256")
    hashes = [hash_text(json.dumps(part))[:8] for part in (asked, [origin[name] for name in names])]
    return run.folder / "probabilities" / "-".join([Path(origin["images"]).stem, *hashes])


def _open_pixels(run: FinishedRun, data, side: int):
    params = run.record["params"]
    return open_pixels(data, side, params["paint_order"], params["background"], params.get("cache", True))


def _is_kept(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        open_store(folder)
    except InputError as error:
        warnings.warn(f"{error} (now)", stacklevel=3)
        return False
    return True
