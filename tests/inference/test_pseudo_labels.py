"""Pseudo-labels against labels decided in NumPy: what is written, and what a run that reads it trains on."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from seglib.data.coco import load_coco
from seglib.data.dataset import Subset, open_data
from seglib.data.extra_data import join_extra
from seglib.data.verify import verify_coco
from seglib.errors import InputError
from seglib.inference.ensemble import Ensemble
from seglib.inference.pseudo_labels import NEVER, choose_confidence, make_pseudo_labels
from seglib.inference.stores import describe_store, open_store, write_store

SIZE = 64
POLICY = {"paint_order": "area", "background": "class", "cache": False}


def draw_probabilities(count, classes, seed):
    """(count, classes, 64, 64) float16: smooth regions, most of them of a few classes, unsure where they meet."""
    noise = np.random.default_rng(seed).normal(size=(count, classes, 8, 8)).astype(np.float32)
    logits = np.stack(
        [[cv2.resize(plane, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for plane in image] for image in noise]
    )
    logits = 6 * logits + np.linspace(4, -4, classes)[:, None, None]
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)).astype(np.float16)


def write(folder, probabilities, image_ids, file_names, class_names):
    about = describe_store(
        image_ids, file_names, list(class_names), SIZE, str(probabilities.dtype), {"run": folder.name}
    )
    write_store(folder, about, lambda start: iter([probabilities[start:]]), len(probabilities))
    return open_store(folder)


@pytest.fixture
def test_set(small_data):
    return load_coco(small_data, "test.json")


@pytest.fixture
def make_stores(tmp_path, test_set):
    """Two stores of the test images: the first image is unsure all over, the second all background."""

    def make(images=test_set, count=2):
        table, classes, stores = images.images, images.num_classes, []
        for seed in range(count):
            p = draw_probabilities(len(table), classes, seed=seed)
            p[0] = 1 / classes
            p[1] = np.eye(classes)[0][:, None, None]
            stores.append(
                write(tmp_path / f"store{seed}", p, table["image_id"], table["file_name"], images.class_names)
            )
        return stores

    return make


def read_all(store):
    return np.stack([store.read(position) for position in range(len(store))]).astype(np.float64)


def gather(stores, images, weights=None, vote="soft"):
    """An ensemble of stores, of a data set's images or of a subset."""
    if not isinstance(images, Subset):
        places = images.images["file_name"].tolist()
        indices = np.array([places.index(name) for name in stores[0].file_names])
        pixels = SimpleNamespace(image_ids=images.images["image_id"].to_numpy())
        images = Subset(images, pixels, indices)
    weights = np.ones(len(stores)) if weights is None else np.array(weights)
    return Ensemble((), (), {}, stores=stores, images=images, weights=weights, vote=vote)


def label_slowly(stores, weights, confidence):
    """(N, S, S): the most probable class of the weighted mean, 255 where its probability is below its confidence."""
    total = sum(weight * read_all(store) for store, weight in zip(stores, weights, strict=True))
    total /= total.sum(1, keepdims=True)
    pred = total.argmax(1)
    return np.where(total.max(1) >= np.array(confidence)[pred], pred, 255), pred, total.max(1)


def train_on(folder, path, image_size=SIZE, **changes):
    """Masks that a run trains on where `path` is its extra set."""
    options = POLICY | changes
    subsets = open_data(str(folder), "train.json", "val.json", split="given", folds=2, fold=0, seed=1,
                        image_size=image_size, **options)  # fmt: skip
    joined = join_extra(*subsets, [{"json": str(path)}], **options)
    return np.array([joined.read(position)[1] for position in range(len(subsets[0]), len(joined))])


@pytest.mark.parametrize("background", ["class", "ignore"])
@pytest.mark.parametrize("paint_order", ["area", "class_id", "longest"])
def test_a_run_trains_on_confident_classes_and_ignores_the_rest(
    small_data, test_set, make_stores, tmp_path, background, paint_order
):
    stores, path = make_stores(), tmp_path / "labels.json"
    names, weights = test_set.class_names, (3, 1)
    confidence = dict(zip(names, np.linspace(0.9, 0.5, len(names)), strict=True))
    make_pseudo_labels(gather(stores, test_set, weights), path, confidence=confidence)
    expected, _, _ = label_slowly(stores, weights, list(confidence.values()))
    expected = expected[1:]  # the first image is unsure all over
    assert len(np.unique(expected)) > 6
    if background == "ignore":
        expected = np.where(expected == 0, 255, expected)
    np.testing.assert_array_equal(train_on(small_data, path, background=background, paint_order=paint_order), expected)


