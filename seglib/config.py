"""What a notebook's parameters may be: names, types, ranges, help. Their defaults live in the notebook alone."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from seglib.data.class_names import refuse_focus
from seglib.errors import InputError, unknown_name
from seglib.extra_sets import check_extra_data, list_json, resolve_extra_data
from seglib.parameters import NotebookConfig, Number, PathParameter, Switch, Text, Whole, make_absolute
from seglib.parts import check_architecture, find_parts, read_architecture, read_parts, require_options
from seglib.runs.preflight import refuse_encoder
from seglib.runs.trackers import refuse_missing
from seglib.vocabulary import (
    AVERAGES,
    LOSS_NUMBER,
    LOSSES,
    MIX_NUMBER,
    MIXES,
    SCHEDULERS,
    AugmentationName,
    Background,
    OptimizerName,
    PaintOrder,
    Precision,
    SchedulerName,
    Selection,
    SplitName,
    Tracker,
    check_choices,
    check_options,
)


def _check_augmentation(value: Any) -> str | list:
    """A preset's name, or a list of steps; what a step is called and takes, albumentations must say."""
    if isinstance(value, str):
        if value not in get_args(AugmentationName):
            raise InputError(unknown_name("augmentation", value, get_args(AugmentationName), limit=20))
        return value
    steps = value if isinstance(value, list) else [None]
    if not all(isinstance(step, str) or (isinstance(step, dict) and len(step) == 1) for step in steps):
        raise ValueError(
            "must be a preset's name or a list of steps, each a name or one mapping name: {options},"
            f" got {value!r}; for example [flips, ElasticTransform: {{alpha: 160, sigma: 10, p: 0.5}}]"
        )
    return value


Augmentation = Annotated[Any, AfterValidator(_check_augmentation)]


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
                    there = f"{folder} has {list_json(folder)}"
                    problems[name] = f"{name} must be a file in data_dir, got {values[name]!r}; {there}"
        return problems


