"""Folders of index masks (as of VOC, Cityscapes, CamVid, ADE, Kaggle), read once as the COCO content that they are.

`classes.json` in the data folder says what the values of the masks mean; `train_json` and `val_json` name a list of images
(`train.txt`) or a folder (`train`). A dry run of a grid imports this file: what reads pixels is imported where it does.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seglib.data.class_names import is_background
from seglib.errors import InputError, InputErrors, require_known
from seglib.files import cache_dir, hash_files, hash_text, keep_json, read_file, read_json

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = "classes.json"
IGNORED = "ignored"  # the category of pixels that no class has
_VERSION = 1  # of what is made of the masks
_FOLDERS = (("images", "masks"), ("JPEGImages", "SegmentationClass"), ("images", "annotations"), ("images", "labels"),
            ("img", "masks"), ("imgs", "masks"), ("leftImg8bit", "gtFine"))  # fmt: skip
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_MASKS = {".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg"}
_OPTIONS = ("classes", "class_names", "ignore_index", "ignore_classes", "image_dir", "mask_dir", "image_suffix",
            "mask_suffix")  # fmt: skip
LABELMAP = "labelmap.txt"  # of CVAT
_SPLIT = "{split}"
_LINES = 100  # of a refusal
Pair = tuple[str, str]  # an image and its mask, as seen from the data folder


@dataclass(frozen=True)
class MaskFolder:
    """What `classes.json` says.

    `classes`: name -> value in the masks, or colour (red, green, blue); `ignored`: values or colours that are no class.
    """

    data_dir: Path
    classes: Mapping[str, Any]
    ignored: tuple[Any, ...]
    image_dir: str
    mask_dir: str
    image_suffix: str = ""
    mask_suffix: str = ""

    @property
    def class_names(self) -> list[str]:
        """The classes but the background, in the order of their values."""
        return [name for name in self.classes if not is_background(name)]


def is_mask_split(data_dir: str | Path, name: str) -> bool:
    """Whether `name` is a list of images or a folder with images and masks, and no JSON file."""
    path, ending = os.path.join(data_dir, name), os.path.splitext(name)[1].lower()
    if ending == ".json" or os.path.isfile(path):  # of pathlib these raise for a name too long
        return ending == ".txt"
    images = [each for image_dir, _ in _FOLDERS for each in (f"{image_dir}/{name}", f"{name}/{image_dir}")]
    is_folder = any(os.path.isdir(os.path.join(data_dir, each)) for each in [name, *images])
    return is_folder or os.path.isfile(os.path.join(data_dir, DESCRIPTION))


def read_description(data_dir: str | Path) -> MaskFolder:
    """Read `classes.json` of a data folder, or else CVAT's `labelmap.txt`.

    It is a list of names, the first of value 0; or an object name -> colour or value -> name; or an object with one of
    these as `classes`, and with `ignore_index` (a value or several; 255 unless that is a class), `ignore_classes` (names),
    `image_dir`, `mask_dir` (where `{split}` stands for the name in `train_json`), `image_suffix` and `mask_suffix` (what
    the names of images and masks have before their endings).

    Raises
    ------
    InputError
        The file is missing, or says something else.
    """
    path, labelmap = Path(data_dir) / DESCRIPTION, Path(data_dir) / LABELMAP
    try:
        by_cvat = labelmap.is_file() and not path.is_file()
        content = _read_labelmap(labelmap) if by_cvat else json.loads(read_file(path).decode("utf-8-sig"))
    except FileNotFoundError:
        fix = 'write it, such as ["background", "road", "car"] for the values 0, 1 and 2'
        raise InputError(f"{path}: masks need a file that names their classes, got none; {fix}") from None
    except (OSError, ValueError, IndexError, RecursionError) as error:
        raise InputError(f"{labelmap if by_cvat else path}: must be readable, got: {error}; correct it") from None
    options = (
        content if isinstance(content, dict) and {"classes", "class_names"} & content.keys() else {"classes": content}
    )
    for option in options:
        require_known("option", option, _OPTIONS, str(path))
    classes = _read_classes(options.get("classes", options.get("class_names")), path)
    by_colour = isinstance(next(iter(classes.values())), tuple)
    ignored = options.get("ignore_index", [] if by_colour or 255 in classes.values() else 255)
    ignored = ignored if isinstance(ignored, list) and not (by_colour and _is_value(tuple(ignored))) else [ignored]
    ignored = [tuple(value) if isinstance(value, list) else value for value in ignored]
    if wrong := [value for value in ignored if not _is_value(value) or isinstance(value, tuple) != by_colour]:
        required = "colours, as classes has" if by_colour else "whole numbers, as classes has"
        raise InputError(f"{path} [ignore_index]: must be {required}, got {wrong[0]!r}; correct it")
    if not isinstance(names := options.get("ignore_classes", []), list):
        raise InputError(f"{path} [ignore_classes]: must be a list of names, got {names!r}; correct it")
    for name in names:
        require_known("class in ignore_classes", name, classes, str(path))
        ignored.append(classes.pop(name))
    if len(classes) > 254 + sum(map(is_background, classes)):
        raise InputError(f"{path} [classes]: must be 254 at most beside the background, got {len(classes)}; merge some")
    if both := [name for name, value in classes.items() if value in ignored]:
        raise InputError(
            f"{path}: ignore_index must be no class's value, got that of {both[0]}; name it in ignore_classes"
        )
    folders = {name: str(options.get(name, "")) for name in ("image_dir", "mask_dir", "image_suffix", "mask_suffix")}
    return MaskFolder(Path(data_dir), classes, tuple(ignored), **_complete(Path(data_dir), folders))


def _read_labelmap(path: Path) -> dict[str, list[int]]:
    """Name -> colour; a line is `car:128,0,0::`."""
    lines = read_file(path).decode("utf-8-sig").splitlines()
    rows = [line.split(":") for line in lines if line.strip() and line[0] != "#"]
    return {name: [int(each) for each in colour.split(",")] for name, colour, *_ in rows}


def _read_classes(classes: Any, path: Path) -> dict[str, Any]:
    """Name -> value or colour, in the order of values."""
    pairs = []
    if isinstance(classes, list) and all(isinstance(each, dict) and "name" in each for each in classes):
        pairs = [(each["name"], each.get("color", each.get("id", each.get("value")))) for each in classes]
    elif isinstance(classes, list):
        pairs = [(name, value) for value, name in enumerate(classes)]
    elif isinstance(classes, dict) and all(key.isdecimal() and len(key) < 9 for key in classes):
        pairs = [(name, int(value)) for value, name in classes.items()]
    elif isinstance(classes, dict):
        pairs = [*classes.items()]
    pairs = [(name, tuple(value) if isinstance(value, list) else value) for name, value in pairs]
    if not pairs or not all(isinstance(name, str) and name.strip() and _is_value(value) for name, value in pairs):
        required = "a list of names, or an object value -> name or name -> [red, green, blue]"
        raise InputError(f"{path} [classes]: must be {required}, got {json.dumps(classes)[:80]}; correct it")
    for what, values in (("name", [name for name, _ in pairs]), ("value", [value for _, value in pairs])):
        if twice := [value for value in values if values.count(value) > 1]:
            raise InputError(f"{path} [classes]: each must have a {what} of its own, got {twice[0]} twice; correct it")
    if len({type(value) for _, value in pairs}) > 1:
        raise InputError(f"{path} [classes]: must have values or colours, got both; write all as colours")
    return dict(sorted(pairs, key=lambda pair: pair[1]) if isinstance(pairs[0][1], int) else pairs)


def _is_value(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) == 3 and all(isinstance(each, int) and 0 <= each <= 255 for each in value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16


def _complete(data_dir: Path, folders: dict[str, str]) -> dict[str, str]:
    """The folders that the file leaves out are those of a usual layout."""
    half = [pair for pair in _FOLDERS if any(_find(data_dir, each) for each in pair)]
    known = next((pair for pair in half if all(_find(data_dir, each) for each in pair)), (half or _FOLDERS)[0])
    return folders | {"image_dir": folders["image_dir"] or known[0], "mask_dir": folders["mask_dir"] or known[1]}


def _find(data_dir: Path, name: str) -> bool:
    return (data_dir / name).is_dir() or any(data_dir.glob(f"*/{name}"))


def _find_folders(folder: MaskFolder, name: str) -> Pair | None:
    """The folders of a split's images and masks; None where there are none."""
    name = name.strip("/")
    dirs = folder.image_dir, folder.mask_dir
    if any(_SPLIT in each for each in dirs):
        choices = [tuple(each.replace(_SPLIT, name) for each in dirs)]
    elif Path(name).is_relative_to(dirs[0]):
        choices = [(name, str(Path(dirs[1], Path(name).relative_to(dirs[0]))))]
    else:
        choices = [tuple(f"{each}/{name}" for each in dirs), tuple(f"{name}/{each}" for each in dirs)]
    return next((pair for pair in choices if all((folder.data_dir / each).is_dir() for each in pair)), None)


