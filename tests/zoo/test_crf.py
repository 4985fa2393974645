"""The dense CRF against a brute-force mean field: all pairs of pixels in float64."""

import cv2
import numpy as np
import pytest

from seglib.errors import InputError
from seglib.zoo.crf import CrfParams, dense_crf

SIZE, CLASSES = 24, 4


def mean_field(image, probabilities, params):
    """The sums of the paper, written out: dense (pixels, pixels) kernels in float64."""
    classes, height, width = probabilities.shape
    places = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2).astype(np.float64)
    colours = image.reshape(-1, 3).astype(np.float64)
    squared = lambda points: np.square(points[:, None] - points[None]).sum(-1)  # noqa: E731
    smooth = np.exp(-squared(places) / (2 * params.smoothness_sigma**2))
    alike = squared(places) / (2 * params.appearance_sigma**2) + squared(colours) / (2 * params.colour_sigma**2)
    kernel = np.zeros((len(places), len(places)))
    for weight, each in ((params.smoothness_weight, smooth), (params.appearance_weight, np.exp(-alike))):
        scale = 1 / np.sqrt(each.sum(1)) if params.normalization == "symmetric" else np.ones(len(each))
        kernel += weight * scale[:, None] * each * scale
    np.fill_diagonal(kernel, 0)
    unary = -np.log(np.maximum(probabilities.reshape(classes, -1).astype(np.float64), 0.5 / 255))  # as dense_crf says
    potts = 1 - np.eye(classes)
    q = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(params.iterations):
        energy = unary + potts @ q @ kernel
        q = np.exp(energy.min(0) - energy)
        q /= q.sum(0)
    return q.reshape(classes, height, width)


def scene(seed=0, height=SIZE, width=SIZE, noise=12):
    """A photograph of blobs and noisy probabilities that roughly follow it."""
    rng = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 3) for _ in range(CLASSES)]
    truth = np.argmax(fields, axis=0)
    image = rng.integers(0, 256, (CLASSES, 3))[truth] + rng.normal(0, noise, (height, width, 3))
    logits = 1.5 * np.eye(CLASSES)[truth].transpose(2, 0, 1) + rng.normal(size=(CLASSES, height, width))
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    return image.clip(0, 255).astype(np.uint8), probabilities.astype(np.float32), truth


PARAMS = [
    CrfParams(),
    CrfParams(smoothness_weight=0, appearance_weight=10, appearance_sigma=60, colour_sigma=5),
    CrfParams(appearance_weight=0, smoothness_sigma=1, iterations=10),
    CrfParams(appearance_weight=10, appearance_sigma=80, colour_sigma=13, iterations=10),
    CrfParams(appearance_sigma=2, colour_sigma=3),
    CrfParams(smoothness_weight=0.05, appearance_weight=0.02, normalization="none", colour_sigma=40),
]


@pytest.mark.parametrize("params", PARAMS)
def test_it_equals_the_brute_force_mean_field(params):
    for seed in range(2):
        image, probabilities, _ = scene(seed)
        refined = dense_crf(image, probabilities, params)
        assert refined.dtype == np.float32
        np.testing.assert_allclose(refined, mean_field(image, probabilities, params), atol=1e-4)


def test_it_equals_the_brute_force_where_no_two_pixels_are_alike():
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    _, probabilities, _ = scene()
    for params in PARAMS:
        np.testing.assert_allclose(
            dense_crf(image, probabilities, params), mean_field(image, probabilities, params), atol=1e-4
        )


def test_it_equals_the_brute_force_on_a_wide_image_of_many_blocks():
    image, probabilities, _ = scene(height=19, width=53)
    expected = mean_field(image, probabilities, CrfParams())
    np.testing.assert_allclose(dense_crf(image, probabilities, CrfParams()), expected, atol=1e-4)


def test_the_colours_take_part():
    image, probabilities, _ = scene()
    grey = np.full_like(image, 128)
    assert (
        np.abs(dense_crf(image, probabilities, CrfParams()) - dense_crf(grey, probabilities, CrfParams())).max() > 0.1
    )


