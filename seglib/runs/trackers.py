"""TensorBoard, Weights & Biases, MLflow: what a run reports to them."""

import contextlib
import importlib.util
import json
import logging
import math
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from seglib.files import outputs_dir, read_json, write_json
from seglib.runs.record import read_history, read_record

if TYPE_CHECKING:
    import pandas as pd


# Whether the trackers that a run asks for are installed, known without importing them. They are optional.


_PACKAGES = {  # what pip installs, in the version that was tested, and the modules that must be there
    "tensorboard": ("tensorboard==2.21.0", ("tensorboard",)),
    "wandb": ("wandb==0.31.0", ("wandb",)),
    "mlflow": ("mlflow==3.17.2", ("mlflow",)),
}
_DATABASE = ("sqlalchemy", "alembic")  # what mlflow-skinny lacks; a server has them itself


def refuse_missing(names: Iterable[str]) -> str:
    """Say which trackers are not installed and how to install them, "" where all are; nothing is imported."""
    missing = [name for name in names if not all(map(_is_installed, _list_modules(name)))]
    packages = " ".join(_PACKAGES[name][0] for name in missing)
    return f"track: {' and '.join(missing)} must be installed first: pip install {packages}" if missing else ""


def _list_modules(name: str) -> tuple[str, ...]:
    local = name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI")
    return _PACKAGES[name][1] + (_DATABASE if local else ())


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # without one it is a folder of that name, such as ./wandb


# One class for each tracker, around its own library, imported when asked for. All have
#   id          how to find the same run again; None where run_dir says it
#   logged      the last epoch that it has
#   has_result  whether it has the scores of the best epoch
#   log_epoch(epoch, values), log_result(last epoch, values, PNG files), log_files(files), close(ok)
# Names of values are cleaned and values are finite, see `_keep_finite`.


