"""Submissions are written as a reference writer would; a broken one is refused with the words that say what broke it."""

import json
import re
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from seglib.data.coco import load_coco
from seglib.data.masks import paint_mask
from seglib.errors import InputError, InputErrors
from seglib.files import hash_file, read_json
from seglib.submission import (
    count_shares,
    encode_mask,
    read_file_names,
    resize_nearest,
    resize_probabilities,
    validate_submission,
    write_rows,
    write_submission,
)

SIZE, CLASSES, COUNT, BATCH = 16, 5, 37, 8
NAMES = [f"batch_{i % 3}/{i:04}.jpg" for i in range(COUNT)]  # not sorted
SHARES = [0.4, 0.3, 0.2, 0.07, 0.03]


@pytest.fixture
def masks():
    return np.random.default_rng(0).choice(CLASSES, (COUNT, SIZE, SIZE), p=SHARES).astype(np.uint8)


def to_rows(masks, names=NAMES):
    return [(name, " ".join(map(str, mask.ravel().tolist()))) for name, mask in zip(names, masks, strict=True)]


def to_csv(rows, **options):
    return pd.DataFrame(rows, columns=["image_id", "PredictionString"]).to_csv(index=False, **options)


def replace(rows, i, change):
    return [*rows[:i], (rows[i][0], change(rows[i][1])), *rows[i + 1 :]]


def rename(rows, change):
    return [(change(name), text) for name, text in rows]


def check(path, **options):
    return validate_submission(path, NAMES, CLASSES, size=SIZE, train_shares=SHARES, batch_size=BATCH, **options)


def with_first(change):
    """The file with its row 4 changed; the words are to name that row."""
    return lambda rows, masks: to_csv(replace(rows, 4, change))


def with_masks(change):
    def make(rows, masks):
        change(masks)
        return to_csv(to_rows(masks))

    return make


def fill(masks, images, class_id):
    masks[images] = class_id