def test_noise_is_removed_along_the_edges_of_the_image():
    image, probabilities, truth = scene(height=48, width=48)
    refined = dense_crf(image, probabilities, CrfParams())
    before, after = ((p.argmax(0) == truth).mean() for p in (probabilities, refined))
    assert before < 0.8
    assert after > 0.95


def test_without_iterations_or_weights_nothing_changes():
    image, probabilities, _ = scene()
    floored = np.maximum(probabilities, 0.5 / 255)
    for params in (CrfParams(iterations=0), CrfParams(smoothness_weight=0, appearance_weight=0)):
        np.testing.assert_allclose(dense_crf(image, probabilities, params), floored / floored.sum(0), atol=1e-6)


def test_clusters_come_near_the_exact_result_and_nearer_the_smaller_they_are():
    image, probabilities, _ = scene(height=64, width=64)
    exact = dense_crf(image, probabilities, CrfParams())
    errors = []
    for size in (2, 8, 32):
        refined = dense_crf(image, probabilities, CrfParams(pixels_per_cluster=size))
        errors.append(np.abs(refined - exact).mean())
        assert (refined.argmax(0) != exact.argmax(0)).mean() < 0.01
    assert 0 < errors[0] < errors[1] < errors[2]


def test_probabilities_that_were_stored_in_256_steps_are_accepted():
    image, probabilities, _ = scene()
    stored = np.round(255 * probabilities).astype(np.uint8).astype(np.float32) / 255
    refined, expected = (dense_crf(image, p, CrfParams()) for p in (stored, probabilities))
    assert np.abs(refined - expected).mean() < 0.005
    many = np.full((200, SIZE, SIZE), 1 / 255, np.float32)  # 1/200 = 1.3/255
    np.testing.assert_allclose(dense_crf(image, many, CrfParams(iterations=1)), 1 / 200, atol=1e-6)


def test_a_speck_whose_surroundings_were_rounded_to_zero_is_removed_as_a_float16_one_is():
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    p = np.stack([np.full((SIZE, SIZE), value) for value in (0.97, 0.02, 0.01)]).astype(np.float32)
    p[:, 10:12, 10:12] = np.array([0.0015, 0.9975, 0.001], np.float32)[:, None, None]  # 255 * 0.0015 is rounded to 0
    stored = np.round(255 * p) / 255
    assert (stored[0, 10:12, 10:12] == 0).all()
    for probabilities in (stored.astype(np.float32), p.astype(np.float16), p):
        assert (dense_crf(image, probabilities, CrfParams()).argmax(0) == 0).all()


def test_a_class_of_probability_zero_is_no_nan():
    image, probabilities, _ = scene()
    certain = np.eye(CLASSES, dtype=np.float16)[probabilities.argmax(0)].transpose(2, 0, 1)
    refined = dense_crf(image, certain, CrfParams())
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_normalised_images_are_refused():
    image, probabilities, _ = scene()
    words = (
        r"image must be the original photograph, \(H, W, 3\) uint8, got \(24, 24, 3\) float32; pass it as it was read"
    )
    with pytest.raises(InputError, match=words):
        dense_crf(image.astype(np.float32) / 255, probabilities, CrfParams())
    with pytest.raises(InputError, match=r"got \(3, 24, 24\) uint8"):
        dense_crf(image.transpose(2, 0, 1), probabilities, CrfParams())


def test_logits_and_other_sizes_are_refused():
    image, probabilities, _ = scene()
    with pytest.raises(InputError, match="pass the softmax, not logits"):
        dense_crf(image, np.log(probabilities), CrfParams())
    with pytest.raises(InputError, match="pass the softmax, not logits"):
        dense_crf(image, np.full_like(probabilities, np.nan), CrfParams())
    with pytest.raises(InputError, match=r"floating \(C, 24, 24\), the image's size, got \(4, 12, 12\)"):
        dense_crf(image, probabilities[:, ::2, ::2], CrfParams())


def test_parameters_out_of_range_are_refused():
    with pytest.raises(InputError, match="unknown normalization 'symetric'; did you mean 'symmetric'"):
        CrfParams(normalization="symetric")
    with pytest.raises(InputError, match="colour_sigma must be above 0, got 0"):
        CrfParams(colour_sigma=0)
    with pytest.raises(InputError, match="appearance_weight must be at least 0, got -1"):
        CrfParams(appearance_weight=-1)
