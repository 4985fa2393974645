"""The analysis of a data set before training: its tables, pictures and findings, its objects one by one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pycocotools import mask as mask_api

from seglib.data import eda
from seglib.data.augment import augment, build_augmentation
from seglib.data.augment_check import check_pipeline
from seglib.data.coco import CocoData, load_coco
from seglib.data.dataset import Subset, assign_subsets, ignore_annotations, pool_files
from seglib.data.masks import (
    IGNORE_INDEX,
    PAINT_ORDERS,
    choose_empty_id,
    find_image_rows,
    find_paintable,
    measure_rles,
    resize_rle,
    sort_for_painting,
)
from seglib.data.pixels import open_pixels
from seglib.data.splits import find_near_duplicates
from seglib.data.synthetic import open_synthetic
from seglib.data.verify import verify_coco
from seglib.files import expand, hash_files, write_table, write_text


class DataAnalysis:
    """A data set's tables, pictures and findings, from its annotations and, where image files are there, their pixels.

    Data with errors is described too: annotations that cannot be painted are left out, `tables["problems"]` names them.

    Parameters
    ----------
    p : what has the parameters of 02_train.ipynb that decide what the model is shown: data_dir, train_json, val_json,
        split, folds, fold, split_seed (or else seed), seed, image_size, paint_order, background, augmentation, and
        ignore_classes where there is one.

    Raises
    ------
    InputError
        Files that cannot be read, or a split that cannot be made.

    Attributes
    ----------
    coco : all images and annotations; `class_names`, Background first.
    objects : one row per annotation that can be painted, see `tabulate_objects`; `counts`: of the painted masks.
    present : (N, C) bool, the classes annotated in each image; subset : (N,) "train" or "val".
    images : the images that can be read, as a model sees them; has_pixels : whether there are any image files.
    measured : of `measure_images`; None without pixels.
    tables : files, image_sizes, problems, objects, classes, cooccurrence, object_sizes, vanished, overlaps, class_pairs,
        split; with pixels also copies, colours, strange_images, pipelines (what each step of them does).
    """

    size_limits = eda.SIZE_LIMITS

    def __init__(self, p: Any):
        self.size, self.background, self.seed, self.augmentation = p.image_size, p.background, p.seed, p.augmentation
        folder = open_synthetic() if p.data_dir == "synthetic" else expand(p.data_dir)
        names = [p.train_json, p.val_json] if p.split == "given" and p.val_json else [p.train_json]
        ignored = getattr(p, "ignore_classes", [])
        self.files = [ignore_annotations(load_coco(folder, name), ignored) for name in names]
        self.coco = pool_files(self.files)
        self.class_names = self.coco.class_names
        self.content_hashes = hash_files(self.coco.images["path"])
        self.has_pixels = any(self.content_hashes)
        self.objects = tabulate_objects(self.coco, self.size)
        self.counts = count_painted(self.coco, self.objects, self.size, p.paint_order, p.background)
        self.present = eda.find_present(self.objects, len(self.coco.images), self.coco.num_classes)
        split = (p.split, p.folds, p.fold, getattr(p, "split_seed", p.seed))
        self.subset = assign_subsets(self.coco, self.content_hashes, self.present, *split)
        self.measured = eda.measure_images(self.coco, self.size) if self.has_pixels else None
        readable = np.flatnonzero(self.measured["error"] == "") if self.has_pixels else np.arange(len(self.subset))
        sound = replace(self.coco, annotations=self.coco.annotations.loc[self.objects.index])
        pixels = open_pixels(sound, self.size, p.paint_order, p.background, cache=False)
        self.images = Subset(sound, pixels, readable)
        self.tables = self._tabulate() | (self._tabulate_pixels() if self.has_pixels else {})

    def __repr__(self) -> str:
        painted = f"{len(self.objects):,} of {len(self.coco.annotations):,} annotations can be painted"
        missing = "" if self.has_pixels else "\nThere are no image files here: sections that need pixels are left out."
        return f"{len(self.coco.images):,} images; {painted}{missing}"

    def _tabulate(self) -> dict[str, pd.DataFrame]:
        objects, names, pixels = self.objects, self.class_names, self.counts.class_pixels
        sizes = self.coco.images.value_counts(["width", "height"]).rename("images").reset_index()
        problems = [verify_coco(file).assign(file=file.name) for file in self.files]
        left, overlaps = self.counts.left.add_prefix("pixels at "), find_overlaps(objects)
        return {
            "files": eda.tabulate_files(self.files),
            "image_sizes": sizes.assign(squeezed=sizes["width"] / sizes["height"]),
            "problems": pd.concat(problems, ignore_index=True),
            "objects": objects.drop(columns="rle").join(left).reset_index(drop=True),
            "classes": eda.tabulate_classes(objects, pixels, names),
            "cooccurrence": eda.count_cooccurrence(self.present, names),
            "object_sizes": eda.tabulate_sizes(objects),
            "vanished": eda.tabulate_vanished(objects, self.counts.left),
            "overlaps": overlaps,
            "class_pairs": tabulate_class_pairs(overlaps),
            "split": eda.compare_subsets(objects, pixels, self.subset, names),
        }

    def _tabulate_pixels(self) -> dict[str, pd.DataFrame]:
        measured, file_names = self.measured, self.coco.images["file_name"]
        is_strange = measured["error"].ne("") | measured["black"] | measured["constant"]
        self.comparable = ~is_strange.to_numpy()  # the hash of a picture of one colour says nothing
        self.near = find_near_duplicates(measured["picture_hash"], self.content_hashes, self.comparable, self.subset)
        strange = measured[["black", "constant", "error"]].assign(file_name=file_names, subset=self.subset)
        colours = eda.compute_colour_statistics(measured, self.subset)
        colours.loc["ImageNet"] = [0.485, 0.456, 0.406, 0.229, 0.224, 0.225]  # what the model normalises with
        return {
            "copies": eda.tabulate_copies(self.near, file_names, self.subset),
            "colours": colours,
            "strange_images": strange[is_strange].reset_index(drop=True),
            "pipelines": self._check_pipelines(),
        }

    def _check_pipelines(self) -> pd.DataFrame:
        """Of `check_pipeline`: training's steps, and the validation's."""
        if not len(self.images):
            return pd.DataFrame({"pipeline": [], "step": [], "problem": []})
        samples = [self.images.read(i) for i in np.linspace(0, len(self.images) - 1, 8).astype(int)]
        checks = []
        for use, spec in (("training", self.augmentation), ("validation", "none")):
            options = {"training": use == "training", "background": self.background, "seed": self.seed}
            check = check_pipeline(build_augmentation(spec, self.size), samples, self.coco.num_classes, **options)
            checks.append(check.assign(pipeline=use).set_index("pipeline").reset_index())
        return pd.concat(checks, ignore_index=True)

    def show_disputed(self, count: int) -> tuple | None:
        """What `plot_policies` draws: the images in which the painting policies disagree most; None where in none."""
        disputed = self.counts.disputed
        chosen = [i for i in np.argsort(-disputed, kind="stable") if disputed[i] and i in self.images.indices][:count]
        images = [self.images.pixels.read(i)[0] if self.has_pixels else None for i in chosen]
        layers = [paint_layers(self.coco, self.objects, i, self.size, self.background) for i in chosen]
        titles = [f"{self.coco.images['file_name'][i]}\n{disputed[i]:,} px disputed" for i in chosen]
        return (images, layers, titles, self.class_names) if chosen else None

    def show_copies(self, count: int) -> tuple | None:
        """What `plot_copies` draws: pairs of images that are copies or nearly so; None where there are none."""
        if not self.has_pixels:
            return None
        pairs = self.near[self.comparable[self.near["first"]]].head(count)
        sides = pairs[["first", "second"]].to_numpy()
        names = [Path(name).name for name in self.coco.images["file_name"]]
        images = [[self.images.pixels.read(i)[0] for i in pair] for pair in sides]
        titles = [[f"{self.subset[i]}\n{names[i]}" for i in pair] for pair in sides]
        notes = ["same file" if pair.exact else f"{pair.distance} bits differ" for pair in pairs.itertuples()]
        return (images, titles, notes) if len(pairs) else None

    def show_augmented(self, count: int, draws: int = 5) -> tuple | None:
        """What `plot_augmentations` draws: the images with the most classes, several times; None without pixels."""
        if not self.has_pixels:
            return None
        order = [i for i in np.argsort(-self.present.sum(axis=1), kind="stable") if i in self.images.indices]
        originals = [self.images.pixels.read(i) for i in order[:count]]
        pipeline = build_augmentation(self.augmentation, self.size)
        drawn = [
            [augment(pipeline, *pair, self.seed, draw, i) for draw in range(draws)] for i, pair in enumerate(originals)
        ]
        return (originals, drawn, self.class_names) if originals else None

    def describe(self) -> list[str]:
        """The findings, one sentence or two each, made from the tables' numbers."""
        tables = self.tables
        return [
            eda.describe_problems(tables["problems"]),
            eda.describe_classes(tables["classes"], self.counts),
            eda.describe_sizes(tables["object_sizes"], self.size),
            eda.describe_vanished(tables["vanished"]),
            eda.describe_overlaps(self.objects, tables["overlaps"], tables["class_pairs"], self.counts),
            eda.describe_split(self.subset, tables["split"]),
            eda.describe_duplicates(tables.get("copies")),
            eda.describe_colours(self.measured, tables.get("colours")),
            eda.describe_pipelines(tables.get("pipelines")),
        ]

    def save(self, folder: Path, lines: Sequence[str]) -> None:
        """Write every table as CSV, and the findings as summary.md."""
        for name, table in self.tables.items():
            write_table(folder / f"{name}.csv", table)
        write_text(folder / "summary.md", "\n".join(f"- {line}" for line in lines) + "\n")


