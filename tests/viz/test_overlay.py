"""Overlays against the blending formula, pixel by pixel; crops stay inside; encodings give back what went in."""

import io

import numpy as np
import pytest
from PIL import Image

from seglib.viz.overlay import (
    ONLY_FIRST,
    ONLY_SECOND,
    blend,
    crop_window,
    encode_png,
    encode_webp,
    make_grey,
    overlay_comparison,
    overlay_errors,
    overlay_mask,
    show_table,
)
from seglib.viz.pictures import WRONG
from seglib.viz.plots import IGNORED, class_colours, colour_table

COLOURS = colour_table(3)
ALL = show_table({0, 1, 2, 255}, 3)


CLEAR = (0, 0, 0, 0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def rows(*values):
    """A mask (4, 6) of equal rows."""
    return np.tile(np.array(values, np.uint8), (4, 1))


def test_classes_have_their_fixed_colours_and_other_ids_are_grey():
    assert (COLOURS[:3] == class_colours(3)).all()
    assert (COLOURS[3:] == IGNORED).all()


def test_opacity_blends_image_and_colour(image):
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    overlay = overlay_mask(mask, COLOURS, ALL)
    assert np.abs(blend(image, overlay, 0.25) - (0.75 * image + 0.25 * COLOURS[mask])).max() <= 0.5 + 1e-6
    assert (blend(image, overlay, 0.0) == image).all()
    assert (blend(image, overlay, 1.0) == COLOURS[mask]).all()


def test_a_class_that_is_off_leaves_the_image(image):
    mask = rows(0, 1, 2, 255, 7, 1)
    blended = blend(image, overlay_mask(mask, COLOURS, show_table({1}, 3)), 1.0)
    assert (blended[mask == 1] == COLOURS[1]).all()
    assert (blended[mask != 1] == image[mask != 1]).all()


def test_ids_that_are_no_class_follow_the_ignored_ones():
    shown = show_table({2, 255}, 3)
    assert shown[[2, 3, 254, 255]].all() and not shown[[0, 1]].any()


def test_wrong_pixels_are_red_and_ignored_ones_never():
    overlay = overlay_errors(rows(0, 1, 255, 2, 0, 1), rows(0, 2, 1, 2, 1, 1), ALL)
    assert (overlay[:, [1, 4]] == (*WRONG, 255)).all()
    assert (overlay[:, [0, 2, 3, 5]] == CLEAR).all()


def test_an_error_is_shown_with_its_true_or_its_predicted_class():
    truth, pred = rows(0, 0, 0, 0, 0, 0), rows(1, 1, 1, 1, 1, 1)
    assert (overlay_errors(truth, pred, show_table({1}, 3)) == (*WRONG, 255)).all()
    assert (overlay_errors(truth, pred, show_table({0}, 3)) == (*WRONG, 255)).all()
    assert (overlay_errors(truth, pred, show_table({2}, 3)) == CLEAR).all()


def test_comparison_tells_who_is_right():
    truth, first, second = rows(1, 1, 1, 1, 255, 0), rows(1, 1, 2, 2, 1, 0), rows(1, 2, 1, 0, 2, 0)
    overlay = overlay_comparison(truth, first, second, ALL)
    for column, colour in ((1, ONLY_FIRST), (2, ONLY_SECOND), (3, WRONG)):
        assert (overlay[:, column] == (*colour, 255)).all()
    assert (overlay[:, [0, 4, 5]] == CLEAR).all()  # right in both, ignored, right in both
    assert (overlay_comparison(truth, first, second, show_table(set(), 3)) == CLEAR).all()


def test_grey_keeps_the_brightness(image):
    grey = make_grey(image)
    assert (grey.std(axis=-1) == 0).all()
    assert np.abs(grey[..., 0] - image @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.parametrize("zoom", [1, 2, 4, 16])
@pytest.mark.parametrize("centre", [(0, 0), (31.5, 20), (63.5, 39.5), (-100, 500)])
def test_a_crop_has_the_zooms_size_and_stays_inside(zoom, centre):
    left, top, width, height = crop_window(40, 64, zoom, centre)
    assert (width, height) == (max(1, round(64 / zoom)), max(1, round(40 / zoom)))
    assert 0 <= left <= 64 - width and 0 <= top <= 40 - height


def test_a_crop_inside_is_around_its_centre():
    left, top, width, height = crop_window(40, 64, 4, (32, 20))
    assert (left + width / 2, top + height / 2) == (32, 20)


def test_png_gives_the_pixels_back(image):
    data = encode_png(image)
    assert data.startswith(b"\x89PNG")
    assert (np.array(Image.open(io.BytesIO(data))) == image).all()
    overlay = overlay_mask(rows(0, 1, 2, 255, 7, 1), COLOURS, show_table({1}, 3))
    assert (np.array(Image.open(io.BytesIO(encode_png(overlay)))) == overlay).all()


def test_webp_keeps_the_colours():
    picture = np.full((64, 64, 3), (213, 94, 0), np.uint8)
    decoded = np.array(Image.open(io.BytesIO(encode_webp(picture))))
    assert np.abs(decoded.astype(int) - picture).max() < 12
