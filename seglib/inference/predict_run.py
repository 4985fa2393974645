"""A finished run's probabilities, predicted once and kept."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from seglib.data.coco import load_coco, resolve_image
from seglib.data.dataset import Subset
from seglib.data.fingerprint import hash_files
from seglib.data.pixels import open_pixels
from seglib.data.verify import refuse_errors, verify_coco
from seglib.errors import InputError, unknown_name
from seglib.files import hash_text
from seglib.inference.predict import MERGES, View, build_views, check_sliding, merge_views, predict_batches, slide
from seglib.inference.runs import FinishedRun, Member, choose_weights, load_finished_run
from seglib.inference.stores import (
    DTYPES,
    ProbabilityStore,
    average_stores,
    describe_store,
    join_stores,
    open_store,
    write_store,
)
from seglib.models.refusals import explain_refusal
from seglib.training.device import autocast, describe_device

# From images to stored probabilities: which views of an image are predicted, how they are merged, resized and rounded.


RESIZES = ("nearest", "smooth")
LARGEST = 4096  # [px]


@dataclass(frozen=True)
class Recipe:
    """What is asked for, checked; two that give the same bytes are equal. See `predict_run` for the meaning.

    Attributes
    ----------
    window : the model's own side [px]
    views : at least one
    sliding : {}, or with every option
    size : side of what is stored [px]
    """

    window: int
    views: tuple[View, ...]
    merge: str
    sliding: Mapping[str, Any]
    size: int
    resize: str
    dtype: str

    @property
    def side(self) -> int:
        """Side that images are opened at [px]."""
        return self.sliding.get("size", self.window)

    def describe(self) -> dict[str, Any]:
        """In texts and numbers, for a store's facts."""
        names = ("merge", "size", "resize", "dtype")
        return {name: getattr(self, name) for name in names} | {
            "tta": [str(view) for view in self.views],
            "sliding": dict(self.sliding),
        }


def check_recipe(
    image_size: int,
    tta: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    merge: str,
    sliding: Mapping[str, Any],
    size: int,
    resize: str,
    dtype: str,
) -> Recipe:
    """Build a recipe for a model of `image_size` [px]; the parameters are those of `predict_run`.

    Raises
    ------
    InputError
        Unknown names or values out of range.
    """
    for name, value, choices in (("merge", merge, MERGES), ("resize", resize, RESIZES), ("dtype", dtype, DTYPES)):
        if value not in choices:
            raise InputError(f"predict_run: {unknown_name(name, value, choices)}")
    size = size or image_size
    if not 1 <= size <= LARGEST:
        raise InputError(f"predict_run: size must be 1 to {LARGEST} px, or 0 for the model's {image_size}, got {size}")
    sliding = check_sliding(sliding, image_size)
    side = sliding.get("size", image_size)
    views = tuple(build_views(tta, side))
    return Recipe(
        window=image_size,
        views=views,
        merge=merge if len(views) > 1 else "mean",
        sliding=sliding,
        size=size,
        resize="smooth" if size > side else "nearest" if size == side else resize,
        dtype=dtype,
    )


def compute_probabilities(recipe: Recipe, model: nn.Module, images: Tensor) -> Tensor:
    """(N, C, size, size) float32 of images (N, 3, side, side) uint8."""
    forward = model
    if recipe.sliding:
        forward = partial(slide, model, recipe.window, recipe.sliding["overlap"], recipe.sliding["blend"])
    probabilities = merge_views(forward, images, recipe.views, recipe.merge)
    return resize_probabilities(probabilities, recipe.size, recipe.resize)


def resize_probabilities(probabilities: Tensor, size: int, resize: str) -> Tensor:
    """(N, C, S, S) -> (N, C, size, size), see `predict_run`; a whole factor k and "nearest" give [..., ::k, ::k]."""
    side = probabilities.shape[-1]
    if side == size:
        return probabilities
    if resize == "smooth":
        return F.interpolate(probabilities, (size, size), mode="bilinear", antialias=True)
    index = torch.arange(size, device=probabilities.device) * side // size
    return probabilities[:, :, index][..., index]


