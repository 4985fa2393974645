"""What a notebook's parameters may be: names, types, ranges, help. Their defaults live in the notebook alone."""

import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from seglib.errors import InputErrors, unknown_name

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]


class PathParameter(NamedTuple):
    """Marks a parameter that is a path unless it has one of these values."""

    unless: tuple[str, ...]


# The vocabulary that a grid can be checked against without importing torch; tests compare it with the real thing.
LossName = Literal["cross_entropy", "focal", "dice", "jaccard"]
OptimizerName = Literal["adam", "adamw", "adamp", "sgd", "radam", "nadam", "lion", "madgrad", "lamb"]
SchedulerName = Literal["constant", "cosine", "polynomial"]
AugmentationName = Literal["none", "flips"]
SplitName = Literal["given", "holdout", "kfold", "stratified", "group", "stratified_group"]
PaintOrder = Literal["class_id", "longest", "area"]
Background = Literal["class", "ignore"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Selection = Literal["miou", "miou_image", "loss", "accuracy"]


class NotebookConfig(BaseModel):
    """Base of all: strict types, unknown names refused, immutable, errors in one line each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Check the parameters of a notebook: `config = TrainConfig.from_notebook(globals())`.

        Raises
        ------
        InputErrors
            One line for each parameter that is missing or wrong.
        """
        values = {name: namespace[name] for name in cls.model_fields if name in namespace}
        problems = cls.find_problems(values)
        if problems:
            raise InputErrors([f"parameters: {problem}" for problem in problems.values()])
        return cls(**values)

    @classmethod
    def find_problems(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Word what is wrong with the values: parameter name -> one line; empty when all is well."""
        problems = {}
        try:
            cls(**values)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                if item["loc"]:
                    problems.setdefault(str(item["loc"][0]), _word(cls, str(item["loc"][0]), item))
        sound = {name: value for name, value in values.items() if name not in problems}
        return problems | cls.find_disagreements(sound)

    @classmethod
    def find_disagreements(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Word which values, each fine alone, do not go together; values that are wrong alone are not passed in."""
        return {}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = self.find_disagreements(dict(self))
        if problems:
            raise ValueError("; ".join(problems.values()))
        return self

    @classmethod
    def resolve_paths(cls, values: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
        """Make the path parameters absolute, relative ones being seen from `folder`."""
        resolved = dict(values)
        for name, unless in cls.path_parameters():
            value = resolved.get(name)
            if isinstance(value, str) and value not in unless:
                resolved[name] = os.path.abspath(os.path.join(folder, os.path.expanduser(value)))
        return resolved

    @classmethod
    def path_parameters(cls) -> list[tuple[str, tuple[str, ...]]]:
        """The parameters that are paths: name, and the values that are not."""
        fields = cls.model_fields.items()
        markers = [(name, marker) for name, field in fields for marker in field.metadata]
        return [(name, marker.unless) for name, marker in markers if isinstance(marker, PathParameter)]


class DataConfig(NotebookConfig):
    """What the notebooks that open a data set share: where it is, how it is divided and painted."""

    data_dir: Annotated[Text, PathParameter(unless=("synthetic",))] = Field(description='a COCO folder, or "synthetic"')
    train_json: Text = Field(min_length=1, description="file name in data_dir")
    val_json: Text = Field(min_length=1, description="file name in data_dir; used by split: given")
    split: SplitName
    folds: Whole = Field(ge=2, le=100)
    fold: Whole = Field(ge=0)
    paint_order: PaintOrder
    background: Background

    def json_names(self) -> tuple[str, ...]:
        """The annotation files that this run reads."""
        return (self.train_json, self.val_json) if self.split == "given" else (self.train_json,)

    @field_validator("data_dir")
    @classmethod
    def _is_a_folder(cls, data_dir: str) -> str:
        if data_dir != "synthetic" and not os.path.isdir(os.path.expanduser(data_dir)):
            raise ValueError(
                f'must be a folder with COCO files, or "synthetic"; there is no folder {data_dir!r}'
                f" (seen from {Path.cwd()})"
            )
        return data_dir

    @classmethod
    def find_disagreements(cls, values: Mapping[str, Any]) -> dict[str, str]:
        problems = {}
        if _above(values, "fold", "folds", or_equal=True):
            problems["fold"] = f"fold must be below folds ({values['folds']}), got {values['fold']}"
        elif values.get("split") == "given" and values.get("fold", 0):
            problems["fold"] = f"fold must be 0 with split 'given', which makes no folds, got {values['fold']}"
        if values.get("data_dir", "synthetic") != "synthetic":
            folder = Path(os.path.expanduser(values["data_dir"]))
            for name in ("train_json", "val_json") if values.get("split") == "given" else ("train_json",):
                if values.get(name) and not os.path.isfile(folder / values[name]):
                    there = ", ".join(sorted(path.name for path in folder.glob("*.json"))[:8]) or "no JSON files"
                    problems[name] = f"{name} must be a file in data_dir, got {values[name]!r}; {folder} has {there}"
        return problems


class TrainConfig(DataConfig):
    """The parameters of notebooks/02_train.ipynb."""

    image_size: Whole = Field(ge=32, le=4096, description="side of the square network input [px]")
    cache: Switch = Field(description="decode images and paint masks once, keep them on disk")
    augmentation: AugmentationName
    architecture: Text = Field(min_length=1)
    encoder: Text = Field(min_length=1)
    encoder_weights: Annotated[Text, PathParameter(unless=("imagenet", ""))] = Field(
        description='"imagenet", "" (from scratch) or a path to a local file'
    )
    loss: dict[LossName, Annotated[Number, Field(ge=0)]] = Field(min_length=1, description="name -> weight")
    optimizer: OptimizerName
    lr: Number = Field(gt=0, le=10)
    weight_decay: Number = Field(ge=0, le=1)
    scheduler: SchedulerName
    warmup_epochs: Number = Field(ge=0)
    epochs: Whole = Field(ge=1, le=10_000)
    batch_size: Whole = Field(ge=1, le=4096)
    accumulate: Whole = Field(ge=1, le=1024, description="micro-batches of batch_size images a step")
    precision: Precision
    deterministic: Switch
    num_workers: Whole = Field(ge=0, le=64)
    seed: Whole = Field(ge=0, lt=2**31)
    select_by: Selection
    debug: Switch
    run_dir: Text = Field(description='folder of this run; "" makes a new one')

    @field_validator("image_size")
    @classmethod
    def _fits_the_stride(cls, size: int) -> int:
        if size % 32:
            below, above = size // 32 * 32, (size // 32 + 1) * 32
            raise ValueError(f"must be a multiple of 32 (encoder stride), got {size}; nearest: {below} or {above}")
        return size

    @field_validator("loss")
    @classmethod
    def _weighs_something(cls, loss: dict) -> dict:
        if not any(weight > 0 for weight in loss.values()):
            raise ValueError(f"must have a term with a weight above 0, got {loss}")
        return loss

    @field_validator("encoder_weights")
    @classmethod
    def _is_a_file(cls, weights: str) -> str:
        if weights not in ("imagenet", "") and not os.path.isfile(os.path.expanduser(weights)):
            raise ValueError(
                f'must be "imagenet", "" (from scratch) or a path to a file; there is no file {weights!r}'
                f" (seen from {Path.cwd()})"
            )
        return weights

    @classmethod
    def find_disagreements(cls, values: Mapping[str, Any]) -> dict[str, str]:
        problems = super().find_disagreements(values)
        if _above(values, "warmup_epochs", "epochs"):
            problems["warmup_epochs"] = (
                f"warmup_epochs must not be above epochs ({values['epochs']}), got {values['warmup_epochs']}"
            )
        return problems


class ErrorAnalysisConfig(NotebookConfig):
    """The parameters of notebooks/03_error_analysis.ipynb."""

    run_dir: Text = Field(description='folder of a finished training run; "" is the newest one')
    compare_with: Text = Field(description='folder of a second run on the same images; "" for none')
    output_dir: Text = Field(description='folder of tables and figures; "" is 03_error_analysis in run_dir')
    data_dir: Text = Field(description='where the run\'s data is now; "" where it was')
    num_images: Whole = Field(ge=1, le=50, description="images shown in a figure")
    batch_size: Whole = Field(ge=0, le=4096, description="images predicted at a time; 0 is the run's own")
    keep_probabilities: Switch
    resamples: Whole = Field(ge=100, le=100_000, description="bootstrap draws of the images")


class EdaConfig(DataConfig):
    """The parameters of notebooks/01_eda.ipynb."""

    val_json: Text = Field(description='file name in data_dir; "" where there is none; used by split: given')
    seed: Whole = Field(ge=0, lt=2**31)
    image_size: Whole = Field(ge=16, le=4096, description="side of the square training image [px]")
    augmentation: AugmentationName
    run_dir: Text = Field(description='folder of tables and figures; "" makes a new one')
    num_images: Whole = Field(ge=1, le=12, description="images shown in a figure")

    def json_names(self) -> tuple[str, ...]:
        return tuple(name for name in super().json_names() if name)


def _above(values: Mapping[str, Any], name: str, bound: str, or_equal: bool = False) -> bool:
    if name not in values or bound not in values:
        return False
    return values[name] >= values[bound] if or_equal else values[name] > values[bound]


_REQUIRED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a mapping name: value",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "a text that is not empty",
    "too_short": "a mapping that is not empty",
}


def _word(model: type[NotebookConfig], name: str, item: Mapping[str, Any]) -> str:
    """One line for one pydantic error: what was required, what arrived, the fix."""
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        return unknown_name("parameter", name, model.model_fields)
    if kind == "missing":
        return f"{name} is missing; the notebook's parameters cell must set it"
    path = ".".join(str(part) for part in item["loc"] if part != "[key]") or name
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        if isinstance(value, str):
            return unknown_name(name, value, choices)
        return f"{path} must be one of {', '.join(choices)}, got {_show(value)}"
    if kind == "value_error":
        return f"{path} {item['ctx']['error'].args[0]}"
    required = _REQUIRED[kind].format(**item.get("ctx", {})) if kind in _REQUIRED else item["msg"]
    description = model.model_fields[name].description
    return f"{path} must be {required}, got {_show(value)}" + (f" ({description})" if description else "")


def _show(value: object) -> str:
    """A value as a person wrote it, with its type where that is what is wrong."""
    if isinstance(value, bool):
        return str(value).lower()
    kind = (
        ""
        if isinstance(value, int | float)
        else " (a text)"
        if isinstance(value, str)
        else f" ({type(value).__name__})"
    )
    return reprlib.repr(value) + kind