def test_the_file_has_no_errors_and_the_training_set_s_categories(small_data, test_set, make_stores, tmp_path):
    path = tmp_path / "new" / "labels.json"
    make_pseudo_labels(gather(make_stores(), test_set), path, confidence=0.5)
    data = load_coco(small_data, str(path))
    assert verify_coco(data, read_pixels=True).empty
    train = load_coco(small_data, "train.json")
    assert (data.category_ids, data.class_names) == (train.category_ids, train.class_names)
    assert data.annotations["annotation_id"].is_unique
    columns = ["image_id", "file_name", "width", "height"]
    assert data.images[columns].to_numpy().tolist() == test_set.images[columns].to_numpy()[1:].tolist()
    assert not data.annotations.duplicated(["image_id", "class_id", "ignore"]).any()


def test_scores_are_mean_probabilities_and_unsure_pixels_have_none(small_data, test_set, make_stores, tmp_path):
    stores, path = make_stores(), tmp_path / "labels.json"
    make_pseudo_labels(gather(stores, test_set), path, confidence=0.6)
    labels, _, probability = label_slowly(stores, (1, 1), np.full(test_set.num_classes, 0.6))
    annotations = json.loads(path.read_text())["annotations"]
    assert any(annotation["ignore"] for annotation in annotations)
    for annotation in annotations:
        image = test_set.images["image_id"].tolist().index(annotation["image_id"])
        value = 255 if annotation["ignore"] else annotation["category_id"]  # ids from 1, in the order of the classes
        assert annotation["area"] == (labels[image] == value).sum()
        assert ("score" in annotation) == (value != 255)
        if value != 255:
            assert annotation["score"] == pytest.approx(probability[image][labels[image] == value].mean(), abs=1e-4)


def test_images_of_confident_background_stay_and_unsure_ones_go(test_set, make_stores, tmp_path, capsys):
    path = tmp_path / "labels.json"
    make_pseudo_labels(gather(make_stores(), test_set), path, confidence=0.5)
    content, ids = json.loads(path.read_text()), test_set.images["image_id"].tolist()
    assert [image["id"] for image in content["images"]] == ids[1:]
    assert {annotation["image_id"] for annotation in content["annotations"]} == set(ids[2:])
    assert f"{len(ids) - 1} images labelled, 1 without a confident pixel left out" in capsys.readouterr().out


def test_the_summary_counts_what_is_labelled(test_set, make_stores, tmp_path):
    stores, names = make_stores(), test_set.class_names
    confidence = dict.fromkeys(names, 0.7) | {names[2]: NEVER}
    table = make_pseudo_labels(gather(stores, test_set), tmp_path / "labels.json", confidence=confidence)
    labels, pred, probability = label_slowly(stores, (1, 1), list(confidence.values()))
    assert table["class"].tolist() == list(names)
    assert table["confidence"].tolist() == list(confidence.values())
    for class_id, row in enumerate(table.itertuples()):
        chosen = labels == class_id
        assert row.images == chosen.any((1, 2)).sum()
        assert row.pixels == chosen.sum()
        assert row.share_kept == pytest.approx(chosen.sum() / (pred == class_id).sum())
        expected = probability[chosen].mean() if chosen.any() else np.nan
        assert row.mean_score == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert table["pixels"][2] == 0


def test_components_of_few_pixels_are_unsure(small_data, test_set, tmp_path):
    p = np.zeros((len(test_set.images), test_set.num_classes, SIZE, SIZE), np.float16)
    pred = np.zeros((SIZE, SIZE), int)
    pred[0:3, 0:3] = 4  # 9 px
    pred[3, 3] = 4  # 10 px with this corner
    pred[20:23, 20:23] = 4  # 9 px
    pred[40:50, 40:50] = 5
    pred[44, 44] = 0  # a hole: small background stays
    p[:] = np.eye(test_set.num_classes)[pred].transpose(2, 0, 1)
    store = write(tmp_path / "s", p, test_set.images["image_id"], test_set.images["file_name"], test_set.class_names)
    make_pseudo_labels(gather([store], test_set), tmp_path / "labels.json", confidence=0.5, min_pixels=10)
    expected = pred.copy()
    expected[20:23, 20:23] = 255
    assert all((mask == expected).all() for mask in train_on(small_data, tmp_path / "labels.json"))


