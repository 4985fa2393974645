"""Augmentation presets, applied to image and mask together, each sample from a random stream of its own."""

import random

import albumentations as A
import numpy as np

PRESETS = {
    "none": [],
    "flips": [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.RandomRotate90(p=0.5)],
}


def build_augmentation(name: str) -> A.Compose:
    """The preset of this name."""
    return A.Compose(PRESETS[name])


def augment(
    augmentation: A.Compose, image: np.ndarray, mask: np.ndarray, seed: int, epoch: int, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Augment one sample; what comes out depends on (seed, epoch, index) alone, whichever process does it.

    Parameters
    ----------
    image : (H, W, 3) uint8.
    mask : (H, W) uint8.
    """
    words = np.random.SeedSequence([seed, epoch, index]).generate_state(2)
    # One stream for all steps. albumentations' own set_random_seed() gives every step the same seed: two flips with
    # p=0.5 then always go together, and its workers repeat each other's draws.
    augmentation.set_random_state(np.random.default_rng(words[0]), random.Random(int(words[1])))
    out = augmentation(image=image, mask=mask)
    return out["image"], out["mask"]
