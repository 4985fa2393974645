"""Some images with their masks as one piece of HTML: what an executed notebook shows where no kernel answers."""

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from seglib.viz.layers import Layer, Part, caption_layer, draw_overlay, is_grey, list_layers
from seglib.viz.mask_source import MaskSource
from seglib.viz.overlay import blend, colour_table, encode_webp, make_grey, show_table
from seglib.viz.readout import describe_image

TILE = 176  # [px] side of one picture on the page
OPACITY = 0.65
# A live viewer right above hides the sheet; a dead one ("model not found") is hidden by it. Where styles are not
# trusted, both stay, which does no harm.
_STYLE = """<style>
.jp-OutputArea-child:has(.seglib-live) + .jp-OutputArea-child:has(.seglib-sheet) { display: none; }
.jp-OutputArea-child:has(+ .jp-OutputArea-child .seglib-sheet) > .jp-OutputArea-output:not(:has(*)) { display: none; }
</style>"""


def contact_sheet_html(source: MaskSource, positions: Sequence[int], caption: str) -> str:
    """A table of pictures: a row an image, a column a layer.

    Parameters
    ----------
    positions : which images, in their order.
    caption : a sentence above the table.
    """
    layers = _choose_layers(source)
    captions = ["", *("<br>".join(map(_write_part, caption_layer(*item, source))) for item in layers.items())]
    head = "".join(f'<th style="text-align:left;vertical-align:bottom">{caption}</th>' for caption in captions)
    rows = [_row(source, position, layers) for position in positions]
    return (
        f'<div class="seglib-sheet">{_STYLE}<p>{escape(caption)}</p><p>{_legend(source)}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _choose_layers(source: MaskSource) -> dict[str, Layer]:
    """Image, masks, and one picture of the differences: more would not fit a page."""
    layers = list(list_layers(source).items())
    plain = [item for item in layers if item[1].kind in ("image", "mask")]
    differences = [item for item in layers if item[1].kind in ("error", "compare")]
    return dict(plain[:4] + differences[-1:])


def _row(source: MaskSource, position: int, layers: dict[str, Layer]) -> str:
    sample = source.read(position)
    num_classes = len(source.class_names)
    look = source, colour_table(num_classes), show_table(set(range(1, num_classes)), num_classes)
    cells = []
    for label, layer in layers.items():
        image = make_grey(sample.image) if is_grey(layer) else sample.image
        cells.append(_picture(blend(image, draw_overlay(layer, sample, *look), OPACITY), label))
    words = "<br>".join(escape(line) for line in describe_image(sample, source, str(source.image_ids[position])))
    return f'<tr><td style="text-align:left;vertical-align:top">{words}</td>{"".join(cells)}</tr>'


def _picture(picture: np.ndarray, label: str) -> str:
    scale = TILE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = base64.b64encode(encode_webp(picture)).decode()
    return f'<td><img alt="{escape(label)}" width="{TILE}" src="data:image/webp;base64,{data}"></td>'


def _legend(source: MaskSource) -> str:
    colours = colour_table(len(source.class_names))
    return " &nbsp; ".join(
        _write_part(Part(name, tuple(colour)))
        for name, colour in zip(source.class_names[1:], colours[1:], strict=False)
    )


def _write_part(part: Part) -> str:
    if part.colour is None:
        return escape(part.text)
    red, green, blue = part.colour
    square = f'<span style="color:rgb({red},{green},{blue})">&#9632;</span>'
    return f'<span style="white-space:nowrap;font-weight:normal">{square} {escape(part.text)}</span>'
