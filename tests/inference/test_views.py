import itertools

import pytest
import torch

from seglib.errors import InputError
from seglib.inference.views import (
    View,
    apply_turns,
    build_views,
    check_sliding,
    find_starts,
    merge_views,
    predict_view,
    scale_images,
    slide,
    undo_turns,
    window_weights,
)

ALL = {"flips": ["none", "horizontal", "vertical", "both"], "rotations": [0, 90, 180, 270]}
EIGHT = [View(mirrored, turns, 64) for mirrored, turns in itertools.product((False, True), range(4))]


def draw_images(count=2, side=64):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.manual_seed(0)).to(torch.uint8)


def equivariant(images):
    """Logits of each pixel from its colour alone: turned with the image, whatever is done to it."""
    return torch.cat([images.float() / 50, 3 - images[:, :1].float() / 90], dim=1)


def lopsided(images):
    """Logits that depend on where a pixel is, too."""
    return equivariant(images) + torch.linspace(0, 3, images.shape[-1])


def test_flips_and_rotations_have_eight_views_whatever_names_them():
    assert set(build_views(ALL, 64)) == set(EIGHT)
    assert len(build_views(ALL, 64)) == 8
    assert len(build_views({"flips": ["none", "vertical"], "rotations": [0, 180]}, 64)) == 4
    assert build_views({"flips": ["both"]}, 64) == build_views({"rotations": [180]}, 64)


def test_without_tta_the_image_is_predicted_as_it_is():
    assert build_views((), 64) == build_views({}, 64) == build_views([], 64) == [View(False, 0, 64)]


def test_scales_are_rounded_to_multiples_of_32_and_told_apart_by_their_size():
    views = build_views({"scales": [0.75, 0.76, 1, 1.0, 1.3]}, 128)
    assert [view.side for view in views] == [96, 128, 160]
    assert build_views({"scales": [0.1]}, 64)[0].side == 32


def test_lists_of_products_are_put_together():
    views = build_views([{"flips": ["none", "horizontal"]}, {"scales": [1.0, 1.5]}], 64)
    assert [str(view) for view in views] == ["plain@64", "mirrored@64", "plain@96"]


@pytest.mark.parametrize(
    ("flip", "turned"), [("horizontal", lambda x: x.flip(-1)), ("vertical", lambda x: x.flip(-2)),
                         ("both", lambda x: x.flip(-1, -2))]
)  # fmt: skip
def test_flips_are_what_their_names_say(flip, turned):
    images = draw_images()
    assert torch.equal(apply_turns(images, build_views({"flips": [flip]}, 64)[0]), turned(images))


@pytest.mark.parametrize("view", EIGHT, ids=str)
def test_turning_back_is_exact(view):
    images = draw_images()
    turned = apply_turns(images, view)
    assert torch.equal(undo_turns(turned, view), images)
    assert torch.equal(turned, images) == (view == EIGHT[0])


@pytest.mark.parametrize("merge", ["mean", "logits"])
def test_a_model_that_turns_with_the_image_gives_the_same_under_all_eight(merge):
    images = draw_images()
    merged = merge_views(equivariant, images, EIGHT, merge)
    torch.testing.assert_close(merged, equivariant(images).softmax(1), rtol=0, atol=1e-6)


def test_the_plain_view_is_bit_for_bit_the_plain_prediction():
    images = draw_images()
    for merge in ("mean", "logits"):
        assert torch.equal(merge_views(lopsided, images, build_views((), 64), merge), lopsided(images).softmax(1))


def test_probabilities_or_logits_are_averaged():
    images, views = draw_images(), build_views({"flips": ["none", "horizontal"]}, 64)
    logits = torch.stack([lopsided(images), lopsided(images.flip(-1)).flip(-1)])
    torch.testing.assert_close(merge_views(lopsided, images, views, "mean"), logits.softmax(2).mean(0))
    torch.testing.assert_close(merge_views(lopsided, images, views, "logits"), logits.mean(0).softmax(1))


@pytest.mark.parametrize("side", [32, 96])
def test_scaled_views_come_back_in_place(side):
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(1, 3, 64, 64)
    logits = predict_view(lambda images: images.float(), ramp, View(True, 1, side))
    assert logits.shape == (1, 3, 64, 64)
    torch.testing.assert_close(logits[..., 4:-4], ramp[..., 4:-4].float(), rtol=0, atol=1.6)


