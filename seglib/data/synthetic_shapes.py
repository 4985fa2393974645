"""The litter of the embedded data set: what lies on its photographs, and how each sort is drawn."""

from typing import NamedTuple

import cv2
import numpy as np

from seglib.data.class_names import SYNTHETIC as CLASSES

# Sorts of litter, methods of `Litter`: how frequent and how large each is, relative to the others.
LITTER = {
    "UNKNOWN": {"unknown": (4, 1.5)},
    "General trash": {"food_waste": (11, 1.1), "cigarette_butt": (6, 0.45)},
    "Paper": {"paper": (20, 1.0)},
    "Paper pack": {"carton": (7, 1.5)},
    "Metal": {"can": (5, 1.3), "foil": (2, 0.8)},
    "Glass": {"glass_bottle": (5, 1.5), "glass_shard": (2, 0.9)},
    "Plastic": {"plastic_bottle": (6, 1.2), "lid": (4, 0.8)},
    "Styrofoam": {"styrofoam": (6, 1.5)},
    "Plastic bag": {"plastic_bag": (15, 1.4), "wrapper": (6, 1.0)},
    "Battery": {"battery": (2, 0.8)},
    "Clothing": {"garment": (2.2, 2.2)},
}
SORTS = [(CLASSES.index(category) + 1, name) for category, sorts in LITTER.items() for name in sorts]
FREQUENCIES, SCALES = np.array([numbers for sorts in LITTER.values() for numbers in sorts.values()]).T
CLUTTER = ((0, "leaf"), (0, "twig"))  # hides litter, is none: not annotated
GLASS = (0x1F7A38, 0x2E8A4A, 0x1F6B30, 0x1F7A38, 0x5C3A16)
PLASTIC = (0x1E63D8, 0x1E63D8, 0x22A8E0, 0x22A8E0, 0xF0801E)


class Sprite(NamedTuple):
    """An object before light falls on it."""

    colour: np.ndarray  # (n, n, 3) or (3,), RGB in [0, 1]
    relief: np.ndarray  # (n, n), height above the ground [half canvases]
    cover: np.ndarray  # (n, n) float32 in [0, 1]: the outline, antialiased
    opacity: np.ndarray | float = 1.0  # in [0, 1]: how little of the ground shines through
    gloss: float = 0.1  # strength of the highlight


