"""Submissions are written as a reference writer would, read back as written; a broken one is named with its row."""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from seglib.errors import InputError
from seglib.inference.submission_file import (
    encode_mask,
    read_file_names,
    read_submission,
    resize_nearest,
    resize_probabilities,
    write_rows,
)


def write(path, rows):
    pd.DataFrame(rows, columns=["image_id", "PredictionString"]).to_csv(path, index=False)
    return path


@pytest.fixture
def masks():
    return np.random.default_rng(0).integers(0, 12, (20, 8, 8), dtype=np.uint8)


@pytest.fixture
def submission(tmp_path, masks):
    rows = [(f"batch/{i:04}.jpg", " ".join(map(str, mask.ravel()))) for i, mask in enumerate(masks)]
    return write(tmp_path / "submission.csv", rows)


def test_masks_are_read_row_by_row(submission, masks):
    names, preds = read_submission(submission, size=8)
    assert names == [f"batch/{i:04}.jpg" for i in range(20)]
    assert preds.dtype == np.uint8 and (preds == masks).all()


def test_masks_follow_the_wanted_names(submission, masks):
    names, preds = read_submission(submission, size=8, file_names=["batch/0003.jpg", "batch/0001.jpg"])
    assert names == ["batch/0003.jpg", "batch/0001.jpg"] and (preds == masks[[3, 1]]).all()


def test_an_image_without_a_row_is_named(submission):
    with pytest.raises(InputError, match=r"1 missing: batch/9999\.jpg"):
        read_submission(submission, size=8, file_names=["batch/0001.jpg", "batch/9999.jpg"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3", r"\[a\.jpg\]: required 4 ids \(2 x 2 px\), got 3"),
        ("1 2 x 4", r"\[a\.jpg\]: PredictionString must be whole numbers"),
        ("1 2 0.5 4", r"PredictionString must be whole numbers"),
        ("1 2 300 4", r"required ids from 0 to 255, got 1 to 300"),
        ("1 2 -1 4", r"required ids from 0 to 255, got -1 to 4"),
        ("", r"required 4 ids"),
    ],
)
def test_a_broken_mask_is_named(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_submission(write(tmp_path / "s.csv", [("a.jpg", text)]), size=2)


def test_a_file_that_is_no_submission_is_refused(tmp_path):
    with pytest.raises(InputError, match="got no such file"):
        read_submission(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="required a submission CSV"):
        read_submission(tmp_path / "empty.csv")
    (tmp_path / "other.csv").write_text("id,mask\n1,2\n")
    with pytest.raises(InputError, match="required the columns image_id, PredictionString, got id, mask"):
        read_submission(tmp_path / "other.csv")
    with pytest.raises(InputError, match="got only the header"):
        read_submission(write(tmp_path / "none.csv", []))


def test_an_image_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"one row an image, got a\.jpg twice"):
        read_submission(write(tmp_path / "s.csv", [("a.jpg", "1 2 3 4"), ("a.jpg", "1 2 3 4")]), size=2)


def test_bytes_equal_those_of_pandas(tmp_path, masks):
    names = ["batch/0001.jpg", "with space.jpg", "a,b.jpg", 'quo"te.jpg', "사진.jpg"]
    write_rows(tmp_path / "own.csv", zip(names, masks, strict=False))
    rows = [(name, " ".join(map(str, mask.ravel()))) for name, mask in zip(names, masks, strict=False)]
    write(tmp_path / "reference.csv", rows)
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
    write(tmp_path / "sample.csv", [("b.jpg", ""), ("NA", ""), ("a.jpg", "0")])
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
        read_file_names(write(tmp_path / "sample.csv", rows))
