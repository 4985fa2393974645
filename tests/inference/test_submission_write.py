"""Predictions become a checked submission with its record, or nothing changes."""

import json

import numpy as np
import pandas as pd
import pytest

from seglib.errors import InputError, InputErrors
from seglib.files import hash_file
from seglib.inference.submission_file import read_submission
from seglib.inference.submission_write import write_submission

SIZE, CLASSES = 16, 12
NAMES = [f"batch/{i:04}.jpg" for i in (4, 2, 9, 1, 7, 0)]


@pytest.fixture
def masks():
    return np.random.default_rng(0).integers(0, CLASSES, (len(NAMES), 32, 32), dtype=np.uint8)


def write(path, masks, names=NAMES, **options):
    predictions = [*zip(names, masks, strict=True)][::-1]
    return write_submission(path, predictions, NAMES, CLASSES, size=SIZE, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_predictions_in_any_order_are_written_in_the_wanted_one(tmp_path, masks, dtype):
    write(tmp_path / "s.csv", masks.astype(dtype))
    rows = [(name, " ".join(map(str, mask[::2, ::2].ravel()))) for name, mask in zip(NAMES, masks, strict=True)]
    expected = pd.DataFrame(rows, columns=["image_id", "PredictionString"]).to_csv(index=False)
    assert (tmp_path / "s.csv").read_text() == expected


def test_probabilities_can_be_resized_before_the_argmax(tmp_path):
    probabilities = np.zeros((len(NAMES), CLASSES, 32, 32), np.float16)
    probabilities[:, 1] = 0.5
    probabilities[:, 2, ::2, ::2] = 0.9  # the pixel that nearest looks at; its three neighbours are class 1
    probabilities[:, np.arange(6) + 3, :2, :2] += 5 * np.eye(6, dtype=np.float16)[:, :, None, None]
    record = write(tmp_path / "s.csv", probabilities, resizing="probabilities", force=True)
    _, preds = read_submission(tmp_path / "s.csv", size=SIZE)
    assert (preds[:, 1:, 1:] == 1).all()
    assert preds[:, 0, 0].tolist() == [3, 4, 5, 6, 7, 8]
    assert record["resizing"] == "probabilities resized bilinearly, then argmax"


def test_the_record_says_what_is_behind_the_file(tmp_path, masks):
    sources = [{"run": "outputs/kfold/fold=0", "weights_sha256": "ab"}]
    masks[2] = 0
    record = write(tmp_path / "s.csv", masks, sources=sources, val_score=0.61)
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(json.dumps(record))
    assert record["hash"] == hash_file(tmp_path / "s.csv")
    assert record["sources"] == sources and record["val_score"] == 0.61 and record["images"] == 6
    assert record["resizing"] == "argmax at the model's size, then nearest"
    assert record["notes"][0].startswith("1 of 6 masks hold one class alone") and record["doubts"] == ()
    assert len(record["class_shares"]) == CLASSES and sum(record["class_shares"]) == pytest.approx(1)


def test_a_bad_submission_is_not_put_in_place(tmp_path, masks):
    (tmp_path / "s.csv").write_text("old")
    names = ["other.jpg", *NAMES[1:]]
    masks[3, 0, 0] = 12
    with pytest.raises(InputErrors) as caught:
        write(tmp_path / "s.csv", masks, names)
    assert [line.removeprefix(f"{tmp_path}/s.csv: ") for line in caught.value.lines] == [
        "1 row missing: batch/0004.jpg",
        "1 row of images that are not asked for: other.jpg; leave them out",
        "batch/0001.jpg: ids from 0 to 12 where 0 to 11 are required",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"] and (tmp_path / "s.csv").read_text() == "old"


def test_a_dropped_batch_and_a_squeezed_one_are_named(tmp_path, masks):
    with pytest.raises(
        InputErrors, match=r"the last 2 rows of 6 missing, .* the last incomplete batch \(drop_last=True"
    ):
        write_submission(
            tmp_path / "s.csv", zip(NAMES[:4], masks, strict=False), NAMES, CLASSES, size=SIZE, batch_size=4
        )
    rows = [*zip(NAMES, [*masks[:5], *masks[5:6].squeeze()], strict=False)]  # the last batch's mask lost its first axis
    with pytest.raises(InputErrors, match=r"batch/0000\.jpg: a mask of shape \(32,\): one line .* squeeze\(\)"):
        write_submission(tmp_path / "s.csv", rows, NAMES, CLASSES, size=SIZE)


def test_what_stops_the_prediction_is_told_as_it_is(tmp_path, masks):
    def predict():
        yield NAMES[0], masks[0]
        raise InputError("grid/seed=1: required best.pt, got no such file")

    with pytest.raises(InputError, match=r"^grid/seed=1: required best\.pt, got no such file$"):
        write_submission(tmp_path / "s.csv", predict(), NAMES, CLASSES, size=SIZE)
    assert not list(tmp_path.iterdir())


def test_doubts_are_overridden_and_recorded(tmp_path, masks):
    with pytest.raises(InputErrors, match=r"6 of 6 masks hold one class alone.*force=True"):
        write(tmp_path / "s.csv", np.zeros_like(masks))
    assert not list(tmp_path.iterdir())
    record = write(tmp_path / "s.csv", np.zeros_like(masks), force=True)
    assert record["doubts"] == ("6 of 6 masks hold one class alone (class 0: 6): batch/0000.jpg, batch/0007.jpg, "
                                "batch/0001.jpg and 3 more",)  # fmt: skip


def test_shares_far_from_those_of_train_refuse(tmp_path, masks):
    with pytest.raises(InputErrors, match="class shares are far from train's"):
        write(tmp_path / "s.csv", masks, train_shares=[0.9, *[0.1 / 11] * 11])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("s.csv", {"resizing": "nearst"}, "unknown resizing 'nearst'; did you mean 'nearest'"),
        ("s.csv", {"resizing": "probabilities"}, r"required finite floats \(C, H, W\), got uint8 \(32, 32\)"),
        ("s.csv", {"val_score": 61.0}, "val_score: required a number from 0 to 1, or None, got 61.0"),
        ("s.json", {}, r"required a name that ends in \.csv"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, masks, name, options, words):
    with pytest.raises(InputError, match=words):
        write(tmp_path / name, masks, **options)