def test_scaled_images_are_uint8_that_the_model_normalises():
    seen = []
    predict_view(lambda images: seen.append(images) or images.float(), draw_images(), View(False, 0, 96))
    assert seen[0].dtype == torch.uint8 and seen[0].shape == (2, 3, 96, 96)
    assert scale_images(draw_images(), 64).data_ptr() != 0


@pytest.mark.parametrize(
    ("tta", "words"),
    [
        ({"flip": ["none"]}, "unknown option of tta 'flip'; did you mean 'flips'"),
        ({"flips": ["horizontl"]}, "unknown tta.flips.0 'horizontl'; did you mean 'horizontal'"),
        ({"rotations": [45]}, "tta.rotations.0 must be a multiple of 90, got 45"),
        ({"scales": [9]}, "tta.scales.0 must be at most 4.0, got 9"),
        ({"scales": 1.5}, "tta.scales must be a list, got 1.5"),
        ({"scales": []}, r"tta.scales must be not empty, got \[\]"),
        (["horizontal"], r"required lists by name \(flips, rotations, scales\), or a list of such, got 'horizontal'"),
    ],
)
def test_what_is_no_view_is_refused(tta, words):
    with pytest.raises(InputError, match=words):
        build_views(tta, 64)


@pytest.mark.parametrize("blend", ["gaussian", "linear"])
@pytest.mark.parametrize(("side", "window", "overlap"), [(64, 64, 0.5), (96, 64, 0.5), (160, 64, 0.25), (32, 64, 0)])
def test_windows_of_a_model_that_sees_pixels_alone_give_the_whole_image(blend, side, window, overlap):
    images = draw_images(1, side)
    torch.testing.assert_close(slide(equivariant, window, overlap, blend, images), equivariant(images))


def test_windows_count_by_their_weights():
    images = draw_images(1, 96)
    calls = []
    number = slide(
        lambda part: calls.append(part) or torch.full((1, 1, 64, 64), float(len(calls))), 64, 0.5, "linear", images
    )
    weight = window_weights(64, "linear")
    expected = (1 * weight[10, 40] + 2 * weight[10, 8]) / (weight[10, 40] + weight[10, 8])
    torch.testing.assert_close(number[0, 0, 10, 40], expected)
    assert number[0, 0, 0, 0] == 1 and number[0, 0, -1, -1] == 4
    assert [part.shape for part in calls] == [(1, 3, 64, 64)] * 4


@pytest.mark.parametrize(
    ("side", "window", "overlap"), [(64, 64, 0.5), (1024, 512, 0.5), (1000, 512, 0.3), (96, 64, 0)]
)
def test_windows_cover_a_side_from_edge_to_edge_with_their_overlap(side, window, overlap):
    starts = find_starts(side, window, overlap)
    assert starts[0] == 0 and starts[-1] == side - window
    assert all(0 < b - a <= window * (1 - overlap) + 1 for a, b in itertools.pairwise(starts))
    assert [side - window - start for start in reversed(starts)] == starts  # seen from either end


def test_sliding_takes_its_defaults_and_none_is_none():
    assert check_sliding({"size": 1024}, 512) == {"size": 1024, "overlap": 0.5, "blend": "gaussian"}
    assert check_sliding({}, 512) == {}


@pytest.mark.parametrize(
    ("sliding", "words"),
    [
        ({"overlap": 0.5}, "sliding: size must be a multiple of 32 of at least 512 px .a window., got None"),
        ({"size": 256}, "of at least 512 px .a window., got 256"),
        ({"size": 1000}, "a multiple of 32"),
        ({"size": 1024, "overlap": 1}, "sliding.overlap must be below 0.95, got 1"),
        ({"size": 1024, "blend": "gaus"}, "unknown sliding.blend 'gaus'; did you mean 'gaussian'"),
        ({"sizes": 1024}, "unknown option of sliding 'sizes'; did you mean 'size'"),
    ],
)
def test_sliding_that_cannot_be_is_refused(sliding, words):
    with pytest.raises(InputError, match=words):
        check_sliding(sliding, 512)
