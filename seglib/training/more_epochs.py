"""Training a finished run on: more epochs than it had, where its learning rates would have been the same."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seglib.errors import InputError
from seglib.files import replacing
from seglib.runs.record import read_record
from seglib.training.checkpoint import load_checkpoint, save_checkpoint
from seglib.training.schedule import Schedule
from seglib.training.state import name_differences

_WAY_OUT = (
    "take a schedule that does not depend on epochs (constant, plateau, or step, multistep and cosine_restarts with lengths"
    " of their own), or start a new run from its weights with init_from"
)


def adopt_shorter_run(
    source: str, run_dir: Path, facts: Mapping[str, Any], schedule: Schedule, steps_per_epoch: int
) -> None:
    """Make the state of a finished run this run's, so that training goes on after its last epoch.

    Nothing happens where this run has a checkpoint of its own. The result is that of a run with all these epochs from
    the beginning, to the bit.

    Parameters
    ----------
    source : folder of the run, or of the grid that has it; "" for none.
    facts : what this run's checkpoints carry; all but the epochs must be the source's.

    Raises
    ------
    InputError
        No such run, or this run's schedule would have had other learning rates in the epochs that are done.
    """
    if not source or (run_dir / "last.pt").exists():
        return
    folder = _find_run(Path(source).expanduser(), facts)
    saved = load_checkpoint(folder / "last.pt", required=("model", "rows", *facts))
    different = name_differences(facts, saved, besides=("epochs",))
    if different:
        raise InputError(
            f"continue_from {folder}: required a run that differs in epochs alone, got other {', '.join(different)}"
        )
    _require_same_rates(folder, saved, facts["params"], schedule, steps_per_epoch)
    best = load_checkpoint(folder / "best.pt", required=("model", *facts))
    save_checkpoint(run_dir / "best.pt", best | facts)
    with replacing(run_dir / "confusion.npz") as temporary:
        shutil.copyfile(folder / "confusion.npz", temporary)
    save_checkpoint(run_dir / "last.pt", saved | facts)  # the last: what is not whole is not gone on from
    print(f"training {folder} on, which has {len(saved['rows'])} epochs")


def _find_run(source: Path, facts: Mapping[str, Any]) -> Path:
    folders = [source] if (source / "last.pt").exists() else sorted(path.parent for path in source.glob("*/last.pt"))
    found, reasons = {}, []
    for folder in folders:
        record = read_record(folder) or {}
        params = record.get("params", {})
        different = name_differences({"params": facts["params"]}, {"params": params}, besides=("epochs",))
        if record.get("status") != "ok":
            reasons.append("it is not finished")
        elif different:
            reasons.append(f"it has other {', '.join(different[:5])}")
        elif params["epochs"] >= facts["params"]["epochs"]:
            reasons.append(f"it has {params['epochs']} epochs, and {facts['params']['epochs']} are asked for")
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
