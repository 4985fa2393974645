"""Mixes of a batch: every pixel keeps its source's label, shares sum to 1, draws depend on (seed, epoch, step) alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seglib.errors import InputError
from seglib.training.mixing import (
    build_batch_mixing,
    cutmix,
    foreground_activation,
    mix_batch,
    snapmix,
)

WORDS = {"seed": 1, "epoch": 2, "step": 3}
SIZE = 32
ALWAYS = {name: {name: {"p": 1.0}} for name in ("mixup", "cutmix", "snapmix")}


def uniform(images):
    return torch.full((len(images), *images.shape[2:]), 0.5)


def draw_batch(count=6, height=SIZE, width=SIZE, classes=9, seed=0):
    """Red is 20 times the class, green the image's number, blue noise; channels-last as the loader's; some ignored."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, classes, (count, height, width)).astype(np.uint8)
    images = np.zeros((count, height, width, 3), np.uint8)
    images[..., 0] = 20 * masks
    images[..., 1] = np.arange(count)[:, None, None]
    images[..., 2] = rng.integers(0, 256, masks.shape)
    masks[:, : height // 8] = 255  # known by the red that no ignored pixel loses
    images[:, : height // 8, :, 0] = 240
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)


def labels_by_red(images):
    red = images[:, 0]
    return torch.where(red == 240, 255, red // 20)


def mix(name, images, masks, activation=uniform, words=WORDS, **options):
    return mix_batch(images, masks, {name: {"p": 1.0, **options}}, activation=activation, **words)


@pytest.mark.parametrize("name", ALWAYS)
def test_mixes_give_uint8_in_the_format_that_came_in_and_leave_their_input_alone(name):
    images, masks = draw_batch()
    before = images.clone(), masks.clone()
    mixed, targets = mix(name, images, masks)
    assert mixed.dtype == torch.uint8
    assert mixed.shape == images.shape
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert all(mask.dtype == torch.uint8 and mask.shape == masks.shape for mask, _ in targets)
    assert sum(share for _, share in targets) == pytest.approx(1, abs=1e-12)
    assert all(type(share) is float for _, share in targets)
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])
    assert not torch.equal(mixed, images)


@pytest.mark.parametrize("name", ALWAYS)
def test_the_same_words_give_the_same_mix_whatever_was_drawn_before(name):
    images, masks = draw_batch()
    first = mix(name, images, masks)
    np.random.default_rng().random(3), torch.rand(3)
    mix(name, images, masks, words=WORDS | {"step": 9})
    again = mix(name, images, masks)
    assert torch.equal(first[0], again[0])
    for (mask, share), (other, other_share) in zip(first[1], again[1], strict=True):
        assert torch.equal(mask, other)
        assert share == other_share


@pytest.mark.parametrize("changed", WORDS)
@pytest.mark.parametrize("name", ALWAYS)
def test_each_of_seed_epoch_and_step_changes_the_mix(name, changed):
    images, masks = draw_batch()
    mixes = {mix(name, images, masks, words=WORDS | {changed: value})[0].numpy().tobytes() for value in range(6)}
    assert len(mixes) == 6


@pytest.mark.parametrize("name", ALWAYS)
def test_p_0_never_mixes(name):
    images, masks = draw_batch()
    for step in range(20):
        words = WORDS | {"step": step}
        mixed, targets = mix_batch(images, masks, {name: {"p": 0.0}}, activation=uniform, **words)
        assert mixed is images
        assert len(targets) == 1
        assert targets[0] == (masks, 1.0)


def test_one_step_at_most_is_applied_and_the_first_whose_draw_hits():
    images, masks = draw_batch(4, 8, 8)
    steps = {"mixup": {"p": 0.4}, "cutmix": {"p": 0.5}}
    kinds = []
    for step in range(600):
        mixed, targets = mix_batch(images, masks, steps, seed=1, epoch=1, step=step, activation=uniform)
        kinds.append("mixup" if len(targets) == 2 else "none" if mixed is images else "cutmix")
    shares = [kinds.count(kind) / 600 for kind in ("mixup", "cutmix", "none")]
    assert shares == pytest.approx([0.4, 0.6 * 0.5, 0.6 * 0.5], abs=0.07)  # 3.5 standard deviations


