"""What TensorBoard, Weights & Biases and MLflow are told of a run, each through its own library, imported when asked for."""

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from seglib.files import outputs_dir


class Tracker(Protocol):
    """One run in one tracker. Names of values are cleaned, values are finite, see tracking.py."""

    id: str | None  # how to find the same run again; None where run_dir says it
    logged: int  # the last epoch that it has
    has_result: bool

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """The values of one epoch, from 1, in order."""

    def log_result(self, epoch: int, values: Mapping[str, float], figures: Sequence[Path]) -> None:
        """Scores of the best epoch and PNG files; `epoch` is the last one."""

    def log_files(self, files: Sequence[Path]) -> None:
        """Files as artifacts."""

    def close(self, ok: bool) -> None:
        """Wait until all is sent; the run is at its end, a good one or not."""


class TensorBoard:
    """Event files in run_dir/tensorboard. It has no place for other files: the notebook lies beside its folder."""

    id = None

    def __init__(self, run_dir: Path, parameters: Mapping[str, Any], note: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.parameters = _flatten(parameters)
        self.logged, self.has_result = note.get("logged", 0), note.get("result", False)
        # Told to forget what was written after the last epoch that is known to be whole.
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


def clean_name(name: str) -> str:
    """A name that all three accept: letters of any language, digits, `_ - . /` and spaces."""
    return re.sub(r"[^\w\-./ ]", "_", name)


OPEN = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
