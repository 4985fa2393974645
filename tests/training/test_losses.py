import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seglib.errors import InputError
from seglib.training.losses import LOSSES, build_loss, focal

TERMS = ["cross_entropy", "focal", "dice", "jaccard"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def example(seed=0, num_classes=5, dtype=torch.float32):
    """Two images: the first mostly ignored, the second not at all; class 3 is absent from the truth."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, num_classes, 6, 8, generator=g, dtype=torch.float64)
    mask = torch.randint(0, num_classes, (2, 6, 8), generator=g)
    mask[mask == 3] = 1
    mask[0, :4] = 255
    return logits.to(dtype), mask.to(torch.uint8)


def valid_probabilities(logits, mask):
    """Softmax over classes in float64, of the valid pixels alone: p (pixels, C), y (pixels,)."""
    logits = np.moveaxis(logits.double().numpy(), 1, -1)[mask.numpy() != 255]
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True), mask.numpy()[mask.numpy() != 255]


def formula(name, logits, mask, gamma=2.0):
    p, y = valid_probabilities(logits, mask)
    p_y = p[np.arange(len(y)), y]
    if name == "cross_entropy":
        return np.mean(-np.log(p_y))
    if name == "focal":
        return np.mean((1 - p_y) ** gamma * -np.log(p_y))
    scores = []
    for c in np.unique(y):
        intersection, total = p[y == c, c].sum(), p[:, c].sum() + np.sum(y == c)
        scores.append(2 * intersection / total if name == "dice" else intersection / (total - intersection))
    return 1 - np.mean(scores)


def value_and_gradient(loss, logits, mask):
    logits = logits.clone().requires_grad_()
    value = loss(logits, mask)
    value.backward()
    return value.detach(), logits.grad


def test_the_names_are_these():
    assert list(LOSSES) == TERMS


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("name", TERMS)
def test_term_equals_its_formula(name, dtype):
    logits, mask = example()
    value = build_loss({name: 1.0}, 5)(logits, mask.to(dtype))
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert value.item() == pytest.approx(formula(name, logits, mask), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_equals_its_formula_for_every_gamma(gamma):
    logits, mask = example(dtype=torch.float64)
    valid = mask != 255
    value = focal(logits, mask * valid, valid.double(), gamma=gamma)
    assert value.item() == pytest.approx(formula("focal", logits, mask, gamma), rel=1e-12)


def test_cross_entropy_equals_torch_in_value_and_gradient():
    logits, mask = example()
    ours = value_and_gradient(build_loss({"cross_entropy": 1.0}, 5), logits, mask)
    theirs = value_and_gradient(lambda x, y: F.cross_entropy(x, y.long(), ignore_index=255), logits, mask)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", TERMS)
def test_gradient_is_that_of_the_value(name):
    logits, mask = (tensor[..., 3:5, :4] for tensor in example(dtype=torch.float64))
    loss = build_loss({name: 1.0}, 5)
    assert loss(logits, mask).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits.requires_grad_())


@pytest.mark.parametrize("name", TERMS)
def test_softmax_is_over_classes_so_the_order_of_columns_does_not_matter(name):
    logits, mask = example()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    loss = build_loss({name: 1.0}, 5)
    assert loss(logits[..., order], mask[..., order]).item() == pytest.approx(loss(logits, mask).item(), rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_ignored_pixels_change_nothing(name):
    logits, mask = example()
    loss = build_loss({name: 1.0}, 5)
    expected = loss(logits, mask).item()

    changed = torch.where((mask == 255)[:, None], 100 * logits, logits)
    value, gradient = value_and_gradient(loss, changed, mask)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert gradient[0, :, :4].abs().max() == 0
    assert gradient[0, :, 4:].abs().max() > 0

    longer = torch.cat([logits, logits]), torch.cat([mask, torch.full_like(mask, 255)])
    assert loss(*longer).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_any_id_can_be_the_ignored_one(name):
    logits, mask = example()
    expected = formula(name, logits, torch.where(mask == 0, 255, mask))
    mask = torch.where(mask == 255, 0, mask)
    assert build_loss({name: 1.0}, 5, ignore_index=0)(logits, mask).item() == pytest.approx(expected, rel=1e-6)
    mask = torch.where(mask == 0, -100, mask.long())
    assert build_loss({name: 1.0}, 5, ignore_index=-100)(logits, mask).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["dice", "jaccard"])
def test_absent_class_is_left_out_of_the_mean(name):
    mask = torch.tensor([[[0, 0], [1, 1]]])
    logits = 50 * F.one_hot(mask, 4).permute(0, 3, 1, 2).float()
    assert build_loss({name: 1.0}, 4)(logits, mask).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_only_ignored_pixels_give_zero_and_zero_gradients(name):
    logits, mask = example()
    value, gradient = value_and_gradient(build_loss({name: 1.0}, 5), logits, torch.full_like(mask, 255))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", TERMS)
def test_huge_logits_keep_value_and_gradient_finite(name):
    mask = torch.tensor([[[0, 1, 2, 255]]])
    right = F.one_hot(mask.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    loss = build_loss({name: 1.0}, 3)
    for logits in (1e4 * right, -1e4 * right, 1e4 * (2 * right - 1), 1e4 * right.roll(1, dims=1)):
        value, gradient = value_and_gradient(loss, logits, mask)
        assert value.isfinite()
        assert gradient.isfinite().all()
    assert loss(1e4 * right, mask).item() == pytest.approx(0, abs=1e-6)
    assert loss(-1e4 * right, mask).item() > 0.5


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_where_the_probability_rounds_to_one(gamma):
    logits = torch.tensor([40.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    focal(logits, torch.zeros(1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1), gamma=gamma).backward()
    assert logits.grad.isfinite().all()


def test_mixture_is_the_weighted_sum():
    logits, mask = example()
    weights = {"cross_entropy": 0.9, "focal": 0.1, "dice": 2, "jaccard": 0.0}
    expected = sum(weight * formula(name, logits, mask) for name, weight in weights.items())
    assert build_loss(weights, 5)(logits, mask).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TERMS)
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    logits, mask = example(dtype=dtype)
    loss = build_loss({name: 1.0}, 5)
    with torch.autocast("cpu", dtype):
        value, gradient = value_and_gradient(loss, logits, mask)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(formula(name, logits, mask), rel=1e-6)
    torch.testing.assert_close(gradient, value_and_gradient(loss, logits.float(), mask)[1].to(dtype))


@pytest.mark.parametrize("name", TERMS)
def test_channels_last_gives_the_same(name):
    logits, mask = example()
    loss = build_loss({name: 1.0}, 5)
    value, gradient = value_and_gradient(loss, logits, mask)
    last = value_and_gradient(loss, logits.contiguous(memory_format=torch.channels_last), mask)
    torch.testing.assert_close(last[0], value)
    torch.testing.assert_close(last[1], gradient, check_stride=False)


@pytest.mark.parametrize("name", TERMS)
def test_descent_on_the_logits_reaches_zero(name):
    _, mask = example()
    logits = torch.zeros(2, 5, 6, 8, requires_grad=True)
    loss, optimizer = build_loss({name: 1.0}, 5), torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(logits, mask)
        value.backward()
        optimizer.step()
    assert value < 1e-3
    assert torch.equal(logits.argmax(1)[mask != 255], mask[mask != 255].long())


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TERMS)
def test_deterministic_mode_runs_and_repeats_exactly(name, device):
    logits, mask = (tensor.to(device) for tensor in example())
    first, second = (value_and_gradient(build_loss({name: 1.0}, 5), logits, mask) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"focl": 1.0}, "loss: unknown loss 'focl'; did you mean 'focal'"),
        ({}, "at least one weight must be > 0, got {}; try"),
        ({"dice": 0.0}, r"at least one weight must be > 0, got {'dice': 0.0}"),
        ({"dice": 1.0, "focal": -0.1}, r"loss \[focal\]: its weight must be finite and >= 0, got -0.1; try focal: 1.0"),
        ({"dice": float("nan")}, "got nan"),
        ({"dice": float("inf")}, "got inf"),
        ({"dice": "1e-3"}, "got '1e-3'"),
        ({"dice": True}, "got True"),
    ],
)
def test_unusable_weights_are_refused(weights, words):
    with pytest.raises(InputError, match=words):
        build_loss(weights, 5)


@pytest.mark.parametrize(("num_classes", "words"), [(1, "2 to 256 .* got 1"), (300, "2 to 256 .* got 300")])
def test_unusable_number_of_classes_is_refused(num_classes, words):
    with pytest.raises(InputError, match=words):
        build_loss({"dice": 1.0}, num_classes)


@pytest.mark.parametrize(
    ("logits", "mask", "words"),
    [
        (
            torch.zeros(2, 4, 6, 8),
            torch.zeros(2, 6, 8).long(),
            r"must be \(N, 5, H, W\) .* got \(2, 4, 6, 8\) and \(2, 6",
        ),
        (torch.zeros(2, 5, 6, 8), torch.zeros(2, 6, 7).long(), r"got \(2, 5, 6, 8\) and \(2, 6, 7\)"),
        (torch.zeros(2, 5, 6, 8), torch.zeros(1, 6, 8).long(), r"and \(1, 6, 8\)"),
        (torch.zeros(5, 6, 8), torch.zeros(6, 8).long(), r"got \(5, 6, 8\)"),
        (
            torch.zeros(2, 5, 6, 8).long(),
            torch.zeros(2, 6, 8).long(),
            "got torch.int64 and torch.int64; give logits, not",
        ),
        (torch.zeros(2, 5, 6, 8), torch.zeros(2, 6, 8), "and torch.float32"),
        (torch.zeros(2, 5, 6, 8), torch.full((2, 6, 8), 5, dtype=torch.uint8), "0 to 4 or ignore_index=255, got 5;"),
        (torch.zeros(2, 5, 6, 8), torch.full((2, 6, 8), -1), "got -1;"),
    ],
)
def test_logits_and_masks_that_do_not_fit_are_refused(logits, mask, words):
    with pytest.raises(InputError, match=words):
        build_loss({"cross_entropy": 1.0}, 5)(logits, mask)
