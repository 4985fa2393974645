"""The viewer without a browser: what it sends to the page when a control moves, and what it shows without a kernel."""

import io
import re

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from PIL import Image

from seglib.errors import InputError
from seglib.viz.overlay import blend, make_grey
from seglib.viz.pictures import WRONG
from seglib.viz.plots import class_colours
from seglib.viz.viewer import MaskViewer

SIZE = 32
NAMES = ["Background", "Paper", "Metal <b>", "종이"]


class Data:
    """Six noisy images; image i has a square of class 1 + i % 3 that is 4 + 2 * i px wide."""

    def __init__(self, count=6, size=SIZE):
        rng = np.random.default_rng(0)
        self.image_ids, self.class_names = [10 * (index + 1) for index in range(count)], NAMES
        self.images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        self.masks = np.zeros((count, size, size), np.uint8)
        for index, mask in enumerate(self.masks):
            mask[2 : 6 + 2 * index, 2 : 6 + 2 * index] = 1 + index % 3
        self.reads = 0

    def __len__(self):
        return len(self.image_ids)

    def read(self, position):
        self.reads += 1
        return self.images[position], self.masks[position]


@pytest.fixture
def data():
    return Data()


@pytest.fixture
def preds(data):
    """Right in all images but 2 (Glass for 종이, all of it) and 4 (Metal missed on one column)."""
    preds = data.masks.copy()
    preds[2][preds[2] == 3] = 1
    preds[4][:, 2] = 0
    return preds


def decode(png):
    return np.array(Image.open(io.BytesIO(png)))


def see(panel, pane=0):
    """What the browser makes of the pane's pictures, with the overlay at full opacity."""
    sent = panel.stage.panes[pane]
    image = decode(panel.stage.image)
    return blend(make_grey(image) if sent["grey"] else image, decode(sent["overlay"]), 1)


def send(panel, **message):
    panel._answer(panel.stage, message, [])


def title(panel):
    return panel.stage.title[0]


def test_it_opens_with_truth_beside_prediction(data, preds):
    panel = MaskViewer(data, preds).panel
    captions = [pane["caption"][0][0] for pane in panel.stage.panes]
    assert captions == ["truth", "prediction"] and title(panel) == "image 10"
    paper = data.masks[0] == 1
    assert (see(panel)[paper] == class_colours(4)[1]).all()
    assert (see(panel)[~paper] == data.images[0][~paper]).all()
    assert panel.stage.opacity == panel.opacity.value == 60


def test_a_class_is_toggled_in_the_legend(data):
    panel = MaskViewer(data).panel
    send(panel, kind="toggle", id=1, alone=False)
    assert (see(panel) == data.images[0]).all()
    assert [entry["on"] for entry in panel.stage.legend] == [False, False, True, True]
    send(panel, kind="toggle", id=0, alone=True)
    assert [entry["on"] for entry in panel.stage.legend] == [True, False, False, False]
    send(panel, kind="toggle all", on=True)
    assert all(entry["on"] for entry in panel.stage.legend)


def test_the_legend_tells_shares_presence_and_ignored_pixels(data, preds):
    data.masks[2][0] = 255
    panel = MaskViewer(data, preds).panel
    send(panel, kind="step", by=2)
    entries = {entry["name"]: entry for entry in panel.stage.legend}
    assert list(entries) == [*NAMES, "(ignored)"]
    assert entries["종이"]["share"] == f"{100 * 64 / SIZE**2:.0f} %" and entries["(ignored)"]["share"] == "3 %"
    assert entries["Paper"]["present"] and entries["Paper"]["share"] == ""  # predicted only
    assert not entries["Metal <b>"]["present"]


def test_error_layer_is_red_where_the_prediction_is_wrong(data, preds):
    panel = MaskViewer(data, preds).panel
    panel.right.value, panel.number.value = "error", 3
    picture = see(panel, 1)
    assert not panel.stage.panes[0]["grey"] and ((picture == WRONG).all(axis=-1) == (preds[2] != data.masks[2])).all()


def test_a_pixel_is_read_under_the_pointer_and_pinned_by_a_click(data, preds):
    panel = MaskViewer(data, preds).panel
    panel.number.value = 3
    send(panel, kind="hover", x=4, y=5)
    assert panel.stage.readout["place"] == "x 4, y 5"
    assert [row[:2] for row in panel.stage.readout["rows"]] == [["truth", "종이"], ["prediction", "Paper"]]
    send(panel, kind="leave")
    assert panel.stage.readout["rows"][0][1] == ""
    send(panel, kind="click", x=31, y=31)
    send(panel, kind="hover", x=4, y=5)
    send(panel, kind="leave")
    assert panel.stage.pin == [31, 31] and panel.stage.readout["rows"][1][1] == "Background"


