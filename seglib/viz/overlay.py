"""Pictures of masks over images, as arrays: class overlays, error maps, crops, and their encoding."""

import cv2
import numpy as np

from seglib.viz.style import IGNORED, class_colours

IGNORE_INDEX = 255
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


def blend_mask(
    image: np.ndarray, mask: np.ndarray, colours: np.ndarray, shown: np.ndarray, opacity: float
) -> np.ndarray:
    """Lay a mask's colours over an image.

    Parameters
    ----------
    image : (H, W, 3) uint8 RGB.
    mask : (H, W) uint8 class ids.
    colours : (256, 3) uint8, from `colour_table`.
    shown : (256,) bool by id; where False the image stays as it is.
    opacity : 0 (image alone) to 1 (colours alone).

    Returns
    -------
    (H, W, 3) uint8
    """
    return _paint(image, colours.take(mask, axis=0), shown.take(mask), opacity)


def blend_errors(
    image: np.ndarray, truth: np.ndarray, pred: np.ndarray, shown: np.ndarray, opacity: float
) -> np.ndarray:
    """Grey image (H, W, 3) uint8 with red where `pred` differs from `truth`.

    A wrong pixel counts as shown where its true or its predicted class is; pixels that `truth` ignores are never wrong.
    """
    wrong = (truth != pred) & (truth != IGNORE_INDEX)
    return _paint(_grey(image), WRONG, wrong & _either(shown, truth, pred), opacity)


def blend_comparison(
    image: np.ndarray, truth: np.ndarray, first: np.ndarray, second: np.ndarray, shown: np.ndarray, opacity: float
) -> np.ndarray:
    """Grey image (H, W, 3) uint8: blue where only `first` is right, orange where only `second`, red where neither is."""
    right_first, right_second = first == truth, second == truth
    verdict = right_first * np.uint8(1) + right_second * np.uint8(2)  # 0: neither, 3: both
    colours = np.array([WRONG, ONLY_FIRST, ONLY_SECOND, (0, 0, 0)], np.uint8).take(verdict, axis=0)
    seen = shown.take(truth) | shown.take(first) | shown.take(second)
    return _paint(_grey(image), colours, seen & (verdict != 3) & (truth != IGNORE_INDEX), opacity)


def crop_window(height: int, width: int, zoom: float, centre: tuple[float, float]) -> tuple[int, int, int, int]:
    """Left, top, width and height [px] of the part that fills the picture at this zoom (1: all), kept inside.

    centre : x, y [px]; moved inwards where the part would leave the image.
    """
    w, h = max(1, round(width / zoom)), max(1, round(height / zoom))
    left = min(max(0, round(centre[0] - w / 2)), width - w)
    top = min(max(0, round(centre[1] - h / 2)), height - h)
    return left, top, w, h


def encode_png(picture: np.ndarray) -> bytes:
    """PNG of an RGB picture (H, W, 3) uint8, made for speed: light compression."""
    return _encode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def encode_webp(picture: np.ndarray, quality: int = 75) -> bytes:
    """WebP of an RGB picture (H, W, 3) uint8, for what is stored in a notebook: half as large as a JPEG."""
    return _encode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])


def _encode(suffix: str, picture: np.ndarray, options: list[int]) -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _either(shown: np.ndarray, truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    return shown.take(truth) | shown.take(pred)


def _paint(image: np.ndarray, colours: np.ndarray | tuple, where: np.ndarray, opacity: float) -> np.ndarray:
    layer = np.broadcast_to(np.asarray(colours, np.uint8), image.shape)
    blended = cv2.addWeighted(image, 1 - opacity, layer, opacity, 0)
    return np.where(where[..., None], blended, image)
