"""Losses of pixels and regions against their definitions in float64 NumPy, or against torch where it has them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from seglib.training.losses import build_loss, resolve_class_weights

NAMES = ["a", "b", "c", "d", "e"]
WEIGHTS = [0.5, 2.0, 1.0, 1.0, 0.0]
BY_NAME = {"class_weights": {"a": 0.5, "b": 2.0, "e": 0.0}}


def example(seed=0):
    """Two images: the first mostly ignored, the second not at all; class 3 is absent from the truth."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 5, 6, 8, generator=g, dtype=torch.float64)
    mask = torch.randint(0, 5, (2, 6, 8), generator=g)
    mask[mask == 3] = 1
    mask[0, :4] = 255
    return logits, mask.to(torch.uint8)


def value(name, logits, mask, **options):
    return build_loss({name: options}, 5, class_names=NAMES)(logits, mask).item()


def softmax(logits):
    e = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def valid_pixels(logits, mask):
    """p (pixels, C) and y (pixels,) of the valid pixels of a batch."""
    valid = mask.numpy() != 255
    return np.moveaxis(softmax(logits), 1, -1)[valid], mask.numpy()[valid]


def mean_over_classes(score, p, y):
    """Mean of score(p_c, y == c) over the classes in y."""
    return np.mean([score(p[:, c], y == c) for c in np.unique(y)])


def mean_over_images(score, logits, mask):
    images = [valid_pixels(logits[i : i + 1], mask[i : i + 1]) for i in range(len(mask))]
    return np.mean([mean_over_classes(score, p, y) for p, y in images])


def soft_iou(p, true):
    return p[true].sum() / (p.sum() + true.sum() - p[true].sum())


def soft_dice(p, true):
    return 2 * p[true].sum() / (p.sum() + true.sum())


def tversky_index(p, true, alpha, beta):
    return p[true].sum() / (p[true].sum() + alpha * p[~true].sum() + beta * (1 - p[true]).sum())


def lovasz_extension(p, true):
    """Integral over t in 0..1 of the Jaccard loss, were the pixels with an error >= t the wrong ones."""
    errors = np.where(true, 1 - p, p)
    steps = np.unique(np.append(errors, 0))

    def jaccard_loss(wrong):
        return 1 - (true & ~wrong).sum() / (true | wrong).sum()

    return sum((high - low) * jaccard_loss(errors >= high) for low, high in pairwise(steps))


def test_cross_entropy_equals_scikit_learn():
    logits, mask = example()
    p, y = valid_pixels(logits, mask)
    assert value("cross_entropy", logits, mask) == pytest.approx(log_loss(y, p, labels=range(5)), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_equals_torch_in_value_and_gradient(weights, smoothing):
    logits, mask = example()
    options = {"label_smoothing": smoothing, **(BY_NAME if weights else {})}
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a = build_loss({"cross_entropy": options}, 5, class_names=NAMES)(ours, mask)
    b = F.cross_entropy(
        theirs, mask.long(), weights and torch.tensor(weights).double(), ignore_index=255, label_smoothing=smoothing
    )
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*torch.autograd.grad(a, ours), *torch.autograd.grad(b, theirs))


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.3}, BY_NAME])
def test_label_smoothing_is_cross_entropy_towards_softened_truth(options):
    logits, mask = example()
    e = options.get("smoothing", 0.1)
    w = np.array(WEIGHTS if "class_weights" in options else [1.0] * 5)
    p, y = valid_pixels(logits, mask)
    soft = (1 - e) * np.eye(5)[y] + e / 5
    expected = -(soft * w * np.log(p)).sum() / w[y].sum()
    assert value("label_smoothing", logits, mask, **options) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("options", [{}, BY_NAME])
def test_focal_equals_its_formula(gamma, options):
    logits, mask = example()
    p, y = valid_pixels(logits, mask)
    p_y, w = p[np.arange(len(y)), y], np.array(WEIGHTS)[y] if options else np.ones(len(y))
    expected = np.average((1 - p_y) ** gamma * -np.log(p_y), weights=w)
    assert value("focal", logits, mask, gamma=gamma, **options) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 0.0625), (0.05, 0.3), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_ohem_is_cross_entropy_of_the_hard_pixels(threshold, min_kept):
    logits, mask = example()
    p, y = valid_pixels(logits, mask)
    p_y = np.sort(p[np.arange(len(y)), y])
    kept = max(1, int(np.ceil(min_kept * len(y))), (p_y < threshold).sum())
    expected = -np.log(p_y[:kept]).mean()
    assert value("ohem", logits, mask, threshold=threshold, min_kept=min_kept) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "score"), [("dice", soft_dice), ("jaccard", soft_iou)])
