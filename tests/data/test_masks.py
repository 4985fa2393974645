"""Painting: the pixels of pycocotools, one winner where objects overlap, nothing of what is broken."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from seglib.data.coco import load_coco
from seglib.data.masks import (
    IGNORE_INDEX,
    PAINT_ORDERS,
    PAINTS_LESS,
    paint_mask,
    segmentation_problems,
    segmentation_to_rle,
)
from seglib.errors import InputError

HEIGHT, WIDTH = 48, 64
SHARED = Path(__file__).parents[2].parent / "shared/data"


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def table(*rows: tuple) -> pd.DataFrame:
    """Annotations from (class_id, area, segmentation)."""
    frame = pd.DataFrame(rows, columns=["class_id", "area", "segmentation"], dtype="object")
    frame.insert(0, "annotation_id", range(len(rows)))
    return frame.astype({"class_id": "int64", "area": "float64"})


def coco_mask(segmentation: list | dict, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """What the leaderboard's truth is made with."""
    coco = COCO()
    coco.imgs = {1: {"height": height, "width": width}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


def random_polygons(rng: np.random.Generator) -> list[list[float]]:
    """Up to three, crossing themselves and the border, on quarter pixels."""
    lengths = rng.integers(3, 12, size=rng.integers(1, 4))
    return [((rng.uniform(-10, 74, 2 * length) * 4).round() / 4).tolist() for length in lengths]


def random_rle(rng: np.random.Generator) -> tuple[dict, np.ndarray]:
    """Uncompressed, of a mask that may start with a 1."""
    mask = (rng.random((HEIGHT, WIDTH)) < rng.choice([0.0, 0.02, 0.5, 1.0])).astype(np.uint8)
    flat = np.concatenate([[0], mask.ravel(order="F")])
    ends = np.append(np.flatnonzero(np.diff(flat)), mask.size)
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(ends, prepend=0).tolist()}, mask


@pytest.mark.parametrize("seed", range(40))
def test_polygons_cover_the_same_pixels_as_in_pycocotools(seed):
    polygons = random_polygons(np.random.default_rng(seed))
    expected = coco_mask(polygons)
    assert np.array_equal(mask_api.decode(segmentation_to_rle(polygons, HEIGHT, WIDTH)), expected)
    assert np.array_equal(paint_mask(table((1, 0, polygons)), HEIGHT, WIDTH, "area", "class"), expected)


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_of_rle_gives_the_mask_it_was_made_of(seed):
    uncompressed, mask = random_rle(np.random.default_rng(seed))
    compressed = mask_api.encode(np.asfortranarray(mask))
    as_text = {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}
    assert np.array_equal(coco_mask(uncompressed), mask)
    for rle in (uncompressed, compressed, as_text):
        assert list(segmentation_problems(rle, HEIGHT, WIDTH)) == []
        assert np.array_equal(mask_api.decode(segmentation_to_rle(rle, HEIGHT, WIDTH)), mask)


def test_long_runs_of_a_large_mask_are_read(tmp_path):
    mask = np.zeros((3000, 2000), np.uint8, order="F")
    mask[5, 7] = mask[2990, 1990] = mask[2991:, 1995:] = 1
    rle = mask_api.encode(mask)
    assert list(segmentation_problems(rle, 3000, 2000)) == []
    assert np.array_equal(paint_mask(table((1, 0, rle)), 3000, 2000, "area", "class"), mask)


OVERLAP = table(
    (2, 900.0, [box(0, 0, 30, 30)]),
    (1, 100.0, [[*box(20, 20, 30, 30), 25, 25, 24, 24]]),  # on top of the first one, longer
    (3, 400.0, segmentation_to_rle([box(10, 10, 30, 30)], HEIGHT, WIDTH)),
)


@pytest.mark.parametrize(
    ("paint_order", "winner"),
    [("class_id", 3), ("longest", 1), ("area", 1)],
)
def test_where_all_three_overlap_the_policy_names_the_winner(paint_order, winner):
    mask = paint_mask(OVERLAP, HEIGHT, WIDTH, paint_order, "class")
    assert mask[22, 28] == winner
    assert mask[5, 5] == 2
    assert mask[40, 40] == 0


