"""Augmentations as a grid file names them, to albumentations' transforms; what cannot be built is refused in a line."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import albumentations as A
import cv2
from albumentations.core.transforms_interface import BasicTransform, DualTransform, ImageOnlyTransform, Transform3D
from pydantic import BaseModel, Field, ValidationError

from seglib.data.augment_presets import PRESETS
from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError, unknown_name

Step = BasicTransform | A.BaseCompose

_TWICE = "steps and model take uint8 images, and the model normalises them itself: it would be done twice; take it out"
_BOXES = "it needs bounding boxes, and there are masks only; CropNonEmptyMaskIfExists crops around objects"
_OTHERS = "it needs other images beside the one that it is given, which a list of steps cannot hold; take it out"
_CODE = "it needs Python functions, fonts or texts, which a list of steps cannot hold; take it out"
# What is there under its name and still cannot work here, or works wrongly without a word.
_UNUSABLE = (
    dict.fromkeys(("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"), _TWICE)
    | dict.fromkeys(
        ("AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop", "RandomCropNearBBox", "RandomSizedBBoxSafeCrop"), _BOXES
    )
    | dict.fromkeys(("FDA", "HistogramMatching", "PixelDistributionAdaptation", "Mosaic", "OverlayElements"), _OTHERS)
    | dict.fromkeys(("Lambda", "TextImage"), _CODE)
    | dict.fromkeys(
        ("Compose", "ReplayCompose"), "steps are composed anyway; use Sequential for steps that go together"
    )
    | {
        "OneOrOther": "use OneOf",
        "Morphological": "it grows and shrinks classes in the mask by the size of their ids; take it out",
        "SelectiveChannelTransform": "it gives its steps the image without the mask",
    }
)
_BASES = (BasicTransform, DualTransform, ImageOnlyTransform)


class _Choice(BaseModel, extra="forbid"):
    transforms: list = Field(min_length=1)
    p: float = Field(0.5, ge=0, le=1)


class _Count(_Choice):
    p: float = Field(1.0, ge=0, le=1)
    n: int = Field(1, ge=1)
    replace: bool = False


# Compositions' options are not checked by albumentations.
_COMPOSITIONS: dict[str, type[BaseModel]] = {
    "OneOf": _Choice,
    "SomeOf": _Count,
    "RandomOrder": _Count,
    "Sequential": _Choice,
}


def list_transforms() -> dict[str, type[BasicTransform]]:
    """Every transform of the installed albumentations that works on an image and a mask, by its name."""
    classes = {name: value for name, value in vars(A).items() if inspect.isclass(value)}
    return {
        name: value
        for name, value in sorted(classes.items())
        if issubclass(value, BasicTransform)
        and not issubclass(value, Transform3D)
        and value not in _BASES
        and name not in _UNUSABLE
    }


def build_steps(spec: str | Sequence, image_size: int, where: str = "augmentation") -> list[Step]:
    """Build the steps that a preset's name or a list of steps stands for; see `seglib.data.augment.build_augmentation`.

    Raises
    ------
    InputError
        A step that is unknown or cannot be built: `augmentation > OneOf: unknown transform ...`.
    """
    if isinstance(spec, str):
        if spec not in PRESETS:
            raise InputError(f"{where}: {unknown_name('preset', spec, PRESETS, limit=len(PRESETS))}")
        spec = PRESETS[spec](image_size)
    if not isinstance(spec, Sequence):
        raise InputError(f"{where}: required a preset's name or a list of steps, got {spec!r}; put a dash before it")
    return [step for item in spec for step in _build_item(item, image_size, where)]


def _build_item(item: Any, image_size: int, where: str) -> list[Step]:
    """The steps of one item of a list: one, or those of a preset."""
    name, options = _read_item(item, where)
    if name in PRESETS:
        if options:
            raise InputError(
                f"{where}: the preset {name} takes no options, got {options}; write its steps out to change them"
            )
        return build_steps(name, image_size, where)
    if name in _UNUSABLE:
        raise InputError(f"{where}: {name} cannot be used: {_UNUSABLE[name]}")
    transforms = list_transforms()
    if name in _COMPOSITIONS:
        return [_build_composition(name, options, image_size, f"{where} > {name}")]
    if name not in transforms:
        raise InputError(
            f"{where}: {unknown_name('transform', name, [*PRESETS, *_COMPOSITIONS, *transforms], limit=20)}"
        )
    where = f"{where} > {name}"
    return [_build_transform(transforms[name], _as_mapping(options, where), image_size, where)]


def _read_item(item: Any, where: str) -> tuple[str, Any]:
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        name, options = next(iter(item.items()))
        return str(name), {} if options is None else options
    hint = "indent the options under the name" if isinstance(item, Mapping) else "write {ElasticTransform: {alpha: 40}}"
    raise InputError(f"{where}: required a name, or one name with its options, got {item!r}; {hint}")


def _as_mapping(options: Any, where: str) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise InputError(f"{where}: required options as name: value, got {options!r}; for example {{p: 0.5}}")
    return {str(name): value for name, value in options.items()}


def _build_composition(name: str, options: Any, image_size: int, where: str) -> A.BaseCompose:
    """OneOf and its like; a preset among the steps counts as one step."""
    options = {"transforms": list(options)} if isinstance(options, list | tuple) else _as_mapping(options, where)
    _refuse_unknown(name, options, _COMPOSITIONS[name].model_fields, where)
    try:
        options = _COMPOSITIONS[name](**options).model_dump()
    except ValidationError as error:
        raise InputError(f"{where}: {_word(error)}") from error
    items = [_build_item(item, image_size, where) for item in options["transforms"]]
    steps = [item[0] if len(item) == 1 else A.Sequential(item, p=1.0) for item in items]
    if name == "OneOf" and not any(step.p for step in steps):
        raise InputError(f"{where}: required a step with p above 0 (they are the weights of the choice), got none")
    return getattr(A, name)(**options | {"transforms": steps})


def _build_transform(cls: type[BasicTransform], options: dict, image_size: int, where: str) -> BasicTransform:
    parameters = {name: value for name, value in inspect.signature(cls).parameters.items() if name != "strict"}
    _refuse_unknown(cls.__name__, options, parameters, where)
    options = _fill_in(parameters, image_size) | {name: _read_value(value, where) for name, value in options.items()}
    # Without `strict` albumentations warns of some mistakes and goes on with its defaults.
    strict = {"strict": True} if "InitSchema" in vars(cls) else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ShiftScaleRotate: "use Affine"
            return cls(**options, **strict)
    except (ValueError, TypeError) as error:
        cause = error.__cause__
        raise InputError(f"{where}: {_word(cause) if isinstance(cause, ValidationError) else error}") from error


def _fill_in(parameters: Mapping[str, inspect.Parameter], image_size: int) -> dict[str, Any]:
    """What the user need not say: the size, and that pixels without data, or ignored ones, are no object."""
    values = {
        "size": (image_size, image_size),
        "height": image_size,
        "width": image_size,
        "ignore_values": [IGNORE_INDEX],
    }
    values |= {"min_height": image_size, "min_width": image_size}  # of PadIfNeeded, where the default is 1024
    if "fill_mask" in parameters and parameters["fill_mask"].default == 0:  # None: a hole, which keeps its labels
        values["fill_mask"] = IGNORE_INDEX
    return {name: value for name, value in values.items() if name in parameters}


def _read_value(value: Any, where: str) -> Any:
    """YAML's values as they are, but for OpenCV's constants, which notebooks write as `cv2.BORDER_REFLECT_101`."""
    if isinstance(value, str) and value.startswith("cv2."):
        if not hasattr(cv2, value[4:]):
            raise InputError(f"{where}: {unknown_name('constant', value, [f'cv2.{name}' for name in dir(cv2)])}")
        return getattr(cv2, value[4:])
    return value


def _refuse_unknown(name: str, options: Mapping, known: Mapping, where: str) -> None:
    for option in options:
        if option not in known:
            raise InputError(f"{where}: {unknown_name(f'option of {name}', option, known)}")


def _word(error: ValidationError) -> str:
    """Which option is wrong, what was required, what arrived; of several mistakes the first option's."""
    items = error.errors(include_url=False)
    option = items[0]["loc"][:1]
    own = [item for item in items if item["loc"][:1] == option]
    required = " or ".join(dict.fromkeys(item["msg"].removeprefix("Value error, ") for item in own))
    if not option:
        return required
    if own[0]["type"] == "missing":
        return f"{option[0]} is required and has no default"
    must = required.replace("Input should be", "must be") if required.startswith("Input") else f"must fit: {required}"
    return f"{option[0]} {must}, got {own[0]['input']!r}"
