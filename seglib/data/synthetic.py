"""The embedded data set: litter photographs drawn by rule, in the competition's layout, for who has no data yet."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import filelock
import numpy as np
from pycocotools import mask as coco_mask

from seglib.data import synthetic_shapes as shapes
from seglib.data.class_names import SYNTHETIC as CLASSES
from seglib.data.synthetic_scene import Scene, build_scene, crop_ground, lay, photograph
from seglib.errors import InputError
from seglib.files import cache_dir, write_text

VERSION = 1  # part of the cached folder's name: raise it whenever a pixel or a polygon changes


class Kind(NamedTuple):
    """One sort of litter."""

    category: str
    draw: Callable[..., shapes.Sprite]
    frequency: float  # relative to the others: imbalanced as litter is
    scale: float  # relative to MEDIAN_SIZE


KINDS = (
    Kind("UNKNOWN", shapes.unknown, 4, 1.5),
    Kind("General trash", shapes.food_waste, 11, 1.1),
    Kind("General trash", shapes.cigarette_butt, 6, 0.45),
    Kind("Paper", shapes.paper, 20, 1.0),
    Kind("Paper pack", shapes.carton, 7, 1.5),
    Kind("Metal", shapes.can, 5, 1.3),
    Kind("Metal", shapes.foil, 2, 0.8),
    Kind("Glass", shapes.glass_bottle, 5, 1.5),
    Kind("Glass", shapes.glass_shard, 2, 0.9),
    Kind("Plastic", shapes.plastic_bottle, 6, 1.2),
    Kind("Plastic", shapes.lid, 4, 0.8),
    Kind("Styrofoam", shapes.styrofoam, 6, 1.5),
    Kind("Plastic bag", shapes.plastic_bag, 15, 1.4),
    Kind("Plastic bag", shapes.wrapper, 6, 1.0),
    Kind("Battery", shapes.battery, 2, 0.8),
    Kind("Clothing", shapes.garment, 2.2, 2.2),
)
CLUTTER = (Kind("", shapes.leaf, 0, 0), Kind("", shapes.twig, 0, 0))  # hides litter, is none: not annotated

# Sizes are square roots of areas in an image of 256 px; all grow with the image.
MEDIAN_SIZE = 19  # [px]
SMALLEST, LARGEST = 5, 100  # [px]
DISTANCE_SPREAD, OBJECT_SPREAD = 0.75, 0.5  # of log size: between photographs, between the objects of one
LEAST_AREA = 12  # [px]: what is hidden but for less is not annotated
ON_ANOTHER = 0.3  # share of the objects thrown onto one that lies there already
WHOLE = 0.1  # share of the annotations that outline the hidden part too, so that they overlap


def make_synthetic(
    folder: str | Path,
    num_images: int = 240,
    image_size: int = 256,
    seed: int = 21,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the data set: `images/*.jpg`, `train.json`, `val.json`, `train_all.json` (both) and `test.json`.

    The files are the competition's: 11 categories from id 1, polygons of what is visible, `test.json` without
    annotations. About 64 % of the images are for training, 16 % for validation, 20 % for the test; each image dict
    carries its scene as `group`, and no scene is on two sides. The same arguments give the same bytes.

    Parameters
    ----------
    folder : str or Path
        Where to write; must be absent or empty. It appears whole, when all is drawn.
    num_images : int
        At least 8.
    image_size : int
        Width and height [px], at least 32; objects grow with it.
    seed : int
        Not negative.
    progress : callable, optional
        Called as progress(images drawn, num_images).

    Returns
    -------
    folder : Path

    Raises
    ------
    InputError
        An argument is out of range, or the folder holds files already.
    """
    for name, value, least in (("num_images", num_images, 8), ("image_size", image_size, 32), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"synthetic data: {name} must be at least {least}, got {value}; raise it")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"synthetic data: the folder must be absent or empty, got {folder}; name another one or delete it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "made"
        _write(made, num_images, image_size, seed, progress or (lambda done, total: None))
        if folder.exists():
            folder.rmdir()  # empty: Windows cannot rename over it
        os.replace(made, folder)
    return folder


def open_synthetic(num_images: int = 240, image_size: int = 256, seed: int = 21) -> Path:
    """The folder of this data set in the project's cache, drawn on first use (seconds); see `make_synthetic`.

    Processes that ask at the same time wait for the first of them.
    """
    folder = cache_dir() / f"synthetic_v{VERSION}_{num_images}x{image_size}_seed{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "train.json").exists():
            make_synthetic(folder, num_images, image_size, seed)
    return folder