# The objects one by one: sizes, overlaps, and what of them is left in the masks that training sees.


def tabulate_objects(data: CocoData, image_size: int) -> pd.DataFrame:
    """Measure every annotation that paints a pixel; the others count nowhere (`verify_coco` names those that cannot).

    Returns
    -------
    DataFrame
        Index: row of `data.annotations`, grouped by image. `image`: row of `data.images`; `annotation_id`, `class_id`,
        `class_name`; `area` [px^2] (the file's, the mask's where it has none) and `mask_area` [px^2], measured, both of
        the original; `scale`: px^2 of the training image for one of the original; `size`: sqrt(mask_area) [px] in the
        training image; `x`, `y`: the box's middle, 0..1 of the image; `aspect`: the box's width / height [original px];
        `rle`: compressed, as `pycocotools.mask` takes it.
    """
    masks = {row: rle for row, rle in find_paintable(data).items() if mask_api.area(rle)}
    rows, rles = [*masks], [*masks.values()]
    images = find_image_rows(data)[rows]
    objects = data.annotations.iloc[rows][["annotation_id", "class_id", "area"]].assign(image=images)
    height, width = data.images[["height", "width"]].to_numpy()[images].reshape(-1, 2).T
    objects["class_name"] = np.array(data.class_names, object)[objects["class_id"]]
    objects["mask_area"] = measure_rles(rles)
    known = objects["area"].gt(0) & np.isfinite(objects["area"])
    objects["area"] = objects["area"].where(known, objects["mask_area"])
    objects["scale"] = (image_size / width) * (image_size / height)
    objects["size"] = np.sqrt(objects["mask_area"] * objects["scale"])
    left, top, box_width, box_height = np.array(mask_api.toBbox(rles) if rles else [], float).reshape(-1, 4).T
    objects["x"], objects["y"] = (left + box_width / 2) / width, (top + box_height / 2) / height
    objects["aspect"] = box_width / box_height
    objects["rle"] = rles
    return objects


