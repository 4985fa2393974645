"""The litter of the embedded data set: one function a sort draws an object's colour, relief and outline.

Each function takes a generator and the object's own coordinates `x`, `y` (n, n), already turned: the object lies in
the unit disc, x along its length. Shapes are distances to an outline [half canvases], positive inside, so that noise
added to a coordinate dents the object and noise added to a distance frays its edge.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np


class Sprite(NamedTuple):
    """An object before light falls on it."""

    colour: np.ndarray  # (n, n, 3) float32, RGB in [0, 1]
    relief: np.ndarray  # (n, n) float32, height above the ground [half canvases]
    cover: np.ndarray  # (n, n) float32 in [0, 1]: the outline, antialiased
    opacity: np.ndarray | float = 1.0  # in [0, 1]: how little of the ground shines through
    gloss: float = 0.1  # strength of the highlight


def noise(rng: np.random.Generator, n: int, cells: float, octaves: int = 3) -> np.ndarray:
    """Smooth noise (n, n) float32 of mean 0 and deviation about 1; `cells` bumps across, then twice as many, ..."""
    total = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        across = min(max(2, round(cells * 2**octave)), n)
        grid = rng.standard_normal((across + 2, across + 2), dtype=np.float32)
        total += cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total


def _colour(rng: np.random.Generator, *choices: int, jitter: float = 0.07) -> np.ndarray:
    """One of the colours, written 0xRRGGBB, a little off in brightness and in hue; (3,) float32."""
    value = int(rng.choice(choices))
    rgb = np.array([value >> 16, value >> 8 & 255, value & 255], np.float32) / 255
    return np.clip(rgb * rng.normal(1, jitter) + rng.normal(0, jitter / 2, 3), 0.02, 1).astype(np.float32)


def _plain(colour: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(colour, (*x.shape, 3)).astype(np.float32)


def _blend(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours (n, n, 3) with `above` where the weight (n, n) is 1."""
    return below + (above - below) * np.clip(weight, 0, 1)[..., None]


def _cover(distance: np.ndarray) -> np.ndarray:
    """Antialiased outline: 1 inside, 0 outside, a ramp one pixel wide on the edge."""
    return np.clip(0.5 + distance * len(distance) / 2, 0, 1).astype(np.float32)