def test_an_id_that_is_no_class_is_said(data):
    preds = np.full((6, SIZE, SIZE), 77, np.uint8)
    data.masks[0][:] = 255
    panel = MaskViewer(data, preds).panel
    send(panel, kind="hover", x=0, y=0)
    assert [row[1] for row in panel.stage.readout["rows"]] == ["(ignored)", "(id 77 is no class)"]


def test_buttons_number_and_id_open_images_and_stop_at_the_ends(data):
    panel = MaskViewer(data).panel
    panel.previous.click()
    assert title(panel) == "image 10"
    panel.next.click()
    assert title(panel) == "image 20" and panel.number.value == 2
    panel.jump.value = "50"
    assert title(panel) == "image 50" and panel.number.value == 5 and panel.jump.value == ""
    panel.number.value = 6
    panel.next.click()
    assert title(panel) == "image 60"
    panel.jump.value = "7"
    assert panel.status.value == "no image has the id 7" and title(panel) == "image 60"


def test_sorting_and_filtering_choose_the_images(data, preds):
    panel = MaskViewer(data, preds).panel
    panel.sort.value = "worst mIoU"
    assert [data.image_ids[i] for i in panel.order[:2]] == [30, 50] and title(panel) == "image 30"
    panel.true_class.value = 2
    assert sorted(data.image_ids[i] for i in panel.order) == [20, 50] and panel.of.value == "of 2"
    panel.predicted.value = 0
    assert title(panel) == "image 50" and panel.of.value == "of 1"
    panel.jump.value = "20"
    assert panel.status.value == "image 20 is filtered out"
    panel.under.value = 3
    assert panel.status.value == "no image fits these filters" and panel.stage.panes == [] and panel.of.value == "of 0"
    panel.next.click()
    panel.under.value = 0
    assert title(panel) == "image 50" and panel.status.value == ""


def test_masks_are_looked_through_only_when_sorting_needs_it_and_once(data):
    panel = MaskViewer(data).panel
    assert data.reads == 1
    panel.sort.value = "smallest object"
    panel.true_class.value = 1
    assert data.reads == 1 + len(data) + 2


def test_zoom_shows_a_part_around_the_clicked_pixel_and_a_drag_moves_it(data):
    panel = MaskViewer(data).panel
    send(panel, kind="click", x=8, y=24)
    panel.zoom.value = 4
    assert panel.stage.window == [4, 20, 8, 8] and see(panel).shape == (8, 8, 3)
    assert (decode(panel.stage.image) == data.images[0][20:28, 4:12]).all()
    send(panel, kind="drag", dx=3.0, dy=-100.0)
    assert panel.stage.window == [7, 0, 8, 8]
    send(panel, kind="drag", dx=0.0, dy=2.0)
    assert panel.stage.window == [7, 2, 8, 8]  # what was dragged past the edge is not owed
    send(panel, kind="click", x=8, y=3)
    send(panel, kind="toggle", id=1, alone=False)
    assert panel.stage.window == [7, 2, 8, 8]  # a click reads, it does not move the picture
    send(panel, kind="zoom", x=11, y=6, out=True)
    assert panel.zoom.value == 2 and panel.stage.window == [4, 0, 16, 16]


def test_two_runs_are_compared(data, preds):
    panel = MaskViewer(data, {"a": preds, "b": data.masks.copy()}).panel
    assert "a against b" in panel.layers and "error of a" in panel.layers
    assert panel.stage.title[2:] == ["a: mIoU 1.000", "b: mIoU 1.000"]
    panel.sort.value = "second run ahead"
    assert title(panel) == "image 30" and panel.run.layout.visibility == "visible"
    panel.right.value = "a against b"
    assert [part[0] for part in panel.stage.panes[1]["caption"]] == ["a against b", "a right", "b right", "both wrong"]


def test_without_truth_one_submission_is_compared_with_another(data, preds):
    panel = MaskViewer(data, {"a": preds, "b": data.masks.copy()}, truth=False).panel
    assert list(panel.layers) == ["image", "a", "b", "a against b"]
    panel.sort.value = "worst mIoU"
    assert title(panel) == "image 30" and panel.stage.title[2].endswith("against a")