@pytest.mark.parametrize(("paint_order", "winner"), [("class_id", 3), ("longest", 2), ("area", 3)])
def test_an_rle_has_length_nothing_so_that_polygons_win_by_length(paint_order, winner):
    assert paint_mask(OVERLAP, HEIGHT, WIDTH, paint_order, "class")[15, 15] == winner


@pytest.mark.parametrize("paint_order", ["longest", "area"])
def test_between_equals_the_later_row_wins(paint_order):
    """Many rows and draws, since any sort keeps the order of a few."""
    losing, winning = (900.0, [box(0, 0, 30, 30)]), (800.0, [[*box(0, 0, 30, 30), 1, 1]])
    for wins in np.random.default_rng(0).random((10, 254)) < 0.5:
        rows = table(*((1 + i, *(winning if win else losing)) for i, win in enumerate(wins)))
        assert paint_mask(rows, HEIGHT, WIDTH, paint_order, "class")[9, 9] == 1 + np.flatnonzero(wins)[-1]


@pytest.mark.parametrize("area", [np.nan, 0.0, -1.0, np.inf])
def test_an_area_that_the_file_lacks_is_the_masks(area):
    small, large = [box(10, 10, 20, 20)], [box(0, 0, 30, 30)]
    for rows in (table((1, area, small), (2, 900, large)), table((1, 100, small), (2, area, large))):
        assert paint_mask(rows, HEIGHT, WIDTH, "area", "class")[15, 15] == 1


@pytest.mark.parametrize("areas", [(9999.0, 5.0), (5.0, 9999.0), (np.nan, 0.0)])
def test_the_smallest_mask_is_on_top_whatever_the_files_area_says(areas):
    rows = table((1, areas[0], [box(10, 10, 20, 20)]), (2, areas[1], [box(0, 0, 30, 30)]))
    assert paint_mask(rows, HEIGHT, WIDTH, "area", "class")[15, 15] == 1


def test_an_annotation_of_background_hides_what_it_is_painted_over():
    rows = table((1, 1, [box(0, 0, 30, 30)]), (0, 1, [box(10, 10, 20, 20)]))
    mask = paint_mask(rows, HEIGHT, WIDTH, "area", "ignore")
    assert (mask[15, 15], mask[5, 5], mask[-1, -1]) == (0, 1, IGNORE_INDEX)


def test_the_longest_is_measured_on_the_first_polygon():
    rows = table((1, 1, [box(0, 0, 9, 9), box(0, 0, 30, 30) * 9]), (2, 1, [[*box(0, 0, 30, 30), 1, 1]]))
    assert paint_mask(rows, HEIGHT, WIDTH, "longest", "class")[5, 5] == 2


@pytest.mark.parametrize("paint_order", PAINT_ORDERS)
def test_pixels_without_annotation_are_background_or_ignored(paint_order):
    covered = coco_mask([box(5, 5, 20, 20)]).astype(bool)
    rows = table((7, 1, [box(5, 5, 20, 20)]))
    for background, value in (("class", 0), ("ignore", IGNORE_INDEX)):
        mask = paint_mask(rows, HEIGHT, WIDTH, paint_order, background)
        assert np.array_equal(mask, np.where(covered, 7, value))
        assert (mask.dtype, mask.flags.c_contiguous) == (np.uint8, True)
        assert (paint_mask(table(), HEIGHT, WIDTH, paint_order, background) == value).all()


def test_many_objects_on_a_large_image_are_decoded_in_parts(monkeypatch):
    rows = table(*((1 + i, i, [box(i, i, i + 20, i + 20)]) for i in range(20)))
    whole = paint_mask(rows, HEIGHT, WIDTH, "class_id", "class")
    monkeypatch.setattr("seglib.data.masks._DECODED_BYTES", 3 * HEIGHT * WIDTH)
    assert np.array_equal(paint_mask(rows, HEIGHT, WIDTH, "class_id", "class"), whole)
    assert len(np.unique(whole)) == 21


