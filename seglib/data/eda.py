"""What a data set is like: tables of its classes, objects, images and split, and what they say in words."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon

from seglib.data.coco import CocoData
from seglib.data.images import BLACK, CONSTANT, read_image
from seglib.data.pixels import CHUNK, THREADS, resize_image
from seglib.data.splits import hash_picture
from seglib.errors import InputError

if TYPE_CHECKING:
    from seglib.data.analysis import PaintedCounts

SIZE_LIMITS = (8, 20, 32, 96)  # [px] of sqrt(area); 32 and 96 are COCO's bounds of small and medium
FEW = 20  # annotations: a class with fewer is hardly learnt, and scored by luck
ALL = "(all)"
CHANNELS = ["red", "green", "blue"]


def tabulate_files(files: Sequence[CocoData]) -> pd.DataFrame:
    """What each COCO file holds, one row per file."""
    rows = {}
    for data in files:
        annotations, images = data.annotations, data.images
        rows[data.name] = {
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
    """How much of each class there is, one row per class, the background first.

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
    """Objects of whose mask no pixel is left, by class and size [px].

    Parameters
    ----------
    left : pixels left of each object (rows) at each size (columns), of `count_painted`

    Returns
    -------
    DataFrame, index: "(all)" and class names, most objects first
        `objects`, and for each size `vanish at 256`, `share at 256` (0..1).
    """
    gone = left.eq(0).astype("int64").assign(objects=1)
    by_class = gone.groupby(objects["class_name"], sort=False).sum()
    by_class = by_class.sort_values("objects", ascending=False, kind="stable")
    counts = pd.concat([pd.DataFrame({ALL: gone.sum()}).T, by_class])
    table = counts[["objects"]].rename_axis("class_name")
    for size in left.columns:
        table[f"vanish at {size}"] = counts[size]
        table[f"share at {size}"] = counts[size] / counts["objects"].clip(lower=1)
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


def tabulate_copies(pairs: pd.DataFrame, file_names: pd.Series, subset: np.ndarray) -> pd.DataFrame:
    """The pairs with their files' names and subsets, for people and for CSV."""
    sides = {side: pairs[side].to_numpy() for side in ("first", "second")}
    names = {side: file_names.iloc[rows].to_numpy() for side, rows in sides.items()}
    return pairs.assign(**names, **{f"{side}_subset": subset[rows] for side, rows in sides.items()})


def measure_images(data: CocoData, image_size: int) -> pd.DataFrame:
    """Measure the pixels of each image at the training resolution; a chunk of images is in memory at a time.

    Returns
    -------
    DataFrame, one row per image, in the order of `data.images`
        `error`: why the image cannot be read, "" where it can be; `red`, `green`, `blue`: means, 0..255; `red_square`,
        ...: means of squares; `black`, `constant`: bool; `picture_hash`: uint64. Zeros where it cannot be read.
    """
    rows = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(data.images), CHUNK):
            chunk = data.images.iloc[start : start + CHUNK].itertuples()
            rows += pool.map(lambda row: _measure(data, row, image_size), chunk)
    columns = ["error", *CHANNELS, *(f"{name}_square" for name in CHANNELS), "black", "constant", "picture_hash"]
    return pd.DataFrame(rows, index=data.images.index, columns=columns)


def _measure(data: CocoData, row: tuple, image_size: int) -> tuple:
    try:
        image = read_image(row.path, (row.width, row.height), row.exif)
    except InputError as error:
        return (str(error), *[0.0] * 6, False, False, np.uint64(0))
    image = resize_image(image, image_size)
    pixels = image.reshape(-1, 3)
    squares = np.square(pixels, dtype=np.uint32).mean(axis=0)
    black, constant = pixels.max() <= BLACK, np.ptp(pixels, axis=0).max() <= CONSTANT
    return ("", *pixels.mean(axis=0), *squares, bool(black), bool(constant), hash_picture(image))


def compute_colour_statistics(measured: pd.DataFrame, subset: np.ndarray) -> pd.DataFrame:
    """Mean and standard deviation of each channel over all pixels of each subset, in 0..1 as Normalize takes them."""
    sound = measured["error"] == ""
    means = measured[sound].groupby(subset[sound]).mean(numeric_only=True).reindex(pd.unique(subset)) / 255
    deviations = {f"std {name}": np.sqrt(means[f"{name}_square"] / 255 - means[name] ** 2) for name in CHANNELS}
    return pd.DataFrame({f"mean {name}": means[name] for name in CHANNELS} | deviations)


# What the tables say, in words made from their numbers.


def describe_problems(problems: pd.DataFrame) -> str:
    counts = problems["severity"].value_counts()
    errors, warnings = int(counts.get("error", 0)), int(counts.get("warning", 0))
    if not errors:
        return f"**Annotations:** no errors, {warnings} warnings."
    names = ", ".join(problems.loc[problems["severity"] == "error", "problem"].unique())
    return f"**Annotations:** {errors:,} errors ({names}) and {warnings} warnings; training refuses this data until they are mended."