def list_pairs(folder: MaskFolder, name: str) -> list[Pair]:
    """The images of a list or a folder with their masks, in the list's order or sorted.

    Raises
    ------
    InputErrors
        One line for each image without a mask, and each line of a list without an image.
    """
    listed = read_list(folder.data_dir / name) if (folder.data_dir / name).is_file() else None
    dirs = (folder.image_dir, folder.mask_dir) if listed is not None else _find_folders(folder, name)
    if dirs is None or (listed is not None and _SPLIT in "".join(dirs)):
        where = f"{folder.image_dir}/{name} and {folder.mask_dir}/{name}"
        raise InputError(
            f"{folder.data_dir}: {name!r} must be a list of images (train.txt) or a folder, such as {where}, got neither;"
            f" write image_dir and mask_dir into {DESCRIPTION}"
        )
    images = _index(folder.data_dir, dirs[0], IMAGE_ENDINGS, folder.image_suffix)
    masks = _index(folder.data_dir, dirs[1], _MASKS, folder.mask_suffix)
    problems: list[str] = []
    stems = sorted(images) if listed is None else _look_up(listed, images, f"{folder.data_dir / name}", problems)
    suffix = "" if folder.mask_suffix or any(stem in masks for stem in stems) else _guess_suffix(stems, masks)
    pairs = []
    for stem in stems:
        if stem + suffix in masks:
            pairs.append((images[stem], masks[stem + suffix]))
            continue
        near = next((masks[each] for each in sorted(masks) if each.startswith(stem)), "")
        fix = f"its name goes on: write mask_suffix into {DESCRIPTION}" if near else "add it, or remove the image"
        got = f"none{f', but {near}' if near else ''}"
        problems.append(f"{images[stem]}: must have a mask {dirs[1]}/{stem}{folder.mask_suffix}.png, got {got}; {fix}")
    if not stems and not problems:
        problems.append(f"{folder.data_dir / dirs[0]}: must have images, got none; write image_dir into {DESCRIPTION}")
    _refuse(problems)
    return pairs


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = [f"{len(problems)} problems in all; the first {_LINES} are listed"] if len(problems) > _LINES else []
        raise InputErrors([*problems[:_LINES], *more])