@pytest.mark.parametrize("nothing", [None, [], [[]], [[3, 3]], [[3, 3, 20, 20]], [[], [3, 3, 9, 9]]])
def test_what_has_fewer_than_three_points_paints_nothing(nothing):
    problems = list(segmentation_problems(nothing, HEIGHT, WIDTH))
    assert problems
    assert {problem for problem, _ in problems} <= {*PAINTS_LESS}
    assert (paint_mask(table((1, 1, nothing)), HEIGHT, WIDTH, "longest", "ignore") == IGNORE_INDEX).all()


def test_the_rest_of_an_object_with_a_degenerate_polygon_is_painted():
    polygons = [box(5, 5, 20, 20)]
    mask = paint_mask(table((1, 1, [[3, 3], *polygons])), HEIGHT, WIDTH, "area", "class")
    assert np.array_equal(mask, coco_mask(polygons))


def test_a_polygon_is_clipped_at_the_border():
    rle = segmentation_to_rle([box(-50, -50, 500, 500)], HEIGHT, WIDTH)
    assert mask_api.area(rle) == HEIGHT * WIDTH


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ("polygon", "unknown-segmentation: must be an RLE or polygons .*, got str"),
        ([1, 2, 3, 4, 5, 6], "unknown-segmentation: .* got a list of something else"),
        ([[1, 2, None, 4, 5, 6]], "unreadable-coordinates: polygon 1 of 1 must be a list of numbers"),
        ([["1", "2", "3", "4", "5", "6"]], "unreadable-coordinates"),
        ([[[1, 2], [3, 4], [5, 6]]], "unreadable-coordinates"),
        ([[1, 2, [3, 4, 5]]], "unreadable-coordinates"),
        ([box(0, 0, 9, 9), [1, 2, 3, np.nan, 5, 6]], "non-finite-coordinates: polygon 2 of 2 must .* got nan"),
        ([[1, 2, 3, 4, 5, 6, 7]], "odd-coordinates: .* must have x and y of each point, got 7 coordinates"),
        ([[0, 0, 1e12, 0, 5, 5]], r"far-coordinates: .* must lie within 65535 px .* got x 0 to 1e\+12"),
        ([[-(2**63), 0, 9, 0, 5, 5]], "far-coordinates"),  # its negative is no 64-bit integer
        ([[0, 0, 60000, 60000] * 20], "far-coordinates: .* no longer than 1048576 px"),
        ({"counts": [1]}, r"rle-size: size must be \[48, 64\], the image's height and width, got None"),
        ({"size": [64, 48], "counts": [3072]}, r"rle-size: .* got \[64, 48\]"),
        ({"size": [2**31, 2**31], "counts": [2**62]}, r"rle-size: .* got \[2147483648, 2147483648\]"),
        ({"size": [48, 64]}, "rle-corrupt: counts must be whole numbers from 0, or their compressed text"),
        ({"size": [48, 64], "counts": [100, -28, 3000]}, "rle-corrupt"),
        ({"size": [48, 64], "counts": [72.5, 2999.5]}, "rle-corrupt"),
        ({"size": [48, 64], "counts": "a b"}, "rle-corrupt"),
        ({"size": [48, 64], "counts": "종이"}, "rle-corrupt"),
        ({"size": [48, 64], "counts": "oooo"}, "rle-corrupt"),  # goes on behind its end
        ({"size": [48, 64], "counts": "PPSPPPPPPPPPP0"}, "rle-corrupt"),  # 3072, written in 70 bits
        ({"size": [48, 64], "counts": ""}, "rle-corrupt"),
        ({"size": [48, 64], "counts": [10, 20]}, "rle-sum: counts must add up to height x width = 3072, got 30"),
        ({"size": [48, 64], "counts": [2**63, 2**63 + 3072]}, "rle-sum"),  # 3072 in 64 bits
        ({"size": [48, 64], "counts": b"34"}, "rle-sum: .* got 7"),
    ],
)
def test_a_broken_segmentation_is_refused_with_its_annotation(segmentation, words):
    with pytest.raises(InputError, match=words):
        segmentation_to_rle(segmentation, HEIGHT, WIDTH)
    with pytest.raises(InputError, match=f"annotation 1: {words}"):
        paint_mask(table((1, 1, [box(0, 0, 9, 9)]), (1, 1, segmentation)), HEIGHT, WIDTH, "area", "class")


