"""Time the dense CRF and compare clusters of pixels with the exact sum; run by hand.

    python tests/benchmarks/crf.py [SIZE [DEVICE [DATA_DIR]]]

One thread, 12 classes, 5 iterations, sizes in px; CPU seconds an image and the share of pixels that are decided otherwise
than by the exact sum. Probabilities are the blurred truth with smooth noise. DATA_DIR is a COCO folder with train.json and
val.json; by default one synthetic photograph.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from seglib.data.dataset import open_data
from seglib.data.synthetic import make_synthetic
from seglib.zoo.crf import CrfParams, dense_crf

CLASSES = 12
OPTIONS = {
    "split": "given",
    "folds": 5,
    "fold": 0,
    "seed": 0,
    "paint_order": "area",
    "background": "class",
    "cache": False,
}


def read_first(data_dir, size):
    if data_dir:
        return open_data(data_dir, "train.json", "val.json", image_size=size, **OPTIONS)[0].read(0)
    with tempfile.TemporaryDirectory() as folder:
        return read_first(str(make_synthetic(Path(folder) / "data", num_images=10, image_size=size, seed=3)), size)


def blur_truth(mask, rng):
    one_hot = np.eye(CLASSES)[np.minimum(mask, CLASSES - 1)].transpose(2, 0, 1)
    layers = 3 * one_hot + 12 * rng.normal(size=one_hot.shape)
    logits = np.stack([cv2.GaussianBlur(layer, (0, 0), 4) for layer in layers])
    return (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)


def main(size=256, device="cpu", data_dir=""):
    torch.set_num_threads(1)
    image, mask = read_first(data_dir, int(size))
    probabilities = blur_truth(mask, np.random.default_rng(0))
    dense_crf(image[:32, :32], probabilities[:, :32, :32], CrfParams(), device)  # libraries load
    exact = None
    for number in (1, 2, 4, 8, 16, 32):
        start, cpu = time.perf_counter(), time.process_time()
        refined = dense_crf(image, probabilities, CrfParams(pixels_per_cluster=number), device)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        exact = refined if exact is None else exact
        differing = (refined.argmax(0) != exact.argmax(0)).mean()
        changed = (refined.argmax(0) != probabilities.argmax(0)).mean()
        print(
            f"{size} px, {number:2} pixels a cluster: {seconds:6.2f} s (CPU {cpu:6.2f} s), mean error"
            f" {np.abs(refined - exact).max(0).mean():.5f}, {differing:.2%} decided otherwise, CRF changes {changed:.2%}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