ROW = r"batch_1/0004\.jpg: "
BROKEN = {
    "empty file": (lambda rows, masks: "", "required a submission CSV, got No columns"),
    "only the header": (lambda rows, masks: to_csv([]), "required 37 rows, got none"),
    "no header": (
        lambda rows, masks: to_csv(rows, header=False),
        r"required the columns image_id, PredictionString, got batch_0/0000\.jpg",
    ),
    "columns swapped": (
        lambda rows, masks: to_csv(rows, columns=["PredictionString", "image_id"]),
        "required the columns image_id, PredictionString, got PredictionString, image_id",
    ),
    "other columns": (lambda rows, masks: "id,mask\n1,0 0\n", "got id, mask"),
    "an index column": (
        lambda rows, masks: pd.DataFrame(rows, columns=["image_id", "PredictionString"]).to_csv(),
        "required the columns image_id, PredictionString, got Unnamed: 0",
    ),
    "semicolons": (lambda rows, masks: to_csv(rows, sep=";"), "required the columns .* got image_id;PredictionString"),
    "not text": (lambda rows, masks: b"\xff\xfe\x00a\x80", "required a submission CSV, got 'utf-8' codec"),
    "a field more": (
        lambda rows, masks: to_csv(rows).replace("0004.jpg,", "0004.jpg,x,"),
        "required a submission CSV, got .*Expected 2 fields in line 6, saw 3",
    ),
    "a field less": (lambda rows, masks: to_csv(rows).replace("0004.jpg,", "0004.jpg "), r"image.* not asked for"),
    "last incomplete batch": (
        lambda rows, masks: to_csv(rows[:-5]),
        r"the last 5 rows of 37 missing, from batch_2/0032\.jpg on: what batches of 8 leave over, "
        r"the last incomplete batch \(drop_last=True\?\)",
    ),
    "prediction stopped": (
        lambda rows, masks: to_csv(rows[:-7]),
        "the last 7 rows of 37 missing, .* did the prediction stop early",
    ),
    "shuffled loader that drops": (
        lambda rows, masks: to_csv([row for i, row in enumerate(rows) if i not in (3, 9, 15, 21, 30)]),
        "5 rows missing: batch_0/0003.jpg, batch_0/0009.jpg, batch_0/0015.jpg and 2 more; 5 is what batches of 8 leave",
    ),
    "a row missing": (lambda rows, masks: to_csv(rows[:4] + rows[5:]), r"1 row missing: batch_1/0004\.jpg$"),
    "an extra row": (
        lambda rows, masks: to_csv([*rows, ("new.jpg", rows[0][1])]),
        r"1 row of images that are not asked for: new\.jpg; leave them out",
    ),
    "a row twice": (
        lambda rows, masks: to_csv([*rows, rows[4]]),
        r"1 image with more than one row: batch_1/0004\.jpg; keep one",
    ),
    "header in the middle": (
        lambda rows, masks: to_csv([*rows[:9], ("image_id", "PredictionString"), *rows[9:]]),
        "not asked for: image_id;",
    ),
    "order reversed": (
        lambda rows, masks: to_csv(rows[::-1]),
        r"36 of 37 rows are out of order: row 1 is batch_0/0036\.jpg where batch_0/0000\.jpg is required",
    ),
    "order sorted": (lambda rows, masks: to_csv(sorted(rows)), r"out of order \(sorted by name\): row 2 is"),
    "two rows swapped": (
        lambda rows, masks: to_csv([rows[1], rows[0], *rows[2:]]),
        "2 of 37 rows are out of order: row 1 is",
    ),
    "no folders": (
        lambda rows, masks: to_csv(rename(rows, lambda name: name.split("/")[1])),
        r"37 image_ids lack their folder: got '0000\.jpg' where 'batch_0/0000\.jpg' is required",
    ),
    "absolute paths": (
        lambda rows, masks: to_csv(rename(rows, lambda name: f"/data/{name}")),
        "37 image_ids have a folder before them: got '/data/batch_0/0000.jpg'",
    ),
    "backslashes": (
        lambda rows, masks: to_csv(rename(rows, lambda name: name.replace("/", "\\"))),
        "37 image_ids have backslashes",
    ),
    "no extensions": (
        lambda rows, masks: to_csv(rename(rows, lambda name: name[:-4])),
        "37 image_ids lack their extension",
    ),
    "image ids": (
        lambda rows, masks: to_csv([(str(i), text) for i, (_, text) in enumerate(rows)]),
        "37 image_ids are numbers: got '0' where 'batch_0/0000.jpg' is required; write the file_name",
    ),
    "squeezed batch of one": (
        with_first(lambda text: " ".join(text.split()[:SIZE])),
        ROW + r"16 ids where 256 are required: one line of a mask, which is what squeeze\(\) on a batch of one leaves",
    ),
    "not resized": (
        with_first(lambda text: " ".join(["0 1"] * 512)),
        ROW + "1024 ids where 256 are required: 32 x 32 px, not resized to 16 x 16",
    ),
    "several masks in a row": (with_first(lambda text: f"{text} {text}"), ROW + "512 ids .*: 2 masks in one row"),
    "an id short": (
        with_first(lambda text: text[:-2]),
        ROW + r"255 ids where 256 are required \(16 x 16 px\): .*early",
    ),
    "an id more": (with_first(lambda text: f"{text} 0"), ROW + r"257 ids where 256 are required \(16 x 16 px\)$"),
    "file cut off": (
        lambda rows, masks: to_csv(rows)[:-40],
        r"batch_0/0036\.jpg: \d+ ids where 256 are required .*: the text stops early",
    ),
    "cut by a spreadsheet": (
        with_first(lambda text: ("0 1 " * 9000)[:32767]),
        ROW + "a text cut at 32767 characters, as spreadsheets do",
    ),
    "empty string": (with_first(lambda text: ""), ROW + "an empty PredictionString"),
    "id out of range": (
        with_first(lambda text: "5" + text[1:]),
        ROW + "ids from 0 to 5 where 0 to 4 are required$",
    ),
    "negative id": (with_first(lambda text: "-1" + text[1:]), ROW + "ids from -1 to 4 where 0 to 4 are required"),
    "ignored pixels": (
        with_first(lambda text: "255" + text[1:]),
        ROW + "ids from 0 to 255 where 0 to 4 are required; 255 marks ignored pixels",
    ),
    "floats": (
        with_first(lambda text: text.replace("1", "1.0")),
        ROW + r"1\.0 where a whole number is required; take the argmax",
    ),
    "nan": (with_first(lambda text: "nan" + text[1:]), ROW + "nan where a whole number is required: .* never made"),
    "words": (with_first(lambda text: "cat" + text[1:]), ROW + "'cat' where a whole number is required"),
    "printed array": (
        with_first(lambda text: "[0 0 0 ... 0 0 0]"),
        ROW + "brackets or dots of a printed array; write ' '.join",
    ),
    "commas": (
        with_first(lambda text: text.replace(" ", ",")),
        ROW + "commas between the ids where one space is required",
    ),
    "two spaces": (with_first(lambda text: text.replace(" ", "  ")), ROW + "more between, before or after the ids"),
    "a space at the end": (with_first(lambda text: f"{text} "), ROW + "more between, before or after the ids"),
    "zeros before numbers": (with_first(lambda text: "0" + text), ROW + "more .* or zeros before a number"),
    "all background": (
        with_masks(lambda masks: fill(masks, slice(None), 0)),
        r"37 of 37 masks hold one class alone \(class 0: 37\).*--force",
    ),
    "mostly constant": (
        with_masks(lambda masks: (fill(masks, slice(0, 10), 0), fill(masks, slice(10, 20), 2))),
        r"20 of 37 masks hold one class alone \(class 0: 10, class 2: 10\)",
    ),
    "last batch never written": (
        with_masks(lambda masks: fill(masks, slice(-5, None), 0)),
        "the last 5 of 37 masks are background alone, 0 of the others: was the last incomplete batch never written",
    ),
    "one batch again and again": (
        with_masks(lambda masks: fill(masks, slice(8, 16), masks[:8])),
        "16 masks are the same as another image's: .*one batch written twice",
    ),
    "a class everywhere": (
        with_masks(lambda masks: fill(masks, (slice(None), slice(0, 8)), 4)),
        r"class 4 has 5\d\.\d% of the pixels where train has 3\.0%",
    ),
    "hardly any foreground": (
        with_masks(lambda masks: fill(masks, (slice(None), slice(0, 15)), 0)),
        r"all classes but 0 have \d\.\d% of the pixels where train has 60\.0%",
    ),
    "ids one too low": (
        with_masks(lambda masks: fill(masks, slice(None), (masks + 4) % 5)),
        r"class shares are far from train's \(distance 0\.\d+ of at most 1\); with every id \+1 they would match",
    ),
}