def test_overlap_of_the_pooled_batch_equals_its_formula(name, score):
    logits, mask = example()
    expected = 1 - mean_over_classes(score, *valid_pixels(logits, mask))
    assert value(name, logits, mask) == pytest.approx(expected, rel=1e-7)


def test_miou_is_the_soft_iou_of_each_image():
    logits, mask = example()
    assert value("miou", logits, mask) == pytest.approx(1 - mean_over_images(soft_iou, logits, mask), rel=1e-7)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.0, 1.0), (2.0, 0.5)])
def test_tversky_terms_equal_their_formulas(alpha, beta):
    logits, mask = example()
    p, y = valid_pixels(logits, mask)
    expected = 1 - mean_over_classes(lambda p, true: tversky_index(p, true, alpha, beta), p, y)
    assert value("tversky", logits, mask, alpha=alpha, beta=beta) == pytest.approx(expected, rel=1e-7)
    for gamma in (0.75, 2.0):
        expected = mean_over_classes(lambda p, true, g=gamma: (1 - tversky_index(p, true, alpha, beta)) ** g, p, y)
        found = value("focal_tversky", logits, mask, alpha=alpha, beta=beta, gamma=gamma)
        assert found == pytest.approx(expected, rel=1e-7)


def test_the_defaults_of_the_tversky_terms_are_the_papers():
    batch = example()
    assert value("tversky", *batch) == value("tversky", *batch, alpha=0.3, beta=0.7)
    assert value("focal_tversky", *batch) == value("focal_tversky", *batch, alpha=0.3, beta=0.7, gamma=0.75)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lovasz_is_the_extension_of_the_jaccard_loss(dtype):
    logits, mask = example()
    expected = mean_over_classes(lovasz_extension, *valid_pixels(logits, mask))
    rel = 1e-12 if dtype == torch.float64 else 1e-6
    assert value("lovasz", logits.to(dtype), mask) == pytest.approx(expected, rel=rel)
    expected = mean_over_images(lovasz_extension, logits, mask)
    assert value("lovasz", logits.to(dtype), mask, per_image=True) == pytest.approx(expected, rel=rel)


def test_lovasz_of_a_hard_prediction_is_one_minus_its_iou():
    _, mask = example()
    pred = torch.where(mask == 255, 3, (mask.roll(1, -1) % 255) % 3)
    logits = 1000 * F.one_hot(pred.long(), 5).movedim(-1, 1).double()
    expected = 1 - mean_over_classes(soft_iou, *valid_pixels(logits, mask))
    assert value("lovasz", logits, mask) == pytest.approx(expected, rel=1e-12)


def test_balanced_class_weights_are_those_of_scikit_learn():
    logits, mask = example()
    _, y = valid_pixels(logits, mask)
    balanced = compute_class_weight("balanced", classes=np.unique(y), y=y)
    names = dict(zip(np.array(NAMES)[np.unique(y)].tolist(), balanced.tolist(), strict=True))
    counts = np.bincount(y, minlength=5)
    resolved = resolve_class_weights("focal", "balanced", (), counts)
    np.testing.assert_allclose(resolved.numpy()[np.unique(y)], balanced)
    for name in ("cross_entropy", "label_smoothing", "focal"):
        by_data = build_loss({name: {"class_weights": "balanced"}}, 5, class_pixels=counts)
        expected = value(name, logits, mask, class_weights={**names, "d": 0.0})
        assert by_data(logits, mask).item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_of_mixed_masks_is_that_of_soft_targets():
    (logits, first), (_, second) = example(), example(seed=1)
    first, second = first % 255, second % 255
    soft = sum(share * F.one_hot(mask.long(), 5).double() for mask, share in ((first, 0.3), (second, 0.7)))
    expected = F.cross_entropy(logits, soft.movedim(-1, 1)).item()
    mixed = 0.3 * value("cross_entropy", logits, first) + 0.7 * value("cross_entropy", logits, second)
    assert mixed == pytest.approx(expected, rel=1e-12)
