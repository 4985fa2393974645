"""The photograph: ground, light, objects laid on the ground with their shadows, and the camera.

Images are (H, W, 3) float32 RGB in [0, 1] until the camera makes bytes of them. `unit` is image_size / 256, so that
blades of grass, shadows and blur keep their proportions at any size.
"""

from typing import NamedTuple

import cv2
import numpy as np

from seglib.data.synthetic_shapes import Sprite, noise


class Ground(NamedTuple):
    """One sort of ground and what covers it."""

    colour: tuple[float, float, float]
    roughness: float
    strewn: int  # blades, leaves or stones
    strewn_colour: tuple[float, float, float]
    half_length: tuple[float, float]  # of one of them, from and to [px in an image of 256 px]
    aspect: float  # its width to its length
    clutter: tuple[float, float]  # leaves and twigs on top of the litter, from and to, an image
    paved: bool = False


ASPHALT = Ground((0.40, 0.40, 0.41), 0.13, 500, (0.50, 0.50, 0.51), (1, 1.2), 0.7, (0, 4))
GRASS = Ground((0.20, 0.25, 0.10), 0.10, 6000, (0.33, 0.42, 0.15), (5, 14), 0.09, (3, 8))
SAND = Ground((0.55, 0.49, 0.40), 0.05, 120, (0.68, 0.61, 0.50), (1, 1.2), 0.7, (0, 4))
LEAVES = Ground((0.24, 0.19, 0.13), 0.10, 1100, (0.42, 0.30, 0.16), (4, 13), 0.45, (3, 8))
PAVEMENT = Ground((0.50, 0.48, 0.45), 0.05, 60, (0.62, 0.60, 0.56), (1, 1.2), 0.7, (0, 4), paved=True)
GRAVEL = Ground((0.42, 0.40, 0.37), 0.10, 2600, (0.52, 0.50, 0.46), (1, 3.2), 0.7, (0, 4))
GROUNDS = (ASPHALT, GRASS, SAND, LEAVES, PAVEMENT, GRAVEL)


class Scene(NamedTuple):
    """What the images of one scene share."""

    picture: np.ndarray  # (1.75 H, 1.75 W, 3) float32, the bare ground: each image is a crop
    light: np.ndarray  # (3,) unit vector towards the light: x right, y down, z up
    ambient: float  # share of the light that comes from the whole sky, in [0, 1]
    tint: np.ndarray  # (3,) colour of the light
    clutter: float  # leaves and twigs an image, on average


def build_scene(rng: np.random.Generator, image_size: int) -> Scene:
    """Draw the ground and the light of a scene."""
    unit = image_size / 256
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    n = round(image_size * 1.75)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1)
    light = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    warmth = rng.normal(0, 0.05)
    ambient = rng.uniform(0.35, 0.75)
    picture = _bare_ground(rng, ground, n, unit) * _shade_of_trees(rng, n, ambient)[..., None]
    tint = np.array([1 + warmth, 1, 1 - warmth], np.float32)
    return Scene(picture, light, ambient, tint, rng.uniform(*ground.clutter))


def crop_ground(rng: np.random.Generator, scene: Scene, image_size: int) -> np.ndarray:
    """A random window of the scene's ground, copied."""
    top, left = rng.integers(0, len(scene.picture) - image_size + 1, 2)
    return scene.picture[top : top + image_size, left : left + image_size].copy()


def lay(image: np.ndarray, scene: Scene, sprite: Sprite, size: float, centre: np.ndarray) -> np.ndarray:
    """Paint an object and its shadow into the image, in place.

    Parameters
    ----------
    image : (H, W, 3) float32 in [0, 1]
    size : float
        Square root of the object's area [px].
    centre : (2,) x, y [px]

    Returns
    -------
    mask : (H, W) bool
        The pixels that the object covers, before anything is laid on it.
    """
    across = max(3, round(len(sprite.cover) * size / np.sqrt(sprite.cover.sum())))
    alpha = sprite.cover * sprite.opacity
    lit = np.dstack([_lit(sprite, scene) * alpha[..., None], alpha]).astype(np.float32)
    lit, cover = (cv2.resize(a, (across, across), interpolation=cv2.INTER_AREA) for a in (lit, sprite.cover))
    _cast_shadow(image, scene, cover, size, centre)
    there, here = _overlap(len(image), across, centre)
    image[there] = image[there] * (1 - lit[here][..., 3:]) + lit[here][..., :3]
    mask = np.zeros(image.shape[:2], bool)
    mask[there] = cover[here] > 0.5
    return mask


def photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a phone makes of it: exposure, vignette, focus, sensor noise; (H, W, 3) uint8."""
    n = len(image)
    ramp = np.linspace(-1, 1, n, dtype=np.float32)
    slope = rng.normal(0, 0.09, 2)
    field = 1 + slope[0] * ramp[:, None] + slope[1] * ramp - 0.1 * (ramp[:, None] ** 2 + ramp**2)
    image = image * (field * rng.normal(1.0, 0.1))[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.8) * max(n / 256, 0.5))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.008, 0.025)
    return np.clip((image + grain) * 255 + 0.5, 0, 255).astype(np.uint8)


def _lit(sprite: Sprite, scene: Scene) -> np.ndarray:
    """Colours (n, n, 3) of the object under the scene's light: Lambert and a highlight; flat parts keep theirs."""
    step = 2 / len(sprite.relief)
    down, right = np.gradient(sprite.relief.astype(np.float32), step)
    normal = np.dstack([-np.clip(right, -3, 3), -np.clip(down, -3, 3), np.ones_like(right)])
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    direct = np.clip(normal @ scene.light, 0, None) / scene.light[2]
    halfway = scene.light + np.array([0, 0, 1])  # between the light and the camera above
    highlight = np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 24
    brightness = scene.ambient + (1 - scene.ambient) * direct
    return (sprite.colour * brightness[..., None] + 0.35 * sprite.gloss * highlight[..., None]) * scene.tint


