"""Hostile names in what is drawn without a training: the viewer's picture and sheet in a real browser, and figures."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from seglib.viz.charts import plot_confusion
from seglib.viz.pictures import plot_batch
from seglib.viz.plots import plot_class_iou, save_figure, use_font_for
from seglib.viz.viewer import FOLDER, MaskViewer

CHROMIUM = Path("/usr/bin/chromium")
needs_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
FIRES = "window.owned=1"
NAMES = [
    "Background", f"<script>{FIRES}</script>", f"<img src=x onerror={FIRES}>", f"</style></script><svg onload={FIRES}>", f'"onmouseover="{FIRES}', f"]]><a href=javascript:{FIRES}>x</a>",
    f"[x](javascript:{FIRES}) | a | b {{{{7*7}}}} %s ${{x}}", "=cmd|' /C calc'!A0", "\x1b[31m\u202eredro\u2066 \u200b종이 $x_1$ \\frac{1}", f"{'x' * 190} ../ `{FIRES}`",
]  # fmt: skip
MODEL = """
const [values, source] = arguments_;
const model = {get: (name) => values[name], on() {}, off() {}, set() {}, save_changes() {}, send() {}};
const url = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
const stage = (await import(url)).default;
stage.render({model, el: document.body});
"""


class Data:
    """Two images whose masks have every class."""

    image_ids, class_names = ["<b onclick=window.owned=1>7", "$x_1$"], NAMES

    def __len__(self):
        return 2

    def read(self, position):
        rows = np.repeat(np.arange(len(NAMES), dtype=np.uint8), 7)[:64]
        mask = np.broadcast_to(np.pad(rows, (0, 64 - len(rows)))[:, None], (64, 64)).copy()
        return np.full((64, 64, 3), 40 * position + 60, np.uint8), mask


@pytest.fixture(scope="module")
def viewer():
    preds = np.stack([Data().read(place)[1][::-1] for place in range(2)])
    return MaskViewer(Data(), dict.fromkeys(NAMES[1:4], preds))


def open_page(browser, html, script=None, *values):
    page, said = browser.new_page(), []
    page.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
    page.route("http*://**", lambda route: (said.append(route.request.url), route.abort()))
    page.set_content(html)
    if script:
        page.evaluate(f"async (arguments_) => {{{script}}}", list(values))
    for node in page.locator("[onmouseover], [onclick], a").all():
        node.dispatch_event("mouseover")
        node.dispatch_event("click")
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned") is None and not said, said
    return page


@needs_browser
def test_the_contact_sheet_shows_names_and_runs_nothing(browser, viewer):
    text = open_page(browser, viewer.contact_sheet()).inner_text("body")
    shown = [name for name in NAMES[1:] if " ".join(name.split()) in " ".join(text.split())]
    assert len(shown) >= len(NAMES) - 2, shown


@needs_browser
def test_the_viewers_picture_shows_names_and_runs_nothing(browser, viewer):
    stage = viewer.widget.children[-1]
    values = {name: stage.trait_values()[name] for name in stage.trait_names(sync=True) if name[0] != "_"}
    plain = json.loads(json.dumps(values, default=lambda each: []))
    page = open_page(browser, "<body></body>", MODEL, plain, (FOLDER / "stage.js").read_text())
    assert all(name.split()[0] in page.inner_text("body") for name in NAMES[1:3])


def test_figures_are_drawn_as_they_are_written(tmp_path):
    """No text is taken for a formula, and no letter ends a drawing."""
    use_font_for(NAMES)
    images = np.stack([Data().read(place)[0] for place in range(2)])
    masks = np.stack([Data().read(place)[1] for place in range(2)])
    counts = np.eye(len(NAMES)) * 9 + 1
    shares = counts / counts.sum()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mathtext.*")
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        save_figure(plot_batch(images, masks, NAMES), tmp_path, "batch")
        save_figure(plot_class_iou(dict.fromkeys(NAMES, 0.5), 0.5), tmp_path, "iou")
        save_figure(plot_confusion(shares, shares, shares, NAMES), tmp_path, "confusion")
    assert len([*tmp_path.rglob("*.png")]) == 3