def label_photographs(small_data, tmp_path, width, height):
    """Label two photographs of a size [px], beside the training data; return the labels at 64 px."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for name in ("train.json", "val.json"):
        shutil.copy(small_data / name, folder)
        for image in json.loads((small_data / name).read_text())["images"]:
            shutil.copy(small_data / image["file_name"], folder / image["file_name"])
    names = ["a.png", "b.png"]
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), pixels)
    images = [{"id": i, "file_name": name, "width": width, "height": height} for i, name in enumerate(names)]
    content = json.loads((small_data / "test.json").read_text()) | {"images": images}
    (folder / "test.json").write_text(json.dumps(content))
    data = load_coco(folder, "test.json")
    store = write(tmp_path / "s", draw_probabilities(2, data.num_classes, 5), [0, 1], names, data.class_names)
    make_pseudo_labels(gather([store], data), tmp_path / "labels.json", confidence=0.6)
    return label_slowly([store], (1,), np.full(data.num_classes, 0.6))[0]


# of 186 and 210 px OpenCV's nearest neighbour to 64 px rounds some rows down by one
@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 192), (150, 97), (641, 479), (65, 64), (186, 210)])
def test_photographs_give_back_the_labels_at_the_size_at_which_they_were_decided(small_data, tmp_path, width, height):
    labels = label_photographs(small_data, tmp_path, width, height)
    np.testing.assert_array_equal(train_on(tmp_path / "data", tmp_path / "labels.json"), labels)


def test_photographs_of_half_the_size_keep_every_second_label(small_data, tmp_path):
    labels = label_photographs(small_data, tmp_path, 32, 32)
    masks = train_on(tmp_path / "data", tmp_path / "labels.json", image_size=32)
    np.testing.assert_array_equal(masks, labels[:, 1::2, 1::2])


def test_means_are_those_of_the_vote(small_data, test_set, make_stores, tmp_path):
    stores = make_stores()
    ensemble = gather(stores, test_set, (2, 1), vote="geometric")
    make_pseudo_labels(ensemble, tmp_path / "labels.json", confidence=0.8)
    averages = np.stack(list(ensemble.average()))
    expected = np.where(averages.max(1) >= 0.8, averages.argmax(1), 255)
    assert (expected != label_slowly(stores, (2, 1), np.full(test_set.num_classes, 0.8))[0]).any()
    np.testing.assert_array_equal(train_on(small_data, tmp_path / "labels.json"), expected[1:])


def test_a_file_that_is_there_stays_and_a_broken_writing_leaves_none(test_set, make_stores, tmp_path):
    path, stores = tmp_path / "labels.json", make_stores()

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pseudo_labels(gather(stores, test_set), path, confidence=0.5, progress=stop)
    assert not list(tmp_path.glob("*labels*"))
    path.write_text("mine")
    with pytest.raises(InputError, match="required a new file, got one that is there already; delete it"):
        make_pseudo_labels(gather(stores, test_set), path, confidence=0.5)
    assert path.read_text() == "mine"


def test_a_file_is_written_over_where_that_is_asked_for_and_stays_until_the_new_one_is_whole(
    test_set, make_stores, tmp_path
):
    path, stores = tmp_path / "labels.json", make_stores()
    path.write_text("an earlier trial")
    with pytest.raises(InputError, match="required a confident pixel"):
        make_pseudo_labels(gather(stores, test_set), path, confidence=NEVER, overwrite=True)
    assert path.read_text() == "an earlier trial"
    make_pseudo_labels(gather(stores, test_set), path, confidence=0.5, overwrite=True)
    assert json.loads(path.read_text())["annotations"]


def test_a_file_that_another_process_wrote_meanwhile_stays(test_set, make_stores, tmp_path):
    path = tmp_path / "labels.json"
    with pytest.raises(InputError, match="got one that is there already"):
        make_pseudo_labels(
            gather(make_stores(), test_set), path, confidence=0.5, progress=lambda *_: path.write_text("theirs")
        )
    assert path.read_text() == "theirs"


def test_progress_counts_images(test_set, make_stores, tmp_path):
    seen = []
    make_pseudo_labels(
        gather(make_stores(), test_set),
        tmp_path / "labels.json",
        confidence=0.5,
        progress=lambda *now: seen.append(now),
    )
    assert seen == [(done, len(test_set.images)) for done in range(1, len(test_set.images) + 1)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"confidence": NEVER}, "required a confident pixel, got none in 8 images; lower confidence"),
        ({"confidence": -0.1}, "confidence: required a number of at least 0 for Background, got -0.1"),
        ({"confidence": float("nan")}, "confidence: required a number of at least 0 for Background, got nan"),
        ({"confidence": {"Papr": 0.5}}, "confidence: unknown class 'Papr'; did you mean 'Paper'"),
        ({"confidence": {"Paper": 0.5}}, "confidence: required one per class, got none for Background, UNKNOWN"),
    ],
)
def test_options_that_do_not_fit_are_refused(test_set, make_stores, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        make_pseudo_labels(gather(make_stores(), test_set), tmp_path / "labels.json", **{"confidence": 0.5} | changes)
    assert not list(tmp_path.glob("*labels*"))


def test_images_or_classes_of_another_file_are_refused(test_set, make_stores, small_data, tmp_path):
    stores, val = make_stores(), load_coco(small_data, "val.json")
    others = Subset(val, SimpleNamespace(image_ids=val.images["image_id"].to_numpy()), np.arange(len(val.images)))
    with pytest.raises(InputError, match=r"required predictions of the 6 images of val\.json \(.*, got 5, 6, 7, 8, 22"):
        gather(stores, others)
    renamed = replace(test_set, class_names=("Background", "Trash", *test_set.class_names[2:]))
    with pytest.raises(InputError, match=r"the classes of test\.json \(Background, Trash, .* got Background, UNKNOWN"):
        gather(stores, renamed)
    with pytest.raises(InputError, match="weights: required 2 weights of at least 0"):
        gather(stores, test_set, (1, 2, 3))


@pytest.fixture
def validation(small_data, tmp_path):
    """Validation images, and two stores that are as often right as they are sure; class 1 is never right."""
    options = {"split": "given", "folds": 2, "fold": 0, "seed": 1, "image_size": SIZE}
    _, truth = open_data(str(small_data), "train.json", "val.json", **options | POLICY)
    masks = np.stack([truth.read(position)[1] for position in range(len(truth))])
    rng, classes = np.random.default_rng(0), truth.data.num_classes
    sure = rng.uniform(0.3, 1, masks.shape)
    pred = np.where((rng.random(masks.shape) < sure) & (masks != 1), masks, rng.permuted(masks % 11 + 1, axis=0))
    p = np.where(np.eye(classes, dtype=bool)[pred], sure[..., None], ((1 - sure) / (classes - 1))[..., None])
    names = truth.data.images["file_name"].iloc[truth.indices].tolist()
    stores = []
    for seed in range(2):
        noisy = p * rng.uniform(0.9, 1.1, p.shape)
        array = (noisy / noisy.sum(-1, keepdims=True)).transpose(0, 3, 1, 2).astype(np.float16)
        stores.append(write(tmp_path / f"val{seed}", array, truth.image_ids, names, truth.data.class_names))
    return stores, truth, masks


def test_confidences_are_the_lowest_that_keep_the_precision(validation, capsys):
    stores, truth, masks = validation
    chosen = choose_confidence(gather(stores, truth, (1, 2)), 0.9)
    assert list(chosen) == list(truth.data.class_names)
    _, pred, probability = label_slowly(stores, (1, 2), np.zeros(truth.data.num_classes))
    printed = capsys.readouterr().out
    never = printed.removeprefix("never labelled: ").partition(" (")[0].split(", ")
    for class_id, (name, confidence) in enumerate(chosen.items()):
        of_class = pred == class_id
        reached = []
        for threshold in np.arange(1024) / 1024:
            labelled = of_class & (probability >= threshold)
            if labelled.sum() >= 100 and (masks[labelled] == class_id).mean() >= 0.9:
                reached.append(threshold)
        assert confidence == (reached[0] if reached else NEVER)
        assert (name in never) == (not reached)
    assert chosen["UNKNOWN"] == NEVER
    assert sum(0 < value < 1 for value in chosen.values()) >= 3
    assert "(nowhere a precision of 0.9 on 100 px or more)" in printed


def test_the_precision_is_reached_exactly_by_certain_pixels_and_ignored_ones_do_not_count(test_set, tmp_path):
    pred, mask = np.zeros((2, SIZE, SIZE), np.uint8)
    pred[:6], mask[:3], mask[3:6] = 2, 2, 255
    mask[0, :48] = 0  # 144 of 192 px are right
    probabilities = np.eye(test_set.num_classes)[pred].transpose(2, 0, 1)[None].astype(np.float16)
    store = write(tmp_path / "s", probabilities, [7], ["a.png"], test_set.class_names)
    pixels = SimpleNamespace(image_ids=np.array([7]), read=lambda index: (None, mask))
    truth = Subset(test_set, pixels, np.array([0]))
    expected = dict.fromkeys(test_set.class_names, NEVER) | {"Background": 0.0}
    assert choose_confidence(gather([store], truth), 0.75) == expected | {test_set.class_names[2]: 0.0}
    assert choose_confidence(gather([store], truth), 0.76) == expected


def test_images_and_precisions_that_do_not_fit_are_refused(validation):
    stores, truth, _ = validation
    with pytest.raises(InputError, match="precision: required above 0 and at most 1, got 90"):
        choose_confidence(gather(stores, truth), 90)
    fewer = replace(truth, indices=truth.indices[1:])
    with pytest.raises(InputError, match=r"required predictions of the 5 images of val\.json \(.*, got 9, 10, 11"):
        gather(stores, fewer)
