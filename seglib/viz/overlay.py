"""Overlays of masks, errors and comparisons as arrays; their blending with an image, crops and encodings."""

import cv2
import numpy as np

from seglib.viz.style import IGNORED, class_colours

IGNORE_INDEX = 255
CLEAR = (0, 0, 0, 0)
WRONG = (204, 30, 30)
ONLY_FIRST, ONLY_SECOND = (0, 114, 178), (230, 159, 0)  # blue and orange: apart for colour-blind people too


def colour_table(num_classes: int) -> np.ndarray:
    """(256, 3) uint8 RGB: each class's fixed colour; ids that are no class (255: ignored) are grey."""
    table = np.full((256, 3), IGNORED, np.uint8)
    table[:num_classes] = class_colours(num_classes)
    return table


def show_table(shown: set[int], num_classes: int) -> np.ndarray:
    """(256,) bool by id, from the ids that are shown; all ids that are no class follow 255's."""
    table = np.full(256, IGNORE_INDEX in shown)
    table[:num_classes] = [class_id in shown for class_id in range(num_classes)]
    return table


def overlay_mask(mask: np.ndarray, colours: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Colours of a mask's classes.

    Parameters
    ----------
    mask : (H, W) uint8 class ids.
    colours : (256, 3) uint8, from `colour_table`.
    shown : (256,) bool by id, from `show_table`.

    Returns
    -------
    (H, W, 4) uint8 RGBA, alpha 255 where shown and 0 elsewhere
    """
    return np.column_stack([colours, np.where(shown, 255, 0).astype(np.uint8)]).take(mask, axis=0)


def overlay_errors(truth: np.ndarray, pred: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 RGBA, red where `pred` differs from `truth`.

    A wrong pixel counts as shown where its true or its predicted class is; pixels that `truth` ignores are never wrong.
    """
    wrong = (truth != pred) & (truth != IGNORE_INDEX) & (shown.take(truth) | shown.take(pred))
    return np.array([CLEAR, (*WRONG, 255)], np.uint8).take(wrong.view(np.uint8), axis=0)


def overlay_comparison(truth: np.ndarray, first: np.ndarray, second: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 RGBA: blue where only `first` is right, orange where only `second`, red where neither is."""
    verdict = (first == truth) * np.uint8(1) + (second == truth) * np.uint8(2)  # 0: neither, 3: both
    seen = shown.take(truth) | shown.take(first) | shown.take(second)
    verdict[~seen | (truth == IGNORE_INDEX)] = 3
    colours = [(*colour, 255) for colour in (WRONG, ONLY_FIRST, ONLY_SECOND)]
    return np.array([*colours, CLEAR], np.uint8).take(verdict, axis=0)


def blend(image: np.ndarray, overlay: np.ndarray, opacity: float) -> np.ndarray:
    """Lay an overlay (H, W, 4) uint8 over an image (H, W, 3) uint8; opacity 0: image alone, 1: colours alone."""
    blended = cv2.addWeighted(image, 1 - opacity, np.ascontiguousarray(overlay[..., :3]), opacity, 0)
    return np.where(overlay[..., 3:] > 0, blended, image)


def make_grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 without its colours, on which those of errors stand out."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def crop_window(height: int, width: int, zoom: float, centre: tuple[float, float]) -> tuple[int, int, int, int]:
    """Left, top, width and height [px] of the part that fills the picture at this zoom (1: all), kept inside.

    centre : x, y [px]; moved inwards where the part would leave the image.
    """
    w, h = max(1, round(width / zoom)), max(1, round(height / zoom))
    left = min(max(0, round(centre[0] - w / 2)), width - w)
    top = min(max(0, round(centre[1] - h / 2)), height - h)
    return left, top, w, h


def encode_png(picture: np.ndarray) -> bytes:
    """PNG of a picture (H, W, 3) RGB or (H, W, 4) RGBA uint8, made for speed.

    Trying every filter on every line, as OpenCV does by default, takes twice as long for a photograph and eight times
    for an overlay, and saves 4 %.
    """
    order = cv2.COLOR_RGB2BGR if picture.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG]
    return cv2.imencode(".png", cv2.cvtColor(picture, order), options)[1].tobytes()


def encode_webp(picture: np.ndarray, quality: int = 75) -> bytes:
    """WebP of a picture (H, W, 3) RGB uint8, for what is stored in a notebook: half as large as a JPEG."""
    options = [cv2.IMWRITE_WEBP_QUALITY, quality]
    return cv2.imencode(".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1].tobytes()
