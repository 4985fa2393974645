"""What data brings into the pages that we write does not run: looked at in a real browser."""

import json
from pathlib import Path

import nbformat
import pytest

from seglib.runs.conditions import summarise_conditions
from seglib.runs.execute import render_html
from seglib.runs.leaderboard import collect_runs
from seglib.runs.page import write_index

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (on Debian: apt-get install chromium)"
)
HOSTILE = (
    "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'><svg onload='window.owned = 3'></svg>"
    "<iframe srcdoc='<script>parent.owned = 4</script>'></iframe><a id=link href='javascript:window.owned = 5'>link</a>"
)


def open_page(browser, path):
    page = browser.new_page()
    page.route("http*://**", lambda route: route.abort())
    page.goto(path.as_uri(), wait_until="load")
    for link in page.locator("#link").all():
        link.click()
    page.wait_for_timeout(200)
    return page


def test_the_browser_would_run_it(browser, tmp_path):
    (tmp_path / "bare.html").write_text(f"<html><head></head><body>{HOSTILE}</body></html>")
    assert open_page(browser, tmp_path / "bare.html").evaluate("window.owned") is not None


def test_outputs_and_texts_of_a_notebook_run_nothing(browser, tmp_path):
    output = nbformat.v4.new_output("display_data", {"text/html": HOSTILE, "text/plain": "x"})
    cells = [nbformat.v4.new_markdown_cell(HOSTILE), nbformat.v4.new_code_cell("x", outputs=[output])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    render_html(tmp_path / "n.ipynb")
    page = open_page(browser, tmp_path / "n.html")
    assert page.evaluate("window.owned") is None and page.locator("#link").count() == 2


def test_names_in_the_index_run_nothing_and_its_own_script_does(browser, tmp_path):
    run, params = tmp_path / "a", {"loss": HOSTILE, "seed": 1}
    run.mkdir()
    record = {"status": "ok", "params": params, "metrics": {"miou": 0.5, "iou": {HOSTILE: 0.5}}, "error": HOSTILE}
    (run / "record.json").write_text(json.dumps(record))
    rows = collect_runs(tmp_path, ["a"], ["loss", "seed"])
    path = write_index(tmp_path, rows, summarise_conditions(rows, ["loss", "seed"], {}), ["loss"], HOSTILE, "02_train")
    path.write_text(path.read_text().replace("</body>", f"{HOSTILE}</body>"))  # as if one place were not escaped
    page = open_page(browser, path)
    assert page.evaluate("window.owned") is None and page.locator("#link").count() == 1
    assert page.locator("#shown").text_content() == "1 of 1 runs"
