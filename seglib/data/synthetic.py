"""The embedded litter-like data set, drawn by rule in the competition's layout, for who has no data yet.

A scene is a ground and a light; its photographs show litter on parts of that ground, with exact masks. Images are
(H, W, 3) float32 RGB in [0, 1] until the camera makes bytes of them. Sizes are square roots of areas; all grow with the
image: `unit` is image_size / 256.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import filelock
import numpy as np
from pycocotools import mask as coco_mask

from seglib.data.class_names import SYNTHETIC as CLASSES
from seglib.data.synthetic_shapes import CLUTTER, FREQUENCIES, SCALES, SORTS, Litter, Sprite, noise
from seglib.errors import InputError
from seglib.files import cache_dir, replacing_folder, write_text

VERSION = 1  # part of the cached folder's name: raise it whenever a pixel or a polygon changes
# Its colour, roughness; its blades, leaves or stones: how many, colour, half length from and to [px at 256 px], width to
# length; leaves and twigs on top of the litter, from and to, in an image.
GROUNDS = {
    "asphalt": ((0.40, 0.40, 0.41), 0.13, 500, (0.50, 0.50, 0.51), (1, 1.2), 0.7, (0, 4)),
    "grass": ((0.20, 0.25, 0.10), 0.10, 6000, (0.33, 0.42, 0.15), (5, 14), 0.09, (3, 8)),
    "sand": ((0.55, 0.49, 0.40), 0.05, 120, (0.68, 0.61, 0.50), (1, 1.2), 0.7, (0, 4)),
    "leaves": ((0.24, 0.19, 0.13), 0.10, 1100, (0.42, 0.30, 0.16), (4, 13), 0.45, (3, 8)),
    "pavement": ((0.50, 0.48, 0.45), 0.05, 60, (0.62, 0.60, 0.56), (1, 1.2), 0.7, (0, 4)),
    "gravel": ((0.42, 0.40, 0.37), 0.10, 2600, (0.52, 0.50, 0.46), (1, 3.2), 0.7, (0, 4)),
}


def make_synthetic(
    folder: str | Path,
    num_images: int = 240,
    image_size: int = 256,
    seed: int = 21,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Draw the data set: `images/*.jpg`, `train.json`, `val.json`, `train_all.json` (both) and `test.json`.

    The files are the competition's: 11 categories from id 1, polygons of what is visible, `test.json` without
    annotations. About 64 % of the images are for training, 16 % for validation, 20 % for the test; each image dict
    carries its scene as `group`, and no scene is on two sides. The same arguments give the same bytes.

    Parameters
    ----------
    folder : where to write; must be absent or empty. It appears whole, when all is drawn.
    num_images : at least 8.
    image_size : width and height [px], at least 32; objects grow with it.
    seed : not negative.
    progress : called as progress(images drawn, num_images).

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
    with replacing_folder(folder) as made:
        _write(made, num_images, image_size, seed, progress)
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
    numbers, ids = itertools.count(1), itertools.count(1)
    files = {split: ([], []) for split in ("train", "val", "test")}
    for group, (split, count) in enumerate(_plan_scenes(num_images, seed), start=1):
        scene = _build_scene(np.random.default_rng([seed, 1, group]), image_size)
        for number in itertools.islice(numbers, count):
            image, objects = _photograph(np.random.default_rng([seed, 2, number]), scene, image_size)
            name, size = f"images/{number:04d}.jpg", {"width": image_size, "height": image_size}
            (folder / name).write_bytes(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
            files[split][0].append({"id": number, "file_name": name, **size, "group": group})
            shown = objects if split != "test" else ()
            files[split][1].extend({"id": next(ids), "image_id": number, **_annotate(*each)} for each in shown)
            progress(number, num_images)
    files["train_all"] = [a + b for a, b in zip(files["train"], files["val"], strict=True)]
    head = {"info": {"description": f"seglib synthetic litter, version {VERSION}"}, "licenses": []}
    categories = [{"id": i, "name": name, "supercategory": name} for i, name in enumerate(CLASSES, start=1)]
    for split, (images, annotations) in files.items():
        content = head | {"images": images, "categories": categories, "annotations": annotations}
        write_text(folder / f"{split}.json", json.dumps(content) + "\n")  # indented, each number would take a line


def _plan_scenes(num_images: int, seed: int) -> list[tuple[str, int]]:
    """Split and number of images of every scene, in the order of the images."""
    rng = np.random.default_rng([seed, 3])
    test, val = round(0.2 * num_images), round(0.16 * num_images)
    scenes = []
    for split, left in (("train", num_images - test - val), ("val", val), ("test", test)):
        while left:
            scenes.append((split, min(left, int(rng.integers(3, 5)))))
            left -= scenes[-1][1]
    return [scenes[i] for i in rng.permutation(len(scenes))]


def _annotate(category: int, mask: np.ndarray) -> dict:
    """The mask's outline as COCO polygons, the longest first; holes are filled, specks left out."""
    fine = 4  # contours run through pixel centres: of pixels this much finer, so that no border is lost
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = mask[y : y + height, x : x + width].astype(np.uint8)
    box = cv2.resize(box, None, fx=fine, fy=fine, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(box, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(x * fine, y * fine))
    contours = sorted(contours, key=cv2.contourArea, reverse=True)
    least = 0.03 * cv2.contourArea(contours[0])
    corners = [cv2.approxPolyDP(c, 0.4 * fine, True) for c in contours if cv2.contourArea(c) >= least]
    polygons = [((c.reshape(-1) + 0.5) / fine).round(2).tolist() for c in corners]
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))  # area and box of exactly these polygons
    measured = {"area": float(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist()}
    return {"category_id": category, "segmentation": polygons, **measured, "iscrowd": 0}


# A scene: the ground, seen from above, and the light.


class Scene(NamedTuple):
    """What its images share."""

    ground: np.ndarray  # (1.75 H, 1.75 W, 3) float32: each image is a crop
    light: np.ndarray  # (3,) unit vector towards the light: x right, y down, z up
    ambient: float  # share of the light that comes from the whole sky, in [0, 1]
    tint: np.ndarray  # (3,) colour of the light
    clutter: float  # leaves and twigs in an image, on average


def _build_scene(rng: np.random.Generator, image_size: int) -> Scene:
    name, n, unit = list(GROUNDS)[rng.integers(len(GROUNDS))], round(image_size * 1.75), image_size / 256
    colour, roughness, *strewn, clutter = GROUNDS[name]
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1)
    light = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    warmth, ambient = rng.normal(0, 0.05), rng.uniform(0.35, 0.75)
    tint = np.array([1 + warmth, 1, 1 - warmth], np.float32)
    colour = np.float32(colour) * rng.normal(1, 0.12) + rng.normal(0, 0.015, 3)
    grain = cv2.GaussianBlur(rng.standard_normal((n, n), dtype=np.float32), (0, 0), 0.7 * max(unit, 0.5)) * 2
    ground = colour * (1 + 0.09 * noise(rng, n, 5, 5) + roughness * grain)[..., None]
    if name == "pavement":
        ground *= _slabs(rng, n, unit)[..., None]
    ground = _strew(rng, ground, unit, *strewn) * _shade(rng, n, ambient)[..., None]
    return Scene(ground, light, ambient, tint, rng.uniform(*clutter))


