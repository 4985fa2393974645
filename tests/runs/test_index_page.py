import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import pytest

from seglib.runs import page as page_module
from seglib.runs.conditions import summarise_conditions
from seglib.runs.leaderboard import collect_runs
from seglib.runs.page import write_index
from seglib.runs.record import read_history

EVIL = '<script>alert("x")</script>'
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (on Debian: apt-get install chromium)"
)
VOID = {"meta", "input", "img", "wbr", "link", "br"}


class Page(HTMLParser):
    """Of a page as its script has drawn it: elements as (tag, attributes, text inside without its line breaks), and tags that were not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data.replace("\n", "")

    def all(self, tag, **attributes):
        return [e for e in self.elements if e[0] == tag and attributes.items() <= e[1].items()]

    def rows(self):
        """Cells of the runs' table, one list per run."""
        index = next(i for i, e in enumerate(self.elements) if e[1].get("id") == "runs")
        rows = []
        for tag, attributes, text in self.elements[index:]:
            if tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                rows[-1].append((text, attributes))
            elif tag == "script":
                break
        return rows[1:]


def write_run(grid_dir, run, history=None, files=(), **record):
    folder = grid_dir / run
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"status": "ok", **record}, ensure_ascii=False), encoding="utf-8")
    if history is not None:
        (folder / "history.csv").write_text(history)
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("")
    return run


@pytest.fixture
def render(browser):
    """Write the page of runs and look at it in a browser, after some script where one is given."""

    def render(grid_dir, runs, varied=(), baseline=None, title="sweep", act=""):
        rows = collect_runs(grid_dir, runs, [*varied])
        conditions = summarise_conditions(rows, [*varied], baseline)
        path = write_index(grid_dir, rows, conditions, [*varied], title, "02_train")
        assert path == grid_dir / "index.html"
        tab, errors = browser.new_page(), []
        tab.on("pageerror", lambda error: errors.append(error))
        tab.goto(path.as_uri())
        if act:
            tab.evaluate(act)
        page = Page(re.sub("<noscript>.*?</noscript>", "", tab.content(), flags=re.DOTALL))
        tab.close()
        assert page.open == errors == []
        return page

    return render


def test_links_lead_to_the_runs_files(render, tmp_path):
    run = "loss=ce0.9+focal0.1,seed=21"
    files = ["02_train.html", "02_train.ipynb", "03_error_analysis.html", "figures/100% worst.png"]
    write_run(tmp_path, run, files=files, metrics={"miou": 0.5})
    page = render(tmp_path, [run])
    hrefs = [attributes["href"] for _, attributes, _ in page.all("a")]
    assert hrefs[0] == "loss%3Dce0.9%2Bfocal0.1%2Cseed%3D21/02_train.html"
    assert {unquote(href) for href in hrefs} == {f"{run}/{file}" for file in [*files, "record.json"]}
    assert all((tmp_path / unquote(href)).is_file() for href in hrefs)
    assert [attributes["src"] for _, attributes, _ in page.all("img")] == [
        "loss%3Dce0.9%2Bfocal0.1%2Cseed%3D21/figures/100%25%20worst.png"
    ]


