"""Augmentation, applied to image and mask together, each sample from a random stream of its own."""

import random
from collections.abc import Sequence

import albumentations as A
import numpy as np

from seglib.data.augment_presets import PRESETS
from seglib.data.augment_spec import build_steps

__all__ = ["PRESETS", "augment", "build_augmentation"]


def build_augmentation(spec: str | Sequence, image_size: int) -> A.Compose:
    """Build the augmentation that a preset's name or a list of steps stands for.

    A step is a preset's name, a transform's name as albumentations has it, or one name with its options, as YAML reads
    them: `[flips, {ElasticTransform: {alpha: 40, p: 0.5}}, {OneOf: [blur, CLAHE]}]`. Compositions are OneOf, SomeOf,
    RandomOrder and Sequential; a preset inside OneOf and its like is one step. Sizes that a transform requires are
    `image_size`, and the mask is 255 (ignored) where a transform leaves no data, unless the step says otherwise.

    Parameters
    ----------
    image_size : side of the square images [px].

    Raises
    ------
    InputError
        A step that is unknown or cannot be built. What only running shows, `augment_check.find_refusal` finds.
    """
    return A.Compose(build_steps(spec, image_size))


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
    # One stream for all steps, nested ones too. albumentations' own set_random_seed() gives every step the same seed:
    # two flips with p=0.5 then always go together, and its workers repeat each other's draws.
    augmentation.set_random_state(np.random.default_rng(words[0]), random.Random(int(words[1])))
    out = augmentation(image=image, mask=mask)
    return out["image"], out["mask"]
