"""Two subsets as one: the images of both, their own ids where these differ, annotations that find their images."""

import numpy as np
import pytest

from seglib.data.dataset import count_pixels, open_data
from seglib.data.loader import OtherSamples, build_loader
from seglib.errors import InputError

OPTIONS = {"folds": 4, "fold": 0, "seed": 1, "paint_order": "class_id", "background": "class", "cache": False}


def open_small(folder, split="given", image_size=64, **changes):
    return open_data(str(folder), "train.json", "val.json", split=split, image_size=image_size, **(OPTIONS | changes))


@pytest.mark.parametrize("split", ["given", "kfold"])
@pytest.mark.parametrize("focus_classes", [(), ("Paper", "Metal")])
def test_all_images_of_both_are_there_with_their_masks(small_data, split, focus_classes):
    train, val = open_small(small_data, split, focus_classes=focus_classes)
    joined = train + val
    assert len(joined) == len(train) + len(val)
    assert joined.image_size == 64
    assert joined.data.class_names == train.data.class_names
    for position in range(len(joined)):
        part, own = (train, position) if position < len(train) else (val, position - len(train))
        assert all(map(np.array_equal, joined.read(position), part.read(own)))
    assert count_pixels(joined).equals(count_pixels(train) + count_pixels(val))


def test_ids_stay_where_they_differ_and_keep_their_last_digits_where_not(small_data):
    train, val = open_small(small_data, "kfold")
    assert (train + val).image_ids.tolist() == [*train.image_ids, *val.image_ids]
    again = (train + train).image_ids
    assert len(set(again)) == 2 * len(train)
    assert (again[len(train) :] % 100 == train.image_ids).all()


def cut_objects(subset):
    """The visible part of every object, (h, w, 3) uint8, black around it."""
    others = OtherSamples(subset)
    class_ids = subset.data.annotations["class_id"].to_numpy()[others.rows]
    cuts = [others._cut(number, class_id) for number, class_id in enumerate(class_ids)]
    return [cut[0] * cut[1][..., None] for cut in cuts if cut is not None]


def test_objects_are_cut_from_their_own_images(small_data):
    train, val = open_small(small_data, cache=True)
    own, joined = cut_objects(train) + cut_objects(val), cut_objects(train + val)
    assert len(own) == len(joined) > 20
    assert all(map(np.array_equal, own, joined))


def test_a_loader_takes_each_image_of_both_once(small_data):
    train, val = open_small(small_data)
    joined = train + val
    loader = build_loader(joined, 4, shuffle=True, augmentation="flips", seed=1, num_workers=0)
    assert sum(len(images) for images, _ in loader) == len(joined) - (len(joined) % 4 == 1)


def test_sets_of_other_classes_or_sizes_are_refused(small_data):
    train, _ = open_small(small_data)
    with pytest.raises(InputError, match=r"required the image_size of .*train\.json \(64\), got 32"):
        train + open_small(small_data, image_size=32)[1]
    with pytest.raises(InputError, match="required the classes of"):
        train + open_small(small_data, focus_classes=("Paper",))[1]
