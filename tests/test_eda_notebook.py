"""The EDA notebook executed: with pixels and planted faults, and with annotations alone."""

import json
import shutil

import cv2
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from seglib.files import PROJECT
from seglib.runs.record import read_record

NOTEBOOK = PROJECT / "notebooks" / "01_eda.ipynb"


def execute(folder, **parameters):
    """Run the notebook; its output folder and all that it printed."""
    run_dir = folder / "eda"
    papermill.execute_notebook(
        str(NOTEBOOK), str(folder / "01_eda.ipynb"), {"run_dir": str(run_dir), **parameters}, cwd=str(folder),
        kernel_name="python3", progress_bar=False,
    )  # fmt: skip
    outputs = [output for cell in nbformat.read(folder / "01_eda.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    return run_dir, "".join(output.get("text", "") for output in outputs)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, small_data):
    """The small data set with a val image that is a copy of a train image, a black image and a broken annotation."""
    folder = tmp_path_factory.mktemp("faulty")
    shutil.copytree(small_data, folder / "data")
    files = {name: json.loads((folder / "data" / f"{name}.json").read_text()) for name in ("train", "val")}
    copied, first_val = files["train"]["images"][0]["file_name"], files["val"]["images"][0]["file_name"]
    shutil.copy(folder / "data" / copied, folder / "data" / first_val)
    cv2.imwrite(str(folder / "data" / files["train"]["images"][1]["file_name"]), np.zeros((64, 64, 3), np.uint8))
    files["train"]["annotations"][0]["segmentation"] = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    (folder / "data" / "train.json").write_text(json.dumps(files["train"]))
    return folder, files, *execute(folder, data_dir=str(folder / "data"), image_size=64, num_images=2)


def test_data_with_errors_is_shown_and_not_refused(faulty):
    _, files, run_dir, printed = faulty
    problems = pd.read_csv(run_dir / "problems.csv")
    assert problems["problem"].tolist() == ["odd-coordinates"]
    total = sum(len(content["annotations"]) for content in files.values())
    assert f"{total - 1} of {total} annotations can be painted" in printed


def test_leaked_and_black_images_are_found(faulty):
    _, files, run_dir, _ = faulty
    copies, strange = pd.read_csv(run_dir / "copies.csv"), pd.read_csv(run_dir / "strange_images.csv")
    leaked = copies[copies["exact"] & copies["across"]]
    names = [files[name]["images"][0]["file_name"] for name in ("train", "val")]
    assert leaked[["first", "second"]].to_numpy().tolist() == [names]
    assert strange[["file_name", "black"]].to_numpy().tolist() == [[files["train"]["images"][1]["file_name"], True]]


def test_counts_equal_a_few_lines_of_pandas(faulty):
    _, files, run_dir, _ = faulty
    raw = pd.concat(pd.DataFrame(content["annotations"]) for content in files.values()).iloc[1:]
    names = raw["category_id"].map({entry["id"]: entry["name"] for entry in files["train"]["categories"]})
    classes = pd.read_csv(run_dir / "classes.csv", index_col="class")
    assert classes["annotations"].drop("Background").to_dict() == {
        entry["name"]: int((names == entry["name"]).sum()) for entry in files["train"]["categories"]
    }
    sizes = pd.read_csv(run_dir / "object_sizes.csv", index_col=0)
    for limit in (8, 20, 32, 96):
        assert sizes.loc["(all)", f"<={limit}"] == pytest.approx((np.sqrt(raw["area"]) <= limit).mean())


def test_tables_figures_and_findings_are_saved(faulty):
    _, _, run_dir, _ = faulty
    figures = {path.stem for path in (run_dir / "figures").iterdir()}
    assert {"class_counts", "image_contents", "cooccurrence", "object_sizes", "sizes_by_class", "positions",
            "aspect_by_class", "split", "copies", "colours", "augmentation"} <= figures  # fmt: skip
    record = read_record(run_dir)
    assert record["status"] == "ok"
    summary = (run_dir / "summary.md").read_text(encoding="utf-8")
    assert all(sentence in summary for sentence in record["findings"])
    assert "1 errors (odd-coordinates)" in summary
    assert "1 images are black" in summary


def test_annotations_alone_are_enough(tmp_path):
    rng = np.random.default_rng(0)
    categories = [{"id": i, "name": f"종류 {i}"} for i in range(60)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 300, "height": 200} for i in range(30)]
    annotations = []
    for number in range(200):
        x, y, side = rng.integers(0, 150), rng.integers(0, 90), rng.integers(2, 100)
        polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
        annotations.append({"id": number, "image_id": number % 30, "category_id": int(rng.integers(60)),
                            "area": float(side**2), "segmentation": [[float(value) for value in polygon]]})  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    run_dir, printed = execute(
        tmp_path, data_dir=str(tmp_path), train_json="annotations.json", val_json="", split="stratified", image_size=64
    )
    assert "There are no image files here" in printed
    assert (run_dir / "figures" / "overlaps.png").is_file()
    assert "Jensen-Shannon" in (run_dir / "summary.md").read_text(encoding="utf-8")
    assert len(pd.read_csv(run_dir / "objects.csv")) == 200


@pytest.mark.slow
def test_a_file_without_annotations_or_pixels_is_described(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 30, "height": 20} for i in range(3)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "Paper"}]}
    (tmp_path / "test.json").write_text(json.dumps(content))
    run_dir, _ = execute(tmp_path, data_dir=str(tmp_path), train_json="test.json", val_json="", image_size=64)
    summary = (run_dir / "summary.md").read_text(encoding="utf-8")
    assert "no annotation can be painted" in summary
    assert "no validation images" in summary
