"""Walk an augmentation pipeline step by step and say what each step does to image and mask that it must not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy

import albumentations as A
import numpy as np
import pandas as pd

from seglib.data.augment import augment
from seglib.data.masks import IGNORE_INDEX

Sample = tuple[np.ndarray, np.ndarray]
Problem = tuple[str, str]  # what is wrong, and in detail
BLACK = 15  # an image with no value above it shows nothing
CONSTANT = 3  # [grey levels] between the darkest and the brightest value of each channel: what JPEG makes of one colour
DRAWS = 6  # of each step on each sample: on 8 samples a step with p = 0.1 is seen to draw in 99 of 100 checks


def check_pipeline(
    pipeline: A.Compose, samples: Sequence[Sample], num_classes: int, *, training: bool, background: str, seed: int = 0
) -> pd.DataFrame:
    """Run every step on every sample several times and list what is wrong.

    ================================ ==================================================================
    problem                          found when
    ================================ ==================================================================
    image is black / of one colour   it was not before the step (or is so as loaded)
    normalised twice                 values below 0 are rescaled by more than 2 or less than 1/2
    divided by 255 twice             values in 0..1 are rescaled to a twentieth or less
    never normalised                 the last step gives floats without a value below 0 (the model normalises uint8 only)
    not finite                       NaN or infinity in the image
    random                           the draws differ, in a pipeline that is not for training
    ids that did not exist           the mask has ids that it had not before the step; filling with 255 is allowed, with
                                     0 too where the background is a class
    ids that are no class            in the mask as loaded
    mask is not uint8, sizes differ
    ================================ ==================================================================

    Parameters
    ----------
    pipeline : of `build_augmentation`
    samples : image (H, W, 3) uint8 and mask (H, W) uint8, as loaded; eight or more
    training : whether the pipeline may draw
    background : {"class", "ignore"}

    Returns
    -------
    DataFrame
        A row for the input and for each step: `step`, `image_dtype`, `image_min`, `image_max`, `mask_dtype`, `random`,
        `problem` ("" where all is well; with the number of outputs that have it).
    """
    fills = {IGNORE_INDEX} | ({0} if background == "class" else set())
    problems = [problem for sample in samples for problem in _input_problems(*sample, num_classes)]
    rows = [_describe("(as loaded)", samples, False, problems)]
    current = [[sample] * DRAWS for sample in samples]
    for step in pipeline.transforms:
        single, is_last = A.Compose([deepcopy(step)]), step is pipeline.transforms[-1]

        def draw_all(states: Sequence[Sample], index: int, single: A.Compose = single) -> list[Sample]:
            return [augment(single, *state, seed, draw, index) for draw, state in enumerate(states)]

        is_random = any(_differ(draw_all(states[:1] * DRAWS, index)) for index, states in enumerate(current))
        following = [draw_all(states, index) for index, states in enumerate(current)]
        pairs = [pair for states in zip(current, following, strict=True) for pair in zip(*states, strict=True)]
        after = [outputs for _, outputs in pairs]
        problems = [problem for pair in pairs for problem in find_step_problems(*pair, fills, is_last)]
        if is_random and not training:
            problems += [("random, and this pipeline is not for training", "")] * len(after)
        rows.append(_describe(type(step).__name__, after, is_random, problems))
        current = following
    return pd.DataFrame(rows)


def _describe(name: str, outputs: Sequence[Sample], is_random: bool, problems: list[Problem]) -> dict:
    images, masks = zip(*outputs, strict=True)
    counts, first_detail = Counter(problem for problem, _ in problems), dict(reversed(problems))
    words = [f"{problem}{first_detail[problem]} ({count} of {len(outputs)})" for problem, count in counts.items()]
    return {
        "step": name,
        "image_dtype": ", ".join(sorted({str(image.dtype) for image in images})),
        "image_min": float(min(image.min() for image in images)),
        "image_max": float(max(image.max() for image in images)),
        "mask_dtype": ", ".join(sorted({str(mask.dtype) for mask in masks})),
        "random": is_random,
        "problem": "; ".join(words),
    }


def _differ(outputs: list[Sample]) -> bool:
    return any(not all(map(np.array_equal, outputs[0], other)) for other in outputs)


def _input_problems(image: np.ndarray, mask: np.ndarray, num_classes: int) -> Iterator[Problem]:
    if flat := _name_flat(image):
        yield f"image is {flat}", ""
    unknown = np.setdiff1d(mask, [*range(num_classes), IGNORE_INDEX])
    if len(unknown):
        yield "mask has ids that are no class", f": {_list(unknown)}"
    yield from _pair_problems(image, mask)


def find_step_problems(before: Sample, after: Sample, fills: set[int], is_last: bool) -> Iterator[Problem]:
    """What a step did to a sample that it must not, as `check_pipeline` lists it; `fills`: ids that it may add."""
    (image, mask), (new_image, new_mask) = before, after
    new_ids = np.setdiff1d(np.setdiff1d(new_mask, mask), list(fills))
    if len(new_ids):
        yield "mask gets ids that did not exist", f": {_list(new_ids)}"
    yield from _pair_problems(new_image, new_mask)
    if not np.isfinite(new_image).all():
        yield "image has values that are not finite", ""
        return
    if (flat := _name_flat(new_image)) and not _name_flat(image):
        yield f"image becomes {flat}", ""
    if rescaled := _name_rescaling(image, new_image):
        yield rescaled, f": {_range(image)} becomes {_range(new_image)}"
    if is_last and new_image.dtype.kind == "f" and new_image.min() >= 0:
        yield "never normalised (the model normalises uint8 only)", f": {_range(new_image)}"


def _pair_problems(image: np.ndarray, mask: np.ndarray) -> Iterator[Problem]:
    if mask.dtype != np.uint8:
        yield "mask is not uint8", f": {mask.dtype}"
    if mask.shape != image.shape[:2]:
        yield "image and mask differ in size", f": {image.shape[:2]} and {mask.shape}"


def _name_flat(image: np.ndarray) -> str:
    """How an image without content looks, "" for one that has some."""
    unit = 1 if image.dtype.kind in "ui" else 1 / 255
    if image.min() >= 0 and image.max() <= BLACK * unit:
        return "black"
    return "of one colour" if np.ptp(image.reshape(-1, image.shape[-1]), axis=0).max() <= CONSTANT * unit else ""


def _name_rescaling(before: np.ndarray, after: np.ndarray) -> str:
    """Whether a step multiplied values that had been scaled already; "" for any other change."""
    if before.dtype.kind != "f" or before.shape != after.shape:
        return ""
    x, y = before[..., 0].ravel().astype(np.float64), after[..., 0].ravel().astype(np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return ""
    factor, offset = np.polyfit(x, y, 1)
    if np.abs(factor * x + offset - y).max() > 1e-3 * np.ptp(y):  # no factor alone: another change
        return ""
    if before.min() < 0:
        return "" if 0.5 <= factor <= 2 else "normalised twice"
    return "divided by 255 twice" if before.max() <= 1 and factor <= 0.05 else ""


def _range(image: np.ndarray) -> str:
    return f"{image.min():.2g} to {image.max():.2g}"


def _list(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:8])) + (" ..." if len(ids) > 8 else "")
