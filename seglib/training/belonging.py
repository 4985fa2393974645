"""What a trainer's objects are of, and whether they belong together: what does not is refused with the cell to run again."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from seglib.data.dataset import choose_batch_size
from seglib.data.layouts import fingerprint_sets
from seglib.errors import InputError
from seglib.parts import hash_parts
from seglib.runs import record
from seglib.training.checkpoint import hash_weights
from seglib.training.device import last_seed
from seglib.training.mixing import build_batch_mixing

if TYPE_CHECKING:
    from seglib.training.trainer import Trainer

# Parameters that say where things are, not what they are: the content of data, weights and parts is hashed.
ELSEWHERE = {*record.WITHOUT_EFFECT, "data_dir", "encoder_weights", "init_from", "extra_data", "parts"}


def describe_identity(trainer: "Trainer") -> dict[str, Any]:
    """What a checkpoint of this run says, and what it must say to be gone on from."""
    built = getattr(trainer.model, "built_from", None)
    identity = built or {"architecture": type(trainer.model).__name__, "encoder": "", "made_by_hand": True}
    size, parts = trainer.train_loader.dataset.subset.image_size, trainer.settings["parts"]
    identity = identity | {"num_classes": len(trainer.class_names), "image_size": size}
    identity["class_names"] = trainer.class_names
    identity["params"] = {name: value for name, value in trainer.values.items() if name not in ELSEWHERE}
    identity |= {"data_hash": trainer.data_hash, "initial_weights": hash_weights(trainer.model.state_dict())}
    return identity | ({"parts": hash_parts(parts)} if parts else {})


def require_belonging(trainer: "Trainer") -> None:
    """Refuse objects that do not belong together when the trainer is made of them."""
    if getattr(trainer.model, "is_trained", False):
        raise InputError("trainer: the model is trained already; run the cell that builds it and those after it again")
    weights = {id(weight) for weight in trainer.model.parameters()}
    if any(id(weight) not in weights for group in trainer.optimizer.param_groups for weight in group["params"]):
        raise InputError("trainer: the optimizer is of another model; run the optimizer's cell again")
    _require_schedule(trainer)
    if trainer.averages.model is not trainer.model:
        raise InputError("trainer: the averages are of another model; run the cell that builds them again")
    require_unchanged(trainer)
    built = trainer.train_loader.dataset.subset.built_from
    if built and trainer.values.get("extra_data") and "extra_data" not in built:
        raise InputError(
            "trainer: the training images are without extra_data; run the cell that joins them and those after it again"
        )
    _require_data_hash(trainer)
    _require_counts(trainer)
    _require_mix(trainer)


def require_unchanged(trainer: "Trainer") -> None:
    """Refuse parameters that are no longer those that the run was opened and everything was built with."""
    record.require_unchanged(trainer.run_dir, "trainer")
    values = trainer.values
    for name, value in dict(trainer.parameters).items():
        if value != values[name]:
            raise InputError(
                f"trainer: {name} was {values[name]!r} when the trainer was made and is {value!r} now; run the"
                " cell that opens the run and those after it again"
            )
    if last_seed() not in (None, values.get("seed", last_seed())):
        raise InputError(
            f"trainer: the model was built with seed {last_seed()}, the parameter is {values['seed']};"
            " run the model's cell and those after it again"
        )
    deterministic = torch.are_deterministic_algorithms_enabled()
    if values.get("deterministic", deterministic) != deterministic:
        raise InputError(
            f"trainer: deterministic is {not deterministic}, the model was built with {deterministic}; run the model's"
            " cell and those after it again"
        )
    require_built_from(trainer, _list_built(trainer))


def require_built_from(trainer: "Trainer", objects: Iterable[object]) -> None:
    """Refuse objects that say that they were built with other values than the parameters have."""
    values = dict(trainer.values)
    if "warmup_epochs" in values:
        values["warmup_epochs"] = min(values["warmup_epochs"], trainer.num_epochs / 2)
    if values.get("init_from"):
        values["encoder_weights"] = ""
    if "seed" in values:
        values.setdefault("split_seed", values["seed"])
    for each in objects:
        built = getattr(each, "built_from", {}) | getattr(each, "begun_from", {})
        for name, value in built.items():
            if name in values and values[name] != value:
                raise InputError(
                    f"trainer: {type(each).__name__} was built with {name} {value!r}, the parameter is"
                    f" {values[name]!r}; run its cell and those after it again"
                )


def find_made_by_hand(trainer: "Trainer") -> list[str]:
    """Parameters that name what was not used, because the notebook made its own."""
    objects = [*_list_built(trainer), *find_referred(trainer.compute_loss)]
    used = {name for each in objects for name in getattr(each, "built_from", {})}
    names = ("architecture", "loss", "optimizer", "scheduler")
    return [name for name in names if name in trainer.values and name not in used]


def find_referred(function: Callable | None) -> list[object]:
    """The objects that a function of the notebook names: its loss, its model."""
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return cells + [names[name] for name in (code.co_names if code else ()) if name in names]


def _list_built(trainer: "Trainer") -> list[object]:
    loaders = [loader for loader in (trainer.train_loader, trainer.val_loader) if loader is not None]
    subsets = [loader.dataset.subset for loader in loaders]
    return [
        trainer.model, trainer.optimizer, trainer.scheduler, *loaders, trainer.mix, trainer.averages, *subsets,
    ]  # fmt: skip


def _require_schedule(trainer: "Trainer") -> None:
    """The schedule is fresh, of this optimizer and as long as the training."""
    schedule, steps = trainer.scheduler, (trainer.num_epochs, len(trainer.train_loader))
    if schedule.optimizer is not trainer.optimizer:
        raise InputError("trainer: the schedule is of another optimizer; run the schedule's cell again")
    if schedule.last_epoch > 0:
        raise InputError("trainer: the schedule was stepped already; run the cells of optimizer and schedule again")
    got = getattr(schedule, "length", steps)
    if got != steps:
        raise InputError(
            f"trainer: the schedule is for {got[0]} epochs of {got[1]} steps, the training has {steps[0]} of {steps[1]};"
            " run the schedule's cell again"
        )


def _require_data_hash(trainer: "Trainer") -> None:
    """The hash that the record will have is of the data that the images were opened from, as it is now."""
    subset = trainer.train_loader.dataset.subset
    if not trainer.data_hash or "train_json" not in subset.built_from:  # opened by code of the notebook's own
        return
    names = [subset.built_from[name] for name in ("train_json", "val_json") if name in subset.built_from]
    if trainer.data_hash != fingerprint_sets(subset.data.data_dir, names, trainer.values.get("extra_data", [])):
        raise InputError(
            "trainer: data_hash is not that of the data which the images were opened from; run the cell that opens the data"
            " and those after it again"
        )


def _require_counts(trainer: "Trainer") -> None:
    """Epochs and batches are as many as the parameters say."""
    values, debug = trainer.values, trainer.values.get("debug", False)
    epochs = 2 if debug else values.get("epochs", trainer.num_epochs)
    found, size = [("epochs", trainer.num_epochs, epochs)], trainer.train_loader.batch_sampler.batch_size
    if "batch_size" in values:
        count = choose_batch_size(values["batch_size"], len(trainer.train_loader.dataset.subset), debug)
        found.append(("images per step", size, count * trainer.settings["accumulate"]))
    for what, got, required in found:
        if got != required:
            raise InputError(
                f"trainer: required {required} {what} by the parameters, got {got}; run the cell of the loaders and"
                " those after it again"
            )


def _require_mix(trainer: "Trainer") -> None:
    """The mix of batches is that of the parameters, and of this model."""
    mixing, seed, mix = trainer.values.get("mixing", {}), trainer.settings["seed"], trainer.mix
    wanted = build_batch_mixing(mixing, trainer.model, seed=seed, precision=trainer.precision) is not None
    if (wanted and mix is None) or getattr(mix, "model", trainer.model) is not trainer.model:
        got = "none of batches" if mix is None else "one of another model"
        raise InputError(
            f"trainer: mixing is {mixing}, got {got}; run the cell that builds it and those after it again"
        )
