"""Weights and training state on disk: written whole, resumed to the same bits, trained on, transferred."""

import copy
import errno
import hashlib
import io
import math
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seglib import ranks
from seglib.errors import InputError
from seglib.files import check_zip, expand, find_free_folder, replacing
from seglib.models import build_model
from seglib.runs.record import find_split_seed, read_record
from seglib.training.averaging import Averages
from seglib.training.optim import Schedule
from seglib.training.step import GradientStep

# Weights and training state on disk: written whole, loaded without pickle's code, hashed.


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint (tensors, numbers, texts, lists, dicts), whole or not at all; of several ranks the first does."""
    if not ranks.is_first():
        return
    with replacing(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:
            if "unexpected pos" in str(error) or "file write failed" in str(error):  # torch's words for a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise


_NESTED = {"model", "params", "optimizer", "scheduler", "scaler", "averages"}  # entries that are dicts


def load_checkpoint(path: str | Path, required: tuple[str, ...]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, checked: torch looks at none of the checksums that it writes.

    Raises
    ------
    InputError
        No such file, one that is damaged or foreign, or one without the required entries.
    """
    try:
        check_zip(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such checkpoint") from error
    except Exception as error:  # a damaged file raises nearly anything
        cause = str(error).strip().split("\n")[0][:160]
        raise InputError(
            f"{path}: required a checkpoint, got {type(error).__name__}: {cause}; train it again"
        ) from error
    missing = [name for name in required if not isinstance(state, dict) or name not in state]
    missing += [name for name in _NESTED & {*required} - {*missing} if not isinstance(state[name], dict)]
    if missing:
        raise InputError(f"{path}: required a checkpoint with {', '.join(required)}; it has no {', '.join(missing)}")
    return state


def hash_weights(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 of all weights, bit for bit, with their names, shapes and dtypes; 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        weight = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Where a training is, on disk: last.pt holds all that another process needs to go on to the same bits.


OF_A_RUN = ("last.pt", "best.pt", "confusion.npz", "history.csv")  # what training writes


@dataclass
class Position:
    """How far a training is.

    Attributes
    ----------
    rows : one a finished epoch, as in history.csv.
    best : score of best.pt, higher is better; None while there is none.
    step : steps done in the epoch that follows; 0 at its beginning.
    lr : learning rate at the beginning of that epoch.
    loss : what `EpochLoss` has added up in these, None at its beginning.
    seconds : that earlier processes spent on these.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    step: int = 0
    lr: float = 0.0
    loss: Tensor | None = None
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """The epoch that follows the finished ones, from 1."""
        return len(self.rows) + 1


class TrainingState:
    """Saves and loads a training: model, optimizer, scheduler, scaler, averages, callbacks, generators, position.

    Parameters
    ----------
    path : the checkpoint.
    identity : plain values that it carries; a checkpoint with others is of another run.
    callbacks : those with state_dict() and load_state_dict() are saved too.
    minutes : between two checkpoints within an epoch; 0 for none.
    """

    def __init__(
        self,
        path: Path,
        step: GradientStep,
        averages: Averages,
        identity: Mapping[str, Any],
        callbacks: Sequence[object] = (),
        minutes: float = 0,
    ):
        self.path, self.step, self.identity, self.minutes = path, step, identity, minutes
        self.callbacks = [each for each in callbacks if hasattr(each, "state_dict")]
        self.saved_at = time.monotonic()
        self.parts = {name: getattr(step, name) for name in ("model", "optimizer", "scheduler", "scaler")}
        self.parts["averages"] = averages

    def save(self, position: Position) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"split": self.step.split, "generators": _read_generators(self.step.device)}
        state["callbacks"] = [_read_state(each) for each in self.callbacks]
        save_checkpoint(self.path, {**state, **vars(position), **self.identity})
        self.saved_at = time.monotonic()

    def save_now_and_then(self, position: Position) -> None:
        """Write it if the last time is long ago; not of a training whose loss is lost, which ends with its epoch."""
        due = self.minutes and time.monotonic() - self.saved_at > 60 * self.minutes
        if due and bool(position.loss.isfinite()[0]):
            self.save(position)

    def resume(self) -> Position:
        """Load where an earlier process stopped; the beginning if there is none.

        A checkpoint that is damaged, or of another run, is named and set aside with what lies beside it.
        """
        if not self.path.exists():
            return self._begin()
        try:
            saved = self._read()
            position = self._load(saved)
        except InputError as error:
            print(f"{error}; set aside in {set_aside(self.path.parent)}, training begins again")
            return self._begin()
        if not position.rows and not position.step:
            return position
        step = f" and step {position.step} of the next" if position.step else ""
        print(f"going on after epoch {len(position.rows)}{step}, where an earlier process stopped")
        return position

    def _load(self, saved: Mapping[str, Any]) -> Position:
        """Go on from a checkpoint; one that cannot be loaded changes nothing."""
        before = copy.deepcopy({name: part.state_dict() for name, part in self.parts.items()})
        try:
            position = Position(**{name: saved[name] for name in vars(Position())})
            _require_types(position, saved["split"])
            callbacks = list(saved.get("callbacks", ()))  # checkpoints of earlier versions have none
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
            self.step.split = saved["split"]
            if position.step:
                _write_generators(saved["generators"], self.step.device)
        except Exception as error:  # what is in it may be anything
            for name, part in self.parts.items():
                part.load_state_dict(before[name])
            raise InputError(f"{self.path}: cannot be gone on from ({type(error).__name__}: {error})") from error
        for callback, state in zip(self.callbacks, callbacks, strict=False):
            callback.load_state_dict(state)  # an error of the user's own code fails the run, and sets nothing aside
        return position

    def _begin(self) -> Position:
        """Save the beginning: a training that is stopped and started again in one process begins there too."""
        self.save(Position())
        return Position()

    def _read(self) -> dict[str, Any]:
        """The checkpoint, after every check that does not need it loaded."""
        saved = load_checkpoint(
            self.path, required=(*self.parts, *vars(Position()), "split", "generators", *self.identity)
        )
        different = name_differences(self.identity, saved)
        if "callbacks" in saved and len(saved["callbacks"]) != len(self.callbacks):
            different.append("callbacks")
        if different:
            raise InputError(f"{self.path}: is of another run, with other {', '.join(different)}")
        shapes, others = (
            {name: weight.shape for name, weight in weights.items()}
            for weights in (self.step.model.state_dict(), saved["model"])
        )
        wrong = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
        if wrong:
            raise InputError(f"{self.path}: is of another model, with other {', '.join(wrong[:3])}")
        for name in ("best.pt", "confusion.npz") if saved["best"] is not None else ():
            try:
                check_zip(self.path.with_name(name))  # the last epoch may be done, and nothing would write it again
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(f"{self.path.with_name(name)}: is damaged or gone ({error})") from error
        return saved


def _require_types(position: Position, split: object) -> None:
    numbers = (position.step, position.lr, position.seconds, position.best or 0, split)
    sound = isinstance(position.rows, list) and all(isinstance(row, dict) and "epoch" in row for row in position.rows)
    sound = sound and all(isinstance(number, int | float) for number in numbers)
    if not sound or not isinstance(position.loss, Tensor | None):
        raise TypeError("rows, best, step, lr, loss, seconds or split are of other types")


def _read_state(callback: object) -> dict[str, Any]:
    """A callback's state, if it can be read again without running code."""
    state, buffer = callback.state_dict(), io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise InputError(
            f"callback {type(callback).__name__}: required a state_dict() of tensors, numbers, texts, lists and dicts, got"
            f" {str(error).strip().splitlines()[0][:120]}"
        ) from error
    return state


def name_differences(identity: Mapping[str, Any], saved: Mapping[str, Any], besides: Sequence[str] = ()) -> list[str]:
    """Names of the values, or of what is in them, that differ; a parameter that is off is as good as none."""
    names = []
    for name, value in identity.items():
        if isinstance(value, Mapping) and isinstance(saved[name], Mapping):
            own, others = (_settle_split(values) for values in (value, saved[name]))
            names += [
                each
                for each, mine in own.items()
                if each not in besides and (others[each] != mine if each in others else mine)
            ]
        elif saved[name] != value:
            names.append(name)
    return names


def _settle_split(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters with what the split was drawn from, in checkpoints of before `split_seed` too."""
    return {**params, "split_seed": find_split_seed(params)} if "split" in params else params


def set_aside(folder: Path) -> Path:
    """Move what a training has written into a new folder beside it, which is returned: nothing is lost."""
    aside = find_free_folder(folder / "set_aside", lambda path: not path.suffix or path.exists(), first=1)
    aside.mkdir()
    for name in OF_A_RUN:
        if (folder / name).exists():
            shutil.move(folder / name, aside / name)
    return aside


def _read_generators(device: torch.device) -> list[Tensor]:
    """The states that a step draws from: dropout's on the host and on the device."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _write_generators(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


# Training a finished run on: more epochs than it had, where its learning rates would have been the same.


_WAY_OUT = (
    "take a schedule that does not depend on epochs (constant, plateau, or step, multistep and cosine_restarts with lengths"
    " of their own), or start a new run from its weights with init_from"
)


def continue_run(
    source: str, run_dir: Path, identity: Mapping[str, Any], schedule: Schedule, steps_per_epoch: int
) -> None:
    """Make the state of a finished run this run's, so that training goes on after its last epoch.

    Nothing happens where this run has a checkpoint of its own. The result is that of a run with all these epochs from
    the beginning, to the bit.

    Parameters
    ----------
    source : folder of the run, or of the grid that has it; "" for none.
    identity : what this run's checkpoints carry; all but the epochs must be the source's.

    Raises
    ------
    InputError
        No such run, or this run's schedule would have had other learning rates in the epochs that are done.
    """
    if not source or (run_dir / "last.pt").exists():
        return
    folder = _find_run(expand(source), identity)
    saved = load_checkpoint(folder / "last.pt", required=("model", "rows", *identity))
    different = name_differences(identity, saved, besides=("epochs",))
    if different:
        raise InputError(
            f"continue_from {folder}: required a run that differs in epochs alone, got other {', '.join(different)}"
        )
    _require_same_rates(folder, saved, identity["params"], schedule, steps_per_epoch)
    best = load_checkpoint(folder / "best.pt", required=("model", *identity))
    save_checkpoint(run_dir / "best.pt", best | identity)
    with replacing(run_dir / "confusion.npz") as temporary:
        shutil.copyfile(folder / "confusion.npz", temporary)
    save_checkpoint(run_dir / "last.pt", saved | identity)  # the last: what is not whole is not gone on from
    print(f"training {folder} on, which has {len(saved['rows'])} epochs")


def _find_run(source: Path, identity: Mapping[str, Any]) -> Path:
    folders = [source] if (source / "last.pt").exists() else sorted(path.parent for path in source.glob("*/last.pt"))
    found, reasons = {}, []
    for folder in folders:
        record = read_record(folder) or {}
        params = record.get("params", {})
        different = name_differences({"params": identity["params"]}, {"params": params}, besides=("epochs",))
        if record.get("status") != "ok":
            reasons.append("it is not finished")
        elif different:
            reasons.append(f"it has other {', '.join(different[:5])}")
        elif params["epochs"] >= identity["params"]["epochs"]:
            reasons.append(f"it has {params['epochs']} epochs, and {identity['params']['epochs']} are asked for")
        else:
            found[folder] = params["epochs"]
    if not found:
        got = reasons[0] if len(reasons) == 1 else f"none of the {len(reasons)} runs there"
        raise InputError(
            f"continue_from {source}: required a finished run with fewer epochs and the same other parameters; {got}"
        )
    return max(found, key=found.get)


def _require_same_rates(
    folder: Path, saved: Mapping, params: Mapping, schedule: Schedule, steps_per_epoch: int
) -> None:
    for name in ("swa", "snapshot"):
        if name in params.get("averaging", {}):
            raise InputError(
                f"continue_from {folder}: {name} was scored at the end of {saved['params']['epochs']} epochs; {_WAY_OUT}"
            )
    for row, (before, now) in enumerate(_compare_rates(saved["rows"], schedule, steps_per_epoch), 1):
        if not math.isclose(before, now, rel_tol=1e-9):
            raise InputError(
                f"continue_from {folder}: {params['scheduler']} over {params['epochs']} epochs has a learning rate of {now:.3g}"
                f" in epoch {row}, where the run with {saved['params']['epochs']} had {before:.3g}: it would jump; {_WAY_OUT}"
            )


def _compare_rates(rows: Sequence[Mapping], schedule: Schedule, steps_per_epoch: int) -> list[tuple[float, float]]:
    """(rate that was, rate that would be) at the beginning of each epoch; after the first, `plateau` follows the scores."""
    rows = rows[:1] if schedule.reduce is not None else rows
    factor, base = schedule.lr_lambdas[0], schedule.base_lrs[0]
    return [(row["lr"], base * factor((row["epoch"] - 1) * steps_per_epoch)) for row in rows]


# Start a model from the best weights of a finished run.


def load_from_run(model: nn.Module, run_dir: str | Path, class_names: Sequence[str]) -> None:
    """Load best.pt of a run; where its classes are others, all but the layers that tell the classes apart.

    Parameters
    ----------
    model : of `build_model`.
    class_names : of the model.

    Raises
    ------
    InputError
        No such run, or its model is another one.
    """
    path, built = expand(run_dir) / "best.pt", model.built_from
    best = load_checkpoint(path, required=("model", "architecture", "encoder", "class_names"))
    different = [
        f"{name} {built[name]}, got {best[name]}" for name in ("architecture", "encoder") if best[name] != built[name]
    ]
    if different:
        raise InputError(f"init_from {path}: required {' and '.join(different)}; take a run of the same model")
    weights, own = best["model"], model.state_dict()
    if best["class_names"] != list(class_names):
        heads = _find_heads(own, built | {"num_classes": len(class_names)})
        weights = {name: own[name] if name in heads else weight for name, weight in weights.items()}
        print(
            f"init_from: {len(heads)} tensors begin again, because the classes are others: {', '.join(sorted(heads))}"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(
            f"init_from {path}: required weights of this model, got {cause}; is image_size the same?"
        ) from error
    model.begun_from |= {"init_from": str(run_dir)}


def _find_heads(own: Mapping, built: Mapping[str, Any]) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    other = build_model(**{**built, "num_classes": built["num_classes"] + 1}).state_dict()
    return {name for name, weight in own.items() if weight.shape != other[name].shape}
