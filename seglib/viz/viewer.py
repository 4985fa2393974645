"""The mask viewer: a widget, and a contact sheet where no kernel answers."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import anywidget
import ipywidgets as w
import numpy as np
import traitlets as t
from IPython import get_ipython
from IPython.display import HTML, display

from seglib.errors import InputError, require_known
from seglib.viz import overlay
from seglib.viz.image_table import Choice, ImageTable, MaskSource, Sample, list_sorts, select_images
from seglib.viz.plots import show_progress

FOLDER = Path(__file__).parent
ZOOMS = (1, 2, 4, 8, 16)
ANY = -1  # a menu shows nothing at all for None
NOWHERE = [-1, -1]
# Column -> width of a control, and of its words.
WIDTHS = {1: ("250px", "70px"), 2: ("270px", "90px"), 3: ("330px", "140px"), 4: ("180px", "44px")}
SHEET_IMAGES = 6


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


class ViewerPanel:
    """Controls around a `Stage`; `box` is the whole.

    Parameters
    ----------
    source : what is shown.
    sort : the first order.
    """

    def __init__(self, source: MaskSource, sort: str):
        self.source = source
        self.layers = overlay.list_layers(source)
        self.shown = {
            *range(1, len(source.class_names)),
            overlay.IGNORE_INDEX,
        }  # background would only darken the picture
        self.order, self.at = np.arange(len(source)), 0
        self.sample: Sample | None = None
        self.centre = (0.0, 0.0)
        self.stage = Stage()
        self._make_controls(sort)
        self.box = self._arrange()
        self._connect()
        self._select()

    def _make_controls(self, sort: str) -> None:
        source, labels = self.source, list(self.layers)
        classes = [("any", ANY), *((name, class_id) for class_id, name in enumerate(source.class_names))]
        self.previous = w.Button(icon="chevron-left", tooltip="previous image (left arrow)", layout={"width": "34px"})
        self.next = w.Button(icon="chevron-right", tooltip="next image (right arrow)", layout={"width": "34px"})
        self.number = w.BoundedIntText(1, min=1, max=len(source), layout={"width": "70px"})
        self.of = w.Label(layout={"width": "64px"})
        self.jump = w.Text(continuous_update=False, **_column(2, "Image id"))
        self.sort = w.Dropdown(options=list(list_sorts(source).items()), value=sort, **_column(3, "Sort"))
        self.true_class = w.Dropdown(options=classes, value=ANY, **_column(1, "With class"))
        self.predicted = w.Dropdown(options=classes, value=ANY, **_column(2, "predicted as"))
        self.under = w.BoundedIntText(
            0, min=0, max=10_000, **_column(3, "Objects under [px]"),
            tooltip="keep images with an object smaller than this across (square root of its area); 0: all images")  # fmt: skip
        runs = [(name, index) for index, name in enumerate(source.compared)] or [("", 0)]
        self.run = w.Dropdown(options=runs, value=0, **_column(4, "Run"))
        self.left = w.Dropdown(options=labels, value=labels[min(1, len(labels) - 1)], **_column(1, "Left"))
        self.right = w.Dropdown(
            options=["nothing", *labels], value=labels[2] if len(labels) > 2 else "nothing", **_column(2, "Right"))  # fmt: skip
        self.opacity = w.IntSlider(self.stage.opacity, 0, 100, 5, **_column(3, "Opacity [%]"))
        self.zoom = w.Dropdown(options=[(f"{zoom}×", zoom) for zoom in ZOOMS], value=1, **_column(4, "Zoom"))
        self.status = w.Label(layout={"display": "none"})
        self.progress = w.IntProgress(0, 0, len(source), layout={"display": "none", "width": "200px"})

    def _arrange(self) -> w.Widget:
        for control, needed in ((self.predicted, 1), (self.run, 2)):  # hidden, it keeps its place in the row
            control.layout.visibility = "visible" if len(self.source.compared) >= needed else "hidden"
        browse = w.HBox([self.previous, self.next, self.number, self.of], layout={"width": WIDTHS[1][0]})
        rows = [
            [browse, self.jump, self.sort],
            [self.true_class, self.predicted, self.under, self.run] if self.source.reference else [],
            [self.left, self.right, self.opacity, self.zoom],
            [self.progress, self.status],
        ]
        look = {"flex_flow": "row wrap", "grid_gap": "0 14px", "overflow": "visible"}
        return w.VBox([*(w.HBox(row, layout=look) for row in rows if row), self.stage], layout={"overflow": "visible"})

    def _connect(self) -> None:
        self.previous.on_click(lambda _: self._go(self.at - 1))
        self.next.on_click(lambda _: self._go(self.at + 1))
        self.number.observe(lambda change: self._go(change["new"] - 1), "value")
        self.jump.observe(lambda change: self._jump(change["new"]), "value")
        for control in (self.sort, self.run, self.true_class, self.predicted, self.under):
            control.observe(lambda _: self._select(), "value")
        for control in (self.left, self.right):
            control.observe(lambda _: self._draw(), "value")
        w.jslink((self.opacity, "value"), (self.stage, "opacity"))
        self.zoom.observe(lambda _: self._zoom(), "value")
        self.stage.on_msg(self._answer)

    def _select(self) -> None:
        """Apply the filters and the order, and open the first image."""
        true_class, predicted = (
            None if menu.value == ANY else menu.value for menu in (self.true_class, self.predicted)
        )
        choice = Choice(self.sort.value, self.run.value, true_class, predicted, self.under.value)
        try:
            table = self._compute_table() if choice.needs_table else None
        except (OSError, ValueError) as error:  # a broken file among thousands: the open image stays
            self._tell(f"cannot sort or filter: {error}")
            return
        self.order = select_images(table, len(self.source), choice)
        self.of.value = f"of {len(self.order)}"
        self.at = -1
        with self.number.hold_trait_notifications():
            self.number.max, self.number.value = max(1, len(self.order)), 1
        self._go(0)

    def _compute_table(self) -> ImageTable:
        step = max(1, len(self.source) // 100)

        def tell(done: int, count: int) -> None:
            if done % step == 0:
                self.progress.value = done
                self._tell(f"looking through all masks, once: {done} of {count}")

        self.progress.layout.display = ""
        try:
            return self.source.get_table(tell)
        finally:
            self.progress.layout.display = "none"

    def _jump(self, text: str) -> None:
        if not text.strip():
            return
        places = [index for index, at in enumerate(self.order) if str(self.source.image_ids[at]) == text.strip()]
        if places:
            self._go(places[0])
            self.jump.value = ""  # so that the same id can be asked for again
        else:
            known = text.strip() in map(str, self.source.image_ids)
            self._tell(f"image {text.strip()} is filtered out" if known else f"no image has the id {text.strip()}")

    def _go(self, at: int) -> None:
        """Open the image at this place of the order; past an end it stays."""
        at = min(max(0, at), len(self.order) - 1)
        if at == self.at and len(self.order):
            return
        self.at = at
        self._tell("" if len(self.order) else "no image fits these filters")
        self.sample = self._read()
        self.number.value = max(1, at + 1)
        with self.stage.hold_sync():
            self.stage.pin, self.stage.title = NOWHERE, [""]
            if self.sample is not None:
                self.stage.title = overlay.describe_image(self.sample, self.source, self._image_id())
                self.centre = tuple(side / 2 for side in self.sample.image.shape[1::-1])
            self._draw(moved=True)

    def _read(self) -> Sample | None:
        if not len(self.order):
            return None
        try:
            return self.source.read(int(self.order[self.at]))
        except (OSError, ValueError) as error:  # one broken file must not end the browsing
            self._tell(f"image {self._image_id()} cannot be read: {error}")
            return None

    def _image_id(self) -> str:
        return str(self.source.image_ids[self.order[self.at]])

    def _zoom(self) -> None:
        """Zoom around the pixel that was clicked, where it is in sight."""
        (x, y), (left, top, width, height) = self.stage.pin, self.stage.window
        if left <= x < left + width and top <= y < top + height:
            self.centre = (x + 0.5, y + 0.5)
        self._draw(moved=True)

    def _draw(self, moved: bool = False) -> None:
        """Send what has changed of the open image, in one message; the image itself only where it `moved`."""
        stage, sample = self.stage, self.sample
        with stage.hold_sync():
            stage.zoom = float(self.zoom.value)
            if sample is None:
                stage.panes, stage.legend = [], []
            else:
                part = self._crop(sample)
                if moved:
                    stage.image = overlay.encode_png(part.image)
                stage.panes = self._draw_panes(part)
                stage.legend = overlay.list_legend(sample, self.source, self.shown)
            self._read_pixel(stage.pin)

    def _crop(self, sample: Sample) -> Sample:
        """The part that is in sight; from now on the centre is this part's, wherever it was pulled to."""
        left, top, width, height = overlay.crop_window(*sample.image.shape[:2], self.zoom.value, self.centre)
        self.stage.window, self.centre = [left, top, width, height], (left + width / 2, top + height / 2)
        return sample.crop(left, top, width, height)

    def _draw_panes(self, part: Sample) -> list[dict]:
        shown = overlay.show_table(self.shown, len(self.source.class_names))
        labels = dict.fromkeys([self.left.value, self.right.value])  # the same twice is one pane
        chosen = [self.layers[label] for label in labels if label in self.layers]
        return [
            {
                "overlay": overlay.encode_png(overlay.draw_layer(each, part, shown)),
                "grey": each.grey,
                "caption": each.caption,
            }
            for each in chosen
        ]

    def _read_pixel(self, place: list[int]) -> None:
        self.stage.readout = overlay.describe_pixel(self.sample, self.source, *place)

    def _tell(self, text: str) -> None:
        self.status.value = text
        self.status.layout.display = "" if text else "none"

    def _answer(self, _stage: Stage, message: dict, _buffers: list) -> None:
        """Do what the hand did in the browser, and say that it is done."""
        try:
            self._handle(message)
        finally:
            self.stage.send({"kind": "done"})

    def _handle(self, message: dict) -> None:
        match message:
            case {"kind": "hover", "x": x, "y": y}:
                self._read_pixel([x, y])
            case {"kind": "leave"}:
                self._read_pixel(self.stage.pin)
            case {"kind": "click", "x": x, "y": y}:
                self.stage.pin = [x, y]
                self._read_pixel([x, y])
            case {"kind": "drag", "dx": dx, "dy": dy}:
                self.centre = (self.centre[0] + dx, self.centre[1] + dy)
                self._draw(moved=True)
            case {"kind": "zoom", "x": x, "y": y, "out": out}:
                self.stage.pin = [x, y]
                self.zoom.value = ZOOMS[min(max(0, ZOOMS.index(self.zoom.value) + (-1 if out else 1)), len(ZOOMS) - 1)]
            case {"kind": "step", "by": by}:
                self._go(self.at + by)
            case {"kind": "toggle", "id": class_id, "alone": alone}:
                self.shown = {class_id} if alone else self.shown ^ {class_id}
                self._draw()
            case {"kind": "toggle all", "on": on}:
                self.shown = {*range(len(self.source.class_names)), overlay.IGNORE_INDEX} if on else set()
                self._draw()


