"""Objects are counted and measured as pandas does from the JSON; a resized run-length mask is the resized mask."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as mask_api

from seglib.data.analysis import tabulate_objects
from seglib.data.coco import load_coco
from seglib.data.dataset import pool_files
from seglib.data.eda import ALL, SIZE_LIMITS, tabulate_sizes
from seglib.data.masks import resize_rle
from seglib.data.pixels import resize_mask

TACO = Path(__file__).parents[3] / "shared" / "data" / "taco" / "annotations.json"


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def write(folder, annotations, width=80, height=40):
    images = [{"id": 5, "file_name": "a.jpg", "width": width, "height": height}]
    categories = [{"id": 0, "name": "Paper"}, {"id": 7, "name": "Glass"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "train.json").write_text(json.dumps(content))
    return pool_files([load_coco(folder, "train.json")])


def annotation(number, segmentation, **changes):
    return {"id": number, "image_id": 5, "category_id": 0, "area": 100.0, "segmentation": segmentation, **changes}


@pytest.mark.parametrize("seed", range(30))
def test_a_resized_run_length_mask_is_the_resized_mask(seed):
    rng = np.random.default_rng(seed)
    height, width, size = (int(side) for side in rng.integers(5, 90, 3))
    mask = (rng.random((height, width)) < rng.choice([0.0, 0.05, 0.5, 1.0])).astype(np.uint8)
    assert np.array_equal(resize_rle(mask_api.encode(np.asfortranarray(mask)), size), resize_mask(mask, size))


def test_sizes_are_those_of_the_training_image(tmp_path):
    objects = tabulate_objects(write(tmp_path, [annotation(1, box(0, 0, 20, 5))]), image_size=20)
    (row,) = objects.itertuples()
    assert row.size == pytest.approx(np.sqrt(100 * (20 / 80) * (20 / 40)))
    assert (row.class_id, row.class_name, row.mask_area, row.aspect) == (1, "Paper", 100, 4)
    assert (row.x, row.y) == pytest.approx((10 / 80, 2.5 / 40))


def test_an_area_that_is_missing_is_taken_from_the_mask(tmp_path):
    objects = tabulate_objects(write(tmp_path, [annotation(1, box(0, 0, 6, 5), area=None)]), image_size=20)
    assert objects["area"].tolist() == [30]


def test_the_files_area_decides_no_size(tmp_path):
    objects = tabulate_objects(write(tmp_path, [annotation(1, box(0, 0, 6, 5), area=3200)]), image_size=20)
    assert objects["area"].tolist() == [3200]
    assert objects["size"].tolist() == pytest.approx([np.sqrt(30 * (20 / 80) * (20 / 40))])


def test_what_cannot_be_painted_is_left_out_and_the_rest_stays(tmp_path):
    broken = [
        annotation(1, [[1, 2, 3]]),
        annotation(2, box(0, 0, 4, 4), category_id=99),
        annotation(3, box(0, 0, 4, 4), image_id=99),
        annotation(4, "text"),
        annotation(6, []),
        annotation(7, [[3, 3, 3.2, 3, 3.2, 3.2]]),
    ]
    objects = tabulate_objects(write(tmp_path, [*broken, annotation(5, box(0, 0, 4, 4))]), image_size=20)
    assert objects["annotation_id"].tolist() == [5]


def test_a_file_without_annotations_gives_an_empty_table(tmp_path):
    objects = tabulate_objects(write(tmp_path, []), image_size=20)
    assert objects.empty
    assert {"size", "aspect", "rle"} <= set(objects)


def test_more_objects_than_pycocotools_measures_at_once(tmp_path):
    objects = tabulate_objects(write(tmp_path, [annotation(i, box(0, 0, 2, 3)) for i in range(300)]), image_size=20)
    assert objects["mask_area"].tolist() == [6] * 300


def test_taco_has_the_counts_and_shares_that_pandas_finds():
    if not TACO.is_file():
        pytest.skip("the TACO annotations are not on this machine")
    content = json.loads(TACO.read_bytes())
    raw = pd.DataFrame(content["annotations"]).merge(
        pd.DataFrame(content["images"])[["id", "width", "height"]], left_on="image_id", right_on="id"
    )
    size = np.sqrt(raw["area"] * (512 / raw["width"]) * (512 / raw["height"]))
    names = raw["category_id"].map({entry["id"]: entry["name"] for entry in content["categories"]})

    sizes = tabulate_sizes(tabulate_objects(pool_files([load_coco(TACO.parent, TACO.name)]), image_size=512))
    assert sizes.loc[ALL, "objects"] == len(raw) == 4784
    for limit in SIZE_LIMITS:
        assert sizes.loc[ALL, f"<={limit}"] == pytest.approx((size <= limit).mean(), abs=0.001)  # pixels, not polygons
    assert sizes.loc[ALL, "median"] == pytest.approx(size.median(), rel=0.002)
    assert sizes.drop(ALL)["objects"].to_dict() == names.value_counts().to_dict()
