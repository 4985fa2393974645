"""Where a training is, on disk: last.pt holds all that another process needs to go on to the same bits."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seglib.errors import InputError
from seglib.training.averaging import Averages
from seglib.training.checkpoint import load_checkpoint, save_checkpoint
from seglib.training.step import Trainee

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
    """Saves and loads a training: model, optimizer, scheduler, scaler, averages, generators, position.

    Parameters
    ----------
    path : the checkpoint.
    facts : plain values that it carries; a checkpoint with others is of another run.
    minutes : between two checkpoints within an epoch; 0 for none.
    """

    def __init__(self, path: Path, trainee: Trainee, averages: Averages, facts: Mapping[str, Any], minutes: float = 0):
        self.path, self.trainee, self.facts, self.minutes = path, trainee, facts, minutes
        self.saved_at = time.monotonic()
        self.parts = {
            "model": trainee.model, "optimizer": trainee.optimizer, "scheduler": trainee.scheduler,
            "scaler": trainee.scaler, "averages": averages,
        }  # fmt: skip

    def save(self, position: Position) -> None:
        """Write the checkpoint, whole or not at all."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        save_checkpoint(
            self.path,
            {**parts, **vars(position), "split": self.trainee.split, "generators": _read_generators(self.trainee.device), **self.facts},
        )  # fmt: skip

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
        except InputError as error:
            print(f"{error}; set aside in {set_aside(self.path.parent)}, training begins anew")
            return self._begin()
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.trainee.split = saved["split"]
        position = Position(**{name: saved[name] for name in vars(Position())})
        if position.step:
            _write_generators(saved["generators"], self.trainee.device)
        if not position.rows and not position.step:
            return position
        step = f" and step {position.step} of the next" if position.step else ""
        print(f"going on after epoch {len(position.rows)}{step}, where an earlier process stopped")
        return position

    def _begin(self) -> Position:
        """Save the beginning: a training that is stopped and started again in one process begins there too."""
        self.save(Position())
        return Position()

    def _read(self) -> dict[str, Any]:
        """The checkpoint, after every check that does not need it loaded."""
        saved = load_checkpoint(
            self.path, required=(*self.parts, *vars(Position()), "split", "generators", *self.facts)
        )
        different = name_differences(self.facts, saved)
        if different:
            raise InputError(f"{self.path}: is of another run, with other {', '.join(different)}")
        shapes, others = ({name: weight.shape for name, weight in weights.items()}
                          for weights in (self.trainee.model.state_dict(), saved["model"]))  # fmt: skip
        if shapes != others:
            wrong = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
            raise InputError(f"{self.path}: is of another model, with other {', '.join(wrong[:3])}")
        return saved


def name_differences(facts: Mapping[str, Any], saved: Mapping[str, Any], besides: tuple[str, ...] = ()) -> list[str]:
    """Names of the facts, or of what is in them, that differ."""
    names = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and isinstance(saved[name], Mapping):
            names += [each for each in value if each not in besides and saved[name].get(each) != value[each]]
        elif saved[name] != value:
            names.append(name)
    return names


def set_aside(folder: Path) -> Path:
    """Move what a training has written into a new folder beside it, which is returned: nothing is lost."""
    number = 1
    while (aside := folder / f"set_aside.{number}").exists():
        number += 1
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