def test_mixup_blends_images_and_keeps_both_masks():
    images, masks = draw_batch()
    mixed, ((own, share), (other, other_share)) = mix("mixup", images, masks)
    assert own is masks
    assert other_share == 1 - share
    partner = [next(j for j in range(6) if torch.equal(masks[j], mask)) for mask in other]
    assert sorted(partner) == list(range(6))
    expected = np.round(share * images.numpy().astype(float) + other_share * images.numpy()[partner])
    assert np.abs(mixed.numpy() - expected).max() <= 1
    assert np.mean(mixed.numpy() != expected) < 0.001  # only halves may round the other way


def test_lambda_of_mixup_is_beta_distributed():
    images, masks = draw_batch(2, 4, 4)
    draws = [mix("mixup", images, masks, words=WORDS | {"step": k}, alpha=0.4)[1][0][1] for k in range(800)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.05)
    assert np.var(draws) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.012)  # of Beta(a, a)


def test_mixup_with_cross_entropy_is_cross_entropy_with_soft_targets():
    images, masks = draw_batch(4, 8, 8)
    masks = masks.clamp(max=8)  # no ignored pixels: each mask's mean is over the same ones
    _, targets = mix("mixup", images, masks)
    logits = torch.randn(4, 9, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft = sum(share * F.one_hot(mask.long(), 9).permute(0, 3, 1, 2).double() for mask, share in targets)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    value = sum(share * F.cross_entropy(logits, mask.long()) for mask, share in targets)
    assert value.item() == pytest.approx(expected.item(), abs=1e-14)


def test_every_pixel_of_cutmix_has_the_label_of_its_source():
    images, masks = draw_batch()
    for step in range(20):
        mixed, [(mixed_masks, share)] = mix("cutmix", images, masks, words=WORDS | {"step": step})
        assert share == 1.0
        assert torch.equal(labels_by_red(mixed), mixed_masks)


def test_cutmix_covers_a_box_by_the_same_place_of_one_partner():
    images, masks = draw_batch()
    mixed, _ = mix("cutmix", images, masks)
    partners = set()
    for i in range(6):
        foreign = (mixed[i, 1] != i).numpy()
        if not foreign.any():
            continue
        rows, columns = np.flatnonzero(foreign.any(1)), np.flatnonzero(foreign.any(0))
        assert foreign[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        (partner,) = mixed[i, 1][torch.from_numpy(foreign)].unique().tolist()
        assert torch.equal(mixed[i][:, foreign], images[partner][:, foreign])
        partners.add(partner)
    assert len(partners) > 2


def test_boxes_of_cutmix_have_an_area_of_one_minus_lambda():
    images, masks = draw_batch(16, 64, 64)
    partner, rng = np.roll(np.arange(16), 1), np.random.default_rng(0)
    shares = []
    for _ in range(40):
        mixed, _ = cutmix(images, masks, partner, rng, alpha=1.0)
        own = torch.arange(16, dtype=torch.uint8)[:, None, None]
        shares += (mixed[:, 1] != own).float().mean((1, 2)).tolist()
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.quantile(shares, [0.25, 0.75]) == pytest.approx([0.25, 0.75], abs=0.07)  # uniform, as Beta(1, 1) is


def test_snapmix_of_one_label_images_keeps_image_and_label_together():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, SIZE, SIZE).contiguous() * 20
    masks = images[:, 0] // 20
    mixed, [(mixed_masks, share)] = mix("snapmix", images, masks)
    assert share == 1.0
    assert torch.equal(mixed[:, 0], mixed_masks * 20)
    assert not torch.equal(masks, mixed_masks)


def find_box(foreign):
    rows, columns = np.flatnonzero(foreign.any(1)), np.flatnonzero(foreign.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@pytest.mark.parametrize("height, width", [(32, 32), (24, 40)])
def test_snapmix_is_a_resized_crop_pasted(height, width):
    """Replayed with the same draws: crop, F.interpolate, paste, one image after the other."""
    images, masks = draw_batch(6, height, width)
    partner = np.roll(np.arange(6), 2)
    activation = torch.zeros(6, height, width)
    activation[:, 12, 9] = 1.0
    mixed, [(mixed_masks, _)] = snapmix(images, masks, partner, np.random.default_rng(4), lambda _: activation)
    rng = np.random.default_rng(4)
    sides = [
        np.maximum(1, np.round(np.sqrt(1 - rng.beta(5, 5, 6))[:, None] * [height, width])).astype(int) for _ in "ab"
    ]
    for i, j in enumerate(partner):
        foreign = (mixed[i, 1] != i).numpy()
        top, bottom, left, right = find_box(foreign)
        assert foreign[top:bottom, left:right].all()
        assert (bottom - top, right - left) == tuple(sides[1][i])
        h, w = sides[0][i]
        y, x = min(max(12 - h // 2, 0), height - h), min(max(9 - w // 2, 0), width - w)
        crop = images[j : j + 1, :, y : y + h, x : x + w].float()
        size = (bottom - top, right - left)
        pixels = F.interpolate(crop, size, mode="bilinear", align_corners=False)[0]
        labels = F.interpolate(masks[None, j : j + 1, y : y + h, x : x + w].float(), size, mode="nearest-exact")[0, 0]
        assert (mixed[i, :, top:bottom, left:right] - pixels).abs().max() < 0.501  # rounded, halves either way
        assert torch.equal(mixed_masks[i, top:bottom, left:right].float(), labels)
        outside = torch.from_numpy(~foreign)
        assert torch.equal(mixed_masks[i][outside], masks[i][outside])
        assert torch.equal(mixed[i][:, outside], images[i][:, outside])


def test_snapmix_takes_where_the_activation_is_and_covers_where_it_is_not():
    count = 8
    images, masks = draw_batch(count, 64, 64)
    activation = torch.zeros(count, 64, 64)
    activation[:, 40:, 40:] = 1.0
    ys, xs = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    images = images.clone()
    images[:, 0], images[:, 2] = ys.to(torch.uint8), xs.to(torch.uint8)  # pixels say where they come from
    middle_from, covered = [], torch.zeros(64, 64)
    for k in range(30):
        partner = np.roll(np.arange(count), 1)
        mixed, _ = snapmix(images, masks, partner, np.random.default_rng(k), lambda _: activation, alpha=5.0)
        for i in range(count):
            foreign = (mixed[i, 1] != i).numpy()
            middle_from.append(mixed[i, 0].numpy()[foreign].mean())
            covered += torch.from_numpy(foreign)
    assert np.mean(middle_from) > 36  # the image's middle is 31.5; boxes are moved into the image
    assert covered[:24, :24].mean() > 1.2 * covered[40:, 40:].mean()


def test_centres_are_drawn_in_proportion_to_the_activation():
    """Boxes of one pixel lie where their centre was drawn."""
    weights = torch.zeros(4, 8, 8)
    weights[:, 1, 2], weights[:, 6, 5] = 0.75, 0.25
    images, masks = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, 8, 8, dtype=torch.uint8)
    masks[:, 1, 2], masks[:, 6, 5] = 1, 2
    taken = []
    for k in range(300):
        rng = np.random.default_rng(k)
        [(mixed, _)] = snapmix(images, masks, np.arange(4), OnePixel(rng), lambda _: weights)[1]
        taken += [int(mask.sum()) - 3 for mask in mixed]
    pixels = [taken.count(1), taken.count(2)]
    assert sum(pixels) > 1000  # else the covered pixel was one of the two
    assert pixels[0] / sum(pixels) == pytest.approx(0.75, abs=0.045)


class OnePixel:
    """A generator whose lambdas are 1, so that boxes have one pixel."""

    def __init__(self, rng):
        self.random = rng.random

    def beta(self, a, b, size):
        return np.ones(size)


def test_an_activation_that_is_not_a_number_counts_as_none():
    images, masks = draw_batch()
    diverged, nothing = (
        mix("snapmix", images, masks, lambda x, v=v: uniform(x) * 0 + v)[0] for v in (float("nan"), 0.0)
    )
    assert torch.equal(diverged, nothing)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_activation_without_contrast_still_gives_a_mix(value):
    images, masks = draw_batch()
    mixed, [(mixed_masks, _)] = mix("snapmix", images, masks, lambda images: uniform(images) * 0 + value)
    assert not torch.equal(mixed, images)
    assert set(mixed_masks.unique().tolist()) <= {*range(9), 255}


@pytest.mark.parametrize("name", ALWAYS)
def test_no_step_waits_for_the_device(name):
    """Tensors on meta have no values: whatever would read one on the host raises."""
    images, masks = (tensor.to("meta") for tensor in draw_batch())
    mixed, targets = mix(name, images, masks, lambda images: uniform(images).to("meta"))
    assert mixed.device.type == targets[0][0].device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ALWAYS)
def test_cuda_gives_what_the_cpu_gives_without_being_waited_for(name):
    images, masks = draw_batch()
    here = mix(name, images, masks)
    there = images.cuda(), masks.cuda(), uniform(images).cuda()
    torch.use_deterministic_algorithms(True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed, targets = mix(name, *there[:2], lambda images: there[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    assert (mixed.cpu().int() - here[0].int()).abs().max() <= 1
    assert torch.equal(targets[0][0].cpu(), here[1][0][0])


class Tiny(nn.Module):
    takes_uint8 = True

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images):
        return self.frozen(self.norm(self.conv(images.float() / 255)))


def test_the_activation_is_one_minus_the_backgrounds_probability_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model, (images, _) = Tiny(), draw_batch(10)
    model.train()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    activation = foreground_activation(model, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [model.training, model.norm.training, model.frozen.training] == [True, True, False]
    expected = model.eval()(images).softmax(1)[:, 1:].sum(1)
    assert activation.shape == (10, SIZE, SIZE)
    assert torch.allclose(activation, expected, atol=1e-6)


def test_weights_still_learn_when_the_activation_was_computed_in_the_same_autocast():
    torch.manual_seed(0)
    model, (images, _) = Tiny(), draw_batch(4)
    with torch.autocast("cpu", torch.bfloat16):
        foreground_activation(model, images)
        model(images).square().mean().backward()
    assert model.conv.weight.grad is not None


def test_built_mixing_passes_over_mixes_of_samples_and_is_apart_without_any():
    images, masks = draw_batch()
    assert build_batch_mixing({"mosaic": 0.5}, Tiny(), seed=1, precision="float32") is None
    mixing = build_batch_mixing({"mosaic": 0.5, "cutmix": 1.0}, Tiny(), seed=1, precision="float32")
    expected = mix_batch(images, masks, ALWAYS["cutmix"], seed=1, epoch=2, step=3, activation=uniform)
    assert torch.equal(mixing(images, masks, 2, 3)[0], expected[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_built_snapmix_is_guided_by_the_model(precision):
    torch.manual_seed(0)
    images, masks = draw_batch()
    mixed, [(mixed_masks, _)] = build_batch_mixing({"snapmix": 1.0}, Tiny(), seed=1, precision=precision)(
        images, masks, 1, 1
    )
    assert not torch.equal(mixed, images)
    assert not torch.equal(mixed_masks, masks)


def test_unknown_names_and_options_are_refused():
    for mixing, words in [
        ({"cutmx": 0.5}, "did you mean 'cutmix'"),
        ({"cutmix": {"alfa": 1}}, "unknown option of mixing.cutmix"),
    ]:
        with pytest.raises(InputError, match=words):
            build_batch_mixing(mixing, Tiny(), seed=1, precision="float32")


def test_an_example_is_mixed_even_where_the_first_draws_do_not_hit():
    images, masks = draw_batch()
    arrays = images.permute(0, 2, 3, 1).numpy(), masks.numpy()
    mixing = build_batch_mixing({"cutmix": 0.2}, Tiny(), seed=1, precision="float32")
    mixed, mixed_masks = mixing.draw_example(*arrays)
    assert mixed.shape == arrays[0].shape
    assert not np.array_equal(mixed, arrays[0])
    assert np.array_equal(labels_by_red(torch.from_numpy(mixed).permute(0, 3, 1, 2)).numpy(), mixed_masks)
