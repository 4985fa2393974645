"""The photograph: ground, light, objects laid on the ground with their shadows, and the camera.

Images are (H, W, 3) float32 RGB in [0, 1] until the camera makes bytes of them. `unit` is image_size / 256, so that
blades of grass, shadows and blur keep their proportions at any size.
"""

from typing import NamedTuple

import cv2
import numpy as np

from seglib.data.synthetic_shapes import Sprite, noise

GROUNDS = ("asphalt", "grass", "sand", "leaves", "pavement", "gravel")


class Scene(NamedTuple):
    """What the images of one scene share."""

    ground: np.ndarray  # (1.75 H, 1.75 W, 3) float32: each image is a crop
    light: np.ndarray  # (3,) unit vector towards the light: x right, y down, z up
    ambient: float  # share of the light that comes from the whole sky, in [0, 1]
    tint: np.ndarray  # (3,) colour of the light
    clutter: float  # leaves and twigs an image


def build_scene(rng: np.random.Generator, image_size: int) -> Scene:
    """Draw the ground and the light of a scene."""
    unit = image_size / 256
    kind = str(rng.choice(GROUNDS))
    n = round(image_size * 1.75)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1)
    light = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    warmth = rng.normal(0, 0.05)
    ambient = rng.uniform(0.35, 0.75)
    ground = _ground(rng, kind, n, unit) * _shade_of_trees(rng, n, ambient)[..., None]
    clutter = rng.uniform(3, 8) if kind in ("leaves", "grass") else rng.uniform(0, 4)
    return Scene(ground, light, ambient, np.array([1 + warmth, 1, 1 - warmth], np.float32), clutter)


def crop_ground(rng: np.random.Generator, scene: Scene, image_size: int) -> np.ndarray:
    """A random window of the scene's ground, copied."""
    top, left = rng.integers(0, len(scene.ground) - image_size + 1, 2)
    return scene.ground[top : top + image_size, left : left + image_size].copy()


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
    there, here = _overlap(image.shape[0], across, centre)
    placed = np.zeros(image.shape[:2], np.float32)
    placed[there] = cover[here]
    _cast_shadow(image, scene, placed, size)
    image[there] = image[there] * (1 - lit[here][..., 3:]) + lit[here][..., :3]
    return placed > 0.5


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


def _cast_shadow(image: np.ndarray, scene: Scene, cover: np.ndarray, size: float) -> None:
    """Darken what lies away from the light, and the line of contact all around."""
    reach = -0.13 * size * scene.light[:2] / scene.light[2]
    shifted = cv2.warpAffine(cover, np.float32([[1, 0, reach[0]], [0, 1, reach[1]]]), cover.shape[::-1])
    cast = cv2.GaussianBlur(shifted, (0, 0), 0.04 * size + 0.4) * (1 - scene.ambient)
    contact = cv2.GaussianBlur(cover, (0, 0), 0.05 * size + 0.5) * 0.4
    image *= (1 - np.clip(0.85 * cast + contact, 0, 0.8))[..., None]


def _shade_of_trees(rng: np.random.Generator, n: int, ambient: float) -> np.ndarray:
    """Brightness (n, n): soft patches, in a third of the scenes the sharper ones of foliage."""
    soft = 1 + 0.07 * noise(rng, n, 2, 3)
    if rng.random() > 0.35:
        return soft
    return soft * (1 - (1 - ambient) * 0.7 / (1 + np.exp(-4 * noise(rng, n, 3, 4))))


def _ground(rng: np.random.Generator, kind: str, n: int, unit: float) -> np.ndarray:
    """The bare ground (n, n, 3) float32 in [0, 1], seen from above."""
    base = {"asphalt": (0.40, 0.40, 0.41), "grass": (0.20, 0.25, 0.10), "sand": (0.55, 0.49, 0.40),
            "leaves": (0.24, 0.19, 0.13), "pavement": (0.50, 0.48, 0.45), "gravel": (0.42, 0.40, 0.37)}[kind]  # fmt: skip
    base = np.float32(base) * rng.normal(1, 0.12) + rng.normal(0, 0.015, 3)
    fine = rng.standard_normal((n, n), dtype=np.float32)
    fine = cv2.GaussianBlur(fine, (0, 0), 0.7 * max(unit, 0.5)) * 2
    rough = {"asphalt": 0.13, "sand": 0.05, "pavement": 0.05}.get(kind, 0.1)
    image = base * (1 + 0.09 * noise(rng, n, 5, 5) + rough * fine)[..., None].astype(np.float32)
    if kind == "pavement":
        image *= _slabs(rng, n, unit)[..., None]
    if kind == "sand":
        image *= (1 + 0.06 * noise(rng, n, 30, 2) ** 2)[..., None]
    stones = {"asphalt": 500, "sand": 120, "pavement": 60, "gravel": 2600}.get(kind, 0)
    image = _scatter(rng, image, stones, (1.0, 3.2 if kind == "gravel" else 1.2), 0.7, base * 1.25, unit)
    if kind == "leaves":
        image = _scatter(rng, image, 1100, (4, 13), 0.45, np.float32([0.42, 0.30, 0.16]), unit)
    if kind == "grass":
        image = _scatter(rng, image, 6000, (5, 14), 0.09, np.float32([0.33, 0.42, 0.15]), unit)
    return image


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


def _scatter(rng: np.random.Generator, image: np.ndarray, count: int, lengths: tuple[float, float], aspect: float,
             colour: np.ndarray, unit: float) -> np.ndarray:
    """Blades, leaves or stones strewn over the ground: each an ellipse on its own shadow."""
    n = len(image)
    canvas = np.clip(image * 255, 0, 255).astype(np.uint8)
    centres = rng.uniform(0, n, (count, 2)) * 16
    halves = rng.uniform(*lengths, count) * unit
    tones = np.clip(colour * rng.normal(1, 0.22, (count, 1)) + rng.normal(0, 0.03, (count, 3)), 0, 1) * 255
    for centre, half, tone, angle in zip(centres, halves, tones, rng.uniform(0, 180, count), strict=True):
        axes = (max(8, int(half * 16)), max(4, int(half * aspect * 16)))
        for offset, shown in ((10 * unit, tone * 0.4), (0, tone)):
            place = (int(centre[0] + offset), int(centre[1] + offset))
            cv2.ellipse(canvas, place, axes, angle, 0, 360, shown.tolist(), -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255