def quantise(probabilities: Tensor, dtype: str) -> Tensor:
    """(N, C, S, S) float32 in 0..1 -> float16, or uint8 255 p rounded with its argmax kept, see `predict_run`."""
    if dtype == "float16":
        return probabilities.half()
    top = probabilities.argmax(dim=1, keepdim=True)
    stored = (probabilities * 255).round().to(torch.uint8)
    lost = stored.argmax(dim=1, keepdim=True) != top
    classes = torch.arange(stored.shape[1], device=top.device).view(1, -1, 1, 1)
    return stored + (lost & (classes == top)).to(torch.uint8)


# Probabilities of a finished run for a set of images: predicted once, and found again as long as nothing changed.


VERSION = 1  # of how probabilities are computed and stored: those of another one are made again
NOTHING = MappingProxyType({})


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
    data = load_coco(Path(data_dir).expanduser() if data_dir else own.data_dir, json_name)
    data = replace(
        data, annotations=data.annotations.iloc[:0], class_names=own.class_names, category_ids=own.category_ids
    )
    refuse_errors(verify_coco(data), data.json_path)
    return Subset(data, _open_pixels(run, data, run.image_size), np.arange(len(data.images)))


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
    resize: str = "nearest",
    dtype: str = "uint8",
    batch_size: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbabilityStore:
    """Open the probabilities of a run for some images; predicted first where there are none, or those of other weights.

    They are kept in the run's folder, in probabilities/.
    A killed prediction goes on where it was. Predictions of weights or images that changed since are deleted, once
    the new ones are whole.

    uint8 keeps 255 p, rounded; where that ties the most probable class with a lower one it is raised by 1, so that a
    store's argmax is that of the probabilities in every pixel: one model loses nothing. The mean of two models on CamVid
    decided 0.026 % of the pixels otherwise than in float32, mIoU 0.5261 for 0.5263; with float16 0.002 %, mIoU 0.5263.

    Parameters
    ----------
    images : `run.val_images`, or what `open_test_images` opened; opened again where the size is not the model's.
    final : take final.pt where the run has one, in place of best.pt. It has seen the validation images, so for images of a
        test set alone; the facts say which it was, as `weights_file`.
    tta : flips, rotations and scales, see `build_views`; empty for the plain image.
    merge : "mean" of the views' probabilities, or of their "logits".
    sliding : predict images opened at a larger size in windows, see `check_sliding`; empty for the whole image at once.
    size : side at which probabilities are kept [px]; 0 is the model's.
    resize : how to get to a smaller size. "nearest" takes one pixel of several, and is exact: a vote over such stores and
        its argmax are what voting at the model's size and resizing the masks by nearest neighbour gives. "smooth" is
        linear, with a filter as wide as the step; at half the size it scored 0.002 to 0.003 mIoU less on CamVid. To a
        larger size both are linear between pixel centres, since repeated pixels would vote in blocks.
    dtype : "uint8", or "float16" of twice the size.
    batch_size : images predicted at a time; 0 is the run's own.
    progress : called with (images done, images in all).

    Raises
    ------
    InputError
        Options that are unknown or that the model cannot do, or a disk that is too full.
    """
    recipe = check_recipe(run.image_size, tta, merge, sliding, size, resize, dtype)
    weights_file, weights_sha256, take_model = choose_weights(run, may_be_final=final)
    batch_size = batch_size or run.batch_size
    facts = recipe.describe() | {
        "run": run.folder.name,
        "images": images.data.json_path.name,
        "images_hash": _hash_images(images),
        "image_size": run.image_size,
        "precision": run.record["precision"],
        "weights_file": weights_file,
        "weights_sha256": weights_sha256,
        "batch_size": batch_size,
        "device": describe_device(device),
    }
    folder = _name_folder(run, recipe, images, facts)
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.parent / f"{_name_request(folder)}.lock"):
        if not _is_kept(folder):
            about = describe_store(images.image_ids, _file_names(images), run.class_names, recipe.size, dtype, facts)
            model = take_model()
            _require_sides(run, model, recipe, device)
            predict = partial(_predict_from, run, model, _open_at(run, images, recipe.side), recipe, device, batch_size)
            write_store(folder, about, predict, batch_size, progress)
        _delete_superseded(folder)
    return open_store(folder)


