"""One hostile data set through all notebooks, the index, pictures and the viewer: in a real browser nothing fires."""

import csv
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from seglib.files import PROJECT

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (on Debian: apt-get install chromium)"),
]  # fmt: skip
FIRES = "window.owned=1"
NAMES = [
    f"<script>{FIRES}</script>", f"<img src=x onerror={FIRES}>", f"</style></script><svg onload={FIRES}>", f'"onmouseover="{FIRES}', f"]]><a href=javascript:{FIRES}>x</a>",
    f"[x](javascript:{FIRES}) | a | b | {{{{7*7}}}} %s ${{x}}", "=cmd|' /C calc'!A0", "\x1b[31m\u202eredro\u2066 \u200b종이 $x_1$ \\frac{1}", f"{'x' * 190} ../ `{FIRES}`",
]  # fmt: skip
FILE = "<img src=x onerror=window.owned=2> $x_1$ %s {{7*7}} \u202e \x1b[31m"
TINY = {
    "image_size": 64, "epochs": 1, "batch_size": 4, "encoder_weights": "", "architecture": "Linknet", "encoder": "tu-test_resnet", "num_workers": 0, "precision": "float32",
}  # fmt: skip
STEPS = {
    "03_error_analysis": {"each": True, "fixed": {"compare_with": ""}}, "04_ensemble": {}, "05_compare": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, small_data):
    """The folder of all results, and what was printed."""
    root = tmp_path_factory.mktemp("hostile")
    data = root / "<b onclick=window.owned=3> $y_2$ %s"
    data.mkdir()
    for split in ("train", "val"):
        content = json.loads((small_data / f"{split}.json").read_text())
        for place, image in enumerate(content["images"]):
            ending = Path(image["file_name"]).suffix
            name = f"{FILE}{place}{split}{ending}" if place < 4 else f"{split}{place}{ending}"
            (data / name).write_bytes((small_data / image["file_name"]).read_bytes())
            image |= {"file_name": name, "group": NAMES[place % len(NAMES)]}
        for category, name in zip(content["categories"], NAMES, strict=False):
            category |= {"name": name, "supercategory": name}
        for copy in ("", f"<script>{FIRES.replace('=', '')}<⁄script>", "$z_3$=cmd"):
            (data / f"{split}{copy}.json").write_text(json.dumps(content))
    trains = sorted(path.name for path in data.glob("train*.json"))[:2]
    common = {"data_dir": str(data), "val_json": "val.json"}
    notebook = PROJECT / "notebooks"
    write = lambda name, **spec: (root / f"{name}.yaml").write_text(json.dumps(spec))  # noqa: E731
    then = [{"notebook": f"{notebook}/{name}.ipynb", **step} for name, step in STEPS.items()]
    write(
        "train",
        notebook=f"{notebook}/02_train.ipynb",
        fixed=common | TINY,
        grid={"train_json": trains, "seed": [1]},
        then=then,
    )
    write(
        "eda", notebook=f"{notebook}/01_eda.ipynb", fixed=common | {"image_size": 64}, grid={"train_json": trains[:1]}
    )
    printed = b""
    for name in ("eda", "train"):
        command = [sys.executable, PROJECT / "run_grid.py", root / f"{name}.yaml", "--outputs", root / "outputs"]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONUTF8": "1"}, timeout=1500)
        printed += done.stdout + done.stderr
        assert not done.returncode, done.stdout.decode()[-3000:] + done.stderr.decode()[-3000:]
    return root / "outputs", printed


def listen(page):
    """What a page asks for outside, which it does not get, and what it says: dialogs, lines of the console."""
    asked, said = [], []
    page.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
    page.on("console", lambda message: said.append(message.text))
    page.route("http*://**", lambda route: (asked.append(route.request.url), route.abort()))
    return asked, said


def test_nothing_fires_in_any_page(browser, outputs):
    pages = sorted(outputs[0].rglob("*.html"))
    assert {page.stem for page in pages} >= {"index", "01_eda", "02_train", *STEPS}, pages
    for path in pages:
        page = browser.new_page()
        asked, said = listen(page)
        page.goto(path.as_uri(), wait_until="load")
        for link in page.locator("a[href^='javascript'], [onmouseover], [onclick], [onerror]").all()[:20]:
            link.dispatch_event("click")
            link.dispatch_event("mouseover")
        page.wait_for_timeout(300)
        assert page.evaluate("window.owned") is None, path
        assert "a dialog" not in said, path
        outside = [url for url in asked if "cdnjs.cloudflare.com" not in url]
        assert not outside, (path, outside)
        assert page.evaluate("document.body.innerText.length") > 200, path  # our own content is shown
        if path.name == "index.html":
            assert not said and page.locator("#shown").text_content(), said
        page.close()


def test_no_formula_in_any_table(outputs):
    tables = sorted(outputs[0].rglob("*.csv"))
    assert len(tables) > 8
    for path in tables:
        with open(path, encoding="utf-8", newline="") as file:
            cells = {cell for row in csv.reader(file) for cell in row}
        formulas = [
            cell
            for cell in cells
            if cell[:1] in "=+-@\t\r" and cell and not re.fullmatch(r"[-+]?[\d.e+-]+|-|-?(inf|nan)", cell)
        ]
        assert not formulas, (path, formulas)


def test_no_escape_reaches_a_terminal(outputs):
    text = outputs[1].decode()
    obeyed = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\r\t\u200b"}
    assert not obeyed and "Traceback" not in text and "ParseException" not in text


def test_no_figure_or_log_has_an_error(outputs):
    """Every cell of every notebook ran; no text was taken for a formula."""
    for path in outputs[0].rglob("*.ipynb"):
        content = path.read_text()
        assert (
            "mathtext" not in content and "ParseException" not in content and '"output_type": "error"' not in content
        ), path
    assert len([*outputs[0].rglob("*.png")]) > 10
    for path in outputs[0].rglob("run.log"):
        assert "mathtext" not in path.read_text(errors="replace")
