"""Where the time of a run goes beside its training, cold and warm in turn: `python tests/benchmarks/startup.py [--train]`.

A notebook that does nothing, or 02_train.ipynb for one epoch of 64 px images (--train). Warm runs are forked from a process
that has imported the libraries; its own start is printed, and counts once per grid. Parts of a run [s], by the clock:
`start` until papermill begins (process, imports), `kernel` until the first cell begins, `cells`, `after` until the process
has ended (header, HTML, records). Medians of the runs.

With `--grid N` instead: N trivial runs by `run_grid.py --workers 2`, seconds per run, and the memory of the runner's process
as the runs end.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil

from seglib.files import PROJECT
from seglib.parameters import read_defaults
from seglib.runs.family import adopt_orphans
from seglib.runs.grid import Job
from seglib.runs.local import LocalMachine
from seglib.runs.record import read_record

TRAIN = {
    "data_dir": "synthetic", "image_size": 64, "architecture": "FPN", "encoder": "tu-test_resnet", "encoder_weights": "",
    "epochs": 1, "batch_size": 8, "warmup_epochs": 0.0,
}  # fmt: skip
PARTS = ("start", "kernel", "cells", "after", "all")


def write_notebook(path: Path) -> Path:
    cells = ['run_dir: str = ""', "from seglib import save_result", 'save_result(run_dir, metrics={"miou": 0.5})']
    code = [{"cell_type": "code", "id": f"c{n}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
            for n, source in enumerate(cells)]  # fmt: skip
    code[0]["metadata"]["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": code}))
    return path


def time_run(place: LocalMachine, notebook: Path, parameters: Mapping[str, object], folder: Path) -> list[float]:
    """Seconds of each of PARTS."""
    values = read_defaults(notebook) | parameters | {"run_dir": str(folder)}
    began = time.time()
    process = place.start(Job(folder.name, notebook, folder, {}, values, {}))
    while process.poll() is None:
        time.sleep(0.005)
    ended = time.time()
    process.close(ended_well=True)
    if (record := read_record(folder) or {}).get("status") != "ok":
        sys.exit(f"{folder}: {record.get('status')}: {record.get('error')}; {(folder / 'run.log').read_text()[-2000:]}")
    content = json.loads((folder / notebook.name).read_text())
    cells = [cell["metadata"].get("papermill") or {} for cell in content["cells"]]
    whole, ran = content["metadata"]["papermill"], [cell for cell in cells if cell.get("start_time")]
    moments = [began, *map(read_time, (whole["start_time"], ran[0]["start_time"], ran[-1]["end_time"])), ended]
    return [after - before for before, after in itertools.pairwise(moments)] + [ended - began]


def time_grid(runs: int, workers: int = 2) -> None:
    """Print what a grid of trivial runs takes: the clock, per run, and the runner's memory on the way."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cells = json.loads(write_notebook(folder / "n.ipynb").read_text())
        cells["cells"][0]["source"] = 'seed: int = 0\nrun_dir: str = ""'
        (folder / "n.ipynb").write_text(json.dumps(cells))
        (folder / "grid.yaml").write_text(f"notebook: {folder}/n.ipynb\ngrid: {{seed: {[*range(runs)]}}}\n")
        command = [sys.executable, PROJECT / "run_grid.py", folder / "grid.yaml", "--outputs", folder / "o"]
        began, sizes, load = time.monotonic(), [], []
        with open(folder / "out", "w") as out:
            runner = psutil.Popen([*command, "--workers", str(workers)], stdout=out, stderr=out)
            while runner.poll() is None:
                with contextlib.suppress(psutil.Error):  # it has just ended
                    done = (folder / "out").read_text().count(": ok, ")
                    sizes.append((done, runner.memory_info().rss / 1e6))
                load.append(os.getloadavg()[0])
                time.sleep(1)
        seconds, text = time.monotonic() - began, (folder / "out").read_text()
        if runner.returncode or text.count(": ok, ") != runs:
            sys.exit(text[-2000:])
    print(
        f"{runs} runs, --workers {workers}, {os.cpu_count()} cores, load {statistics.mean(load):.1f}: {seconds:.0f} s"
    )
    print(f"{seconds / runs:.2f} s per run by the clock, {workers * seconds / runs:.2f} s in its slot")
    steps = [next(size for done, size in sizes if done >= share * runs / 10) for share in range(10)]
    print(
        f"runner [MB] at each tenth of the runs: {', '.join(f'{size:.0f}' for size in steps)}, the most {max(sizes, key=lambda each: each[1])[1]:.0f}"
    )


def read_time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--grid", type=int, default=0, metavar="N")
    options = parser.parse_args()
    if options.grid:
        time_grid(options.grid)
        return
    adopt_orphans()
    os.environ.pop("SEGLIB_WARM", None)
    places = {"cold": LocalMachine(), "warm": LocalMachine(warm=True)}
    times: dict[str, list[list[float]]] = {name: [] for name in places}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trivial = write_notebook(folder / "n.ipynb")
        notebook, parameters = (PROJECT / "notebooks/02_train.ipynb", TRAIN) if options.train else (trivial, {})
        began = time.monotonic()
        while not places["warm"].warm_up():
            time.sleep(0.01)
        imports = time.monotonic() - began
        time_run(places["warm"], trivial, {}, folder / "first")
        print(
            f"{notebook.name}, python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        print(f"the process that forks is ready after {imports:.1f} s, beside the first run")
        hashes = set()
        for number in range(options.runs):
            for name, place in places.items():
                times[name].append(time_run(place, notebook, parameters, folder / f"{name}{number}"))
                hashes.add((read_record(folder / f"{name}{number}") or {}).get("weights_sha256"))
    print(f"{'':8}" + "".join(f"{part:>9}" for part in PARTS))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    for name, row in medians.items():
        print(f"{name:8}" + "".join(f"{value:9.2f}" for value in row))
    ratios = [cold / warm for cold, warm in zip(medians["cold"], medians["warm"], strict=True)]
    print(f"{'ratio':8}" + "".join(f"{value:9.1f}" for value in ratios))
    if options.train:
        print(f"weights: {'the same, bit for bit' if len(hashes) == 1 else f'DIFFERENT: {hashes}'}")


if __name__ == "__main__":
    main()
