"""MaskViewer: images with true and predicted masks in a notebook, to be browsed, sorted, filtered and zoomed."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property

import ipywidgets
import numpy as np
from IPython import get_ipython
from IPython.display import HTML, display

from seglib.errors import InputError, unknown_name
from seglib.viz.contact_sheet import contact_sheet_html
from seglib.viz.image_table import Choice, ImageTable, build_image_table, list_sorts, select_images
from seglib.viz.mask_source import MaskSource
from seglib.viz.viewer_panel import ViewerPanel

SHEET_IMAGES = 6


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
        if sort not in sorts.values():
            raise InputError(f"MaskViewer: {unknown_name('sort', sort, sorts.values())}")
        self.sort = sort
        self._table: ImageTable | None = None

    def __repr__(self) -> str:
        return f"MaskViewer of {len(self.source)} images: {', '.join([*self.source.runs]) or 'no predictions'}"

    @cached_property
    def panel(self) -> ViewerPanel:
        """The live controls and picture; made when first asked for."""
        return ViewerPanel(self.source, self.sort, self._get_table)

    @property
    def widget(self) -> ipywidgets.Widget:
        """What can be laid out beside other widgets."""
        return self.panel.box

    def contact_sheet(self, count: int = SHEET_IMAGES) -> str:
        """HTML of some images: the first ones of the order, or evenly spread where the order is the data set's."""
        total = len(self.source)
        if self.sort == "position":
            positions = np.linspace(0, total - 1, min(count, total)).round().astype(int)
            what = "evenly spread"
        else:
            positions = select_images(self._get_table(), total, Choice(self.sort))[:count]
            label = next(label for label, sort in list_sorts(self.source).items() if sort == self.sort)
            run = f" ({self.source.compared[0]})" if len(self.source.compared) > 1 and "mIoU" in self.sort else ""
            what = f"by {label}{run}"
        caption = f"{len(positions)} of {total} images, {what}. Run this cell to browse them all."
        return contact_sheet_html(self.source, positions, caption)

    def _ipython_display_(self) -> None:
        if self.sort != "position":
            self._get_table(_show_progress_line())  # before the controls appear, which have a bar for later
        if _someone_watches():
            # Without its words: pages that know no widgets would print them above the sheet.
            display(self.widget._repr_mimebundle_() | {"text/plain": ""}, raw=True)
        display(HTML(self.contact_sheet()))

    def _get_table(self, progress: Callable[[int, int], None] | None = None) -> ImageTable:
        if self._table is None:
            self._table = build_image_table(self.source, progress)
        return self._table


def _show_progress_line() -> Callable[[int, int], None]:
    """A function to call with (done, count): a line in the cell's output, for what takes longer than a second."""
    told, line = time.monotonic(), None

    def tell(done: int, count: int) -> None:
        nonlocal told, line
        if time.monotonic() - told < 1 and (line is None or done < count):
            return
        told = time.monotonic()
        text = {"text/plain": f"looked through the masks of {done} of {count} images"}
        if line is None:
            line = display(text, raw=True, display_id=True)
        else:
            line.update(text, raw=True)

    return tell


def _someone_watches() -> bool:
    """Whether the cell was run from a page with a person: papermill and nbconvert refuse to answer input()."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)