class Litter:
    """One object on a canvas of its own, turned by a random angle: a method per sort draws its colour, relief, outline.

    The object lies in the unit disc, x along its length. Shapes are distances to an outline [half canvases], positive
    inside: noise added to a coordinate dents the object, noise added to a distance frays its edge.
    """

    def __init__(self, rng: np.random.Generator, size: float):
        self.rng, n = rng, int(np.clip(2.5 * size, 48, 256))  # fine enough to be laid at that size [px]
        down, right = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j].astype(np.float32)
        angle = rng.uniform(0, 2 * np.pi)
        self.x, self.y = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)

    def noise(self, cells, octaves=3):
        return noise(self.rng, len(self.x), cells, octaves)

    def crumple(self, cells):
        """Relief of creased film or paper: sharp ridges between smooth facets."""
        return 1 - np.abs(self.noise(cells))

    def dented(self, strength, octaves, cells=2):
        return [axis + strength * self.noise(cells, octaves) for axis in (self.x, self.y)]

    def pick(self, *colours, jitter=0.07):
        """One of the colours, written 0xRRGGBB, a little off in brightness and in hue; (3,) float32."""
        value = int(self.rng.choice(colours))
        rgb = np.array([value >> 16, value >> 8 & 255, value & 255], np.float32) / 255
        rgb = rgb * self.rng.normal(1, jitter) + self.rng.normal(0, jitter / 2, 3)
        return np.clip(rgb, 0.02, 1).astype(np.float32)

    def polygon(self, corners, aspect):
        """Distance to a convex polygon with sides at irregular angles."""
        angles = 2 * np.pi * (np.arange(corners) + self.rng.uniform(-0.22, 0.22, corners)) / corners
        reach = zip(angles, self.rng.uniform(0.5, 0.66, corners), strict=True)
        sides = [r - self.x * np.cos(a) - self.y / aspect * np.sin(a) for a, r in reach]
        return np.minimum.reduce([*sides, 0.97 - np.hypot(self.x, self.y)]) * aspect

    def patch(self, ragged):
        """Distance to an irregular patch."""
        edge = ragged * self.noise(3, 4)
        inner = 0.66 - np.hypot(self.x, self.y * self.rng.uniform(1.0, 1.6)) + edge
        return np.minimum(inner, 0.97 - np.hypot(self.x, self.y))

    def unknown(self):
        distance = self.patch(0.1) if self.rng.random() < 0.5 else self.polygon(int(self.rng.integers(3, 6)), 0.7)
        spots = self.pick(0x2E3C3E, 0x3A4A50, 0x4A4440, 0x84A0A0)
        colour = _blend(self.pick(0x557A7E, 0x4C7074, 0x628888, 0x4A4A48), spots, self.noise(5))
        return Sprite(colour, 0.4 * np.clip(distance, 0, 0.3) + 0.05 * self.noise(4), _cover(distance), 1.0, 0.15)

    def food_waste(self):
        distance, colour = self.patch(0.16), self.pick(0x8A5A2C, 0xA06A30, 0x7A4A2A)
        for choices in ((0xC98B3A, 0xD8A050), (0xB23A22, 0x8C2F1E), (0xE6D3A0, 0x6E7F2E)):
            colour = _blend(colour, self.pick(*choices), (self.noise(6, 2) - 0.5) * 4)
        return Sprite(colour, 0.3 * np.clip(distance, 0, 0.4) + 0.06 * self.noise(9), _cover(distance), 1.0, 0.25)

    def cigarette_butt(self):
        width = np.where(np.abs(self.x) < 0.93, self.rng.uniform(0.19, 0.27), -1.0) + 0.01 * self.noise(6)
        colour, is_filter = self.pick(0xE4DED0), self.pick(0xC98A45, 0xD79B58)
        colour = _blend(colour, is_filter, self.x > self.rng.uniform(-0.1, 0.4))
        return _spin(_blend(colour, np.float32(0.15), (self.x < -0.8) * 0.9), width, self.y)

    def paper(self):
        distance = self.polygon(4, self.rng.uniform(0.6, 0.95)) + 0.012 * self.noise(14)
        sheet, rows = self.pick(0xF4ECD4, 0xEEE2C0, 0xF4EEDC, 0xE4D8B4, jitter=0.04), self.rng.uniform(6, 11)
        words = (self.noise(rows, 1) > -0.6) * (np.abs(self.x) < 0.45)  # rows of print along x, broken into words
        ink = (0.5 + 0.5 * np.sin(self.y * rows * np.pi * 2)) * words * self.rng.uniform(0.1, 0.6)
        colour = _blend(sheet, self.pick(0x404040, 0x30405A), ink)
        return Sprite(colour, self.rng.uniform(0.03, 0.12) * self.crumple(2.5), _cover(distance), 1.0, 0.03)

    def carton(self):
        """A drinks carton seen from a corner: three printed faces."""
        x, y = self.dented(0.015, 1, cells=3)
        right = np.array([self.rng.uniform(0.4, 0.75), self.rng.uniform(-0.12, 0.12)])
        up, back = np.array([0, 0.95]), np.array([0.38, self.rng.uniform(0.2, 0.35)])
        corner = -(right + up + back) / 2
        base, brand = self.pick(0xDDB030, 0xD8A82C, 0xE4BC48, 0xD0A058), self.pick(0xF0E6C8, 0x8A4E20, 0x6A3A2A)
        bands = self.rng.uniform(0.15, 0.8, 2)
        colour, outline = base * 0.7, np.full(x.shape, -1.0)
        faces = ((corner, right, up, 1.0), (corner + right, back, up, 0.68), (corner + up, right, back, 1.18))
        for *face, brightness in faces:
            u, v, distance = _face(x, y, *face)
            printed = (np.abs(v - bands[0]) < 0.17) | ((np.abs(v - bands[1]) < 0.1) & (np.abs(u - 0.5) < 0.3))
            colour = _blend(colour, _blend(base, brand, printed) * brightness, distance > 0)
            outline = np.maximum(outline, distance)
        return Sprite(np.clip(colour, 0, 1), 0.03 * self.crumple(2), _cover(outline + 0.02), 1.0, 0.12)

    def can(self):
        (x, y), half = self.dented(0.05, 2), self.rng.uniform(0.42, 0.52)
        width = np.interp(x, [-0.84, -0.82, -0.7, 0.7, 0.82, 0.84], np.array([-1, 0.8, 1, 1, 0.8, -1]) * half)
        band = self.pick(0xB8202A, 0xC42430, 0xB01C2C, 0x70767E)
        colour = _blend(self.pick(0x9CA0A6, 0xACB0B4), band, np.abs(x) < 0.62)
        colour = _blend(colour, self.pick(0xF0F0F0, 0xE0C040), (np.abs(x - 0.1) < 0.14) * (np.abs(y) < 0.25) * 0.9)
        stripes = 0.25 * np.cos(y / half * 7)[..., None]  # the long reflections of a polished cylinder
        return _spin(np.clip(colour * (1 + stripes), 0, 1), width, y, gloss=1.1)

    def foil(self):
        colour, folds = self.pick(0x9A9DA2, 0xA8AAB0), self.crumple(5)
        return Sprite(colour, 0.22 * folds, _cover(self.patch(0.08)), 1.0, 1.2)

    def glass_bottle(self):
        neck = self.rng.uniform(0.08, 0.12)
        widths = [-1, 0.24, 0.29, 0.29, neck, neck, neck + 0.03, neck + 0.03, -1]
        width = np.interp(self.x, [-0.96, -0.94, -0.9, 0.15, 0.45, 0.88, 0.89, 0.95, 0.96], widths)
        rim, shine = _rim(width, self.y), np.exp(-(((self.y - 0.35 * width) / 0.025) ** 2)) * 0.6
        colour = _blend(self.pick(*GLASS) * (1 - 0.45 * rim[..., None]), np.float32(1), shine)
        return _spin(colour, width, self.y, 0.7 + 0.2 * rim, 1.0, height=0.6)

    def glass_shard(self):
        distance = self.polygon(3, 0.8)
        opacity = np.where(distance < 0.06, 0.95, 0.6 + 0.15 * self.noise(2, 1))  # the broken edge is opaque
        relief = 0.5 * np.clip(distance, 0, 0.1) + 0.08 * self.noise(2, 1)
        return Sprite(self.pick(*GLASS), relief, _cover(distance), np.clip(opacity, 0, 1), 1.2)

    def plastic_bottle(self):
        x, y = self.dented(0.03, 2)
        widths = [-1, 0.27, 0.33, 0.33, 0.13, 0.15, 0.15, -1]
        width = np.interp(x, [-0.96, -0.94, -0.85, 0.35, 0.7, 0.74, 0.94, 0.95], widths) + 0.012 * np.cos(x * 26)
        painted = (np.abs(x + 0.2) < 0.24) | (x > 0.74)  # label and cap
        colour = _blend(self.pick(0xA8CFE6, 0xB4D8EA), self.pick(*PLASTIC), painted)
        return _spin(colour, width, y, np.where(painted, 1.0, 0.55 + 0.35 * _rim(width, y)), 0.9, height=0.7)

    def lid(self):
        radius = np.hypot(self.x, self.y * self.rng.uniform(1.0, 1.8))
        relief = 0.08 * np.clip(8 * (radius - 0.7), 0, 1) + 0.02 * self.noise(3, 1)
        return Sprite(self.pick(*PLASTIC), relief, _cover(0.94 - radius), 1.0, 0.6)

    def styrofoam(self):
        corners, aspect = int(self.rng.integers(4, 7)), self.rng.uniform(0.6, 0.9)
        distance = self.polygon(corners, aspect) + 0.02 * self.noise(12)
        beads = cv2.resize(np.abs(noise(self.rng, 28, 14, 1)), self.x.shape, interpolation=cv2.INTER_CUBIC)
        colour = np.clip(self.pick(0xF6FAFF, 0xEEF4FC, jitter=0.02) * (1 - 0.1 * beads[..., None]), 0, 1)
        return Sprite(colour, np.clip(distance, 0, 0.14) + 0.012 * beads, _cover(distance), 1.0, 0.05)

    def plastic_bag(self):
        distance, folds = self.patch(0.17), self.crumple(3.5)
        tint = self.pick(0xE0D8F0, 0xB9A0E0, 0xD8A8D8, 0xC8B8E8, 0x9A90D8, 0x34343C)
        colour = _blend(tint, np.float32(1), np.clip(folds - 0.75, 0, 1) * 2)
        opacity = np.clip(self.rng.uniform(0.6, 0.85) + 0.2 * self.noise(4, 2), 0.45, 1)
        return Sprite(colour, 0.17 * folds, _cover(distance), opacity, 0.9)

    def wrapper(self):
        crimped = 0.8 - np.abs(self.x) + 0.03 * np.sign(np.sin(self.y * 40))
        distance = np.minimum(crimped, 0.5 - np.abs(self.y + 0.05 * self.noise(2, 2)))
        colour, printed = self.pick(0xC22E9A, 0x7A3AB8, 0xB040B0), self.pick(0xF0E8F0, 0x5A2A8A, 0xE86AA8)
        colour = _blend(colour, printed, (self.noise(3, 1) - 0.4) * 9)
        return Sprite(colour, 0.1 * self.crumple(4), _cover(distance), 1.0, 0.9)

    def battery(self):
        width = np.interp(self.x, [-0.91, -0.9, 0.82, 0.83, 0.93, 0.94], [-1, 0.29, 0.29, 0.12, 0.12, -1])
        colour, jacket = self.pick(0x16161A, 0x222226), self.pick(0xC8782A, 0xD8A63A)
        colour = _blend(colour, jacket, self.x > self.rng.uniform(0.1, 0.35))
        return _spin(_blend(colour, np.float32(0.75), (self.x > 0.83) | (self.x < -0.86)), width, self.y, gloss=0.7)

    def garment(self):
        distance, folds = self.patch(0.12), self.noise(2.5, 2)
        dark = self.pick(0x1C2C5C, 0x24386C, 0x2A4478, 0x6A1F2B)
        stripes = np.sin((self.y + 0.12 * folds) * self.rng.uniform(14, 30)) * 1.5
        light = self.pick(0xC8CCD8, 0x5C78B0, 0x6C86B8)
        colour = _blend(dark, light, stripes * self.rng.choice([0, 0.4, 0.8]))
        colour = colour * (1 + 0.06 * self.rng.standard_normal(self.x.shape, dtype=np.float32))[..., None]  # weave
        return Sprite(np.clip(colour, 0, 1), 0.2 * (1 - np.abs(folds)), _cover(distance), 1.0, 0.0)

    def leaf(self):
        distance = 0.42 * np.clip(1 - self.x**2, 0, 1) - 0.02 - np.abs(self.y)
        colour = self.pick(0x7A5A2A, 0x8C6A30, 0x5A4A24, 0x6A7030, 0x94602C)
        colour = colour * (1 + 0.1 * self.noise(6, 2)[..., None])
        colour = np.clip(_blend(colour, np.float32(0.25), (np.abs(self.y) < 0.025) * 0.7), 0, 1)
        return Sprite(colour, 0.3 * np.abs(self.y) + 0.04 * self.noise(2), _cover(distance))

    def twig(self):
        width = np.where(np.abs(self.x) < 0.95, 0.035 - 0.012 * self.x, -1.0)
        y = self.y + self.rng.uniform(-0.2, 0.2) * self.x**2 + 0.03 * self.noise(2, 2)
        bark = self.pick(0x4A3826, 0x5C4630, 0x3A3028) * (1 + 0.15 * self.noise(12, 2)[..., None])
        return _spin(np.clip(bark, 0, 1), width, y)


