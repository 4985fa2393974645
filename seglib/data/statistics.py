"""Tables of a data set: classes, object sizes, what vanishes, what occurs together, and how train and val differ."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon

from seglib.data.coco import CocoData

SIZE_LIMITS = (8, 20, 32, 96)  # [px] of sqrt(area); 32 and 96 are COCO's bounds of small and medium
ALL = "(all)"


def tabulate_files(files: Sequence[CocoData]) -> pd.DataFrame:
    """What each COCO file holds, one row a file."""
    rows = {}
    for data in files:
        annotations, images = data.annotations, data.images
        rows[data.json_path.name] = {
            "images": len(images),
            "annotations": len(annotations),
            "categories": len(data.category_ids),
            "categories used": annotations["category_id"].nunique(),
            "images without annotations": int((~images["image_id"].isin(annotations["image_id"])).sum()),
            "annotations per image": len(annotations) / max(1, len(images)),
            "crowds": int(annotations["iscrowd"].sum()),
        }
    return pd.DataFrame(rows).T


def tabulate_classes(objects: pd.DataFrame, class_pixels: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """How much of each class there is, one row a class, the background first.

    Parameters
    ----------
    objects : of `tabulate_objects`
    class_pixels : (N, C + 1) int64, of `count_painted`

    Returns
    -------
    DataFrame, index: class names
        `annotations`; `images`: with an annotation of it (for the background: with a pixel); `pixels` at the training
        resolution; `pixel_share`: of those that are not ignored; `median_size` [px].
    """
    ids = range(len(class_names))
    grouped = objects.groupby("class_id")
    pixels = class_pixels[:, : len(class_names)].sum(axis=0)
    table = pd.DataFrame(
        {
            "annotations": grouped.size().reindex(ids, fill_value=0),
            "images": grouped["image"].nunique().reindex(ids, fill_value=0),
            "pixels": pixels,
            "pixel_share": pixels / max(1, pixels.sum()),
            "median_size": grouped["size"].median().reindex(ids),
        }
    )
    table.loc[0, "images"] = np.count_nonzero(class_pixels[:, 0])
    return table.set_index(pd.Index(class_names, name="class"))


def tabulate_sizes(objects: pd.DataFrame, limits: Sequence[float] = SIZE_LIMITS) -> pd.DataFrame:
    """Objects by sqrt(area) [px] in the training image: all, then the classes that there are, most objects first.

    Returns
    -------
    DataFrame, index: "(all)" and class names
        `objects`; `median`; `<=8`, ...: share of the objects at or under each limit, 0..1.
    """
    columns = {f"<={limit:g}": objects["size"] <= limit for limit in limits}
    table = pd.DataFrame({"objects": 1, "median": objects["size"], **columns, "class": objects["class_name"]})
    how = {"objects": "size", "median": "median", **dict.fromkeys(columns, "mean")}
    by_class = table.groupby("class").agg(how).sort_values("objects", ascending=False, kind="stable")
    everything = table.assign(**{"class": ALL}).groupby("class").agg(how)
    return pd.concat([everything, by_class])


def tabulate_vanished(objects: pd.DataFrame, left: pd.DataFrame) -> pd.DataFrame:
    """Objects of whose mask no pixel is left, by class and size [px]; masks that were empty before are not counted.

    Parameters
    ----------
    left : pixels left of each object (rows) at each size (columns), of `count_painted`

    Returns
    -------
    DataFrame, index: "(all)" and class names, most objects first
        `objects`, and for each size `vanish at 256`, `share at 256` (0..1).
    """
    painted = objects["mask_area"] > 0
    gone = left[painted].eq(0)
    names = objects.loc[painted, "class_name"]
    counts, totals = gone.groupby(names).sum(), names.value_counts()
    counts.loc[ALL], totals.loc[ALL] = gone.sum(), len(names)
    order = [ALL, *totals.drop(ALL).sort_values(ascending=False, kind="stable").index]
    table = pd.DataFrame({"objects": totals.reindex(order)})
    for size in left.columns:
        table[f"vanish at {size}"] = counts[size].reindex(order).astype("int64")
        table[f"share at {size}"] = table[f"vanish at {size}"] / table["objects"].clip(lower=1)
    return table


def find_present(objects: pd.DataFrame, num_images: int, num_classes: int) -> np.ndarray:
    """(N, C) bool: the classes annotated in each image."""
    present = np.zeros((num_images, num_classes), bool)
    present[objects["image"], objects["class_id"]] = True
    return present


def count_cooccurrence(present: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """(C, C) images in which both classes are annotated; the diagonal: in which the class is. Background left out."""
    counts = present[:, 1:].astype(np.int64)
    return pd.DataFrame(counts.T @ counts, index=class_names[1:], columns=class_names[1:])


def compare_subsets(
    objects: pd.DataFrame, class_pixels: np.ndarray, subset: np.ndarray, class_names: Sequence[str]
) -> pd.DataFrame:
    """Annotations and pixels of each class in train and in val.

    Parameters
    ----------
    subset : (N,) "train" or "val" for each image

    Returns
    -------
    DataFrame, index: class names; columns (what, subset): counts under `annotations` and `pixels`, shares of the
    subset under `annotation_share` and `pixel_share`.
    """
    names = list(class_names)
    columns = {}
    for name in ("train", "val"):
        own = objects.loc[subset[objects["image"]] == name, "class_id"]
        columns["annotations", name] = np.bincount(own, minlength=len(names))
        columns["pixels", name] = class_pixels[subset == name][:, : len(names)].sum(axis=0)
    for what in ("annotation", "pixel"):
        for name in ("train", "val"):
            counts = columns[f"{what}s", name]
            columns[f"{what}_share", name] = counts / max(1, counts.sum())
    return pd.DataFrame(columns, index=pd.Index(names, name="class"))


def compute_divergence(compared: pd.DataFrame, what: str) -> float:
    """Jensen-Shannon divergence of the classes in train and in val, base 2: 0 the same, 1 nothing in common.

    The background is left out: most pixels are its, and would make any two sets alike. NaN where a set has no objects.

    Parameters
    ----------
    compared : of `compare_subsets`
    what : "annotations" or "pixels"
    """
    counts = compared[what].iloc[1:]
    if not counts.sum().all():
        return float("nan")
    return float(jensenshannon(counts["train"], counts["val"], base=2) ** 2)