def describe_classes(classes: pd.DataFrame, counts: "PaintedCounts") -> str:
    foreground = classes.iloc[1:].sort_values("annotations", ascending=False)
    present = foreground[foreground["annotations"] > 0]
    if present.empty:
        return "**Classes:** no annotation can be painted."
    most, least = present.iloc[0], present.iloc[-1]
    ratio = most["annotations"] / least["annotations"]
    few, absent = int((present["annotations"] < FEW).sum()), len(foreground) - len(present)
    pixels = counts.class_pixels.sum(axis=0)
    return (
        f"**Classes:** {present.index[0]} has {most['annotations']:,.0f} annotations, {ratio:,.0f} times as many as "
        f"{present.index[-1]} ({least['annotations']:,.0f}); {few} of {len(foreground)} classes have fewer than {FEW}, "
        f"{absent} none. {_percent(pixels[0] / pixels.sum())} of all pixels are background, "
        f"{_percent(pixels[-1] / pixels.sum())} are ignored."
    )


def describe_sizes(sizes: pd.DataFrame, image_size: int) -> str:
    if ALL not in sizes.index:
        return "**Sizes:** there are no objects."
    row = sizes.loc[ALL]
    shares = [f"{_percent(row[name])} are at or under {name.removeprefix('<=')} px" for name in sizes if name[0] == "<"]
    return f"**Sizes:** at {image_size} px the median object is {row['median']:.0f} px across; {', '.join(shares)}."


def describe_vanished(vanished: pd.DataFrame) -> str:
    parts = []
    for name in [name for name in vanished if name.startswith("vanish at")]:
        lost, by_class = vanished.loc[ALL, name], vanished.drop(ALL)[name]
        most = f", most of them {by_class.idxmax()} ({by_class.max():,})" if lost else ""
        share = _percent(lost / max(1, vanished.loc[ALL, "objects"]))
        parts.append(f"at {name.removeprefix('vanish at ')} px {lost:,} objects ({share}) vanish{most}")
    return f"**Resizing:** of {vanished.loc[ALL, 'objects']:,} objects, {'; '.join(parts)}."


def describe_overlaps(
    objects: pd.DataFrame, overlaps: pd.DataFrame, pairs: pd.DataFrame, counts: "PaintedCounts"
) -> str:
    if overlaps.empty:
        return "**Overlaps:** no two annotations overlap; the painting order makes no difference."
    involved = pd.unique(overlaps[["first", "second"]].to_numpy().ravel()).size
    disputed, covered = counts.disputed.sum(), max(1, counts.covered.sum())
    different = pairs[pairs["class_a"] != pairs["class_b"]]
    most = [f" Of different classes, {row.class_a} and {row.class_b} share most pixels ({row.overlaps:,} pairs of annotations)."
            for row in different.head(1).itertuples()]  # fmt: skip
    return (
        f"**Overlaps:** {involved:,} of {len(objects):,} annotations ({_percent(involved / len(objects))}) overlap "
        f"another; the three painting policies disagree in {disputed:,} px, {_percent(disputed / covered)} of the "
        f"objects' pixels, in {np.count_nonzero(counts.disputed):,} images.{''.join(most)}"
    )


def describe_split(subset: np.ndarray, compared: pd.DataFrame) -> str:
    train, val = (int((subset == name).sum()) for name in ("train", "val"))
    if not val:
        return "**Split:** there is one set of images and no validation images to compare it with."
    by_annotations, by_pixels = (compute_divergence(compared, what) for what in ("annotations", "pixels"))
    annotations = compared["annotations"].iloc[1:]
    absent = annotations.index[(annotations["val"] == 0) & (annotations["train"] > 0)].tolist()
    lacking = f"; absent from val: {', '.join(absent[:8])}{' ...' if len(absent) > 8 else ''}" if absent else ""
    return (
        f"**Split:** {train:,} images train, {val:,} validate; Jensen-Shannon divergence {by_annotations:.4f} of "
        f"annotations, {by_pixels:.4f} of the objects' pixels, by class (0: the same, 1: nothing in common){lacking}."
    )


def describe_duplicates(near: pd.DataFrame | None) -> str:
    """Of `find_near_duplicates`; None where there were no pixels to look at."""
    if near is None:
        return "**Copies:** not looked for, there are no pixels."
    across, within = near[near["across"]], near[~near["across"]]
    return (
        f"**Copies:** {across['exact'].sum():,} pairs of images with one content stand on both sides of the split, and "
        f"{(~across['exact']).sum():,} pairs that look nearly the same; within train or val there are "
        f"{within['exact'].sum():,} and {(~within['exact']).sum():,}"
        + (": a random split would separate many of these, a split by group would not." if len(within) else ".")
    )


def describe_colours(measured: pd.DataFrame | None, colours: pd.DataFrame | None) -> str:
    """Of `measure_images` and `compute_colour_statistics`; None where there were no pixels to look at."""
    if measured is None:
        return "**Colours:** not measured, there are no pixels."
    row = colours.iloc[0]
    means, deviations = (
        ", ".join(f"{row[name]:.3f}" for name in row.index if name.startswith(what)) for what in ("mean", "std")
    )
    unreadable = int((measured["error"] != "").sum())
    return (
        f"**Colours:** {colours.index[0]} has mean ({means}) and std ({deviations}); {int(measured['black'].sum())} images "
        f"are black, {int((measured['constant'] & ~measured['black']).sum())} of one colour, {unreadable} cannot be read."
    )


def describe_pipelines(checks: pd.DataFrame | None) -> str:
    """Of `check_pipeline`, with the pipeline's name in `pipeline`; None where there were no pixels to look at."""
    if checks is None or checks.empty:
        return "**Augmentation:** not checked, there are no pixels."
    faults = [f"{row.pipeline}, {row.step}: {row.problem}" for row in checks.itertuples() if row.problem]
    sound = f"no fault found in {' and '.join(checks['pipeline'].unique())}"
    return f"**Augmentation:** {'; '.join(faults) or sound}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