def test_the_notebooks_that_followed_are_linked(render, tmp_path):
    for folder, page in (
        ("05_compare", "05_compare.html"),
        ("04_ensemble.then2", "04_ensemble.html"),
        ("03_none", "x"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / page).write_text("")
    links = {text: attributes["href"] for _, attributes, text in render(tmp_path, ["seed=1"], ["seed"]).all("a")}
    assert links == {
        "04_ensemble.then2": "04_ensemble.then2/04_ensemble.html",
        "05_compare": "05_compare/05_compare.html",
    }


def test_files_that_are_missing_are_not_linked(render, tmp_path):
    page = render(tmp_path, ["seed=1"], ["seed"])
    assert page.all("a") == page.all("img") == []
    assert [text for text, _ in page.rows()[0]][1:4] == ["seed=1", "1", "○ planned"]


def test_everything_from_data_is_escaped(render, tmp_path):
    run = "a=" + EVIL.replace("/", "|")
    iou = {EVIL: 0.5, '" onload="x': 0.2}
    write_run(
        tmp_path, run, params={"a": EVIL}, metrics={"miou": 0.5, "iou": iou}, error=EVIL, history="epoch,miou\n1,0.2\n"
    )
    write_run(tmp_path, "b", status=EVIL, params={"a": {EVIL: 1}, EVIL: 2}, error="<img src=x onerror=y>")
    page = render(tmp_path, [run, "b"], ["a", EVIL, "seed"], {"a": EVIL}, title=EVIL)
    data, script = page.all("script")
    assert data[1]["type"] == "application/json" and "<" not in data[2] and "alert" not in script[2]
    assert not [e for e in page.elements if any(name.startswith("on") for name in e[1])]
    assert page.all("img") == []
    assert page.all("h1")[0][2] == page.all("title")[0][2] == EVIL
    assert [e[2] for e in page.all("pre")] == [EVIL, "<img src=x onerror=y>"]
    assert EVIL + " 0.500" in [e[1].get("title") for e in page.all("i")]


def test_the_page_needs_nothing_from_outside(render, tmp_path):
    write_run(tmp_path, "a", files=["02_train.html", "figures/x.png"], metrics={"miou": 0.5})
    page = render(tmp_path, ["a"])
    sources = [e[1].get(name) for e in page.elements for name in ("src", "href") if e[1].get(name)]
    assert sources and all(source.startswith("a/") for source in sources)
    assert page.all("link") == []
    text = (tmp_path / "index.html").read_text().replace('"http://www.w3.org/2000/svg"', "")  # a name, not a place
    assert not re.search(r"url\(|@import|https?:", text)


def test_runs_stand_best_first_and_are_sorted_by_a_click(render, tmp_path):
    for run, miou, seconds in (("low", 0.25, 61), ("high", 0.5, 3720), ("none", None, None)):
        write_run(tmp_path, run, metrics={"miou": miou}, seconds=seconds, peak_memory_mb=2048 if miou else None)
    write_run(tmp_path, "broken", status="failed", metrics={"miou": 0.9}, seconds=10.0)
    names = ["broken", "none", "low", "high"]
    rows = render(tmp_path, names).rows()
    assert [row[1][0] for row in rows] == ["highrecord", "lowrecord", "nonerecord", "brokenrecord"]
    shown = [[row[place][0] for place in (0, 3, -2, -1)] for row in rows]
    assert shown[0] == ["1", "0.5000", "1h02m", "2.0 GB"]
    assert shown[2] == ["-", "-", "-", "-"] and shown[3] == ["-", "0.9000", "10s", "-"]
    click = "document.querySelectorAll('#runs button')[9].click()"  # time
    for act, order in ((click, "broken low high none"), (f"{click}, {click}", "high low broken none")):
        assert [row[1][0].removesuffix("record") for row in render(tmp_path, names, act=act).rows()] == order.split()


def test_runs_are_drawn_as_one_scrolls_and_the_filter_looks_at_all(render, tmp_path):
    names = [write_run(tmp_path, f"seed={n}", params={"seed": n}, metrics={"miou": n / 1000}) for n in range(250)]
    page = render(tmp_path, names, ["seed"])
    assert len(page.rows()) == 100 and [e[2] for e in page.all("span", id="shown")] == ["250 of 250 runs"]
    draw = "scroll.scrollTop = scroll.scrollHeight, scroll.dispatchEvent(new Event('scroll'))"
    assert len(render(tmp_path, names, ["seed"], act=draw).rows()) == 200
    word = "filter.value = 'OK seed=7', filter.dispatchEvent(new Event('input'))"
    page = render(tmp_path, names, ["seed"], act=word)
    assert [row[2][0] for row in page.rows()] == [*map(str, range(79, 69, -1)), "7"]
    assert [e[2] for e in page.all("span", id="shown")] == ["11 of 250 runs"]


def test_without_its_script_the_page_says_where_the_runs_are(render, browser, tmp_path):
    names = [write_run(tmp_path, f"seed={n}", metrics={"miou": n / 100}) for n in range(30)]
    render(tmp_path, names, ["seed"])
    tab = browser.new_context(java_script_enabled=False).new_page()
    tab.goto((tmp_path / "index.html").as_uri())
    page = Page(tab.content())
    assert [e[2] for e in page.all("a")] == ["leaderboard.csv"]
    best = [e[2] for e in page.all("th", scope="row")]
    assert (best[0], len(best)) == ("seed=29", page_module.MOST_PLAIN)


def test_every_header_is_a_button_and_one_says_the_order(render, tmp_path):
    page = render(tmp_path, ["seed=1"], ["seed"])
    heads = [e for e in page.all("th", scope="col") if "aria-sort" in e[1]]
    assert len(heads) == len(page.rows()[0]) == len(page.all("button"))
    assert [e[2] for e in heads if e[1]["aria-sort"] == "descending"] == ["mIoU"]


def test_summary_counts_every_status_in_words(render, tmp_path):
    for status in ("ok", "failed", "oom", "killed", "interrupted", "odd"):
        write_run(tmp_path, status, status=status)
    pills = render(tmp_path, ["ok", "failed", "oom", "killed", "interrupted", "odd", "later", "last"]).all("p")[1][2]
    for count in ("✓ 1 ok", "✕ 1 failed", "▲ 1 oom", "■ 1 killed", "‖ 1 interrupted", "? 1 unknown", "○ 2 planned"):
        assert count in pills


def test_conditions_show_the_verdict_and_the_interval(render, tmp_path):
    runs = []
    for loss, scores in {"ce": (0.40, 0.41, 0.42), "dice": (0.50, 0.51, 0.521)}.items():
        for seed, miou in enumerate(scores):
            params = {"loss": loss, "seed": seed}
            runs.append(write_run(tmp_path, f"loss={loss},seed={seed}", params=params, metrics={"miou": miou}))
    page = render(tmp_path, runs, ["loss", "seed"], {"loss": "ce"})
    assert [e[2].strip() for e in page.all("span") if "verdict" in e[1].get("class", "")] == ["▲ better", "◆ baseline"]
    titles = [e[2] for e in page.all("title")]
    assert any(title.startswith("dice: mean 0.5103, n 3, difference +0.1003; interval +0.09") for title in titles)
    note = next(e[2] for e in page.all("p", **{"class": "note"}) if "Small dots" in e[2])
    assert "95 % for 1 comparison together (Holm), paired by seeds" in note and "Best of 2: dice" in note
    assert len(page.all("g", **{"class": "whisker"})) == 1
    lines = [e[1]["style"] for e in page.all("span", **{"class": "base"})]
    assert len(lines) == 2 and lines[0] == lines[1]


def test_one_seed_is_said_to_prove_nothing(render, tmp_path):
    runs = [write_run(tmp_path, f"lr={lr}", params={"lr": lr}, metrics={"miou": lr}) for lr in (0.1, 0.2)]
    page = render(tmp_path, runs, ["lr"], {"lr": 0.1})
    assert any("Noise between seeds is not known: no difference can be told from it" in e[2] for e in page.all("p"))
    assert any(e[2].strip() == "? can't tell yet" for e in page.all("span"))
    assert next(e[2] for e in page.all("small")) == "noise unknown"


def test_curves_say_their_ends_and_the_best_epoch(render, tmp_path):
    history = "epoch,train_loss,miou\n1,2.5,0.1\n2,1.25,nan\n3,0.5,0.4\n4,inf,0.3\n"
    write_run(tmp_path, "a", history, best_epoch=3, metrics={"miou": 0.4})
    page = render(tmp_path, ["a"])
    assert "train loss 0.5 to 2.5, val mIoU 0.100 to 0.400, best epoch 3 of 4" in [e[2] for e in page.all("title")]
    (circle,) = page.all("circle")
    assert float(circle[1]["cy"]) == page_module.PLOT[2]  # the highest value touches the top


@pytest.mark.parametrize("history", [None, "", "epoch\n", "a,b\n1,2\n", "epoch,miou\nx,y\n", "\x00\xff,\n"])
def test_a_history_without_numbers_is_no_curve(render, tmp_path, history):
    write_run(tmp_path, "a", history)
    page = render(tmp_path, ["a"])
    assert "no history" in [e[2] for e in page.all("span")]
    assert page.all("svg") == []


def test_history_without_losses_still_gives_the_score(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,miou\n1,0.5\n2,0.25\n")
    assert read_history(tmp_path / "history.csv") == [{"epoch": 1, "miou": 0.5}, {"epoch": 2, "miou": 0.25}]


def test_a_thinned_curve_keeps_its_lowest_and_highest_point():
    series = [(epoch, 0.5 + 0.001 * math.sin(epoch)) for epoch in range(1000)]
    series[501], series[777] = (501, 0.1), (777, 0.9)
    history = [{"epoch": epoch, "miou": value} for epoch, value in series]
    x, [[_, y, low, high]], best, last = page_module.trace_curve(history, 33)
    assert len(x) == len(y) <= page_module.MOST_POINTS + 3
    assert (low, high, y.count(page_module.DIGITS[0]), y.count(page_module.DIGITS[-1])) == (0.1, 0.9, 1, 1)
    assert x[best] == page_module.DIGITS[round(33 / 999 * (len(page_module.DIGITS) - 1))] and last == 999


def test_the_strip_follows_the_class_order_and_hatches_absent_classes(render, tmp_path):
    write_run(tmp_path, "a", metrics={"miou": 0.5, "iou": {"bag": 0.0, "cup": None, "캔": 1.0}})
    write_run(tmp_path, "b", metrics={"miou": 0.4, "iou": {"bag": 0.5, "new": 0.5}})
    page = render(tmp_path, ["a", "b"])
    cells = [(e[1]["class"], e[1]["title"]) for e in page.all("i") if "title" in e[1]][:4]
    assert cells == [("v0", "bag 0.000"), ("absent", "cup -"), ("v20", "캔 1.000"), ("absent", "new -")]
    assert page.all("span", **{"class": "strip"})[0][1]["aria-label"] == "lowest bag 0.000, highest 캔 1.000"


@pytest.mark.parametrize("step", [0, 6, 11, 20])
def test_colours_are_viridis(render, tmp_path, step):
    render(tmp_path, [])
    (colour,) = re.findall(rf"\.v{step} {{ background: (#\w+); }}", (tmp_path / "index.html").read_text())
    assert colour == matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](step / 20))