def test_images_alone_can_be_browsed_without_truth_and_predictions(data):
    panel = MaskViewer(data, truth=False).panel
    assert (see(panel) == data.images[0]).all() and len(panel.stage.panes) == 1
    assert "point at" in panel.stage.readout["place"]
    send(panel, kind="hover", x=0, y=0)
    assert panel.stage.readout["rows"] == []


def test_images_and_truth_take_the_predictions_size(data, preds):
    sample = MaskViewer(data, preds[:, ::2, ::2]).source.read(5)
    assert sample.image.shape == (16, 16, 3) and {mask.shape for mask in sample.masks.values()} == {(16, 16)}
    assert set(np.unique(sample.masks["truth"])) == {0, 3}


def test_memory_mapped_predictions_are_not_read_at_once(data, preds, tmp_path):
    np.save(tmp_path / "preds.npy", preds)
    source = MaskViewer(data, np.load(tmp_path / "preds.npy", mmap_mode="r")).source
    assert isinstance(source.runs["prediction"], np.memmap)
    assert (source.read(2).masks["prediction"] == preds[2]).all()


def test_an_unreadable_image_is_said_and_the_next_one_opens(data):
    read = data.read

    def fail(position):
        if position == 1:
            raise InputError("0002.jpg: not an image")
        return read(position)

    data.read = fail
    panel = MaskViewer(data).panel
    panel.next.click()
    assert panel.status.value == "image 20 cannot be read: 0002.jpg: not an image" and panel.stage.panes == []
    panel.next.click()
    assert title(panel) == "image 30" and panel.status.value == ""
    panel.sort.value = "smallest object"
    assert panel.status.value == "cannot sort or filter: 0002.jpg: not an image" and title(panel) == "image 30"
    assert panel.progress.layout.display == "none"


def test_what_does_not_fit_is_refused_in_words(data, preds):
    with pytest.raises(InputError, match=r"must be \(6, H, W\) uint8, one mask an image, got \(5, 32, 32\) uint8"):
        MaskViewer(data, preds[:5])
    with pytest.raises(InputError, match=r"predictions of 'a' must be .* got \(6, 32, 32\) int64"):
        MaskViewer(data, {"a": preds.astype(np.int64)})
    with pytest.raises(InputError, match="all predictions must have one size, got a 32x32, b 16x16"):
        MaskViewer(data, {"a": preds, "b": preds[:, ::2, ::2]})
    with pytest.raises(InputError, match="a run must not be called 'truth'"):
        MaskViewer(data, {"truth": preds})
    with pytest.raises(InputError, match="unknown sort 'worst miou'; did you mean 'worst mIoU'"):
        MaskViewer(data, preds, sort="worst miou")
    with pytest.raises(InputError, match="unknown sort 'worst mIoU'"):
        MaskViewer(data, sort="worst mIoU")
    with pytest.raises(InputError, match="at least one image"):
        MaskViewer(Data(0))
    del data.class_names
    with pytest.raises(InputError, match=r"required 1 to 255 class names, got none; pass class_names"):
        MaskViewer(data)


def test_the_contact_sheet_shows_the_first_of_the_order_and_escapes_names(data, preds):
    html = MaskViewer(data, {"<i>run": preds}, sort="worst mIoU").contact_sheet(2)
    assert re.findall(r"image (\d+)<br>", html) == ["30", "50"]
    assert html.count("<img ") == 2 * 4 and "2 of 6 images" in html
    assert "Metal &lt;b&gt;" in html and "&lt;i&gt;run" in html and "<b>" not in html and "<i>" not in html
    spread = MaskViewer(data).contact_sheet(3)
    assert re.findall(r"image (\d+)<br>", spread) == ["10", "30", "60"]  # 2.5 rounds to even


def test_an_executed_notebook_holds_the_sheet_and_no_widget(tmp_path):
    source = (
        "import numpy as np\nfrom seglib.viz.viewer import MaskViewer\n"
        "class Data:\n"
        "    image_ids, class_names = [1, 2], ['Background', 'Paper']\n"
        "    def __len__(self): return 2\n"
        "    def read(self, position): return np.zeros((64, 64, 3), np.uint8), np.eye(64, dtype=np.uint8)\n"
        "MaskViewer(Data())"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute(cwd=tmp_path)
    outputs = notebook.cells[0].outputs
    assert [list(output["data"]) for output in outputs] == [["text/plain", "text/html"]]
    assert "widgets" not in notebook.metadata
    assert "2 of 2 images, evenly spread" in HTMLExporter().from_notebook_node(notebook)[0]