def _column(number: int, description: str) -> dict:
    """Words and widths of a control, so that controls stand in columns."""
    width, description_width = WIDTHS[number]
    return {
        "description": description, "layout": {"width": width, "margin": "2px 0"},
        "style": {"description_width": description_width}}  # fmt: skip


class MaskViewer:
    """Browse a data set's masks and predictions in one line of a notebook: `MaskViewer(val, preds)`.

    In an executed notebook without a kernel, and where nobody watches (papermill), it shows a contact sheet instead.

    Parameters
    ----------
    dataset
        Anything with `len()`, `image_ids`, `read(position)` -> image (H, W, 3) uint8 RGB and mask (H, W) uint8, and
        `class_names` of its own or of its `.data`: a `seglib.data.dataset.Subset`.
    predictions
        (N, H, W) uint8 class ids in the data set's order (np.memmap is read lazily), or several such by run name.
        Images and true masks are shown at the predictions' size.
    class_names
        Instead of the data set's.
    truth
        False where the data set's masks mean nothing (a test set): then the first run is what others are compared with.
    sort
        The first order, one of `image_table.list_sorts`'s: "worst mIoU" begins with the mistakes.

    Raises
    ------
    InputError
        Predictions that do not fit the data set, no class names, an order that needs what is not given.
    """

    def __init__(
        self, dataset, predictions=None, *, class_names: Sequence[str] | None = None, truth: bool = True,
        sort: str = "position",
    ):  # fmt: skip
        self.source = MaskSource(dataset, predictions, class_names, truth)
        if len(self.source) == 0:
            raise InputError("MaskViewer: required at least one image, got an empty data set")
        sorts = list_sorts(self.source)
        require_known("sort", sort, sorts.values(), "MaskViewer")
        self.sort = sort

    def __repr__(self) -> str:
        return f"MaskViewer of {len(self.source)} images: {', '.join([*self.source.runs]) or 'no predictions'}"

    @cached_property
    def panel(self) -> ViewerPanel:
        """The live controls and picture; made when first asked for."""
        return ViewerPanel(self.source, self.sort)

    @property
    def widget(self) -> w.Widget:
        """What can be laid out beside other widgets."""
        return self.panel.box

    def contact_sheet(self, count: int = SHEET_IMAGES) -> str:
        """HTML of some images: the first ones of the order, or evenly spread where the order is the data set's."""
        total = len(self.source)
        if self.sort == "position":
            positions = np.linspace(0, total - 1, min(count, total)).round().astype(int)
            what = "evenly spread"
        else:
            positions = select_images(self.source.get_table(), total, Choice(self.sort))[:count]
            label = next(label for label, sort in list_sorts(self.source).items() if sort == self.sort)
            run = f" ({self.source.compared[0]})" if len(self.source.compared) > 1 and "mIoU" in self.sort else ""
            what = f"by {label}{run}"
        caption = f"{len(positions)} of {total} images, {what}. Run this cell to browse them all."
        return overlay.contact_sheet_html(self.source, positions, caption)

    def _ipython_display_(self) -> None:
        if self.sort != "position":
            # before the controls appear, which have a bar for later
            self.source.get_table(show_progress("masks looked through"))
        if _someone_watches():
            # Without its words: pages that know no widgets would print them above the sheet.
            display(self.widget._repr_mimebundle_() | {"text/plain": ""}, raw=True)
        display(HTML(self.contact_sheet()))


def _someone_watches() -> bool:
    """Whether the cell was run from a page with a person: papermill and nbconvert refuse to answer input()."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)
