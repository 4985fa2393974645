"""Submissions are read back as written, and a broken one is named with its row."""

import numpy as np
import pandas as pd
import pytest

from seglib.errors import InputError
from seglib.inference.submission_file import read_submission


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
