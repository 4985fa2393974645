"""The viewer in a real JupyterLab and a real browser: a hand moves the controls, the picture on the page changes."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (on Debian: apt-get install chromium)"
)

TOKEN = "only-for-this-test"
PATIENCE = 60_000  # [ms] for any one step: a kernel's start and imports on a busy machine
QUIET = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip
BLUE, IMAGE = (0, 114, 178), (40, 90, 160)  # class 1's colour, the image's

# Three images of one colour; the left half is Paper, and the prediction takes the upper half of that for 종이.
SETUP = """
import numpy as np
from seglib.viz.viewer import MaskViewer

class Data:
    image_ids, class_names = [7, 8, 9], ["Background", "Paper", "종이 <b>"]
    def __len__(self): return 3
    def read(self, position):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, :32] = 1
        return np.full((64, 64, 3), (40, 90, 160), np.uint8), mask

preds = np.stack([Data().read(i)[1] for i in range(3)])
preds[:, :32, :32] = 2
"""


@contextmanager
def start_lab(folder):
    """Run JupyterLab on a free port, with settings of its own, and stop it with its kernels; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    homes = {name: str(folder / "jupyter") for name in
             ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR")}  # fmt: skip
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    log = folder / "lab.log"
    with open(log, "w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **homes, "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")})  # fmt: skip
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(server)


def wait_for_answer(url, server, log):
    until = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def stop(server):
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
            server.wait(15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, "MaskViewer(Data(), preds)")]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "look.ipynb")
    with start_lab(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(lab, browser):
    """The notebook, opened and run."""
    page = open_notebook(lab, browser)
    page.get_by_text("Run", exact=True).first.click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_selector(".seglib-live")
    return page


def open_notebook(lab, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{lab}/lab/tree/look.ipynb?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_selector("text=| Idle")  # in the status bar: the kernel is ready
    return page


def read_pixel(page, pane, x, y):
    """Colour on the screen at a pixel of the image."""
    shot = np.array(Image.open(io.BytesIO(page.locator(".seglib-frame").nth(pane).screenshot())).convert("RGB"))
    return shot[int((y + 0.5) / 64 * shot.shape[0]), int((x + 0.5) / 64 * shot.shape[1])].tolist()


def wait_for_colour(page, expected, pane=0, x=5, y=40):
    """Wait until the screen has this colour at a pixel of the image, off by two at most."""
    seen, until = None, time.monotonic() + PATIENCE / 1000
    while time.monotonic() < until:
        seen = read_pixel(page, pane, x, y)
        if all(abs(a - b) <= 2 for a, b in zip(seen, expected, strict=True)):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"required the colour {expected} in pane {pane} at {x}, {y}, got {seen}")


def blend(opacity):
    return [round((1 - opacity) * image + opacity * colour) for image, colour in zip(IMAGE, BLUE, strict=True)]


def drag_opacity(page, by):
    handle = page.locator(".noUi-handle").first.bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=5)
    page.mouse.up()


def click_pixel(page, x, y):
    box = page.locator(".seglib-frame").first.bounding_box()
    page.mouse.click(box["x"] + (x + 0.5) / 64 * box["width"], box["y"] + (y + 0.5) / 64 * box["height"])


def test_the_opacity_slider_changes_the_picture(page):
    wait_for_colour(page, blend(0.6))
    drag_opacity(page, 400)
    wait_for_colour(page, BLUE)
    drag_opacity(page, -400)
    wait_for_colour(page, IMAGE)
    drag_opacity(page, 400)
    wait_for_colour(page, BLUE)


def test_a_click_on_the_legend_takes_a_class_away_and_brings_it_back(page):
    drag_opacity(page, 400)
    button = page.locator(".seglib-class", has_text="Paper")
    button.click()
    wait_for_colour(page, IMAGE)
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    wait_for_colour(page, BLUE)


def test_a_click_on_a_pixel_tells_its_classes(page):
    click_pixel(page, 10, 20)
    readout = page.locator(".seglib-readout")
    expect(readout).to_contain_text("x 10, y 20", timeout=PATIENCE)
    expect(readout.locator(".seglib-row")).to_have_text(["truthPaper", "prediction종이 <b>"], timeout=PATIENCE)
    expect(page.locator(".seglib-pin").first).to_be_visible()
    page.mouse.move(1, 1)  # away from the picture the clicked pixel stays
    expect(readout).to_contain_text("x 10, y 20")


def test_arrow_keys_browse_while_the_picture_has_the_focus(page):
    expect(page.locator(".seglib-id")).to_have_text("image 7")
    page.locator(".seglib-panes").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".seglib-id")).to_have_text("image 8", timeout=PATIENCE)
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".seglib-id")).to_have_text("image 7", timeout=PATIENCE)


def test_menus_and_double_click_show_errors_and_zoom(page):
    menu = page.locator(".widget-dropdown")
    menu.filter(has_text="Right").locator("select").select_option(label="error")
    drag_opacity(page, 400)
    wait_for_colour(page, (204, 30, 30), pane=1, y=10)
    box = page.locator(".seglib-frame").first.bounding_box()
    page.mouse.dblclick(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.wait_for_function("document.querySelector('.seglib-frame img').naturalWidth === 32")
    menu.filter(has_text="Zoom").locator("select").select_option(label="1×")
    page.wait_for_function("document.querySelector('.seglib-frame img').naturalWidth === 64")


def test_the_live_viewer_hides_the_sheet_and_without_its_kernel_only_the_sheet_is_seen(page, lab, browser):
    expect(page.locator(".seglib-sheet")).to_be_hidden()
    save(page)
    page.close()
    assert "seglib-sheet" in json.dumps(call(lab, "contents/look.ipynb"))
    for session in call(lab, "sessions"):
        call(lab, f"sessions/{session['id']}", "DELETE")
    reopened = open_notebook(lab, browser)
    expect(reopened.locator(".seglib-sheet")).to_be_visible(timeout=PATIENCE)
    expect(reopened.locator(".seglib-sheet img")).to_have_count(3 * 4)
    expect(reopened.get_by_text("Error displaying widget")).to_be_hidden()


def save(page):
    """Save by the menu, and wait for the server's answer: to read the file meanwhile would disturb its writing."""
    page.get_by_text("File", exact=True).first.click()
    with page.expect_response(
        lambda answer: answer.request.method == "PUT" and "/api/contents/look.ipynb" in answer.url
    ) as saved:
        page.get_by_text("Save Notebook", exact=True).click()
    assert saved.value.ok, saved.value.status_text


def call(lab, path, method="GET"):
    """Ask the server's API; returns what it answers."""
    request = urllib.request.Request(f"{lab}/api/{path}", headers={"Authorization": f"token {TOKEN}"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or "null")