def _write(folder: Path, num_images: int, image_size: int, seed: int, progress: Callable[[int, int], None]) -> None:
    (folder / "images").mkdir(parents=True)
    splits = {"train": ([], []), "val": ([], []), "test": ([], [])}
    number = annotation_id = 0
    for group, (split, count) in enumerate(_plan_scenes(num_images, seed), start=1):
        scene = build_scene(np.random.default_rng([seed, 1, group]), image_size)
        images, annotations = splits[split]
        for _ in range(count):
            number += 1
            file_name = f"images/{number:04d}.jpg"
            image, objects = _draw(np.random.default_rng([seed, 2, number]), scene, image_size)
            (folder / file_name).write_bytes(_jpeg(image))
            images.append({"id": number, "file_name": file_name, "width": image_size, "height": image_size,
                           "group": group})  # fmt: skip
            for category, mask in objects if split != "test" else ():
                annotation_id += 1
                annotations.append({"id": annotation_id, "image_id": number, **_annotate(category, mask)})
            progress(number, num_images)
    splits["train_all"] = tuple(a + b for a, b in zip(splits["train"], splits["val"], strict=True))
    for split, (images, annotations) in splits.items():
        _write_coco(folder / f"{split}.json", images, annotations)


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _write_coco(path: Path, images: list[dict], annotations: list[dict]) -> None:
    categories = [{"id": i, "name": name, "supercategory": name} for i, name in enumerate(CLASSES, start=1)]
    data = {"info": {"description": f"seglib synthetic litter, version {VERSION}"}, "licenses": [],
            "images": images, "categories": categories, "annotations": annotations}  # fmt: skip
    write_text(path, json.dumps(data) + "\n")  # one line: indented, each coordinate would take its own


def _plan_scenes(num_images: int, seed: int) -> list[tuple[str, int]]:
    """Split and number of images of every scene, in the order of the images."""
    rng = np.random.default_rng([seed, 3])
    test, val = round(0.2 * num_images), round(0.16 * num_images)
    scenes = []
    for split, left in (("train", num_images - test - val), ("val", val), ("test", test)):
        while left:
            count = min(left, int(rng.integers(3, 5)))
            scenes.append((split, count))
            left -= count
    return [scenes[i] for i in rng.permutation(len(scenes))]


def _draw(rng: np.random.Generator, scene: Scene, image_size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image (H, W, 3) uint8 and what is annotated on it: category ids and (H, W) bool masks."""
    unit = image_size / 256
    image = crop_ground(rng, scene, image_size)
    owner = np.zeros(image.shape[:2], int)
    laid, spots = [], []
    for kind, size in _choose_objects(rng, scene.clutter, unit):
        centre = rng.uniform(0.03, 0.97, 2) * image_size
        if spots and rng.random() < ON_ANOTHER:
            below, reach = spots[rng.integers(len(spots))]
            centre = np.clip(below + rng.uniform(-0.6, 0.6, 2) * reach, 0, image_size - 1)
        mask = lay(image, scene, shapes.draw_turned(rng, kind.draw, size), size, centre)
        laid.append((kind.category, mask))
        owner[mask] = len(laid)
        spots.append((centre, size))
    annotated = []
    for index, (category, mask) in enumerate(laid, start=1):
        visible = mask & (owner == index)
        if category and visible.sum() >= max(LEAST_AREA * unit**2, 4):
            annotated.append((CLASSES.index(category) + 1, mask if rng.random() < WHOLE else visible))
    return photograph(rng, image), annotated


def _choose_objects(rng: np.random.Generator, clutter: float, unit: float) -> list[tuple[Kind, float]]:
    """Kind and size [px] of what lies in an image, mostly the largest first."""
    frequency, scale = np.array([(kind.frequency, kind.scale) for kind in KINDS]).T
    chosen = rng.choice(len(KINDS), 3 + rng.binomial(9, 0.6), p=frequency / frequency.sum())
    sizes = MEDIAN_SIZE * scale[chosen] * rng.lognormal(0, OBJECT_SPREAD, len(chosen))
    sizes = np.clip(sizes * rng.lognormal(0, DISTANCE_SPREAD), SMALLEST, LARGEST)
    sizes = np.concatenate([sizes, rng.uniform(5, 16, rng.poisson(clutter))])
    kinds = [*(KINDS[i] for i in chosen), *(CLUTTER[i] for i in rng.integers(0, 2, len(sizes) - len(chosen)))]
    order = np.argsort(-sizes * rng.lognormal(0, 0.5, len(sizes)))
    return [(kinds[i], float(sizes[i] * unit)) for i in order]


def _annotate(category: int, mask: np.ndarray) -> dict:
    """The mask's outline as COCO polygons, with the area and box of exactly these polygons."""
    polygons = _outline(mask)
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))
    return {"category_id": category, "segmentation": polygons, "area": float(coco_mask.area(rle)),
            "bbox": coco_mask.toBbox(rle).tolist(), "iscrowd": 0}  # fmt: skip


def _outline(mask: np.ndarray) -> list[list[float]]:
    """Polygons [x, y, x, y, ...] around the parts of a mask, the longest first; holes are filled, specks left out."""
    fine = 4  # contours run through pixel centres: of pixels this much finer, so that no border is lost
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = mask[y : y + height, x : x + width].astype(np.uint8)
    box = cv2.resize(box, None, fx=fine, fy=fine, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(box, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(x * fine, y * fine))
    contours = sorted(contours, key=cv2.contourArea, reverse=True)
    least = 0.03 * cv2.contourArea(contours[0])
    corners = [cv2.approxPolyDP(c, 0.4 * fine, True) for c in contours if cv2.contourArea(c) >= least]
    return [((c.reshape(-1) + 0.5) / fine).round(2).tolist() for c in corners]