def test_names_that_are_no_policy_are_refused():
    with pytest.raises(InputError, match="unknown paint_order 'longst'; did you mean 'longest'"):
        paint_mask(table(), HEIGHT, WIDTH, "longst", "class")
    with pytest.raises(InputError, match="unknown background 'void'; choices: class, ignore"):
        paint_mask(table(), HEIGHT, WIDTH, "area", "void")


@pytest.mark.parametrize("class_id", [-1, 256])
def test_an_unknown_category_is_not_painted(class_id):
    with pytest.raises(InputError, match=f"annotation 0: class_id must be 0 to 255, got {class_id}"):
        paint_mask(table((class_id, 1, [box(0, 0, 9, 9)])), HEIGHT, WIDTH, "area", "class")


@pytest.mark.parametrize("paint_order", ["class_id", "longest", "area"])
def test_ignored_regions_lie_above_all(paint_order):
    rows = table((255, 1, [box(0, 0, 20, 20)]), (2, 1, [box(5, 5, 3, 3)]), (1, 1, [box(10, 10, 30, 30)]))
    mask = paint_mask(rows, HEIGHT, WIDTH, paint_order, "class")
    assert (mask[:20, :20] == 255).all()
    assert np.unique(mask).tolist() == [0, 1, 255]


def test_an_image_of_unknown_size_is_refused():
    with pytest.raises(InputError, match="height and width must be 1 to 65535 px, got 0 and 0"):
        paint_mask(table(), 0, 0, "area", "class")


@pytest.mark.parametrize(("folder", "name"), [("camvid", "val.json"), ("taco", "annotations.json")])
@pytest.mark.parametrize("paint_order", PAINT_ORDERS)
def test_real_masks_are_those_of_the_baselines(folder, name, paint_order):
    """Painted one by one over each other, as the competition's notebooks did."""
    if not (SHARED / folder / name).is_file():
        pytest.skip("the real annotations are not here")
    data = load_coco(SHARED / folder, name)
    small = data.images[data.images["width"] * data.images["height"] < 1.2e6]
    for image in small.iloc[:: max(1, len(small) // 5)].itertuples():
        rows = data.annotations[data.annotations["image_id"] == image.image_id]
        expected = np.zeros((image.height, image.width), np.uint8)
        for row in baseline_order(list(rows.itertuples()), paint_order):
            expected[coco_mask(row.segmentation, image.height, image.width) == 1] = row.class_id
        assert len(np.unique(expected)) > 1
        assert np.array_equal(paint_mask(rows, image.height, image.width, paint_order, "class"), expected)


def baseline_order(rows: list, paint_order: str) -> list:
    if paint_order == "class_id":
        return sorted(rows, key=lambda row: row.class_id)
    if paint_order == "area":
        return sorted(rows, key=lambda row: row.area, reverse=True)
    return sorted(rows, key=lambda row: len(row.segmentation[0]) if isinstance(row.segmentation, list) else 0)


def test_more_objects_than_pycocotools_counts_at_once_are_painted():
    boxes = [[[x, y, x + 2, y, x + 2, y + 2, x, y + 2]] for y in range(0, 60, 3) for x in range(0, 60, 3)]
    rows = pd.DataFrame(
        {
            "annotation_id": range(len(boxes)),
            "class_id": 1 + np.arange(len(boxes)) % 5,
            "area": 0.0,
            "segmentation": boxes,
        }
    )
    assert len(rows) > 255
    assert np.array_equal(paint_mask(rows, 64, 64, "area", "class"), paint_mask(rows, 64, 64, "class_id", "class"))