class TensorBoard:
    """Event files in run_dir/tensorboard. It has no place for other files: the notebook lies beside its folder."""

    id = None

    def __init__(self, run_dir: Path, parameters: Mapping[str, Any], note: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.parameters = _flatten(parameters)
        self.logged, self.has_result = note.get("logged", 0), note.get("result", False)
        # `purge_step` forgets what was written after the last epoch that is known to be whole.
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=self.logged + 1 if note else None)
        if not note:
            rows = "".join(f"| {name} | {value} |\n" for name, value in self.parameters.items())
            self.writer.add_text("parameters", f"| | |\n|---|---|\n{rows}", 0)

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def log_result(self, epoch: int, values: Mapping[str, float], figures: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard.summary import hparams

        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        for summary in hparams(self.parameters, dict.fromkeys(values, 0.0)):
            self.writer.file_writer.add_summary(summary)
        for path in figures:
            with Image.open(path) as figure:
                self.writer.add_image(path.stem, np.asarray(figure.convert("RGB")), epoch, dataformats="HWC")

    def log_files(self, files: Sequence[Path]) -> None:
        pass

    def close(self, ok: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb, offline where nobody is logged in.

    A run that was offline cannot be gone on with: the new process writes all of it once more and the old folder goes.
    """

    def __init__(self, run_dir: Path, parameters: Mapping[str, Any], note: Mapping[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.wandb = wandb
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run_dir.parent.name, name=run_dir.name, id=note.get("id"),
            dir=str(run_dir), config=dict(parameters), mode=mode, resume="allow" if mode == "online" else None,
            reinit="create_new", save_code=False,
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=30, finish_timeout=60, finish_timeout_raises=True
            ),
        )  # fmt: skip
        self.id = self.run.id
        self.logged = max(0, self.run.starting_step - 1) if mode == "online" else 0
        self.has_result = mode == "online" and self.logged > 0 and note.get("result", False)
        for folder in run_dir.glob(f"wandb/offline-run-*-{self.id}"):
            if folder != Path(self.run.dir).parent:
                shutil.rmtree(folder)
        if mode == "offline" and not note:
            print(f"wandb is offline; to send this run: wandb sync {run_dir}/wandb/offline-run-*")

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=epoch, commit=True)

    def log_result(self, epoch: int, values: Mapping[str, float], figures: Sequence[Path]) -> None:
        self.run.summary.update(dict(values))
        if figures:
            self.run.log({f"figures/{path.stem}": self.wandb.Image(str(path)) for path in figures})

    def log_files(self, files: Sequence[Path]) -> None:
        artifact = self.wandb.Artifact(f"notebook-{self.id}", type="notebook")
        for path in files:
            artifact.add_file(str(path), policy="immutable")  # no copy outside run_dir
        self.run.log_artifact(artifact)

    def close(self, ok: bool) -> None:
        self.run.finish(exit_code=0 if ok else 1)


class MLflow:
    """A run of MLflow, on the server of MLFLOW_TRACKING_URI or in outputs/mlruns/mlflow.db."""

    def __init__(self, run_dir: Path, parameters: Mapping[str, Any], note: Mapping[str, Any]):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its thread draws from Python's generator
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        with _open_store() as (uri, artifacts):
            self.client = MlflowClient(uri)
            self.id = note.get("id") or self._create(run_dir, parameters, artifacts)
        if note:
            self.client.update_run(self.id, status="RUNNING")
        self.logged = max((point.step for point in self.client.get_metric_history(self.id, "epoch")), default=0)
        self.has_result = note.get("result", False)

    def _create(self, run_dir: Path, parameters: Mapping[str, Any], artifacts: str | None) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run_dir.parent.name
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name, artifacts)
        run_id = self.client.create_run(experiment, run_name=run_dir.name).info.run_id
        params = [Param(name, str(value)[:6000]) for name, value in _flatten(parameters).items()]
        self.client.log_batch(run_id, params=params)
        return run_id

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self._log({"epoch": epoch, **values}, epoch)

    def log_result(self, epoch: int, values: Mapping[str, float], figures: Sequence[Path]) -> None:
        self._log(values, epoch)
        for path in figures:
            self.client.log_artifact(self.id, str(path), "figures")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        """In one request, and in one transaction: all of an epoch or nothing."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [Metric(name, float(value), now, step) for name, value in values.items()])

    def log_files(self, files: Sequence[Path]) -> None:
        for path in files:
            self.client.log_artifact(self.id, str(path), "notebook")

    def close(self, ok: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if ok else "FAILED")


@contextlib.contextmanager
def _open_store():
    """Yield MLflow's address and where artifacts go (None: the server's choice); one process at a time makes the file."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield os.environ["MLFLOW_TRACKING_URI"], None
        return
    folder = outputs_dir() / "mlruns"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=300):
        yield f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def _flatten(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, texts and switches as they are, the rest as JSON."""
    plain = (bool, int, float, str)
    return {
        name: value if isinstance(value, plain) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in parameters.items()
    }


OPEN = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


# All trackers of a run (`track`); whatever happens to one of them, the training goes on.


NAME = "tracking.json"  # in run_dir: which run of each tracker it is, and how much that has
Open = Callable[[Path, Mapping[str, Any], Mapping[str, Any]], Any]  # run_dir, parameters, note -> the tracker


class Tracking:
    """A run in its trackers, and a callback of its training.

    Epochs are logged by their number, each once: a run that was killed goes on in the same runs of the trackers with
    the first epoch that they lack. A tracker that fails gets nothing more; one printed line and `describe` say so.
    """

    def __init__(self, run_dir: Path, parameters: Mapping[str, Any], openers: Mapping[str, Open]):
        self.path = run_dir / NAME
        self.notes = _read_notes(self.path)
        self.trackers: dict[str, Any] = {}
        for name, open_tracker in openers.items():
            note = self.notes.get(name, {})
            note = note if "id" in note else {}  # it was never opened
            with self._guard(name):
                self.trackers[name] = open_tracker(run_dir, parameters, note)
        self._save()

    def on_epoch(self, trainer: Any) -> None:
        """Log the epochs of a trainer's history."""
        self.epoch(trainer.history)

    def on_end(self, trainer: Any) -> None:
        """Log what an earlier process of the run could not."""
        self.epoch(trainer.history)

    def epoch(self, history: "pd.DataFrame") -> None:
        """Log the epochs (rows, with their number in `epoch`) that a tracker does not have yet."""
        self._log_rows(history.to_dict("records") if self.trackers else [])

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
            print(f"{name} gets no more, the run goes on: {words}", flush=True)

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
        tracking._log_rows(read_history(run_dir / "history.csv"))
        record = read_record(run_dir) or {}
        if record.get("metrics"):
            tracking._log_result(record["metrics"], record.get("best_epoch", 0), run_dir / "figures")
        tracking.log_files([path for path in files if path.is_file()])
        tracking.close(ok)
    return tracking.describe()


def _read_notes(path: Path) -> dict[str, dict[str, Any]]:
    try:
        notes = read_json(path)
        return {name: note for name, note in notes.items() if isinstance(note, dict)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        print(f"{path}: cannot be read ({error}); the trackers get the run once more, as a new one", flush=True)
        return {}


def _keep_finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers under names that every tracker takes (letters, digits, `_ - . /`, spaces); None, NaN and infinity go."""
    return {
        re.sub(r"[^\w\-./ ]", "_", name): float(value)
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