def _name_folder(run: FinishedRun, recipe: Recipe, images: Subset, facts: Mapping[str, Any]) -> Path:
    """JSON's name, hash of what is asked for, hash of what it is made from."""
    request = [VERSION, recipe.describe(), facts["images"], images.image_ids.tolist()]
    if facts["weights_file"] != "best.pt":
        request.append(facts["weights_file"])  # kept beside what best.pt says of the same images
    names = ("images_hash", "image_size", "precision", "weights_file", "weights_sha256")
    hashes = [hash_text(json.dumps(part))[:8] for part in (request, [facts[name] for name in names])]
    return run.folder / "probabilities" / "-".join([Path(facts["images"]).stem, *hashes])


def _name_request(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _hash_images(images: Subset) -> str:
    """Hash of the images' files, in order, and of what the JSON says of them."""
    rows = images.data.images.iloc[images.indices]
    files = hash_files([resolve_image(images.data.data_dir, name) for name in rows["file_name"]])
    return hash_text(json.dumps([files, rows[["image_id", "file_name", "width", "height"]].to_dict("list")]))


def _file_names(images: Subset) -> list[str]:
    return images.data.images["file_name"].iloc[images.indices].tolist()


def _open_pixels(run: FinishedRun, data, side: int):
    params = run.record["params"]
    return open_pixels(data, side, params["paint_order"], params["background"], params.get("cache", True))


def _open_at(run: FinishedRun, images: Subset, side: int) -> Subset:
    if images.image_size == side:
        return images
    return Subset(images.data, _open_pixels(run, images.data, side), images.indices)


def _is_kept(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        open_store(folder)
    except InputError as error:
        warnings.warn(f"{error} (now)", stacklevel=3)
        return False
    return True


def _delete_superseded(folder: Path) -> None:
    """Delete what answers the same request from weights or images that are no longer those of the run."""
    for other in folder.parent.glob(f"{_name_request(folder)}-*"):
        if other != folder:
            shutil.rmtree(other)


def _require_sides(run: FinishedRun, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Refuse views whose scaled images the model cannot take, before the first image is predicted."""
    sides = {min(view.side, recipe.window) if recipe.sliding else view.side for view in recipe.views}
    params = run.record["params"]
    for side in sorted(sides - {recipe.window}):
        image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
        try:
            with torch.inference_mode(), autocast(device, run.record["precision"]):
                shape = model.to(device).eval()(image).shape[-2:]
        except Exception as error:  # models raise whatever their parts raise
            if isinstance(error, torch.OutOfMemoryError):
                raise
            names = params["architecture"], params["encoder"]
            reason = explain_refusal(*names, error, doing=f"predict images of {side} px")
            raise InputError(
                f"tta: scales give {side} px, which {run.folder} cannot take: {reason}; leave them out"
            ) from error
        if tuple(shape) != (side, side):
            raise InputError(f"tta: scales give {side} px, of which {run.folder} makes {tuple(shape)}; leave them out")


def _predict_from(
    run: FinishedRun,
    model: nn.Module,
    images: Subset,
    recipe: Recipe,
    device: torch.device,
    batch_size: int,
    start: int,
) -> Iterator[np.ndarray]:
    rest = Subset(images.data, images.pixels, images.indices[start:])
    compute = partial(compute_probabilities, recipe)
    for _, probabilities in predict_batches(run, model, rest, device, batch_size, compute):
        if not torch.isfinite(probabilities).all():
            raise InputError(f"{run.folder}: required probabilities, got NaN from the model; train it again")
        yield quantise(probabilities, recipe.dtype).cpu().numpy()


# Predictions of an ensemble's members: out-of-fold on the validation images, of each fold on test images.


def choose_size(members: Sequence[Member], size: int = 0) -> int:
    """Side at which members are merged [px]: `size`, or with 0 the largest input size among them."""
    return size or max(member.image_size for member in members)


def predict_validation(
    members: Sequence[Member], *, device: torch.device, size: int = 0, data_dir: str = "", **options: Any
) -> tuple[list[ProbabilityStore], Subset]:
    """Predict the images that members are scored on, each by models that have not seen it; one model in memory at a time.

    Parameters
    ----------
    size : see `choose_size`.
    data_dir : where the runs' data is now; "" where it was.
    options : of `predict_run`: tta, merge, sliding, resize, dtype, batch_size, progress.

    Returns
    -------
    stores : one a member, of the same images in the same order.
    truth : these images with their masks, at the largest input size among the members that know all classes.

    Raises
    ------
    InputError
        Runs that cannot be opened or predicted, or that have other images.
    """
    size, predicted = choose_size(members, size), []
    for member in members:
        parts = []
        for folder in member.folders:
            run = load_finished_run(folder, data_dir)
            store = predict_run(run, run.val_images, device=device, size=size, **options)
            parts.append((store, run.val_images))
            del run  # and its model
        predicted.append(_join(parts))
    _require_same_files([store for store, _ in predicted])
    full = [subset for member, (_, subset) in zip(members, predicted, strict=True) if not member.focus_classes]
    return [store for store, _ in predicted], max(full or [predicted[0][1]], key=lambda subset: subset.image_size)


def predict_test(
    members: Sequence[Member], json_name: str, *, device: torch.device, size: int = 0, data_dir: str = "",
    test_dir: str = "", **options: Any,
) -> list[ProbabilityStore]:  # fmt: skip
    """Predict other images by all runs of all members, one store a run: `spread_weights` gives their weights.

    A run that was fitted to all images at the end predicts with these weights, its final.pt.

    Parameters
    ----------
    json_name : see `open_test_images`; in `test_dir`, or with "" beside the validation images.
    size, data_dir, options : those of `predict_validation`.
    """
    size, stores = choose_size(members, size), []
    for folder in [folder for member in members for folder in member.folders]:
        run = load_finished_run(folder, data_dir)
        images = open_test_images(run, json_name, test_dir)
        stores.append(predict_run(run, images, device=device, final=True, size=size, **options))
        del run
    _require_same_files(stores)
    return stores


def average_folds(members: Sequence[Member], stores: Sequence[ProbabilityStore]) -> list[ProbabilityStore]:
    """One store a member of the stores a run that `predict_test` gives: the mean of a member's folds, read as it is asked for.

    For specialists: a threshold that was chosen on one prediction an image is no threshold for the highest of five.
    """
    remaining = iter(stores)
    return [average_stores([next(remaining) for _ in member.folders]) for member in members]


def _join(parts: Sequence[tuple[ProbabilityStore, Subset]]) -> tuple[ProbabilityStore, Subset]:
    if len(parts) == 1:
        return parts[0]
    subset = parts[0][1]
    images = Subset(subset.data, subset.pixels, np.sort(np.concatenate([each.indices for _, each in parts])))
    return join_stores([store for store, _ in parts], images.image_ids), images


def _require_same_files(stores: Sequence[ProbabilityStore]) -> None:
    """Ids may be alike by chance, of two data sets that both count from 1."""
    for store in stores[1:]:
        if store.file_names != stores[0].file_names:
            raise InputError(f"{store.folder}: required the images of {stores[0].folder}, got others, or another order")
