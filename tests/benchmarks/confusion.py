"""Time confusion matrices of 16 x 512 x 512 uint8 masks with 11 classes on one core; run by hand.

Shortest of several calls in milliseconds. Two kinds of masks, because counting waits for the previous count of the same
pair: noise, where neighbours differ, and litter, where nine tenths are background with 5 % of the pixels ignored.
"""

import time

import numpy as np
import sklearn.metrics
import torch

from seglib.evaluation.metrics import confusion_per_image

IMAGES, SIZE, CLASSES = 16, 512, 11


def noise(rng):
    return rng.integers(0, CLASSES, (2, IMAGES, SIZE, SIZE)).astype(np.uint8)


def litter(rng):
    ids = rng.integers(0, CLASSES, (2, IMAGES, 16, 16)) * (rng.random((2, IMAGES, 16, 16)) < 0.1)
    masks = ids.astype(np.uint8).repeat(SIZE // 16, axis=2).repeat(SIZE // 16, axis=3)
    masks[0][rng.random(masks[0].shape) < 0.05] = 255
    return masks


def with_seglib(truth, pred):
    return confusion_per_image(torch.from_numpy(truth), torch.from_numpy(pred), CLASSES).numpy()


def with_numpy(truth, pred):
    def count(t, p):
        valid = t != 255
        return np.bincount(t[valid].astype(np.int64) * CLASSES + p[valid], minlength=CLASSES**2)

    return np.stack([count(t, p).reshape(CLASSES, CLASSES) for t, p in zip(truth, pred, strict=True)])


def with_torch_int64(truth, pred):
    truth, pred = torch.from_numpy(truth).long(), torch.from_numpy(pred).long()
    valid = truth != 255
    image = torch.arange(len(truth))[:, None, None]
    index = ((image * CLASSES + truth) * CLASSES + pred)[valid]
    return torch.bincount(index, minlength=IMAGES * CLASSES**2).view(IMAGES, CLASSES, CLASSES).numpy()


def with_sklearn(truth, pred):
    labels = np.arange(CLASSES)
    masks = zip(truth, pred, strict=True)
    return np.stack([sklearn.metrics.confusion_matrix(t[t != 255], p[t != 255], labels=labels) for t, p in masks])


def milliseconds(function, masks, calls):
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        function(*masks)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def main():
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for kind in (noise, litter):
        masks = kind(rng)
        expected, ours = with_seglib(*masks), milliseconds(with_seglib, masks, calls=50)
        print(f"{kind.__name__}\n  {'seglib':18}{ours:9.1f} ms")
        for function, calls in ((with_numpy, 10), (with_torch_int64, 10), (with_sklearn, 1)):
            assert np.array_equal(function(*masks), expected)
            other = milliseconds(function, masks, calls)
            print(f"  {function.__name__.removeprefix('with_'):18}{other:9.1f} ms{other / ours:8.0f} x")


if __name__ == "__main__":
    main()
