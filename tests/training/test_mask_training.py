"""A folder of masks trains to the bits that the COCO set of the same pixels trains to."""

import numpy as np

from seglib.__main__ import main
from seglib.data.dataset import open_data
from seglib.training.checkpoint import hash_weights, load_checkpoint

OPTIONS = {"split": "given", "folds": 4, "fold": 0, "seed": 1, "paint_order": "class_id", "background": "class",
           "image_size": 64, "cache": False}  # fmt: skip


def test_a_voc_folder_trains_to_the_weights_of_the_coco_set(small_data, train_small, tmp_path):
    sources = [str(small_data / name) for name in ("train.json", "val.json")]
    assert main(["convert", *sources, str(tmp_path / "voc"), "--to", "masks"]) == 0
    voc = tmp_path / "voc"
    for before, after in (("images", "JPEGImages"), ("masks", "SegmentationClass")):
        (voc / before).rename(voc / after)
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    for name in ("train.txt", "val.txt"):
        (voc / name).rename(voc / "ImageSets/Segmentation" / name)
    names = {"coco": (small_data, "train.json", "val.json")}
    names["voc"] = (voc, "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt")
    weights, histories = [], []
    for kind, (folder, *lists) in names.items():
        subsets = open_data(str(folder), *lists, **OPTIONS)
        history = train_small(subsets, tmp_path / f"run_{kind}", epochs=1)
        histories.append(history["train_loss"].tolist())
        weights.append(
            hash_weights(load_checkpoint(tmp_path / f"run_{kind}" / "last.pt", required=("model",))["model"])
        )
        with np.load(tmp_path / f"run_{kind}" / "confusion.npz") as saved:
            histories[-1].append(saved["confusion"].tolist())
    assert weights[0] == weights[1] and histories[0] == histories[1]