def read_list(path: Path) -> list[str]:
    """The lines of a text file, without those that are empty."""
    try:
        lines = [line.strip() for line in read_file(path).decode("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: a list must be text in UTF-8, got: {error}; save it as UTF-8") from None
    return [line for line in lines if line]


def _look_up(listed: Sequence[str], images: Mapping[str, str], where: str, problems: list[str]) -> list[str]:
    """The stems that a list names: with or without folders and endings, with other columns behind them."""
    by_name: dict[str, list[str]] = {}
    for stem in images:
        by_name.setdefault(stem.rpartition("/")[2], []).append(stem)
    stems = []
    for number, line in enumerate(listed, 1):
        for name in (line, line.split()[0]):
            plain = name.removesuffix(Path(name).suffix) if Path(name).suffix.lower() in IMAGE_ENDINGS else name
            found = [each for each in by_name.get(plain.rpartition("/")[2], ()) if f"/{plain}".endswith(f"/{each}")]
            found = [plain] if plain in images else found
            found = found or by_name.get(plain, [])
            if len(found) == 1:
                stems.append(found[0])
                break
        else:
            problems.append(f"{where} [line {number}]: must name one image, got {line!r}, which is none; correct it")
    return stems


def _index(data_dir: Path, folder: str, endings: set[str], suffix: str) -> dict[str, str]:
    """Path in the folder, without suffix and ending -> path seen from `data_dir`."""
    files = {}
    for path in sorted((data_dir / folder).rglob("*")):
        if path.suffix.lower() in endings and path.stem.endswith(suffix) and not path.name.startswith("."):
            stem = path.relative_to(data_dir / folder).with_suffix("").as_posix().removesuffix(suffix)
            files.setdefault(stem, path.relative_to(data_dir).as_posix())
    return files


def _guess_suffix(stems: Sequence[str], masks: Mapping[str, str]) -> str:
    """What the masks' names have behind those of their images, if it is the same for all, and one thing only."""
    first = stems[0] if stems else ""
    found = [each.removeprefix(first) for each in masks if stems and each.startswith(first)]
    found = [suffix for suffix in found if all(stem + suffix in masks for stem in stems)]
    return found[0] if len(found) == 1 else ""


def hash_masks(data_dir: str | Path, name: str) -> str:
    """Hash of a split's masks, what they are called and what their values mean."""
    folder = read_description(data_dir)
    pairs = list_pairs(folder, name)
    hashes = hash_files([folder.data_dir / mask for _, mask in pairs])
    return hash_text(json.dumps([_VERSION, folder.classes, folder.ignored, pairs, hashes]))


def read_masks(data_dir: str | Path, name: str) -> dict[str, Any]:
    """The COCO content of a list or folder of images with masks; remembered in `cache_dir()`/masks.

    Objects are the connected components of each class (pixels that touch at corners too), painted back they are the masks.
    Pixels to ignore are annotations of a category with `"ignore": 1`. Category ids are 1, 2, ... in the order of values.

    Raises
    ------
    InputErrors
        One line for each mask that is missing, of another size than its image, no mask, or has a value of no class.
    """
    folder = read_description(data_dir)
    return remember(hash_masks(data_dir, name), lambda: _convert(folder, list_pairs(folder, name)))


def remember(digest: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` makes of files with this hash, kept in `cache_dir()`/masks."""
    kept = cache_dir() / "masks" / f"{digest}.json"
    with suppress(OSError, ValueError):  # none yet, or damaged: made now
        return read_json(kept)
    content = make()
    keep_json(kept, content)
    return content


def _convert(folder: MaskFolder, pairs: Sequence[Pair]) -> dict[str, Any]:
    names = folder.class_names
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = [*pool.map(partial(_read_pair, folder), pairs)]
    _refuse([problem for problem, *_ in results if problem])
    images, annotations = [], []
    for number, ((image, _), (_, shape, objects)) in enumerate(zip(pairs, results, strict=True), 1):
        images.append({"id": number, "file_name": image, "width": shape[1], "height": shape[0]})
        for class_id, rle, area in objects:
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": class_id, "segmentation": rle}
            annotations.append(entry | {"area": area, "iscrowd": 0})
    present = {entry["category_id"] for entry in annotations}
    categories = [{"id": number, "name": each} for number, each in enumerate(names, 1)]
    ignored = len(names) + 1
    if present == {ignored} and 255 in folder.ignored:
        fix = f'name the value in {DESCRIPTION}, such as {{"0": "background", "255": "{names[0]}"}}'
        raise InputError(f"{folder.data_dir}: the masks must show a class, got none but 255, which is ignored; {fix}")
    categories += [{"id": ignored, "name": IGNORED, "ignore": 1}] if ignored in present else []
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_pair(folder: MaskFolder, pair: Pair) -> tuple[str, tuple[int, int], list]:
    """(problem, (height, width), objects) of a mask."""
    from seglib.data.images import read_header

    try:
        mask = read_mask(folder, folder.data_dir / pair[1])
        *size, orientation = read_header(folder.data_dir / pair[0])
        size = size[::-1] if orientation >= 5 and tuple(size) != mask.shape[::-1] else size
        if tuple(size) != mask.shape[::-1]:
            got = (
                f"got {mask.shape[1]}x{mask.shape[0]}; make it again for this image, or resize it by nearest neighbour"
            )
            required = f"must be {size[0]}x{size[1]} px (width x height) as {pair[0]}"
            return f"{folder.data_dir / pair[1]}: {required}, {got}", (0, 0), []
        return "", mask.shape, find_objects(mask, len(folder.class_names) + 1)
    except InputError as error:
        return str(error), (0, 0), []


def read_mask(folder: MaskFolder, path: Path) -> "np.ndarray":
    """(height, width) uint8 of a mask file: 0 background, 1 to C the classes in their order, 255 ignored.

    Raises
    ------
    InputError
        The file is no image or stored with loss, has colours without a table of them, or a value of no class.
    """
    import numpy as np
    import pandas as pd

    from seglib.data.images import opening

    by_colour = isinstance(next(iter(folder.classes.values())), tuple)
    with opening(path, "a mask must be an image that can be read", "export it again") as image:
        if image.format in ("JPEG", "MPO"):
            got = "got JPEG, which changes them; export the masks as PNG"
            raise InputError(f"{path}: a mask must be stored to the exact values, {got}")
        if image.mode == "F":
            raise InputError(f"{path}: a mask must have whole numbers, got floating point; export it as PNG")
        values = np.asarray(image.convert("RGB") if by_colour or image.mode not in _INDEXED else image)
    if values.ndim == 3 and not by_colour:
        if (values != values[..., :1]).any():
            fix = f'write a table of colours into {DESCRIPTION}, such as {{"background": [0, 0, 0], "road": [128, 64, 128]}}'
            raise InputError(f"{path}: a mask must have one channel, got colours; {fix}")
        values = values[..., 0]
    shape = values.shape[:2]
    codes, found = pd.factorize(_encode(values).ravel())
    ids = _number(folder)
    if unknown := [each for each in found.tolist() if each not in ids]:
        counts = dict(zip(found.tolist(), np.bincount(codes).tolist(), strict=True))
        shown = [f"({each >> 16}, {each >> 8 & 255}, {each & 255})" if by_colour else f"{each}" for each in unknown[:5]]
        got = ", ".join(f"{name} on {counts[each]} px" for name, each in zip(shown, unknown, strict=False))
        fix = f"name it in {DESCRIPTION}, under classes or ignore_index"
        raise InputError(f"{path}: values must be those of {DESCRIPTION}, got {got}; {fix}")
    return np.array([ids[each] for each in found.tolist()], np.uint8)[codes].reshape(shape)


_INDEXED = ("1", "L", "P", "I", "I;16")


def _encode(values: "np.ndarray") -> "np.ndarray":
    """Values, or colours as one number each."""
    if values.ndim == 2:
        return values.astype("int64")
    red, green, blue = (values[..., channel].astype("int64") for channel in range(3))
    return red << 16 | green << 8 | blue


def _number(folder: MaskFolder) -> dict[int, int]:
    """Value, or colour as one number -> class id."""
    ids = {name: number for number, name in enumerate(folder.class_names, 1)}
    pairs = [(value, ids.get(name, 0)) for name, value in folder.classes.items()]
    pairs += [(value, 255) for value in folder.ignored]
    return {
        value[0] << 16 | value[1] << 8 | value[2] if isinstance(value, tuple) else value: each for value, each in pairs
    }


def find_objects(mask: "np.ndarray", ignored_id: int) -> list[tuple[int, dict, int]]:
    """(class id, compressed RLE, pixels) of each connected component of each class but 0; 255 is one object, `ignored_id`."""
    import cv2
    import numpy as np

    labels, classes = np.zeros(mask.shape, np.int64), [0]
    for value in np.unique(mask[mask > 0]).tolist():
        if value == 255:
            labels[mask == value] = len(classes)
            classes.append(ignored_id)
            continue
        count, components = cv2.connectedComponents((mask == value).view(np.uint8), connectivity=8)
        labels += np.where(components > 0, components + len(classes) - 1, 0)
        classes += [value] * (count - 1)
    return [(value, *each) for value, each in zip(classes[1:], encode_labels(labels, len(classes) - 1), strict=True)]


def encode_labels(labels: "np.ndarray", count: int) -> list[tuple[dict, int]]:
    """(compressed RLE, pixels) of each of the labels 1 to `count` in (height, width) int64.

    Runs are found once for all of them, by columns as RLE has them: the time grows with the outlines, not the objects.
    """
    import numpy as np
    from pycocotools import mask as mask_api

    height, width = labels.shape
    flat = labels.T.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths, owners = np.diff(starts, append=flat.size), flat[starts]
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(1, count + 2))
    objects = []
    for label in range(count):
        runs = order[bounds[label] : bounds[label + 1]]
        edges = np.column_stack([starts[runs], starts[runs] + lengths[runs]]).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        rle = mask_api.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        objects.append(({"size": [height, width], "counts": rle["counts"].decode()}, int(lengths[runs].sum())))
    return objects
