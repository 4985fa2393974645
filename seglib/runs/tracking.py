"""Tells the trackers that a run asks for (`track`) what it does; whatever happens to a tracker, the training goes on."""

import contextlib
import csv
import json
import math
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seglib.files import write_json
from seglib.runs.record import read_record
from seglib.runs.trackers import OPEN, Tracker, clean_name

if TYPE_CHECKING:
    import pandas as pd

NAME = "tracking.json"  # in run_dir: which run of each tracker it is, and how much that has
Open = Callable[[Path, Mapping[str, Any], Mapping[str, Any]], Tracker]


class Tracking:
    """A run in its trackers, and a watcher of its training.

    Epochs are logged by their number, each once: a run that was killed goes on in the same runs of the trackers with
    the first epoch that they lack. A tracker that fails is told nothing more; one printed line and `describe` say so.
    """

    def __init__(self, run_dir: Path, parameters: Mapping[str, Any], openers: Mapping[str, Open]):
        self.path = run_dir / NAME
        self.notes = _read_notes(self.path)
        self.trackers: dict[str, Tracker] = {}
        for name, open_tracker in openers.items():
            note = self.notes.get(name, {})
            note = note if "id" in note else {}  # it was never opened
            with self._guard(name):
                self.trackers[name] = open_tracker(run_dir, parameters, note)
        self._save()

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Trackers are told after epochs."""

    def epoch(self, history: "pd.DataFrame") -> None:
        """Log the epochs (rows, with their number in `epoch`) that a tracker does not have yet."""
        self._log_rows(history.to_dict("records") if self.trackers else [])

    def end(self, history: "pd.DataFrame") -> None:
        """Log what an earlier process of the run could not."""
        self.epoch(history)

    def log_result(self, metrics: Mapping[str, Any], best_epoch: int, figures: Path) -> dict[str, Any]:
        """Log scores, IoU of each class and all figures, and close the trackers' runs.

        Parameters
        ----------
        metrics : of the best epoch, as in the record: numbers, and `iou` by class name. What is NaN is left out.
        figures : folder of PNG files.

        Returns
        -------
        What the record says of each tracker, see `describe`.
        """
        self._log_result(metrics, best_epoch, figures)
        self.close(ok=True)
        return self.describe()

    def log_files(self, files: Sequence[Path]) -> None:
        """Send files as artifacts."""
        for name, tracker in [*self.trackers.items()]:
            with self._guard(name):
                tracker.log_files(files)

    def close(self, ok: bool) -> None:
        """Wait until all is sent and end the trackers' runs, as good ones or failed ones."""
        for name, tracker in [*self.trackers.items()]:
            with self._guard(name):
                tracker.close(ok)
        self.trackers = {}
        self._save()

    def describe(self) -> dict[str, Any]:
        """Tracker -> id of its run, last epoch that it has, whether it has the result, why it stopped if it did."""
        return self.notes

    def _log_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for name, tracker in [*self.trackers.items()]:
            with self._guard(name):
                for row in rows:
                    epoch = int(row["epoch"])
                    if epoch > tracker.logged:
                        tracker.log_epoch(epoch, _keep_finite({key: row[key] for key in row if key != "epoch"}))
                        tracker.logged = epoch
        self._save()

    def _log_result(self, metrics: Mapping[str, Any], best_epoch: int, figures: Path) -> None:
        scores = {f"best/{name}": value for name, value in metrics.items() if name != "iou"}
        by_class = {f"iou/{name}": value for name, value in metrics.get("iou", {}).items()}
        values = _keep_finite({"best/epoch": best_epoch, **scores, **by_class})
        for name, tracker in [*self.trackers.items()]:
            with self._guard(name):
                if not tracker.has_result:
                    tracker.log_result(tracker.logged, values, sorted(figures.glob("*.png")))
                    tracker.has_result = True
        self._save()

    @contextlib.contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        """Leave the generators as they are; an error ends this tracker and nothing else."""
        try:
            with _generators_kept():
                yield
        except Exception as error:  # a tracker's library may raise anything: no server, no space, no permission
            self.trackers.pop(name, None)
            words = _hide_secrets(f"{type(error).__name__}: {error}")
            self.notes[name] = self.notes.get(name, {}) | {"stopped": words}
            print(f"{name} is told no more, the run goes on: {words}", flush=True)

    def _save(self) -> None:
        for name, tracker in self.trackers.items():
            self.notes[name] = {"id": tracker.id, "logged": tracker.logged, "result": tracker.has_result}
        if self.notes:
            write_json(self.path, self.notes)


def open_trackers(names: Iterable[str], run_dir: Path, parameters: Mapping[str, Any]) -> Tracking:
    """Open the run in the trackers asked for, or go on in those that an earlier process of it has opened.

    Parameters
    ----------
    names : of tensorboard, wandb, mlflow; none: nothing is imported, written or printed.
    parameters : plain values, sent as they are. Tokens are read by the libraries, from the environment.
    """
    return Tracking(Path(run_dir).resolve(), parameters, {name: OPEN[name] for name in names})


def finish_tracking(run_dir: Path, parameters: Mapping[str, Any], files: Sequence[Path], ok: bool) -> dict[str, Any]:
    """Send the executed notebook, which exists only after its last cell, and whatever else a tracker lacks.

    Parameters
    ----------
    parameters : of the notebook, which has opened the trackers named in `track`.

    Returns
    -------
    What the record says of each tracker; empty where none was asked for.
    """
    notes = _read_notes(run_dir / NAME)
    asked = [name for name in notes if name in parameters["track"] and name != "tensorboard"]  # which takes no files
    tracking = Tracking(run_dir, parameters, {name: OPEN[name] for name in asked})
    if asked:
        tracking._log_rows(_read_history(run_dir / "history.csv"))
        record = read_record(run_dir) or {}
        if record.get("metrics"):
            tracking._log_result(record["metrics"], record.get("best_epoch", 0), run_dir / "figures")
        tracking.log_files([path for path in files if path.is_file()])
        tracking.close(ok)
    return tracking.describe()


def _read_notes(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of numbers and texts, without pandas; none where the run did not finish an epoch."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [{name: _read_number(text) for name, text in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _read_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _keep_finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers under names that every tracker takes; what is None, NaN or infinite is left out."""
    return {
        clean_name(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Give Python, NumPy and torch their random states back: trackers draw names and waiting times."""
    python, numpy, torch = random.getstate(), sys.modules.get("numpy"), sys.modules.get("torch")
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpy_state)
        if torch:
            torch.set_rng_state(torch_state)


def _hide_secrets(text: str) -> str:
    """One short line without passwords of addresses and without what variables such as WANDB_API_KEY hold."""
    text = re.sub(r"//[^/@\s]+@", "//***@", " ".join(text.split()))
    for name, value in os.environ.items():
        if len(value) >= 6 and re.search("KEY|TOKEN|PASSWORD|SECRET", name):
            text = text.replace(value, "***")
    return text[:200]
