"""Colours are fixed and distinct; Korean class names are drawn with a font that has their letters, or it is said."""

import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import font_manager

from seglib.viz import plots

KOREAN = "일반 쓰레기"


@pytest.fixture(autouse=True)
def _own_fonts():
    plots._find_family.cache_clear()
    with matplotlib.rc_context():
        yield
    plots._find_family.cache_clear()


def has_korean_font() -> bool:
    found = plots._find_family(frozenset(KOREAN.replace(" ", "")))  # on the disk too, where matplotlib looked long ago
    plots._find_family.cache_clear()
    return found is not None


def draw(text: str) -> np.ndarray:
    figure = plt.figure(figsize=(2, 0.5))
    figure.text(0, 0.2, text, fontsize=14)
    figure.canvas.draw()
    pixels = np.array(figure.canvas.buffer_rgba())
    plt.close(figure)
    return pixels


def test_korean_names_are_drawn_with_letters_and_without_a_missing_glyph():
    if not has_korean_font():
        pytest.skip("no Korean font is installed (apt-get install fonts-nanum)")
    plots.use_font_for(["Paper", KOREAN])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each glyph that it draws as an empty box
        drawn, another = draw("쓰레기"), draw("기레쓰")
    assert not np.array_equal(drawn, another)


def test_latin_names_keep_their_font():
    before = list(matplotlib.rcParams["font.family"])
    plots.use_font_for(["Paper", "Café"])
    assert matplotlib.rcParams["font.family"] == before


def test_without_a_font_the_warning_names_one_to_install(monkeypatch):
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]  # Last Resort among them
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    with pytest.warns(UserWarning, match=r"no installed font has the letters '.*쓰.*' ?.*fonts-nanum"):
        plots.use_font_for([KOREAN])


def test_a_font_installed_after_matplotlib_looked_is_found(monkeypatch):
    if not has_korean_font():
        pytest.skip("no Korean font is installed (apt-get install fonts-nanum)")
    latin = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", latin)
    assert plots._find_family(frozenset("쓰")) is not None


def test_colours_do_not_depend_on_the_number_of_classes_and_are_distinct():
    colours = plots.class_colours(61)
    assert np.array_equal(colours[:12], plots.class_colours(12))
    assert len(np.unique(colours, axis=0)) == 61


def test_ids_that_are_no_class_become_grey():
    coloured = plots.colour_mask(np.array([[0, 2, 3, 255]], np.uint8), num_classes=3)
    assert np.array_equal(coloured[0, :2], plots.class_colours(3)[[0, 2]])
    assert np.array_equal(coloured[0, 2:], [plots.IGNORED] * 2)
