"""The files that a notebook names as one collection, and which of its images train and which validate."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from seglib.data.coco import CocoData, resolve_image
from seglib.data.fingerprint import hash_files
from seglib.data.splits import make_split
from seglib.errors import InputError


def pool_files(files: Sequence[CocoData]) -> CocoData:
    """The images and annotations of several files of one folder as one; of entries with one image id the first stays.

    Where a file uses image ids of an earlier one, its own are moved up. `images` gets a column `file`, from 0.

    Raises
    ------
    InputError
        The files' categories differ.
    """
    first = files[0]
    images, annotations = [], []
    for number, data in enumerate(files):
        if (data.class_names, data.category_ids) != (first.class_names, first.category_ids):
            raise InputError(
                f"{data.json_path}: required the categories of {first.json_path.name} "
                f"({', '.join(first.class_names[1:])}), got {', '.join(data.class_names[1:])}"
            )
        own = data.images.drop_duplicates("image_id")
        taken = {image_id for table in images for image_id in table["image_id"]}
        shift = max(taken) + 1 - own["image_id"].min() if taken & set(own["image_id"]) else 0
        images.append(own.assign(image_id=own["image_id"] + shift, file=number))
        annotations.append(data.annotations.assign(image_id=data.annotations["image_id"] + shift))
    return CocoData(
        json_path=first.json_path,
        data_dir=first.data_dir,
        images=pd.concat(images, ignore_index=True),
        annotations=pd.concat(annotations, ignore_index=True),
        class_names=first.class_names,
        category_ids=first.category_ids,
    )


def hash_images(data: CocoData) -> list[str]:
    """Content hash of each image; "" where there is no such file, or its name leads out of the folder."""
    paths = []
    for name in data.images["file_name"]:
        try:
            paths.append(resolve_image(data.data_dir, name))
        except InputError:
            paths.append(data.data_dir)  # a folder has no hash
    return hash_files(paths)


def assign_subsets(
    data: CocoData, content_hashes: Sequence[str], present: np.ndarray, split: str, folds: int, fold: int, seed: int
) -> np.ndarray:
    """(N,) "train" or "val" for each image: as `make_split` divides them, or with "given" as the files do.

    Unlike in training, copies that two given files share stay in: they are what is looked for.

    Parameters
    ----------
    data : of `pool_files`
    content_hashes : N texts, of `hash_images`
    present : (N, C) bool, of `find_present`
    """
    subset = np.full(len(data.images), "train")
    if split == "given":
        return np.where(data.images["file"] == 0, subset, "val")
    groups = data.images["group"].tolist()
    subset[make_split(split, content_hashes, groups, present, folds, fold, seed)[1]] = "val"
    return subset
