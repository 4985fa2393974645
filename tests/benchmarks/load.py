"""A folder of many finished runs: seconds and MB of what reads all of them: `python tests/benchmarks/load.py [--runs N]`.

The records, histories and pages are made here; nothing is trained. Times are of whole commands in processes of their own,
except "again", the results after one more run has ended, written by the runner that wrote them before. The browser is
headless Chromium: from the navigation to the first rows on the screen.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from seglib.files import PROJECT, write_json
from seglib.runs.grid import load_grid
from seglib.runs.record import describe_environment, describe_key
from seglib.runs.results import write_files

CLASSES = ["background", "general trash", "paper", "paper pack", "metal", "glass", "plastic", "styrofoam", "bag", "battery", "clothing", "can"]  # fmt: skip
GRID = """notebook: {project}/notebooks/02_train.ipynb
fixed: {{data_dir: synthetic, encoder: tu-test_resnet, encoder_weights: ""}}
grid:
  loss: [{{cross_entropy: 1.0}}, {{cross_entropy: 0.5, dice: 0.5}}, {{cross_entropy: 0.9, focal: 0.1}}, {{dice: 1.0}}]
  lr: {rates}
  seed: {seeds}
baseline: {{loss: {{cross_entropy: 1.0}}}}
"""


def make_runs(folder: Path, runs: int, epochs: int = 30) -> tuple[Path, Path]:
    """A grid file of about that many runs, and the outputs folder in which all of them are done."""
    rates = [round(1e-4 * (1 + number), 6) for number in range(max(1, round(math.sqrt(runs / 4) / 2)))]
    seeds = list(range(math.ceil(runs / 4 / len(rates))))
    file = folder / "load.yaml"
    file.write_text(GRID.format(project=PROJECT, rates=rates, seeds=seeds))
    grid, draw, environment = load_grid(file, folder / "outputs", {}), random.Random(0), describe_environment()
    for run in grid.runs:
        best, course = draw.gauss(0.5, 0.01), ["epoch,train_loss,val_loss,miou"]
        for epoch in range(1, epochs + 1):
            course.append(f"{epoch},{2 / epoch + draw.random() / 9},{2 / epoch},{best - 0.4 / epoch}")
        iou = {name: draw.random() for name in CLASSES}
        metrics = {
            "miou": best,
            "miou_image": best - 0.02,
            "miou_batch": best,
            "accuracy": 0.8,
            "loss": 0.7,
            "iou": iou,
        }
        record = {
            "status": "ok", "params": run.parameters, "varied": run.varied, "metrics": metrics, "best_epoch": epochs,
            "seconds": 100 * draw.random(), "weights_sha256": f"{draw.getrandbits(256):064x}", **environment,
        }  # fmt: skip
        write_json(run.folder / "record.json", record | describe_key(run.key))
        (run.folder / "history.csv").write_text("\n".join(course) + "\n")
        for name in ("02_train.html", "02_train.ipynb"):
            (run.folder / name).write_text("")
    return file, folder / "outputs"


def time_command(*arguments: object) -> tuple[float, float]:
    """Wall seconds and peak memory [MB] of run_grid.py."""
    began, peak = time.perf_counter(), 0
    command = [sys.executable, str(PROJECT / "run_grid.py"), *map(str, arguments)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.02)
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - began, peak / 1e6


def time_again(file: Path, outputs: Path) -> tuple[float, float]:
    """Seconds of the results in a runner: the first time, and after one of the runs has changed."""
    grid = load_grid(file, outputs, {})
    times = []
    for _ in range(2):
        began = time.perf_counter()
        write_files(grid)
        times.append(time.perf_counter() - began)
        path = grid.runs[0].folder / "record.json"
        write_json(path, json.loads(path.read_text()) | {"seconds": 1.0})
    return times[0], times[1]


def time_browser(page: Path) -> tuple[float, float, float]:
    """Seconds until the first rows are painted, that a click on a header and a word in the filter take."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1366, "height": 900})
        tab.goto(page.as_uri(), wait_until="load")
        tab.wait_for_timeout(1000)
        marks = "[...performance.getEntriesByName('rows'), ...performance.getEntriesByName('first-contentful-paint')]"
        first, times = max(tab.evaluate(f"{marks}.map(each => each.startTime)")) / 1000, []
        for act in (
            "document.querySelector('#runs thead th:nth-child(2) button').click()",
            "filter.value = 'seed=1'; filter.dispatchEvent(new Event('input'))",
        ):
            times.append(tab.evaluate(f"(() => {{ const began = performance.now(); {act}; document.body.offsetHeight; return performance.now() - began }})()") / 1000)  # fmt: skip
        browser.close()
    return first, *times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="keep the runs here, and use those of before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        made = (folder / "load.yaml", folder / "outputs")
        file, outputs = made if made[0].is_file() else make_runs(folder, options.runs)
        runs, page = len([*(outputs / "load").glob("*/record.json")]), outputs / "load" / "index.html"
        print(f"{runs:,} finished runs, python {sys.version.split()[0]}, {psutil.cpu_count()} cores")
        print(
            "--dry-run         {:6.2f} s  {:6.0f} MB of memory".format(
                *time_command(file, "--outputs", outputs, "--dry-run")
            )
        )
        print("all is done       {:6.2f} s  {:6.0f} MB of memory".format(*time_command(file, "--outputs", outputs)))
        print("results in runner {:6.2f} s  {:6.2f} s again, when one run ended".format(*time_again(file, outputs)))
        print(f"index.html        {page.stat().st_size / 1e6:6.2f} MB")
        print(f"leaderboard.csv   {(page.parent / 'leaderboard.csv').stat().st_size / 1e6:6.2f} MB")
        print(
            "browser           {:6.2f} s to the first rows; sorted in {:.2f} s, filtered in {:.2f} s".format(
                *time_browser(page)
            )
        )


if __name__ == "__main__":
    main()
