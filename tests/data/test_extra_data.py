"""Extra sets: class maps, confidences and ignored labels against masks painted in NumPy; copies, weights, caches."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from seglib.data.dataset import count_pixels, open_data
from seglib.data.extra_data import join_extra
from seglib.data.loader import SampleMixing, build_loader
from seglib.errors import InputError, InputErrors
from seglib.files import cache_dir

SIZE = 64
CATEGORIES = ["Aluminium foil", "Clear plastic bottle", "Glass jar", "Cigarette"]  # ids from 0, as TACO's
MAP = {"Aluminium foil": "Metal", "Clear plastic bottle": "Plastic", "Cigarette": "Background"}
POLICY = {"paint_order": "area", "background": "class", "cache": False}
FOIL, BOTTLE, JAR, CIGARETTE = range(4)
# (category, (top, left, height, width), other fields); the largest is painted first
OBJECTS = [
    [
        (BOTTLE, (0, 0, 40, 40), {}),
        (FOIL, (10, 10, 20, 20), {}),
        (JAR, (15, 15, 5, 5), {}),
        (CIGARETTE, (30, 30, 4, 4), {}),
    ],
    [(JAR, (0, 0, 50, 50), {}), (FOIL, (5, 5, 8, 8), {"score": 0.4}), (BOTTLE, (20, 20, 9, 9), {"score": 0.9})],
    [
        (FOIL, (0, 0, 30, 30), {"score": 0.7}),
        (FOIL, (40, 40, 10, 10), {"ignore": 1}),
        (BOTTLE, (2, 2, 6, 6), {"score": 0.1}),
    ],
    [],
]


def to_rle(box):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    top, left, height, width = box
    mask[top : top + height, left : left + width] = 1
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel("F"), [0]]))).tolist()
    return {"size": [SIZE, SIZE], "counts": np.diff([0, *changes, SIZE * SIZE]).tolist()}


@pytest.fixture
def write_set(tmp_path):
    """Write an extra set to tmp_path/extra: four images, the categories' ids counted from 0."""

    def write(objects=OBJECTS, categories=CATEGORIES, name="annotations.json"):
        folder = tmp_path / "extra"
        folder.mkdir(exist_ok=True)
        images, annotations = [], []
        for image_id, entries in enumerate(objects):
            pixels = np.random.default_rng(image_id).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f"{image_id}.png"), pixels)
            images.append({"id": image_id, "file_name": f"{image_id}.png", "width": SIZE, "height": SIZE})
            for category_id, box, fields in entries:
                annotation = {"id": len(annotations), "image_id": image_id, "category_id": category_id,
                              "area": box[2] * box[3], "iscrowd": 0, "segmentation": to_rle(box)}  # fmt: skip
                annotations.append(annotation | fields)
        named = [{"id": number, "name": category} for number, category in enumerate(categories)]
        content = {"images": images, "annotations": annotations, "categories": named}
        (folder / name).write_text(json.dumps(content))
        return {"data_dir": str(folder), "json": name}

    return write


def open_small(folder, focus_classes=(), **changes):
    options = {"split": "given", "folds": 4, "fold": 0, "seed": 1, "image_size": SIZE} | POLICY | changes
    return open_data(str(folder), "train.json", "val.json", focus_classes=focus_classes, **options)


def join_small(folder, *sets, focus_classes=(), debug=False, **changes):
    """The training images, and the same joined with extra sets."""
    train, val = open_small(folder, focus_classes, **changes)
    return train, join_extra(train, val, sets, **POLICY | changes, debug=debug)


def paint(entries, names, class_map, min_confidence=0.0, background="class"):
    """What the mask of one image must be, painted by hand: the largest first, unsure and unnamed ones as 255."""
    mask = np.full((SIZE, SIZE), 255 if background == "ignore" else 0, np.uint8)
    for category, (top, left, height, width), fields in sorted(entries, key=lambda entry: -entry[1][2] * entry[1][3]):
        target = class_map.get(CATEGORIES[category], "ignore")
        unsure = fields.get("score", 1.0) < min_confidence or fields.get("ignore") == 1
        value = 255 if unsure or target == "ignore" else names.index(target) if target in names else 0
        mask[top : top + height, left : left + width] = value
    return mask


def read_extra(train, joined):
    return [joined.read(position)[1] for position in range(len(train), len(joined))]


