"""albumentations' transforms that take most of a loader's time, from the same draws in less of it.

All give the pixels of albumentations' own but ElasticTransform, whose displacements differ by at most a hundredth of a pixel.
"""

import math
from collections.abc import Mapping
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.pixel.functional import clip

_LEAST_SIGMA = 3.0  # [px] on the level of the pyramid that is blurred; less shows in the displacements


class RandomRotate90(A.RandomRotate90):
    """By OpenCV; albumentations' own walks through memory the long way."""

    _TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)

    def apply(self, img: np.ndarray, factor: int, **params: Any) -> np.ndarray:
        """(H, W, C) or (H, W), turned `factor` times by 90 degrees counter-clockwise."""
        return cv2.rotate(img, self._TURNS[factor]) if factor else img


class ElasticTransform(A.ElasticTransform):
    """Displacements are blurred on a smaller level of a pyramid: what a wide Gaussian leaves has no detail to lose."""

    def get_params_dependent_on_data(self, params: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`map_x` and `map_y`, (H, W) float32: where each pixel comes from."""
        height, width = params["shape"][:2]
        if self.approximate:  # has a kernel of 17 px, whatever sigma
            return super().get_params_dependent_on_data(params, data)
        fields = self._draw(1 if self.same_dxdy else 2, height, width)
        moved = blur(fields.reshape(-1, width), self.sigma).reshape(fields.shape) * np.float32(self.alpha)
        columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
        return {"map_x": moved[0] + columns, "map_y": moved[-1] + rows[:, None]}

    def apply(self, img: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, **params: Any) -> np.ndarray:
        """(H, W, 3); other images as albumentations does it, which interleaves the maps once more for each image."""
        if img.ndim != 3 or img.shape[2] != 3:
            return super().apply(img, map_x, map_y, **params)
        return cv2.remap(img, map_x, map_y, self.interpolation, borderMode=self.border_mode, borderValue=self.fill)

    def apply_to_mask(self, mask: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, **params: Any) -> np.ndarray:
        """(H, W); others as albumentations does it."""
        if mask.ndim != 2:
            return super().apply_to_mask(mask, map_x, map_y, **params)
        how = {"borderMode": self.border_mode, "borderValue": self.fill_mask}
        return cv2.remap(mask, map_x, map_y, self.mask_interpolation, **how)

    def _draw(self, number: int, height: int, width: int) -> np.ndarray:
        """Noise within -1..1, as albumentations draws it."""
        if self.noise_distribution == "uniform":
            fields = self.random_generator.random((number, height, width)).astype(np.float32)
            fields *= 2
            fields -= 1
            return fields
        fields = self.random_generator.standard_normal((number, height, width), dtype=np.float32)
        most = np.abs(fields).max()
        return fields / most if most > 1e-6 else fields


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a (H, W) float32 image whose edges are repeated outwards, by a pyramid where sigma is wide.

    Each level down and each up convolves with (1, 4, 6, 4, 1) / 16, of variance 1 on its own level; a Gaussian of what is
    left of sigma is convolved on the smallest. Source: Burt and Adelson (1983), IEEE Transactions on Communications 31.
    """
    levels = max(0, int(math.log2(sigma / _LEAST_SIGMA)))
    side = 2**levels
    rest = math.sqrt(sigma**2 - 2 * (side**2 - 1) / 3) / side
    if not levels:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    height, width = image.shape
    margin = math.ceil(4 * sigma / side + 1) * side
    image = cv2.copyMakeBorder(
        image, margin, margin - height % -side, margin, margin - width % -side, cv2.BORDER_REPLICATE
    )
    for _ in range(levels):
        image = cv2.pyrDown(image)
    image = cv2.GaussianBlur(image, (0, 0), rest)
    for _ in range(levels):
        image = cv2.pyrUp(image)
    return image[margin : margin + height, margin : margin + width]


class GlassBlur(A.GlassBlur):
    """Pixels are moved as one number each, in the order in which they lie in memory."""

    def apply(self, img: np.ndarray, *args: Any, dxy: np.ndarray, **params: Any) -> np.ndarray:
        """(H, W, 3) uint8; other images, and the mode `exact`, as albumentations does it."""
        if self.mode != "fast" or img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            return super().apply(img, *args, dxy=dxy, **params)
        blurred = cv2.transpose(cv2.GaussianBlur(img, (0, 0), self.sigma))  # albumentations goes through columns
        whole = np.dstack([blurred, np.zeros_like(blurred[..., :1])]).view(np.uint32)[..., 0]
        height, width = img.shape[:2]
        rows = np.arange(height - self.max_delta, self.max_delta, -1, dtype=np.int32)
        columns = np.arange(width - self.max_delta, self.max_delta, -1, dtype=np.int32)
        here = (columns[:, None] * height + rows).ravel()
        flat = np.ascontiguousarray(whole).ravel()
        for number in range(self.iterations):
            there = here + dxy[:, number, 1].astype(np.int32) * height + dxy[:, number, 0].astype(np.int32)
            flat[here], flat[there] = flat[there], flat[here]
        moved = flat.view(np.uint8).reshape(width, height, 4)[..., :3]
        return cv2.GaussianBlur(cv2.transpose(np.ascontiguousarray(moved)), (0, 0), self.sigma)


class RandomFog(A.RandomFog):
    """Each puff is blended where it is; albumentations blends the whole image with each."""

    def apply(
        self,
        img: np.ndarray,
        particle_positions: list[tuple[int, int]],
        radiuses: list[int],
        intensity: float,
        **params: Any,
    ) -> np.ndarray:
        """(H, W, 3) uint8; other images as albumentations does it."""
        if img.dtype != np.uint8:
            return super().apply(img, particle_positions, radiuses, intensity, **params)
        result, alpha = img.copy(), self.alpha_coef * intensity
        for (x, y), radius in zip(particle_positions, radiuses, strict=True):
            left, top = max(0, x - radius - 1), max(0, y - radius - 1)
            part = result[top : max(0, y + radius + 2), left : max(0, x + radius + 2)]
            if part.size:
                puff = cv2.circle(part.copy(), (x - left, y - top), radius, (255, 255, 255), thickness=-1)
                cv2.addWeighted(puff, alpha, part, 1 - alpha, 0, dst=part)
        side = max(3, min(img.shape[:2]) // 30) | 1
        return clip(cv2.GaussianBlur(result, (side, side), 0), np.uint8, inplace=True)


FASTER = {cls.__base__: cls for cls in (RandomRotate90, ElasticTransform, GlassBlur, RandomFog)}
