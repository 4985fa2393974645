"""Augmentations: presets and lists of albumentations' transforms, drawn from (seed, epoch, index)."""

import inspect
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.transforms_interface import BasicTransform, DualTransform, ImageOnlyTransform, Transform3D
from pydantic import Field, ValidationError

from seglib.data.faster import FASTER
from seglib.data.masks import IGNORE_INDEX
from seglib.errors import InputError, require_known
from seglib.parameters import Share, Switch, Whole
from seglib.parts import check_options, find_parts

Step = BasicTransform | A.BaseCompose
Steps = list[str | dict]  # as a grid file writes them


def build_augmentation(spec: str | Sequence, image_size: int) -> A.Compose:
    """Build the augmentation that a preset's name or a list of steps stands for.

    A step is a preset's name, a transform's name as albumentations has it, or one name with its options, as YAML reads
    them: `[flips, {ElasticTransform: {alpha: 40, p: 0.5}}, {OneOf: [blur, CLAHE]}]`. Compositions are OneOf, SomeOf,
    RandomOrder and Sequential; a preset inside OneOf and its like is one step. Sizes that a transform requires are
    `image_size`, and the mask is 255 (ignored) where a transform leaves no data, unless the step says otherwise.

    Parameters
    ----------
    image_size : side of the square images [px].

    Raises
    ------
    InputError
        A step that is unknown or cannot be built. What only running shows, `augment_check.find_refusal` finds.
    """
    return A.Compose(build_steps(spec, image_size))


