"""Images a second of the pixel cache and of decoding each time, on the same 512 px data, by hand; then each preset of
augmentations, with our faster transforms and with albumentations' own, on one core.

python tests/benchmarks/loader.py [--data DIR --json NAME] [--images N] [--rounds N]
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from pycocotools.coco import COCO

from seglib.data import augment
from seglib.data.augment import PRESETS
from seglib.data.coco import CocoData, load_coco
from seglib.data.pixels import Pixels, open_pixels

IMAGE_SIZE = 512
TARGET = 5.0  # times the usual way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a COCO folder with images of 512 px; default: the synthetic set")
    parser.add_argument("--json", default="train.json")
    parser.add_argument("--images", type=int, default=300, help="the first N of the file, or of the set to draw")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SEGLIB_CACHE"] = f"{scratch}/cache"
        data = load_coco(arguments.data or draw_synthetic(Path(scratch) / "data", arguments.images), arguments.json)
        data = replace(data, images=data.images.iloc[: arguments.images])
        start = time.perf_counter()
        pixels = open_pixels(data, IMAGE_SIZE, "class_id", "class")
        print(
            f"{len(pixels)} images, {len(data.annotations)} annotations; cache built in {time.perf_counter() - start:.1f} s"
        )
        compare(pixels, usual_way(data), arguments.rounds)
        compare_presets(pixels, arguments.rounds)


def draw_synthetic(folder: Path, num_images: int) -> Path:
    from seglib.data.synthetic import make_synthetic

    return make_synthetic(folder, num_images=num_images, image_size=IMAGE_SIZE, seed=21)


def usual_way(data: CocoData) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """What a baseline's `__getitem__` does: decode the image, paint every annotation in the order of classes."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(data.json_path)
    image_ids = data.images["image_id"].tolist()
    class_ids = {category_id: rank for rank, category_id in enumerate(sorted(reference.cats), start=1)}

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        (info,) = reference.loadImgs(image_ids[index])
        image = cv2.cvtColor(cv2.imread(str(data.data_dir / info["file_name"])), cv2.COLOR_BGR2RGB)
        mask = np.zeros((info["height"], info["width"]), np.uint8)
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=info["id"]))
        for annotation in sorted(annotations, key=lambda annotation: class_ids[annotation["category_id"]]):
            mask[reference.annToMask(annotation) == 1] = class_ids[annotation["category_id"]]
        return image, mask

    return read


def compare(pixels: Pixels, decode: Callable, rounds: int) -> None:
    """Check that both ways give the same, which warms them up, then time them in turn."""
    for index in range(len(pixels)):
        for cached, decoded in zip(pixels.read(index), decode(index), strict=True):
            if not np.array_equal(cached, decoded):
                raise SystemExit(
                    f"image {pixels.image_ids[index]}: the two ways differ; are all images {IMAGE_SIZE} px?"
                )
    rates = {"usual way": [], "pixel cache": []}
    for seed in range(rounds):
        order = np.random.default_rng(seed).permutation(len(pixels)).tolist()
        for name, read in zip(rates, (decode, pixels.read), strict=True):
            rates[name].append(images_per_second(read, order))
    usual, cached = (float(np.median(rate)) for rate in rates.values())
    for name, rate in rates.items():
        print(f"{name:12} {np.median(rate):8.0f} images/s  (rounds {min(rate):.0f} to {max(rate):.0f})")
    print(f"{cached / usual:.1f} times the usual way (target: {TARGET:.0f})")


def compare_presets(pixels: Pixels, rounds: int) -> None:
    """Time each preset in turn with both kinds of transforms, which draw the same."""
    cv2.setNumThreads(1)
    samples = [pixels.read(index) for index in range(min(12, len(pixels)))]
    print(f"{'preset':12} {'albumentations':>15} {'ours':>10}  [ms per image, medians of rounds]")
    for preset in PRESETS:
        ours = augment.build_augmentation(preset, IMAGE_SIZE)
        with mock.patch.object(augment, "FASTER", {}):
            plain = augment.build_augmentation(preset, IMAGE_SIZE)
        times = {"plain": [], "ours": []}
        for number in range(rounds + 1):
            for name, steps in (("plain", plain), ("ours", ours)):
                start = time.perf_counter()
                for index, (image, mask) in enumerate(samples):
                    augment.augment(steps, image, mask, 21, number, index)
                times[name].append((time.perf_counter() - start) / len(samples) * 1000)
        slow, fast = (float(np.median(each[1:])) for each in times.values())  # the first round warms up
        print(f"{preset:12} {slow:15.2f} {fast:10.2f}  {slow / fast:.1f} times as fast")


def images_per_second(read: Callable, order: list[int]) -> float:
    start = time.perf_counter()
    for index in order:
        image, mask = read(index)
        torch.from_numpy(image), torch.from_numpy(mask)
    return len(order) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