def _overlap(length: int, across: int, centre: np.ndarray) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a square of side `across` around the centre meets an image, in the image and in the square."""
    starts = (np.asarray(centre)[::-1] - across / 2).round().astype(int)
    there = tuple(slice(max(a, 0), min(a + across, length)) for a in starts)
    return there, tuple(slice(s.start - a, s.stop - a) for s, a in zip(there, starts, strict=True))


def _cast_shadow(image: np.ndarray, scene: Scene, cover: np.ndarray, size: float, centre: np.ndarray) -> None:
    """Darken what lies away from the light, and the line of contact all around."""
    margin = int(0.35 * size) + 3  # both end well within it
    cover = cv2.copyMakeBorder(cover, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    reach = -0.13 * size * scene.light[:2] / scene.light[2]
    shifted = cv2.warpAffine(cover, np.float32([[1, 0, reach[0]], [0, 1, reach[1]]]), cover.shape[::-1])
    cast = cv2.GaussianBlur(shifted, (0, 0), 0.04 * size + 0.4) * (1 - scene.ambient)
    contact = cv2.GaussianBlur(cover, (0, 0), 0.05 * size + 0.5) * 0.4
    there, here = _overlap(len(image), len(cover), centre)
    image[there] *= 1 - np.clip(0.85 * cast + contact, 0, 0.8)[here][..., None]


def _shade_of_trees(rng: np.random.Generator, n: int, ambient: float) -> np.ndarray:
    """Brightness (n, n): soft patches, in a third of the scenes the sharper ones of foliage."""
    soft = 1 + 0.07 * noise(rng, n, 2, 3)
    if rng.random() > 0.35:
        return soft
    return soft * (1 - (1 - ambient) * 0.7 / (1 + np.exp(-4 * noise(rng, n, 3, 4))))


def _bare_ground(rng: np.random.Generator, ground: Ground, n: int, unit: float) -> np.ndarray:
    """The ground (n, n, 3) float32 in [0, 1], seen from above."""
    colour = np.float32(ground.colour) * rng.normal(1, 0.12) + rng.normal(0, 0.015, 3)
    grain = cv2.GaussianBlur(rng.standard_normal((n, n), dtype=np.float32), (0, 0), 0.7 * max(unit, 0.5)) * 2
    image = colour * (1 + 0.09 * noise(rng, n, 5, 5) + ground.roughness * grain)[..., None]
    if ground.paved:
        image *= _slabs(rng, n, unit)[..., None]
    return _strew(rng, image, ground, unit)


def _slabs(rng: np.random.Generator, n: int, unit: float) -> np.ndarray:
    """Brightness (n, n) of paving stones: each its own, the joints dark; laid at an angle."""
    y, x = np.mgrid[:n, :n].astype(np.float32)
    angle, length = rng.uniform(0, np.pi), rng.uniform(45, 110) * unit
    u = (x * np.cos(angle) + y * np.sin(angle)) / length + 50
    v = (y * np.cos(angle) - x * np.sin(angle)) / (length * rng.uniform(0.4, 1)) + 50
    u = u + 0.5 * (np.floor(v) % 2)
    tone = 1 + 0.07 * rng.standard_normal((100, 100), dtype=np.float32)[v.astype(int) % 100, u.astype(int) % 100]
    joint = np.minimum(np.abs(u - u.round()), np.abs(v - v.round())) * length
    return tone * np.clip(0.45 + 0.3 * joint / unit, 0, 1)


def _strew(rng: np.random.Generator, image: np.ndarray, ground: Ground, unit: float) -> np.ndarray:
    """Put the ground's blades, leaves or stones on it: each an ellipse on its own shadow."""
    n, count = len(image), ground.strewn
    canvas = np.clip(image * 255, 0, 255).astype(np.uint8)
    centres = rng.uniform(0, n, (count, 2)) * 16  # cv2 takes sixteenths of a pixel
    halves = rng.uniform(*ground.half_length, count) * unit * 16
    tones = np.float32(ground.strewn_colour) * rng.normal(1, 0.22, (count, 1)) + rng.normal(0, 0.03, (count, 3))
    tones = np.clip(tones, 0, 1) * 255
    for centre, half, tone, angle in zip(centres, halves, tones, rng.uniform(0, 180, count), strict=True):
        axes = (max(8, int(half)), max(4, int(half * ground.aspect)))
        for offset, shown in ((10 * unit, tone * 0.4), (0, tone)):
            place = (int(centre[0] + offset), int(centre[1] + offset))
            cv2.ellipse(canvas, place, axes, angle, 0, 360, shown.tolist(), -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255
