"""Overlays against the blending formula, pixel by pixel; crops stay inside; encodings give back what went in."""

import cv2
import numpy as np
import pytest

from seglib.viz.overlay import (
    ONLY_FIRST,
    ONLY_SECOND,
    WRONG,
    blend_comparison,
    blend_errors,
    blend_mask,
    colour_table,
    crop_window,
    encode_png,
    encode_webp,
    show_table,
)
from seglib.viz.style import IGNORED, class_colours

COLOURS = colour_table(3)
ALL = show_table({0, 1, 2, 255}, 3)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_classes_have_their_fixed_colours_and_other_ids_are_grey():
    assert (COLOURS[:3] == class_colours(3)).all()
    assert (COLOURS[3:] == IGNORED).all()


def test_opacity_blends_image_and_colour(image):
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    blended = blend_mask(image, mask, COLOURS, ALL, 0.25)
    assert np.abs(blended - (0.75 * image + 0.25 * COLOURS[mask])).max() <= 0.5 + 1e-6
    assert (blend_mask(image, mask, COLOURS, ALL, 0.0) == image).all()
    assert (blend_mask(image, mask, COLOURS, ALL, 1.0) == COLOURS[mask]).all()


def test_a_class_that_is_off_leaves_the_image(image):
    mask = np.tile(np.array([0, 1, 2, 255, 7, 1], np.uint8), (4, 1))
    blended = blend_mask(image, mask, COLOURS, show_table({1}, 3), 1.0)
    assert (blended[mask == 1] == COLOURS[1]).all()
    assert (blended[mask != 1] == image[mask != 1]).all()


def test_ids_that_are_no_class_follow_the_ignored_ones():
    shown = show_table({2, 255}, 3)
    assert shown[[2, 3, 254, 255]].all() and not shown[[0, 1]].any()


def test_wrong_pixels_are_red_on_a_grey_image_and_ignored_ones_never(image):
    truth = np.tile(np.array([0, 1, 255, 2, 0, 1], np.uint8), (4, 1))
    pred = np.tile(np.array([0, 2, 1, 2, 1, 1], np.uint8), (4, 1))
    errors = blend_errors(image, truth, pred, ALL, 1.0)
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
    assert (errors[:, [1, 4]] == WRONG).all()
    assert (errors[:, [0, 2, 3, 5]] == grey[:, [0, 2, 3, 5]]).all()


def test_an_error_is_shown_with_its_true_or_its_predicted_class(image):
    truth, pred = np.zeros((4, 6), np.uint8), np.ones((4, 6), np.uint8)
    assert (blend_errors(image, truth, pred, show_table({1}, 3), 1.0) == WRONG).all()
    assert (blend_errors(image, truth, pred, show_table({0}, 3), 1.0) == WRONG).all()
    assert not (blend_errors(image, truth, pred, show_table({2}, 3), 1.0) == WRONG).all(axis=-1).any()


def test_comparison_tells_who_is_right(image):
    truth = np.tile(np.array([1, 1, 1, 1, 255, 0], np.uint8), (4, 1))
    first = np.tile(np.array([1, 1, 2, 2, 1, 0], np.uint8), (4, 1))
    second = np.tile(np.array([1, 2, 1, 0, 2, 0], np.uint8), (4, 1))
    picture = blend_comparison(image, truth, first, second, ALL, 1.0)
    for column, colour in ((1, ONLY_FIRST), (2, ONLY_SECOND), (3, WRONG)):
        assert (picture[:, column] == colour).all()
    assert (picture[:, [0, 4, 5]].std(axis=-1) == 0).all()  # right in both, ignored: grey


@pytest.mark.parametrize("zoom", [1, 2, 4, 16])
@pytest.mark.parametrize("centre", [(0, 0), (31.5, 20), (63.5, 39.5), (-100, 500)])
def test_a_crop_has_the_zooms_size_and_stays_inside(zoom, centre):
    left, top, width, height = crop_window(40, 64, zoom, centre)
    assert (width, height) == (max(1, round(64 / zoom)), max(1, round(40 / zoom)))
    assert 0 <= left <= 64 - width and 0 <= top <= 40 - height


def test_a_crop_inside_is_around_its_centre():
    left, top, width, height = crop_window(40, 64, 4, (32, 20))
    assert (left + width / 2, top + height / 2) == (32, 20)


def test_png_gives_the_pixels_back_as_rgb(image):
    data = encode_png(image)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert data.startswith(b"\x89PNG") and (decoded == image).all()


def test_webp_keeps_the_colours():
    picture = np.full((64, 64, 3), (213, 94, 0), np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_webp(picture), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(decoded.astype(int) - picture).max() < 12
