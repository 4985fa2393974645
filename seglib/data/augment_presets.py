"""The augmentations that have a name: lists of steps as a grid file would write them, sized to the image.

Names and options are albumentations'. A mask is filled with 255 (ignored) where a step leaves no data, see
`seglib.data.augment_spec`. Lengths in pixels follow the image's size, so that 64 px debug images stay recognisable.
Only `blur` and `elastic` contain the flips; the others go with them as `[flips, weather]`.
"""

from collections.abc import Callable

Steps = list[str | dict]


def _none(image_size: int) -> Steps:
    return []


def _flips(image_size: int) -> Steps:
    return [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}, {"RandomRotate90": {"p": 0.5}}]


def _blur(image_size: int) -> Steps:
    blurs = [
        {"MotionBlur": {"blur_limit": [3, max(3, image_size // 80 * 2 + 1)]}},
        {"GaussianBlur": {"sigma_limit": [0.3, max(0.6, image_size / 200)]}},
        {"OpticalDistortion": {"distort_limit": 0.3}},
    ]
    return ["flips", {"OneOf": {"transforms": blurs, "p": 0.5}}]


def _elastic(image_size: int) -> Steps:
    return ["flips", {"ElasticTransform": {**_elastic_strength(image_size), "p": 0.5}}]


def _elastic_strength(image_size: int) -> dict:
    """Displacements of 1/200 of the side, smooth over 1/40.

    albumentations blurs noise in -1..1 with sigma and multiplies it by alpha: what is left of the noise is
    1 / sqrt(3) / (2 sqrt(pi) sigma) of its width, 0.16 / sigma. Its defaults (alpha 1, sigma 50) move pixels by 0.003 px.
    """
    sigma = max(1, image_size / 40)
    return {"sigma": sigma, "alpha": image_size / 200 * sigma / 0.16, "noise_distribution": "uniform"}


def _weather(image_size: int) -> Steps:
    rain = {"drop_length": max(3, image_size // 25), "blur_value": 3, "brightness_coefficient": 0.85}
    flare = {"src_radius": image_size // 3, "num_flare_circles_range": [3, 6]}
    steps = [
        {"RandomRain": rain},
        {"RandomSnow": {"snow_point_range": [0.1, 0.25], "brightness_coeff": 2.0}},
        {"RandomSunFlare": flare},
        {"RandomFog": {"fog_coef_range": [0.6, 1.0], "alpha_coef": 0.03}},  # a low coef is slow: many small puffs
    ]
    return [{"OneOf": {"transforms": steps, "p": 0.5}}]


def _color(image_size: int) -> Steps:
    return [{"OneOf": {"transforms": ["RGBShift", "HueSaturationValue", "ChannelShuffle"], "p": 0.5}}]


def _brightness(image_size: int) -> Steps:
    return [
        {"RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}},
        {"RandomGamma": {"gamma_limit": [70, 140], "p": 0.5}},
    ]


def _clahe(image_size: int) -> Steps:
    return [{"CLAHE": {"clip_limit": [1, 4], "p": 0.5}}]


def _dropout(image_size: int) -> Steps:
    """Cutout and GridMask: the holes are black and their pixels keep their labels, to be guessed from around them."""
    side = [0.05, 0.15]  # of the image's
    holes = {"num_holes_range": [1, 6], "hole_height_range": side, "hole_width_range": side}
    grid = {"ratio": 0.4, "unit_size_range": [max(2, image_size // 12), max(3, image_size // 6)]}
    return [{"OneOf": {"transforms": [{"CoarseDropout": holes}, {"GridDropout": grid}], "p": 0.5}}]


def _distort(image_size: int) -> Steps:
    warps = [{"ElasticTransform": _elastic_strength(image_size)}, {"GridDistortion": {"distort_limit": 0.3}}]
    return [
        {"Transpose": {"p": 0.5}},
        {"ShiftScaleRotate": {"rotate_limit": 30, "scale_limit": 0.2, "p": 0.5}},
        {"OneOf": {"transforms": warps, "p": 0.5}},
    ]


def _glass(image_size: int) -> Steps:
    return [{"GlassBlur": {"sigma": 0.5, "max_delta": max(1, image_size // 170), "iterations": 1, "p": 0.5}}]


def _noise(image_size: int) -> Steps:
    steps = [
        {"GaussNoise": {"std_range": [0.02, 0.1]}},
        {"ISONoise": {"intensity": [0.1, 0.4]}},
        {"MultiplicativeNoise": {"multiplier": [0.8, 1.2], "elementwise": True, "per_channel": True}},
    ]
    return [{"OneOf": {"transforms": steps, "p": 0.5}}]


def _crop(image_size: int) -> Steps:
    around_object = {"CropNonEmptyMaskIfExists": {"height": image_size // 2, "width": image_size // 2}}
    steps = [
        {"RandomResizedCrop": {"scale": [0.25, 1.0]}},
        {"Sequential": {"transforms": [around_object, "Resize"], "p": 1.0}},
    ]
    return [{"OneOf": {"transforms": steps, "p": 0.8}}]


def _trivial(image_size: int) -> Steps:
    """TrivialAugment (Mueller and Hutter 2021): one operation drawn evenly, at an evenly drawn strength."""
    return [{"OneOf": {"transforms": _operations(1.0), "p": 1.0}}]


def _autoaugment(image_size: int) -> Steps:
    """RandAugment (Cubuk 2020): two operations drawn evenly, each at a strength up to the magnitude, 0.5."""
    return [{"RandomOrder": {"transforms": _operations(0.5), "n": 2, "replace": True, "p": 1.0}}]


def _operations(strength: float) -> Steps:
    """The fourteen operations of both papers; a strength of 1 is TrivialAugment's wide space where masks allow it.

    Narrower than there: brightness, contrast, colour (a factor of 0.01 leaves a black or grey image), shear (45 degrees
    push most of the pixels out of the image), posterizing to 2 bits. Geometric operations move the mask too.
    """
    factor = [1 - 0.7 * strength, 1 + 0.7 * strength]
    still = {"brightness": [1, 1], "contrast": [1, 1], "saturation": [1, 1], "hue": [0, 0], "p": 1}
    shift, shear = 0.15 * strength, 30 * strength
    return [
        {"NoOp": {"p": 1}},
        {"Affine": {"shear": {"x": [-shear, shear], "y": 0}, "p": 1}},
        {"Affine": {"shear": {"x": 0, "y": [-shear, shear]}, "p": 1}},
        {"Affine": {"translate_percent": {"x": [-shift, shift], "y": 0}, "p": 1}},
        {"Affine": {"translate_percent": {"x": 0, "y": [-shift, shift]}, "p": 1}},
        {"Rotate": {"limit": 135 * strength, "p": 1}},
        {"ColorJitter": still | {"brightness": factor}},
        {"ColorJitter": still | {"contrast": factor}},
        {"ColorJitter": still | {"saturation": factor}},
        {"Sharpen": {"alpha": [0, 0.3 * strength], "lightness": [1, 1], "p": 1}},
        {"Posterize": {"num_bits": [8 - round(5 * strength), 8], "p": 1}},
        {"Solarize": {"threshold_range": [1 - 0.9 * strength, 1], "p": 1}},
        {"AutoContrast": {"method": "pil", "p": 1}},
        {"Equalize": {"p": 1}},
    ]


PRESETS: dict[str, Callable[[int], Steps]] = {
    "none": _none,
    "flips": _flips,
    "blur": _blur,
    "elastic": _elastic,
    "weather": _weather,
    "color": _color,
    "brightness": _brightness,
    "clahe": _clahe,
    "dropout": _dropout,
    "distort": _distort,
    "glass": _glass,
    "noise": _noise,
    "crop": _crop,
    "trivial": _trivial,
    "autoaugment": _autoaugment,
}