@pytest.mark.parametrize(("make", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_submission_is_refused_with_the_right_words(tmp_path, masks, make, words):
    content = make(to_rows(masks), masks)
    path = tmp_path / "submission.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputErrors) as caught:
        check(path).refuse(path)
    lines = [line.removeprefix(f"{path}: ") for line in caught.value.lines]
    assert all(str(path) not in line for line in lines)
    assert any(re.search(words, line) for line in lines), lines


@pytest.mark.parametrize("options", [{}, {"lineterminator": "\r\n"}, {"quoting": 1}, {"encoding": "utf-8-sig"}])
def test_a_sound_submission_passes_however_its_csv_is_written(tmp_path, masks, options):
    path = tmp_path / "submission.csv"
    pd.DataFrame(to_rows(masks), columns=["image_id", "PredictionString"]).to_csv(path, index=False, **options)
    verdict = check(path)
    assert verdict[:3] == ([], [], [])
    np.testing.assert_allclose(verdict.shares, np.bincount(masks.ravel()) / masks.size)
    verdict.refuse(path)


def test_all_problems_are_reported_together(tmp_path, masks):
    rows = replace(replace(to_rows(masks), 4, lambda text: "x"), 6, lambda text: text[:-2])
    path = tmp_path / "submission.csv"
    path.write_text(to_csv([*rows[:-5], ("new.jpg", rows[0][1]), rows[2]]))
    with pytest.raises(InputErrors) as caught:
        check(path).refuse(path)
    words = ["the last 5 rows", "not asked for", "more than one row", "'x' where", "255 ids"]
    assert [word for word in words if any(word in line for line in caught.value.lines)] == words


def test_rows_with_the_same_problem_share_a_line(masks):
    rows = [(name, " ".join(text.split()[: 101 + i % 9])) for i, (name, text) in enumerate(to_rows(masks))]
    (line,) = check(rows).errors
    assert line.startswith("batch_0/0000.jpg, batch_1/0001.jpg, batch_2/0002.jpg and 34 more: 101 ids where 256")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros(SIZE, np.uint8), r"a mask of shape \(16,\): one line of a mask, which is what squeeze\(\)"),
        (np.zeros((1, SIZE, SIZE), np.uint8), r"a mask of shape \(1, 16, 16\), with the batch's axis"),
        (np.zeros((SIZE, SIZE), np.float32), "float32 values where whole numbers are required"),
        (np.zeros((32, 32), np.uint8), "1024 ids where 256 are required: 32 x 32 px, not resized"),
        (np.zeros((CLASSES, SIZE, SIZE), np.uint8), "5 masks in one row, or probabilities without the argmax"),
        (np.zeros((8, 32), np.uint8), r"a mask of shape \(8, 32\) where \(16, 16\) is required"),
        (np.full((SIZE, SIZE), 255, np.int64), "ids from 255 to 255 where 0 to 4"),
        (np.zeros((0, SIZE), np.uint8), "0 ids where 256"),
    ],
)
def test_masks_are_checked_like_texts(masks, mask, words):
    rows = [*zip(NAMES[:-1], masks, strict=False), (NAMES[-1], mask)]
    (line,) = check(rows).errors
    assert line.startswith("batch_0/0036.jpg: ") and re.search(words, line)