def find_overlaps(objects: pd.DataFrame) -> pd.DataFrame:
    """Every pair of annotations of one image that have pixels in common, compared at the original resolution.

    Parameters
    ----------
    objects : of `tabulate_objects`

    Returns
    -------
    DataFrame
        `image`; `first`, `second`: index of the two in `objects`; `class_a`, `class_b`: their class names, the lower id
        first; `pixels` [px^2 of the training image]; `share`: of the smaller one, 0..1.
    """
    found = [_overlaps_of(own) for _, own in objects.groupby("image") if len(own) > 1]
    found.append(_overlaps_of(objects.iloc[:0]))  # the columns, where there are none
    return pd.concat(found, ignore_index=True)


def tabulate_class_pairs(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Class pairs by overlapping pixels: `class_a`, `class_b`, `overlaps` (pairs of annotations), `images`, `pixels`."""
    grouped = overlaps.groupby(["class_a", "class_b"])
    table = grouped.agg(overlaps=("image", "size"), images=("image", "nunique"), pixels=("pixels", "sum"))
    return table.sort_values("pixels", ascending=False).reset_index()


def _overlaps_of(objects: pd.DataFrame) -> pd.DataFrame:
    """The overlapping pairs of one image's objects."""
    rles, area = objects["rle"].tolist(), objects["mask_area"].to_numpy()
    # with crowds, pycocotools gives the intersection over the first one's area
    covered = mask_api.iou(rles, rles, [1] * len(rles)) if rles else np.zeros((0, 0))
    common = np.rint(np.nan_to_num(covered) * area[:, None])
    first, second = np.nonzero(np.triu(common, 1))
    common, class_ids, names = common[first, second], objects["class_id"].to_numpy(), objects["class_name"].to_numpy()
    swap = class_ids[first] > class_ids[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    return pd.DataFrame(
        {
            "image": objects["image"].to_numpy()[first],
            "first": objects.index[first],
            "second": objects.index[second],
            "class_a": names[first],
            "class_b": names[second],
            "pixels": common * objects["scale"].to_numpy()[first],
            "share": common / np.minimum(area[first], area[second]),
        }
    )


class PaintedCounts(NamedTuple):
    """Counts over the masks at the training resolution, N images and C classes with the background."""

    class_pixels: np.ndarray  # (N, C + 1) int64, pixels of each class under the chosen policy; the ignored ones last
    covered: np.ndarray  # (N,) int64, pixels that lie in an object
    disputed: np.ndarray  # (N,) int64, of these, pixels in which the painting policies do not all agree
    left: pd.DataFrame  # index as the objects', one column per size [px]: pixels of the object's own mask at that size


def count_painted(
    data: CocoData,
    objects: pd.DataFrame,
    image_size: int,
    paint_order: str,
    background: str,
    sizes: Sequence[int] = (256, 128),
) -> PaintedCounts:
    """Paint every image at the training resolution, one at a time, from the annotations alone.

    Parameters
    ----------
    data, objects : of `pool_files` and `tabulate_objects`
    sizes : resolutions [px] at which the objects' own pixels are counted, besides the training's
    """
    class_pixels, covered, disputed = (np.zeros((len(data.images), *shape), np.int64) for shape in ((256,), (), ()))
    class_pixels[:, choose_empty_id(background)] = image_size**2
    ignored = _find_ignored(data, image_size)
    for image, where in ignored.items():
        class_pixels[image] = np.bincount(
            np.where(where, IGNORE_INDEX, choose_empty_id(background)).ravel(), minlength=256
        )
    sizes = sorted({*sizes, image_size}, reverse=True)
    left = np.zeros((len(objects), len(sizes)), np.int64)
    for image, rows in objects.groupby("image").indices.items():
        own = objects.iloc[rows]
        masks = {size: [resize_rle(rle, size) for rle in own["rle"]] for size in sizes}
        left[rows] = np.transpose([[np.count_nonzero(mask) for mask in masks[size]] for size in sizes])
        painted = _paint_policies(data, own, masks[image_size], background, ignored.get(image))
        class_pixels[image] = np.bincount(painted[paint_order].ravel(), minlength=256)
        covered[image] = np.count_nonzero(np.any(masks[image_size], axis=0))
        disputed[image] = np.count_nonzero(np.ptp([*painted.values()], axis=0))
    counts = class_pixels[:, [*range(data.num_classes), IGNORE_INDEX]]
    return PaintedCounts(counts, covered, disputed, pd.DataFrame(left, objects.index, sizes))


def paint_layers(
    data: CocoData, objects: pd.DataFrame, image: int, image_size: int, background: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """How many objects lie on each pixel of one image, and its mask under each policy: (S, S) each."""
    own = objects[objects["image"] == image]
    masks = [resize_rle(rle, image_size) for rle in own["rle"]]
    ignored = _find_ignored(data, image_size).get(image)
    return np.sum(masks, axis=0, dtype=np.uint16), _paint_policies(data, own, masks, background, ignored)


def _find_ignored(data: CocoData, image_size: int) -> dict[int, np.ndarray]:
    """Row of an image with ignored regions -> where they are, (S, S) bool."""
    found: dict[int, np.ndarray] = {}
    if data.ignored is not None:
        data = replace(data, annotations=data.ignored)
        images = find_image_rows(data)
        for row, rle in find_paintable(data).items():
            found[images[row]] = found.get(images[row], False) | resize_rle(rle, image_size)
    return found


def _paint_policies(
    data: CocoData, objects: pd.DataFrame, masks: Sequence[np.ndarray], background: str, ignored: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Policy -> (S, S) uint8 class ids of one image: what `paint_mask` and then `resize_mask` make of its `objects`.

    `masks` are the objects' (S, S) bool, of `resize_rle`.
    """
    annotations, rles = data.annotations.loc[objects.index], objects["rle"].tolist()
    class_ids = objects["class_id"].to_numpy(np.uint8)
    painted: dict[str, np.ndarray] = {}
    for policy in PAINT_ORDERS:
        canvas = painted[policy] = np.full(masks[0].shape, choose_empty_id(background), np.uint8)
        for i in sort_for_painting(annotations, rles, policy):
            canvas[masks[i]] = class_ids[i]
        if ignored is not None:
            canvas[ignored] = IGNORE_INDEX
    return painted
