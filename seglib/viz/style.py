"""One look for all figures: a fixed colour for each class, and a font that has the class names' letters."""

import colorsys
import os
import warnings
from collections.abc import Sequence
from functools import cache

import matplotlib
import numpy as np
from matplotlib import font_manager

IGNORED = (128, 128, 128)
# Background, then colours that stay apart for colour-blind people (Okabe and Ito 2008, Tol 2021), light and dark mixed.
_COLOURS = [
    "202020", "0072b2", "e69f00", "56b4e9", "d55e00", "009e73", "f0e442", "cc79a7", "882255", "88ccee", "aa4499",
    "999933", "332288", "ddcc77", "661100", "44aa99", "ee99aa", "117733", "994455", "77aadd", "bbcc33",
]  # fmt: skip


def class_colours(num_classes: int) -> np.ndarray:
    """(num_classes, 3) uint8 RGB, the same for a class id in every figure."""
    colours = [tuple(bytes.fromhex(colour)) for colour in _COLOURS[:num_classes]]
    for index in range(len(colours), num_classes):  # golden-ratio hues: neighbours differ most
        shade = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.45 + 0.2 * (index % 3), 0.95 - 0.25 * (index % 2))
        colours.append(tuple(round(255 * part) for part in shade))
    return np.array(colours, np.uint8)


def colour_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Class ids (H, W) uint8 to colours (H, W, 3) uint8; ids that are no class (255: ignored) become grey."""
    table = np.full((256, 3), IGNORED, np.uint8)
    table[:num_classes] = class_colours(num_classes)
    return table[mask]


def use_font_for(texts: Sequence[str]) -> None:
    """Choose an installed font that has all letters of these texts; Korean class names need one.

    Where none has, a warning says which to install.
    """
    letters = frozenset(letter for text in texts for letter in text if ord(letter) > 0x2FF)
    if not letters:
        return
    family = _find_family(letters)
    if family is None:
        sample = "".join(sorted(letters)[:8])
        warnings.warn(
            f"no installed font has the letters {sample!r}; for Korean install NanumGothic (apt-get install fonts-nanum) "
            "or Noto Sans CJK (fonts-noto-cjk) and restart the notebook",
            stacklevel=2,
        )
        return
    # by name: of a generic family ("sans-serif") matplotlib takes the first font alone, and boxes for what it lacks
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", family]


@cache
def _find_family(letters: frozenset[str]) -> str | None:
    """The family of a font with all letters: of those that matplotlib knows, else of those installed since it looked."""
    family = _search_known(letters)
    if family is None:
        known = {font.fname for font in font_manager.fontManager.ttflist}
        for path in set(font_manager.findSystemFonts()) - known:
            font_manager.fontManager.addfont(path)
        family = _search_known(letters)
    return family


def _search_known(letters: frozenset[str]) -> str | None:
    needed = {ord(letter) for letter in letters}
    fonts = [font for font in font_manager.fontManager.ttflist if os.path.isfile(font.fname)]
    for font in sorted(fonts, key=lambda font: (font.name != "NanumGothic", "Noto" not in font.name, font.name)):
        if needed <= font_manager.get_font(font.fname).get_charmap().keys():
            return font.name
    return None