class TrainConfig(DataConfig):
    """The parameters of notebooks/02_train.ipynb."""

    focus_classes: list[Text] = Field(description="class names; all others become background")
    extra_data: Annotated[list[dict[Text, Any]], AfterValidator(check_extra_data)] = Field(
        description="mappings with data_dir, json, weight, classes, min_confidence"
    )
    image_size: Whole = Field(ge=32, le=4096, description="side of the square network input [px]")
    cache: Switch = Field(description="decode images and paint masks once, keep them on disk")
    augmentation: Augmentation
    expand: Whole = Field(ge=1, le=16, description="copies of each image in an epoch; the first stays as it is")
    mixing: dict[Text, Any] = Field(description="name -> probability, or a mapping of options")
    parts: list[Text] = Field(description="Python files of your own losses and models")
    architecture: Any = Field(description="a name, or the name of an own model with its options")
    encoder: Text = Field(description='"" for architectures without one')
    encoder_weights: Annotated[Text, PathParameter(unless=("imagenet", ""))] = Field(
        description='"imagenet", "" (from scratch) or a path to a local file'
    )
    init_from: Annotated[Text, PathParameter(unless=("",))] = Field(description='folder of a finished run, "" for none')
    loss: dict[Text, Any] = Field(min_length=1, description="name -> weight, or a mapping of options")
    optimizer: OptimizerName
    lr: Number = Field(gt=0, le=10)
    encoder_lr: Number = Field(ge=0, le=10, description="0 for lr")
    weight_decay: Number = Field(ge=0, le=1)
    decay_norms: Switch = Field(description="decay norm layers and biases too")
    scheduler: SchedulerName
    scheduler_options: dict[Text, Any]
    schedule_per: Literal["iteration", "epoch"]
    warmup_epochs: Number = Field(ge=0)
    epochs: Whole = Field(ge=1, le=10_000)
    continue_from: Annotated[Text, PathParameter(unless=("",))] = Field(
        description='folder of a finished run or of its grid, "" for none'
    )
    patience: Whole = Field(ge=0, description="epochs without a better score after which training stops; 0 for never")
    freeze_epochs: Whole = Field(ge=0, description="first epochs in which the encoder is left as it is")
    clip_norm: Number = Field(ge=0, description="longest gradient of a step; 0 for any")
    averaging: dict[Text, dict[Text, Any]] = Field(description="ema, swa or snapshot -> options")
    final_fit: Literal["none", "train_all"]
    final_fit_epochs: Whole = Field(ge=1, le=1000)
    batch_size: Whole = Field(ge=1, le=4096)
    accumulate: Whole = Field(ge=1, le=1024, description="micro-batches of batch_size images a step")
    on_oom: Literal["fail", "accumulate"]
    precision: Precision
    compile: Switch
    deterministic: Switch
    num_workers: Whole = Field(ge=0, le=64)
    seed: Whole = Field(ge=0, lt=2**31)
    select_by: Selection
    checkpoint_minutes: Number = Field(ge=0, description="between two checkpoints within an epoch; 0: after each epoch")
    track: list[Tracker]
    debug: Switch
    run_dir: Text = Field(description='folder of this run; "" makes a new one')

    @staticmethod
    def class_names_used(values: Mapping[str, Any]) -> dict[str, list[str]]:
        """The classes that each of the checked parameters names."""
        terms = [term for term in values["loss"].values() if isinstance(term, dict)]
        weights = [term["class_weights"] for term in terms if isinstance(term.get("class_weights"), dict)]
        pasted = values["mixing"].get("copy_paste")
        return {
            "focus_classes": values["focus_classes"],
            "loss": [name for names in weights for name in names],
            "mixing": pasted.get("classes", []) if isinstance(pasted, dict) else [],
        }

    @classmethod
    def resolve_paths(cls, values: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
        resolved = super().resolve_paths(values, folder)
        if "extra_data" in resolved:
            resolved["extra_data"] = resolve_extra_data(resolved["extra_data"], folder)
        if isinstance(resolved.get("parts"), list):
            resolved["parts"] = [
                make_absolute(path, folder) if isinstance(path, str) else path for path in resolved["parts"]
            ]
        return resolved

    @field_validator("focus_classes")
    @classmethod
    def _are_other_classes(cls, focus_classes: list) -> list:
        problem = refuse_focus(focus_classes)
        if problem:
            raise InputError(problem)
        return focus_classes

    @field_validator("image_size")
    @classmethod
    def _fits_the_stride(cls, size: int) -> int:
        if size % 32:
            below, above = size // 32 * 32, (size // 32 + 1) * 32
            raise ValueError(f"must be a multiple of 32 (encoder stride), got {size}; nearest: {below} or {above}")
        return size

    @field_validator("parts")
    @classmethod
    def _can_be_read(cls, parts: list) -> list:
        read_parts(parts)
        return parts

    @field_validator("architecture")
    @classmethod
    def _is_a_model(cls, architecture: Any, info: ValidationInfo) -> str | dict:
        if "parts" not in info.data:
            return architecture
        return check_architecture(architecture, find_parts("model", info.data["parts"]))

    @field_validator("loss")
    @classmethod
    def _has_known_terms(cls, loss: dict, info: ValidationInfo) -> dict:
        if "parts" not in info.data:  # they are refused; what they name cannot be checked
            return loss
        own = find_parts("loss", info.data["parts"])
        loss = check_choices("loss", loss, LOSSES | {name: part.options for name, part in own.items()}, LOSS_NUMBER)
        for name in own.keys() & loss.keys():
            require_options(f"loss.{name}", own[name], loss[name] if isinstance(loss[name], dict) else ())
        if not any((term.get("weight", 1) if isinstance(term, dict) else term) > 0 for term in loss.values()):
            raise ValueError(f"must have a term with a weight above 0, got {loss}")
        return loss

    @field_validator("mixing")
    @classmethod
    def _has_known_mixes(cls, mixing: dict) -> dict:
        return check_choices("mixing", mixing, MIXES, MIX_NUMBER)

    @field_validator("averaging")
    @classmethod
    def _has_known_averages(cls, averaging: dict) -> dict:
        unknown = [name for name in averaging if name not in AVERAGES]
        if unknown:
            raise InputError(unknown_name("averaging", unknown[0], AVERAGES))
        return {
            name: check_options(f"averaging.{name}", options, AVERAGES[name]) for name, options in averaging.items()
        }

    @field_validator("track")
    @classmethod
    def _is_installed(cls, track: list) -> list:
        refusal = refuse_missing(track)
        if refusal:
            raise InputError(refusal)
        return track

    @field_validator("encoder_weights")
    @classmethod
    def _is_a_file(cls, weights: str) -> str:
        if weights not in ("imagenet", "") and not os.path.isfile(os.path.expanduser(weights)):
            raise ValueError(
                f'must be "imagenet", "" (from scratch) or a path to a file; there is no file {weights!r}'
                f" (seen from {Path.cwd()})"
            )
        return weights

    @field_validator("init_from", "continue_from")
    @classmethod
    def _is_a_run_or_a_grid(cls, folder: str) -> str:
        if folder and not os.path.isdir(os.path.expanduser(folder)):
            raise ValueError(
                f'must be the folder of a run, or ""; there is no folder {folder!r} (seen from {Path.cwd()})'
            )
        return folder

    @classmethod
    def find_disagreements(cls, values: Mapping[str, Any]) -> dict[str, str]:
        problems = super().find_disagreements(values)
        try:
            if "scheduler" in values:
                check_options(values["scheduler"], values.get("scheduler_options", {}), SCHEDULERS[values["scheduler"]])
        except InputError as error:
            problems["scheduler_options"] = f"scheduler_options: {error}"
        if {"swa", "snapshot"} <= values.get("averaging", {}).keys():
            problems["averaging"] = (
                "averaging: swa holds the learning rate, and snapshot needs its cycles to the end; choose one of them"
            )
        elif (
            "snapshot" in values.get("averaging", {})
            and values.get("scheduler", "cosine_restarts") != "cosine_restarts"
        ):
            problems["averaging"] = (
                "averaging: snapshot takes the weights at the end of each cycle, so scheduler must be cosine_restarts,"
                f" got {values['scheduler']}"
            )
        if {"parts", "architecture", "encoder"} <= values.keys():
            architecture, _ = read_architecture(values["architecture"])
            own = architecture in find_parts("model", values["parts"])
            refusal = refuse_encoder(architecture, values["encoder"], [""]) if own else ""
            problems |= {"encoder": refusal} if refusal else {}
        for name in ("encoder_lr", "freeze_epochs"):
            if values.get("encoder") == "" and values.get(name, 0) > 0:
                problems[name] = f"{name} must be 0 for an architecture without an encoder, got {values[name]}"
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


WeightChoice = Literal["auto", "greedy", "mean", "best"]


class EnsembleConfig(NotebookConfig):
    """The parameters of notebooks/04_ensemble.ipynb."""

    grid_dir: Text = Field(description='folder of a grid; "" is that of the newest run')
    members: list[Text] = Field(description="folders of runs or grids; [] is the grid")
    top: Whole = Field(ge=0, description="only so many of the best; 0 is all")
    output_dir: Text = Field(description='folder of tables, figures and the submission; "" is 04_ensemble in grid_dir')
    data_dir: Annotated[Text, PathParameter(unless=("",))] = Field(
        description='where the runs\' data is now; "" where it was'
    )
    size: Whole = Field(ge=0, le=4096, description="side at which members are merged [px]; 0 is the largest input size")
    tta: dict[Text, list] = Field(description="flips, rotations and scales -> lists")
    merge: Literal["mean", "logits"]
    sliding: dict[Text, Any] = Field(description="size, overlap and blend")
    vote: Literal["soft", "geometric", "hard"]
    weights: WeightChoice | dict[Text, Annotated[Number, Field(ge=0)]] = Field(
        description="a search, or member -> weight"
    )
    tie_break: Text = Field(description='member who decides ties of a hard vote; "" is the surest class')
    specialist_weight: Number = Field(ge=0)
    specialist_confidence: Number = Field(ge=0, lt=1)
    crf_candidates: Whole = Field(ge=0, le=200, description="parameters tried; 0 is no CRF")
    crf_images: Whole = Field(ge=2, description="validation images to try them on")
    components: Switch
    test_json: Text = Field(description='images to predict, beside the runs\' data; "" for none')
    sample_submission: Annotated[Text, PathParameter(unless=("",))] = Field(
        description='CSV whose rows are wanted; "" is the order of test_json'
    )
    submission_size: Whole = Field(ge=1, le=4096, description="side of the masks in the submission [px]")
    resizing: Literal["nearest", "probabilities"]
    pseudo_precision: Number = Field(ge=0, le=1, description="of pseudo-labels, on validation; 0 is none")
    resamples: Whole = Field(ge=100, le=100_000, description="bootstrap draws of the images")
    seed: Whole = Field(ge=0, lt=2**31)
    debug: Switch

    @classmethod
    def find_disagreements(cls, values: Mapping[str, Any]) -> dict[str, str]:
        problems = {}
        steps = [name for name in ("crf_candidates", "components", "specialist_confidence") if values.get(name)]
        if values.get("resizing") == "probabilities" and (steps or values.get("vote") == "hard"):
            got = " and ".join([*steps, *(["vote: hard"] if values.get("vote") == "hard" else [])])
            problems["resizing"] = (
                f"resizing: probabilities has no masks before it is done, so it does not go with {got}"
            )
        if values.get("vote") == "hard" and values.get("crf_candidates"):
            problems["crf_candidates"] = (
                "crf_candidates must be 0 with vote: hard, which has no probabilities to refine"
            )
        if values.get("vote") in ("geometric", "hard") and values.get("specialist_weight"):
            problems["specialist_weight"] = (
                f"specialist_weight must be 0 with vote: {values['vote']}, got {values['specialist_weight']}"
            )
        if values.get("tie_break") and values.get("vote") != "hard":
            problems["tie_break"] = f"tie_break is for vote: hard, got vote: {values.get('vote')}"
        if values.get("pseudo_precision") and not values.get("test_json"):
            problems["pseudo_precision"] = "pseudo_precision needs test_json, the images to label"
        return problems


class EdaConfig(DataConfig):
    """The parameters of notebooks/01_eda.ipynb."""

    val_json: Text = Field(description='file name in data_dir; "" where there is none; used by split: given')
    seed: Whole = Field(ge=0, lt=2**31)
    image_size: Whole = Field(ge=16, le=4096, description="side of the square training image [px]")
    augmentation: Augmentation
    run_dir: Text = Field(description='folder of tables and figures; "" makes a new one')
    num_images: Whole = Field(ge=1, le=12, description="images shown in a figure")

    def json_names(self) -> tuple[str, ...]:
        return tuple(name for name in super().json_names() if name)


def _above(values: Mapping[str, Any], name: str, bound: str, or_equal: bool = False) -> bool:
    if name not in values or bound not in values:
        return False
    return values[name] >= values[bound] if or_equal else values[name] > values[bound]


def find_class(names: Iterable[str]) -> type[NotebookConfig] | None:
    """The class of a shipped notebook, whose parameters are all among the names; None for any other notebook."""
    shipped = (TrainConfig, EdaConfig, EnsembleConfig, ErrorAnalysisConfig)
    return next((each for each in shipped if each.model_fields.keys() <= set(names)), None)


def check_parameters(names: Iterable[str], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Check a notebook's values; return them (whole numbers as floats where floats are meant) and name -> problem."""
    found = find_class(names)
    known = {name: value for name, value in values.items() if found and name in found.model_fields}
    problems = found.find_problems(known) if found else {}
    return dict(values) | (found(**known).model_dump() if found and not problems else {}), problems
