"""Masks over images as pixels: overlays, layers, the words under the pointer, contact sheets."""

import base64
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import cv2
import numpy as np

from seglib.viz.image_table import MaskSource, Sample, count_confusion, image_miou
from seglib.viz.pictures import WRONG
from seglib.viz.plots import colour_table

IGNORE_INDEX = 255
CLEAR = (0, 0, 0, 0)
ONLY_FIRST, ONLY_SECOND = (0, 114, 178), (230, 159, 0)  # blue and orange: apart for colour-blind people too
TILE, OPACITY = 176, 0.65  # of a picture on the contact sheet: its side [px], and its overlay's
# A live viewer right above hides the sheet; a dead one ("model not found") is hidden by it. Where styles are not
# trusted, both stay, which does no harm.
_STYLE = """<style>
.jp-OutputArea-child:has(.seglib-live) + .jp-OutputArea-child:has(.seglib-sheet) { display: none; }
.jp-OutputArea-child:has(+ .jp-OutputArea-child .seglib-sheet) > .jp-OutputArea-output:not(:has(*)) { display: none; }
</style>"""


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


# What a pane of the viewer can show, its words, and how it is drawn.


class Layer(NamedTuple):
    """A picture over an image.

    caption : [(text, colour or None), ...], the label first, then what the colours mean.
    draw : (masks by name, shown) -> (H, W, 4) uint8 RGBA; `shown`: see `show_table`. None: the image alone.
    grey : whether it lies over the image without its colours.
    """

    caption: list[tuple[str, tuple[int, int, int] | None]]
    draw: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray] | None = None
    grey: bool = False


def list_layers(source: MaskSource) -> dict[str, Layer]:
    """Label -> layer, in the order of the menu."""
    colours, layers = colour_table(len(source.class_names)), {"image": Layer([("image", None)])}
    reference, compared = source.reference, source.compared
    for name in [reference, *compared] if reference else []:
        layers[name] = Layer([(name, None)], lambda masks, shown, name=name: overlay_mask(masks[name], colours, shown))
    for name in compared:
        label = f"error of {name}" if source.truth else f"{reference} against {name}"
        label = label if len(compared) > 1 or not source.truth else "error"
        caption = [(label, None), ("wrong" if source.truth else "different", WRONG)]
        layers[label] = Layer(
            caption, lambda masks, shown, name=name: overlay_errors(masks[reference], masks[name], shown), grey=True
        )
    if source.truth and len(compared) > 1:
        first, second = compared[:2]
        label = f"{first} against {second}"
        only = [(f"{first} right", ONLY_FIRST), (f"{second} right", ONLY_SECOND), ("both wrong", WRONG)]
        layers[label] = Layer(
            [(label, None), *only],
            lambda masks, shown: overlay_comparison(masks[reference], masks[first], masks[second], shown),
            grey=True,
        )
    return layers


def draw_layer(layer: Layer, sample: Sample, shown: np.ndarray) -> np.ndarray:
    """What lies over the sample's image: (H, W, 4) uint8 RGBA; `shown`: see `show_table`."""
    if layer.draw is None:
        return np.zeros((*sample.image.shape[:2], 4), np.uint8)
    return layer.draw(sample.masks, shown)


# The viewer's words: of the open image, of its classes, of one pixel.


def describe_image(sample: Sample, source: MaskSource, image_id: str) -> list[str]:
    """Lines: the id, the size, and each run's own mIoU on this image."""
    height, width = sample.image.shape[:2]
    lines = [f"image {image_id}", f"{width} × {height} px"]
    for name in source.compared:
        confusion = count_confusion(sample.masks[source.reference], sample.masks[name], len(source.class_names))
        score = f"mIoU {image_miou(confusion):.3f}"
        against = "" if source.truth else f" against {source.reference}"
        lines.append(score if len(source.compared) == 1 and source.truth else f"{name}: {score}{against}")
    return lines


