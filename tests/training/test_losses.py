"""What every loss term promises, whatever it measures; their formulas and options have files of their own."""

import math

import pytest
import torch
import torch.nn.functional as F

from seglib.errors import InputError
from seglib.parts import find_parts
from seglib.training.loss_terms import focal
from seglib.training.losses import build_loss

TERMS = list(find_parts("loss"))
REGIONS = ["dice", "jaccard", "miou", "lovasz", "tversky", "focal_tversky"]
NEIGHBOURHOODS = ["ms_ssim", "boundary"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def example(seed=0, num_classes=5, dtype=torch.float32):
    """Two images: the first mostly ignored, the second not at all; class 3 is absent from the truth."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, num_classes, 6, 8, generator=g, dtype=torch.float64)
    mask = torch.randint(0, num_classes, (2, 6, 8), generator=g)
    mask[mask == 3] = 1
    mask[0, :4] = 255
    return logits.to(dtype), mask.to(torch.uint8)


def value_and_gradient(loss, logits, mask):
    logits = logits.clone().requires_grad_()
    value = loss(logits, mask)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("name", TERMS)
def test_value_is_a_scalar_for_every_type_of_mask(name, dtype):
    logits, mask = example()
    loss = build_loss({name: 1.0}, 5)
    value = loss(logits, mask.to(dtype))
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert value.item() == pytest.approx(loss(logits.double(), mask).item(), rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_gradient_is_that_of_the_value(name):
    logits, mask = (tensor[..., 1:6, :5] for tensor in example(dtype=torch.float64))
    loss = build_loss({name: 1.0}, 5)
    assert loss(logits, mask).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits.requires_grad_())


@pytest.mark.parametrize("name", TERMS)
def test_softmax_is_over_classes_so_a_number_added_to_all_of_a_pixel_changes_nothing(name):
    logits, mask = example()
    loss, shift = build_loss({name: 1.0}, 5), torch.linspace(-3, 3, 8)
    assert loss(logits + shift, mask).item() == pytest.approx(loss(logits, mask).item(), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in TERMS if name not in NEIGHBOURHOODS])
def test_order_of_columns_does_not_matter_to_pixels_and_regions(name):
    logits, mask = example()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    loss = build_loss({name: 1.0}, 5)
    assert loss(logits[..., order], mask[..., order]).item() == pytest.approx(loss(logits, mask).item(), rel=1e-6)


@pytest.mark.parametrize("name", NEIGHBOURHOODS)
def test_neighbourhoods_are_symmetric(name):
    logits, mask = example()
    loss = build_loss({name: 1.0}, 5)
    for turned in ((logits.flip(-1), mask.flip(-1)), (logits.mT, mask.mT)):
        assert loss(*turned).item() == pytest.approx(loss(logits, mask).item(), rel=1e-6)


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
    expected = build_loss({name: 1.0}, 5)(logits, torch.where(mask == 0, 255, mask)).item()
    mask = torch.where(mask == 255, 0, mask)
    assert build_loss({name: 1.0}, 5, ignore_index=0)(logits, mask).item() == pytest.approx(expected, rel=1e-6)
    mask = torch.where(mask == 0, -100, mask.long())
    assert build_loss({name: 1.0}, 5, ignore_index=-100)(logits, mask).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", REGIONS + NEIGHBOURHOODS)
def test_absent_class_is_left_out_of_the_mean(name):
    mask = torch.tensor([[[0, 0], [1, 1]]])
    logits = 50 * F.one_hot(mask, 4).permute(0, 3, 1, 2).float()
    assert build_loss({name: 1.0}, 4)(logits, mask).item() == pytest.approx(0, abs=1e-5)


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
    if name != "label_smoothing":  # which punishes certainty
        assert loss(1e4 * right, mask).item() == pytest.approx(0, abs=1e-5)
    if name != "boundary":  # which has no sides
        assert loss(-1e4 * right, mask).item() > 0.5


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_where_the_probability_rounds_to_one(gamma):
    logits = torch.tensor([40.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    focal(logits, torch.zeros(1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1), gamma=gamma).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("terms", [{"focal_tversky": {}}, {"focal_tversky": {"gamma": 0.1}}, {"lovasz": {}}])
def test_gradient_is_finite_and_small_at_an_almost_perfect_prediction(terms):
    mask = torch.arange(64).view(1, 8, 8) % 3
    for sharpness in (8, 12, 20, 100):
        logits = sharpness * F.one_hot(mask, 3).movedim(-1, 1).float()
        value, gradient = value_and_gradient(build_loss(terms, 3), logits, mask)
        assert value < 1
        assert gradient.abs().max() < 0.1


def test_mixture_is_the_weighted_sum():
    logits, mask = example()
    weights = {"cross_entropy": 0.9, "focal": 0.1, "ms_ssim": 2, "lovasz": 0.5, "jaccard": 0.0}
    expected = sum(weight * build_loss({name: 1.0}, 5)(logits, mask).item() for name, weight in weights.items())
    assert build_loss(weights, 5)(logits, mask).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TERMS)
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    logits, mask = example(dtype=dtype)
    loss = build_loss({name: 1.0}, 5)
    with torch.autocast("cpu", dtype):
        value, gradient = value_and_gradient(loss, logits, mask)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.double(), mask).item(), rel=1e-5)
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
def test_descent_on_the_logits_reaches_the_minimum(name):
    logits, mask = example()
    logits.requires_grad_()
    loss, optimizer = build_loss({name: 1.0}, 5), torch.optim.Adam([logits], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(logits, mask)
        value.backward()
        optimizer.step()
    lowest = -(0.92 * math.log(0.92) + 4 * 0.02 * math.log(0.02)) if name == "label_smoothing" else 0
    assert value.item() == pytest.approx(lowest, abs=1e-3)
    if name != "boundary":  # which is as low two pixels away
        assert torch.equal(logits.argmax(1)[mask != 255], mask[mask != 255].long())


def train_linear(terms):
    """Accuracy of a 1x1 convolution, trained and tested on two images of noisy squares in four colours."""
    g = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 4, (2, 4, 6), generator=g).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = F.one_hot(mask, 4).movedim(-1, 1) + 0.5 * torch.randn(2, 4, *mask.shape[1:], generator=g)
    torch.manual_seed(0)
    model, loss = torch.nn.Conv2d(4, 4, 1), build_loss(terms, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model(images), mask).backward()
        optimizer.step()
    return (model(images).argmax(1) == mask).float().mean().item()


@pytest.mark.parametrize("name", [name for name in TERMS if name != "boundary"])
def test_each_term_alone_trains_a_model_as_well_as_cross_entropy(name):
    assert train_linear({name: 1.0}) > 0.95 * train_linear({"cross_entropy": 1.0}) > 0.7


def test_boundary_beside_cross_entropy_trains_as_well():
    assert train_linear({"cross_entropy": 0.5, "boundary": 0.5}) > 0.95 * train_linear({"cross_entropy": 1.0})


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_only_the_first_masks_are_checked():
    logits, mask = torch.zeros(2, 5, 6, 8, device="cuda"), torch.full((2, 6, 8), 7, device="cuda")
    loss = build_loss({"dice": 1.0}, 5)
    with pytest.raises(InputError, match="got 7"):
        loss(logits, mask)
    loss(logits, mask % 5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(logits, mask % 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