@pytest.mark.parametrize("background", ["class", "ignore"])
@pytest.mark.parametrize("min_confidence", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("cache", [False, True])
def test_masks_are_those_of_the_map_and_the_confidence(small_data, write_set, background, min_confidence, cache):
    entry = write_set() | {"classes": MAP, "min_confidence": min_confidence}
    train, joined = join_small(small_data, entry, background=background, cache=cache)
    expected = [paint(entries, train.data.class_names, MAP, min_confidence, background) for entries in OBJECTS]
    assert np.array_equal(read_extra(train, joined), expected)


def test_own_images_come_first_and_unchanged(small_data, write_set):
    train, joined = join_small(small_data, write_set() | {"classes": MAP})
    assert len(joined) == len(train) + 4
    assert np.array_equal(joined.image_ids[: len(train)], train.image_ids)
    for position in range(len(train)):
        assert all(map(np.array_equal, joined.read(position), train.read(position)))
    written = cv2.imread(joined.data.images["path"].iloc[-4])[..., ::-1]
    assert np.array_equal(joined.read(len(train))[0], written)


def test_classes_that_a_specialist_folds_away_become_background(small_data, write_set):
    entry = write_set() | {"classes": MAP | {"Glass jar": "Glass"}, "min_confidence": 0.5}
    train, joined = join_small(small_data, entry, focus_classes=("Metal", "Paper"))
    names = train.data.class_names
    assert joined.data.class_names == names == ("Background", "Paper", "Metal")
    expected = [paint(entries, names, entry["classes"], 0.5) for entries in OBJECTS]
    assert np.array_equal(read_extra(train, joined), expected)
    extra_ids = joined.data.annotations["class_id"][joined.data.annotations["image_id"].isin(joined.image_ids[-4:])]
    assert extra_ids.tolist() == [2, 2]  # the sure foils


def test_an_ignored_object_wins_where_the_highest_class_id_does_and_background_loses(small_data, write_set):
    objects = [[(JAR, (0, 0, 20, 20), {}), (BOTTLE, (10, 10, 20, 20), {}), (CIGARETTE, (25, 25, 20, 20), {})]]
    train, joined = join_small(small_data, write_set(objects) | {"classes": MAP}, paint_order="class_id")
    (mask,) = read_extra(train, joined)
    assert mask[12, 12] == 255
    assert mask[27, 27] == train.data.class_names.index("Plastic")
    assert mask[40, 40] == 0


def test_without_a_map_the_names_are_ours(small_data, write_set):
    objects = [[(0, (0, 0, 9, 9), {}), (1, (20, 20, 9, 9), {})]]
    train, joined = join_small(small_data, write_set(objects, ["Battery", "Paper"]))
    (mask,) = read_extra(train, joined)
    assert mask[4, 4] == train.data.class_names.index("Battery")
    assert mask[24, 24] == train.data.class_names.index("Paper")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"extra_data\[0\] must have categories that are classes of the training data, got Aluminium foil, Clear"),
        ({"classes": {"Glass jr": "Glass"}}, r"unknown category of that set 'Glass jr'; did you mean 'Glass jar'"),
        (
            {"classes": {"Glass jar": "Glas"}},
            r"extra_data\[0\]\.classes\.Glass jar: unknown class 'Glas'; did you mean",
        ),
    ],
)
def test_classes_that_do_not_fit_are_told(small_data, write_set, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        join_small(small_data, write_set() | changes)
    assert "annotations.json" in str(caught.value)


@pytest.mark.parametrize("score", [87, -0.5, "high"])
def test_a_score_that_is_no_share_is_refused(small_data, write_set, score):
    entry = write_set([[(FOIL, (0, 0, 9, 9), {"score": score})]]) | {"classes": MAP}
    with pytest.raises(InputError, match=r"\[annotation 0\]: `score` must be 0 to 1, got"):
        join_small(small_data, entry)


def test_errors_of_the_annotations_are_refused(small_data, write_set, tmp_path):
    entry = write_set() | {"classes": MAP}
    (tmp_path / "extra" / "2.png").unlink()
    with pytest.raises(InputErrors, match="missing-image"):
        join_small(small_data, entry)


def test_copies_of_validation_images_are_left_out(small_data, write_set, tmp_path, capsys):
    entry = write_set() | {"classes": MAP}
    val_name = json.loads((small_data / "val.json").read_text())["images"][0]
    content = json.loads((tmp_path / "extra" / "annotations.json").read_text())
    content["images"][1] |= {"file_name": "copy.jpg", "width": val_name["width"], "height": val_name["height"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] == 1:
            annotation["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    (tmp_path / "extra" / "annotations.json").write_text(json.dumps(content))
    shutil.copy(small_data / val_name["file_name"], tmp_path / "extra" / "copy.jpg")
    train, joined = join_small(small_data, entry)
    assert len(joined) == len(train) + 3
    assert not any("copy.jpg" in name for name in joined.data.images["file_name"])
    assert "annotations.json: 1 images are copies of validation images; left out of training" in capsys.readouterr().out
    expected = [paint(OBJECTS[image], train.data.class_names, MAP) for image in (0, 2, 3)]
    assert np.array_equal(read_extra(train, joined), expected)


def test_another_map_or_confidence_is_another_cache(small_data, write_set, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))
    entry = write_set()
    for changes in (
        {"classes": MAP},
        {"classes": MAP | {"Cigarette": "Paper"}},
        {"classes": MAP, "min_confidence": 0.5},
    ):
        train, joined = join_small(small_data, entry | changes, cache=True)
        mask = paint(OBJECTS[0], train.data.class_names, changes["classes"])
        assert np.array_equal(joined.read(len(train))[1], mask)
        expected = paint(OBJECTS[1], train.data.class_names, changes["classes"], changes.get("min_confidence", 0.0))
        assert np.array_equal(joined.read(len(train) + 1)[1], expected)
    assert len([path for path in (cache_dir() / "pixels").iterdir() if path.is_dir()]) == 2 + 3


def test_two_sets_are_told_apart(small_data, write_set):
    sets = [
        write_set(name=name) | {"classes": MAP, "weight": weight} for name, weight in (("a.json", 1), ("b.json", 2.0))
    ]
    train, joined = join_small(small_data, *sets)
    assert len(joined) == len(train) + 8
    assert len(set(joined.image_ids)) == len(joined)
    assert joined.weights[-8:].tolist() == [1] * 4 + [2] * 4
    assert [int(str(image_id)[-1]) for image_id in joined.image_ids[-8:]] == [0, 1, 2, 3] * 2
    assert np.array_equal(joined.read(len(joined) - 1)[0], joined.read(len(joined) - 5)[0])


def test_counts_and_mixes_take_the_joined_set(small_data, write_set):
    train, joined = join_small(small_data, write_set() | {"classes": MAP})
    counts = count_pixels(joined)
    assert counts.sum() == len(joined) * SIZE**2
    extra = np.stack(read_extra(train, joined))
    assert counts["Metal"] - count_pixels(train)["Metal"] == (extra == train.data.class_names.index("Metal")).sum()
    mixing = SampleMixing({"copy_paste": {"p": 1.0, "classes": ["Metal"]}, "mosaic": 1.0}, joined)
    masks = [mixing(*joined.read(len(joined) - 1), 1, 1, index)[1] for index in range(8)]
    assert all(set(np.unique(mask)) <= {*range(12), 255} for mask in masks)
    assert any((mask > 0).any() for mask in masks)


def test_a_trial_takes_a_share_of_each_set(small_data, write_set):
    objects = [[(FOIL, (0, 0, 9, 9), {})]] * 20
    train, joined = join_small(small_data, write_set(objects) | {"classes": MAP}, debug=True)
    assert len(joined) == len(train) + 8


def epoch_of(loader, epoch):
    loader.batch_sampler.epoch = epoch
    return [position for batch in loader.batch_sampler for _, position in batch]


@pytest.mark.parametrize(("weight", "standing"), [(1.0, 4), (0.5, 2), (2.0, 8), (1.5, 6), (0.01, 1)])
@pytest.mark.parametrize("expand", [1, 3])
def test_an_epoch_holds_extra_images_as_often_as_their_weight_says(small_data, write_set, weight, standing, expand):
    train, joined = join_small(small_data, write_set() | {"classes": MAP, "weight": weight})
    loader = build_loader(joined, 1, shuffle=True, augmentation="none", seed=3, num_workers=0, expand=expand)
    epochs = [epoch_of(loader, epoch) for epoch in range(1, 9)]
    for positions in epochs:
        images = np.array(positions) % len(joined)
        times = np.bincount(images, minlength=len(joined))
        assert (times[: len(train)] == expand).all()
        assert times[len(train) :].sum() == standing
        assert set(times[len(train) :]) <= {int(weight), int(weight) + 1}
        assert len(set(positions)) == len(positions) == len(loader)  # each copy has draws of its own
    assert epochs[0] == epoch_of(loader, 1)
    drawn = {tuple(sorted(position for position in epoch if position % len(joined) >= len(train))) for epoch in epochs}
    assert (len(drawn) > 1) == (weight % 1 > 0)


def test_extra_images_are_always_augmented_where_epochs_are_expanded(small_data, write_set):
    train, joined = join_small(small_data, write_set() | {"classes": MAP})
    loader = build_loader(joined, 1, shuffle=True, augmentation="flips", seed=3, num_workers=0, expand=2)
    copies = {position // len(joined) for position in epoch_of(loader, 1) if position % len(joined) >= len(train)}
    assert copies == {1}  # copy 0 is the one that stays as it is


def test_samples_do_not_depend_on_the_number_of_workers(small_data, write_set):
    _, joined = join_small(small_data, write_set() | {"classes": MAP, "weight": 0.5}, cache=True)
    options = {"shuffle": True, "augmentation": "flips", "seed": 3, "mixing": {"mosaic": 0.5}, "expand": 2}
    here, there = (list(build_loader(joined, 4, num_workers=workers, **options)) for workers in (0, 2))
    assert all(torch.equal(a, b) for pair in zip(here, there, strict=True) for a, b in zip(*pair, strict=True))


def test_without_extra_sets_the_training_images_and_their_order_are_what_they_were(small_data):
    train, joined = join_small(small_data)
    assert joined is train
    loader = build_loader(train, 4, shuffle=True, augmentation="none", seed=3, num_workers=0, expand=2)
    expected = np.random.default_rng([3, 5]).permutation(2 * len(train))
    assert epoch_of(loader, 5) == expected[: 4 * len(loader)].tolist()


def test_validation_images_can_join_too_and_stand_as_often_as_own_ones(small_data, write_set):
    train, val = open_small(small_data)
    joined = join_extra(train, val, [write_set() | {"classes": MAP, "weight": 0.5}], **POLICY) + val
    loader = build_loader(joined, 1, shuffle=True, augmentation="none", seed=3, num_workers=0, expand=2)
    times = np.bincount(np.array(epoch_of(loader, 1)) % len(joined), minlength=len(joined))
    extra = slice(len(train), len(train) + 4)
    assert times[extra].sum() == 2
    assert (np.delete(times, extra) == 2).all()
    assert np.array_equal(joined.read(len(joined) - 1)[1], val.read(len(val) - 1)[1])


def test_an_epoch_can_begin_at_any_batch(small_data, write_set):
    _, joined = join_small(small_data, write_set() | {"classes": MAP, "weight": 0.5})
    batches = build_loader(joined, 4, shuffle=True, augmentation="none", seed=3, num_workers=0).batch_sampler
    batches.epoch = 2
    whole = list(batches)
    batches.first = 3
    assert list(batches) == whole[3:]


def test_labels_of_own_images_need_no_folder_and_may_lie_anywhere(small_data, tmp_path):
    content = json.loads((small_data / "test.json").read_text())
    image = content["images"][0]
    box = {"size": [image["height"], image["width"]], "counts": [0, image["height"] * image["width"]]}
    label = {
        "id": 1,
        "image_id": image["id"],
        "category_id": 3,
        "segmentation": box,
        "area": 1,
        "iscrowd": 0,
        "score": 0.9,
    }
    (tmp_path / "labels.json").write_text(json.dumps(content | {"annotations": [label]}))
    options = {"split": "given", "folds": 2, "fold": 0, "seed": 1, "image_size": SIZE} | POLICY
    train, val = open_data(str(small_data), "train.json", "val.json", **options)
    joined = join_extra(train, val, [{"json": str(tmp_path / "labels.json")}], **POLICY)
    assert len(joined) == len(train) + len(content["images"])
    assert (joined.read(len(train))[1] == 3).all()
