"""The viewer's picture as a widget: panes side by side, the legend that is clicked, and what is under the pointer."""

from pathlib import Path

import anywidget
import traitlets as t

FOLDER = Path(__file__).parent


class Stage(anywidget.AnyWidget):
    """What the browser draws (stage.js). It reports the hand with custom messages and waits for "done" after each.

    image : PNG of the part of the image that all panes show.
    panes : [{"overlay": PNG of what lies over it, "grey": whether the image loses its colours,
        "caption": [(text, colour or None), ...]}, ...]
    opacity : of the overlays [%]; the browser blends, so that a slider can be linked to it without a kernel between.
    window : left, top, width, height [px] of that part.
    pin : x, y [px] of the pixel that was clicked, outside the image when none was.
    title : lines of text, the first one large.
    readout : {"place": text, "rows": [(mask's name, class name, colour), ...]}.
    legend : [{"id", "name", "colour", "share", "on"}, ...].
    """

    _esm = FOLDER / "stage.js"
    _css = FOLDER / "stage.css"
    image = t.Bytes(b"").tag(sync=True)
    opacity = t.Int(60).tag(sync=True)
    panes = t.List().tag(sync=True)
    window = t.List([0, 0, 1, 1]).tag(sync=True)
    zoom = t.Float(1.0).tag(sync=True)
    pin = t.List([-1, -1]).tag(sync=True)
    title = t.List([""]).tag(sync=True)
    readout = t.Dict({"place": "", "rows": []}).tag(sync=True)
    legend = t.List().tag(sync=True)