def test_force_overrides_doubts_but_no_errors(masks):
    masks[:] = 0
    verdict = check(to_rows(masks))
    assert verdict.doubts and not verdict.errors
    verdict.refuse("submission.csv", force=True)
    with pytest.raises(InputErrors, match="1 row missing") as caught:
        check(to_rows(masks)[1:]).refuse("submission.csv", force=True)
    assert len(caught.value.lines) == 1


def test_a_few_images_without_an_object_are_no_reason_to_refuse(masks):
    masks[[3, 11, 36]] = 0
    verdict = check(to_rows(masks))
    assert not verdict.errors + verdict.doubts
    (note,) = verdict.notes
    assert note.startswith("3 of 37 masks hold one class alone (class 0: 3): batch_0/0003.jpg")


def test_images_without_an_object_at_the_end_are_no_dropped_batch_where_such_images_are_common(masks):
    masks[3:20:2] = masks[-3:] = 0
    assert not check(to_rows(masks)).doubts


def test_an_unknown_batch_size_is_guessed(masks):
    (line,) = validate_submission(to_rows(masks)[:-5], NAMES, CLASSES, size=SIZE).errors
    assert "what batches of 8 or 16 or 32 leave over, the last incomplete batch" in line


def test_shares_that_do_not_fit_the_classes_are_refused(masks):
    with pytest.raises(InputError, match=r"train_shares: required 5 numbers from 0, one per class, got \[1\.0, 2\.0\]"):
        validate_submission(to_rows(masks), NAMES, CLASSES, size=SIZE, train_shares=[1, 2])


def test_shares_are_those_of_the_painted_masks(small_data):
    data = load_coco(small_data, "train.json")
    counts = np.zeros(256)
    for image in data.images.itertuples():
        own = data.annotations[data.annotations["image_id"] == image.image_id]
        counts += np.bincount(paint_mask(own, image.height, image.width, "area", "class").ravel(), minlength=256)
    np.testing.assert_allclose(count_shares(data), counts[: data.num_classes] / counts.sum())
    assert count_shares(data, max_images=3).sum() == pytest.approx(1)


def write_reference(path, rows):
    pd.DataFrame(rows, columns=["image_id", "PredictionString"]).to_csv(path, index=False)
    return path


def test_bytes_equal_those_of_pandas(tmp_path, masks):
    names = ["batch/0001.jpg", "with space.jpg", "a,b.jpg", 'quo"te.jpg', "사진.jpg"]
    write_rows(tmp_path / "own.csv", zip(names, masks, strict=False))
    rows = [(name, " ".join(map(str, mask.ravel()))) for name, mask in zip(names, masks, strict=False)]
    write_reference(tmp_path / "reference.csv", rows)
    assert (tmp_path / "own.csv").read_bytes() == (tmp_path / "reference.csv").read_bytes()


def test_every_id_has_its_text():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert encode_mask(mask).decode() == " ".join(map(str, range(256)))


