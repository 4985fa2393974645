"""The names and options that grids may use, known without importing torch; tests compare them with the real things."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from seglib.errors import InputError, unknown_name
from seglib.parameters import Number, Switch, Whole, check_value

SplitName = Literal["given", "holdout", "kfold", "stratified", "group", "stratified_group"]
PaintOrder = Literal["class_id", "longest", "area"]
Background = Literal["class", "ignore"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Selection = Literal["miou", "miou_image", "loss", "accuracy"]
AugmentationName = Literal[
    "none", "flips", "blur", "elastic", "weather", "color", "brightness", "clahe", "dropout", "distort", "glass", "noise",
    "crop", "trivial", "autoaugment",
]  # fmt: skip
OptimizerName = Literal[  # timm's, less those that need a second backward pass, Apex, bitsandbytes or opt_einsum
    "adabelief", "adadelta", "adafactor", "adafactorbv", "adafactorbvc", "adagrad", "adam", "adamax", "adamc",
    "adamp", "adamuon", "adamw", "adamwlegacy", "adan", "adanw", "adopt", "adoptc", "adoptw", "cadafactor",
    "cadafactorbv", "cadafactorbvc", "cadamc", "cadamp", "cadamw", "cadan", "cadanw", "cadopt", "cadoptc",
    "cadoptw", "clamb", "clambw", "claprop", "clion", "clionc", "cmars", "cnadamc", "cnadamw", "crmsproptf",
    "csgdc", "csgdp", "csgdw", "lamb", "lambc", "lambcd", "lambcw", "lambw", "laprop", "lapropc", "larc", "lars",
    "lion", "lionc", "madgrad", "madgradw", "mars", "momentum", "muon", "nadam", "nadamc", "nadamlegacy",
    "nadamuon", "nadamw", "nesterov", "nesterovw", "nlarc", "nlars", "nmuon", "novograd", "novogradc", "novogradw",
    "radabelief", "radam", "radamlegacy", "radamw", "rmsprop", "rmsproptf", "rmsproptfc", "rmsproptfw", "sgd",
    "sgdc", "sgdp", "sgdw"
]  # fmt: skip
Tracker = Literal["tensorboard", "wandb", "mlflow"]
SchedulerName = Literal[
    "constant", "cosine", "cosine_restarts", "plateau", "step", "multistep", "polynomial", "onecycle"
]

NotNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Factor = Annotated[Number, Field(ge=0, le=100)]
Share = Annotated[Number, Field(ge=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
ClassWeights = Literal["", "balanced"] | dict[str, NotNegative]
Beta = Annotated[Number, Field(gt=0, le=100)]


def _check_range(bounds: list) -> list:
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ValueError(f"must be [lowest, highest], got {bounds}")
    return bounds


def _check_odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"must be odd (a window with a pixel in the middle), got {size}")
    return size


Window = Annotated[Whole, Field(ge=1, le=99), AfterValidator(_check_odd)]
CountRange = Annotated[list[Annotated[Whole, Field(ge=1, le=100)]], AfterValidator(_check_range)]
ScaleRange = Annotated[list[Annotated[Number, Field(gt=0, le=10)]], AfterValidator(_check_range)]

# name -> option -> type. Defaults stand where the thing is built.
LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {"class_weights": ClassWeights, "label_smoothing": Share},
    "label_smoothing": {"smoothing": Share, "class_weights": ClassWeights},
    "focal": {"gamma": Factor, "class_weights": ClassWeights},
    "dice": {},
    "jaccard": {},
    "miou": {},
    "lovasz": {"per_image": Switch},
    "tversky": {"alpha": Factor, "beta": Factor},
    "focal_tversky": {"alpha": Factor, "beta": Factor, "gamma": Annotated[Number, Field(ge=0.01, le=100)]},
    "ms_ssim": {"scales": Annotated[Whole, Field(ge=1, le=5)]},
    "boundary": {"theta0": Annotated[Window, Field(ge=3)], "theta": Window},
    "ohem": {"threshold": Share, "min_kept": Share},
}
LOSS_NUMBER = ("weight", NotNegative)  # what a bare number means: {focal: 0.1} is {focal: {weight: 0.1}}
MIXES: dict[str, dict[str, Any]] = {
    "mixup": {"p": Share, "alpha": Beta},
    "cutmix": {"p": Share, "alpha": Beta},
    "snapmix": {"p": Share, "alpha": Beta},
    "mosaic": {"p": Share},
    "background": {"p": Share, "replace_with": Literal["image", "mean", "black", "noise"]},
    "copy_paste": {"p": Share, "classes": list[str], "count": CountRange, "scale": ScaleRange},
}
MIX_NUMBER = ("p", Share)
AVERAGES: dict[str, dict[str, Any]] = {
    "ema": {"decay": BelowOne},
    "swa": {"lr": Positive, "start": BelowOne},  # start: share of the epochs
    "snapshot": {},
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "constant": {},
    "cosine": {"min_factor": BelowOne},
    "cosine_restarts": {"T_0": NotNegative, "T_mult": Annotated[Whole, Field(ge=1)], "min_factor": BelowOne},
    "plateau": {"patience": Annotated[Whole, Field(ge=0)], "factor": Annotated[Number, Field(gt=0, lt=1)], "min_factor": BelowOne},
    "step": {"step_size": NotNegative, "gamma": Annotated[Number, Field(gt=0, le=1)]},
    "multistep": {
        "milestones": Annotated[list[Positive], Field(min_length=1)], "gamma": Annotated[Number, Field(gt=0, le=1)],
    },
    "polynomial": {"power": Positive},
    "onecycle": {
        "pct_start": Annotated[Number, Field(gt=0, lt=1)],
        "div_factor": Annotated[Number, Field(ge=1)],
        "final_div_factor": Annotated[Number, Field(ge=1)],
    },
}  # fmt: skip


def check_choices(what: str, choices: Mapping[str, Any], known: Mapping[str, Mapping], number: tuple[str, Any]) -> dict:
    """Check a mapping name -> number or options, as `loss` and `mixing` are.

    Parameters
    ----------
    what : the parameter's name, for the words.
    known : name -> option -> type.
    number : the option that a bare number means, and its type: `("weight", NotNegative)`.

    Returns
    -------
    The mapping with whole numbers as floats where floats are meant.

    Raises
    ------
    InputError
        One line for the first mistake.
    """
    checked = {}
    for name, value in choices.items():
        if name not in known:
            raise InputError(unknown_name(what, name, known))
        if isinstance(value, Mapping):
            checked[name] = check_options(f"{what}.{name}", value, known[name] | dict([number]))
        else:
            checked[name] = check_value(f"{what}.{name}", value, number[1], f"{number[0]}, or a mapping of options")
    return checked


def read_choices(
    what: str, choices: Mapping[str, Any], known: Mapping[str, Mapping], number: tuple[str, Any]
) -> dict[str, dict[str, Any]]:
    """Check like `check_choices`, and write bare numbers out: name -> options."""
    checked = check_choices(what, choices, known, number)
    return {name: value if isinstance(value, Mapping) else {number[0]: value} for name, value in checked.items()}


def check_options(where: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Check options by name; see `check_choices`."""
    for option in options:
        if option not in known:
            of_it = f"option of {where}"
            raise InputError(
                unknown_name(of_it, option, known) if known else f"unknown {of_it} {option!r}; it has none"
            )
    return {option: check_value(f"{where}.{option}", value, known[option]) for option, value in options.items()}