def noise(rng: np.random.Generator, n: int, cells: float, octaves: int = 3) -> np.ndarray:
    """Smooth noise (n, n) float32 of mean 0 and deviation about 1; `cells` bumps across, then twice as many, ..."""
    total = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        across = min(max(2, round(cells * 2**octave)), n)
        grid = rng.standard_normal((across + 2, across + 2), dtype=np.float32)
        total += cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total


def _blend(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours (n, n, 3) with `above` where the weight (n, n) is 1."""
    return below + (above - below) * np.clip(weight, 0, 1)[..., None]


def _cover(distance: np.ndarray) -> np.ndarray:
    """Antialiased outline: 1 inside, 0 outside, a ramp one pixel wide on the edge."""
    return np.clip(0.5 + distance * len(distance) / 2, 0, 1).astype(np.float32)


def _spin(colour, width, y, opacity=1.0, gloss=0.1, height=1.0):
    """A lying body of revolution of half width `width`."""
    relief = height * np.sqrt(np.maximum(width**2 - y**2, 0))
    return Sprite(colour, relief, _cover(width - np.abs(y)), opacity, gloss)


def _rim(width, y):
    """1 where the wall of a hollow body is seen from the side, 0 in its middle."""
    return np.clip(np.abs(y) / np.maximum(width, 0.05), 0, 1) ** 3


def _face(x, y, corner, right, up):
    """Coordinates in [0, 1] on a parallelogram with that corner and edges, and the distance to its outline."""
    (ax, ay), (bx, by) = right, up
    area = ax * by - ay * bx
    u = ((x - corner[0]) * by - (y - corner[1]) * bx) / area
    v = ((y - corner[1]) * ax - (x - corner[0]) * ay) / area
    across, along = abs(area) / np.hypot(bx, by), abs(area) / np.hypot(ax, ay)
    return u, v, np.minimum(np.minimum(u, 1 - u) * across, np.minimum(v, 1 - v) * along)