def test_ten_thousand_runs_stay_a_small_file(render, tmp_path):
    history = "epoch,train_loss,miou\n" + "".join(f"{e},{2 / e},{0.5 - 0.4 / e}\n" for e in range(1, 61))
    iou = {f"class {index}": index / 12 for index in range(12)}
    names = [f"augmentation=strong,loss=ce0.9+focal0.1,seed={index}" for index in range(50)]
    for name in names:
        write_run(tmp_path, name, history, ["02_train.html", "02_train.ipynb"], metrics={"miou": 0.5, "iou": iou})
    render(tmp_path, names[:1], ["augmentation", "loss", "seed"])
    base = (tmp_path / "index.html").stat().st_size
    render(tmp_path, names, ["augmentation", "loss", "seed"])
    size = (tmp_path / "index.html").stat().st_size
    assert base + (size - base) / 49 * 10_000 < 3_000_000


def test_errors_and_conditions_of_thousands_are_cut(render, tmp_path, monkeypatch):
    for name in ("MOST_ERRORS", "MOST_CONDITIONS"):
        monkeypatch.setattr(page_module, name, 2)
    failed = [write_run(tmp_path, f"f{n}", status="failed", error=f"no {n}") for n in range(5)]
    runs = [
        write_run(tmp_path, f"lr={lr},seed={seed}", params={"lr": lr, "seed": seed}, metrics={"miou": lr})
        for lr in (0.1, 0.2, 0.3, 0.4)
        for seed in (1, 2)
    ]
    page = render(tmp_path, [*runs, *failed], ["lr", "seed"], {"lr": 0.1})
    assert [e[2] for e in page.all("pre")] == ["no 0", "no 1"]
    assert "And 3 more, in leaderboard.csv." in [e[2] for e in page.all("p")]
    note = next(e[2] for e in page.all("p", **{"class": "note"}) if "Small dots" in e[2])
    assert "Shown are 3 of 4 conditions: the best, and the baselines." in note
    assert [e[2] for e in page.all("th", scope="row")][:3] == ["0.4", "0.3", "0.1"]


def test_results_of_a_grid_load_no_heavy_library():
    code = (
        "import sys, seglib.runs.leaderboard, seglib.runs.page, seglib.runs.conditions;"
        "print(sorted({'torch', 'pandas', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
