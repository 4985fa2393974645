"""How long the viewer takes from a moved control to the finished message, at 512 px with two panes, on one core.

Opacity is not here: the browser blends without asking.

Run by hand: python tests/benchmarks/viewer.py
"""

import time

import cv2
import numpy as np

from seglib.viz.image_table import build_image_table
from seglib.viz.viewer import MaskViewer

SIZE, COUNT, REPEATS = 512, 16, 20


class Noise:
    """Photographs are between noise and a smooth picture for PNG; blurred noise is on the hard side."""

    def __init__(self, num_classes):
        rng = np.random.default_rng(0)
        self.image_ids, self.class_names = list(range(COUNT)), [f"class {index}" for index in range(num_classes)]
        noise = rng.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
        self.images = np.stack([cv2.GaussianBlur(image, (0, 0), 1.5) for image in noise])
        coarse = rng.integers(0, num_classes, (COUNT, 16, 16), dtype=np.uint8)
        self.masks = coarse.repeat(SIZE // 16, axis=1).repeat(SIZE // 16, axis=2)

    def __len__(self):
        return COUNT

    def read(self, position):
        return self.images[position], self.masks[position]


def measure(what, change):
    seconds = []
    for repeat in range(REPEATS):
        began = time.perf_counter()
        change(repeat)
        seconds.append(time.perf_counter() - began)
    print(f"{what:<42} median {1e3 * np.median(seconds):5.1f} ms, worst {1e3 * max(seconds):5.1f} ms")


def measure_viewer(num_classes):
    data = Noise(num_classes)
    viewer = MaskViewer(data, {"a": np.roll(data.masks, 5, axis=2), "b": np.roll(data.masks, 9, axis=1)})
    panel = viewer.panel
    overlays = sum(len(pane["overlay"]) for pane in panel.stage.panes)
    print(
        f"{num_classes} classes: an image of {len(panel.stage.image) // 1000} KB, two overlays of {overlays // 1000} KB"
    )
    measure("a class on or off", lambda _: panel._answer(panel.stage, {"kind": "toggle", "id": 1, "alone": False}, []))
    measure("next image", lambda repeat: setattr(panel.number, "value", 1 + (repeat + 1) % COUNT))
    panel.left.value, panel.right.value = "error of a", "a against b"
    measure("next image, error and comparison", lambda repeat: setattr(panel.number, "value", 1 + (repeat + 1) % COUNT))
    measure("pixel under the pointer", lambda x: panel._answer(panel.stage, {"kind": "hover", "x": x, "y": 9}, []))
    began = time.perf_counter()
    build_image_table(viewer.source)
    print(f"{'table of all images, once':<42} {1e3 * (time.perf_counter() - began) / COUNT:.1f} ms an image")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    for num_classes in (12, 61):  # litter, TACO; here every class is in every image, which is rare
        measure_viewer(num_classes)