def augment(
    augmentation: A.Compose, image: np.ndarray, mask: np.ndarray, seed: int, epoch: int, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Augment one sample; what comes out depends on (seed, epoch, index) alone, whichever process does it.

    Parameters
    ----------
    image : (H, W, 3) uint8.
    mask : (H, W) uint8.
    """
    words = np.random.SeedSequence([seed, epoch, index]).generate_state(2)
    # One stream for all steps, nested ones too. albumentations' own set_random_seed() gives every step the same seed:
    # two flips with p=0.5 then always go together, and its workers repeat each other's draws.
    augmentation.set_random_state(np.random.default_rng(words[0]), random.Random(int(words[1])))
    out = augmentation(image=image, mask=mask)
    return out["image"], out["mask"]


# Presets: lengths in pixels follow the image's size, so that 64 px debug images stay recognisable.


def _one_of(*steps: str | dict, p: float = 0.5) -> dict:
    return {"OneOf": {"transforms": list(steps), "p": p}}


def _bend(size: int) -> dict:
    """Options of ElasticTransform: displacements of 1/200 of the side, smooth over 1/40.

    albumentations blurs noise in -1..1 with sigma and multiplies it by alpha: what is left of the noise is
    1 / sqrt(3) / (2 sqrt(pi) sigma) of its width, 0.16 / sigma. Its defaults (alpha 1, sigma 50) move pixels by 0.003 px.
    """
    sigma = max(1, size / 40)
    return {"sigma": sigma, "alpha": size / 200 * sigma / 0.16, "noise_distribution": "uniform"}


def _draw_operations(strength: float) -> Steps:
    """The fourteen operations of TrivialAugment and RandAugment; 1 is TrivialAugment's wide space where masks allow it.

    Narrower than there: brightness, contrast, colour (a factor of 0.01 leaves a black or grey image), shear (45 degrees
    push most of the pixels out of the image), posterizing to 2 bits. Geometric operations move the mask too.
    """
    factor = [1 - 0.7 * strength, 1 + 0.7 * strength]
    still = {"brightness": [1, 1], "contrast": [1, 1], "saturation": [1, 1], "hue": [0, 0], "p": 1}
    shift, shear = [-0.15 * strength, 0.15 * strength], [-30 * strength, 30 * strength]
    return [
        {"NoOp": {"p": 1}},
        *({"Affine": {"shear": {"x": 0, "y": 0, axis: shear}, "p": 1}} for axis in "xy"),
        *({"Affine": {"translate_percent": {"x": 0, "y": 0, axis: shift}, "p": 1}} for axis in "xy"),
        {"Rotate": {"limit": 135 * strength, "p": 1}},
        *({"ColorJitter": still | {name: factor}} for name in ("brightness", "contrast", "saturation")),
        {"Sharpen": {"alpha": [0, 0.3 * strength], "lightness": [1, 1], "p": 1}},
        {"Posterize": {"num_bits": [8 - round(5 * strength), 8], "p": 1}},
        {"Solarize": {"threshold_range": [1 - 0.9 * strength, 1], "p": 1}},
        {"AutoContrast": {"method": "pil", "p": 1}},
        {"Equalize": {"p": 1}},
    ]


def _flips(size: int) -> Steps:
    """All eight symmetries of the square. Only `blur` and `elastic` contain them; others go as `[flips, weather]`."""
    return [{name: {"p": 0.5}} for name in ("HorizontalFlip", "VerticalFlip", "RandomRotate90")]


def _blur(size: int) -> Steps:
    """Flips, then motion or focus blur, or a lens's distortion."""
    motion = {"MotionBlur": {"blur_limit": [3, max(3, size // 80 * 2 + 1)]}}
    focus = {"GaussianBlur": {"sigma_limit": [0.3, max(0.6, size / 200)]}}
    return ["flips", _one_of(motion, focus, {"OpticalDistortion": {"distort_limit": 0.3}})]


def _weather(size: int) -> Steps:
    """Rain, snow, sun flare or fog."""
    rain = {"drop_length": max(3, size // 25), "blur_value": 3, "brightness_coefficient": 0.85}
    snow = {"snow_point_range": [0.1, 0.25], "brightness_coeff": 2.0}
    flare = {"src_radius": size // 3, "num_flare_circles_range": [3, 6]}
    fog = {"fog_coef_range": [0.6, 1.0], "alpha_coef": 0.03}  # a low coef is slow: many small puffs
    return [_one_of({"RandomRain": rain}, {"RandomSnow": snow}, {"RandomSunFlare": flare}, {"RandomFog": fog})]


def _brightness(size: int) -> Steps:
    """Brightness, contrast and gamma."""
    linear = {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}
    return [{"RandomBrightnessContrast": linear}, {"RandomGamma": {"gamma_limit": [70, 140], "p": 0.5}}]


def _dropout(size: int) -> Steps:
    """Cutout and GridMask: the holes are black and their pixels keep their labels, to be guessed from around them."""
    side = [0.05, 0.15]  # of the image's
    holes = {"num_holes_range": [1, 6], "hole_height_range": side, "hole_width_range": side}
    grid = {"ratio": 0.4, "unit_size_range": [max(2, size // 12), max(3, size // 6)]}
    return [_one_of({"CoarseDropout": holes}, {"GridDropout": grid})]


def _distort(size: int) -> Steps:
    """Transposed, shifted, scaled, turned, and bent elastically or along a grid."""
    turn = {"ShiftScaleRotate": {"rotate_limit": 30, "scale_limit": 0.2, "p": 0.5}}
    bent = _one_of({"ElasticTransform": _bend(size)}, {"GridDistortion": {"distort_limit": 0.3}})
    return [{"Transpose": {"p": 0.5}}, turn, bent]


def _noise(size: int) -> Steps:
    """Gaussian, camera or multiplicative noise."""
    factor = {"multiplier": [0.8, 1.2], "elementwise": True, "per_channel": True}
    camera = {"ISONoise": {"intensity": [0.1, 0.4]}}
    return [_one_of({"GaussNoise": {"std_range": [0.02, 0.1]}}, camera, {"MultiplicativeNoise": factor})]


def _crop(size: int) -> Steps:
    """A random part at its own scale, or half of the side around an object."""
    around_object = {"CropNonEmptyMaskIfExists": {"height": size // 2, "width": size // 2}}
    enlarged = {"Sequential": {"transforms": [around_object, "Resize"], "p": 1.0}}
    return [_one_of({"RandomResizedCrop": {"scale": [0.25, 1.0]}}, enlarged, p=0.8)]


def _trivial(size: int) -> Steps:
    """TrivialAugment (Mueller and Hutter 2021): one operation drawn evenly, at an evenly drawn strength."""
    return [_one_of(*_draw_operations(1.0), p=1.0)]


def _autoaugment(size: int) -> Steps:
    """RandAugment (Cubuk 2020): two operations drawn evenly, each at a strength up to the magnitude, 0.5."""
    return [{"RandomOrder": {"transforms": _draw_operations(0.5), "n": 2, "replace": True, "p": 1.0}}]


PRESETS: dict[str, Callable[[int], Steps]] = {
    "none": lambda size: [],
    "flips": _flips,
    "blur": _blur,
    "elastic": lambda size: ["flips", {"ElasticTransform": {**_bend(size), "p": 0.5}}],
    "weather": _weather,
    "color": lambda size: [_one_of("RGBShift", "HueSaturationValue", "ChannelShuffle")],
    "brightness": _brightness,
    "clahe": lambda size: [{"CLAHE": {"clip_limit": [1, 4], "p": 0.5}}],
    "dropout": _dropout,
    "distort": _distort,
    "glass": lambda size: [{"GlassBlur": {"sigma": 0.5, "max_delta": max(1, size // 170), "iterations": 1, "p": 0.5}}],
    "noise": _noise,
    "crop": _crop,
    "trivial": _trivial,
    "autoaugment": _autoaugment,
}


# Steps as a grid file names them, to albumentations' transforms; what cannot be built is refused in a line.


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
_BASES = {BasicTransform, DualTransform, ImageOnlyTransform}


# Options of compositions, which albumentations does not check.
_CHOICE = {"transforms": Annotated[list, Field(min_length=1)], "p": Share}
_COUNT = _CHOICE | {"n": Annotated[Whole, Field(ge=1)], "replace": Switch}
_COMPOSITIONS = {"OneOf": _CHOICE, "SomeOf": _COUNT, "RandomOrder": _COUNT, "Sequential": _CHOICE}


def list_transforms() -> dict[str, type[BasicTransform]]:
    """Every transform of the installed albumentations that works on an image and a mask, by its name."""
    classes = {name: value for name, value in sorted(vars(A).items()) if inspect.isclass(value)}
    transforms = {name: value for name, value in classes.items() if issubclass(value, BasicTransform)}
    unfit = {name for name, value in transforms.items() if value in _BASES or issubclass(value, Transform3D)}
    return {name: value for name, value in transforms.items() if name not in unfit | _UNUSABLE.keys()}


def build_steps(spec: str | Sequence, image_size: int, where: str = "augmentation") -> list[Step]:
    """Build the steps that a preset's name or a list of steps stands for; see `build_augmentation`.

    Raises
    ------
    InputError
        A step that is unknown or cannot be built: `augmentation > OneOf: unknown transform ...`.
    """
    if isinstance(spec, str):
        require_known("preset", spec, PRESETS, where, limit=len(PRESETS))
        spec = PRESETS[spec](image_size)
    if not isinstance(spec, Sequence):
        raise InputError(f"{where}: required a preset's name or a list of steps, got {spec!r}; put a dash before it")
    return [step for item in spec for step in _build_item(item, image_size, where)]


def _build_item(item: Any, image_size: int, where: str) -> list[Step]:
    """The steps of one item of a list: one, or those of a preset."""
    name, options = _read_item(item, where)
    inside, own = f"{where} > {name}", find_parts("augmentation")
    if name in PRESETS:
        if options:
            raise InputError(
                f"{where}: the preset {name} takes no options, got {options}; write its steps out to change them"
            )
        return build_steps(name, image_size, where)
    if name in own:
        options = check_options(inside, _as_mapping(options, where), own[name].options, own[name].needed)
        step = own[name].build(**options)
        if not isinstance(step, Step):
            raise InputError(f"{inside}: required a transform of albumentations, got {type(step).__name__}")
        return [step]
    if name in _UNUSABLE:
        raise InputError(f"{where}: {name} cannot be used: {_UNUSABLE[name]}")
    if name in _COMPOSITIONS:
        return [_build_composition(name, options, image_size, inside)]
    transforms = list_transforms()
    require_known("transform", name, [*own, *PRESETS, *_COMPOSITIONS, *transforms], where, limit=20)
    return [_build_transform(transforms[name], _as_mapping(options, inside), image_size, inside)]


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
    options = check_options(where, options, _COMPOSITIONS[name], needed=["transforms"])
    items = [_build_item(item, image_size, where) for item in options["transforms"]]
    steps = [item[0] if len(item) == 1 else A.Sequential(item, p=1.0) for item in items]
    if name == "OneOf" and not any(step.p for step in steps):
        raise InputError(f"{where}: required a step with p above 0 (they are the weights of the choice), got none")
    return getattr(A, name)(**options | {"transforms": steps})


def _build_transform(cls: type[BasicTransform], options: dict, image_size: int, where: str) -> BasicTransform:
    parameters = {name: value for name, value in inspect.signature(cls).parameters.items() if name != "strict"}
    for option in options:
        require_known(f"option of {cls.__name__}", option, parameters, where)
    options = _fill_in(parameters, image_size) | {name: _read_value(value, where) for name, value in options.items()}
    # Without `strict` albumentations warns of some mistakes and goes on with its defaults.
    strict = {"strict": True} if "InitSchema" in vars(cls) else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ShiftScaleRotate: "use Affine"
            return FASTER.get(cls, cls)(**options, **strict)
    except (ValueError, TypeError) as error:
        cause = error.__cause__
        raise InputError(f"{where}: {_word(cause) if isinstance(cause, ValidationError) else error}") from error


def _fill_in(parameters: Mapping[str, inspect.Parameter], image_size: int) -> dict[str, Any]:
    """What the user need not say: the size, and that pixels without data, or ignored ones, are no object."""
    sides = ("height", "width", "min_height", "min_width")  # min_: of PadIfNeeded, where the default is 1024
    values = dict.fromkeys(sides, image_size) | {"size": (image_size, image_size), "ignore_values": [IGNORE_INDEX]}
    if "fill_mask" in parameters and parameters["fill_mask"].default == 0:  # None: a hole, which keeps its labels
        values["fill_mask"] = IGNORE_INDEX
    return {name: value for name, value in values.items() if name in parameters}


def _read_value(value: Any, where: str) -> Any:
    """YAML's values as they are, but for OpenCV's constants, which notebooks write as `cv2.BORDER_REFLECT_101`."""
    if isinstance(value, str) and value.startswith("cv2."):
        require_known("constant", value, [f"cv2.{name}" for name in dir(cv2)], where)
        return getattr(cv2, value[4:])
    return value


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