def test_writing_holds_one_row_at_a_time(tmp_path):
    def peak(count):
        tracemalloc.start()
        write_rows(tmp_path / "s.csv", ((str(i), np.full((64, 64), i % 12, np.uint8)) for i in range(count)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(300) < 1.2 * peak(30)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, masks):
    def rows():
        yield "a.jpg", masks[0]
        raise RuntimeError("out of memory")

    (tmp_path / "s.csv").write_text("old")
    with pytest.raises(RuntimeError):
        write_rows(tmp_path / "s.csv", rows())
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"] and (tmp_path / "s.csv").read_text() == "old"


def test_nearest_takes_every_second_pixel_from_512():
    mask = np.random.default_rng(0).integers(0, 12, (512, 512), dtype=np.uint8)
    assert (resize_nearest(mask, 256) == mask[::2, ::2]).all()


@pytest.mark.parametrize("shape", [(256, 256), (384, 384), (128, 128), (500, 333), (1, 7), (1024, 1024)])
def test_nearest_is_that_of_torch(shape):
    mask = np.random.default_rng(0).integers(0, 12, shape, dtype=np.uint8)
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size=(256, 256), mode="nearest")
    assert (resize_nearest(mask, 256) == expected[0, 0].numpy()).all()


@pytest.mark.parametrize("side", [64, 48, 33, 16])
def test_resized_probabilities_are_those_of_torch(side):
    probabilities = torch.rand(12, side, side, generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    expected = torch.nn.functional.interpolate(probabilities[None], size=(32, 32), mode="bilinear")[0].argmax(dim=0)
    pred = resize_probabilities(probabilities.numpy(), 32)
    assert pred.dtype == np.uint8 and (pred == expected.numpy()).mean() > 0.999  # float32 rounding may break a tie


def test_wanted_names_come_from_the_sample_or_the_test_set_in_its_order(tmp_path):
    write_reference(tmp_path / "sample.csv", [("b.jpg", ""), ("NA", ""), ("a.jpg", "0")])
    assert read_file_names(tmp_path / "sample.csv") == ["b.jpg", "NA", "a.jpg"]
    images = [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name in [(5, "b/2.jpg"), (1, "a/1.jpg")]]
    content = {"images": images, "categories": [{"id": 1, "name": "Paper"}]}
    (tmp_path / "test.json").write_text(json.dumps(content))
    assert read_file_names(tmp_path / "test.json") == ["b/2.jpg", "a/1.jpg"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "required at least one image, got none"),
        ([("a.jpg", "")] * 2, r"required each image once, got a\.jpg twice"),
    ],
)
def test_a_list_of_wanted_names_is_checked(tmp_path, rows, words):
    with pytest.raises(InputError, match=words):
        read_file_names(write_reference(tmp_path / "sample.csv", rows))


WRITTEN = [f"batch/{i:04}.jpg" for i in (4, 2, 9, 1, 7, 0)]


@pytest.fixture
def large():
    return np.random.default_rng(0).integers(0, 12, (len(WRITTEN), 32, 32), dtype=np.uint8)


def write(path, masks, names=WRITTEN, **options):
    predictions = [*zip(names, masks, strict=True)][::-1]
    return write_submission(path, predictions, WRITTEN, 12, size=SIZE, **options)