def _slabs(rng: np.random.Generator, n: int, unit: float) -> np.ndarray:
    """Brightness (n, n) of paving stones: each its own, the joints dark; laid at an angle."""
    y, x = np.mgrid[:n, :n].astype(np.float32)
    angle, length = rng.uniform(0, np.pi), rng.uniform(45, 110) * unit
    u = (x * np.cos(angle) + y * np.sin(angle)) / length + 50
    v = (y * np.cos(angle) - x * np.sin(angle)) / (length * rng.uniform(0.4, 1)) + 50
    u = u + 0.5 * (np.floor(v) % 2)
    tone = 1 + 0.07 * rng.standard_normal((100, 100), dtype=np.float32)[v.astype(int) % 100, u.astype(int) % 100]
    joint = np.minimum(np.abs(u - u.round()), np.abs(v - v.round())) * length
    return tone * np.clip(0.45 + 0.3 * joint / unit, 0, 1)


def _strew(
    rng: np.random.Generator, ground: np.ndarray, unit: float, count: int, colour: tuple, reach: tuple, aspect: float
) -> np.ndarray:
    """The ground with its blades, leaves or stones: each an ellipse on its own shadow."""
    canvas = np.clip(ground * 255, 0, 255).astype(np.uint8)
    centres = rng.uniform(0, len(ground), (count, 2)) * 16  # cv2 takes sixteenths of a pixel
    halves = rng.uniform(*reach, count) * unit * 16
    tones = np.float32(colour) * rng.normal(1, 0.22, (count, 1)) + rng.normal(0, 0.03, (count, 3))
    tones = np.clip(tones, 0, 1) * 255
    for centre, half, tone, angle in zip(centres, halves, tones, rng.uniform(0, 180, count), strict=True):
        axes = (max(8, int(half)), max(4, int(half * aspect)))
        for offset, shown in ((10 * unit, tone * 0.4), (0, tone)):
            place = (int(centre[0] + offset), int(centre[1] + offset))
            cv2.ellipse(canvas, place, axes, angle, 0, 360, shown.tolist(), -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255


def _shade(rng: np.random.Generator, n: int, ambient: float) -> np.ndarray:
    """Brightness (n, n): soft patches, in a third of the scenes the sharper ones of foliage."""
    soft = 1 + 0.07 * noise(rng, n, 2, 3)
    if rng.random() > 0.35:
        return soft
    return soft * (1 - (1 - ambient) * 0.7 / (1 + np.exp(-4 * noise(rng, n, 3, 4))))


# A photograph: litter is laid on a part of the scene's ground with its shadows, and a camera looks at it.


def _photograph(rng: np.random.Generator, scene: Scene, image_size: int) -> tuple[np.ndarray, list[tuple]]:
    """An image (H, W, 3) uint8 and what is annotated on it: category ids and (H, W) bool masks."""
    unit = image_size / 256
    top, left = rng.integers(0, len(scene.ground) - image_size + 1, 2)
    image = scene.ground[top : top + image_size, left : left + image_size].copy()
    owner, laid, spots = np.zeros(image.shape[:2], int), [], []
    for (category, sort), size in _choose_objects(rng, scene.clutter, unit):
        centre = rng.uniform(0.03, 0.97, 2) * image_size
        if spots and rng.random() < 0.3:  # thrown onto an object that lies there already
            below, reach = spots[rng.integers(len(spots))]
            centre = np.clip(below + rng.uniform(-0.6, 0.6, 2) * reach, 0, image_size - 1)
        mask = _lay(image, scene, getattr(Litter(rng, size), sort)(), size, centre)
        laid.append((category, mask))
        owner[mask] = len(laid)
        spots.append((centre, size))
    annotated = []
    for index, (category, mask) in enumerate(laid, start=1):
        visible = mask & (owner == index)
        if category and visible.sum() >= max(12 * unit**2, 4):  # a tenth is outlined whole, so that outlines overlap
            annotated.append((category, mask if rng.random() < 0.1 else visible))
    return _expose(rng, image), annotated


def _choose_objects(rng: np.random.Generator, clutter: float, unit: float) -> list[tuple[tuple, float]]:
    """(category id, sort) and size [px] of what lies in an image, mostly the largest first."""
    chosen = rng.choice(len(SORTS), 3 + rng.binomial(9, 0.6), p=FREQUENCIES / FREQUENCIES.sum())
    sizes = 19 * SCALES[chosen] * rng.lognormal(0, 0.5, len(chosen))  # [px]; objects of one photograph differ,
    sizes = np.clip(sizes * rng.lognormal(0, 0.75), 5, 100)  # and photographs: they are taken from near or far
    sizes = np.concatenate([sizes, rng.uniform(5, 16, rng.poisson(clutter))])
    sorts = [*(SORTS[i] for i in chosen), *(CLUTTER[i] for i in rng.integers(0, 2, len(sizes) - len(chosen)))]
    order = np.argsort(-sizes * rng.lognormal(0, 0.5, len(sizes)))
    return [(sorts[i], float(sizes[i] * unit)) for i in order]


def _lay(image: np.ndarray, scene: Scene, sprite: Sprite, size: float, centre: np.ndarray) -> np.ndarray:
    """Paint an object of area size^2 [px] and its shadow into the image; the pixels that it covers (H, W) bool."""
    across = max(3, round(len(sprite.cover) * size / np.sqrt(sprite.cover.sum())))
    alpha = sprite.cover * sprite.opacity
    lit = np.dstack([_light(sprite, scene) * alpha[..., None], alpha]).astype(np.float32)
    lit, cover = (cv2.resize(a, (across, across), interpolation=cv2.INTER_AREA) for a in (lit, sprite.cover))
    _cast_shadow(image, scene, cover, size, centre)
    there, here = _overlap(len(image), across, centre)
    image[there] = image[there] * (1 - lit[here][..., 3:]) + lit[here][..., :3]
    mask = np.zeros(image.shape[:2], bool)
    mask[there] = cover[here] > 0.5
    return mask


def _light(sprite: Sprite, scene: Scene) -> np.ndarray:
    """Colours (n, n, 3) of the object under the scene's light: Lambert and a highlight; flat parts keep theirs."""
    down, right = np.gradient(sprite.relief.astype(np.float32), 2 / len(sprite.relief))
    normal = np.dstack([-np.clip(right, -3, 3), -np.clip(down, -3, 3), np.ones_like(right)])
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    direct = np.clip(normal @ scene.light, 0, None) / scene.light[2]
    halfway = scene.light + np.array([0, 0, 1])  # between the light and the camera above
    highlight = np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 24
    brightness = scene.ambient + (1 - scene.ambient) * direct
    return (sprite.colour * brightness[..., None] + 0.35 * sprite.gloss * highlight[..., None]) * scene.tint


def _cast_shadow(image: np.ndarray, scene: Scene, cover: np.ndarray, size: float, centre: np.ndarray) -> None:
    """Darken what lies away from the light, and the line of contact all around."""
    margin = int(0.35 * size) + 3  # both end well within it
    cover = cv2.copyMakeBorder(cover, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    reach = -0.13 * size * scene.light[:2] / scene.light[2]
    shifted = cv2.warpAffine(cover, np.float32([[1, 0, reach[0]], [0, 1, reach[1]]]), cover.shape[::-1])
    cast = cv2.GaussianBlur(shifted, (0, 0), 0.04 * size + 0.4) * (1 - scene.ambient)
    contact = cv2.GaussianBlur(cover, (0, 0), 0.05 * size + 0.5) * 0.4
    there, here = _overlap(len(image), len(cover), centre)
    image[there] *= 1 - np.clip(0.85 * cast + contact, 0, 0.8)[here][..., None]


def _overlap(length: int, across: int, centre: np.ndarray) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a square of side `across` around the centre meets an image, in the image and in the square."""
    starts = (np.asarray(centre)[::-1] - across / 2).round().astype(int)
    there = tuple(slice(max(a, 0), min(a + across, length)) for a in starts)
    return there, tuple(slice(s.start - a, s.stop - a) for s, a in zip(there, starts, strict=True))


def _expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a phone makes of it: exposure, vignette, focus, sensor noise; (H, W, 3) uint8."""
    n = len(image)
    ramp = np.linspace(-1, 1, n, dtype=np.float32)
    slope = rng.normal(0, 0.09, 2)
    field = 1 + slope[0] * ramp[:, None] + slope[1] * ramp - 0.1 * (ramp[:, None] ** 2 + ramp**2)
    image = image * (field * rng.normal(1.0, 0.1))[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.8) * max(n / 256, 0.5))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.008, 0.025)
    return np.clip((image + grain) * 255 + 0.5, 0, 255).astype(np.uint8)