def _spun(width: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Relief of a lying body of revolution of half width `width`."""
    return np.sqrt(np.maximum(width**2 - y**2, 0))


def _convex(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, corners: int, aspect: float) -> np.ndarray:
    """Distance to a convex polygon with sides at irregular angles."""
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.22, 0.22, corners)) / corners
    reach = rng.uniform(0.5, 0.66, corners)
    sides = [r - x * np.cos(a) - y / aspect * np.sin(a) for a, r in zip(angles, reach, strict=True)]
    return np.minimum.reduce([*sides, 0.97 - np.hypot(x, y)]) * aspect


def _blob(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, ragged: float) -> np.ndarray:
    """Distance to an irregular patch."""
    edge = ragged * noise(rng, len(x), 3, 4)
    return np.minimum(0.66 - np.hypot(x, y * rng.uniform(1.0, 1.6)) + edge, 0.97 - np.hypot(x, y))


def _crumple(rng: np.random.Generator, n: int, cells: float) -> np.ndarray:
    """Relief of creased film or paper: sharp ridges between smooth facets."""
    return 1 - np.abs(noise(rng, n, cells, 3))


def _print(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, rows: float) -> np.ndarray:
    """Lines of print as a weight in [0, 1]: rows along x, broken into words."""
    words = noise(rng, len(x), rows, 1) > -0.6
    return (0.5 + 0.5 * np.sin(y * rows * np.pi * 2)) * words * (np.abs(x) < 0.45)


def unknown(rng, x, y):
    """Something dull that could be anything."""
    distance = _blob(rng, x, y, 0.1) if rng.random() < 0.5 else _convex(rng, x, y, int(rng.integers(3, 6)), 0.7)
    spots = _colour(rng, 0x2E3C3E, 0x3A4A50, 0x4A4440, 0x84A0A0)
    colour = _blend(_plain(_colour(rng, 0x557A7E, 0x4C7074, 0x628888, 0x4A4A48), x), spots, noise(rng, len(x), 5))
    return Sprite(colour, 0.4 * np.clip(distance, 0, 0.3) + 0.05 * noise(rng, len(x), 4), _cover(distance), 1.0, 0.15)


def food_waste(rng, x, y):
    """Leftovers in several colours."""
    distance = _blob(rng, x, y, 0.16)
    colour = _plain(_colour(rng, 0x8A5A2C, 0xA06A30, 0x7A4A2A), x)
    for choices in ((0xC98B3A, 0xD8A050), (0xB23A22, 0x8C2F1E), (0xE6D3A0, 0x6E7F2E)):
        colour = _blend(colour, _colour(rng, *choices), (noise(rng, len(x), 6, 2) - 0.5) * 4)
    return Sprite(colour, 0.3 * np.clip(distance, 0, 0.4) + 0.06 * noise(rng, len(x), 9), _cover(distance), 1.0, 0.25)


def cigarette_butt(rng, x, y):
    """Paper and an orange filter, burnt at the end."""
    width = np.where(np.abs(x) < 0.93, rng.uniform(0.19, 0.27), -1.0) + 0.01 * noise(rng, len(x), 6)
    colour = _blend(_plain(_colour(rng, 0xE4DED0), x), _colour(rng, 0xC98A45, 0xD79B58), x > rng.uniform(-0.1, 0.4))
    colour = _blend(colour, np.float32(0.15), (x < -0.8) * 0.9)
    return Sprite(colour, _spun(width, y), _cover(width - np.abs(y)))


def paper(rng, x, y):
    """A torn, creased sheet with lines of print."""
    distance = _convex(rng, x, y, 4, rng.uniform(0.6, 0.95)) + 0.012 * noise(rng, len(x), 14)
    sheet = _colour(rng, 0xF4ECD4, 0xEEE2C0, 0xF4EEDC, 0xE4D8B4, jitter=0.04)
    ink = _print(rng, x, y, rng.uniform(6, 11)) * rng.uniform(0.1, 0.6)
    colour = _blend(_plain(sheet, x), _colour(rng, 0x404040, 0x30405A), ink)
    return Sprite(colour, rng.uniform(0.03, 0.12) * _crumple(rng, len(x), 2.5), _cover(distance), 1.0, 0.03)


def _face(x, y, corner, right, up):
    """Coordinates in [0, 1] on a parallelogram with that corner and edges, and the distance to its outline."""
    (ax, ay), (bx, by) = right, up
    area = ax * by - ay * bx
    u = ((x - corner[0]) * by - (y - corner[1]) * bx) / area
    v = ((y - corner[1]) * ax - (x - corner[0]) * ay) / area
    across, along = abs(area) / np.hypot(bx, by), abs(area) / np.hypot(ax, ay)
    return u, v, np.minimum(np.minimum(u, 1 - u) * across, np.minimum(v, 1 - v) * along)


def carton(rng, x, y):
    """A printed drinks carton seen from a corner."""
    x, y = (axis + 0.015 * noise(rng, len(x), 3, 1) for axis in (x, y))
    right = np.array([rng.uniform(0.4, 0.75), rng.uniform(-0.12, 0.12)])
    up, back = np.array([0, 0.95]), np.array([0.38, rng.uniform(0.2, 0.35)])
    corner = -(right + up + back) / 2
    faces = [(corner, right, up, 1.0), (corner + right, back, up, 0.68), (corner + up, right, back, 1.18)]
    base, brand = _colour(rng, 0xDDB030, 0xD8A82C, 0xE4BC48, 0xD0A058), _colour(rng, 0xF0E6C8, 0x8A4E20, 0x6A3A2A)
    bands = rng.uniform(0.15, 0.8, 2)
    colour, outline = _plain(base * 0.7, x), np.full(x.shape, -1.0)
    for origin, along, upward, brightness in faces:
        u, v, distance = _face(x, y, origin, along, upward)
        printed = (np.abs(v - bands[0]) < 0.17) | ((np.abs(v - bands[1]) < 0.1) & (np.abs(u - 0.5) < 0.3))
        side = _blend(_plain(base, x), brand, printed) * brightness
        colour = _blend(colour, side, distance > 0)
        outline = np.maximum(outline, distance)
    return Sprite(np.clip(colour, 0, 1), 0.03 * _crumple(rng, len(x), 2), _cover(outline + 0.02), 1.0, 0.12)


def can(rng, x, y):
    """A dented drinks can with a painted band."""
    x, y = (axis + 0.05 * noise(rng, len(x), 2, 2) for axis in (x, y))
    half = rng.uniform(0.42, 0.52)
    width = np.interp(x, [-0.84, -0.82, -0.7, 0.7, 0.82, 0.84], np.array([-1, 0.8, 1, 1, 0.8, -1]) * half)
    band = _colour(rng, 0xB8202A, 0xC42430, 0xB01C2C, 0x70767E)
    colour = _blend(_plain(_colour(rng, 0x9CA0A6, 0xACB0B4), x), band, np.abs(x) < 0.62)
    colour = _blend(colour, _colour(rng, 0xF0F0F0, 0xE0C040), (np.abs(x - 0.1) < 0.14) * (np.abs(y) < 0.25) * 0.9)
    stripes = 0.25 * np.cos(y / half * 7)[..., None]  # the long reflections of a polished cylinder
    return Sprite(np.clip(colour * (1 + stripes), 0, 1), _spun(width, y), _cover(width - np.abs(y)), 1.0, 1.1)


def foil(rng, x, y):
    """Crumpled aluminium foil."""
    colour = _plain(_colour(rng, 0x9A9DA2, 0xA8AAB0), x)
    return Sprite(colour, 0.22 * _crumple(rng, len(x), 5), _cover(_blob(rng, x, y, 0.08)), 1.0, 1.2)


GLASS = (0x1F7A38, 0x2E8A4A, 0x1F6B30, 0x1F7A38, 0x5C3A16)


def glass_bottle(rng, x, y):
    """A green or brown bottle; the ground shines through."""
    neck = rng.uniform(0.08, 0.12)
    width = np.interp(x, [-0.96, -0.94, -0.9, 0.15, 0.45, 0.88, 0.89, 0.95, 0.96],
                      [-1, 0.24, 0.29, 0.29, neck, neck, neck + 0.03, neck + 0.03, -1])  # fmt: skip
    rim = np.clip(np.abs(y) / np.maximum(width, 0.05), 0, 1) ** 3
    colour = _plain(_colour(rng, *GLASS), x) * (1 - 0.45 * rim[..., None])
    colour = _blend(colour, np.float32(1), np.exp(-(((y - 0.35 * width) / 0.025) ** 2)) * 0.6)
    return Sprite(colour, 0.6 * _spun(width, y), _cover(width - np.abs(y)), 0.7 + 0.2 * rim, 1.0)


def glass_shard(rng, x, y):
    """A splinter, its broken edge opaque."""
    distance = _convex(rng, x, y, 3, 0.8)
    opacity = np.where(distance < 0.06, 0.95, 0.6 + 0.15 * noise(rng, len(x), 2, 1))
    relief = 0.5 * np.clip(distance, 0, 0.1) + 0.08 * noise(rng, len(x), 2, 1)
    return Sprite(_plain(_colour(rng, *GLASS), x), relief, _cover(distance), np.clip(opacity, 0, 1), 1.2)


PLASTIC = (0x1E63D8, 0x1E63D8, 0x22A8E0, 0x22A8E0, 0xF0801E)


def plastic_bottle(rng, x, y):
    """A clear drinks bottle with a bright label and cap."""
    x, y = (axis + 0.03 * noise(rng, len(x), 2, 2) for axis in (x, y))
    width = np.interp(x, [-0.96, -0.94, -0.85, 0.35, 0.7, 0.74, 0.94, 0.95],
                      [-1, 0.27, 0.33, 0.33, 0.13, 0.15, 0.15, -1]) + 0.012 * np.cos(x * 26)  # fmt: skip
    painted = (np.abs(x + 0.2) < 0.24) | (x > 0.74)
    colour = _blend(_plain(_colour(rng, 0xA8CFE6, 0xB4D8EA), x), _colour(rng, *PLASTIC), painted)
    rim = np.clip(np.abs(y) / np.maximum(width, 0.05), 0, 1) ** 3
    opacity = np.where(painted, 1.0, 0.55 + 0.35 * rim)
    return Sprite(colour, 0.7 * _spun(width, y), _cover(width - np.abs(y)), opacity, 0.9)


def lid(rng, x, y):
    """A bright lid or cap with a raised rim."""
    radius = np.hypot(x, y * rng.uniform(1.0, 1.8))
    relief = 0.08 * np.clip(8 * (radius - 0.7), 0, 1) + 0.02 * noise(rng, len(x), 3, 1)
    return Sprite(_plain(_colour(rng, *PLASTIC), x), relief, _cover(0.94 - radius), 1.0, 0.6)


def styrofoam(rng, x, y):
    """A broken white block of pressed beads."""
    distance = _convex(rng, x, y, int(rng.integers(4, 7)), rng.uniform(0.6, 0.9)) + 0.02 * noise(rng, len(x), 12)
    beads = cv2.resize(np.abs(noise(rng, 28, 14, 1)), x.shape, interpolation=cv2.INTER_CUBIC)
    colour = _plain(_colour(rng, 0xF6FAFF, 0xEEF4FC, jitter=0.02), x) * (1 - 0.1 * beads[..., None])
    relief = np.clip(distance, 0, 0.14) + 0.012 * beads
    return Sprite(np.clip(colour, 0, 1), relief, _cover(distance), 1.0, 0.05)


def plastic_bag(rng, x, y):
    """A crumpled, half transparent bag."""
    distance = _blob(rng, x, y, 0.17)
    folds = _crumple(rng, len(x), 3.5)
    tint = _plain(_colour(rng, 0xE0D8F0, 0xB9A0E0, 0xD8A8D8, 0xC8B8E8, 0x9A90D8, 0x34343C), x)
    colour = _blend(tint, np.float32(1), np.clip(folds - 0.75, 0, 1) * 2)
    opacity = np.clip(rng.uniform(0.6, 0.85) + 0.2 * noise(rng, len(x), 4, 2), 0.45, 1)
    return Sprite(colour, 0.17 * folds, _cover(distance), opacity, 0.9)


def wrapper(rng, x, y):
    """A shiny printed snack wrapper with crimped ends."""
    crimped = 0.8 - np.abs(x) + 0.03 * np.sign(np.sin(y * 40))
    distance = np.minimum(crimped, 0.5 - np.abs(y + 0.05 * noise(rng, len(x), 2, 2)))
    colour = _plain(_colour(rng, 0xC22E9A, 0x7A3AB8, 0xB040B0), x)
    colour = _blend(colour, _colour(rng, 0xF0E8F0, 0x5A2A8A, 0xE86AA8), (noise(rng, len(x), 3, 1) - 0.4) * 9)
    return Sprite(colour, 0.1 * _crumple(rng, len(x), 4), _cover(distance), 1.0, 0.9)


def battery(rng, x, y):
    """A cell with a two-coloured jacket and a metal nub."""
    width = np.interp(x, [-0.91, -0.9, 0.82, 0.83, 0.93, 0.94], [-1, 0.29, 0.29, 0.12, 0.12, -1])
    colour = _plain(_colour(rng, 0x16161A, 0x222226), x)
    colour = _blend(colour, _colour(rng, 0xC8782A, 0xD8A63A), x > rng.uniform(0.1, 0.35))
    colour = _blend(colour, np.float32(0.75), (x > 0.83) | (x < -0.86))
    return Sprite(colour, _spun(width, y), _cover(width - np.abs(y)), 1.0, 0.7)


def garment(rng, x, y):
    """A dropped garment: striped or plain cloth in soft folds."""
    n = len(x)
    distance = _blob(rng, x, y, 0.12)
    folds = noise(rng, n, 2.5, 2)
    dark = _colour(rng, 0x1C2C5C, 0x24386C, 0x2A4478, 0x6A1F2B)
    stripes = np.sin((y + 0.12 * folds) * rng.uniform(14, 30)) * 1.5
    colour = _blend(_plain(dark, x), _colour(rng, 0xC8CCD8, 0x5C78B0, 0x6C86B8), stripes * rng.choice([0, 0.4, 0.8]))
    weave = 1 + 0.06 * rng.standard_normal(x.shape, dtype=np.float32)
    return Sprite(np.clip(colour * weave[..., None], 0, 1), 0.2 * (1 - np.abs(folds)), _cover(distance), 1.0, 0.0)


def leaf(rng, x, y):
    """A fallen leaf: no litter, but it hides some."""
    width = 0.42 * np.clip(1 - x**2, 0, 1) - 0.02
    colour = _plain(_colour(rng, 0x7A5A2A, 0x8C6A30, 0x5A4A24, 0x6A7030, 0x94602C), x)
    colour = colour * (1 + 0.1 * noise(rng, len(x), 6, 2)[..., None])
    colour = _blend(colour, np.float32(0.25), (np.abs(y) < 0.025) * 0.7)
    return Sprite(np.clip(colour, 0, 1), 0.3 * np.abs(y) + 0.04 * noise(rng, len(x), 2), _cover(width - np.abs(y)))


def twig(rng, x, y):
    """A thin stick: no litter; across an object it cuts it in two."""
    width = np.where(np.abs(x) < 0.95, 0.035 - 0.012 * x, -1.0)
    y = y + rng.uniform(-0.2, 0.2) * x**2 + 0.03 * noise(rng, len(x), 2, 2)
    bark = _plain(_colour(rng, 0x4A3826, 0x5C4630, 0x3A3028), x) * (1 + 0.15 * noise(rng, len(x), 12, 2)[..., None])
    return Sprite(np.clip(bark, 0, 1), _spun(width, y), _cover(width - np.abs(y)))


def draw_turned(rng: np.random.Generator, shape: Callable[..., Sprite], size: float) -> Sprite:
    """Draw an object turned by a random angle, finely enough to be laid at that size [px]."""
    n = int(np.clip(2.5 * size, 48, 256))
    down, right = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    return shape(rng, right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle))