def read_masks(path):
    texts = pd.read_csv(path)["PredictionString"]
    return np.array([text.split() for text in texts], dtype=int).reshape(-1, SIZE, SIZE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_predictions_in_any_order_are_written_in_the_wanted_one(tmp_path, large, dtype):
    write(tmp_path / "s.csv", large.astype(dtype))
    rows = [(name, " ".join(map(str, mask[::2, ::2].ravel()))) for name, mask in zip(WRITTEN, large, strict=True)]
    expected = pd.DataFrame(rows, columns=["image_id", "PredictionString"]).to_csv(index=False)
    assert (tmp_path / "s.csv").read_text() == expected


def test_probabilities_can_be_resized_before_the_argmax(tmp_path):
    probabilities = np.zeros((len(WRITTEN), 12, 32, 32), np.float16)
    probabilities[:, 1] = 0.5
    probabilities[:, 2, ::2, ::2] = 0.9  # the pixel that nearest looks at; its three neighbours are class 1
    probabilities[:, np.arange(6) + 3, :2, :2] += 5 * np.eye(6, dtype=np.float16)[:, :, None, None]
    record = write(tmp_path / "s.csv", probabilities, resizing="probabilities", force=True)
    preds = read_masks(tmp_path / "s.csv")
    assert (preds[:, 1:, 1:] == 1).all()
    assert preds[:, 0, 0].tolist() == [3, 4, 5, 6, 7, 8]
    assert record["resizing"] == "probabilities resized bilinearly, then argmax"


def test_the_record_says_what_is_behind_the_file(tmp_path, large):
    sources = [{"run": "outputs/kfold/fold=0", "weights_sha256": "ab"}]
    large[2] = 0
    record = write(tmp_path / "s.csv", large, sources=sources, val_score=0.61)
    assert read_json(tmp_path / "s.json") == json.loads(json.dumps(record))
    assert record["hash"] == hash_file(tmp_path / "s.csv")
    assert record["sources"] == sources and record["val_score"] == 0.61 and record["images"] == 6
    assert record["resizing"] == "argmax at the model's size, then nearest"
    assert record["notes"][0].startswith("1 of 6 masks hold one class alone") and record["doubts"] == []
    assert len(record["class_shares"]) == 12 and sum(record["class_shares"]) == pytest.approx(1)


def test_a_bad_submission_is_not_put_in_place(tmp_path, large):
    (tmp_path / "s.csv").write_text("old")
    names = ["other.jpg", *WRITTEN[1:]]
    large[3, 0, 0] = 12
    with pytest.raises(InputErrors) as caught:
        write(tmp_path / "s.csv", large, names)
    assert [line.removeprefix(f"{tmp_path}/s.csv: ") for line in caught.value.lines] == [
        "1 row missing: batch/0004.jpg",
        "1 row of images that are not asked for: other.jpg; leave them out",
        "batch/0001.jpg: ids from 0 to 12 where 0 to 11 are required",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"] and (tmp_path / "s.csv").read_text() == "old"


def test_a_dropped_batch_and_a_squeezed_one_are_named(tmp_path, large):
    with pytest.raises(
        InputErrors, match=r"the last 2 rows of 6 missing, .* the last incomplete batch \(drop_last=True"
    ):
        write_submission(
            tmp_path / "s.csv", zip(WRITTEN[:4], large, strict=False), WRITTEN, 12, size=SIZE, batch_size=4
        )
    rows = [
        *zip(WRITTEN, [*large[:5], *large[5:6].squeeze()], strict=False)
    ]  # the last batch's mask lost its first axis
    with pytest.raises(InputErrors, match=r"batch/0000\.jpg: a mask of shape \(32,\): one line .* squeeze\(\)"):
        write_submission(tmp_path / "s.csv", rows, WRITTEN, 12, size=SIZE)


def test_what_stops_the_prediction_is_reported_as_it_is(tmp_path, large):
    def predict():
        yield WRITTEN[0], large[0]
        raise InputError("grid/seed=1: required best.pt, got no such file")

    with pytest.raises(InputError, match=r"^grid/seed=1: required best\.pt, got no such file$"):
        write_submission(tmp_path / "s.csv", predict(), WRITTEN, 12, size=SIZE)
    assert not list(tmp_path.iterdir())


def test_doubts_are_overridden_and_recorded(tmp_path, large):
    with pytest.raises(InputErrors, match=r"6 of 6 masks hold one class alone.*force=True"):
        write(tmp_path / "s.csv", np.zeros_like(large))
    assert not list(tmp_path.iterdir())
    record = write(tmp_path / "s.csv", np.zeros_like(large), force=True)
    assert record["doubts"] == ["6 of 6 masks hold one class alone (class 0: 6): batch/0000.jpg, batch/0007.jpg, "
                                "batch/0001.jpg and 3 more"]  # fmt: skip


def test_shares_far_from_those_of_train_refuse(tmp_path, large):
    with pytest.raises(InputErrors, match="class shares are far from train's"):
        write(tmp_path / "s.csv", large, train_shares=[0.9, *[0.1 / 11] * 11])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("s.csv", {"resizing": "nearst"}, "unknown resizing 'nearst'; did you mean 'nearest'"),
        ("s.csv", {"resizing": "probabilities"}, r"required finite floats \(C, H, W\), got uint8 \(32, 32\)"),
        ("s.csv", {"val_score": 61.0}, "val_score: required a number from 0 to 1, or None, got 61.0"),
        ("s.json", {}, r"required a name that ends in \.csv"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, large, name, options, words):
    with pytest.raises(InputError, match=words):
        write(tmp_path / name, large, **options)