def list_legend(sample: Sample, source: MaskSource, shown: set[int]) -> list[dict]:
    """One entry a class, and one for ignored pixels where this image has any.

    id, name, colour; share: of the reference's pixels, as text, "" for none; present: in any of the masks; on: shown.
    """
    num_classes = len(source.class_names)
    counts = {name: np.bincount(mask.ravel(), minlength=256) for name, mask in sample.masks.items()}
    for count in counts.values():
        count[IGNORE_INDEX] = count[num_classes:].sum()
    pixels = counts[source.reference] if source.reference else np.zeros(256, np.int64)
    present = sum(counts.values(), np.zeros(256, np.int64)) > 0
    names = dict(enumerate(source.class_names)) | ({IGNORE_INDEX: "(ignored)"} if present[IGNORE_INDEX] else {})
    colours = colour_table(num_classes)
    return [
        {"id": class_id, "name": name, "colour": colours[class_id].tolist(), "present": bool(present[class_id]),
         "share": _percent(pixels[class_id] / max(1, pixels[:num_classes].sum() + pixels[IGNORE_INDEX])),
         "on": class_id in shown}
        for class_id, name in names.items()
    ]  # fmt: skip


def describe_pixel(sample: Sample | None, source: MaskSource, x: int, y: int) -> dict:
    """Class of each mask at a pixel: {"place": text, "rows": [[mask's name, class name, colour], ...]}.

    Outside the image the class names are empty, so that the box keeps its height.
    """
    if sample is None or not (0 <= x < sample.image.shape[1] and 0 <= y < sample.image.shape[0]):
        names = [source.reference, *source.compared] if source.reference else []
        return {"place": "point at a pixel to read it", "rows": [[name, "", None] for name in names]}
    colours = colour_table(len(source.class_names))
    rows = []
    for name, mask in sample.masks.items():
        class_id = int(mask[y, x])
        rows.append([name, _name_class(class_id, source.class_names), colours[class_id].tolist()])
    return {"place": f"x {x}, y {y}", "rows": rows}


def _name_class(class_id: int, class_names: list[str]) -> str:
    if class_id < len(class_names):
        return class_names[class_id]
    return "(ignored)" if class_id == IGNORE_INDEX else f"(id {class_id} is no class)"


def _percent(share: float) -> str:
    if share == 0:
        return ""
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


# Some images with their masks as one piece of HTML: what an executed notebook shows where no kernel answers.


def contact_sheet_html(source: MaskSource, positions: Sequence[int], caption: str) -> str:
    """A table of pictures: a row an image, a column a layer.

    Parameters
    ----------
    positions : which images, in their order.
    caption : a sentence above the table.
    """
    layers, colours = _choose_layers(source), colour_table(len(source.class_names))
    classes = zip(source.class_names[1:], colours[1:], strict=False)
    legend = " &nbsp; ".join(_write(*each) for each in classes)
    captions = ["", *("<br>".join(_write(*part) for part in layer.caption) for layer in layers.values())]
    head = "".join(f'<th style="text-align:left;vertical-align:bottom">{caption}</th>' for caption in captions)
    rows = [_row(source, position, layers) for position in positions]
    return (
        f'<div class="seglib-sheet">{_STYLE}<p>{escape(caption)}</p><p>{legend}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _choose_layers(source: MaskSource) -> dict[str, Layer]:
    """Image, masks, and one picture of the differences: more would not fit a page."""
    layers = list(list_layers(source).items())
    plain, differences = ([item for item in layers if item[1].grey is grey] for grey in (False, True))
    return dict(plain[:4] + differences[-1:])


def _row(source: MaskSource, position: int, layers: dict[str, Layer]) -> str:
    sample = source.read(position)
    num_classes, cells = len(source.class_names), []
    shown = show_table(set(range(1, num_classes)), num_classes)
    for label, layer in layers.items():
        image = make_grey(sample.image) if layer.grey else sample.image
        cells.append(_picture(blend(image, draw_layer(layer, sample, shown), OPACITY), label))
    words = "<br>".join(escape(line) for line in describe_image(sample, source, str(source.image_ids[position])))
    return f'<tr><td style="text-align:left;vertical-align:top">{words}</td>{"".join(cells)}</tr>'


def _picture(picture: np.ndarray, label: str) -> str:
    scale = TILE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = base64.b64encode(encode_webp(picture)).decode()
    return f'<td><img alt="{escape(label)}" width="{TILE}" src="data:image/webp;base64,{data}"></td>'


def _write(text: str, colour: Sequence[int] | None) -> str:
    """A text, with a swatch of its colour where it has one."""
    if colour is None:
        return escape(text)
    square = f'<span style="color:rgb({",".join(map(str, colour))})">&#9632;</span>'
    return f'<span style="white-space:nowrap;font-weight:normal">{square} {escape(text)}</span>'
