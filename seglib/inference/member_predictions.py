"""Predictions of an ensemble's members: out-of-fold on the validation images, of each fold on test images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from seglib.data.dataset import Subset
from seglib.errors import InputError
from seglib.inference.finished_run import load_finished_run
from seglib.inference.members import Member
from seglib.inference.predict_run import open_test_images, predict_run
from seglib.inference.probability_store import ProbabilityStore
from seglib.inference.store_views import average_stores, join_stores


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
