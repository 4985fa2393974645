"""`python -m seglib convert SRC... DST --to coco|masks`: masks or another format as a COCO file, or all as a folder of masks.

The same to the pixel either way. Nothing is overwritten, and nothing is left behind where something is refused.
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from seglib.data.coco import CocoData, load_coco, read_content
from seglib.data.mask_folders import DESCRIPTION, LABELMAP, read_description
from seglib.data.masks import BACKGROUNDS, PAINT_ORDERS, paint_mask
from seglib.data.verify import refuse_errors, verify_coco
from seglib.errors import InputError, require_same
from seglib.files import replacing_folder, write_text


def main(arguments: list[str] | None = None) -> int:
    """Convert; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m seglib convert", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SRC", help="annotation files or folders, lists or folders of images"
    )
    parser.add_argument("target", type=Path, metavar="DST", help="a new file (--to coco) or folder (--to masks)")
    parser.add_argument("--to", required=True, choices=("coco", "masks"))
    parser.add_argument(
        "--data-dir", type=Path, help="where images are looked up; else the folder of SRC or classes.json"
    )
    parser.add_argument(
        "--paint-order", default="class_id", choices=PAINT_ORDERS, help="who wins where objects overlap"
    )
    parser.add_argument("--background", default="class", choices=BACKGROUNDS, help="pixels that nothing covers")
    options = parser.parse_args(arguments)
    try:
        places = [_locate(source, options.data_dir) for source in options.sources]
        if os.path.lexists(options.target):
            raise InputError(f"{options.target}: must be new, got one that is there; delete it, or name another")
        if options.to == "masks":
            print(write_masks(places, options.target, options.paint_order, options.background))
        elif len(places) > 1:
            raise InputError(f"--to coco takes one SRC, got {len(places)}; convert one after the other")
        else:
            print(write_coco(*places[0], options.target))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _locate(source: Path, data_dir: Path | None) -> tuple[Path, str]:
    """(data folder, name seen from it) of a source."""
    source = source.absolute()
    names = (DESCRIPTION, LABELMAP)
    described = [folder for folder in (source, *source.parents) if any((folder / name).is_file() for name in names)]
    if data_dir is None and (source.suffix.lower() == ".json" or not described):
        labels = [folder for folder in (source, *source.parents) if folder.name == "labels"]  # of YOLO, beside images
        data_dir = labels[0].parent if labels and source.is_dir() else source.parent
    folder = (data_dir or described[0]).absolute()
    return folder, read_description(folder).image_dir if source == folder else os.path.relpath(source, folder)


def write_coco(data_dir: Path, name: str, target: Path) -> str:
    """Write a source as a COCO file; return what was written, in words."""
    content = read_content(data_dir, name)
    write_text(target, json.dumps(content, ensure_ascii=False) + "\n")
    counts = f"{len(content['images'])} images, {len(content['annotations'])} annotations"
    inside = target.absolute().is_relative_to(data_dir)
    return f"{target}: {counts}; data_dir: {data_dir}, train_json: {os.path.relpath(target, data_dir) if inside else target.absolute()}"


def write_masks(places: Sequence[tuple[Path, str]], target: Path, paint_order: str, background: str) -> str:
    """Write sources as one folder: `images/` (linked or copied), `masks/`, a list for each source, `classes.json`.

    Raises
    ------
    InputError
        A source has errors or other classes, or two images would have one mask.
    """
    sets = [load_coco(*place) for place in places]
    names, fix = sets[0].class_names, "convert it into another folder"
    for data in sets:
        refuse_errors(verify_coco(data), data.json_path)
        require_same(data.json_path, f"the classes of {sets[0].json_path}", names[1:], data.class_names[1:], fix)
    with replacing_folder(target) as folder:
        lists: dict[str, list[str]] = {}
        for data in sets:
            listed = lists.setdefault(Path(data.json_path).stem, [])
            listed += _write_set(data, folder, paint_order, background)
        for name, stems in lists.items():
            write_text(folder / f"{name}.txt", "\n".join(stems) + "\n")
        write_text(
            folder / DESCRIPTION,
            json.dumps({"classes": ["background", *names[1:]], "ignore_index": 255}, ensure_ascii=False),
        )
    used = ", ".join(f"{name}.txt" for name in lists)
    return f"{target}: {sum(map(len, lists.values()))} images; data_dir: {target.absolute()}, train_json: one of {used}"


def _write_set(data: CocoData, folder: Path, paint_order: str, background: str) -> list[str]:
    """The stems of the images that were written."""
    painted, images = data.painted, [*data.images.itertuples()]
    rows_of_image = painted.groupby("image_id").indices
    names = [_name(row.path, row.file_name, data.data_dir) for row in images]
    stems = [name.with_suffix("").as_posix() for name in names]
    times = Counter(stems)
    for row, stem in zip(images, stems, strict=True):
        if times[stem] > 1 or (folder / "masks" / f"{stem}.png").exists():
            raise InputError(
                f"{data.json_path} [{row.file_name}]: two images would have the mask {stem}.png; rename one"
            )

    def write(row, name: Path, stem: str) -> None:
        mask_path, image_path = folder / "masks" / f"{stem}.png", folder / "images" / name
        annotations = painted.iloc[rows_of_image.get(row.image_id, [])]
        image = Image.fromarray(paint_mask(annotations, row.height, row.width, paint_order, background))
        image.putpalette(_make_palette())
        for path in (mask_path, image_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        image.save(mask_path)
        try:
            os.link(row.path, image_path)
        except OSError:  # another disk
            shutil.copyfile(row.path, image_path)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(write, images, names, stems))
    return stems


def _name(path: str, file_name: str, data_dir: Path) -> Path:
    """An image's place in the new folder: as in the data folder, less `images/`."""
    root = os.path.realpath(data_dir)
    name = Path(os.path.relpath(path, root)) if path.startswith(os.path.join(root, "")) else Path(file_name).name
    name = Path(name)
    return Path(*name.parts[1:]) if name.parts[0] == "images" and len(name.parts) > 1 else name


def _make_palette() -> bytes:
    """VOC's colours of ids 0 to 255: neighbours differ."""
    ids, colours = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()
