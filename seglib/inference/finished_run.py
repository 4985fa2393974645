"""Open a finished training run again: its validation images, its best model, and what it was scored with."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from seglib.data.dataset import Subset, open_data
from seglib.data.loader import choose_batch_size
from seglib.errors import InputError
from seglib.evaluation.metrics import load_confusion
from seglib.files import outputs_dir
from seglib.models import build_model
from seglib.models.architectures import ARCHITECTURES
from seglib.parts import find_kept_parts, find_parts, load_parts, read_architecture
from seglib.runs.record import read_record
from seglib.training.checkpoint import hash_weights, load_checkpoint

FACTS = ("model", "epoch", "architecture", "encoder", "num_classes", "class_names", "image_size")
FIELDS = ("params", "weights_sha256", "precision", "threads", "train_images")  # of record.json


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run whose record says ok.

    Attributes
    ----------
    folder : Path
    record : dict, the content of record.json
    val_images : Subset, the images that the run was scored on
    model : the best epoch's model, on the CPU
    class_names : list of str
    confusion : (images, classes, classes) int64, as the run counted it
    """

    folder: Path
    record: Mapping[str, Any]
    val_images: Subset
    model: nn.Module
    class_names: list[str]
    confusion: np.ndarray

    @property
    def image_size(self) -> int:
        """Side of images and masks [px]."""
        return int(self.record["params"]["image_size"])

    @property
    def batch_size(self) -> int:
        """Images that were predicted at a time: another number may change the last bits of a logit."""
        params = self.record["params"]
        return choose_batch_size(params["batch_size"], self.record["train_images"], params["debug"])

    def pair_masks(self, preds: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(truth, pred) of each image, (S, S) uint8 both, one at a time."""
        for position, pred in enumerate(preds):
            yield self.val_images.read(position)[1], np.asarray(pred)


def find_newest_run(folder: Path | None = None) -> Path:
    """The training run that ended last under `folder` (default: outputs/).

    Raises
    ------
    InputError
        There is none.
    """
    folder = folder or outputs_dir()
    finished = {}
    for weights in folder.glob("*/*/best.pt"):
        record = read_record(weights.parent) or {}
        if record.get("status") == "ok":
            finished[weights.parent] = record.get("finished_at", "")
    if not finished:
        raise InputError(
            f"{folder}: required a finished training run, got none; train one, or set run_dir to its folder"
        )
    return max(finished, key=finished.get)


def load_finished_run(run_dir: str | Path, data_dir: str = "") -> FinishedRun:
    """Open a run from its record.json, best.pt and confusion.npz.

    Parameters
    ----------
    data_dir : where the run's data is now; "" where it was.

    Raises
    ------
    InputError
        The run is not finished, files are missing, or data or weights are not those of the run.
    """
    folder = Path(run_dir).expanduser().resolve()
    record = _read_finished(folder)
    best = load_checkpoint(folder / "best.pt", required=FACTS)
    if hash_weights(best["model"]) != record.get("weights_sha256"):
        raise InputError(
            f"{folder / 'best.pt'}: required the weights that record.json names, got others; train it again"
        )
    params = record["params"] | ({"data_dir": data_dir} if data_dir else {})
    _, val_images = open_data(**_take_arguments(open_data, params))
    if params["debug"]:
        val_images = val_images.take_debug_share()
    confusion, image_ids, class_names = load_confusion(folder / "confusion.npz")
    _require_same_data(folder, val_images, image_ids, class_names)
    return FinishedRun(folder, record, val_images, _rebuild_model(folder / "best.pt", best), class_names, confusion)


def choose_weights(run: FinishedRun, *, may_be_final: bool) -> tuple[str, str, Callable[[], nn.Module]]:
    """The weights to predict with: final.pt, fitted to all images at the end, where it may be and is; else best.pt.

    Returns
    -------
    File name, SHA-256 of the weights, and a function that gives the model, on the CPU where it is built anew.

    Raises
    ------
    InputError
        final.pt is damaged, or of other classes.
    """
    path = run.folder / "final.pt"
    if not (may_be_final and path.is_file()):
        return "best.pt", run.record["weights_sha256"], lambda: run.model
    final = load_checkpoint(path, required=FACTS)
    if list(final["class_names"]) != run.class_names:
        got = ", ".join(final["class_names"])
        raise InputError(
            f"{path}: required the run's classes ({', '.join(run.class_names)}), got {got}; train it again"
        )
    return path.name, hash_weights(final["model"]), lambda: _rebuild_model(path, final)


def require_same_images(run: FinishedRun, other: FinishedRun) -> None:
    """Refuse two runs whose predictions cannot be laid upon each other.

    Raises
    ------
    InputError
        Other validation images, classes, or masks (size, paint order, background).
    """
    names = ("image_size", "paint_order", "background")
    facts, others = (
        {"classes": each.class_names, "validation images": each.val_images.image_ids.tolist()}
        | {name: each.record["params"][name] for name in names}
        for each in (run, other)
    )
    differing = [name for name in facts if facts[name] != others[name]]
    if differing:
        raise InputError(
            f"compare_with {other.folder}: required the {' and '.join(differing)} of {run.folder}, got others;"
            " compare runs that were scored on the same masks"
        )


def prepare_output_dir(output_dir: str, run_dir: Path, name: str) -> Path:
    """Make the folder that an analysis writes to; "" is `run_dir/name`.

    Raises
    ------
    InputError
        It is a training run's own folder, whose record would be written over.
    """
    folder = Path(output_dir).expanduser().resolve() if output_dir else Path(run_dir) / name
    if (folder / "best.pt").exists():
        raise InputError(
            f'output_dir {folder} is the folder of a training run; required another folder, or "" for one in it'
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_free_dir(folder: Path) -> Path:
    """`folder`, or `folder`.2, ...: the first that holds no finished result."""
    names = itertools.chain([folder.name], (f"{folder.name}.{number}" for number in itertools.count(2)))
    return next(free for name in names if (read_record(free := folder.with_name(name)) or {}).get("status") != "ok")


def _read_finished(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    if record is None:
        raise InputError(f"run_dir {folder}: required a run's folder, got one without record.json; check run_dir")
    if record.get("status") != "ok":
        got = f"{record.get('status')} ({record.get('error') or 'still going on'})"
        raise InputError(f"run_dir {folder}: required a run that is ok, got {got}; run it again")
    missing = [name for name in ("best.pt", "confusion.npz") if not (folder / name).is_file()]
    missing += [f"`{name}` in record.json" for name in FIELDS if name not in record]
    if missing:
        raise InputError(f"run_dir {folder}: required a training run, got a folder without {' and '.join(missing)}")
    return record


def _rebuild_model(path: Path, checkpoint: Mapping[str, Any]) -> nn.Module:
    load_parts(find_kept_parts(path.parent))
    name, _ = read_architecture(checkpoint["architecture"])
    if name not in ARCHITECTURES and name not in find_parts("model"):
        raise InputError(
            f"{path}: required a file with @register('model') {name} in {path.parent / 'parts'}, got none; put it there"
        )
    model = build_model(**_take_arguments(build_model, checkpoint))
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        got = str(error).partition("\n")[2].strip()[:160]
        raise InputError(
            f"{path}: required weights of {name} as it is built now, got others ({got}); a model that was made in a cell"
            " needs a file of `parts` that registers it, so that it can be built again"
        ) from error
    return model.eval()


def _take_arguments(function: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of the values a function takes: records grow with the notebook, and name things as functions do."""
    return {name: values[name] for name in inspect.signature(function).parameters if name in values}


def _require_same_data(folder: Path, val_images: Subset, image_ids: np.ndarray, class_names: list[str]) -> None:
    if list(val_images.data.class_names) != class_names:
        raise InputError(
            f"{folder}: required data with the run's classes ({', '.join(class_names)}), got"
            f" {', '.join(val_images.data.class_names)}; set data_dir to the run's data"
        )
    if not np.array_equal(val_images.image_ids, image_ids):
        raise InputError(
            f"{folder}: required the {len(image_ids)} validation images that the run was scored on, got {len(val_images)}"
            " or others; set data_dir to the run's data"
        )
